"""What cannot be saved or restored is refused by its name, and plays on."""

import gymnasium
import numpy as np
import pytest
from gymnasium import wrappers
from gymnasium.envs.classic_control import CartPoleEnv
from gymnasium.vector import AsyncVectorEnv, AutoresetMode, SyncVectorEnv
from gymnasium.wrappers.vector import RecordEpisodeStatistics

from ppo_lightning.core.errors import NotRestorableError
from ppo_lightning.envs import GymnasiumEnv, VectorEnv
from ppo_lightning.envs.gymnasium_vector import GymnasiumVectorEnv
from tests.envs.states import taken
from tests.stateful import Film, case
from tests.toy import make_toy


class Subclass(CartPoleEnv):
    """Looks like CartPole."""


class Subwrapper(wrappers.TimeLimit):
    """Looks like a time limit."""


class Inherits(Film):
    """Holds more than the methods that it inherits know of."""


class Unsaved(Film):
    """Its state is more than can be saved."""

    def state_dict(self):
        return {"inner": [object()]}

    def load_state_dict(self, state):
        raise AssertionError


class Failing(Film):
    """Its methods have a mistake."""

    def state_dict(self):
        return {"left": self.lefft}

    def load_state_dict(self, state):
        raise AssertionError


class Reluctant(Film):
    """Can be saved, but not restored."""

    def state_dict(self):
        return {}

    def load_state_dict(self, state):
        return state["left"]


for kind in (Subclass, Inherits, Unsaved, Failing, Reluctant):
    gymnasium.register(f"{kind.__name__}-v0", kind)


@pytest.mark.parametrize(
    ("id", "wrapping", "name"),
    [
        ("tests.tasks:Bandit-v0", (), "^the environment Bandit cannot"),
        ("Subclass-v0", (), "^the environment Subclass cannot"),
        ("Inherits-v0", (), "^the environment Inherits cannot"),
        ("CartPole-v1", (lambda env: Subwrapper(env, 9),), "^the wrapper Subwrapper cannot"),
        ("Unsaved-v0", (), r"^the state_dict\(\) of the environment Unsaved: a value of type object"),
        ("Failing-v0", (), r"^the state_dict\(\) of the environment Failing: AttributeError.*lefft"),
    ],
)
@pytest.mark.parametrize("vectorization", ["sync", "async"])
def test_what_cannot_be_saved_is_named_and_plays_on(id, wrapping, name, vectorization):
    env = GymnasiumEnv(id, vectorization, wrappers=list(wrapping)).make([0, 1])
    env.reset()
    for _ in range(2):
        with pytest.raises(NotRestorableError, match=name):
            env.state_dict()
        env.step(np.zeros(2, np.int64))
    assert env.why_not_restorable() is not None
    env.close()


@pytest.mark.parametrize("vectorization", ["sync", "async"])
def test_what_does_not_take_up_its_state_is_named(vectorization):
    env = GymnasiumEnv("Reluctant-v0", vectorization).make([0])
    env.reset()
    assert env.why_not_restorable() is None
    with pytest.raises(NotRestorableError, match=r"^the environment Reluctant did not take up its state: KeyError"):
        env.load_state_dict(env.state_dict())
    env.reset()
    env.step(np.zeros(1, np.int64))
    env.close()


def test_unknown_fields_and_values_are_named():
    env = GymnasiumEnv("CartPole-v1").make([0])
    env.reset()
    env.env.envs[0].unwrapped.wind = 3
    with pytest.raises(NotRestorableError, match="the environment CartPoleEnv has a field that is not known: wind"):
        env.state_dict()
    env = GymnasiumEnv("CartPole-v1").make([0])
    env.reset()
    env.env.envs[0].unwrapped.state = object()
    with pytest.raises(NotRestorableError, match="field state of the environment CartPoleEnv: a value of type object"):
        env.state_dict()
    env = GymnasiumEnv("FrozenLake-v1").make([0])
    assert "FrozenLakeEnv has no field s " in env.why_not_restorable()
    env.reset()
    assert env.why_not_restorable() is None


def test_other_vector_environments_are_named():
    class Other(gymnasium.vector.VectorEnv):
        metadata = {"autoreset_mode": AutoresetMode.SAME_STEP}
        num_envs = 1
        single_observation_space = single_action_space = gymnasium.spaces.Discrete(2)

    with pytest.raises(NotRestorableError, match="Other cannot be saved"):
        GymnasiumVectorEnv(Other(), [0]).state_dict()
    wrapped = RecordEpisodeStatistics(GymnasiumEnv("CartPole-v1").make([0]).env)
    with pytest.raises(NotRestorableError, match="the wrapper RecordEpisodeStatistics"):
        GymnasiumVectorEnv(wrapped, [0]).state_dict()
    for vectorizer in (SyncVectorEnv, AsyncVectorEnv):
        env = make_toy([0], vectorizer=vectorizer)
        env.reset()
        with pytest.raises(NotRestorableError, match="not made by GymnasiumEnv"):
            env.state_dict()
        env.step(np.zeros(1, np.int64))
        env.close()


def test_simulators_without_a_state_say_so():
    class Bare(VectorEnv):
        def reset(self):
            return np.zeros(1)

        def step(self, actions):
            raise AssertionError

        def close(self):
            pass

    assert Bare().why_not_restorable() == "Bare cannot be saved and restored"
    with pytest.raises(NotRestorableError, match="Bare"):
        Bare().load_state_dict({})


def test_states_of_others_are_refused():
    state = taken(GymnasiumEnv("CartPole-v1").make([0, 1]))
    with pytest.raises(NotRestorableError, match="2 environments, not of 3"):
        GymnasiumEnv("CartPole-v1").make([0, 1, 2]).load_state_dict(state)
    with pytest.raises(NotRestorableError, match=r"CartPoleEnv, not of .*Walk"):
        GymnasiumEnv("tests.tasks:Walk-v0").make([0, 1]).load_state_dict(state)
    with pytest.raises(NotRestorableError, match=r"not of .*AcrobotEnv"):
        GymnasiumEnv("Acrobot-v1").make([0, 1]).load_state_dict(state)
    (other_mode,) = case("", "CartPole-v1", mode=AutoresetMode.NEXT_STEP)
    with pytest.raises(NotRestorableError, match="another step"):
        other_mode.make([0, 1]).load_state_dict(state)
    state["simulators"][0][-1][1].pop("state")
    with pytest.raises(NotRestorableError, match="other fields than the saved one: state"):
        GymnasiumEnv("CartPole-v1").make([0, 1]).load_state_dict(state)
