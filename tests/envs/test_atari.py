import functools

import gymnasium
import numpy as np
import pytest
from gymnasium import wrappers

from ppo_lightning.core.errors import ConfigurationError, NotRestorableError
from ppo_lightning.data.episodes import EpisodeStatistics
from ppo_lightning.envs import AtariEnv, GymnasiumEnv
from ppo_lightning.envs.state.atari import _NOT_WHOLE
from tests.envs.states import assert_same_step, through_a_file


@pytest.fixture(autouse=True)
def _needs_atari():
    pytest.importorskip("ale_py")
    pytest.importorskip("cv2")


PLAIN = {"episodic_life": False, "fire_reset": False, "clip_rewards": False}


def reference(game, limit=108_000, frame_skip=4, noop_max=30, frame_stack=4):
    """What Gymnasium's documentation says of Atari, by its own wrappers."""
    env = gymnasium.make(f"ALE/{game}-v5", frameskip=1, repeat_action_probability=0.0, max_num_frames_per_episode=limit)
    env = wrappers.AtariPreprocessing(env, noop_max=noop_max, frame_skip=frame_skip)
    return wrappers.FrameStackObservation(env, frame_stack)


@pytest.mark.parametrize("game", ["Pong", "Breakout", "Qbert", "SpaceInvaders"])
def test_frame_by_frame_it_is_gymnasiums_preprocessing(game):
    env, other = AtariEnv(f"ALE/{game}-v5", **PLAIN, max_num_frames=1000).make([7]), reference(game, 1000)
    assert env.observation_space == other.observation_space
    assert env.action_space == other.action_space
    np.testing.assert_array_equal(env.reset()[0], other.reset(seed=7)[0])
    rng, ends = np.random.default_rng(1), 0
    for _ in range(300):
        action = rng.integers(env.action_space.n)
        result, (obs, reward, terminated, truncated, _) = env.step(np.array([action])), other.step(action)
        assert result.obs.dtype == np.uint8
        assert (result.rewards[0], result.terminated[0], result.truncated[0]) == (reward, terminated, truncated)
        if terminated or truncated:
            ends += 1
            np.testing.assert_array_equal(result.final_obs[0], obs)
            obs, _ = other.reset()
        np.testing.assert_array_equal(result.obs[0], obs)
    assert ends
    env.close()


def test_with_lives_and_fire_it_is_the_same_game_played_on():
    env, other = AtariEnv("ALE/Breakout-v5").make([3]), reference("Breakout")
    other.reset(seed=3)
    frames, *_ = other.step(1)  # fire
    np.testing.assert_array_equal(env.reset()[0, -1], frames[-1])
    rng, lives, ends = np.random.default_rng(2), 5, []
    for number in range(400):
        action = rng.integers(4)
        result, (frames, reward, terminated, _, info) = env.step(np.array([action])), other.step(action)
        assert (result.rewards[0], result.scores[0]) == (np.sign(reward), reward)
        lost, lives = info["lives"] < lives, info["lives"]
        assert result.terminated[0] == lost
        if lost:
            ends.append((number, terminated))
            np.testing.assert_array_equal(result.final_obs[0][-1], frames[-1])
            assert result.goes_on[0] == (not terminated)
            if terminated:
                lives = other.reset()[1]["lives"]
            frames, *_ = other.step(1)
            assert (result.obs[0] == result.obs[0, :1]).all()  # the stack begins anew
        np.testing.assert_array_equal(result.obs[0, -1], frames[-1])
    assert {terminated for _, terminated in ends} == {False, True}
    env.close()


def play(env, num_steps, seed=0):
    """All the steps, and the games that were reported."""
    rng, statistics, steps = np.random.default_rng(seed), EpisodeStatistics(env.num_envs), []
    steps = [env.reset()]
    for _ in range(num_steps):
        steps.append(env.step(rng.integers(env.action_space.n, size=env.num_envs)))
        statistics.add(steps[-1])
    env.close()
    return steps, statistics.finished


def test_games_are_reported_whole_and_unclipped_whatever_is_learned_from():
    lives, whole = (
        [game.episode_return for game in play(AtariEnv("ALE/Qbert-v5", **flags).make([1]), 800)[1]]
        for flags in ({"fire_reset": False}, PLAIN)
    )
    assert min(lives + whole) >= 25  # Qbert pays 25 for a cube
    assert len(whole) >= 2
    assert len(lives) <= len(whole) + 2  # not four times as many


def test_a_game_at_its_limit_is_truncated():
    steps, games = play(AtariEnv("ALE/Pong-v5", max_num_frames=200, noop_max=0, fire_reset=False).make([1]), 101)
    ends = [number for number, step in enumerate(steps[1:], 1) if step.truncated[0]]
    assert ends == [50, 100]
    assert not any(step.terminated[0] for step in steps[1:])
    assert [game.length for game in games] == [50, 50]
    assert steps[50].final_obs.shape == (1, 4, 84, 84)


def test_processes_give_what_one_process_gives():
    settings = {"max_num_frames": 150, "repeat_action_probability": 0.3}
    one, other = (
        play(AtariEnv("ALE/Breakout-v5", vectorization, **settings).make([4, 5]), 40)[0]
        for vectorization in ("sync", "async")
    )
    np.testing.assert_array_equal(one[0], other[0])
    for first, second in zip(one[1:], other[1:]):
        assert_same_step(first, second)


def test_each_environment_plays_a_game_of_its_own():
    steps, _ = play(AtariEnv("ALE/Pong-v5").make([1, 1, 2]), 20)
    rng = np.random.default_rng(0)
    assert any((step.obs[0] != step.obs[2]).any() for step in steps[1:])
    again, _ = play(AtariEnv("ALE/Pong-v5").make([1, 1, 2]), 20)
    assert_same_step(again[-1], steps[-1])
    env = AtariEnv("ALE/Pong-v5").make([1, 1])
    assert (env.reset()[0] == env.reset()[1]).all()
    action = rng.integers(6)
    result = env.step(np.array([action, action]))
    assert (result.obs[0] == result.obs[1]).all()
    env.close()


@functools.cache
def story(**flags):
    steps, _ = play(AtariEnv("ALE/SpaceInvaders-v5", **flags).make([1]), 200)
    names = "obs", "rewards", "terminated", "truncated"
    return [steps[0].tobytes()] + [[getattr(step, name).tobytes() for name in names] for step in steps[1:]]


@pytest.mark.parametrize(
    "setting",
    [
        {"frame_skip": 3},
        {"noop_max": 0},
        {"episodic_life": False},
        {"fire_reset": False},
        {"clip_rewards": False},
        {"repeat_action_probability": 0.25},
        {"max_num_frames": 120},
    ],
    ids=lambda setting: next(iter(setting)),
)
def test_each_flag_changes_something(setting):
    assert story(**setting) != story()


def test_sizes_and_actions_are_as_told():
    env = AtariEnv("ALE/Pong-v5", screen_size=40, frame_stack=1, full_action_space=True).make([0])
    assert env.reset().shape == (1, 1, 40, 40)
    assert env.action_space.n == 18
    env.close()


def test_pictures_of_a_video_are_in_colour_and_in_the_games_own_time():
    env = AtariEnv("ALE/Breakout-v5").make_rendering([1, 2])
    env.reset()
    pictures = env.render()
    assert (pictures.shape, pictures.dtype) == ((2, 210, 160, 3), np.uint8)
    assert (pictures[..., 0] != pictures[..., 1]).any()
    assert env.render_fps == 15
    env.close()


@pytest.mark.parametrize(
    ("id", "message"),
    [
        ("Pong", "--data.env.id=Pong is not known to ale-py. Did you mean ALE/Pong-v5"),
        ("Breakout", "--data.env.id=Breakout is not known to ale-py. Did you mean ALE/Breakout-v5"),
        ("ALE/Brekout-v5", "Did you mean ALE/Breakout-v5"),
        ("BreakoutNoFrameskip-v4", "AtariEnv has settings of its own .*; use ALE/Breakout-v5"),
        ("CartPole-v1", "--data.env.id=CartPole-v1 is no Atari game: use GymnasiumEnv for it"),
        ("", "Ids are like ALE/Breakout-v5"),
    ],
)
def test_what_is_no_game_is_refused(id, message):
    with pytest.raises(ConfigurationError, match=message):
        AtariEnv(id).make([0])


@pytest.mark.parametrize(
    ("setting", "message"),
    [
        ({"frame_skip": 0}, "--data.env.frame_skip must be at least 1, not 0"),
        ({"frame_stack": 0}, "--data.env.frame_stack must be at least 1, not 0"),
        ({"noop_max": -1}, "--data.env.noop_max must be at least 0, not -1"),
        ({"screen_size": 0}, "--data.env.screen_size must be at least 1, not 0"),
        ({"repeat_action_probability": 1.0}, "--data.env.repeat_action_probability must be .* less than 1, not 1"),
        ({"repeat_action_probability": -0.1}, "--data.env.repeat_action_probability must be at least 0"),
        ({"max_num_frames": 38}, "--data.env.max_num_frames must be greater than 38, not 38"),
    ],
)
def test_numbers_outside_their_range_are_refused(setting, message):
    with pytest.raises(ConfigurationError, match=message):
        AtariEnv("ALE/Pong-v5", **setting)


def test_a_game_that_always_acts_starts_without_waiting():
    with pytest.raises(ConfigurationError, match=r"--data.env.noop_max=30: ALE/Backgammon-v5 has no action that does"):
        AtariEnv("ALE/Backgammon-v5").make([0])
    AtariEnv("ALE/Backgammon-v5", noop_max=0).make([0]).close()
    AtariEnv("ALE/Backgammon-v5", full_action_space=True).make([0]).close()


@pytest.mark.parametrize(("module", "package"), [("ale_py", "ale-py"), ("cv2", "opencv-python-headless")])
def test_a_missing_package_is_told_by_its_extra(module, package, monkeypatch):
    import importlib

    real = importlib.import_module

    def missing(name, *args):
        if name == module:
            raise ModuleNotFoundError(f"No module named {name!r}")
        return real(name, *args)

    monkeypatch.setattr(importlib, "import_module", missing)
    with pytest.raises(ConfigurationError, match=rf"needs {package}, .*pip install 'ppo-lightning\[atari\]'"):
        AtariEnv("ALE/Pong-v5").make([0])


def test_nothing_is_printed(capfd):
    AtariEnv("ALE/Pong-v5").make([0]).close()
    captured = capfd.readouterr()
    assert captured.out + captured.err == ""


def test_a_split_may_have_other_settings():
    split = AtariEnv("ALE/Pong-v5").with_settings({"repeat_action_probability": 0.25}, "--evaluation.splits.sticky")
    assert split.repeat_action_probability == 0.25


# -- states


@pytest.mark.parametrize(
    ("kwargs", "message"),
    [
        ({}, "repeat_action_probability above 0 repeats an action that cannot be saved"),
        ({"repeat_action_probability": 0.0, "sound_obs": True}, "sound_obs cannot be saved"),
    ],
)
def test_what_ale_does_not_save_is_refused(kwargs, message):
    env = GymnasiumEnv("ale_py:ALE/Pong-v5", kwargs=kwargs).make([0])
    env.reset()
    with pytest.raises(NotRestorableError, match=message):
        env.state_dict()
    env.close()


def test_games_that_ale_restores_in_part_are_refused():
    for game in ("MiniatureGolf", "Pitfall2", "TicTacToe3D", "YarsRevenge"):
        env = AtariEnv(f"ALE/{game}-v5").make([0])
        env.reset()
        with pytest.raises(NotRestorableError, match="is one that ALE does not restore as a whole"):
            env.state_dict()
        env.close()


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"version": "0.1"}, "is one of pong in ale-py 0.1, not of pong in ale-py"),
        ({"game": "breakout"}, "is one of breakout in ale-py"),
        ({"ale": b"nonsense"}, "did not take up its state"),
    ],
)
def test_a_state_of_something_else_is_refused(change, message):
    from ppo_lightning.core.plain import to_plain

    env = AtariEnv("ALE/Pong-v5").make([0])
    env.reset()
    state = through_a_file(env.state_dict())
    name, own = state["simulators"][0][-1]
    assert name == "AtariEnv"
    own.update({key: to_plain(value) for key, value in change.items()})
    with pytest.raises(NotRestorableError, match=message):
        env.load_state_dict(state)
    env.close()


def test_another_games_bytes_are_refused():
    states = {}
    for game in ("Pong", "Breakout"):
        env = AtariEnv(f"ALE/{game}-v5").make([0])
        env.reset()
        states[game] = env.state_dict()
        env.close()
    env = AtariEnv("ALE/Pong-v5").make([0])
    states["Pong"]["simulators"][0][-1][1]["ale"] = states["Breakout"]["simulators"][0][-1][1]["ale"]
    with pytest.raises(NotRestorableError, match="did not take up its state"):
        env.load_state_dict(states["Pong"])
    env.close()


def all_games():
    pytest.importorskip("ale_py")
    return [id for id in gymnasium.registry if id.startswith("ALE/")]


@pytest.mark.slow
def test_all_games_but_four_go_on_as_they_were_saved():
    assert len(_NOT_WHOLE) == 4
    refused = 0
    for id in all_games():
        factory, rng = AtariEnv(id, max_num_frames=2000, full_action_space=True), np.random.default_rng(1)
        saved, restored = factory.make([1]), factory.make([2])
        saved.reset()
        try:
            saved.state_dict()
        except NotRestorableError:
            refused += 1
            continue
        for _ in range(6):
            for _ in range(rng.integers(5, 60)):
                saved.step(rng.integers(saved.action_space.n, size=1))
            restored.load_state_dict(saved.state_dict())
            for _ in range(10):
                actions = rng.integers(saved.action_space.n, size=1)
                assert_same_step(restored.step(actions), saved.step(actions))
        saved.close(), restored.close()
    assert refused == 4
