"""A deterministic environment whose simulator fails at chosen places."""

import functools
import os
import signal

import gymnasium
from gymnasium.vector import SyncVectorEnv

from ppo_lightning.envs import GymnasiumEnv
from ppo_lightning.envs.gymnasium import _make_one
from ppo_lightning.envs.gymnasium_vector import GymnasiumVectorEnv
from ppo_lightning.envs.workers import Workers
from tests.tasks import Walk
from tests.toy import ToyEnv


class SimulatorError(Exception):
    """An error that cannot be rebuilt from its text alone."""

    def __init__(self, code, text):
        super().__init__(f"{text} ({code})")
        self.code, self.text = code, text

    def __reduce__(self):
        return SimulatorError, (self.code, self.text)


def fail(how):
    if how == "exit":
        os._exit(3)
    elif how == "kill":
        os.kill(os.getpid(), signal.SIGKILL)
    elif how == "local":
        raise type("LocalError", (ValueError,), {})("the local text")
    elif how == "interrupt":
        raise KeyboardInterrupt
    raise SimulatorError(7, "the simulator crashed")


class Faulty(ToyEnv):
    """A toy that fails before step ``t`` of episode ``e`` of seed ``s`` (any where null), for each [s, e, t, how].

    A reset is step -1. ``how`` is raise, local (an error that cannot be sent to another process), exit, kill or
    interrupt.
    """

    made = 0  # in this process
    closed = 0

    def __init__(self, faults=(), **kwargs):
        super().__init__(**kwargs)
        self.faults = faults
        Faulty.made += 1

    def _fail(self, time):
        for seed, episode, at, how in self.faults:
            if seed in (None, self.number) and episode in (None, self.episode) and at == time:
                fail(how)

    def reset(self, *, seed=None, options=None):
        result = super().reset(seed=seed)
        self._fail(-1)
        return result

    def step(self, action):
        self._fail(self.time)
        return super().step(action)

    def close(self):
        Faulty.closed += 1


class FaultyWalk(Walk):
    """A walk whose object fails in the step after its first ``after``; each that is made anew lasts as long.

    ``rank`` fails only in that process of several, ``how`` is as above.
    """

    def __init__(self, after=20, how="raise", rank=None):
        self.left, self.how = after, how
        if rank is not None and os.environ.get("LOCAL_RANK", "0") != str(rank):
            self.left = 1_000_000

    def step(self, action):
        self.left -= 1
        if self.left < 0:
            fail(self.how)
        return super().step(action)


class NoReset(Walk):
    """A walk that cannot even begin."""

    def reset(self, *, seed=None, options=None):
        raise SimulatorError(1, "there is no floor")


gymnasium.register("FaultyWalk-v0", FaultyWalk, disable_env_checker=True)
gymnasium.register("NoReset-v0", NoReset, disable_env_checker=True)
gymnasium.register("Faulty-v0", Faulty, disable_env_checker=True, order_enforce=False)


def make_faulty(seeds, faults, vectorization="sync", limit=10, mode=None, **kwargs):
    """Behind the contract; ``mode`` is that of the reset, where it is not the factory's own."""
    factory = GymnasiumEnv("tests.faults:Faulty-v0", vectorization, {"faults": faults, **kwargs})
    if mode is None:
        env = factory.make(seeds)
    else:
        make_one = functools.partial(_make_one, factory.id, factory.kwargs, [])
        vector = {"sync": SyncVectorEnv, "async": Workers}[vectorization]([make_one] * len(seeds), autoreset_mode=mode)
        env = GymnasiumVectorEnv(vector, seeds, can_restart=True)
    env.allow_restarts(limit)
    return env
