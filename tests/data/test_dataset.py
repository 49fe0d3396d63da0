import torch

from ppo_lightning.core.agent import Phase
from ppo_lightning.data import RolloutDataset
from ppo_lightning.data.collect import Collector
from ppo_lightning.data.seeding import Streams
from tests.data.agents import ScriptedAgent
from tests.toy import make_toy

NUM_ENVS, NUM_STEPS = 2, 6


class Run:
    """A dataset over the toy environment that counts its rollouts."""

    def __init__(self, first_env=0, update_epochs=3, num_minibatches=4, phases=None):
        self.agent, self.rollouts = ScriptedAgent(), 0
        self.dataset = RolloutDataset(
            self.agent,
            Collector(make_toy([first_env, first_env + 1]), NUM_STEPS),
            phases or [Phase("update", update_epochs)],
            num_minibatches,
            Streams(1, first_env, NUM_ENVS),
            lambda: self.rollouts,
            self.count,
        )

    def count(self):
        self.rollouts += 1


def rows(batches):
    return [tuple(row) for batch in batches for row in batch.obs.tolist()]


def test_one_pass_is_one_rollout_seen_once_in_each_epoch():
    run = Run()
    batches = list(run.dataset)
    assert run.rollouts == 1
    assert len(batches) == len(run.dataset) == 12
    assert [len(batch) for batch in batches] == [3] * 12
    assert len(run.agent.acted_on) == NUM_STEPS
    played = sorted(tuple(row) for obs in run.agent.acted_on for row in obs.tolist())
    epochs = [rows(batches[4 * epoch : 4 * epoch + 4]) for epoch in range(3)]
    for epoch in epochs:
        assert sorted(epoch) == played
    assert epochs[0] != epochs[1] != epochs[2]


def test_a_second_pass_plays_on():
    run = Run(update_epochs=1)
    first, second = sorted(rows(run.dataset)), sorted(rows(run.dataset))
    assert run.rollouts == 2
    assert not set(first) & set(second)


def test_nothing_is_played_before_the_first_batch_is_asked_for():
    run = Run()
    batches = iter(run.dataset)
    assert not run.agent.acted_on
    next(batches)
    assert run.rollouts == 1


def test_a_stopped_update_leaves_the_rest_of_the_minibatches_out():
    run, seen = Run(), 0
    for _ in run.dataset:
        seen += 1
        run.agent.update_stopped = seen == 2
    assert seen == 2


def test_the_same_iteration_has_the_same_noise_and_order():
    one, other = list(Run().dataset), list(Run().dataset)
    assert rows(one) == rows(other)
    assert all(torch.equal(a.log_probs, b.log_probs) for a, b in zip(one, other))


def test_each_iteration_has_its_own_noise_and_order():
    run = Run()
    first = list(run.dataset)
    resumed = Run()
    resumed.rollouts = 1
    second = list(resumed.dataset)  # the first rollout of the environment, with the streams of iteration 1
    assert rows(first) != rows(second)
    assert sorted(rows(first)) == sorted(rows(second))
    noises = [set(torch.cat([batch.log_probs for batch in batches]).tolist()) for batches in (first, second)]
    assert not noises[0] & noises[1]


def test_an_update_may_have_several_phases():
    run = Run(phases=[Phase("value", 2), Phase("policy", 1)], num_minibatches=2)
    batches = list(run.dataset)
    assert len(batches) == len(run.dataset) == 6
    assert run.dataset.epochs == 3
    assert list(run.agent.phases_of_minibatches) == ["value"] * 4 + ["policy"] * 2
    # as three epochs of one phase, in the same order
    assert rows(batches) == rows(Run(num_minibatches=2).dataset)


def test_the_agent_is_told_how_many_epochs_there_will_be():
    run, ends = Run(phases=[Phase("value", 2), Phase("policy", 3)]), []
    prepare = run.agent.prepare
    run.agent.prepare = lambda rollout, end: (ends.append(end), prepare(rollout, end))[1]
    list(run.dataset)
    assert ends[0].num_epochs == 5
    assert len(ends[0].make_generators()) == NUM_ENVS
