import importlib.util

import gymnasium
import numpy as np
import pytest
import torch
from gymnasium.vector import AutoresetMode
from torch import nn

from ppo_lightning.core.errors import TrainingError
from ppo_lightning.data.evaluate import episode_quotas, evaluate
from ppo_lightning.data.seeding import Streams
from ppo_lightning.envs import GymnasiumEnv, ProcgenEnv
from ppo_lightning.functional.distributions import draw_noise
from ppo_lightning.models import PPOModelOutput
from ppo_lightning.policies import PPOPolicy
from tests.faults import make_faulty
from tests.runs import SMALL_NETWORK
from tests.toy import ToyEnv, make_toy, play_plain_toy

MODES = [AutoresetMode.SAME_STEP, AutoresetMode.NEXT_STEP]
# an episode lasts 1, 2, 9 or 4 steps, by seed and number
SCRIPT = [(1, "terminated"), (2, "truncated"), (9, "terminated"), (4, "truncated")]


class ToyNetwork(nn.Module):
    """Prefers what ``choose_action`` chooses; ``sharpness`` is how much."""

    def __init__(self, sharpness=50.0):
        super().__init__()
        self.sharpness = nn.Parameter(torch.tensor(sharpness))

    def forward(self, obs):
        preferred = (obs[:, 0] + 2 * obs[:, 1] + obs[:, 2]).long() % 3
        logits = nn.functional.one_hot(preferred, 3) * self.sharpness
        return PPOModelOutput(logits=logits, value=obs[:, 0], hidden=obs)


class CountingNetwork(nn.Module):
    """Chooses by how many steps of its episode it remembers: 0, 1, 2, 0, …"""

    def __init__(self):
        super().__init__()
        self.weight = nn.Parameter(torch.tensor(1.0))

    def initial_state(self, num_envs):
        return torch.zeros(num_envs, 1, dtype=torch.int64)

    def forward(self, obs, state):
        logits = nn.functional.one_hot(state[:, 0] % 3, 3) * self.weight
        return PPOModelOutput(logits=logits, value=obs[:, 0], hidden=obs), state + 1


def play(
    num_envs, num_episodes, mode=MODES[0], network=None, temperature=0.0, max_num_steps=None, first=0, policy=None
):
    env = make_toy(range(first, first + num_envs), mode, script=SCRIPT)
    policy = policy or PPOPolicy(network or ToyNetwork())
    result = evaluate(
        policy, env, Streams(1, first, num_envs), episode_quotas(num_episodes, num_envs), temperature, max_num_steps
    )
    env.close()
    return result


def episodes_of(result):
    return sorted((episode.episode_return, episode.length) for episode in result.episodes)


def plain_episodes(seed, count, max_num_steps=None):
    """The first episodes of one environment, from a plain loop."""
    episodes, rewards = [], []
    for _, _, reward, terminated, truncated, _, _ in play_plain_toy(seed, 20 * count, script=SCRIPT):
        rewards.append(reward)
        if terminated or truncated:
            counted = rewards[:max_num_steps]
            episodes.append((sum(counted), len(counted)))
            rewards = []
    return episodes[:count]


@pytest.mark.parametrize("mode", MODES)
@pytest.mark.parametrize(("num_envs", "num_episodes"), [(1, 3), (4, 4), (4, 10), (3, 11), (4, 7), (4, 2)])
def test_evaluation_equals_a_loop_over_single_environments(mode, num_envs, num_episodes):
    expected = []
    for seed in range(num_envs):
        quota = num_episodes // num_envs + (seed < num_episodes % num_envs)
        expected += plain_episodes(seed, quota)
    result = play(num_envs, num_episodes, mode)
    assert len(result.episodes) == num_episodes
    assert episodes_of(result) == sorted(expected)


@pytest.mark.parametrize("actions", ["several", "binary", "box"])
@pytest.mark.parametrize("temperature", [0.0, 1.0, 2.0])
def test_environments_without_more_to_play_get_actions_of_their_space(actions, temperature):
    """Which the environment looks at: some wait for others that have two episodes more to play."""
    env = GymnasiumEnv("tests.tasks:Drawn-v0", kwargs={"actions": actions}).make(range(3))
    policy = PPOPolicy(SMALL_NETWORK(env.observation_space, env.action_space))
    result = evaluate(policy, env, Streams(1, 0, 3), np.array([1, 3, 1]), temperature)
    env.close()
    assert [episode.length for episode in result.episodes] == [8] * 5
    assert result.rows.count(1) == 3


def test_short_episodes_are_not_counted_more_often():
    # one round of each of the four lengths, though the short ones could finish several times
    assert sorted(length for _, length in episodes_of(play(4, 4))) == [1, 2, 4, 9]


@pytest.mark.parametrize("mode", MODES)
@pytest.mark.parametrize(("num_envs", "num_episodes"), [(4, 4), (2, 7)])
@pytest.mark.parametrize("max_num_steps", [1, 3, 4, 9])
def test_longer_episodes_count_as_they_are_at_the_limit(mode, num_envs, num_episodes, max_num_steps):
    expected = []
    for seed in range(num_envs):
        quota = num_episodes // num_envs + (seed < num_episodes % num_envs)
        expected += plain_episodes(seed, quota, max_num_steps)
    assert episodes_of(play(num_envs, num_episodes, mode, max_num_steps=max_num_steps)) == sorted(expected)


def test_the_limit_ends_evaluation_without_waiting_for_the_episode():
    assert play(1, 1, max_num_steps=1, first=2).steps == 1  # the episode would last nine steps
    assert play(1, 1, first=2).steps == 9


@pytest.mark.parametrize("mode", MODES)
def test_the_limit_starts_the_next_episode_of_an_environment_without_an_end(mode):
    env = make_toy([0, 1], mode, script=((10**9, "terminated"),))
    result = evaluate(PPOPolicy(ToyNetwork()), env, Streams(1, 0, 2), np.array([3, 2]), 0.0, max_num_steps=4)
    env.close()
    assert [episode.length for episode in result.episodes] == [4] * 5
    assert result.steps == 20


def test_an_environment_without_an_end_or_a_reset_of_its_own_is_reported_instead_of_waited_for():
    env = make_toy([0], MODES[0], script=((10**9, "terminated"),))
    env.end_episodes = lambda rows: False
    with pytest.raises(TrainingError, match=r"environment 0 .*--evaluation.max_num_steps=2"):
        evaluate(PPOPolicy(ToyNetwork()), env, Streams(1, 0, 1), np.array([2]), 0.0, max_num_steps=2)
    env.close()


def test_sampled_evaluation_repeats_itself():
    one, other = (play(4, 12, network=ToyNetwork(1.0), temperature=1.0) for _ in range(2))
    assert episodes_of(one) == episodes_of(other)
    assert episodes_of(one) != episodes_of(play(4, 12))


def test_sampled_evaluation_is_the_same_on_two_ranks_of_half_the_environments():
    whole = play(4, 12, network=ToyNetwork(1.0), temperature=1.0)
    halves = [play(2, 6, network=ToyNetwork(1.0), temperature=1.0, first=first) for first in (0, 2)]
    assert episodes_of(whole) == sorted(episodes_of(halves[0]) + episodes_of(halves[1]))


def test_evaluation_leaves_the_global_generator_alone():
    before = torch.get_rng_state()
    play(2, 4, network=ToyNetwork(1.0), temperature=1.0)
    assert torch.equal(torch.get_rng_state(), before)


def test_long_evaluations_draw_noise_beyond_the_first_block():
    env = make_toy([0], script=[(150, "terminated")])
    result = evaluate(PPOPolicy(ToyNetwork(0.0)), env, Streams(1, 0, 1), np.array([1]), 1.0)
    assert result.episodes[0].length == 150


@pytest.mark.parametrize("mode", MODES)
def test_a_memory_begins_anew_in_each_episode(mode):
    result = play(2, 6, mode, network=CountingNetwork())
    expected = []
    for seed in (0, 1):
        for number in range(3):
            length = SCRIPT[(seed + number) % 4][0]
            rewards = [100 * seed + 10 * number + step + (step % 3) / 4 for step in range(length)]
            expected.append((sum(rewards), length))
    assert episodes_of(result) == sorted(expected)


def test_a_memory_of_an_earlier_evaluation_is_forgotten():
    policy = PPOPolicy(CountingNetwork())
    first = play(2, 2, policy=policy)
    assert episodes_of(play(2, 2, policy=policy)) == episodes_of(first)


@pytest.mark.parametrize("num_envs", [1, 4])
def test_a_policy_may_go_on_to_another_number_of_environments(num_envs):
    policy = PPOPolicy(CountingNetwork())
    play(2, 2, policy=policy)
    assert episodes_of(play(num_envs, 4, policy=policy)) == episodes_of(play(num_envs, 4, network=CountingNetwork()))


# -- rows that have played their quota


class Noting(nn.Module):
    """Notes how many rows each forward pass sees."""

    def __init__(self, network):
        super().__init__()
        self.network, self.rows = network, []
        if hasattr(network, "initial_state"):
            self.initial_state = network.initial_state

    def forward(self, obs, *state):
        self.rows.append(len(obs))
        return self.network(obs, *state)


@pytest.mark.parametrize("network", [ToyNetwork, CountingNetwork])
@pytest.mark.parametrize("mode", MODES)
def test_rows_that_have_played_their_quota_no_longer_reach_the_network(mode, network):
    noting = Noting(network())
    result = play(4, 4, mode, network=noting)
    # one episode of 1, 2, 9 and 4 steps
    assert noting.rows == [4, 3, 2, 2, 1, 1, 1, 1, 1]
    assert sorted(episode.length for episode in result.episodes) == [1, 2, 4, 9]


def test_a_single_row_of_many_is_left_out_later():
    """Leaving out rows costs a copy: it is done once an eighth of them is through."""
    noting = Noting(ToyNetwork())
    env = make_toy(range(16), script=[(1, "terminated"), *[(3, "terminated")] * 15])
    evaluate(PPOPolicy(noting), env, Streams(1, 0, 16), np.ones(16, dtype=int), 0.0)
    env.close()
    assert noting.rows == [16, 16, 16]


class SampledCounting(CountingNetwork):
    """Two thirds of its probability follow its memory: an action says both what it remembers and what was drawn."""

    def forward(self, obs, state):
        logits = nn.functional.one_hot(state[:, 0] % 3, 3) * 1.4
        return PPOModelOutput(logits=logits, value=obs[:, 0], hidden=obs), state + 1


def sampled_episodes(seed, quota, mode, network):
    """A plain loop over one environment with the noise of its own stream, one draw a step of the environment."""
    generators = Streams(1, seed, 1).eval_generators()
    noise = torch.cat(
        [draw_noise(gymnasium.spaces.Discrete(3), 64, generators, torch.float32, torch.device("cpu")) for _ in range(4)]
    )
    env, episodes, draw = ToyEnv(script=SCRIPT), [], 0
    for number in range(quota):
        obs, rewards, ended = env.reset(**({"seed": seed} if number == 0 else {}))[0], [], False
        state = network.initial_state(1) if hasattr(network, "initial_state") else None
        while not ended:
            states = [] if state is None else [state]
            output = network(torch.as_tensor(obs)[None], *states)
            output, state = output if isinstance(output, tuple) else (output, None)
            action = int(output.distribution.sample(noise[draw]))
            draw += 1
            obs, reward, terminated, truncated, _ = env.step(action)
            rewards.append(reward)
            ended = terminated or truncated
        episodes.append((sum(rewards), len(rewards)))
        draw += mode == AutoresetMode.NEXT_STEP  # the step that only resets
    return episodes


@pytest.mark.parametrize("mode", MODES)
@pytest.mark.parametrize("network", [lambda: ToyNetwork(1.0), SampledCounting])
@pytest.mark.parametrize("num_episodes", [4, 11])
def test_sampled_episodes_equal_a_plain_loop_though_rows_are_left_out(mode, network, num_episodes):
    expected = []
    for seed, quota in enumerate(episode_quotas(num_episodes, 4)):
        expected += sampled_episodes(seed, quota, mode, network())
    assert episodes_of(play(4, num_episodes, mode, network=network(), temperature=1.0)) == sorted(expected)


# -- counting an action


def action_steps(mode, quotas, action_id, script=SCRIPT, **kwargs):
    env = make_toy(range(len(quotas)), mode, script=script)
    result = evaluate(
        PPOPolicy(CountingNetwork()),
        env,
        Streams(1, 0, len(quotas)),
        np.array(quotas),
        0.0,
        action_id=action_id,
        **kwargs,
    )
    env.close()
    return result.action_steps, result.steps


@pytest.mark.parametrize("mode", MODES)
@pytest.mark.parametrize(("action_id", "count"), [(0, 1 + 1 + 3 + 2), (1, 1 + 3 + 1), (2, 3 + 1)])
def test_an_action_is_counted_in_counted_episodes_only(mode, action_id, count):
    """Actions are 0, 1, 2, 0, … from each episode's start; the episodes last 1, 2, 9 and 4 steps."""
    assert action_steps(mode, [1, 1, 1, 1], action_id) == (count, 16)


@pytest.mark.parametrize("mode", MODES)
def test_reset_steps_take_no_action(mode):
    """Two steps an episode, so actions 0 and 1; the reset steps between, where there are any, would be 2 and 0."""
    script = [(2, "terminated")]
    assert [action_steps(mode, [4, 3], action, script)[0] for action in (0, 1, 2)] == [7, 7, 0]


@pytest.mark.parametrize("mode", MODES)
def test_of_cut_episodes_the_actions_before_the_cut_are_counted(mode):
    script = [(50, "terminated")]
    counts = [action_steps(mode, [3, 2], action, script, max_num_steps=4)[0] for action in (0, 1, 2)]
    assert counts == [10, 5, 5]  # 0, 1, 2, 0 in each of five episodes


@pytest.mark.parametrize("mode", MODES)
def test_of_cut_episodes_that_run_on_the_actions_after_the_cut_are_not_counted(mode):
    env = make_toy([0], mode, script=[(6, "terminated")])
    env.end_episodes = lambda rows: False
    result = evaluate(
        PPOPolicy(CountingNetwork()), env, Streams(1, 0, 1), np.array([2]), 0.0, max_num_steps=2, action_id=2
    )
    assert (result.action_steps, result.steps) == (0, 4)


# -- pictures


def pictures(mode, quotas, script, can_end=True, **kwargs):
    """``(seed, episode, step)`` of every state that ``watch`` is told to show."""
    env, shown = make_toy(range(len(quotas)), mode, script=script), []
    if not can_end:
        env.end_episodes = lambda rows: False
    reset, step, now = env.reset, env.step, []

    def noting_reset():
        now[:] = [reset()]
        return now[0]

    def noting_step(actions):
        result = step(actions)
        now[:] = [result.obs]
        return result

    env.reset, env.step = noting_reset, noting_step
    evaluate(
        PPOPolicy(ToyNetwork()),
        env,
        Streams(1, 0, len(quotas)),
        np.array(quotas),
        0.0,
        watch=lambda rows: shown.extend(tuple(map(int, now[0][row])) for row in rows),
        **kwargs,
    )
    env.close()
    return shown


def states(seed, episode, last):
    return [(seed, episode, step) for step in range(last + 1)]


def test_next_step_shows_every_state_of_the_counted_episodes_once():
    shown = pictures(MODES[1], [2, 1], [(3, "terminated"), (2, "truncated")])
    assert sorted(shown) == [*states(0, 0, 3), *states(0, 1, 2), *states(1, 0, 2)]


def test_same_step_shows_every_state_but_the_last_which_is_gone():
    shown = pictures(MODES[0], [2, 1], [(3, "terminated"), (2, "truncated")])
    assert sorted(shown) == [*states(0, 0, 2), *states(0, 1, 1), *states(1, 0, 1)]


@pytest.mark.parametrize("mode", MODES)
def test_a_cut_episode_is_shown_to_its_cut(mode):
    shown = pictures(mode, [2, 1], [(9, "terminated")], max_num_steps=3)
    assert sorted(shown) == [*states(0, 0, 3), *states(0, 1, 3), *states(1, 0, 3)]


@pytest.mark.parametrize("mode", MODES)
def test_what_runs_on_after_its_cut_is_not_shown_and_the_next_episode_from_its_first_state(mode):
    shown = pictures(mode, [2], [(5, "terminated")], can_end=False, max_num_steps=2)
    assert shown == [*states(0, 0, 2), *states(0, 1, 2)]


# -- max_num_steps with simulators that can and cannot break off


class Leaning(nn.Module):
    """A good policy for CartPole: pushes to where the pole falls."""

    def __init__(self):
        super().__init__()
        self.weight = nn.Parameter(torch.tensor(1.0))

    def forward(self, obs):
        falling = obs[:, 2] + 0.3 * obs[:, 3]
        return PPOModelOutput(logits=torch.stack([-falling, falling], dim=1), value=obs[:, 0], hidden=obs)


def cart_pole(vectorization, quotas, max_num_steps):
    streams = Streams(3, 0, len(quotas))
    env = GymnasiumEnv("CartPole-v1", vectorization=vectorization).make(streams.eval_env_seeds())
    steps = []
    step = env.step
    env.step = lambda actions: (steps.append(1), step(actions))[1]
    result = evaluate(PPOPolicy(Leaning()), env, streams, np.array(quotas), 0.0, max_num_steps)
    env.close()
    return [episode.length for episode in result.episodes], len(steps)


@pytest.mark.parametrize(
    ("vectorization", "steps"),
    # the third episode begins after twice 20 steps and a reset each; one that cannot be reset plays on to its end
    [("sync", 62), ("async", 62), ("vector_entry_point", None)],
)
def test_the_limit_holds_in_every_form_of_a_gymnasium_environment(vectorization, steps):
    lengths, played = cart_pole(vectorization, [3, 2], 20)
    assert lengths == [20] * 5  # each lasts far longer by itself
    if steps is None:
        assert played > 2 * 100
    else:
        assert played == steps


@pytest.mark.skipif(importlib.util.find_spec("procgen") is None, reason="procgen has no wheel here")
def test_the_limit_holds_in_procgen():
    class Still(nn.Module):
        def __init__(self):
            super().__init__()
            self.weight = nn.Parameter(torch.tensor(1.0))

        def forward(self, obs):
            logits = nn.functional.one_hot(torch.full((len(obs),), 4), 15) * self.weight
            return PPOModelOutput(logits=logits, value=logits[:, 0], hidden=logits)

    streams = Streams(3, 0, 3)
    env = ProcgenEnv("coinrun", distribution_mode="easy", num_threads=0).make(streams.eval_env_seeds())
    result = evaluate(PPOPolicy(Still()), env, streams, np.array([3, 2, 1]), 0.0, max_num_steps=10, action_id=4)
    env.close()
    assert [(episode.length, episode.solved) for episode in result.episodes] == [(10, False)] * 6
    assert result.action_steps == 60


@pytest.mark.filterwarnings("ignore:Environment .* was restarted")
@pytest.mark.parametrize("mode", MODES)
def test_a_dropped_episode_is_played_anew_and_not_counted(mode):
    """Environment 0 loses its first episode after two steps, and environment 1 its second."""
    env = make_faulty([0, 1], [[0, 0, 2, "raise"], [1, 1, 1, "raise"]], mode=mode, script=[(4, "terminated")])
    network = CountingNetwork()
    result = evaluate(PPOPolicy(network), env, Streams(1, 0, 2), np.array([2, 2]), 0.0, action_id=0)
    assert result.dropped == 2
    assert sorted(result.rows) == [0, 0, 1, 1]
    assert [episode.length for episode in result.episodes] == [4] * 4
    assert result.action_steps == 4 * 2  # actions 0, 1, 2, 0 of each counted episode; the memory starts anew
    assert all(episode.episode_return > 1e6 for row, episode in zip(result.rows, result.episodes) if row == 0)
    env.close()


@pytest.mark.filterwarnings("ignore:Environment .* was restarted")
def test_episodes_lost_after_they_counted_are_not_reported():
    env = make_faulty([0, 1], [[0, None, 3, "raise"]], script=[(6, "terminated")])
    result = evaluate(PPOPolicy(ToyNetwork()), env, Streams(1, 0, 2), np.array([1, 1]), 0.0, max_num_steps=3)
    assert [episode.length for episode in result.episodes] == [3, 3]
    assert result.dropped == 0
    env.close()
