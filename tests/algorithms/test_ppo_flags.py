"""Each flag changes what it should."""

import functools

import pytest
import torch
from gymnasium import spaces
from lightning.pytorch.strategies import DDPStrategy

from ppo_lightning import PPO, ConfigurationError, TrainingError
from ppo_lightning.algorithms.ranks import allow_unused_parameters
from tests.runs import Recorder, equal, fit, make_data, make_ppo, make_trainer, weights


@pytest.mark.parametrize(
    "flags",
    [
        {"gamma": 0.5},
        {"gae_lambda": 0.0},
        {"clip_coef": 0.001},
        {"norm_adv": False},
        {"clip_vloss": False},
        {"vf_coef": 2.0},
        {"ent_coef": 0.5},
        {"learning_rate": 1e-4},
        {"anneal_lr": True},
        {"target_kl": 1e-9},
        {"critic_pretrain_steps": 1000},
        {"optimizer": torch.optim.SGD},
        {"scheduler": functools.partial(torch.optim.lr_scheduler.ExponentialLR, gamma=0.5)},
    ],
    ids=lambda flags: next(iter(flags)),
)
def test_flag_changes_the_run(flags):
    def run(**extra):
        return weights(fit(make_ppo(**extra), make_data("tests.tasks:Walk-v0", iterations=3, update_epochs=4)))

    # the value's clip only bites when updates move it far
    common = {"learning_rate": 5e-2} if "clip_vloss" in flags else {}
    assert not equal(run(**common), run(**common, **flags))


def test_gradient_clipping_is_the_trainers():
    clipped, free = (weights(fit(make_ppo(), gradient_clip_val=value)) for value in (1e-3, None))
    assert not equal(clipped, free)


def test_fused_adam_is_clipped_under_bf16():
    small = fit(make_ppo(optimizer=torch.optim.SGD, learning_rate=1.0), precision="bf16-mixed", gradient_clip_val=1e-6)
    fresh = make_ppo()
    fresh.build_network(make_data().observation_space, make_data().action_space)
    for name, tensor in weights(small).items():
        torch.testing.assert_close(tensor, weights(fresh)[name], atol=1e-4, rtol=0)
    fit(make_ppo(), precision="bf16-mixed", gradient_clip_val=0.5)  # Lightning alone refuses this pair


def test_anneal_lr_is_linear_in_environment_steps():
    recorder = Recorder()
    fit(make_ppo(anneal_lr=True, learning_rate=1.0), make_data(iterations=4), callbacks=[recorder])
    assert recorder.lrs == [1.0, 0.75, 0.5, 0.25]


def test_learning_rate_is_one_number_for_any_optimizer():
    recorder = Recorder()
    fit(make_ppo(optimizer=torch.optim.RMSprop, learning_rate=0.123), callbacks=[recorder])
    assert recorder.lrs == [0.123, 0.123]


def test_kl_stop_in_every_iteration_stops_no_schedule_and_halves_no_minibatch():
    """Accumulating two minibatches a step, each iteration is one whole step and one step of the schedule."""
    recorder, steps = Recorder(), []
    ppo = make_ppo(
        target_kl=1e-12,
        learning_rate=1e-2,
        scheduler=functools.partial(torch.optim.lr_scheduler.ExponentialLR, gamma=0.5),
    )
    seen = ppo.training_step
    sizes = []

    def spy(batch, batch_idx):
        sizes.append(batch_idx)
        return seen(batch, batch_idx)

    ppo.training_step = spy
    ppo.on_before_optimizer_step = lambda optimizer: steps.append(len(sizes))
    fit(
        ppo,
        make_data(iterations=3, num_minibatches=4, update_epochs=3),
        callbacks=[recorder],
        accumulate_grad_batches=2,
    )
    # the first minibatch has a KL of zero, the third (after the first step) exceeds the target, the fourth completes
    assert sizes == [0, 1, 2, 3] * 3
    assert steps == [2, 4, 6, 8, 10, 12]
    assert recorder.lrs == pytest.approx([1e-2, 5e-3, 2.5e-3])
    assert len(recorder.metrics) == 3


def test_schedule_is_stepped_once_an_iteration_without_a_stop():
    recorder = Recorder()
    scheduler = functools.partial(torch.optim.lr_scheduler.ExponentialLR, gamma=0.1)
    fit(make_ppo(scheduler=scheduler, learning_rate=1.0), make_data(iterations=3), callbacks=[recorder])
    assert recorder.lrs == pytest.approx([1.0, 0.1, 0.01])


def test_critic_pretraining_moves_the_critic_alone_until_its_steps_are_over():
    recorder = Recorder()
    ppo = make_ppo(critic_pretrain_steps=33)  # an iteration is 32 steps: two pretrain
    ppo.build_network(make_data().observation_space, make_data().action_space)
    before = weights(ppo)
    fit(ppo, make_data(iterations=3), callbacks=[recorder])

    def moved(first, second):
        return {name.split(".")[0] for name in first if not torch.equal(first[name], second[name])}

    critic = {"critic_embedder", "fc_value"}
    assert moved(before, recorder.after[0]) == critic
    assert moved(recorder.after[0], recorder.after[1]) == critic
    assert moved(recorder.after[1], recorder.after[2]) == critic | {"embedder", "fc_policy"}


def test_log_action_id_logs_the_fraction_of_that_action():
    recorder = Recorder()
    fit(make_ppo(log_action_id=1), callbacks=[recorder])
    assert 0 < recorder.metrics[0]["rollout/action_1_fraction"] < 1


def test_a_nan_loss_stops_the_run_and_names_the_minibatch():
    ppo = make_ppo(learning_rate=1e30, vf_coef=1e30)
    with pytest.raises(TrainingError, match=r"in minibatch \d+ of the update at 32 environment steps"):
        fit(ppo, gradient_clip_val=None)


@pytest.mark.parametrize("what", ["reward", "observation"])
def test_a_nan_of_the_environment_stops_the_run_and_names_the_place(what):
    data = make_data("tests.tasks:Broken-v0")
    data.env.kwargs = {"what": what}
    with pytest.raises(TrainingError, match=f"{what} of environment 0 .*step 5"):
        fit(data=data)


@pytest.mark.parametrize(
    ("flags", "words"),
    [
        ({"gamma": 1.5}, "--model.gamma must be at least 0 and at most 1, not 1.5"),
        ({"gae_lambda": -0.1}, "--model.gae_lambda"),
        ({"clip_coef": -0.2}, "--model.clip_coef must be greater than 0, not -0.2"),
        ({"learning_rate": 0.0}, "--model.learning_rate"),
        ({"vf_coef": -1.0}, "--model.vf_coef"),
        ({"ent_coef": float("nan")}, "--model.ent_coef"),
        ({"target_kl": 0.0}, "--model.target_kl"),
        ({"critic_pretrain_steps": -1}, "--model.critic_pretrain_steps"),
        ({"anneal_lr": True, "scheduler": torch.optim.lr_scheduler.ConstantLR}, "--model.anneal_lr.*--model.scheduler"),
    ],
)
def test_bad_numbers_are_refused_by_name(flags, words):
    with pytest.raises(ConfigurationError, match=words):
        PPO(**flags)


def test_an_action_that_does_not_exist_cannot_be_logged():
    with pytest.raises(ConfigurationError, match=r"--model.log_action_id"):
        make_ppo(log_action_id=5).build_network(make_data().observation_space, make_data().action_space)
    with pytest.raises(ConfigurationError, match=r"--model.log_action_id needs a Discrete"):
        make_ppo(log_action_id=0).build_network(spaces.Box(0, 1, (2,)), spaces.Box(0, 1, (2,)))


def test_anneal_lr_needs_an_end():
    with pytest.raises(ConfigurationError, match=r"--model.anneal_lr.*--data.total_timesteps"):
        fit(make_ppo(anneal_lr=True), make_data(total_timesteps=None), max_epochs=1)


def test_reduce_on_plateau_is_refused():
    ppo = make_ppo(scheduler=torch.optim.lr_scheduler.ReduceLROnPlateau)
    with pytest.raises(ConfigurationError, match="ReduceLROnPlateau"):
        fit(ppo)


@pytest.mark.parametrize("strategy", ["ddp", DDPStrategy(), DDPStrategy(find_unused_parameters=True)])
def test_critic_pretraining_lets_ddp_leave_parameters_out(strategy):
    trainer = make_trainer(strategy=strategy, devices=2)
    for flags in ({"critic_pretrain_steps": 8}, {"max_clip_fraction": 0.5}):
        assert make_ppo(**flags).has_unused_parameters
    allow_unused_parameters(trainer)
    assert trainer.strategy._ddp_kwargs["find_unused_parameters"] is True
    assert not make_ppo().has_unused_parameters  # the search costs time in every minibatch


def test_a_strategy_that_waits_for_every_gradient_contradicts_critic_pretraining():
    trainer = make_trainer(strategy="ddp_find_unused_parameters_false", devices=2)
    with pytest.raises(ConfigurationError, match=r"find_unused_parameters=false .*max_clip_fraction\).*strategy=ddp\."):
        allow_unused_parameters(trainer)


def test_other_strategies_are_left_as_they_are():
    allow_unused_parameters(make_trainer())
