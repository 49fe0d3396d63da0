"""Processes of environments that die, in every moment."""

import os
import signal
import subprocess
import sys
import time

import gymnasium
import numpy as np
import pytest
from gymnasium.vector import AutoresetMode

from ppo_lightning.core.errors import ConfigurationError, NotRestorableError, TrainingError
from ppo_lightning.envs import GymnasiumEnv
from ppo_lightning.envs.restart import DIED, derive_seed
from tests.commands import REPOSITORY
from tests.envs.test_restart import LONG, step_of, still
from tests.faults import Faulty, make_faulty

SAME, NEXT = AutoresetMode.SAME_STEP, AutoresetMode.NEXT_STEP
pytestmark = pytest.mark.filterwarnings("ignore:Environment .* was restarted")


def make(seeds=(0, 1), faults=(), limit=10, mode=SAME, **kwargs):
    return make_faulty(list(seeds), faults, "async", limit, mode, **({"script": LONG} | kwargs))


def kill(env, row, number=signal.SIGKILL):
    process = env.env.processes[row]
    os.kill(process.pid, number)
    process.join(5)


def seed_of(first, count=0):
    return np.float32(derive_seed(first, DIED, count))


@pytest.mark.parametrize("mode", [SAME, NEXT])
@pytest.mark.parametrize("obs", ["box", "dict", "discrete"])
@pytest.mark.parametrize("how", ["exit", "kill"])
def test_a_worker_that_dies_in_a_step_is_replaced(how, obs, mode):
    env = make(faults=[[1, 0, 1, how]], mode=mode, obs=obs)
    env.reset()
    results = [env.step(still(2)) for _ in range(3)]
    assert [step_of(result, 1) for result in results[:2]] == [
        [100, False, False, True, False, False],
        [0, False, False, False, True, True],
    ]
    assert [step_of(result, 0) for result in results] == [[t, False, False, True, False, False] for t in range(3)]
    if obs == "discrete":
        assert [result.obs[1] for result in results] == [101, 100 * derive_seed(1, DIED, 0), results[1].obs[1] + 1]
    else:
        seen = [result.obs["state"] if obs == "dict" else result.obs for result in results]
        assert [x[1].tolist() for x in seen] == [[1, 0, 1], [seed_of(1), 0, 0], [seed_of(1), 0, 1]]
        assert [x[0].tolist() for x in seen] == [[0, 0, 1], [0, 0, 2], [0, 0, 3]]
    if obs == "dict":
        assert [result.obs["image"][1].max() for result in results] == [1, 0, 1]
    assert env.restarts == 1
    env.close()


def test_a_replaced_environment_goes_on_like_any_other():
    env = make([5], script=[(3, "truncated")])
    env.reset()
    kill(env, 0)
    results = [env.step(still(1)) for _ in range(8)]
    seed = seed_of(5)
    assert [result.obs[0, 1:].tolist() for result in results] == [
        [0, 0], [0, 1], [0, 2], [1, 0], [1, 1], [1, 2], [2, 0], [2, 1],
    ]  # fmt: skip
    assert all(result.obs[0, 0] == seed for result in results)
    assert results[3].final_obs.tolist() == [[seed, 0, 3]]
    assert env.end_episodes(np.array([True]))
    assert step_of(env.step(still(1)), 0) == [0, False, False, False, True, False]
    assert env.restarts == 1
    kill(env, 0)
    assert env.step(still(1)).obs.tolist() == [[seed_of(5, 1), 0, 0]]
    env.close()


def test_every_worker_may_die_at_once_and_raise_after_it():
    env = make([0, 1, 2], [[derive_seed(2, DIED, 0), 0, 0, "raise"]])
    env.reset()
    for row in range(3):
        kill(env, row)
    result = env.step(still(3))
    assert result.dropped.all()
    assert result.obs.tolist() == [[seed_of(seed), 0, 0] for seed in range(3)]
    assert env.step(still(3)).dropped.tolist() == [False, False, True]
    assert env.restarts == 4
    env.close()


def test_a_worker_that_dies_while_others_are_reset():
    env = make([0, 1])
    env.reset()
    env.step(still(2))
    env.end_episodes(np.array([True, False]))
    step = env.env.step

    def step_then_die(actions):
        result = step(actions)
        kill(env, 1)
        return result

    env.env.step = step_then_die
    result = env.step(still(2))
    assert [step_of(result, row) for row in (0, 1)] == [
        [0, False, False, False, True, False],
        [0, False, False, False, True, True],
    ]
    assert result.obs.tolist() == [[0, 1, 0], [seed_of(1), 0, 0]]
    env.env.step = step
    assert env.step(still(2)).obs.tolist() == [[0, 1, 1], [seed_of(1), 0, 1]]
    env.close()


@pytest.mark.parametrize("mode", [SAME, NEXT])
def test_a_worker_that_dies_between_its_episodes_loses_none(mode):
    env = make([0, 1], mode=mode, script=[(1, "truncated"), (9, "terminated")])
    env.reset()
    env.end_episodes(np.array([False, True]))
    step = env.env.step

    def step_then_die(actions):
        result = step(actions)
        kill(env, 0)
        return result

    env.env.step = step_then_die
    result = env.step(still(2))  # the first ended, then the second is reset and the first found dead
    assert step_of(result, 0) == [0, False, True, True, True, False]
    assert result.final_obs.tolist() == [[0, 0, 1]]
    assert result.obs[0].tolist() == [seed_of(0), 0, 0]
    assert env.restarts == 1
    env.env.step = step
    after = env.step(still(2))
    assert after.valid.tolist() == [True, True]
    assert after.rewards[0] > 1000
    env.close()


def test_a_call_to_a_dead_worker_is_answered_and_the_loss_told_by_the_next_step():
    env = make([0, 1])
    env.reset()
    env.step(still(2))
    kill(env, 0)
    assert env.env.call("number") == (derive_seed(0, DIED, 0), 1)
    env.env.set_attr("script", [[[9, "terminated"]]] * 2)
    result = env.step(still(2))
    assert result.dropped.tolist() == [True, False]
    assert result.obs.tolist() == [[seed_of(0), 0, 0], [1, 0, 2]]
    assert env.step(still(2)).dropped is None
    env.close()


def test_a_state_is_not_taken_of_another_episode_than_was_seen():
    """Until the next step tells of the loss, the replacement of a worker is ahead of its last observation."""
    env = GymnasiumEnv("CartPole-v1", "async").make([0, 1])
    env.allow_restarts(1)
    env.reset()
    env.step(still(2))
    kill(env, 1)
    for _ in range(2):
        with pytest.raises(NotRestorableError, match="environment 1 was lost after the last step"):
            env.state_dict()
    assert env.step(still(2)).dropped.tolist() == [False, True]
    assert env.state_dict()["num_envs"] == 2
    env.close()


def test_a_worker_that_dies_in_every_restart_ends_with_its_end():
    faults = [[0, 0, 0, "kill"], *[[derive_seed(0, DIED, n), 0, -1, "exit"] for n in range(3)]]
    env = make([0], faults, limit=3)
    env.reset()
    with pytest.raises(TrainingError, match=r"environment 0 .*exit code 3.*--data.max_env_restarts=3"):
        env.step(still(1))
    env.close()


@pytest.mark.parametrize("limit", [0, 2])
def test_past_the_limit_a_sentence_names_environment_and_signal(limit):
    env = make([0, 1], limit=limit)
    env.reset()
    for _ in range(limit):
        kill(env, 1)
        assert env.step(still(2)).dropped.tolist() == [False, True]
    kill(env, 1, signal.SIGALRM)
    with pytest.raises(TrainingError, match=rf"environment 1 .*killed by SIGALRM.*max_env_restarts={limit}: .*[.]$"):
        env.step(still(2))
    env.close()


def test_a_worker_that_dies_as_it_is_made_is_a_mistake_in_the_settings():
    with pytest.raises(ConfigurationError, match="worker process of environment 0 was lost, it ended with exit code 3"):
        GymnasiumEnv("tests.envs.test_workers:Deadly-v0", "async", {"parent": os.getpid()}).make([0, 1])


class Deadly(Faulty):
    def __init__(self, parent):
        super().__init__()
        if os.getpid() != parent:
            os._exit(3)


class Hanging(Faulty):
    """Neither steps, closes nor ends when it is told to."""

    def step(self, action):
        signal.signal(signal.SIGTERM, lambda *_: None)
        while True:
            time.sleep(1)


gymnasium.register("Deadly-v0", Deadly, disable_env_checker=True)
gymnasium.register("Hanging-v0", Hanging, disable_env_checker=True, order_enforce=False)


def is_gone(pid):
    try:
        os.kill(pid, 0)
    except ProcessLookupError:
        return True
    return False


@pytest.mark.parametrize("number", [signal.SIGKILL, signal.SIGTERM])
def test_closing_with_dead_workers_is_quick_and_silent(number, capfd, recwarn):
    env = make([0, 1, 2])
    env.reset()
    env.step(still(3))
    for row in (0, 2):
        os.kill(env.env.processes[row].pid, number)
    started = time.monotonic()
    env.close()
    env.close()
    assert time.monotonic() - started < 4
    assert all(is_gone(process.pid) for process in env.env.processes)
    assert capfd.readouterr() == ("", "")
    assert not recwarn.list


def test_closing_amid_a_step_is_silent(capfd, recwarn):
    env = make([0, 1])
    env.reset()
    env.env.step_async(still(2))
    env.close()
    assert all(is_gone(process.pid) for process in env.env.processes)
    assert capfd.readouterr() == ("", "")
    assert not recwarn.list


def test_closing_ends_a_worker_that_hangs(monkeypatch):
    monkeypatch.setattr("ppo_lightning.envs.workers._PATIENCE", 0.2)
    env = GymnasiumEnv("Hanging-v0", "async").make([0])
    env.reset()
    env.env.step_async(still(1))
    time.sleep(0.3)
    env.close()
    assert is_gone(env.env.processes[0].pid)


def test_workers_leave_ctrl_c_to_their_parent():
    env = make([0, 1])
    env.reset()
    for process in env.env.processes:
        os.kill(process.pid, signal.SIGINT)
    time.sleep(0.2)
    assert env.step(still(2)).dropped is None
    env.close()


def test_workers_outlive_a_sigterm_for_a_while(monkeypatch):
    """It often goes to the whole group: what the parent does about it may take until the rollout's end."""
    monkeypatch.setattr("ppo_lightning.envs.workers._GRACE", 1)
    env = make([0, 1])
    env.reset()
    for process in env.env.processes:
        os.kill(process.pid, signal.SIGTERM)
    assert env.step(still(2)).dropped is None
    env.env.processes[0].join(5)
    assert env.env.processes[0].exitcode == -signal.SIGALRM
    env.close()


def test_a_program_that_never_closes_ends_at_once():
    program = "import time; from tests.envs.test_workers import make; env = make([0, 1]); env.reset(); "
    program += "print(time.monotonic())"
    done = subprocess.run([sys.executable, "-c", program], cwd=REPOSITORY, check=True, capture_output=True, timeout=120)
    assert time.monotonic() - float(done.stdout) < 15  # less than the workers' grace
