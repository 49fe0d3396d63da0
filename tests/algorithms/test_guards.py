"""Bad minibatches do no harm: the actor waits for the next iteration, or the step is dropped."""

import functools
import math

import pytest
import torch
from lightning.pytorch import Callback
from torch import nn

from ppo_lightning import PPO, ConfigurationError, MLPEncoder, PPOModel, TrainingError
from ppo_lightning.algorithms.guards import ActorPause, GradientGuard
from ppo_lightning.algorithms.objective import ClippedObjective
from tests.runs import Recorder, fit, make_data, make_ppo

GAUSSIAN = functools.partial(PPOModel, encoder=functools.partial(MLPEncoder, hidden_sizes=[8]))
TARGET = "tests.tasks:Target-v0"


def state_of(ppo):
    """Parameters and what the optimiser knows of each, by name."""
    (optimizer,) = ppo.trainer.optimizers
    parameters = {name: parameter.detach().clone() for name, parameter in ppo.named_parameters()}
    adam = {
        f"{name} {key}": torch.as_tensor(part).clone()
        for name, parameter in ppo.named_parameters()
        for key, part in optimizer.state.get(parameter, {}).items()
    }
    return parameters | adam


class Steps(Callback):
    """The state before all minibatches and after each, and what each iteration logged."""

    def __init__(self):
        self.states, self.metrics = [], []

    def on_train_start(self, trainer, pl_module):
        self.states.append(state_of(pl_module))

    def on_train_batch_end(self, trainer, pl_module, outputs, batch, batch_idx):
        self.states.append(state_of(pl_module))

    def on_train_epoch_end(self, trainer, pl_module):
        self.metrics.append(pl_module.iteration_metrics)

    def changes(self):
        """The names of what each minibatch changed."""
        return [
            {name for name, tensor in after.items() if name not in before or not torch.equal(before[name], tensor)}
            for before, after in zip(self.states, self.states[1:])
        ]


# -- the actor's pause


@pytest.mark.parametrize("size", [1, 2, 3])
def test_the_actor_waits_from_the_step_on_that_exceeds_the_limit(size):
    """With steps of several minibatches from the next one, where it is not the first that exceeds it."""

    def waits(*exceeding):
        pause = ActorPause(0.5)
        return [pause.look(index in exceeding, index % size == 0) for index in range(6)]

    assert waits() == [False] * 6
    assert waits(0) == [True] * 6
    assert waits(size) == [False] * size + [True] * (6 - size)
    assert waits(size - 1) == {1: [True] * 6, 2: [False] * 2 + [True] * 4, 3: [False] * 3 + [True] * 3}[size]


def test_the_next_iteration_clears_it():
    pause = ActorPause(0.5)
    assert pause.look(True, True)
    pause.start_iteration()
    assert not pause.is_on
    assert not pause.look(False, True)
    pause.look(True, False)  # asked for, and over before the next step
    pause.start_iteration()
    assert not pause.look(False, True)


ACTOR = {"network.actor.logstd", "network.actor.mu.bias", "network.actor.embedder.layers.0.bias"}
CRITIC = {"network.critic.fc_value.bias", "network.critic.embedder.layers.0.bias"}


def paused_run(monkeypatch, fractions, **settings):
    """A run whose minibatches have these clip fractions, over and over."""
    count = iter(range(10**6))
    loss = ClippedObjective.loss

    def with_fraction(*args):
        total, ratio, parts = loss(*args)
        return total, ratio, {**parts, "clip_fraction": torch.tensor(fractions[next(count) % len(fractions)])}

    monkeypatch.setattr(ClippedObjective, "loss", with_fraction)
    steps = Steps()
    ppo = make_ppo(network=GAUSSIAN, max_clip_fraction=0.25)
    fit(ppo, make_data(TARGET, update_epochs=1, num_minibatches=len(fractions)), callbacks=[steps], **settings)
    return ppo, steps


def test_a_paused_actor_is_left_alone_and_the_critic_learns_on(monkeypatch):
    ppo, steps = paused_run(monkeypatch, [0.0, 0.25, 0.2501, 0.0])  # the limit itself is none too many
    changes = steps.changes()
    assert len(changes) == 8
    for minibatch, names in enumerate(changes):
        assert {f"{name} exp_avg" for name in CRITIC} | CRITIC <= names
        actor = {name for name in names if name.startswith("network.actor.")}
        if minibatch % 4 < 2:
            assert {f"{name} step" for name in ACTOR} | {f"{name} exp_avg_sq" for name in ACTOR} | ACTOR <= actor
        else:
            assert not actor  # bit for bit, logstd and Adam's state too
    assert [metrics["train/actor_paused"] for metrics in steps.metrics] == [0.5, 0.5]
    assert "train/actor_paused" in ppo.metric_names


def test_minibatches_of_one_step_are_treated_alike(monkeypatch):
    _, steps = paused_run(monkeypatch, [0.0, 0.9, 0.0, 0.0], accumulate_grad_batches=2)
    actor = [bool(ACTOR & names) for names in steps.changes()]
    assert actor == [False, True, False, False] * 2  # the first step is whole, the second all the critic's
    assert [metrics["train/actor_paused"] for metrics in steps.metrics] == [0.5, 0.5]


def test_without_the_flag_nothing_is_paused_or_logged():
    steps = Steps()
    ppo = fit(make_ppo(network=GAUSSIAN, clip_coef=1e-9), make_data(TARGET), callbacks=[steps])
    assert all(ACTOR & names for names in steps.changes())
    assert "train/actor_paused" not in steps.metrics[0]
    assert not ppo.has_unused_parameters
    assert make_ppo(max_clip_fraction=0.5).has_unused_parameters


# -- dropped steps


def guarded(gradient, max_norm=5.0, max_dropped_steps=10):
    """A guard, a module with this gradient, and whether the step was dropped."""
    guard, module = GradientGuard(max_norm, max_dropped_steps), nn.Linear(2, 1)
    module.weight.grad, module.bias.grad = torch.tensor([gradient[:2]]), torch.tensor(gradient[2:])
    return guard, module, guard.drops(module, 100)


@pytest.mark.parametrize("gradient", [[3.0, 4.0, 0.0], [0.0, 0.0, 0.0], [0.0, 0.0, -5.0]])
def test_a_gradient_within_the_limit_stays(gradient):
    guard, module, is_dropped = guarded(gradient)
    assert not is_dropped
    assert (guard.dropped, guard.in_a_row) == (0, 0)
    assert [*module.weight.grad[0].tolist(), *module.bias.grad.tolist()] == gradient


@pytest.mark.parametrize("gradient", [[3.0, 4.0, 0.01], [0.0, math.nan, 0.0], [0.0, 0.0, math.inf], [-math.inf, 0, 0]])
def test_a_larger_one_or_one_that_is_not_finite_is_gone(gradient):
    guard, module, is_dropped = guarded([float(x) for x in gradient])
    assert is_dropped
    assert (guard.dropped, guard.in_a_row) == (1, 1)
    assert module.weight.grad is None
    assert module.bias.grad is None


def test_a_good_step_ends_the_row_but_not_the_count():
    guard, module = GradientGuard(1.0, 10), nn.Linear(1, 1, bias=False)
    rows = []
    for gradient in (9.0, 9.0, 0.5, 9.0, math.nan):
        module.weight.grad = torch.tensor([[gradient]])
        guard.drops(module, 0)
        rows.append(guard.in_a_row)
    assert rows == [1, 2, 0, 1, 2]
    assert guard.dropped == 4


@pytest.mark.parametrize("borne", [0, 2])
def test_one_more_than_is_borne_ends_the_run(borne):
    guard, module = GradientGuard(1.0, borne), nn.Linear(1, 1, bias=False)
    for _ in range(borne):
        module.weight.grad = torch.tensor([[9.0]])
        assert guard.drops(module, 640)
    module.weight.grad = torch.tensor([[9.0]])
    with pytest.raises(
        TrainingError,
        match=rf"^{borne + 1} optimiser steps in a row had a gradient of norm 9, beyond --model\.gradient_guard=1, in "
        r"the update at 640 environment steps: .*\.$",
    ):
        guard.drops(module, 640)


class Spoilt(PPO):
    """A policy whose loss is NaN in some minibatches, counted over the run."""

    bad = frozenset()

    def __init__(self, **flags):
        super().__init__(**flags)
        self.losses = []

    def training_step(self, batch, batch_idx):
        if len(self.losses) in self.bad:
            batch = batch.clone()
            batch.advantages.fill_(math.nan)
        loss = super().training_step(batch, batch_idx)
        self.losses.append(loss.item())
        return loss


def spoilt(*bad, **flags):
    torch.manual_seed(0)
    ppo = Spoilt(**{"network": GAUSSIAN, "learning_rate": 3e-3, "gamma": 0.9, "gradient_guard": 100.0} | flags)
    ppo.bad = frozenset(bad)
    return ppo


def test_a_nan_loss_changes_nothing_and_is_counted():
    steps = Steps()
    ppo = fit(spoilt(0, 2, 6), make_data(TARGET, iterations=3), callbacks=[steps])
    changes = steps.changes()
    assert len(changes) == 12
    assert [not names for names in changes] == [number in (0, 2, 6) for number in range(12)]
    assert [metrics["train/dropped_steps"] for metrics in steps.metrics] == [2, 1, 0]
    assert "train/dropped_steps" in ppo.metric_names
    fit(make_ppo(network=GAUSSIAN), make_data(TARGET), callbacks=[steps])
    assert "train/dropped_steps" not in steps.metrics[-1]


def test_a_gradient_that_explodes_is_dropped_in_a_run():
    steps = Steps()
    fit(make_ppo(network=GAUSSIAN, gradient_guard=1e-6, max_dropped_steps=100), make_data(TARGET), callbacks=[steps])
    assert not any(steps.changes())
    assert [metrics["train/dropped_steps"] for metrics in steps.metrics] == [4, 4]


def test_the_other_minibatches_are_still_logged():
    steps, ppo = Steps(), spoilt(1)
    fit(ppo, make_data(TARGET, iterations=1), callbacks=[steps])
    (metrics,) = steps.metrics
    good = [loss for loss in ppo.losses if not math.isnan(loss)]
    assert len(good) == 3
    assert metrics["train/loss"] == pytest.approx(sum(good) / 3, rel=1e-5)
    assert all(math.isfinite(value) for name, value in metrics.items() if name.startswith("train/"))


def test_an_iteration_without_a_good_minibatch_goes_by():
    steps = Steps()
    fit(spoilt(0, 1, 2, 3), make_data(TARGET), callbacks=[steps])
    first, second = steps.metrics
    assert math.isnan(first["train/loss"])
    assert (first["train/dropped_steps"], second["train/dropped_steps"]) == (4, 0)
    assert math.isfinite(second["train/loss"])


def test_too_many_in_a_row_end_the_run_with_a_sentence_and_fewer_do_not():
    fit(spoilt(0, 1, 3, 4, 5, max_dropped_steps=3), make_data(TARGET))
    with pytest.raises(TrainingError, match=r"^4 optimiser steps in a row .* of norm nan, .* at 64 environment steps"):
        fit(spoilt(0, 1, 3, 4, 5, 6, max_dropped_steps=3), make_data(TARGET))


def test_steps_in_a_row_are_counted_on_after_a_resume():
    ppo = fit(spoilt(2, 3, max_dropped_steps=3), make_data(TARGET, iterations=1))
    ppo.trainer.save_checkpoint("a.ckpt")
    bearing = spoilt(0, 2, max_dropped_steps=3)
    fit(bearing, make_data(TARGET), ckpt_path="a.ckpt")
    assert bearing.optimization.guard.in_a_row == 0
    with pytest.raises(TrainingError, match=r"^4 optimiser steps in a row"):
        fit(spoilt(0, 1, max_dropped_steps=3), make_data(TARGET), ckpt_path="a.ckpt")
    fit(make_ppo(network=GAUSSIAN), make_data(TARGET), ckpt_path="a.ckpt")  # without a guard it is nobody's


def test_a_run_without_guard_can_be_resumed_with_one():
    fit(make_ppo(network=GAUSSIAN), make_data(TARGET, iterations=1)).trainer.save_checkpoint("a.ckpt")
    fit(spoilt(0), make_data(TARGET), ckpt_path="a.ckpt")


def test_without_a_guard_a_nan_ends_the_run():
    with pytest.raises(TrainingError, match=r"train/loss.* became NaN or infinite in minibatch 1 of the update at 32 "):
        fit(spoilt(1, gradient_guard=None), make_data(TARGET))


def test_a_guard_that_drops_nothing_changes_nothing():
    runs = [Recorder(), Recorder()]
    for recorder, flags in zip(runs, ({}, {"gradient_guard": 1e6})):
        fit(make_ppo(network=GAUSSIAN, **flags), make_data(TARGET), callbacks=[recorder])
    assert all(torch.equal(runs[0].after[-1][name], tensor) for name, tensor in runs[1].after[-1].items())


def test_a_step_of_several_minibatches_is_dropped_as_a_whole():
    steps = Steps()
    fit(spoilt(0), make_data(TARGET, iterations=1, num_minibatches=4), accumulate_grad_batches=2, callbacks=[steps])
    assert [bool(names) for names in steps.changes()] == [False, False, False, True, False, True, False, True]
    assert steps.metrics[0]["train/dropped_steps"] == 1


# -- what is refused


@pytest.mark.parametrize(
    ("flags", "words"),
    [
        ({"max_clip_fraction": 0.0}, r"--model\.max_clip_fraction must be greater than 0 and less than 1, not 0\."),
        ({"max_clip_fraction": 1.0}, r"--model\.max_clip_fraction"),
        ({"max_clip_fraction": math.nan}, r"--model\.max_clip_fraction"),
        ({"gradient_guard": 0.0}, r"--model\.gradient_guard must be greater than 0, not 0\."),
        ({"gradient_guard": math.nan}, r"--model\.gradient_guard"),
        ({"gradient_guard": 1.0, "max_dropped_steps": -1}, r"--model\.max_dropped_steps must be at least 0, not -1\."),
    ],
)
def test_numbers_outside_their_range_are_refused_by_name(flags, words):
    with pytest.raises(ConfigurationError, match=f"^{words}"):
        PPO(**flags)
