import subprocess
import sys

import gymnasium
import numpy as np
import pytest
from gymnasium import spaces
from gymnasium.vector import AsyncVectorEnv, AutoresetMode, SyncVectorEnv

from ppo_lightning.core.errors import ConfigurationError
from ppo_lightning.envs import GymnasiumEnv
from ppo_lightning.envs.gymnasium_vector import GymnasiumVectorEnv
from tests.toy import ToyEnv, choose_action, make_async_toy, make_toy, play_plain_toy

MODES = [AutoresetMode.SAME_STEP, AutoresetMode.NEXT_STEP]
SEEDS = [0, 1, 5]


def states_of(obs):
    return obs["state"] if isinstance(obs, dict) else obs


def play(env, num_steps):
    """The valid transitions of each environment, in the form of ``play_plain_toy``."""
    transitions = [[] for _ in range(env.num_envs)]
    obs, starts = states_of(env.reset()), np.ones(env.num_envs, dtype=bool)
    for _ in range(num_steps):
        actions = np.array([choose_action(state) for state in obs])
        result = env.step(actions)
        ended = list(np.flatnonzero(result.terminated | result.truncated))
        for row in np.flatnonzero(result.valid):
            following = states_of(result.final_obs)[ended.index(row)] if row in ended else states_of(result.obs)[row]
            flags = bool(result.terminated[row]), bool(result.truncated[row]), bool(starts[row])
            transitions[row].append((tuple(obs[row]), int(actions[row]), result.rewards[row], *flags, tuple(following)))
        obs, starts = states_of(result.obs), result.episode_starts
    env.close()
    return transitions


@pytest.mark.parametrize("mode", MODES)
@pytest.mark.parametrize("obs", ["box", "dict"])
@pytest.mark.parametrize("script", [((3, "terminated"), (2, "truncated")), ((1, "truncated"), (4, "both"))])
def test_valid_transitions_are_those_of_single_environments(mode, obs, script):
    played = play(make_toy(SEEDS, mode, obs=obs, script=script), num_steps=16)
    for seed, transitions in zip(SEEDS, played):
        assert transitions == play_plain_toy(seed, len(transitions), script=script)
        assert len(transitions) >= 8
        if mode == AutoresetMode.SAME_STEP:
            assert len(transitions) == 16


def test_a_next_step_reset_is_an_invalid_step():
    env = make_toy([0, 1], AutoresetMode.NEXT_STEP)  # lengths 3, 2, … and 2, 3, …
    env.reset()
    results = [env.step(np.zeros(2, dtype=np.int64)) for _ in range(7)]
    assert [result.valid.tolist() for result in results] == [
        [True, True], [True, True], [True, False], [False, True], [True, True], [True, True], [False, False],
    ]  # fmt: skip
    assert [result.episode_starts.tolist() for result in results] == [
        [False, False], [False, False], [False, True], [True, False], [False, False], [False, False], [True, True],
    ]  # fmt: skip
    assert results[2].obs.tolist() == [[0, 0, 3], [1, 1, 0]]
    assert results[2].final_obs.tolist() == [[0, 0, 3]]
    assert results[3].final_obs is None
    env.close()


def test_a_same_step_reset_gives_the_final_observations_beside_the_first():
    env = make_toy([0, 1])
    env.reset()
    results = [env.step(np.zeros(2, dtype=np.int64)) for _ in range(5)]
    assert all(result.valid.all() for result in results)
    assert results[0].final_obs is None
    assert results[1].obs.tolist() == [[0, 0, 2], [1, 1, 0]]
    assert results[1].episode_starts.tolist() == [False, True]
    assert results[1].final_obs.tolist() == [[1, 0, 2]]
    assert results[4].obs.tolist() == [[0, 2, 0], [1, 2, 0]]
    assert results[4].final_obs.tolist() == [[0, 1, 2], [1, 1, 3]]
    env.close()


@pytest.mark.parametrize("mode", MODES)
def test_final_dict_observations_have_all_keys_in_row_order(mode):
    env = make_toy([0, 1], mode, obs="dict", script=[(2, "truncated")])
    assert isinstance(env.reset(), dict)
    env.step(np.zeros(2, dtype=np.int64))
    final = env.step(np.zeros(2, dtype=np.int64)).final_obs
    assert final["state"].tolist() == [[0, 0, 2], [1, 0, 2]]
    assert final["state"].dtype == np.float32
    assert final["image"].shape == (2, 2, 2, 1)
    assert final["image"].dtype == np.uint8
    assert (final["image"] == 2).all()
    env.close()


@pytest.mark.parametrize("mode", MODES)
def test_final_discrete_observations_are_a_vector(mode):
    env = make_toy([0, 1], mode, obs="discrete", script=[(2, "truncated")])
    env.reset()
    env.step(np.zeros(2, dtype=np.int64))
    assert env.step(np.zeros(2, dtype=np.int64)).final_obs.tolist() == [2, 102]
    env.close()


@pytest.mark.parametrize("mode", MODES)
def test_reset_starts_again_from_the_seeds(mode):
    env = make_toy([4, 6], mode, script=[(1, "terminated")])
    first = env.reset()
    env.step(np.zeros(2, dtype=np.int64))
    np.testing.assert_array_equal(env.reset(), first)
    assert first.tolist() == [[4, 0, 0], [6, 0, 0]]
    assert env.step(np.zeros(2, dtype=np.int64)).valid.all()
    env.close()


@pytest.mark.parametrize("obs", ["box", "dict"])
def test_processes_give_what_one_process_gives(obs):
    assert play(make_async_toy(SEEDS, obs=obs), 12) == play(make_toy(SEEDS, obs=obs), 12)


@pytest.mark.parametrize("vectorization", ["sync", "async"])
def test_the_factory_makes_one_environment_a_seed(vectorization):
    env = GymnasiumEnv("Toy-v0", vectorization, kwargs={"script": [[2, "truncated"]]}).make([3, 8])
    assert env.num_envs == 2
    assert env.observation_space.shape == (3,)
    assert env.reset().tolist() == [[3, 0, 0], [8, 0, 0]]
    env.step(np.zeros(2, dtype=np.int64))
    assert env.step(np.zeros(2, dtype=np.int64)).final_obs.tolist() == [[3, 0, 2], [8, 0, 2]]
    env.close()
    env.close()  # safe to call twice


@pytest.mark.parametrize("mode", MODES)
def test_observations_are_not_overwritten_by_the_next_step(mode):
    env = make_toy([0, 1], mode)
    obs = env.reset()
    result = env.step(np.zeros(2, dtype=np.int64))
    env.step(np.zeros(2, dtype=np.int64))
    assert obs[:, 2].tolist() == [0, 0]
    assert result.obs[:, 2].tolist() == [1, 1]
    assert result.rewards.tolist() == [0, 100]
    env.close()


def arrays_of(obs):
    return obs.values() if isinstance(obs, dict) else [obs]


class OneBuffer(ToyEnv):
    """Writes every observation over the one before."""

    def reset(self, *, seed=None, options=None):
        self.buffer, info = super().reset(seed=seed)
        return self.buffer, info

    def _observe(self):
        obs = super()._observe()
        if not hasattr(self, "buffer"):
            return obs
        for old, new in zip(arrays_of(self.buffer), arrays_of(obs)):
            old[...] = new
        return self.buffer


gymnasium.register("OneBuffer-v0", OneBuffer, disable_env_checker=True, order_enforce=False)


@pytest.mark.parametrize("vectorization", ["sync", "async"])
@pytest.mark.parametrize("obs", ["box", "dict"])
def test_a_final_observation_is_not_overwritten_by_the_reset(obs, vectorization):
    factory = GymnasiumEnv("tests.envs.test_gymnasium:OneBuffer-v0", vectorization, {"obs": obs})
    for seed, transitions in zip(SEEDS, play(factory.make(SEEDS), num_steps=8)):
        assert transitions == play_plain_toy(seed, 8)


def test_box_actions_are_clipped_at_the_door():
    env = make_toy([0], actions="box")
    env.reset()
    rewards = [env.step(np.array([action], np.float32)).rewards[0] for action in ([5, 5], [-5, -5])]
    assert rewards == [(1 + 0.5) / 4, 1 + (-1 + 0) / 4]
    env.close()


def test_given_box_actions_are_left_as_they_were():
    env = make_toy([0], actions="box")
    env.reset()
    actions = np.array([[5, 5]], np.float32)
    env.step(actions)
    assert actions.tolist() == [[5, 5]]
    env.close()


def test_discrete_actions_count_from_the_start_of_their_space():
    env = make_toy([0], actions="started")
    env.reset()
    assert env.step(np.array([2])).rewards[0] == 12 / 4
    env.close()


@pytest.mark.parametrize("vectorizer", [SyncVectorEnv, AsyncVectorEnv])
@pytest.mark.parametrize(
    ("kind", "actions", "taken"),
    [
        ("multi", [[2, 0], [0, 1]], [[12, -1], [10, 0]]),
        ("unsigned", [[2, 0], [0, 1]], [[12, 1], [10, 2]]),
        ("binary", [[1, 0, 1], [0, 0, 1]], [[1, 0, 1], [0, 0, 1]]),
    ],
)
def test_vectors_of_discrete_actions_are_members_of_their_space(kind, actions, taken, vectorizer):
    env = make_toy([0, 0], vectorizer=vectorizer, actions=kind)
    env.reset()
    given = np.array(actions)
    result = env.step(given)
    assert result.rewards.tolist() == [sum(row) / 4 for row in taken]
    assert given.tolist() == actions
    converted = env._to_env(given)
    assert converted.dtype == env.action_space.dtype
    assert [env.action_space.contains(row) for row in converted] == [True, True]
    env.close()


def test_cartpole_vectorises_itself():
    env = GymnasiumEnv("CartPole-v1", vectorization="vector_entry_point").make([1, 2, 3])
    assert env.num_envs == 3
    first = env.reset()
    assert first.shape == (3, 4)
    episode_lengths, invalid = np.zeros(3), 0
    for _ in range(60):
        result = env.step(np.ones(3, dtype=np.int64))  # always to the right: falls after about nine steps
        episode_lengths = np.where(result.episode_starts, 0, episode_lengths + 1)
        invalid += (~result.valid).sum()
        assert (result.valid != result.episode_starts).all()  # a reset step, and only it, starts an episode
        assert (result.rewards[result.valid] == 1).all()
        assert (result.rewards[~result.valid] == 0).all()
        assert (np.abs(result.obs[result.episode_starts]) <= 0.05).all()
        if result.terminated.any():
            assert (np.abs(result.final_obs[:, 2]) > 0.2).all()
        assert episode_lengths.max() < 13
    assert invalid > 10
    np.testing.assert_array_equal(env.reset(), first)
    env.close()


def test_cartpole_vectorised_by_itself_plays_other_episodes_from_other_seeds():
    def first(seeds):
        env = GymnasiumEnv("CartPole-v1", vectorization="vector_entry_point").make(seeds)
        obs = env.reset()
        env.close()
        return obs

    assert not np.array_equal(first([1, 2]), first([3, 4]))


def test_cartpole_is_truncated_by_its_time_limit():
    env = GymnasiumEnv("CartPole-v1", kwargs={"max_episode_steps": 5}).make([1])
    env.reset()
    results = [env.step(np.array([step % 2])) for step in range(5)]
    assert [result.truncated[0] for result in results] == [False] * 4 + [True]
    assert not results[-1].terminated[0]
    env.close()


def test_wrappers_are_applied_in_order():
    def doubled(env):
        return gymnasium.wrappers.TransformReward(env, lambda reward: 2 * reward)

    def raised(env):
        return gymnasium.wrappers.TransformReward(env, lambda reward: reward + 1)

    env = GymnasiumEnv("Toy-v0", wrappers=[doubled, raised]).make([1])
    env.reset()
    assert env.step(np.array([0])).rewards[0] == 2 * 100 + 1
    env.close()


def test_an_environment_of_an_importable_module_is_found():
    program = (
        "from ppo_lightning.envs import GymnasiumEnv\n"
        "env = GymnasiumEnv('tests.toy:Toy-v0').make([3])\n"
        "print(env.reset().tolist())"
    )
    done = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True)
    assert done.stdout == "[[3.0, 0.0, 0.0]]\n", done.stderr


@pytest.mark.parametrize("id", ["CartPol-v1", "cartpole-v1", "CartPole-v99"])
def test_an_unknown_id_is_refused_with_close_names(id):
    with pytest.raises(ConfigurationError, match=rf"--data\.env\.id={id} is not .*Did you mean .*CartPole-v1"):
        GymnasiumEnv(id).make([0])


def test_an_unknown_id_without_close_names_is_refused_with_the_form_to_write():
    with pytest.raises(ConfigurationError, match="Write module:EnvId"):
        GymnasiumEnv("Qqqqqq").make([0])


def test_an_unknown_module_is_named():
    with pytest.raises(ConfigurationError, match=r"the module 'no_such_module' cannot be imported"):
        GymnasiumEnv("no_such_module:Toy-v0").make([0])


def test_wrong_arguments_are_refused_with_the_reason():
    with pytest.raises(ConfigurationError, match=r"Toy-v0 cannot be made with kwargs=\{'colour': 1\}.*colour"):
        GymnasiumEnv("Toy-v0", kwargs={"colour": 1}).make([0])


@pytest.mark.parametrize(
    ("kwargs", "message"),
    [
        ({"obs": "tuple"}, "observation space Tuple"),
        ({"actions": "grid"}, "action space MultiDiscrete"),
        ({"actions": "binary grid"}, "action space MultiBinary"),
        ({"actions": "matrix"}, "action space Box"),
    ],
)
def test_unsupported_spaces_are_refused_and_the_simulator_closed(kwargs, message, monkeypatch):
    closed = []
    monkeypatch.setattr(ToyEnv, "close", lambda self: closed.append(self))
    with pytest.raises(ConfigurationError, match=message):
        GymnasiumEnv("Toy-v0", kwargs=kwargs).make([0, 1])
    assert len(closed) >= 2


def test_wrappers_contradict_an_own_vectorised_form():
    with pytest.raises(ConfigurationError, match=r"--data\.env\.wrappers .*vector_entry_point"):
        GymnasiumEnv("CartPole-v1", "vector_entry_point", wrappers=[lambda env: env])


def test_an_environment_without_an_own_vectorised_form_is_refused():
    with pytest.raises(ConfigurationError, match=r"Toy-v0 has no vectorised form of its own; use sync"):
        GymnasiumEnv("Toy-v0", "vector_entry_point").make([0])


def test_a_vector_environment_that_does_not_reset_itself_is_refused():
    env = SyncVectorEnv([ToyEnv], autoreset_mode=AutoresetMode.DISABLED)
    with pytest.raises(ConfigurationError, match="autoreset_mode"):
        GymnasiumVectorEnv(env, [0])
    assert isinstance(env.single_action_space, spaces.Discrete)


# -- breaking off episodes


def final_states(result):
    """``{row: the last state of its episode}`` of the rows that ended."""
    ended = np.flatnonzero(result.terminated | result.truncated)
    assert (result.final_obs is None) == (len(ended) == 0)
    return {} if not len(ended) else dict(zip(ended.tolist(), states_of(result.final_obs).tolist()))


@pytest.mark.parametrize("vectorizer", [SyncVectorEnv, AsyncVectorEnv])
@pytest.mark.parametrize("mode", MODES)
@pytest.mark.parametrize("obs", ["box", "dict"])
def test_a_row_that_is_broken_off_is_reset_and_no_other(mode, obs, vectorizer):
    """Both episodes last three steps; after step ``when`` row 0 is broken off, at 2 in the step that would end it."""
    for when in (1, 2):
        env = make_toy([0, 1], mode, vectorizer, obs=obs, script=((3, "truncated"),))
        env.reset()
        for _ in range(when):
            env.step(np.zeros(2, dtype=np.int64))
        assert env.end_episodes(np.array([True, False]))
        result = env.step(np.array([2, 2]))
        ends = when == 2  # row 1 ends
        assert result.valid.tolist() == [False, True]
        assert result.episode_starts.tolist() == [True, ends and mode == AutoresetMode.SAME_STEP]
        assert result.terminated.tolist() == [False, False]
        assert result.truncated.tolist() == [False, ends]
        assert result.rewards.tolist() == [0, 100 + when + 0.5]
        assert states_of(result.obs)[0].tolist() == [0, 1, 0]
        assert final_states(result) == ({1: [1, 0, 3]} if ends else {})
        after = [env.step(np.zeros(2, dtype=np.int64)) for _ in range(3)]
        assert [states_of(step.obs)[0].tolist() for step in after[:2]] == [[0, 1, 1], [0, 1, 2]]
        assert [bool(step.valid[0]) for step in after] == [True] * 3
        assert [bool(step.truncated[0]) for step in after] == [False, False, True]
        assert final_states(after[2])[0] == [0, 1, 3]
        env.close()


@pytest.mark.parametrize("mode", MODES)
def test_rows_that_are_broken_off_again_and_again(mode):
    env = make_toy([0, 1], mode, script=((9, "terminated"),))
    env.reset()
    seen = []
    for _ in range(3):
        env.end_episodes(np.array([True, False]))
        env.end_episodes(np.array([False, True]))  # both wait for the next step
        result = env.step(np.zeros(2, dtype=np.int64))
        seen.append(result.obs.tolist())
        assert not result.valid.any()
        assert env.step(np.zeros(2, dtype=np.int64)).valid.all()
    assert seen == [[[0, number, 0], [1, number, 0]] for number in (1, 2, 3)]
    env.close()


def test_a_reset_forgets_what_was_to_be_broken_off():
    env = make_toy([0])
    env.reset()
    env.end_episodes(np.array([True]))
    env.reset()
    assert env.step(np.zeros(1, dtype=np.int64)).valid.all()
    env.close()


def test_a_vectorised_form_of_its_own_cannot_break_off():
    env = GymnasiumEnv("CartPole-v1", vectorization="vector_entry_point").make([0, 1])
    env.reset()
    assert not env.end_episodes(np.array([True, True]))
    result = env.step(np.zeros(2, dtype=np.int64))
    assert result.valid.all()
    assert not result.episode_starts.any()
    env.close()
