import numpy as np
import pytest

from ppo_lightning.envs.joined import JoinedVectorEnv
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
