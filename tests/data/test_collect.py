import math
import warnings

import numpy as np
import pytest
import torch
from gymnasium import spaces
from gymnasium.vector import AutoresetMode
from tensordict import TensorDict, TensorDictBase

from ppo_lightning.core.errors import TrainingError
from ppo_lightning.core.rollout import MemoryRollout
from ppo_lightning.data.collect import Collector
from ppo_lightning.envs.base import StepResult, VectorEnv
from ppo_lightning.functional import generalized_advantage_estimation
from tests.data.agents import LateCriticAgent, MemoryAgent, ScriptedAgent
from tests.faults import make_faulty
from tests.toy import make_toy, play_plain_toy

MODES = [AutoresetMode.SAME_STEP, AutoresetMode.NEXT_STEP]
SAME, NEXT = MODES
YES, NO = True, False


def generators(num_envs, seed=0):
    return [torch.Generator().manual_seed(seed + index) for index in range(num_envs)]


def collect(seeds, num_steps, mode=SAME, agent=None, **kwargs):
    collector = Collector(make_toy(seeds, mode, **kwargs), num_steps)
    return collector.collect(agent or ScriptedAgent(), generators(len(seeds)))


def column(rollout, name, env):
    return getattr(rollout, name)[:, env].tolist()


@pytest.mark.parametrize("mode", MODES)
@pytest.mark.parametrize("num_steps", [1, 6, 700])  # 1,400 values are computed in two parts
def test_values_may_come_after_the_rollout(mode, num_steps):
    at_once, late = (Collector(make_toy([0, 1], mode), num_steps) for _ in range(2))
    for number in range(2):
        first = at_once.collect(ScriptedAgent(), generators(2, seed=number))
        second = late.collect(LateCriticAgent(), generators(2, seed=number))
        for name in ("obs", "actions", "log_probs", "values", "next_values", "rewards", "truncated", "valid"):
            torch.testing.assert_close(getattr(second, name), getattr(first, name), rtol=0, atol=0)


def test_every_transition_of_a_same_step_rollout_is_what_was_played():
    rollout = collect([0, 1], num_steps=6)
    assert rollout.batch_size == (6, 2)
    assert rollout.valid.all()
    # environment 0: three steps to a termination, two to a truncation
    assert column(rollout, "obs", 0) == [[0, 0, 0], [0, 0, 1], [0, 0, 2], [0, 1, 0], [0, 1, 1], [0, 2, 0]]
    assert column(rollout, "actions", 0) == [0, 1, 2, 2, 0, 1]
    assert column(rollout, "rewards", 0) == [0, 1.25, 2.5, 10.5, 11, 20.25]
    assert column(rollout, "values", 0) == [0, 1, 2, 10, 11, 20]
    assert column(rollout, "terminated", 0) == [NO, NO, YES, NO, NO, NO]
    assert column(rollout, "truncated", 0) == [NO, NO, NO, NO, YES, NO]
    assert column(rollout, "episode_starts", 0) == [YES, NO, NO, YES, NO, YES]
    next_values = column(rollout, "next_values", 0)
    assert next_values[:2] + next_values[3:] == [1, 2, 11, 12, 21]  # 12 = V([0, 1, 2]), the final observation
    # environment 1 begins with the truncation
    assert column(rollout, "obs", 1) == [[1, 0, 0], [1, 0, 1], [1, 1, 0], [1, 1, 1], [1, 1, 2], [1, 2, 0]]
    assert column(rollout, "actions", 1) == [1, 2, 0, 1, 2, 2]
    assert column(rollout, "rewards", 1) == [100.25, 101.5, 110, 111.25, 112.5, 120.5]
    assert column(rollout, "terminated", 1) == [NO, NO, NO, NO, YES, NO]
    assert column(rollout, "truncated", 1) == [NO, YES, NO, NO, NO, NO]
    assert column(rollout, "episode_starts", 1) == [YES, NO, YES, NO, NO, YES]
    next_values = column(rollout, "next_values", 1)
    assert next_values[:4] + next_values[5:] == [101, 102, 111, 112, 121]


def test_a_next_step_rollout_marks_its_resets_invalid():
    rollout = collect([0, 1], num_steps=7, mode=NEXT)
    assert column(rollout, "valid", 0) == [YES, YES, YES, NO, YES, YES, NO]
    assert column(rollout, "episode_starts", 0) == [YES, NO, NO, NO, YES, NO, NO]
    assert column(rollout, "obs", 0) == [[0, 0, 0], [0, 0, 1], [0, 0, 2], [0, 0, 3], [0, 1, 0], [0, 1, 1], [0, 1, 2]]
    assert column(rollout, "terminated", 0) == [NO, NO, YES, NO, NO, NO, NO]
    assert column(rollout, "truncated", 0) == [NO, NO, NO, NO, NO, YES, NO]
    assert column(rollout, "next_values", 0)[5] == 12


@pytest.mark.parametrize("mode", MODES)
@pytest.mark.parametrize("end", ["terminated", "truncated"])
def test_an_end_on_the_last_step_of_a_rollout(mode, end):
    collector = Collector(make_toy([0], mode, script=[(3, end)]), 3)
    agent = ScriptedAgent()
    first = collector.collect(agent, generators(1))
    assert first.terminated[-1].item() == (end == "terminated")
    assert first.truncated[-1].item() == (end == "truncated")
    if end == "truncated":
        assert column(first, "next_values", 0) == [1, 2, 3]  # 3 = V([0, 0, 3]), not V of the next episode
    second = collector.collect(agent, generators(1))
    assert column(second, "valid", 0) == [mode == SAME, YES, YES]
    assert column(second, "obs", 0)[1] == ([0, 1, 1] if mode == SAME else [0, 1, 0])


@pytest.mark.parametrize("mode", MODES)
def test_an_end_of_both_kinds_is_stored_as_a_termination(mode):
    rollout = collect([0], num_steps=3, mode=mode, script=[(2, "both")])
    assert column(rollout, "terminated", 0) == [NO, YES, NO]
    assert column(rollout, "truncated", 0) == [NO, NO, NO]


@pytest.mark.parametrize("mode", MODES)
def test_a_truncation_beside_a_termination_takes_its_own_final_observation(mode):
    # environments 0 and 2 terminate in the very step in which 1 and 3 are truncated
    rollout = collect([0, 1, 2, 3], num_steps=3, mode=mode, script=[(2, "terminated"), (2, "truncated")])
    assert rollout.terminated[1].tolist() == [YES, NO, YES, NO]
    assert rollout.truncated[1].tolist() == [NO, YES, NO, YES]
    assert rollout.next_values[1, [1, 3]].tolist() == [102, 302]


def targets(rollout):
    advantages, returns = generalized_advantage_estimation(
        rollout.rewards, rollout.values, rollout.next_values, rollout.terminated, rollout.truncated, 0.9, 0.8
    )
    return advantages.double(), returns.double()


@pytest.mark.parametrize("script", [((3, "terminated"), (2, "truncated")), ((1, "truncated"), (2, "terminated"))])
def test_both_reset_modes_give_the_same_transitions_and_targets(script):
    seeds, num_steps = [0, 1, 2], 30
    same, next_ = (collect(seeds, num_steps, mode, script=script) for mode in MODES)
    for env, seed in enumerate(seeds):
        rows = {}
        for mode, rollout in zip(MODES, (same, next_)):
            valid, (advantages, returns) = rollout.valid[:, env], targets(rollout)
            ends = (rollout.terminated | rollout.truncated)[valid, env]
            complete = int(ends.nonzero()[-1]) + 1  # what follows is cut off at other places
            fields = [rollout.obs[:, env], rollout.actions[:, env, None], rollout.rewards[:, env, None]]
            fields += [rollout.episode_starts[:, env, None], advantages[:, env, None], returns[:, env, None]]
            rows[mode] = torch.cat([field.double() for field in fields], dim=1)[valid][:complete]
            plain = play_plain_toy(seed, complete, script=script)
            assert [tuple(row[:3].tolist()) for row in rows[mode]] == [transition[0] for transition in plain]
            assert ends[:complete].tolist() == [transition[3] or transition[4] for transition in plain]
        common = min(len(rows[SAME]), len(rows[NEXT]))
        assert common >= 12
        torch.testing.assert_close(rows[SAME][:common], rows[NEXT][:common], rtol=1e-6, atol=0)


def test_dict_observations_are_stored_in_their_own_dtypes():
    rollout = collect([0, 1], num_steps=6, obs="dict")
    assert isinstance(rollout.obs, TensorDictBase)
    assert rollout.obs["image"].dtype == torch.uint8
    assert rollout.obs["image"][:, 0, 0, 0, 0].tolist() == [0, 1, 2, 0, 1, 0]
    assert rollout.obs["state"][:, 1, 2].tolist() == [0, 1, 0, 1, 2, 0]
    assert rollout.next_values[1, 1] == 102  # V of the final Dict observation
    assert rollout.next_values[4, 0] == 12


def test_each_environment_is_played_by_its_own_generator():
    rollout = collect([0, 1], num_steps=4)
    for env, generator in enumerate(generators(2)):
        assert torch.equal(rollout.log_probs[:, env], -torch.rand(4, generator=generator))


def test_play_goes_on_over_the_border_of_rollouts():
    collector, agent = Collector(make_toy([0], script=[(5, "truncated")]), 3), ScriptedAgent()
    obs, starts, next_values = [], [], []
    for _ in range(3):
        rollout = collector.collect(agent, generators(1))
        obs += column(rollout, "obs", 0)
        starts += column(rollout, "episode_starts", 0)
        next_values += column(rollout, "next_values", 0)
    assert obs == [[0, episode, step] for episode in (0, 1) for step in range(5)][:9]
    assert starts == [YES, NO, NO, NO, NO, YES, NO, NO, NO]
    assert next_values == [1, 2, 3, 4, 5, 11, 12, 13, 14]


def test_what_a_truncation_left_is_forgotten_in_the_next_rollout():
    collector, agent = Collector(make_toy([0], script=[(2, "truncated"), (50, "truncated")]), 3), ScriptedAgent()
    assert column(collector.collect(agent, generators(1)), "next_values", 0) == [1, 2, 11]
    second = collector.collect(agent, generators(1))
    assert column(second, "next_values", 0) == [12, 13, 14]
    assert column(second, "truncated", 0) == [NO, NO, NO]


@pytest.mark.parametrize("mode", MODES)
def test_returns_and_lengths_of_episodes_survive_the_border_of_rollouts(mode):
    collector, agent = (
        Collector(make_toy([0, 1], mode, script=[(5, "truncated"), (2, "terminated")]), 4),
        ScriptedAgent(),
    )
    episodes = []
    for _ in range(6):
        collector.collect(agent, generators(2))
        episodes += [(episode.episode_return, episode.length) for episode in collector.episodes.finished]
    plain = {seed: play_plain_toy(seed, 100, script=[(5, "truncated"), (2, "terminated")]) for seed in (0, 1)}
    expected = []
    for transitions in plain.values():
        total, length = 0.0, 0
        for _, _, reward, terminated, truncated, _, _ in transitions:
            total, length = total + reward, length + 1
            if terminated or truncated:
                expected.append((total, length))
                total, length = 0.0, 0
    assert len(episodes) >= 8
    assert len(episodes) == len(set(episodes))
    assert set(episodes) <= set(expected)
    assert {(1.25 + 2.5 + 3 + 4.25, 5), (100.25 + 101.5, 2)} <= set(episodes)


def test_metrics_are_of_the_episodes_that_ended_in_the_rollout():
    collector, agent = Collector(make_toy([0], script=[(3, "truncated")]), 2), ScriptedAgent()
    collector.collect(agent, generators(1))
    assert collector.episodes.metrics() == {"rollout/episodes": 0}
    collector.collect(agent, generators(1))
    assert collector.episodes.metrics() == {
        "rollout/episodes": 1,
        "rollout/return_mean": 0 + 1.25 + 2.5,
        "rollout/return_std": 0,
        "rollout/base_return_mean": 0 + 1.25 + 2.5,
        "rollout/base_return_std": 0,
        "rollout/length_mean": 3,
    }
    collector.collect(agent, generators(1))
    assert collector.episodes.metrics()["rollout/return_mean"] == pytest.approx(10.5 + 11 + 12.25)


@pytest.mark.parametrize("mode", MODES)
def test_a_memory_is_stored_before_each_step_and_cleared_at_episode_starts(mode):
    rollout = collect([0, 1], num_steps=7, mode=mode, agent=MemoryAgent())
    assert isinstance(rollout, MemoryRollout)
    if mode == SAME:
        assert rollout.states[:, 0, 0].tolist() == [7, 8, 9, 7, 8, 7, 8]
        assert rollout.states[:, 1, 0].tolist() == [7, 8, 7, 8, 9, 7, 8]
    else:  # the reset step is played with the memory of the episode that ended
        assert rollout.states[:, 0, 0].tolist() == [7, 8, 9, 10, 7, 8, 9]
        assert rollout.states[:, 1, 0].tolist() == [7, 8, 9, 7, 8, 9, 10]
    # where it starts, and only there, the memory is the initial one
    assert torch.equal(rollout.states[..., 0] == 7, rollout.episode_starts)


@pytest.mark.parametrize("mode", MODES)
def test_a_final_observation_is_valued_with_the_memory_of_its_episode(mode):
    rollout = collect([0, 1], num_steps=6, mode=mode, agent=MemoryAgent())
    # two steps were seen of [1, 0, 2]
    assert rollout.next_values[1, 1] == 102 + 1000 * 9
    truncated = rollout.truncated[:, 0].nonzero().item()
    assert rollout.next_values[truncated, 0] == 12 + 1000 * 9
    # and within an episode with the memory of the next step
    assert rollout.next_values[0].tolist() == [1 + 8000, 101 + 8000]


def test_the_last_value_is_with_the_running_memory():
    rollout = collect([0], num_steps=4, agent=MemoryAgent(), script=[(9, "truncated")])
    assert column(rollout, "next_values", 0) == [8001, 9002, 10003, 11004]


def test_a_memory_runs_on_over_the_border_of_rollouts():
    collector, agent = Collector(make_toy([0], script=[(5, "truncated")]), 3), MemoryAgent()
    states = []
    for _ in range(2):
        states += collector.collect(agent, generators(1)).states[:, 0, 0].tolist()
    assert states == [7, 8, 9, 10, 11, 7]


class NestedMemoryAgent(MemoryAgent):
    """Keeps its memory in a TensorDict."""

    def initial_state(self, num_envs):
        return TensorDict({"count": super().initial_state(num_envs)}, batch_size=[num_envs])

    def act(self, obs, noise, state):
        output = super().act(obs, noise, state["count"])
        output.state = TensorDict({"count": output.state}, batch_size=[len(output.state)])
        return output

    def value_of(self, obs, state):
        return super().value_of(obs, state if isinstance(state, torch.Tensor) else state["count"])


@pytest.mark.parametrize("mode", MODES)
def test_a_nested_memory_is_kept_like_a_plain_one(mode):
    plain = collect([0, 1], num_steps=7, mode=mode, agent=MemoryAgent())
    nested = collect([0, 1], num_steps=7, mode=mode, agent=NestedMemoryAgent())
    assert torch.equal(nested.states["count"], plain.states)
    assert torch.equal(nested.next_values, plain.next_values)


@pytest.mark.parametrize("mode", MODES)
@pytest.mark.parametrize(
    ("poison", "message"),
    [
        (("reward", 1, 0, 1), r"reward of environment 1 at step 1 of the rollout is nan"),
        (("obs", 1, 0, 1), r"observation of environment 1 after step 0 of the rollout is not finite"),
        (("obs", 0, 0, 0), r"observation of environment 0 at its first reset is not finite"),
    ],
)
def test_a_number_that_is_not_finite_stops_training(mode, poison, message):
    agent = ScriptedAgent()
    with pytest.raises(TrainingError, match=message):
        collect([0, 1], num_steps=4, mode=mode, agent=agent, poison=poison)
    assert all(obs.isfinite().all() for obs in agent.acted_on)  # the network never saw it


@pytest.mark.parametrize("mode", MODES)
def test_a_final_observation_that_is_not_finite_stops_training(mode):
    # environment 1 alone ends at step 1: the only row of final_obs
    with pytest.raises(TrainingError, match=r"observation of environment 1 .*step 1 of the rollout.*is not finite"):
        collect([0, 1], num_steps=4, mode=mode, poison=("obs", 1, 0, 2))


def test_a_dict_observation_that_is_not_finite_is_named_by_its_key():
    with pytest.raises(TrainingError, match=r"observation 'state' of environment 0 after step 1"):
        collect([0, 1], num_steps=4, obs="dict", poison=("obs", 0, 0, 2))


class Infinite(VectorEnv):
    """Pays infinity in environment 1 at its third step."""

    num_envs = 2
    observation_space, action_space = spaces.Box(0, 255, (3,), np.uint8), spaces.Discrete(2)

    def __init__(self):
        self.steps = 0

    def reset(self):
        return np.zeros((2, 3), np.uint8)

    def step(self, actions):
        self.steps += 1
        no = np.zeros(2, dtype=bool)
        rewards = np.array([0.0, -math.inf if self.steps == 3 else 0.0])
        return StepResult(np.zeros((2, 3), np.uint8), rewards, no, no, no, ~no)

    def close(self):
        pass


class ConstantAgent(ScriptedAgent):
    def act(self, obs, noise, state):
        return super().act(obs.float(), noise, state)

    def value_of(self, obs, state):
        return torch.zeros(len(obs))


def test_an_infinite_reward_stops_training():
    with pytest.raises(TrainingError, match="reward of environment 1 at step 2 of the rollout is -inf"):
        Collector(Infinite(), 4).collect(ConstantAgent(), generators(2))


class Interrupted(VectorEnv):
    """One environment whose step 2 fails; or, ``cut``, whose simulator truncates the episode in the step before."""

    num_envs = 1
    observation_space, action_space = spaces.Box(-9, 9, (3,), np.float32), spaces.Discrete(2)

    def __init__(self, cut=False):
        self.cut, self.steps = cut, 0

    def reset(self):
        return np.zeros((1, 3), np.float32)

    def step(self, actions):
        step, self.steps = self.steps, self.steps + 1
        lost = step == 2
        obs = [[0, 0, step + 1]] if step < 2 else [[0, 1, step - 2]]
        kept, flags = np.array([not lost]), np.array([lost])
        truncated = np.array([self.cut and step == 1])
        return StepResult(
            obs=np.array(obs, np.float32),
            rewards=np.array([0.0 if lost else step + 1.0]),
            terminated=np.array([False]),
            truncated=truncated,
            episode_starts=flags,
            valid=kept,
            final_obs=np.array([[0, 0, 2]], np.float32) if truncated.any() else None,
            dropped=flags if lost and not self.cut else None,
        )

    def close(self):
        pass


def test_a_dropped_step_cuts_the_episode_before_it_by_hand():
    collector = Collector(Interrupted(), 5)
    rollout = collector.collect(ScriptedAgent(), generators(1))
    assert column(rollout, "values", 0) == [0, 1, 2, 10, 11]
    assert column(rollout, "valid", 0) == [YES, YES, NO, YES, YES]
    assert column(rollout, "truncated", 0) == [NO, YES, NO, NO, NO]
    assert column(rollout, "terminated", 0) == [NO] * 5
    assert column(rollout, "episode_starts", 0) == [YES, NO, NO, YES, NO]
    advantages, _ = generalized_advantage_estimation(
        rollout.rewards, rollout.values, rollout.next_values, rollout.terminated, rollout.truncated, 0.5, 0.5
    )
    # A_4 = 5 + 12/2 - 11, A_3 = 4 + 11/2 - 10 + A_4/4; A_1 = 2 + V([0, 0, 2])/2 - 1, A_0 = 1 + 1/2 - 0 + A_1/4
    assert advantages[rollout.valid].tolist() == [2, 2, -0.5, 0]
    assert collector.episodes.dropped == 1
    assert collector.episodes.lengths.tolist() == [2]
    assert collector.episodes.running(0).episode_return == 9
    collector.episodes.start_rollout()
    assert collector.episodes.dropped == 0


@pytest.mark.parametrize("agent", [ScriptedAgent, MemoryAgent])
@pytest.mark.parametrize("num_steps", [2, 3, 5])
def test_a_dropped_episode_has_the_targets_of_one_truncated_there(agent, num_steps):
    """Whatever the step is in its rollout: 2 is the first of the second, 3 the last of the first."""
    kept = {}
    for cut in (False, True):
        collector, player, rows = Collector(Interrupted(cut), num_steps), agent(), []
        for _ in range(3):
            rollout = collector.collect(player, generators(1))
            fields = [*targets(rollout), rollout.values.double(), rollout.episode_starts.double()]
            rows.append(torch.stack(fields, dim=-1)[rollout.valid])
        kept[cut] = torch.cat(rows)
    assert torch.equal(kept[False], kept[True])
    assert len(kept[False]) == 3 * num_steps - 1


@pytest.mark.parametrize("mode", MODES)
def test_a_failure_at_an_episodes_first_or_last_step_changes_no_end_before_it(mode):
    for step in (0, 1):  # of the second episode; the first is terminated or truncated
        env = make_faulty([0, 1], [[s, 1, step, "raise"] for s in (0, 1)], mode=mode)
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            rollout = Collector(env, 6).collect(ScriptedAgent(), generators(2))
        first = 3 if mode == SAME else 4  # rows of the first episode, and of its reset
        assert column(rollout, "terminated", 0)[:first] == [NO, NO, YES, NO][:first]
        assert column(rollout, "truncated", 1)[: first - 1] == [NO, YES, NO][: first - 1]
        assert column(rollout, "next_values", 1)[1] == 102
        assert column(rollout, "valid", 0)[first + step] is NO
        assert column(rollout, "truncated", 0)[first : first + step + 1] == [YES, NO][1 - step :]


def test_a_dropped_episode_clears_the_memory():
    collector = Collector(Interrupted(), 5)
    rollout = collector.collect(MemoryAgent(), generators(1))
    assert rollout.states[:, 0, 0].tolist() == [7, 8, 9, 7, 8]
