"""A policy with memory through the whole path: rollouts, sequences, bootstrap, evaluation."""

import functools

import numpy as np
import pytest
import torch

from ppo_lightning import ConfigurationError, Evaluation, GRUCore, LSTMCore, PPOSequenceBatch
from ppo_lightning.core.rollout import MemoryRollout
from ppo_lightning.models.memory import unroll
from tests.agents import SMALL_RND, make_rnd
from tests.runs import SMALL_NETWORK, Recorder, SmallGRU, equal, fit, make_data, make_ppo

LSTM = functools.partial(LSTMCore, hidden_dim=8)
NETWORKS = {
    "SmallGRU": SmallGRU,
    "LSTM": functools.partial(SMALL_NETWORK, core=LSTM),
    "shared GRU": functools.partial(SMALL_NETWORK, core=functools.partial(GRUCore, hidden_dim=8), shared=True),
}


@pytest.mark.parametrize("network", NETWORKS)
@pytest.mark.parametrize("sequence_length", [None, 6])
@pytest.mark.parametrize("vectorization", ["sync", "vector_entry_point"])
def test_update_sees_the_rollouts_log_probs_wherever_episodes_end(vectorization, sequence_length, network):
    """The first ratio is one only if states are carried, stored and cleared as in the rollout."""
    recorder = Recorder()
    env = "CartPole-v1" if vectorization == "vector_entry_point" else "tests.tasks:Walk-v0"
    data = make_data(env, iterations=3, num_steps=24, sequence_length=sequence_length)
    data.env.vectorization = vectorization
    ppo = make_ppo(network=NETWORKS[network])
    fit(ppo, data, callbacks=[recorder])
    assert [metrics["train/first_ratio_error"] < 1e-6 for metrics in recorder.metrics] == [True] * 3
    assert not equal(recorder.after[0], recorder.after[1])


def test_states_go_on_over_rollouts_and_are_cleared_at_episode_starts():
    rollouts = []
    ppo = make_ppo(network=SmallGRU, learning_rate=1e-9)
    prepare = ppo.prepare

    def spy(rollout, *rest):
        rollouts.append(rollout.clone())
        return prepare(rollout, *rest)

    ppo.prepare = spy
    fit(ppo, make_data(iterations=2))
    first, second = rollouts
    assert isinstance(first, MemoryRollout)
    for rollout in rollouts:
        starts = rollout.episode_starts
        assert starts.any()
        assert not (~starts).all()
        assert (rollout.states[starts] == 0).all()
        assert (rollout.states[~starts].abs().sum(-1) > 0).all()
    running = ~second.episode_starts[0]
    assert running.any()
    with torch.no_grad():
        _, carried = ppo.network(first.obs[-1], first.states[-1])
    torch.testing.assert_close(second.states[0][running], carried[running], atol=1e-5, rtol=0)


def test_minibatches_are_whole_environments():
    batches = []
    ppo = make_ppo(network=SmallGRU)
    step = ppo.training_step

    def spy(batch, batch_idx):
        batches.append(batch)
        return step(batch, batch_idx)

    ppo.training_step = spy
    fit(ppo, make_data(iterations=1))
    assert all(isinstance(batch, PPOSequenceBatch) and batch.obs.shape == (2, 8, 4) for batch in batches)


def test_a_minibatch_count_that_would_cut_sequences_is_refused():
    with pytest.raises(ConfigurationError, match=r"--data.num_envs=4 .*--data.num_minibatches=8"):
        fit(make_ppo(network=SmallGRU), make_data(num_minibatches=8))


def test_memory_is_evaluated():
    evaluation = Evaluation(num_episodes=6, num_envs=4)
    fit(make_ppo(network=SmallGRU), callbacks=[evaluation])
    assert len(evaluation.results[""].episodes) == 6


def test_the_value_of_a_truncated_episode_uses_its_memory():
    seen = []
    ppo = make_ppo(network=SmallGRU)
    value_of = ppo.value_of

    def spy(obs, state):
        seen.append((obs, state, value_of(obs, state)))
        return seen[-1][2]

    ppo.value_of = spy
    rollouts = []
    prepare = ppo.prepare
    ppo.prepare = lambda rollout, *rest: (rollouts.append(rollout.clone()), prepare(rollout, *rest))[1]
    fit(ppo, make_data(iterations=1, num_steps=24))
    (rollout,), ((_, state, values),) = rollouts, seen
    steps, envs = rollout.truncated.nonzero().unbind(1)
    assert len(steps) == len(values) - 4 > 0
    np.testing.assert_array_equal(rollout.next_values[steps, envs], values[4:])
    assert (state[4:].abs().sum(-1) > 0).all()  # the memory at the end, not at a beginning


@pytest.mark.parametrize("network", NETWORKS)
@pytest.mark.parametrize("sequence_length", [None, 4])
def test_log_probs_and_values_of_the_update_are_those_of_the_rollout(network, sequence_length):
    ppo = make_ppo(network=NETWORKS[network], learning_rate=1e-9)
    seen, step = [], ppo.training_step

    def spy(batch, batch_idx):
        with torch.no_grad():
            output, rows = ppo.evaluate(batch)
        seen.append((output.distribution.log_prob(rows.actions) - rows.log_probs, output.value - rows.values))
        return step(batch, batch_idx)

    ppo.training_step = spy
    fit(ppo, make_data(num_steps=24, sequence_length=sequence_length))
    for differences in seen:
        for difference in differences:
            assert difference.abs().max() < 1e-6


def test_cut_sequences_are_parts_of_whole_ones_with_the_memory_of_the_rollout():
    batches = {}
    for length in (None, 4):
        ppo, own = make_ppo(network=NETWORKS["LSTM"]), []
        step = ppo.training_step

        def spy(batch, batch_idx, step=step, own=own):
            own.append(batch.clone())
            return step(batch, batch_idx)

        ppo.training_step = spy
        rollouts, prepare = [], ppo.prepare
        ppo.prepare = lambda rollout, *rest, r=rollouts, p=prepare: (r.append(rollout.clone()), p(rollout, *rest))[1]
        fit(ppo, make_data(iterations=1, num_steps=12, num_minibatches=1, update_epochs=1, sequence_length=length))
        batches[length] = own[0], rollouts[0]
    (whole, _), (cut, rollout) = batches[None], batches[4]
    assert (whole.batch_size, cut.batch_size) == ((4,), (12,))
    rows = {tuple(row.flatten().tolist()): row for row in whole.obs}
    assert len(rows) == 4
    for env in range(4):
        for part in range(3):
            steps = slice(4 * part, 4 * part + 4)
            place = [torch.equal(obs, rollout.obs[steps, env]) for obs in cut.obs].index(True)
            assert torch.equal(cut.initial_state[place], rollout.states[4 * part, env])
            assert torch.equal(cut.actions[place], rollout.actions[steps, env])
            assert torch.equal(cut.episode_starts[place], rollout.episode_starts[steps, env])


def test_a_cut_changes_the_gradient_only_by_what_lies_beyond_it():
    """Where episodes begin at the cut nothing does, and the gradients are the same."""
    torch.manual_seed(0)
    network = NETWORKS["LSTM"](*(make_data().observation_space, make_data().action_space)).double()
    obs, starts = torch.randn(3, 8, *make_data().observation_space.shape).double(), torch.rand(3, 8) < 0.2
    weight = torch.randn(3, 8).double()

    def gradient(obs, state, starts, weight):
        network.zero_grad()
        output = unroll(network, obs, state, starts)
        ((output.value + output.logits[:, 0]) * weight.flatten()).sum().backward()
        return [parameter.grad.clone() for parameter in network.parameters()]

    def cut(x):
        return x.reshape(6, 4, *x.shape[2:])

    for begins in (True, False):
        starts[:, 4] = begins
        beginning = network.initial_state(3)
        state = beginning
        with torch.no_grad():
            for step in range(4):
                state = torch.where(starts[:, step].reshape(3, 1, 1, 1, 1), beginning, state)
                _, state = network(obs[:, step], state)
        states = torch.stack([beginning, state], dim=1).flatten(0, 1)
        whole = gradient(obs, beginning, starts, weight)
        parts = gradient(cut(obs), states, cut(starts), cut(weight))
        is_same = [torch.allclose(one, other, atol=1e-12, rtol=0) for one, other in zip(whole, parts)]
        assert all(is_same) == begins
        for layer in (network.fc_policy, network.fc_value):  # what follows the memory has no past
            place = [parameter is layer.weight for parameter in network.parameters()].index(True)
            assert is_same[place]


@pytest.mark.parametrize("sequence_length", [None, 4])
def test_rnd_learns_with_memory(sequence_length):
    recorder = Recorder()
    rnd = make_rnd(network=functools.partial(SMALL_RND, core=LSTM))
    fit(rnd, make_data(sequence_length=sequence_length), callbacks=[recorder])
    assert all(metrics["train/first_ratio_error"] < 1e-6 for metrics in recorder.metrics)
    changed = {name for name in recorder.after[0] if not torch.equal(recorder.after[0][name], recorder.after[1][name])}
    assert {"core.layers.weight_hh_l0", "fc_intrinsic_value.weight"} <= changed


@pytest.mark.parametrize(
    ("network", "settings", "words"),
    [
        (SMALL_NETWORK, {"sequence_length": 4}, "sequence_length=4 is for networks with memory, .* has none: leave it"),
        (SmallGRU, {"sequence_length": 3}, "num_steps=8 cannot be cut into sequences of --data.sequence_length=3: "),
        (SmallGRU, {"sequence_length": 0}, "sequence_length must be at least 1, not 0"),
        (SmallGRU, {"sequence_length": 4, "num_minibatches": 16}, "num_envs=4 cannot be .* 2 of each environment"),
    ],
)
def test_sequences_that_cannot_be_are_refused(network, settings, words):
    with pytest.raises(ConfigurationError, match=rf"^--data\.{words}"):
        fit(make_ppo(network=network), make_data(**settings))
