import importlib.util
import subprocess
import sys

import numpy as np
import pytest
from gymnasium import spaces

from ppo_lightning.core.errors import ConfigurationError
from ppo_lightning.envs import ProcgenEnv
from ppo_lightning.envs.procgen import PROCGEN_GAMES

needs_procgen = pytest.mark.skipif(importlib.util.find_spec("procgen") is None, reason="procgen has no wheel here")


def make(env_name="coinrun", seeds=(5, 6), **options):
    return ProcgenEnv(env_name, num_threads=0, **options).make(seeds)


def frames(env, num_steps):
    """The first observation and what follows a fixed sequence of actions."""
    actions = np.random.default_rng(0).integers(0, 15, (num_steps, env.num_envs))
    return np.stack([env.reset(), *(env.step(row).obs.copy() for row in actions)])


@needs_procgen
@pytest.mark.parametrize("game", PROCGEN_GAMES)
def test_all_sixteen_games_play(game):
    env = make(game, distribution_mode="easy")
    obs = env.reset()
    assert obs.shape == (2, 64, 64, 3)
    assert obs.dtype == np.uint8
    assert obs.std() > 0
    result = env.step(np.array([7, 0]))
    assert result.obs.shape == (2, 64, 64, 3)
    assert result.rewards.shape == (2,)
    env.close()


@needs_procgen
def test_spaces_are_the_published_ones():
    env = make()
    assert env.observation_space == spaces.Box(0, 255, (64, 64, 3), np.uint8)
    assert env.action_space == spaces.Discrete(15)
    assert env.num_envs == 2
    env.close()
    env.close()  # safe to call twice


@needs_procgen
def test_reset_plays_the_same_again():
    env = make()
    first = frames(env, 10)
    np.testing.assert_array_equal(frames(env, 10), first)
    assert not np.array_equal(first[0], first[-1])
    env.close()


@needs_procgen
def test_the_first_seed_orders_the_levels_unless_one_is_given():
    def first(seed, **options):
        env = make(seeds=(seed,), **options)
        obs = env.reset()
        env.close()
        return obs

    assert np.array_equal(first(5), first(5))
    assert not np.array_equal(first(5), first(6))
    assert np.array_equal(first(5, rand_seed=1), first(6, rand_seed=1))
    assert np.array_equal(first(5, num_levels=1), first(6, num_levels=1))
    assert not np.array_equal(first(5, num_levels=1), first(5, num_levels=1, start_level=7))
    assert not np.array_equal(first(5), first(5, use_backgrounds=False))
    assert first(2**31 - 1).shape == (1, 64, 64, 3)  # larger than the simulator takes


@needs_procgen
def test_shares_play_levels_of_their_own_even_from_a_given_seed():
    def firsts(**options):
        factory = ProcgenEnv("coinrun", num_threads=0, **options)
        envs = [factory.of_share(index).make((5, 6)) for index in range(3)]
        obs = [env.reset() for env in envs]
        for env in envs:
            env.close()
        return obs

    alone = make(rand_seed=7)
    given = firsts(rand_seed=7)
    assert np.array_equal(given[0], alone.reset())  # as on one rank
    assert len({part.tobytes() for rank in given for part in rank}) == 6
    assert len({part.tobytes() for part in firsts()[0]}) == 2  # the seeds of make differ, where none is given
    alone.close()


@needs_procgen
def test_an_end_is_a_termination_after_which_an_episode_starts():
    env = make("bigfish", seeds=range(8), distribution_mode="easy")  # a fish dies soon
    env.reset()
    ends = 0
    for _ in range(150):
        result = env.step(np.full(8, 4))
        assert result.valid.all()
        assert not result.truncated.any()
        assert result.final_obs is None
        np.testing.assert_array_equal(result.terminated, result.episode_starts)
        ends += result.terminated.sum()
    assert ends > 0
    env.close()


def test_an_unknown_game_is_refused_with_close_names():
    with pytest.raises(ConfigurationError, match=r"env_name=coinran is not a Procgen game.*Did you mean coinrun\?"):
        ProcgenEnv("coinran")


@pytest.mark.parametrize(("game", "mode"), [("coinrun", "memory"), ("bigfish", "extreme"), ("miner", "exploration")])
def test_a_mode_that_the_game_lacks_is_refused(game, mode):
    with pytest.raises(ConfigurationError, match=rf"distribution_mode={mode} does not exist for {game}, only for"):
        ProcgenEnv(game, distribution_mode=mode)


@pytest.mark.parametrize("levels", [{"start_level": 1}, {"num_levels": 5}])
def test_exploration_fixes_its_level(levels):
    with pytest.raises(ConfigurationError, match="exploration fixes its one level"):
        ProcgenEnv("coinrun", distribution_mode="exploration", **levels)


@needs_procgen
@pytest.mark.parametrize(("game", "mode"), [("coinrun", "exploration"), ("maze", "memory"), ("leaper", "extreme")])
def test_a_mode_that_the_game_has_plays(game, mode):
    env = make(game, distribution_mode=mode)
    assert env.reset().shape == (2, 64, 64, 3)
    env.close()


@pytest.mark.parametrize("name", ["start_level", "num_levels", "num_threads"])
def test_negative_numbers_are_refused(name):
    with pytest.raises(ConfigurationError, match=rf"--data\.env\.{name} must be at least 0, not -1\."):
        ProcgenEnv("coinrun", **{name: -1})


def test_a_missing_package_gives_the_sentence_with_the_way_out(monkeypatch):
    monkeypatch.setitem(sys.modules, "procgen", None)
    factory = ProcgenEnv("coinrun")  # settings alone need no simulator
    with pytest.raises(ConfigurationError, match=r"needs the procgen package.*pip install 'ppo-lightning\[procgen\]'"):
        factory.make([0])


@needs_procgen
def test_nothing_is_printed():
    program = (
        "from ppo_lightning.envs.procgen import ProcgenEnv\n"
        "env = ProcgenEnv('coinrun', num_threads=0).make([0])\n"
        "env.reset()\n"
        "env.close()"
    )
    done = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, check=True)
    assert (done.stdout, done.stderr) == ("", "")


def level_seeds(env):
    return [info["level_seed"] for info in env._simulator.get_info()]


@needs_procgen
def test_a_row_that_is_broken_off_starts_its_next_level_and_no_other_row_notices():
    """Two simulators of one seed; in one of them row 0 is broken off in a step in which another row ends."""
    num_envs, options = 8, {"seeds": range(8), "distribution_mode": "easy"}
    actions, oracle = np.full(num_envs, 4), make("bigfish", **options)
    oracle.reset()
    expected = [oracle.step(actions) for _ in range(150)]
    when = next(t for t, step in enumerate(expected) if t > 5 and step.terminated[1:].any() and not step.terminated[0])
    levels, env = level_seeds(oracle), make("bigfish", **options)
    env.reset()
    for step in range(when):
        assert np.array_equal(env.step(actions).obs, expected[step].obs)
    before = level_seeds(env)
    assert env.end_episodes(np.arange(num_envs) == 0)
    for step in range(when, 150):
        result = env.step(actions)
        for name in ("obs", "rewards", "terminated", "episode_starts", "solved", "valid"):
            assert np.array_equal(getattr(result, name)[1:], getattr(expected[step], name)[1:]), name
        if step == when:
            flags = result.valid, result.terminated, result.truncated, result.episode_starts
            assert [bool(flag[0]) for flag in flags] == [False, False, False, True]
            assert result.rewards[0] == 0
            assert result.terminated[1:].any()
            assert level_seeds(env)[0] != before[0]
            assert level_seeds(env)[0] == next_level_of_row_0(expected, options)
        else:
            assert result.valid.all()
    assert level_seeds(env)[1:] == levels[1:]
    oracle.close()
    env.close()


def next_level_of_row_0(expected, options):
    """The level that row 0 plays after its first one has ended by itself."""
    env = make("bigfish", **options)
    env.reset()
    first = level_seeds(env)[0]
    for _ in range(500):
        if env.step(np.full(8, 4)).episode_starts[0]:
            break
    following = level_seeds(env)[0]
    env.close()
    assert following != first
    return following


@needs_procgen
def test_a_broken_off_row_pays_nothing_even_where_its_action_would_have():
    """The action of a broken-off row is replaced, whatever it was; all rows at once work too."""
    env = make("bigfish", seeds=range(4), distribution_mode="easy")
    env.reset()
    for _ in range(3):
        env.end_episodes(np.ones(4, dtype=bool))
        result = env.step(np.array([0, 4, 8, 14]))
        assert not result.valid.any()
        assert not result.rewards.any()
        assert not result.terminated.any()
        assert result.episode_starts.all()
        assert env.step(np.full(4, 4)).valid.all()
    env.close()
