"""PPO's minibatches worked out at once: the same numbers and gradients as by autograd, and only where that is so."""

import functools
import math

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from lightning.pytorch import Callback

from ppo_lightning import PPO, PPOModel
from ppo_lightning.algorithms import host_loss, ppo
from ppo_lightning.algorithms.host_loss import can_learn, ppo_loss
from ppo_lightning.algorithms.objective import ClippedObjective
from ppo_lightning.core.rollout import PPOBatch
from ppo_lightning.functional import approx_kl_divergence, clip_fraction, ppo_clipped_policy_loss, value_loss
from ppo_lightning.functional.advantages import normalize_advantages
from ppo_lightning.models import host_pass
from ppo_lightning.models.host_pass import host_pass as find_pass
from tests.agents import make_daac
from tests.models.test_host import NUMBERS, gaussian, network
from tests.models.test_host_pass import assert_same, evaluate, gradients_of
from tests.runs import Recorder, equal, fit, make_data, make_ppo, weights


def minibatch(size, is_choice, seed):
    torch.manual_seed(seed)
    double = functools.partial(torch.randn, dtype=torch.float64)
    actions = torch.randint(3, (size,)) if is_choice else double(size, 2)
    names = "log_probs", "advantages", "returns", "values"
    columns = {name: double(size) for name in names}
    columns["log_probs"] = columns["log_probs"] * 0.3 - (1.0 if is_choice else 3.0)
    return PPOBatch(obs=double(size, 5), actions=actions, **columns, batch_size=[size])


NETWORKS = {
    "choice": (functools.partial(network, seed=1), True),
    "shared": (functools.partial(network, seed=1, shared=True), True),
    "numbers": (functools.partial(network, NUMBERS, seed=1), False),
    "gaussian": (gaussian, False),
    "fixed": (functools.partial(gaussian, std="fixed"), False),
}


@given(
    name=st.sampled_from(list(NETWORKS)),
    size=st.integers(1, 20),
    seed=st.integers(0, 1000),
    is_normalized=st.booleans(),
    ent_coef=st.sampled_from([0.0, 0.02]),
    clips_values=st.booleans(),
    weight=st.sampled_from([1.0, 0.25]),
)
def test_numbers_and_gradients_are_autograds(name, size, seed, is_normalized, ent_coef, clips_values, weight):
    make, is_choice = NETWORKS[name]
    net, rows = make().double(), minibatch(size, is_choice, seed)
    passes = find_pass(net, size)
    critic_clip = 0.2 if clips_values else None
    assert can_learn(passes, rows)
    told = {}

    def reference():
        output = evaluate(net, rows.obs)
        advantages = normalize_advantages(rows.advantages) if is_normalized else rows.advantages
        log_probs = output.distribution.log_prob(rows.actions)
        policy_loss, ratio = ppo_clipped_policy_loss(log_probs, rows.log_probs, advantages, 0.2)
        entropy, critic = (
            output.distribution.entropy().mean(),
            value_loss(output.value, rows.returns, rows.values, critic_clip),
        )
        kl, clipped = approx_kl_divergence(log_probs, rows.log_probs), clip_fraction(ratio, 0.2)
        loss = policy_loss - ent_coef * entropy + 0.5 * critic
        told["autograd"] = loss, ratio, torch.stack([loss, policy_loss, entropy, kl, clipped, critic])
        return weight * loss

    def own():
        told["own"] = ppo_loss(passes, rows, is_normalized, 0.2, ent_coef, 0.5, critic_clip)
        return weight * told["own"][0]

    expected = gradients_of(net, reference)
    if not ent_coef and name == "fixed":
        expected.setdefault("actor.logstd", None)
    assert_same(gradients_of(net, own), expected)
    for found, right in zip(told["own"], told["autograd"]):
        torch.testing.assert_close(found.detach(), right.detach(), rtol=1e-12, atol=1e-12)


def spied(monkeypatch):
    """The names of what is called."""
    calls = set()
    loss = ppo.ppo_loss
    monkeypatch.setattr(ppo, "ppo_loss", lambda *args: (calls.add("ppo_loss"), loss(*args))[1])
    forward = host_pass._Node.forward
    monkeypatch.setattr(host_pass._Node, "forward", staticmethod(lambda *args: (calls.add("node"), forward(*args))[1]))
    return calls


FLAGS = [
    {},
    {"norm_adv": False},
    {"norm_adv": "rollout"},
    {"clip_vloss": False, "ent_coef": 0.0},
    {"vf_coef": 0.0},
    {"normalize_returns": True},
    {"normalize_rewards": True, "target_kl": 1e-4},
    {"final_clip_coef": 0.1, "final_ent_coef": 0.1},
    {"critic_learning_rate": 1e-3, "critic_gradient_clip_val": 0.1},
    {"gradient_guard": 1e3},
]


@pytest.mark.parametrize("accumulated", [1, 2])
@pytest.mark.parametrize("flags", FLAGS, ids=lambda flags: "-".join(flags) or "default")
def test_rounding_alone_tells_runs_from_others(flags, accumulated, monkeypatch):
    """Whole runs, in float64."""
    runs = {}
    for most in (host_pass.MOST, 0):
        monkeypatch.setattr(host_pass, "MOST", most)
        recorder = Recorder()
        with monkeypatch.context() as patch:
            calls = spied(patch)
            fit(
                make_ppo(**flags), make_data(iterations=3), callbacks=[recorder], precision="64-true",
                accumulate_grad_batches=accumulated,
            )  # fmt: skip
        assert calls == ({"ppo_loss", "node"} if most else set())
        runs[most] = recorder
    (first, second), (logged, reference) = (
        [getattr(recorder, name) for recorder in runs.values()] for name in ("after", "metrics")
    )
    for own, other in zip(first, second):
        for name in own:
            torch.testing.assert_close(own[name], other[name], rtol=0, atol=1e-11)
    for own, other in zip(logged, reference):
        assert own.keys() == other.keys()
        for name in own:
            assert name.startswith("time/") or own[name] == pytest.approx(other[name], abs=1e-9, nan_ok=True), name


class Whole(PPO):
    """Changes nothing of the loss."""


class Asking(PPO):
    """Asks autograd for the parameters."""

    def minibatch_loss(self, batch, batch_idx):
        found = super().minibatch_loss(batch, batch_idx)
        (gradient,) = torch.autograd.grad(found.total, [self.network.fc_value.weight], retain_graph=True)
        assert gradient.abs().sum() > 0
        return found


class Stepping(PPO):
    """The same in another place."""

    def training_step(self, batch, batch_idx):
        loss = super().training_step(batch, batch_idx)
        (gradient,) = torch.autograd.grad(loss, [self.network.fc_value.weight], retain_graph=True)
        assert gradient.abs().sum() > 0
        return loss


class Seeing(PPO):
    """Shows the network something else."""

    def evaluate(self, batch):
        batch.obs = batch.obs * 2
        return super().evaluate(batch)


class Weighing(ClippedObjective):
    """Takes the loss twice."""

    def loss(self, *known):
        loss, ratio, parts = super().loss(*known)
        return 2 * loss, ratio, parts


def with_objective():
    made = make_ppo()
    made.objective = Weighing(0.2, 0.01)
    return made


def with_method():
    made = make_ppo()
    made.evaluate = made.evaluate
    return made


def of_class(kind):
    return lambda: make_kind(kind)


def make_kind(kind):
    made = make_ppo()
    return kind(**{"network": made._network_builder, "learning_rate": 3e-3})


@pytest.mark.parametrize(
    ("make", "settings", "expected"),
    [
        (make_ppo, {}, {"ppo_loss", "node"}),
        (of_class(Whole), {}, {"node"}),
        (of_class(Asking), {}, set()),
        (of_class(Stepping), {}, set()),
        (of_class(Seeing), {}, set()),
        (with_objective, {}, {"node"}),
        (with_method, {}, set()),
        (make_ppo, {"detect_anomaly": True}, set()),
        (lambda: make_ppo(adaptive_lr_kl=0.01), {}, {"node"}),
        (lambda: make_ppo(max_clip_fraction=0.5), {}, {"node"}),
        (lambda: make_ppo(critic_pretrain_steps=10**6), {}, {"node"}),
        (lambda: make_ppo(chunk_size=8), {}, {"node"}),
        (make_daac, {"update_epochs": None}, {"node"}),
        (make_ppo, {"precision": "bf16-mixed"}, set()),
        (make_ppo, {"strategy": "ddp", "devices": 1}, set()),
    ],
)
def test_what_may_not_be_worked_out_at_once_is_not(make, settings, expected, monkeypatch):
    calls = spied(monkeypatch)
    data = make_data(iterations=1, **({"update_epochs": None} if "update_epochs" in settings else {}))
    trainer = {name: value for name, value in settings.items() if name != "update_epochs"}
    fit(make(), data, **trainer)
    assert calls == expected


@pytest.mark.parametrize(
    ("make", "flags", "settings"),
    [
        (make_ppo, {"adaptive_lr_kl": 0.01}, {}),
        (make_ppo, {"max_clip_fraction": 1e-3}, {}),
        (make_ppo, {"critic_pretrain_steps": 40}, {}),
        (make_ppo, {"chunk_size": 8}, {}),
        (make_daac, {}, {"update_epochs": None}),
        (make_daac, {"chunk_size": 8}, {"update_epochs": None}),
    ],
)
def test_rounding_alone_tells_runs_by_one_node_from_others(make, flags, settings, monkeypatch):
    runs = {}
    for most in (host_pass.MOST, 0):
        monkeypatch.setattr(host_pass, "MOST", most)
        recorder = Recorder()
        fit(make(**flags), make_data(iterations=3, **settings), callbacks=[recorder], precision="64-true")
        runs[most] = recorder
    for own, other in zip(*(recorder.after for recorder in runs.values())):
        for name in own:
            torch.testing.assert_close(own[name], other[name], rtol=0, atol=1e-11)


def test_a_gaussian_learns_the_same(monkeypatch):
    runs = {}
    for most in (host_pass.MOST, 0):
        monkeypatch.setattr(host_pass, "MOST", most)
        torch.manual_seed(0)
        recorder, agent = Recorder(), make_ppo(network=PPOModel)
        with monkeypatch.context() as patch:
            calls = spied(patch)
            fit(agent, make_data("tests.tasks:Target-v0", iterations=3), callbacks=[recorder], precision="64-true")
        assert calls == ({"ppo_loss", "node"} if most else set())
        runs[most] = recorder
    for own, other in zip(*(recorder.after for recorder in runs.values())):
        for name in own:
            torch.testing.assert_close(own[name], other[name], rtol=0, atol=1e-11)


@pytest.mark.parametrize("name", ["log_probs", "advantages", "returns"])
def test_a_row_that_is_nan_makes_gradients_nan(name):
    """For guards to see."""
    net, rows = network().double(), minibatch(6, True, 0)
    getattr(rows, name)[1] = math.nan
    loss, *_ = ppo_loss(find_pass(net, 6), rows, False, 0.2, 0.01, 0.5, 0.2)
    loss.backward()
    part = net.fc_value if name == "returns" else net.fc_policy
    assert part.weight.grad.isnan().any()


def test_only_independent_rows_of_one_dtype_are_learned_from():
    passes, rows = find_pass(network().double(), 4), minibatch(4, True, 0)
    assert can_learn(passes, rows)
    assert not can_learn(passes, rows.log_probs)
    for name in ("log_probs", "advantages", "returns", "values"):
        other = rows.clone()
        setattr(other, name, getattr(rows, name).float())
        assert not can_learn(passes, other)
    assert not can_learn(find_pass(network(NUMBERS).double(), 4), rows)


class Freezing(Callback):
    """Freezes a layer in the middle of an update, and thaws it at the end."""

    def on_train_batch_start(self, trainer, pl_module, batch, batch_idx):
        """Freeze it for two of four minibatches."""
        pl_module.network.fc_policy.weight.requires_grad_(batch_idx not in (1, 2))


def test_a_layer_that_is_frozen_in_the_middle_of_an_update_stays(monkeypatch):
    runs = []
    for most in (host_pass.MOST, 0):
        monkeypatch.setattr(host_pass, "MOST", most)
        recorder = Recorder()
        fit(make_ppo(), make_data(), callbacks=[Freezing(), recorder], precision="64-true")
        runs.append(recorder.after)
    for own, other in zip(*runs):
        for name in own:
            torch.testing.assert_close(own[name], other[name], rtol=0, atol=1e-11)


class Stopping(Callback):
    """An error in the middle of an update."""

    def on_before_optimizer_step(self, trainer, pl_module, optimizer):
        """Raise it."""
        assert pl_module.host_pass() is not None
        raise ValueError("stop")


def test_nothing_of_an_update_that_broke_off_is_left():
    agent = make_ppo()
    with pytest.raises(ValueError, match="stop"):
        fit(agent, callbacks=[Stopping()])
    assert agent.host_pass() is None
    assert agent.on_after_backward() is None  # Lightning's hooks are there again
    assert equal(weights(fit(agent)), weights(fit(agent))) is False  # and it learns on


class Gradients(Callback):
    """What every optimiser step is taken by."""

    def __init__(self):
        self.norms = []

    def on_before_optimizer_step(self, trainer, pl_module, optimizer):
        """Take the norm before clipping."""
        self.norms.append(math.sqrt(sum(float(p.grad.square().sum()) for p in pl_module.parameters())))


def test_callbacks_see_the_gradients(monkeypatch):
    seen = []
    for most in (host_pass.MOST, 0):
        monkeypatch.setattr(host_pass, "MOST", most)
        callback = Gradients()
        fit(make_ppo(), make_data(), callbacks=[callback], precision="64-true")
        seen.append(callback.norms)
    assert len(seen[0]) == 8
    assert seen[0] == pytest.approx(seen[1], rel=1e-9)


def test_advantages_are_normalised_as_everywhere():
    for size in (1, 2, 50):
        advantages = torch.randn(size, dtype=torch.float64)
        found = torch.from_numpy(host_loss._normalize(advantages.numpy()))
        torch.testing.assert_close(found, normalize_advantages(advantages), rtol=1e-12, atol=1e-12)
