import gymnasium
import numpy as np
import pytest
from gymnasium import spaces

from ppo_lightning.core.errors import ConfigurationError
from ppo_lightning.envs import GymnasiumEnv
from ppo_lightning.envs.wrappers import ActionMaskWrapper, NoisyObservation, SelectObservation
from tests.tasks import DictWalk, Fork, Walk


def test_both_observations_are_there_and_the_noise_has_its_std():
    env = NoisyObservation(gymnasium.make("Pendulum-v1"), std=[0.5, 0.0, 2.0])
    assert isinstance(env.observation_space, spaces.Dict)
    obs, _ = env.reset(seed=1)
    seen = [obs, *(env.step(np.float32([0.5]))[0] for _ in range(199))]
    noise = np.stack([part["noisy"] - part["clean"] for part in seen])
    assert all(env.observation_space.contains(part) for part in seen)
    np.testing.assert_allclose(noise.std(axis=0), [0.5, 0, 2], rtol=0.15)
    np.testing.assert_allclose(noise.mean(axis=0), 0, atol=0.4)


def test_the_noise_is_a_function_of_the_seed_and_the_truth_is_the_environments_own():
    plain, first, second = gymnasium.make("Pendulum-v1"), *(NoisyObservation(gymnasium.make("Pendulum-v1")),) * 2
    truth = plain.reset(seed=5)[0]
    one = first.reset(seed=5)[0]
    np.testing.assert_array_equal(one["clean"], truth)
    np.testing.assert_array_equal(one["noisy"], second.reset(seed=5)[0]["noisy"])
    assert one["noisy"].dtype == truth.dtype


@pytest.mark.parametrize("std", [-0.1, [0.1, 0.2], float("nan"), float("inf")])
def test_a_wrong_std_is_refused(std):
    with pytest.raises(ConfigurationError, match=r"NoisyObservation\.std"):
        NoisyObservation(gymnasium.make("Pendulum-v1"), std)


def test_observations_that_are_no_floats_are_refused():
    with pytest.raises(ConfigurationError, match="Box of floats"):
        NoisyObservation(gymnasium.make("FrozenLake-v1"))


def test_some_of_an_observations_numbers_are_left_in_the_order_given():
    env, whole = SelectObservation(gymnasium.make("CartPole-v1"), [2, 0]), gymnasium.make("CartPole-v1")
    obs, full = env.reset(seed=3)[0], whole.reset(seed=3)[0]
    np.testing.assert_array_equal(obs, full[[2, 0]])
    assert env.observation_space.contains(obs)
    np.testing.assert_array_equal(env.observation_space.high, whole.observation_space.high[[2, 0]])
    np.testing.assert_array_equal(env.step(1)[0], whole.step(1)[0][[2, 0]])


@pytest.mark.parametrize("indices", [[], [4], [-1], [0, 7]])
def test_numbers_that_an_observation_lacks_are_refused(indices):
    with pytest.raises(ConfigurationError, match=r"SelectObservation\.indices=.* must be of 0 to 3, at least one\.$"):
        SelectObservation(gymnasium.make("CartPole-v1"), indices)


def test_numbers_of_observations_that_are_no_vectors_are_refused():
    with pytest.raises(ConfigurationError, match="Box of one dimension, not for Discrete"):
        SelectObservation(gymnasium.make("FrozenLake-v1"), [0])


# -- masks

TOLD = {"info": {}, "method": {"method": "action_masks"}}


@pytest.mark.parametrize("actions", Fork.ACTIONS)
@pytest.mark.parametrize("told", TOLD)
def test_a_mask_that_is_told_elsewhere_is_observed(told, actions):
    plain, env = Fork(actions), ActionMaskWrapper(Fork(actions, told), **TOLD[told])
    size = spaces.flatdim(env.action_space)
    assert env.observation_space == spaces.Dict(obs=Walk.observation_space, action_mask=spaces.MultiBinary(size))
    first, (obs, _) = plain.reset(seed=3)[0], env.reset(seed=3)
    ends = 0
    for _ in range(60):
        assert env.observation_space.contains(obs)
        np.testing.assert_array_equal(obs["obs"], first["place"])
        np.testing.assert_array_equal(obs["action_mask"], first["action_mask"])
        parts = np.split(obs["action_mask"], [3] if actions == "several" else [])
        action = np.array([part.argmax() for part in parts]).reshape(env.action_space.shape) + env.action_space.start
        (first, *_), (obs, _, terminated, truncated, _) = plain.step(action), env.step(action)
        if terminated or truncated:
            ends += 1
            assert not obs["action_mask"][-2:].any()
            first, (obs, _) = plain.reset()[0], env.reset()
    assert ends > 5


class Teller(Walk):
    """Tells the given masks, one a step; the episode terminates with the last."""

    def __init__(self, *masks, key="action_mask", actions=Walk.action_space):
        self.masks, self.key, self.action_space = masks, key, actions

    def reset(self, *, seed=None, options=None):
        self.told = iter(self.masks)
        return super().reset(seed=seed)[0], self._info()

    def step(self, action):
        obs, reward, *_ = super().step(0)
        info = self._info()
        return obs, reward, not info, False, info

    def _info(self):
        mask = next(self.told, None)
        return {} if mask is None else {self.key: mask}

    def current(self):
        return self.masks[0]


SEVERAL = spaces.MultiDiscrete([3, 2])


@pytest.mark.parametrize(
    ("mask", "actions", "expected"),
    [
        (np.array([1, 0], np.int8), spaces.Discrete(2), [1, 0]),
        (np.array([False, True]), spaces.Discrete(2), [0, 1]),
        (np.array([0.0, 1.0]), spaces.Discrete(2), [0, 1]),
        ([True, False], spaces.Discrete(2), [1, 0]),
        ((1, 0), spaces.Discrete(2), [1, 0]),
        (np.array([1, 0, 0, 1, 1]), SEVERAL, [1, 0, 0, 1, 1]),
        ((np.array([1, 0, 0], np.int8), np.array([0, 1], np.int8)), SEVERAL, [1, 0, 0, 0, 1]),
        ([[True, False, True], [False, True]], SEVERAL, [1, 0, 1, 0, 1]),
    ],
    ids=str,
)
def test_every_form_of_a_mask_is_taken(mask, actions, expected):
    for settings in ({}, {"method": "current"}):
        obs, _ = ActionMaskWrapper(Teller(mask, actions=actions), **settings).reset(seed=1)
        assert obs["action_mask"].tolist() == expected
        assert obs["action_mask"].dtype == np.int8


def test_another_key_is_read_and_a_dict_gets_one_more():
    env = ActionMaskWrapper(Teller([1, 0], key="legal"), info_key="legal")
    assert env.reset(seed=1)[0]["action_mask"].tolist() == [1, 0]

    class Both(DictWalk):
        def action_masks(self):
            return [0, 1]

    env = ActionMaskWrapper(Both(), method="action_masks")
    assert list(env.observation_space) == [*DictWalk.observation_space, "action_mask"]
    assert env.observation_space.contains(env.reset(seed=1)[0])


def test_the_mask_of_an_episodes_end_may_be_missing_and_no_other():
    env = ActionMaskWrapper(Teller([1, 0], [0, 1]))
    env.reset(seed=1)
    assert env.step(0)[0]["action_mask"].tolist() == [0, 1]
    obs, _, terminated, *_ = env.step(0)
    assert terminated
    assert obs["action_mask"].tolist() == [0, 0]


@pytest.mark.parametrize(
    ("mask", "words"),
    [
        (None, r"finds no 'action_mask' in the info, only \[\]: name the mask's key by info_key, or .* by method"),
        ([1, 0, 1], r"finds info\['action_mask'\] to be of size 3, and the actions Discrete\(2\) need 2: return"),
        (np.ones((1, 2)), r"of size 1 × 2"),
        (1, r"without a dimension"),
        (([1, 0], [1, 1]), r"of size 2 \+ 2"),
        (np.array([0.5, 1]), r"finds info\['action_mask'\] to hold other than 0 and 1 \(float64\): return 1 for legal"),
        (np.array([-1, 1]), r"other than 0 and 1 \(int64\)"),
        (np.array(["a", "b"]), r"other than 0 and 1 \(<U1\)"),
    ],
)
def test_other_masks_are_refused_at_the_reset(mask, words):
    with pytest.raises(ConfigurationError, match=rf"^--data\.env\.wrappers: ActionMaskWrapper .*{words}.*\.$"):
        ActionMaskWrapper(Teller(mask)).reset(seed=1)


def test_components_of_other_sizes_are_refused_though_their_sum_is_right():
    env = ActionMaskWrapper(Teller(([1, 0], [1, 1, 1]), actions=SEVERAL))
    with pytest.raises(ConfigurationError, match=r"of size 2 \+ 3, and the actions .* need 3 \+ 2"):
        env.reset(seed=1)


@pytest.mark.parametrize(
    ("env", "settings", "words"),
    [
        ("Pendulum-v1", {}, "is for Discrete actions, and MultiDiscrete ones of one dimension, not for Box"),
        ("tests.tasks:Fork-v0", {}, "adds the key action_mask, which the observation has already: leave it out"),
        ("CartPole-v1", {"method": "action_masks"}, "has method=action_masks, which CartPoleEnv lacks: name one of"),
        ("CartPole-v1", {"method": "spec"}, "has method=spec, which"),
        ("CartPole-v1", {"method": "reset", "info_key": "legal"}, "has info_key=legal and method=reset, .*: drop one"),
    ],
)
def test_environments_that_it_cannot_wrap_are_refused(env, settings, words):
    with pytest.raises(ConfigurationError, match=rf"^--data\.env\.wrappers: ActionMaskWrapper {words}"):
        ActionMaskWrapper(gymnasium.make(env), **settings)


@pytest.mark.parametrize("vectorization", ["sync", "async"])
def test_a_mask_that_is_not_there_is_told_in_its_own_words(vectorization):
    env = GymnasiumEnv("CartPole-v1", vectorization, wrappers=[ActionMaskWrapper]).make([1])
    with pytest.raises(ConfigurationError, match="ActionMaskWrapper finds no 'action_mask' in the info"):
        env.reset()
    env.close()
