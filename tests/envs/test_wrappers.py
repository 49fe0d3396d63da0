import gymnasium
import numpy as np
import pytest
from gymnasium import spaces

from ppo_lightning.core.errors import ConfigurationError
from ppo_lightning.envs.wrappers import NoisyObservation, SelectObservation


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
