import builtins
import functools
import os
import subprocess
import sys
import time

import numpy as np
import pytest
import torch
from gymnasium import spaces

from ppo_lightning import ActorCritic, NatureCNN
from ppo_lightning.core.errors import ConfigurationError, NotRestorableError
from ppo_lightning.data.collect import Collector
from ppo_lightning.data.episodes import EpisodeStatistics
from ppo_lightning.data.evaluate import evaluate
from ppo_lightning.data.seeding import Streams
from ppo_lightning.envs import EnvpoolEnv
from ppo_lightning.envs.envpool import EnvpoolAtari, EnvpoolProcgen
from tests.commands import REPOSITORY
from tests.envs.states import assert_same_step
from tests.envs.test_atari import reference
from tests.envs.test_games import Idle, Still
from tests.runs import make_data, make_ppo, make_trainer


class Scripted:
    """Simulators like envpool's: two games of three lives of two steps; a step pays its number, clipped.

    Row 1 is over in the frames that its first reset after a lost life plays.
    """

    config = {"num_envs": 2}
    observation_space = spaces.Box(-np.inf, np.inf, (2,), np.float32)
    action_space = spaces.Discrete(2)

    def __init__(self, limit=99):
        self.limit, self.games, self.steps, self.lives = limit, np.zeros(2), np.zeros(2), np.zeros(2, np.int32)
        self.done, self.over, self.is_late = np.zeros(2, bool), np.zeros(2, bool), [False, True]

    def _new(self, row):
        self.games[row] += 1
        self.steps[row], self.lives[row], self.done[row], self.over[row] = 0, 3, False, False

    def _info(self, rewards, rows):
        over = self.over.astype(np.int32)
        info = {"lives": self.lives.copy(), "reward": rewards, "terminated": over}
        return {name: value[rows] for name, value in info.items()}

    def _see(self, rows):
        return np.stack([self.games, self.steps], 1).astype(np.float32)[rows]

    def reset(self, rows=(0, 1)):
        rows = list(rows)
        for row in rows:
            self._new(row)
        return self._see(rows), self._info(np.zeros(2), rows)

    def step(self, actions):
        assert actions.dtype == np.int32
        rewards, truncated = np.zeros(2, np.float32), np.zeros(2, bool)
        for row in range(2):
            if self.done[row]:
                if self.over[row] or self.steps[row] >= self.limit or self.is_late[row]:
                    self.is_late[row] = False
                    self._new(row)
                self.done[row] = False
                continue
            self.steps[row] += 1
            rewards[row] = self.steps[row]
            self.lives[row] -= self.steps[row] % 2 == 0
            self.over[row] = self.lives[row] == 0
            truncated[row] = self.steps[row] >= self.limit
            self.done[row] = self.steps[row] % 2 == 0 or truncated[row]
        everyone = [0, 1]
        terminated = self.done & ~truncated
        return self._see(everyone), np.sign(rewards), terminated, truncated, self._info(rewards, everyone)


def scripted(**kwargs):
    return EnvpoolAtari(lambda: Scripted(**kwargs), clips_rewards=True, render_fps=15)


def play(env, num_steps, actions=None):
    rng, statistics, steps = np.random.default_rng(0), EpisodeStatistics(env.num_envs), []
    env.reset()
    for _ in range(num_steps):
        steps.append(env.step(rng.integers(env.action_space.n, size=env.num_envs)))
        statistics.add(steps[-1])
    return steps, statistics


def test_lives_end_episodes_and_games_are_reported():
    steps, statistics = play(scripted(), 8)
    assert [bool(step.valid[0]) for step in steps] == [True, True, False, True, True, False, True, True]
    assert [bool(step.terminated[0]) for step in steps] == [False, True, False, False, True, False, False, True]
    assert [float(step.rewards[0]) for step in steps if step.valid[0]] == [1] * 6
    # row 1 lost its first game in a reset; nobody knows what that would have come to
    assert [(game.episode_return, game.length) for game in statistics.finished] == [(1 + 2 + 3 + 4 + 5 + 6, 6)]
    assert statistics.dropped == 1
    assert statistics.running(1).episode_return == 1 + 2 + 3 + 4


def test_the_limit_truncates_with_the_final_observation():
    steps, statistics = play(scripted(limit=3), 5)
    ended = next(step for step in steps if step.truncated[0])
    assert not ended.terminated[0]
    assert not ended.goes_on[0]
    assert ended.final_obs[0].tolist() == [1, 3]
    assert statistics.finished[0].episode_return == 6


def test_a_game_that_is_over_at_the_limit_is_terminated():
    steps, _ = play(scripted(limit=6), 8)
    assert steps[-1].terminated[0]
    assert not steps[-1].truncated[0]


def test_rows_that_are_broken_off_begin_a_new_game():
    for number in range(1, 8):
        env = scripted()
        play(env, number)
        env.end_episodes(np.array([True, False]))
        result = env.step(np.zeros(2, int))
        assert result.obs[0].tolist()[1] == 0
        assert (result.valid[0], result.episode_starts[0], result.rewards[0], result.scores[0]) == (False, True, 0, 0)
        assert not result.terminated[0]
        statistics = EpisodeStatistics(2)
        while not any(row == 0 for row, _ in statistics.add(env.step(np.zeros(2, int)))):
            pass
        game = next(game for game in statistics.finished if game.length == 6)
        assert game.episode_return == 21


def test_what_only_resets_never_reaches_the_loss():
    collector = Collector(scripted(), 8)
    rollout = collector.collect(Idle(), [torch.Generator(), torch.Generator()])
    assert rollout.valid[:, 0].tolist() == [True, True, False, True, True, False, True, True]
    assert rollout.rewards[~rollout.valid].abs().sum() == 0
    assert not (rollout.terminated | rollout.truncated)[~rollout.valid].any()


def test_evaluation_plays_whole_games():
    result = evaluate(Still(), scripted(), Streams(0, 0, 2), np.array([2, 1]), 0.0)
    assert [(game.episode_return, game.length) for game in result.episodes] == 3 * [(21, 6)]
    assert result.dropped == 1


# -- the package's own


@pytest.fixture
def _envpool():
    pytest.importorskip("envpool")


needs_envpool = pytest.mark.usefixtures("_envpool")


@needs_envpool
def test_atari_has_the_usual_spaces_and_rewards():
    env = EnvpoolEnv("Breakout-v5").make([1, 2])
    assert env.observation_space == spaces.Box(0, 255, (4, 84, 84), np.uint8)
    assert env.action_space == spaces.Discrete(4)
    steps, statistics = play(env, 600)
    lost = sum(int(step.goes_on.sum()) for step in steps)
    games = len(statistics.finished)
    assert games >= 2
    assert lost >= 4 * games  # five lives
    assert sum(int(step.terminated.sum()) for step in steps) == lost + games
    for number, step in enumerate(steps[:-1]):
        assert ((step.terminated | step.truncated) == ~steps[number + 1].valid).all()
        assert (step.valid | (step.rewards == 0)).all()
        assert step.obs.dtype == np.uint8
    assert np.isin(np.concatenate([step.rewards for step in steps]), [-1, 0, 1]).all()
    env.close()


@needs_envpool
def test_scores_are_as_the_game_gives_them():
    env = EnvpoolEnv("SpaceInvaders-v5", clip_rewards=True).make([1])
    steps, _ = play(env, 200)
    assert max(step.scores[0] for step in steps) >= 5
    assert max(step.rewards[0] for step in steps) == 1
    env.close()
    raw = EnvpoolEnv("SpaceInvaders-v5", clip_rewards=False).make([1])
    others, _ = play(raw, 200)
    assert [step.rewards[0] for step in others] == [step.scores[0] for step in steps]
    assert others[0].scores is None
    raw.close()


@needs_envpool
def test_procgen_ends_as_it_should():
    env = EnvpoolEnv("CoinrunEasy-v0", num_levels=3).make([5, 6])
    assert env.reports_solved
    assert env.observation_space == spaces.Box(0, 255, (64, 64, 3), np.uint8)
    env.reset()
    solved = []
    while not any(solved):  # to the right, with a jump now and then
        result = env.step(np.random.default_rng(len(solved)).choice([7, 7, 8], 2))
        solved += [bool(one) for one in result.solved[result.terminated]] or [False]
        assert not (result.truncated & result.solved).any()
    idle = EnvpoolEnv("CoinrunEasy-v0", num_levels=1).make([5])
    idle.reset()
    ends = [number for number in range(1001) if idle.step(np.array([4])).truncated[0]]
    assert ends == [999]
    env.close(), idle.close()


def test_a_level_that_is_solved_at_its_limit_is_terminated():
    class Simulators(Scripted):
        def step(self, actions):
            flags = np.array([True, True])
            return self._see([0, 1]), np.zeros(2), ~flags, flags, {"prev_level_complete": np.array([1, 0])}

    env = EnvpoolProcgen(Simulators)
    env.reset()
    result = env.step(np.zeros(2, int))
    assert result.terminated.tolist() == [True, False]
    assert result.truncated.tolist() == [False, True]


@needs_envpool
@pytest.mark.parametrize("id", ["Pong-v5", "CoinrunEasy-v0"])
def test_seeds_are_those_of_single_environments_and_reset_starts_again(id):
    def story(env):
        steps, _ = play(env, 30)
        return steps

    pair = EnvpoolEnv(id, num_threads=1).make([3, 4])
    steps = story(pair)
    assert any((step.obs[0] != step.obs[1]).any() for step in steps)
    for first, second in zip(steps, story(pair)):
        assert_same_step(first, second)
    pair.close()
    twins = EnvpoolEnv(id).make([4, 4])
    assert (twins.reset()[0] == twins.reset()[1]).all()
    twins.close()


@needs_envpool
def test_a_game_that_is_broken_off_in_its_midst_begins_anew():
    env = EnvpoolEnv("Breakout-v5").make([1, 2])
    statistics = play(env, 40)[1]
    assert statistics.lengths.min() > 20
    env.end_episodes(np.array([True, False]))
    result = env.step(np.zeros(2, int))
    assert (result.obs[0] == result.obs[0, :1]).all()
    assert result.valid.tolist() == [False, True]
    env.close()


@needs_envpool
def test_closing_ends_its_threads():
    def threads():
        return len(os.listdir("/proc/self/task"))

    env = EnvpoolEnv("Pong-v5", num_threads=3).make([1, 2, 3])
    before = threads()
    env.reset()
    env.step(np.zeros(3, int))
    env.close()
    env.close()
    for _ in range(50):
        if threads() <= before - 3:
            break
        time.sleep(0.1)
    assert threads() <= before - 3


@needs_envpool
def test_pictures_of_a_video():
    for id, shape, fps in (("Pong-v5", (2, 210, 160, 3), 15), ("CoinrunEasy-v0", (2, 64, 64, 3), 15)):
        env = EnvpoolEnv(id).make_rendering([1, 2])
        env.reset()
        pictures = env.render()
        assert (pictures.shape, pictures.dtype, env.render_fps) == (shape, np.uint8, fps)
        assert (pictures[..., 0] != pictures[..., 1]).any()
        env.close()


@needs_envpool
def test_its_state_cannot_be_saved():
    env = EnvpoolEnv("Pong-v5").make([1])
    env.reset()
    with pytest.raises(NotRestorableError, match="envpool does not save and restore its simulators"):
        env.state_dict()
    assert "envpool" in env.why_not_restorable()
    env.close()


@needs_envpool
@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"id": "Pongg-v5"}, "--data.env.id=Pongg-v5 is not known to envpool. Did you mean Pong-v5"),
        ({"id": "ALE/Breakout-v5"}, "not known to envpool. Did you mean Breakout-v5?"),
        ({"id": "CartPole-v1"}, "CartPole-v1 is neither an Atari nor a Procgen game: use GymnasiumEnv"),
        ({"id": "Pong-v5", "num_levels": 5}, "num_levels=5 is for Procgen games, which Pong-v5 is not: leave it out"),
        ({"id": "CoinrunHard-v0", "frame_skip": 3}, "frame_skip=3 is for Atari games, which CoinrunHard-v0 is not"),
    ],
)
def test_what_it_cannot_play_is_refused(settings, message):
    with pytest.raises(ConfigurationError, match=message):
        EnvpoolEnv(**settings).make([0])


@pytest.mark.parametrize(
    ("setting", "message"),
    [
        ({"frame_skip": 1}, "--data.env.frame_skip must be at least 2, not 1"),
        ({"frame_stack": 0}, "--data.env.frame_stack must be at least 1"),
        ({"noop_max": 0}, "--data.env.noop_max must be at least 1"),
        ({"screen_size": 0}, "--data.env.screen_size must be at least 1"),
        ({"repeat_action_probability": 1.0}, "--data.env.repeat_action_probability must be .* less than 1"),
        ({"max_num_frames": 3}, "--data.env.max_num_frames must be at least 4"),
        ({"num_threads": -1}, "--data.env.num_threads must be at least 0"),
        ({"num_levels": -1}, "--data.env.num_levels must be at least 0"),
        ({"start_level": -1}, "--data.env.start_level must be at least 0"),
    ],
)
def test_numbers_outside_their_range_are_refused(setting, message):
    with pytest.raises(ConfigurationError, match=message):
        EnvpoolEnv("Pong-v5", **setting)


def test_a_missing_package_is_told_by_its_extra(monkeypatch):
    real = builtins.__import__

    def missing(name, *args, **kwargs):
        if name == "envpool":
            raise ModuleNotFoundError("No module named 'envpool'")
        return real(name, *args, **kwargs)

    monkeypatch.setattr(builtins, "__import__", missing)
    with pytest.raises(ConfigurationError, match=r"needs the envpool package, .*'ppo-lightning\[envpool\]'"):
        EnvpoolEnv("Pong-v5").make([0])


@needs_envpool
def test_nothing_is_printed():
    code = "from ppo_lightning.envs import EnvpoolEnv; EnvpoolEnv('Pong-v5').make([0]).close()"
    done = subprocess.run([sys.executable, "-c", code], cwd=REPOSITORY, capture_output=True, text=True)
    assert (done.returncode, done.stdout + done.stderr) == (0, "")


@needs_envpool
@pytest.mark.parametrize("game", ["Breakout", "Seaquest"])
def test_its_pictures_are_those_of_gymnasiums_preprocessing(game):
    pytest.importorskip("ale_py")
    pytest.importorskip("cv2")
    env, other = EnvpoolEnv(f"{game}-v5", noop_max=1, episodic_life=False).make([1]), reference(game, noop_max=0)
    env.reset(), other.reset(seed=1)
    fire = other.unwrapped.get_action_meanings().index("FIRE")
    other.unwrapped.step(fire)  # for one frame, where AtariEnv holds it for a step
    rng = np.random.default_rng(0)
    for number in range(60):
        action = rng.integers(env.action_space.n)
        result, (obs, reward, *_) = env.step(np.array([action])), other.step(action)
        assert result.scores[0] == reward
        if number >= 3:
            np.testing.assert_array_equal(result.obs[0], obs)
    env.close()


@needs_envpool
def test_a_resumed_run_says_that_it_starts_fresh_episodes(tmp_path):
    data = {"env": EnvpoolEnv("Pong-v5", screen_size=36), "num_envs": 2, "num_steps": 4, "iterations": 2}
    small = functools.partial(ActorCritic, shared=True, encoder=functools.partial(NatureCNN, hidden_dim=4))
    trainer = make_trainer(tmp_path, max_epochs=1)
    trainer.fit(make_ppo(network=small), make_data(**data))
    trainer.save_checkpoint(tmp_path / "one.ckpt")
    with pytest.warns(UserWarning, match="fresh episodes, from new seeds: envpool does not save and restore"):
        make_trainer(tmp_path).fit(
            make_ppo(network=small), make_data(**data), ckpt_path=tmp_path / "one.ckpt", weights_only=True
        )
