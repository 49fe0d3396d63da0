import gymnasium
import numpy as np
import pytest
import torch
from gymnasium import spaces
from hypothesis import given
from hypothesis import strategies as st
from stable_baselines3.common.buffers import RolloutBuffer

from ppo_lightning.functional import (
    discounted_sums,
    generalized_advantage_estimation,
    moments_of,
    normalize_advantages,
    pool_moments,
)


def columns(*rows):
    return torch.tensor(rows).T.contiguous()


def gae(rewards, values, next_values, terminated, truncated, gamma=0.5, gae_lambda=0.5):
    return generalized_advantage_estimation(rewards, values, next_values, terminated, truncated, gamma, gae_lambda)


def test_advantages_match_numbers_computed_by_hand():
    # gamma = lambda = 1/2, so every number is exact; a column an environment
    rewards = columns(*[[1.0, 2.0, 3.0, 4.0]] * 5)
    values = columns(*[[2.0, 4.0, 6.0, 8.0]] * 5)
    next_values = columns(
        [4.0, 6.0, 8.0, 10.0],  # goes on
        [4.0, 6.0, 8.0, 10.0],  # terminated inside
        [4.0, 20.0, 8.0, 10.0],  # truncated inside, V(final observation) = 20
        [4.0, 6.0, 8.0, 10.0],  # terminated at the rollout's end
        [4.0, 6.0, 8.0, 30.0],  # truncated at the rollout's end, V(final observation) = 30
    )
    terminated, truncated = torch.zeros(2, 4, 5, dtype=torch.bool)
    terminated[1, 1] = truncated[1, 2] = terminated[3, 3] = truncated[3, 4] = True
    advantages, returns = gae(rewards, values, next_values, terminated, truncated)
    expected = columns(
        [1.328125, 1.3125, 1.25, 1.0],
        [0.5, -2.0, 1.25, 1.0],
        [3.0, 8.0, 1.25, 1.0],
        [1.25, 1.0, 0.0, -4.0],
        [1.484375, 1.9375, 3.75, 11.0],
    )
    assert torch.equal(advantages, expected)
    assert torch.equal(returns, expected + values)


def test_a_truncated_episode_is_worth_its_final_observation_and_a_terminated_one_nothing():
    one_step = torch.tensor([[1.0, 1.0]])
    _, returns = gae(
        one_step,
        torch.tensor([[3.0, 3.0]]),
        torch.tensor([[10.0, 10.0]]),
        terminated=torch.tensor([[True, False]]),
        truncated=torch.tensor([[False, True]]),
        gamma=0.9,
        gae_lambda=0.95,
    )
    torch.testing.assert_close(returns, torch.tensor([[1.0, 1.0 + 0.9 * 10]]))


def test_an_end_of_both_kinds_is_a_termination():
    yes = torch.tensor([[True]])
    _, returns = gae(torch.tensor([[1.0]]), torch.tensor([[3.0]]), torch.tensor([[10.0]]), yes, yes)
    assert returns.item() == 1.0


@st.composite
def rollouts(draw, max_steps=9, max_envs=3):
    shape = (draw(st.integers(1, max_steps)), draw(st.integers(1, max_envs)))
    size = shape[0] * shape[1]
    numbers = st.lists(st.floats(-10, 10, width=32), min_size=size, max_size=size)
    flags = st.lists(st.booleans(), min_size=size, max_size=size)
    rewards, values, next_values = (torch.tensor(draw(numbers), dtype=torch.float64).view(shape) for _ in range(3))
    terminated, truncated = (torch.tensor(draw(flags)).view(shape) for _ in range(2))
    return rewards, values, next_values, terminated, truncated


def slow_advantage(rollout, step, env, gamma, gae_lambda):
    """The sum of discounted temporal differences up to the episode's end, term by term."""
    rewards, values, next_values, terminated, truncated = (x[:, env].tolist() for x in rollout)
    total = 0.0
    for k in range(step, len(rewards)):
        bootstrap = 0.0 if terminated[k] else gamma * next_values[k]
        total += (gamma * gae_lambda) ** (k - step) * (rewards[k] + bootstrap - values[k])
        if terminated[k] or truncated[k]:
            break
    return total


@given(rollouts(), st.floats(0, 1), st.floats(0, 1))
def test_advantages_match_a_slow_sum(rollout, gamma, gae_lambda):
    advantages, returns = gae(*rollout, gamma, gae_lambda)
    num_steps, num_envs = advantages.shape
    slow = [[slow_advantage(rollout, t, n, gamma, gae_lambda) for n in range(num_envs)] for t in range(num_steps)]
    expected = torch.tensor(slow, dtype=torch.float64)
    torch.testing.assert_close(advantages, expected, rtol=1e-12, atol=1e-12)
    torch.testing.assert_close(returns, expected + rollout[1], rtol=1e-12, atol=1e-12)


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
@pytest.mark.parametrize("num_envs", [1, 5])
def test_the_loop_in_numpy_is_the_one_in_torch_to_the_bit(dtype, num_envs):
    """torch's is taken where gradients are asked for."""
    rewards, values, next_values = torch.randn(3, 200, num_envs, dtype=dtype)
    terminated, truncated = torch.rand(2, 200, num_envs) < 0.05
    own = gae(rewards, values, next_values, terminated, truncated, 0.99, 0.95)
    reference = gae(rewards, values.clone().requires_grad_(), next_values, terminated, truncated, 0.99, 0.95)
    assert reference[0].requires_grad
    assert not own[0].requires_grad
    assert all(torch.equal(first, second.detach()) for first, second in zip(own, reference))


def test_advantages_may_be_mapped_differentiated_and_of_two_dtypes():
    rewards, values, next_values = torch.randn(3, 2, 20, 4)
    ends = torch.rand(2, 2, 20, 4) < 0.1
    mapped, _ = torch.vmap(lambda *columns: gae(*columns))(rewards, values, next_values, *ends)
    for index in range(2):
        expected, _ = gae(rewards[index], values[index], next_values[index], *ends[:, index])
        torch.testing.assert_close(mapped[index], expected)

    def of_rewards(rewards):
        return gae(rewards, values[0], next_values[0], *ends[:, 0])[0]

    _, tangent = torch.func.jvp(of_rewards, (rewards[0],), (torch.ones(20, 4),))
    torch.testing.assert_close(tangent, of_rewards(rewards[0] + 1) - of_rewards(rewards[0]), rtol=1e-4, atol=1e-4)
    half, _ = gae(rewards[0], values[0].bfloat16(), next_values[0].bfloat16(), *ends[:, 0])
    torch.testing.assert_close(half, of_rewards(rewards[0]), rtol=0.1, atol=0.1)
    flat, _ = gae(*(column[0, :, 0] for column in (rewards, values, next_values)), *ends[:, 0, :, 0])
    torch.testing.assert_close(flat, of_rewards(rewards[0])[:, 0])


@given(rollouts())
def test_lambda_zero_is_the_temporal_difference(rollout):
    rewards, values, next_values, terminated, _ = rollout
    advantages, _ = gae(*rollout, 0.9, 0.0)
    expected = rewards + 0.9 * torch.where(terminated, 0.0, next_values) - values
    torch.testing.assert_close(advantages, expected, rtol=1e-12, atol=1e-12)


@given(rollouts())
def test_lambda_one_returns_are_discounted_sums_of_rewards(rollout):
    rewards, values, next_values, terminated, truncated = rollout
    next_values[:-1] = torch.where(truncated[:-1], next_values[:-1], values[1:])  # as within an episode
    _, returns = gae(rewards, values, next_values, terminated, truncated, 0.9, 1.0)
    for env in range(rewards.shape[1]):
        following = float(next_values[-1, env])
        for step in reversed(range(len(rewards))):
            if terminated[step, env]:
                following = 0.0
            elif truncated[step, env]:
                following = float(next_values[step, env])
            following = float(rewards[step, env]) + 0.9 * following
            assert float(returns[step, env]) == pytest.approx(following, rel=1e-12, abs=1e-11)


def test_advantages_match_stable_baselines3_where_episodes_only_terminate():
    num_steps, num_envs = 50, 4
    generator = torch.Generator().manual_seed(1)
    rewards, values = torch.randn(2, num_steps, num_envs, generator=generator)
    last_values = torch.randn(num_envs, generator=generator)
    terminated = torch.rand(num_steps, num_envs, generator=generator) < 0.1
    terminated[-1, 0] = True

    buffer = RolloutBuffer(
        num_steps, spaces.Box(-1, 1, (1,)), spaces.Discrete(2), "cpu", gae_lambda=0.95, gamma=0.99, n_envs=num_envs
    )
    buffer.rewards, buffer.values = rewards.numpy(), values.numpy()
    buffer.episode_starts = np.concatenate([np.zeros((1, num_envs)), terminated[:-1].numpy()]).astype(np.float32)
    buffer.compute_returns_and_advantage(last_values, terminated[-1].numpy())

    next_values = torch.cat([values[1:], last_values[None]])
    advantages, returns = gae(
        rewards, values, next_values, terminated, torch.zeros_like(terminated), gamma=0.99, gae_lambda=0.95
    )
    torch.testing.assert_close(advantages, torch.from_numpy(buffer.advantages), rtol=1e-5, atol=1e-5)
    torch.testing.assert_close(returns, torch.from_numpy(buffer.returns), rtol=1e-5, atol=1e-5)


@pytest.mark.parametrize("name", ["values", "next_values", "terminated", "truncated"])
def test_a_shape_that_would_broadcast_is_refused_by_name(name):
    arguments = {key: torch.zeros(4, 1) for key in ("rewards", "values", "next_values")}
    arguments |= {key: torch.zeros(4, 1, dtype=torch.bool) for key in ("terminated", "truncated")}
    arguments[name] = arguments[name][:, 0]
    with pytest.raises(ValueError, match=rf"^{name} has shape \(4,\) and rewards \(4, 1\)"):
        generalized_advantage_estimation(**arguments, gamma=0.9, gae_lambda=0.9)


def test_normalized_advantages_match_numbers_computed_by_hand():
    normalized = normalize_advantages(torch.tensor([1.0, 2.0, 3.0, 4.0], dtype=torch.float64))
    std = (5 / 3) ** 0.5  # unbiased: 5 / (4 - 1)
    expected = torch.tensor([-1.5, -0.5, 0.5, 1.5], dtype=torch.float64) / (std + 1e-8)
    torch.testing.assert_close(normalized, expected, rtol=1e-14, atol=0)


@given(st.lists(st.floats(-1e3, 1e3, width=32), min_size=2, max_size=40))
def test_normalized_advantages_match_the_formula_of_stable_baselines3(numbers):
    advantages = torch.tensor(numbers, dtype=torch.float64)
    expected = (advantages - advantages.mean()) / (advantages.std() + 1e-8)
    torch.testing.assert_close(normalize_advantages(advantages), expected, rtol=1e-12, atol=1e-12)


@pytest.mark.parametrize("advantages", [[3.0], [3.0, 3.0, 3.0]])
def test_advantages_without_spread_become_zero(advantages):
    assert normalize_advantages(torch.tensor(advantages)).tolist() == [0.0] * len(advantages)


def test_a_part_is_normalized_by_the_moments_of_the_whole():
    parts = [torch.tensor(part, dtype=torch.float64) for part in ([1.0, 2.0, 6.0], [-4.0, 0.5, 3.0, 10.0, 7.0])]
    moments = pool_moments(torch.stack([moments_of(part) for part in parts]))
    together = normalize_advantages(torch.cat(parts))
    apart = torch.cat([normalize_advantages(part, moments) for part in parts])
    torch.testing.assert_close(apart, together, rtol=1e-12, atol=0)
    assert normalize_advantages(parts[0].float(), moments).dtype == torch.float32


def test_discounted_sums_match_numbers_computed_by_hand():
    # gamma = 1/2; a column an environment
    rewards = columns(*[[1.0, 2.0, 4.0, 8.0]] * 4)
    ends, valid = torch.zeros(4, 4, dtype=torch.bool), torch.ones(4, 4, dtype=torch.bool)
    ends[1, 1] = ends[3, 2] = True  # inside, and on the last step
    ends[1, 3], valid[2, 3] = True, False  # then a step that only resets
    sums, trace = discounted_sums(rewards, ends, valid, torch.tensor([16.0, 0.0, 16.0, 16.0]), 0.5)
    expected = columns(
        [9.0, 6.5, 7.25, 11.625],
        [1.0, 2.5, 4.0, 10.0],
        [9.0, 6.5, 7.25, 11.625],
        [9.0, 6.5, 0.0, 8.0],
    )
    assert torch.equal(sums, expected)
    assert trace.tolist() == [11.625, 10.0, 0.0, 8.0]


def test_a_step_that_is_not_valid_leaves_the_sum_whatever_it_says():
    rewards = torch.tensor([[1.0], [float("nan")], [1.0]])
    end = torch.tensor([[False], [True], [False]])
    sums, _ = discounted_sums(rewards, end, ~end, torch.zeros(1), 0.5)
    assert sums.tolist() == [[1.0], [1.0], [1.5]]


def slow_sums(rewards, ends, valid, gamma):
    """Over ``(T, N)``, all rollouts on end."""
    sums = torch.zeros_like(rewards)
    for env in range(rewards.shape[1]):
        running = 0.0
        for step in range(len(rewards)):
            if valid[step, env]:
                running = gamma * running + float(rewards[step, env])
            sums[step, env] = running
            if valid[step, env] and ends[step, env]:
                running = 0.0
    return sums


@given(rollouts(), st.floats(0, 1), st.integers(1, 9))
def test_discounted_sums_run_on_from_rollout_to_rollout(rollout, gamma, num_steps):
    rewards, _, _, ends, valid = rollout
    expected, trace = slow_sums(rewards, ends, valid, gamma), torch.zeros(rewards.shape[1], dtype=torch.float64)
    parts = []
    for part in zip(rewards.split(num_steps), ends.split(num_steps), valid.split(num_steps)):
        sums, trace = discounted_sums(*part, trace, gamma)
        parts.append(sums)
    torch.testing.assert_close(torch.cat(parts), expected, rtol=1e-12, atol=1e-12)


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_discounted_sums_have_the_dtype_of_rewards(dtype):
    never = torch.zeros(2, 1, dtype=torch.bool)
    for known in (torch.float32, torch.float64):  # a normaliser may keep more digits
        sums, trace = discounted_sums(torch.ones(2, 1, dtype=dtype), never, ~never, torch.zeros(1, dtype=known), 0.9)
        assert sums.dtype == trace.dtype == dtype


@pytest.mark.parametrize("name", ["ends", "valid", "trace"])
def test_discounted_sums_refuse_a_shape_that_would_broadcast(name):
    flags = torch.zeros(4, 2, dtype=torch.bool)
    arguments = {"rewards": torch.zeros(4, 2), "ends": flags, "valid": flags, "trace": torch.zeros(2)}
    arguments[name] = arguments[name][..., :1]
    with pytest.raises(ValueError, match="must be equal"):
        discounted_sums(**arguments, gamma=0.9)


class Script(gymnasium.Env):
    """Rewards 0, 1, 4, 9, …, of one episode."""

    observation_space = gymnasium.spaces.Box(-1, 1, (1,))
    action_space = gymnasium.spaces.Discrete(2)

    def __init__(self):
        self.steps = 0

    def reset(self, *, seed=None, options=None):
        return np.zeros(1, dtype=np.float32), {}

    def step(self, action):
        self.steps += 1
        return np.zeros(1, dtype=np.float32), (self.steps - 1) ** 2, False, False, {}


def test_the_variance_of_discounted_sums_is_that_which_gymnasium_scales_rewards_by():
    env = gymnasium.wrappers.NormalizeReward(Script(), gamma=0.9)
    env.reset()
    theirs = []
    for _ in range(30):
        env.step(0)
        theirs.append(env.discounted_reward.item())
    rewards = torch.arange(30, dtype=torch.float64)[:, None].square()
    never = torch.zeros(30, 1, dtype=torch.bool)
    sums, _ = discounted_sums(rewards, never, ~never, torch.zeros(1), 0.9)
    assert sums[:, 0].tolist() == pytest.approx(theirs, rel=1e-12)
    # theirs starts from a ten-thousandth of a sample at 0 with variance 1
    assert moments_of(sums)[2].item() == pytest.approx(env.return_rms.var.item(), rel=1e-5)
