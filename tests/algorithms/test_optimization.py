"""Learning rates and clipping of actor and critic, and what the KL divergence makes of the former."""

import functools
import math

import pytest
import torch
from lightning.pytorch import Callback
from lightning.pytorch.plugins.precision import MixedPrecision
from torch import nn

from ppo_lightning import PPO, ActorCritic, ConfigurationError, MLPEncoder, PPOModel
from ppo_lightning.algorithms import optimized
from ppo_lightning.algorithms.clipping import clip_on_host
from ppo_lightning.algorithms.optimization import AdaptiveLearningRate
from tests.runs import SMALL_NETWORK, Recorder, SmallGRU, fit, make_data, make_ppo, make_trainer, weights

GAUSSIAN = functools.partial(PPOModel, encoder=functools.partial(MLPEncoder, hidden_sizes=[8]))
TARGET = "tests.tasks:Target-v0"
SHARED = functools.partial(ActorCritic, shared=True)


class Rates(Callback):
    """Notes the learning rates before each step and at each border of iterations."""

    def __init__(self):
        self.steps, self.starts, self.ends = [], [], []

    def rates(self, trainer):
        return [group["lr"] for group in trainer.optimizers[0].param_groups]

    def on_train_epoch_start(self, trainer, pl_module):
        self.starts.append(self.rates(trainer))

    def on_before_optimizer_step(self, trainer, pl_module, optimizer):
        self.steps.append(self.rates(trainer)[0])

    def on_train_epoch_end(self, trainer, pl_module):
        self.ends.append(self.rates(trainer))


def built(env="tests.tasks:Walk-v0", **flags):
    """An agent with its network and optimiser, not yet trained."""
    ppo, data = make_ppo(**flags), make_data(env)
    ppo.build_network(data.observation_space, data.action_space)
    return ppo, ppo.configure_optimizers()


def halves(ppo):
    critic = {id(parameter) for parameter in ppo.network.critic_parameters()}
    actor = [parameter for parameter in ppo.parameters() if id(parameter) not in critic]
    return actor, [parameter for parameter in ppo.parameters() if id(parameter) in critic]


# -- a learning rate each


@pytest.mark.parametrize(("network", "env"), [(GAUSSIAN, TARGET), (SMALL_NETWORK, TARGET), (SMALL_NETWORK, None)])
def test_actor_and_critic_learn_at_their_own_rates(network, env):
    ppo, optimizer = built(
        env or "tests.tasks:Walk-v0",
        network=network, optimizer=torch.optim.SGD, learning_rate=0.5, critic_learning_rate=0.25,
    )  # fmt: skip
    actor, critic = halves(ppo)
    groups = [group["params"] for group in optimizer.param_groups]
    assert [list(map(id, group)) for group in groups] == [list(map(id, actor)), list(map(id, critic))]
    before = [parameter.detach().clone() for parameter in (*actor, *critic)]
    for parameter in ppo.parameters():
        parameter.grad = torch.ones_like(parameter)
    optimizer.step()
    rates = [0.5] * len(actor) + [0.25] * len(critic)
    for parameter, old, rate in zip((*actor, *critic), before, rates):
        torch.testing.assert_close(old - parameter, torch.full_like(old, rate))


def test_one_learning_rate_is_one_group():
    _, optimizer = built()
    assert len(optimizer.param_groups) == 1


def test_both_rates_are_annealed_scheduled_and_logged():
    rates, recorder = Rates(), Recorder()
    flags = {"learning_rate": 1.0, "critic_learning_rate": 0.5}
    fit(make_ppo(anneal_lr=True, **flags), make_data(iterations=4), callbacks=[rates, recorder])
    assert rates.ends == [[1.0, 0.5], [0.75, 0.375], [0.5, 0.25], [0.25, 0.125]]
    names = "train/learning_rate", "train/critic_learning_rate"
    ppo = make_ppo(scheduler=functools.partial(torch.optim.lr_scheduler.ExponentialLR, gamma=0.5), **flags)
    logged = Logged()
    fit(ppo, make_data(iterations=3), callbacks=[logged])
    assert [[metrics[name] for name in names] for metrics in logged.metrics] == [[1.0, 0.5], [0.5, 0.25], [0.25, 0.125]]
    assert set(names) <= set(ppo.metric_names)
    assert "train/critic_learning_rate" not in make_ppo().optimization.learning_rate_names


class Logged(Callback):
    """What each iteration logged."""

    def __init__(self):
        self.metrics = []

    def on_train_epoch_end(self, trainer, pl_module):
        self.metrics.append(pl_module.iteration_metrics)


@pytest.mark.parametrize("flag", ["critic_learning_rate", "critic_gradient_clip_val"])
@pytest.mark.parametrize("network", [SHARED, SmallGRU])
def test_a_critic_that_is_not_the_critics_alone_is_refused(network, flag):
    name = getattr(network, "func", network).__name__
    with pytest.raises(ConfigurationError, match=rf"^--model\.{flag} needs a critic of its own, and .*={name} .*\.$"):
        built(network=network, **{flag: 0.1})


# -- clipping


def gradients(parameters):
    return torch.cat([parameter.grad.flatten() for parameter in parameters])


@pytest.mark.parametrize(
    ("algorithm", "expected"),
    [
        ("norm", lambda grad, limit: grad * limit / grad.norm()),
        ("value", lambda grad, limit: grad.clamp(-limit, limit)),
    ],
)
@pytest.mark.parametrize("clip_val", [0.5, None])
def test_actor_and_critic_are_clipped_by_themselves(clip_val, algorithm, expected):
    ppo, optimizer = built(TARGET, network=GAUSSIAN, critic_gradient_clip_val=0.25)
    for parameter in ppo.parameters():
        parameter.grad = torch.randn_like(parameter)
    actor, critic = map(gradients, halves(ppo))
    ppo.configure_gradient_clipping(optimizer, clip_val, algorithm)
    clipped_actor, clipped_critic = map(gradients, halves(ppo))
    torch.testing.assert_close(clipped_critic, expected(critic, 0.25))
    torch.testing.assert_close(clipped_actor, actor if clip_val is None else expected(actor, 0.5))


@pytest.mark.parametrize("clip_val", [1e-3, 0.5, 100.0])
@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_small_networks_gradients_are_clipped_as_torch_does_it(dtype, clip_val):
    layers = nn.Sequential(nn.Linear(3, 4), nn.Conv2d(3, 4, 2), nn.Linear(4, 1)).to(dtype)
    parameters = list(layers.parameters())
    for parameter in parameters[:-1]:  # the last has none
        parameter.grad = torch.randn_like(parameter)
    parameters[2].grad = parameters[2].grad.contiguous(memory_format=torch.channels_last)
    expected = [parameter.grad.clone() for parameter in parameters[:-1]]
    optimizer = torch.optim.SGD([{"params": parameters[:2]}, {"params": parameters[2:]}], lr=0.1)
    assert clip_on_host(make_trainer(gradient_clip_val=clip_val), optimizer, clip_val, "norm")
    found = [parameter.grad for parameter in parameters[:-1]]
    for parameter, gradient in zip(parameters, expected):
        parameter.grad = gradient
    nn.utils.clip_grad_norm_(parameters, clip_val)
    accuracy = 1e-5 if dtype is torch.float32 else 1e-13
    torch.testing.assert_close(found, [parameter.grad for parameter in parameters[:-1]], rtol=accuracy, atol=0)


@pytest.mark.parametrize(
    ("gradient", "clip_val", "algorithm", "settings"),
    [
        (torch.ones(2), None, "norm", {"gradient_clip_val": None}),
        (torch.ones(2), 0, "norm", {"gradient_clip_val": 0}),
        (torch.ones(2), -1.0, "norm", {"gradient_clip_val": -1.0}),
        (torch.ones(2), 0.4, "norm", {}),  # not the Trainer's, of which Lightning tells
        (torch.ones(2), 0.5, "value", {}),
        (torch.ones(2), 0.5, None, {"gradient_clip_algorithm": "value"}),
        (torch.ones(2), 0.5, "norm", {"precision": "bf16-mixed"}),
        (torch.ones(2), 0.5, "norm", {"precision": "bf16-true"}),
        (torch.ones(2).to_sparse(), 0.5, "norm", {}),
        (torch.ones(2, device="meta"), 0.5, "norm", {}),
        (torch.ones(2, dtype=torch.bfloat16), 0.5, "norm", {}),
        (torch.ones(2, requires_grad=True), 0.5, "norm", {}),
        (nn.Parameter(torch.ones(2), requires_grad=False), 0.5, "norm", {}),  # stands for all that is no plain tensor
        (torch.ones(2**18 + 1), 0.5, "norm", {}),
        (torch.tensor([math.nan, 1.0]), 0.5, "norm", {}),
        (torch.tensor([math.inf, 1.0]), 0.5, "norm", {}),
        (torch.tensor([1e30, 1.0]), 0.5, "norm", {}),
    ],
)
def test_other_clipping_is_left_to_torch(gradient, clip_val, algorithm, settings, recwarn):
    parameter = nn.Parameter(torch.zeros_like(gradient))
    parameter.grad = gradient
    optimizer, trainer = torch.optim.SGD([parameter], lr=1.0), make_trainer(**settings)
    recwarn.clear()
    assert not clip_on_host(trainer, optimizer, clip_val, algorithm)
    assert not recwarn.list


@pytest.mark.parametrize(("precision", "is_used"), [("32-true", True), ("64-true", True), ("bf16-mixed", False)])
def test_runs_of_small_networks_clip_on_the_host(monkeypatch, precision, is_used):
    answers = []

    def spy(*args):
        answers.append(clip_on_host(*args))
        return answers[-1]

    monkeypatch.setattr(optimized, "clip_on_host", spy)
    fit(make_ppo(), make_data(iterations=1), precision=precision)
    assert answers == [True] * (4 if is_used else 0)


@pytest.mark.parametrize("precision", ["32-true", "bf16-mixed"])
def test_a_run_clips_the_critic_alone(precision):
    ppo = make_ppo(optimizer=torch.optim.SGD, learning_rate=0.1, critic_gradient_clip_val=1e-7)
    data = make_data()
    ppo.build_network(data.observation_space, data.action_space)
    before = weights(ppo)
    fit(ppo, data, precision=precision, gradient_clip_val=None)
    moved = {name: (tensor - before[name]).abs().max() for name, tensor in weights(ppo).items()}
    assert max(move for name, move in moved.items() if "critic" in name or "value" in name) < 1e-6
    assert min(move for name, move in moved.items() if name.startswith(("embedder", "fc_policy"))) > 1e-5


@pytest.mark.parametrize("flags", [{"critic_gradient_clip_val": 0.1}, {"gradient_guard": 10.0}])
def test_gradients_that_stay_scaled_are_neither_clipped_nor_guarded(flags):
    """A fused optimiser takes float16's loss scaling back by itself, after everything else has seen the gradients."""
    scaling = {"plugins": [MixedPrecision("16-mixed", "cpu")], "gradient_clip_val": None}
    (flag,) = flags
    with pytest.raises(ConfigurationError, match=rf"^--model\.{flag} .*--trainer\.precision=16-mixed .*fused\.$"):
        fit(make_ppo(**flags), **scaling)
    fit(make_ppo(optimizer=torch.optim.SGD, **flags), **scaling)
    fit(make_ppo(), **scaling)


# -- adaptive learning rate

QUARTER = AdaptiveLearningRate(0.25, 1e-4, 1e-2)  # whose thresholds, 1/2 and 1/8, no rounding moves


@pytest.mark.parametrize(
    ("kl", "factor"),
    [
        (0.5, 1),
        (math.nextafter(0.5, 1), 1 / 1.5),
        (7.0, 1 / 1.5),
        (math.inf, 1 / 1.5),
        (0.25, 1),
        (0.125, 1),
        (math.nextafter(0.125, 0), 1.5),
        (0.0, 1.5),
        (-1e-3, 1.5),  # an estimate may be
        (math.nan, 1),
    ],
)
def test_rates_change_beyond_twice_and_below_half_the_target(kl, factor):
    parameters = [{"params": [nn.Parameter(torch.zeros(1))], "lr": lr} for lr in (1e-3, 2e-3)]
    optimizer = torch.optim.SGD(parameters)
    QUARTER.adapt(optimizer, kl)
    assert [group["lr"] for group in optimizer.param_groups] == pytest.approx([1e-3 * factor, 2e-3 * factor], rel=1e-15)


def test_rates_stay_within_their_bounds():
    optimizer = torch.optim.SGD([nn.Parameter(torch.zeros(1))], lr=1e-3)
    rate = optimizer.param_groups[0]
    for kl, last in ((9.0, 1e-4), (0.0, 1e-2)):
        for _ in range(20):
            QUARTER.adapt(optimizer, kl)
        assert rate["lr"] == last


def test_a_run_adapts_before_each_step_by_the_divergence_of_its_first_minibatch(monkeypatch):
    calls, rates = [], Rates()
    ppo = make_ppo(adaptive_lr_kl=1e-3, learning_rate=1e-3)
    monkeypatch.setattr(AdaptiveLearningRate, "adapt", lambda self, optimizer, kl: calls.append(kl))
    kls, react = [], ppo.react

    def spy(found, batch_idx):
        kls.append(found.parts["approx_kl"].item())
        return react(found, batch_idx)

    ppo.react = spy
    fit(ppo, make_data(iterations=2, num_minibatches=4), callbacks=[rates], accumulate_grad_batches=2)
    assert len(kls) == 16
    assert calls == [*kls[2:8:2], *kls[10:16:2]]  # an iteration's first step follows none


def test_one_step_an_iteration_leaves_the_rate_as_it_is():
    """Its divergence is always 0."""
    rates = Rates()
    data = make_data(iterations=4, update_epochs=1, num_minibatches=1)
    fit(make_ppo(adaptive_lr_kl=1e-2, learning_rate=1e-3), data, callbacks=[rates])
    assert rates.steps == [1e-3] * 4


@pytest.mark.parametrize(("target", "change"), [(1e-9, 1 / 1.5), (1e9, 1.5)])
def test_a_run_lowers_or_raises_its_rate_and_logs_it(target, change):
    rates, logged = Rates(), Logged()
    ppo = make_ppo(adaptive_lr_kl=target, learning_rate=1e-3, min_learning_rate=1e-4, max_learning_rate=8e-3)
    fit(ppo, make_data(iterations=3), callbacks=[rates, logged])
    assert rates.steps[:4] == pytest.approx([1e-3, 1e-3 * change, 1e-3 * change**2, 1e-3 * change**3])
    assert rates.ends[-1] == [1e-4 if change < 1 else 8e-3]
    assert [metrics["train/learning_rate"] for metrics in logged.metrics] == [end[0] for end in rates.ends]
    assert rates.starts[1:] == rates.ends[:-1]  # no iteration begins anew


def test_a_policy_that_does_not_learn_says_nothing_of_the_rate():
    rates = Rates()
    ppo = make_ppo(adaptive_lr_kl=1e-2, learning_rate=1e-3, critic_pretrain_steps=64)
    fit(ppo, make_data(iterations=3), callbacks=[rates])
    assert rates.steps[:8] == [1e-3] * 8
    assert rates.ends[-1] != [1e-3]
    # one whose ratios are beyond the clip range from the second step on: before that one alone the rate goes down
    rates, pause = Rates(), {"max_clip_fraction": 0.01, "clip_coef": 1e-6}
    fit(make_ppo(adaptive_lr_kl=1e-9, learning_rate=1e-3, **pause), make_data(iterations=1), callbacks=[rates])
    assert rates.steps == pytest.approx([1e-3, *[1e-3 / 1.5] * 3])


# -- resuming


OWN_RATE = {"critic_learning_rate": 1e-3}


def saved(iterations=2, **flags):
    """The checkpoint of a short run."""
    rates = Rates()
    ppo = fit(make_ppo(network=GAUSSIAN, **flags), make_data(TARGET, iterations=iterations), callbacks=[rates])
    ppo.trainer.save_checkpoint("a.ckpt")
    return rates


def resumed(**flags):
    rates = Rates()
    data = make_data(TARGET, iterations=4)
    fit(make_ppo(network=GAUSSIAN, **flags), data, ckpt_path="a.ckpt", callbacks=[rates])
    return rates


@pytest.mark.parametrize(("before", "after"), [({}, OWN_RATE), (OWN_RATE, {})])
def test_a_critic_that_gets_or_loses_its_own_rate_cannot_be_resumed(before, after):
    saved(**before)
    with pytest.raises(ConfigurationError, match=r"^--model\.critic_learning_rate is given here or .*--init_from\.$"):
        resumed(**after)


def test_a_resumed_run_takes_its_own_rates():
    saved(critic_learning_rate=1e-2)
    rates = resumed(learning_rate=2e-3, critic_learning_rate=4e-3)
    assert rates.starts == [[2e-3, 4e-3]] * 2


def test_an_adapted_rate_goes_on_where_it_was():
    flags = {"adaptive_lr_kl": 1e-9, "learning_rate": 1e-3, "critic_learning_rate": 2e-3, "min_learning_rate": 1e-6}
    whole, first = saved(iterations=4, **flags), saved(**flags)
    rest = resumed(**flags)
    assert rest.starts[0] == first.ends[-1] != [1e-3, 2e-3]
    assert [*first.ends, *rest.ends] == whole.ends
    assert resumed(learning_rate=5e-4, critic_learning_rate=2e-3).starts[0] == [5e-4, 2e-3]  # no longer adapted


# -- what is refused


@pytest.mark.parametrize(
    ("flags", "words"),
    [
        ({"critic_learning_rate": 0.0}, r"--model\.critic_learning_rate must be greater than 0, not 0\."),
        ({"critic_learning_rate": math.nan}, r"--model\.critic_learning_rate"),
        ({"critic_gradient_clip_val": -1.0}, r"--model\.critic_gradient_clip_val must be greater than 0, not -1\."),
        ({"adaptive_lr_kl": 0.0}, r"--model\.adaptive_lr_kl must be greater than 0, not 0\."),
        ({"adaptive_lr_kl": math.nan}, r"--model\.adaptive_lr_kl"),
        ({"adaptive_lr_kl": 0.01, "min_learning_rate": 0.0}, r"--model\.min_learning_rate must be greater than 0"),
        ({"adaptive_lr_kl": 0.01, "max_learning_rate": 1e-6}, r"--model\.max_learning_rate must be at least 1e-05"),
        ({"adaptive_lr_kl": 0.01, "learning_rate": 0.1}, r".*--model\.min_learning_rate=1e-05 and .*=0\.01.*\.$"),
        ({"adaptive_lr_kl": 0.01, "critic_learning_rate": 1e-6}, r"A learning rate of 1e-06 .*\.$"),
        (
            {"adaptive_lr_kl": 0.01, "anneal_lr": True},
            r"--model\.anneal_lr=true and --model\.adaptive_lr_kl both",
        ),
        (
            {"adaptive_lr_kl": 0.01, "scheduler": torch.optim.lr_scheduler.ConstantLR},
            r"--model\.scheduler and --model\.adaptive_lr_kl both set the learning rate: leave one of them out\.$",
        ),
    ],
)
def test_numbers_outside_their_range_and_contradictions_are_refused_by_name(flags, words):
    with pytest.raises(ConfigurationError, match=f"^{words}"):
        PPO(**flags)
