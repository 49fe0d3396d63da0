"""Decoupled Advantage Actor-Critic: two networks that learn in turns, and what the policy's predicts beside it."""

import functools
import math

import pytest
import torch
from lightning.pytorch import Callback

from ppo_lightning import DAAC, ActorCritic, ConfigurationError, DAACModel, LSTMCore
from ppo_lightning.core.agent import Phase
from ppo_lightning.core.rollout import PPOBatch
from tests.agents import SMALL_DAAC, daac_data, make_daac
from tests.algorithms.test_guards import Steps
from tests.runs import Recorder, SmallGRU, fit, make_data, weights

VALUE = "network.critic_embedder.", "network.fc_value."


def names_of(agent, is_value):
    return {name for name, _ in agent.named_parameters() if name.startswith(VALUE) == is_value}


@pytest.mark.parametrize("accumulated", [1, 2])
def test_each_phase_leaves_the_other_network_as_it_is(accumulated):
    """Bit for bit, Adam's state too."""
    steps = Steps()
    agent = make_daac(value_epochs=3, policy_epochs=2)
    fit(agent, daac_data(num_minibatches=4), callbacks=[steps], accumulate_grad_batches=accumulated)
    value, policy = names_of(agent, True), names_of(agent, False)
    assert {"network.fc_policy.weight", "network.fc_advantage.bias", "network.embedder.layers.0.weight"} <= policy
    changes = steps.changes()
    assert len(changes) == 2 * 5 * 4
    for minibatch, names in enumerate(changes):
        own, other = (value, policy) if minibatch % 20 < 12 else (policy, value)
        if (minibatch + 1) % accumulated:
            assert not names
            continue
        assert own | {f"{name} step" for name in own} | {f"{name} exp_avg" for name in own} <= names
        assert not any(name.split()[0] in other for name in names)


class Counter(Callback):
    """How often each half of the network was run in each minibatch, and the minibatch's phase."""

    def __init__(self):
        self.runs, self.phases = [], []

    def on_train_start(self, trainer, pl_module):
        for name in ("embedder", "critic_embedder"):
            getattr(pl_module.network, name).register_forward_hook(lambda *_, name=name: self.now.append(name))

    def on_train_batch_start(self, trainer, pl_module, batch, batch_idx):
        self.now = []

    def on_train_batch_end(self, trainer, pl_module, outputs, batch, batch_idx):
        self.runs.append(tuple(self.now))
        self.phases.append(pl_module.phase_of(batch_idx))

    def on_train_epoch_start(self, trainer, pl_module):
        self.now = []


def test_each_phase_has_its_epochs_and_runs_its_network_alone():
    counter, agent = Counter(), make_daac(value_epochs=3, policy_epochs=2)
    assert agent.phases(None) == [Phase("value", 3), Phase("policy", 2)]
    fit(agent, daac_data(num_minibatches=2), callbacks=[counter])
    assert counter.phases == (["value"] * 6 + ["policy"] * 4) * 2
    assert counter.runs == ([("critic_embedder",)] * 6 + [("embedder",)] * 4) * 2


def built(**flags):
    """An agent with its network in float64, and a batch of four transitions."""
    agent, data = make_daac(**flags), daac_data()
    agent.build_network(data.observation_space, data.action_space)
    agent.double()
    generator = torch.Generator().manual_seed(3)
    batch = PPOBatch(
        obs=torch.randn(4, 4, generator=generator, dtype=torch.float64),
        actions=torch.tensor([0, 1, 1, 0]),
        log_probs=torch.tensor([-0.5, -0.9, -0.7, -1.2], dtype=torch.float64),
        advantages=torch.tensor([1.0, -2.0, 0.5, 3.0], dtype=torch.float64),
        returns=torch.tensor([2.0, 0.0, -1.0, 0.3], dtype=torch.float64),
        values=torch.tensor([0.5, 0.1, -0.2, 0.9], dtype=torch.float64),
        batch_size=[4],
    )
    return agent, batch


def loss_of(agent, batch, phase):
    agent._phases = [phase]
    return agent.training_step(batch, 0)


@pytest.mark.parametrize("norm_adv", [True, False])
def test_the_loss_of_the_policy_phase_by_hand(norm_adv):
    agent, batch = built(adv_coeff=0.25, ent_coef=0.03, clip_coef=0.2, norm_adv=norm_adv)
    net = agent.network
    hidden = net.embedder(batch.obs)
    log_p = torch.log_softmax(net.fc_policy(hidden), -1)
    weight, bias = net.fc_advantage.weight[0], net.fc_advantage.bias
    loss = 0.0
    advantages = batch.advantages
    if norm_adv:
        advantages = (advantages - advantages.mean()) / (advantages.std() + 1e-8)
    for row, action in enumerate(batch.actions.tolist()):
        ratio = (log_p[row, action] - batch.log_probs[row]).exp()
        advantage = advantages[row]
        policy_loss = max(-advantage * ratio, -advantage * ratio.clamp(0.8, 1.2))
        entropy = -(log_p[row].exp() * log_p[row]).sum()
        predicted = weight[:-2] @ hidden[row] + weight[len(weight) - 2 + action] + bias[0]
        loss = loss + (policy_loss - 0.03 * entropy + 0.25 * (predicted - advantage) ** 2) / 4
    torch.testing.assert_close(loss_of(agent, batch, "policy"), loss, rtol=1e-10, atol=0)


@pytest.mark.parametrize("clip_vloss", [True, False])
def test_the_loss_of_the_value_phase_by_hand(clip_vloss):
    agent, batch = built(clip_coef=0.2, clip_vloss=clip_vloss)
    values = agent.network.fc_value(agent.network.critic_embedder(batch.obs)).squeeze(-1)
    errors = (values - batch.returns) ** 2
    if clip_vloss:
        moved = batch.values + (values - batch.values).clamp(-0.2, 0.2)
        errors = torch.max(errors, (moved - batch.returns) ** 2)
    torch.testing.assert_close(loss_of(agent, batch, "value"), 0.5 * errors.mean(), rtol=1e-10, atol=0)


def test_target_kl_leaves_out_minibatches_of_the_policy_alone():
    counter = Counter()
    fit(make_daac(target_kl=1e-12, policy_epochs=3), daac_data(num_minibatches=2), callbacks=[counter])
    # the first minibatch of the policy has a divergence of zero
    assert counter.phases == (["value"] * 4 + ["policy"] * 2) * 2


def test_the_value_network_has_its_own_learning_rate():
    recorder, agent = Recorder(), make_daac(critic_learning_rate=0.01, final_learning_rate=3e-4)
    fit(agent, daac_data(), callbacks=[recorder])
    actor, critic = agent.trainer.optimizers[0].param_groups
    names = {parameter: name for name, parameter in agent.named_parameters()}
    assert {names[parameter] for parameter in critic["params"]} == names_of(agent, True)
    assert {names[parameter] for parameter in actor["params"]} == names_of(agent, False)
    assert [metrics["train/learning_rate"] for metrics in recorder.metrics] == pytest.approx([3e-3, 3e-3 * 0.55])
    assert [metrics["train/critic_learning_rate"] for metrics in recorder.metrics] == pytest.approx([0.01, 0.0055])


def test_what_is_logged_is_what_is_announced():
    agent = make_daac(critic_learning_rate=0.01, log_action_id=1)
    fit(agent, daac_data(num_steps=16))
    assert sorted(agent.iteration_metrics) == sorted(agent.metric_names)
    assert not any(math.isnan(value) for value in agent.iteration_metrics.values())


def test_the_first_ratio_is_one_after_the_value_phase():
    recorder = Recorder()
    fit(make_daac(), daac_data(iterations=3), callbacks=[recorder])
    assert all(metrics["train/first_ratio_error"] < 1e-5 for metrics in recorder.metrics)


@pytest.mark.parametrize(
    "flags",
    [
        {"policy_epochs": 2},
        {"value_epochs": 1},
        {"adv_coeff": 0.0},
        {"clip_vloss": False},
        {"ent_coef": 0.2},
        {"norm_adv": "rollout"},
        {"normalize_rewards": True},
        {"critic_learning_rate": 0.1},
        {"optimizer": torch.optim.RMSprop},
    ],
    ids=lambda flags: next(iter(flags)),
)
def test_flag_changes_the_run(flags):
    def run(**extra):
        agent = fit(make_daac(learning_rate=5e-2, **extra), daac_data())
        return [parameter.detach().clone() for parameter in agent.parameters()]

    assert any(not torch.equal(*pair) for pair in zip(run(), run(**flags)))


def test_it_solves_a_bandit():
    recorder = Recorder()
    fit(make_daac(learning_rate=0.02), daac_data("tests.tasks:Bandit-v0", 12, num_steps=32), callbacks=[recorder])
    assert recorder.metrics[0]["rollout/return_mean"] < 0.6
    assert recorder.metrics[-1]["rollout/return_mean"] > 0.95


# -- what is refused


@pytest.mark.parametrize(
    ("flags", "words"),
    [
        ({"policy_epochs": 0}, r"--model\.policy_epochs must be at least 1, not 0\."),
        ({"value_epochs": 0}, r"--model\.value_epochs must be at least 1, not 0\."),
        ({"adv_coeff": -1.0}, r"--model\.adv_coeff must be at least 0, not -1\."),
        ({"adv_coeff": math.nan}, r"--model\.adv_coeff"),
    ],
)
def test_numbers_outside_their_range_are_refused_by_name(flags, words):
    with pytest.raises(ConfigurationError, match=f"^{words}"):
        DAAC(**flags)


class Column(DAACModel):
    """A value with a dimension too many."""

    def values(self, obs):
        return super().values(obs).unsqueeze(-1)


class AdvantageColumn(DAACModel):
    def advantages(self, hidden, actions):
        return super().advantages(hidden, actions).unsqueeze(-1)


@pytest.mark.parametrize(
    ("network", "words"),
    [
        (ActorCritic, r"=ActorCritic is no network for DAAC \(it has no advantages\)"),
        (SmallGRU, r"=SmallGRU is no network for DAAC"),
        (Column, r": values of Column gives a shape of \(2, 1\) for 2 observations: it must give \(2,\)"),
        (AdvantageColumn, r": advantages of AdvantageColumn gives a shape of \(2, 1\)"),
    ],
)
def test_a_network_that_it_cannot_learn_with_is_refused_before_any_work(network, words):
    data = daac_data()
    with pytest.raises(ConfigurationError, match=rf"^--model\.network{words}.*\.$"):
        make_daac(network=network).build_network(data.observation_space, data.action_space)


class Remembering(DAACModel):
    """Remembers, and its halves know nothing of it."""

    def initial_state(self, num_envs):
        return torch.zeros(num_envs, 1)

    def forward(self, obs, state):
        return super().forward(obs), state

    def policy(self, obs):
        return super().policy(obs)


def test_a_network_whose_halves_do_not_take_its_memory_is_refused():
    data = daac_data()
    with pytest.raises(ConfigurationError, match=r"^--model\.network: .* of Remembering fails"):
        make_daac(network=Remembering).build_network(data.observation_space, data.action_space)


@pytest.mark.parametrize("sequence_length", [None, 4])
def test_with_memory_each_phase_learns_from_sequences_and_leaves_the_other_network(sequence_length):
    recorder, core = Recorder(), functools.partial(LSTMCore, hidden_dim=6)
    daac = make_daac(network=functools.partial(SMALL_DAAC, core=core), value_epochs=1)
    seen, step = [], daac.training_step

    def spy(batch, batch_idx):
        seen.append((daac.phase_of(batch_idx), batch.valid.shape, weights(daac)))
        return step(batch, batch_idx)

    daac.training_step = spy
    fit(daac, daac_data(iterations=1, sequence_length=sequence_length), callbacks=[recorder])
    rows = (2, 8) if sequence_length is None else (4, 4)
    assert [(phase, tuple(shape)) for phase, shape, _ in seen] == [("value", rows)] * 2 + [("policy", rows)] * 2
    before, middle, after = seen[0][2], seen[2][2], weights(daac)
    for first, second, learns in ((before, middle, True), (middle, after, False)):
        changed = {name for name in first if not torch.equal(first[name], second[name])}
        assert changed
        assert all(name.startswith(("critic", "fc_value")) == learns for name in changed)
        assert any("core" in name for name in changed)
    assert recorder.metrics[0]["train/first_ratio_error"] < 1e-5


def test_epochs_of_the_data_are_refused_by_both_flags():
    with pytest.raises(ConfigurationError, match=r"^--data\.update_epochs=2 means nothing to DAAC.*--model\.policy_e"):
        fit(make_daac(), make_data(update_epochs=2))


def test_a_step_of_two_phases_is_refused():
    words = r"^--trainer\.accumulate_grad_batches=4 does not divide the 3 × --data\.num_minibatches=2 .* value phase"
    with pytest.raises(ConfigurationError, match=words):
        fit(make_daac(value_epochs=3), daac_data(), accumulate_grad_batches=4)
    # what is left over at an update's end is Lightning's to do with as ever
    fit(make_daac(value_epochs=2, policy_epochs=1), daac_data(), accumulate_grad_batches=4)
