"""An environment that raises, in this process or in another, and in either mode of resetting."""

import copy
import pickle
import traceback

import gymnasium
import numpy as np
import pytest
from gymnasium.vector import AutoresetMode

from ppo_lightning.core.errors import ConfigurationError
from ppo_lightning.envs import GymnasiumEnv
from ppo_lightning.envs.restart import DIED, RAISED, Failure, Restarting, derive_seed
from tests.faults import Faulty, SimulatorError, make_faulty

SAME, NEXT = AutoresetMode.SAME_STEP, AutoresetMode.NEXT_STEP
EVERYWHERE = [(vectorization, mode) for vectorization in ("sync", "async") for mode in (SAME, NEXT)]
LONG = [(9, "terminated")]
everywhere = pytest.mark.parametrize(("vectorization", "mode"), EVERYWHERE)
pytestmark = pytest.mark.filterwarnings("ignore:Environment .* was restarted")


def still(num_envs):
    return np.zeros(num_envs, dtype=np.int64)


def play(env, num_steps):
    for _ in range(num_steps):
        env.step(still(env.num_envs))


def step_of(result, row):
    """What the contract tells of one environment."""
    names = ("rewards", "terminated", "truncated", "valid", "episode_starts")
    dropped = result.dropped is not None and bool(result.dropped[row])
    return [*(getattr(result, name)[row].item() for name in names), dropped]


@everywhere
def test_a_step_that_fails_counts_for_nothing_and_a_new_episode_starts(vectorization, mode):
    env = make_faulty([3, 4], [[3, 0, 2, "raise"]], vectorization, mode=mode, script=LONG)
    env.reset()
    results = [env.step(still(2)) for _ in range(5)]
    assert [step_of(result, 0) for result in results[:3]] == [
        [300, False, False, True, False, False],
        [301, False, False, True, False, False],
        [0, False, False, False, True, True],
    ]
    seed = np.float32(derive_seed(3, RAISED, 1))
    assert [result.obs[0].tolist() for result in results] == [
        [3, 0, 1], [3, 0, 2], [seed, 0, 0], [seed, 0, 1], [seed, 0, 2],
    ]  # fmt: skip
    assert results[3].valid.all()
    assert [result.obs[1].tolist() for result in results] == [[4, 0, t] for t in range(1, 6)]
    assert not any(step_of(result, 1)[-1] for result in results)
    assert env.restarts == 1
    env.close()


@everywhere
def test_a_reset_that_fails_between_episodes_loses_none(vectorization, mode):
    env = make_faulty([0], [[0, 1, -1, "raise"]], vectorization, mode=mode, script=[(2, "truncated")])
    env.reset()
    results = [env.step(still(1)) for _ in range(4)]
    assert step_of(results[1], 0) == [1, False, True, True, mode == SAME, False]
    assert results[1].final_obs.tolist() == [[0, 0, 2]]
    first = 1 if mode == SAME else 2
    seed = np.float32(derive_seed(0, RAISED, 1))
    assert results[first].obs.tolist() == [[seed, 0, 0]]
    assert results[first].episode_starts.all()
    assert results[first + 1].obs.tolist() == [[seed, 0, 1]]
    assert results[first + 1].valid.all()
    assert env.restarts == 1
    assert not any(step_of(result, 0)[-1] for result in results)
    env.close()


@everywhere
def test_an_episode_that_was_broken_off_is_not_dropped_besides(vectorization, mode):
    env = make_faulty([0, 1], [[0, 0, 1, "raise"], [1, 1, -1, "raise"]], vectorization, mode=mode, script=LONG)
    env.reset()
    env.step(still(2))
    assert env.end_episodes(np.array([True, True]))
    result = env.step(still(2))  # the first fails in the step, the second in the reset after it
    assert [step_of(result, row) for row in (0, 1)] == [[0, False, False, False, True, False]] * 2
    assert result.obs[:, 2].tolist() == [0, 0]
    assert env.restarts == 2
    assert env.step(still(2)).obs[:, 2].tolist() == [1, 1]
    env.close()


@everywhere
def test_two_failures_in_one_step_and_more_in_the_restart_are_all_counted(vectorization, mode):
    again = derive_seed(0, RAISED, 1)
    faults = [[0, 0, 1, "raise"], [again, 0, -1, "raise"], [1, 0, 1, "raise"]]
    env = make_faulty([0, 1], faults, vectorization, mode=mode, script=LONG)
    env.reset()
    env.step(still(2))
    result = env.step(still(2))
    assert result.dropped.all()
    assert env.restarts == 3
    assert result.obs.tolist() == [[np.float32(derive_seed(s, RAISED, n)), 0, 0] for s, n in ((0, 2), (1, 1))]
    env.close()


@everywhere
@pytest.mark.parametrize("how", ["raise", "local"])
@pytest.mark.parametrize("limit", [0, 1, 2])
def test_past_the_limit_the_environments_own_error_is_raised(vectorization, mode, limit, how):
    """The count is that of all environments together."""
    env = make_faulty([0, 1], [[None, None, 1, how]], vectorization, limit, mode, script=LONG)
    env.reset()
    with pytest.raises(Exception, match=r"the (simulator crashed|local text)") as caught:
        play(env, 4)
    assert env.restarts == limit
    if how == "raise":
        assert type(caught.value) is SimulatorError
        assert caught.value.code == 7
    text = "".join(traceback.format_exception(caught.type, caught.value, caught.value.__traceback__))
    assert "in fail\n" in text  # the line of the simulator
    env.close()


@everywhere
def test_an_environment_that_fails_in_every_restart_ends_with_its_error(vectorization, mode):
    env = make_faulty([0], [[0, 0, 1, "raise"], [None, 0, -1, "raise"]], vectorization, mode=mode, limit=0)
    with pytest.raises(SimulatorError):  # its first reset is a mistake to report
        env.reset()
    env.close()
    env = make_faulty([0], [[0, 0, 1, "raise"], *[[derive_seed(0, RAISED, n), 0, -1, "raise"] for n in range(1, 5)]],
                      vectorization, mode=mode, limit=4)  # fmt: skip
    env.reset()
    env.step(still(1))
    with pytest.raises(SimulatorError):
        env.step(still(1))
    env.close()


@pytest.mark.parametrize("vectorization", ["sync", "async"])
def test_the_first_reset_is_restarted_only_where_asked_for(vectorization):
    faults = [[0, 0, -1, "raise"]]
    env = make_faulty([0], faults, vectorization)
    with pytest.raises(SimulatorError):
        env.reset()
    env.close()
    env = make_faulty([0], faults, vectorization, limit=0)
    env.allow_restarts(1, at_once=True)
    assert env.reset().tolist() == [[np.float32(derive_seed(0, RAISED, 1)), 0, 0]]
    assert env.restarts == 1
    env.close()


@pytest.mark.parametrize("vectorization", ["sync", "async"])
def test_a_warning_names_environment_error_and_what_is_left(vectorization):
    env = make_faulty([0, 1], [[1, 0, 1, "raise"]], vectorization, limit=3, script=LONG)
    env.allow_restarts(3, "Rank 2's environment")
    env.reset()
    env.step(still(2))
    with pytest.warns(UserWarning, match="Rank 2") as caught:
        env.step(still(2))
    assert [str(warning.message) for warning in caught] == [
        "Rank 2's environment 1 raised SimulatorError: the simulator crashed (7); it was restarted and its unfinished "
        "episode dropped (2 restarts left of --data.max_env_restarts=3)."
    ]
    env.close()


def test_an_interrupt_is_never_swallowed():
    env = make_faulty([0], [[0, 0, 1, "interrupt"]])
    env.reset()
    env.step(still(1))
    with pytest.raises(KeyboardInterrupt):
        env.step(still(1))
    assert env.restarts == 0


def test_a_count_that_is_set_goes_on():
    env = make_faulty([0], [[None, None, 1, "raise"]], limit=5, script=LONG)
    env.reset()
    env.restarts = 4
    env.step(still(1))
    assert env.step(still(1)).dropped.all()
    env.step(still(1))
    with pytest.raises(SimulatorError):
        env.step(still(1))


def test_the_old_environment_is_closed_once_before_the_new_one_is_made():
    env = make_faulty([0], [[None, None, 1, "raise"]], script=LONG)
    made, closed = Faulty.made, Faulty.closed
    env.reset()
    for count in (1, 2, 3):
        env.step(still(1))
        env.step(still(1))
        assert (Faulty.made - made, Faulty.closed - closed) == (count, count)
    env.close()
    env.close()
    assert Faulty.closed - closed == 4


def test_wrappers_are_put_on_again():
    flip = gymnasium.wrappers.TransformReward
    factory = GymnasiumEnv(
        "Faulty-v0", kwargs={"faults": [[0, 0, 1, "raise"]], "script": LONG}, wrappers=[lambda env: flip(env, abs)]
    )
    env = factory.make([0])
    env.allow_restarts(1)
    env.reset()
    env.step(still(1))
    env.step(still(1))
    inner = env.env.envs[0]
    assert isinstance(inner.get_wrapper_attr("first_seed"), int)
    assert "TransformReward" in str(inner)
    env.close()


def test_without_leave_errors_pass():
    env = Restarting(lambda: gymnasium.make("Faulty-v0", faults=[[0, 0, 0, "raise"]]))
    env.reset(seed=0)
    with pytest.raises(SimulatorError):
        env.step(0)
    assert env.restarts == 0


def test_what_cannot_be_made_is_still_a_mistake_in_the_settings():
    with pytest.raises(ConfigurationError, match="cannot be made"):
        GymnasiumEnv("Faulty-v0", kwargs={"odd": 1}).make([0])


def test_seeds_after_restarts_never_meet():
    seeds = {derive_seed(first, cause, n) for first in range(20) for cause in (RAISED, DIED) for n in range(20)}
    assert len(seeds) == 800
    assert derive_seed(0, RAISED, 1) == 1915600865  # a checkpoint's run goes on with the same


def test_a_failure_crosses_processes_more_than_once():
    try:
        raise SimulatorError(7, "x " * 500)
    except SimulatorError as error:
        failure = Failure.of(error)
    assert len(failure.what) < 250
    twice = pickle.loads(pickle.dumps(copy.copy(pickle.loads(pickle.dumps(failure)))))
    assert type(twice.error()) is SimulatorError
    assert "test_a_failure_crosses" in str(twice.error().__cause__)
