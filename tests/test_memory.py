"""A policy with memory through the whole path: rollouts, sequences, bootstrap, evaluation."""

import numpy as np
import pytest
import torch

from ppo_lightning import ConfigurationError, Evaluation, PPOSequenceBatch
from ppo_lightning.core.rollout import MemoryRollout
from tests.runs import Recorder, SmallGRU, equal, fit, make_data, make_ppo


@pytest.mark.parametrize("vectorization", ["sync", "vector_entry_point"])
def test_update_sees_the_rollouts_log_probs_wherever_episodes_end(vectorization):
    """The first ratio is one only if states are carried, stored and cleared as in the rollout."""
    recorder = Recorder()
    env = "CartPole-v1" if vectorization == "vector_entry_point" else "tests.tasks:Walk-v0"
    data = make_data(env, iterations=3, num_steps=24)
    data.env.vectorization = vectorization
    ppo = make_ppo(network=SmallGRU)
    fit(ppo, data, callbacks=[recorder])
    assert [metrics["train/first_ratio_error"] < 1e-5 for metrics in recorder.metrics] == [True] * 3
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
