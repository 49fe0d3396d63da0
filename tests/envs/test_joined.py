import numpy as np
import pytest
import torch

from ppo_lightning.data.collect import Collector
from ppo_lightning.envs import GymnasiumEnv
from ppo_lightning.envs.joined import JoinedVectorEnv
from tests.envs.states import through_a_file
from tests.toy import make_toy


def observations(obs):
    return obs if not isinstance(obs, dict) else {key: value.tolist() for key, value in obs.items()}


@pytest.mark.parametrize("split", [1, 2, 3])
def test_parts_together_are_one_environment(split):
    seeds = [3, 4, 5, 6]
    whole, joined = make_toy(seeds), JoinedVectorEnv([make_toy(seeds[:split]), make_toy(seeds[split:])])
    assert joined.num_envs == 4
    assert joined.observation_space == whole.observation_space
    assert joined.action_space == whole.action_space
    np.testing.assert_equal(observations(joined.reset()), observations(whole.reset()))
    generator, ends = np.random.default_rng(0), 0
    for _ in range(40):
        actions = generator.integers(0, 3, 4)
        one, other = joined.step(actions), whole.step(actions)
        ends += int((one.terminated | one.truncated).sum())
        for name, value in vars(other).items():
            np.testing.assert_equal(observations(getattr(one, name)), observations(value), err_msg=name)
    assert ends > 5
    joined.close()


def test_each_part_goes_on_with_its_own_restarts():
    collectors = []
    for _ in range(2):
        joined = JoinedVectorEnv([GymnasiumEnv("CartPole-v1").make(seeds) for seeds in ([0], [1, 2])])
        joined.reset()
        collectors.append(Collector(joined, num_steps=4))
    saved, resumed = collectors
    for part, restarts in zip(saved.env.parts, [3, 8]):
        part.restarts = restarts
    resumed.load_state_dict(through_a_file(saved.state_dict()), torch.device("cpu"))
    assert [part.restarts for part in resumed.env.parts] == [3, 8]


def test_restarts_whose_part_is_not_known_are_shared_out():
    joined = JoinedVectorEnv([make_toy([seed]) for seed in range(3)])
    joined.restarts = 8
    assert [part.restarts for part in joined.parts] == [3, 3, 2]
    assert joined.restarts == 8
    joined.close()
