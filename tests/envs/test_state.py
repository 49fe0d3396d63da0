"""What a simulator's state is taken from and what it is loaded into go on alike, to the last bit."""

import importlib
import itertools

import gymnasium
import hypothesis.strategies as st
import numpy as np
import pytest
from gymnasium import wrappers
from gymnasium.envs.classic_control import CartPoleEnv
from gymnasium.vector import AutoresetMode, SyncVectorEnv
from hypothesis import given, settings

from ppo_lightning.core.errors import NotRestorableError
from ppo_lightning.envs import GymnasiumEnv, ProcgenEnv
from ppo_lightning.envs.state import CODECS, Recorder, layers_of, load_layers, save_layers
from tests.core.test_plain import same
from tests.envs.states import assert_same, assert_same_step, draw, taken, through_a_file
from tests.stateful import SIMULATORS, case, newest


def skip_without(simulator):
    if simulator.missing():
        pytest.skip(f"needs {', '.join(simulator.missing())}")


def go_on(saved, restored, steps, rng):
    """Plays the same actions in each; returns how many episodes ended."""
    ends = 0
    for _ in range(steps):
        actions = draw(saved, rng)
        step = saved.step(actions)
        for env in restored:
            assert_same_step(env.step(actions), step)
        ends += int((step.terminated | step.truncated).sum())
    return ends


@pytest.mark.parametrize("simulator", SIMULATORS, ids=lambda simulator: simulator.name)
def test_a_restored_simulator_goes_on_as_the_saved_one(simulator):
    skip_without(simulator)
    rng = np.random.default_rng(1)
    seeds = range(simulator.num_envs)
    saved, undisturbed = simulator.make(seeds), simulator.make(seeds)
    fresh, played = simulator.make([seed + 90 for seed in seeds]), simulator.make([seed + 70 for seed in seeds])
    for env in (saved, undisturbed, played):
        env.reset()
    for number in range(simulator.before):
        actions = draw(saved, rng)
        saved.step(actions), undisturbed.step(actions), played.step(draw(saved, rng))
        if number % 10 == 0:
            saved.state_dict()
    state = saved.state_dict()
    read = through_a_file(state)
    fresh.load_state_dict(read)
    played.load_state_dict(read)
    assert same(through_a_file(fresh.state_dict()), read)
    assert go_on(saved, [undisturbed, fresh, played], simulator.after, rng)
    # nothing of what was taken or read has changed with the simulators
    again = simulator.make([seed + 50 for seed in seeds])
    again.load_state_dict(state)
    played.load_state_dict(read)
    go_on(again, [played], 20, rng)
    for env in (saved, undisturbed, fresh, played, again):
        env.close()


@pytest.mark.parametrize(
    "simulator", [one for one in SIMULATORS if not (one.needs or "async" in one.name)], ids=lambda one: one.name
)
def test_a_state_can_be_taken_after_any_step(simulator):
    rng = np.random.default_rng(2)
    saved, restored = simulator.make([0, 1]), simulator.make([60, 61])
    saved.reset()
    for _ in range(70):
        restored.load_state_dict(saved.state_dict())
        actions = draw(saved, rng)
        assert_same_step(restored.step(actions), saved.step(actions))


def codecs_of(simulator):
    env = simulator.make([0, 1])
    kinds = [type(env.env)]
    if isinstance(env.env, SyncVectorEnv):
        layers = list(layers_of(env.env.envs[0].env))
        kinds = [type(layer.env if isinstance(layer, Recorder) else layer) for layer in layers]
    env.close()
    return {f"{kind.__module__}:{kind.__qualname__}" for kind in kinds}


@pytest.mark.parametrize(
    "simulator", [simulator for simulator in SIMULATORS if simulator.proves], ids=lambda simulator: simulator.name
)
def test_cases_prove_what_they_say(simulator):
    skip_without(simulator)
    assert codecs_of(simulator) >= set(simulator.proves)


def exists(key):
    module, _, name = key.partition(":")
    try:
        return hasattr(importlib.import_module(module), name)
    except (ImportError, gymnasium.error.DependencyNotInstalled):
        return False


def test_every_codec_has_a_case():
    proven = {key for simulator in SIMULATORS for key in simulator.proves}
    assert {key for key in CODECS if exists(key)} <= proven


WRAPPINGS = {
    "plain": (),
    "stack": (lambda env: wrappers.FrameStackObservation(env, 3),),
    "sticky": (lambda env: wrappers.StickyAction(env, 0.5, 3), lambda env: wrappers.TimeLimit(env, 7)),
    "normalised": (wrappers.NormalizeObservation, wrappers.NormalizeReward),
}


@given(
    st.integers(0, 60),
    st.sampled_from(["CartPole-v1", "MountainCar-v0", "FrozenLake-v1", "Film-v0"]),
    st.sampled_from(sorted(WRAPPINGS)),
    st.sampled_from([None, AutoresetMode.NEXT_STEP]),
    st.booleans(),
)
@settings(max_examples=40)
def test_whenever_the_state_is_taken(steps, id, wrapping, mode, breaks_off):
    if id == "FrozenLake-v1" and wrapping in ("stack", "normalised"):  # its observations are numbers
        wrapping = "sticky"
    (simulator,) = case("", id, *WRAPPINGS[wrapping], lambda env: wrappers.TimeLimit(env, 20), mode=mode)
    rng = np.random.default_rng(steps)
    saved, fresh = simulator.make([0, 1]), simulator.make([5, 6])
    saved.reset()
    for _ in range(steps):
        saved.step(draw(saved, rng))
    if breaks_off:
        saved.end_episodes(np.array([True, False]))
    fresh.load_state_dict(through_a_file(saved.state_dict()))
    assert go_on(saved, [fresh], 45, rng)


def test_a_state_can_be_loaded_and_taken_again_before_any_step():
    (simulator,) = case("", "CartPole-v1", lambda env: wrappers.TimeLimit(env, 4), mode=AutoresetMode.NEXT_STEP)
    envs = [simulator.make([seed]) for seed in range(3)]
    envs[0].reset()
    for _ in range(4):
        last = envs[0].step(np.zeros(1, np.int64))
    assert last.truncated.all()
    for before, after in itertools.pairwise(envs):
        after.load_state_dict(before.state_dict())
    assert go_on(envs[0], envs[1:], 20, np.random.default_rng(0))


def test_a_wrapper_that_resets_its_environment_itself():
    def make():
        return wrappers.Autoreset(wrappers.TimeLimit(CartPoleEnv(), 3))

    saved, restored = make(), make()
    saved.reset(seed=0)
    for _ in range(3):
        *_, truncated, _ = saved.step(1)
    assert truncated
    restored.reset(seed=9)
    load_layers(restored, save_layers(saved))
    for _ in range(12):
        first, second = saved.step(1), restored.step(1)
        assert first[0].tolist() == second[0].tolist()
        assert first[1:4] == second[1:4]


def test_statistics_of_episodes_go_on():
    (simulator,) = case("", "CartPole-v1", wrappers.RecordEpisodeStatistics)
    saved, restored = simulator.make([0]), simulator.make([8])
    saved.reset()
    rng = np.random.default_rng(0)
    for _ in range(70):
        saved.step(draw(saved, rng))
    restored.load_state_dict(through_a_file(saved.state_dict()))
    go_on(saved, [restored], 70, rng)
    (first,), (second,) = saved.env.envs, restored.env.envs
    for name in ("return_queue", "length_queue", "episode_count"):
        assert first.get_wrapper_attr(name) == second.get_wrapper_attr(name)
    assert list(first.get_wrapper_attr("time_queue"))[:2] == list(second.get_wrapper_attr("time_queue"))[:2]


def test_frames_that_an_episode_cut_short_leaves_behind():
    (simulator,) = case("", "CartPole-v1", lambda env: wrappers.MaxAndSkipObservation(env, 3))
    rng = np.random.default_rng(0)
    saved = simulator.make([0, 1])
    saved.reset()
    for _ in range(40):
        restored = simulator.make([60, 61])
        restored.load_state_dict(saved.state_dict())
        actions = draw(saved, rng)
        assert_same_step(restored.step(actions), saved.step(actions))


def test_a_fickle_passenger_stays_so():
    taxis = [GymnasiumEnv(newest("Taxi")).make([seed]) for seed in range(2)]
    taxis[0].reset()
    bases = [taxi.env.envs[0].unwrapped for taxi in taxis]
    if not hasattr(bases[0], "fickle_step"):
        pytest.skip("this version of Gymnasium has none")
    bases[0].fickle_step = True
    taxis[1].load_state_dict(through_a_file(taxis[0].state_dict()))
    assert bases[1].fickle_step is True


def test_what_a_walker_is_given_the_new_worlds_for():
    pytest.importorskip("Box2D")
    env = GymnasiumEnv("BipedalWalker-v3", wrappers=[lambda env: wrappers.TimeLimit(env, 60)]).make([3])
    first = env.reset()
    world = env.env.envs[0].unwrapped.world
    actions = np.random.default_rng(0).uniform(-1, 1, (60, 1, 4)).astype(np.float32)
    episode = [env.step(action).rewards[0] for action in actions]
    assert env.env.envs[0].unwrapped.world is not world
    assert first.tobytes() == env.reset().tobytes()  # seeded again
    assert [env.step(action).rewards[0] for action in actions] == episode


def test_a_replay_that_leads_elsewhere_is_noticed():
    pytest.importorskip("Box2D")
    env = GymnasiumEnv("LunarLander-v3").make([3])
    env.reset()
    for _ in range(30):
        env.step(np.array([2]))
    state = env.state_dict()
    other = GymnasiumEnv("LunarLander-v3", kwargs={"gravity": -5.0}).make([3])
    with pytest.raises(NotRestorableError, match="LunarLander: its 30 steps, played again, led elsewhere"):
        other.load_state_dict(state)


class TestProcgen:
    def make(self, game="coinrun", seeds=(0, 1), **settings):
        pytest.importorskip("procgen")
        return ProcgenEnv(game, "easy", num_threads=1, **settings).make(seeds)

    def test_states_of_others_are_refused(self):
        state = taken(self.make())
        with pytest.raises(NotRestorableError, match="one of coinrun, not of maze"):
            self.make("maze").load_state_dict(state)
        with pytest.raises(NotRestorableError, match="2 environments, not of 3"):
            self.make(seeds=(0, 1, 2)).load_state_dict(state)
        state["simulators"][1]["data"][8:15] = state["simulators"][1]["data"][8:15].flip(0)
        with pytest.raises(NotRestorableError, match="not of coinrun"):
            self.make().load_state_dict(state)

    def test_the_observation_to_act_on_and_the_infos_come_back_too(self):
        saved, restored = self.make(), self.make(seeds=(7, 8))
        saved.reset(), restored.reset()
        rng = np.random.default_rng(0)
        for _ in range(120):
            last = saved.step(draw(saved, rng))
        restored.load_state_dict(through_a_file(saved.state_dict()))
        assert_same(restored._observe()[1], last.obs)
        assert restored._simulator.get_info() == saved._simulator.get_info()

    def test_a_reset_after_the_restore_starts_from_the_own_seeds(self):
        state = taken(self.make())
        restored, fresh = self.make(seeds=(7, 8)), self.make(seeds=(7, 8))
        restored.load_state_dict(state)
        assert_same(restored.reset(), fresh.reset())

    def test_the_levels_are_those_of_the_state(self):
        saved = self.make(num_levels=1, start_level=40)
        restored = self.make(num_levels=3, start_level=70)
        restored.load_state_dict(taken(saved))
        levels = set()
        for _ in range(60):
            restored.end_episodes(np.array([True, True]))
            restored.step(np.zeros(2, np.int64))
            levels |= {info["level_seed"] for info in restored._simulator.get_info()}
        assert levels == {40}
