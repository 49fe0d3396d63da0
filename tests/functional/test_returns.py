"""Value targets by other recursions than GAE's, and the advantages of a stream that no episode's end interrupts."""

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from ppo_lightning.functional import (
    continuing_advantage_estimation,
    generalized_advantage_estimation,
    lambda_returns,
    n_step_returns,
)
from tests.functional.test_advantages import columns, rollouts

EXACT = {"rtol": 1e-12, "atol": 1e-11}


def at(rollout, env):
    return [x[:, env].tolist() for x in rollout]


def slow_lambda_return(rollout, env, step, gamma, gae_lambda):
    """The weighted mean of all n-step returns up to the episode's or the rollout's end (Sutton and Barto, 12.3)."""
    rewards, _, next_values, terminated, truncated = at(rollout, env)
    total, weight, rewards_so_far, discount = 0.0, 1.0, 0.0, 1.0
    for k in range(step, len(rewards)):
        rewards_so_far += discount * rewards[k]
        discount *= gamma
        n_step = rewards_so_far + (0.0 if terminated[k] else discount * next_values[k])
        if terminated[k] or truncated[k] or k == len(rewards) - 1:
            return total + weight * n_step
        total += weight * (1 - gae_lambda) * n_step
        weight *= gae_lambda
    raise AssertionError


def slow(rollout, one, *numbers):
    steps, envs = rollout[0].shape
    table = [[one(rollout, env, step, *numbers) for env in range(envs)] for step in range(steps)]
    return torch.tensor(table, dtype=torch.float64)


def slow_n_step_return(rollout, env, step, gamma):
    rewards, _, next_values, terminated, truncated = at(rollout, env)
    total = 0.0
    for k in range(step, len(rewards)):
        total += gamma ** (k - step) * rewards[k]
        if terminated[k]:
            return total
        if truncated[k] or k == len(rewards) - 1:
            return total + gamma ** (k - step + 1) * next_values[k]
    raise AssertionError


def lambda_of(rollout, gamma, gae_lambda):
    rewards, _, next_values, terminated, truncated = rollout
    return lambda_returns(rewards, next_values, terminated, truncated, gamma, gae_lambda)


def n_step_of(rollout, gamma):
    rewards, _, next_values, terminated, truncated = rollout
    return n_step_returns(rewards, next_values, terminated, truncated, gamma)


@given(rollouts(), st.floats(0, 1), st.floats(0, 1))
def test_lambda_returns_are_the_weighted_mean_of_all_n_step_returns(rollout, gamma, gae_lambda):
    expected = slow(rollout, slow_lambda_return, gamma, gae_lambda)
    torch.testing.assert_close(lambda_of(rollout, gamma, gae_lambda), expected, **EXACT)


@given(rollouts(), st.floats(0, 1))
def test_n_step_returns_match_a_slow_sum(rollout, gamma):
    torch.testing.assert_close(n_step_of(rollout, gamma), slow(rollout, slow_n_step_return, gamma), **EXACT)


@given(rollouts(), st.floats(0, 1), st.floats(0, 1))
def test_lambda_returns_are_those_of_gae(rollout, gamma, gae_lambda):
    rewards, values, next_values, terminated, truncated = rollout
    following = torch.cat([values[1:], next_values[-1:]])
    next_values = torch.where(truncated, next_values, following)  # as a rollout has them: V of the next step's
    returns = lambda_of((rewards, values, next_values, terminated, truncated), gamma, gae_lambda)
    _, expected = generalized_advantage_estimation(
        rewards, values, next_values, terminated, truncated, gamma, gae_lambda
    )
    torch.testing.assert_close(returns, expected, **EXACT)


@given(rollouts(), st.floats(0, 1))
def test_n_step_returns_are_lambda_returns_of_one(rollout, gamma):
    assert torch.equal(n_step_of(rollout, gamma), lambda_of(rollout, gamma, 1.0))


def test_returns_match_numbers_computed_by_hand():
    # gamma = lambda = 1/2; the last reward counts, and an end cuts what follows it
    rewards = columns(*[[1.0, 2.0, 4.0]] * 4)
    next_values = columns([8.0, 16.0, 32.0], [8.0, 16.0, 32.0], [8.0, 24.0, 32.0], [8.0, 16.0, 64.0])
    terminated, truncated = torch.zeros(2, 3, 4, dtype=torch.bool)
    terminated[1, 1] = truncated[1, 2] = truncated[2, 3] = True
    n_step = n_step_returns(rewards, next_values, terminated, truncated, 0.5)
    assert torch.equal(
        n_step,
        columns(
            [1 + 1 + 1 + 32 / 8, 2 + 2 + 32 / 4, 4 + 16.0],
            [1 + 1.0, 2.0, 4 + 16.0],  # terminated inside
            [1 + 1 + 24 / 4, 2 + 12.0, 4 + 16.0],  # truncated inside, V(final observation) = 24
            [1 + 1 + 1 + 64 / 8, 2 + 2 + 64 / 4, 4 + 32.0],  # truncated in the last step
        ),
    )
    returns = lambda_returns(rewards, next_values, terminated, truncated, 0.5, 0.5)
    assert torch.equal(
        returns,
        columns(
            [1 + (4 + (2 + (8 + 10.0) / 2) / 2) / 2, 2 + (8 + 10.0) / 2, 20.0],
            [1 + (4 + 1.0) / 2, 2.0, 20.0],
            [1 + (4 + 7.0) / 2, 14.0, 20.0],
            [1 + (4 + (2 + (8 + 18.0) / 2) / 2) / 2, 2 + (8 + 18.0) / 2, 36.0],
        ),
    )


@pytest.mark.parametrize("name", ["next_values", "terminated", "truncated"])
def test_returns_refuse_a_shape_that_would_broadcast(name):
    flags = torch.zeros(4, 2, dtype=torch.bool)
    arguments = {"rewards": torch.zeros(4, 2), "next_values": torch.zeros(4, 2), "terminated": flags}
    arguments["truncated"] = flags
    arguments[name] = arguments[name][:, :1]
    with pytest.raises(ValueError, match=rf"^{name} has shape \(4, 1\) and rewards \(4, 2\)"):
        lambda_returns(**arguments, gamma=0.9, gae_lambda=0.9)
    with pytest.raises(ValueError, match=f"^{name} has shape"):
        n_step_returns(**arguments, gamma=0.9)


# -- a stream that goes on


@st.composite
def streams(draw):
    rewards, values, last, _, valid = draw(rollouts())
    return rewards, values, last[0], valid


def slow_advantages(rewards, values, last, valid, gamma, gae_lambda):
    """Of the valid steps by themselves, one environment after another, summed term by term."""
    expected = {}
    for env in range(rewards.shape[1]):
        steps = valid[:, env].nonzero().squeeze(1).tolist()
        v = [*values[steps, env].tolist(), last[env].item()]
        deltas = [rewards[step, env].item() + gamma * v[k + 1] - v[k] for k, step in enumerate(steps)]
        for k, step in enumerate(steps):
            terms = [(gamma * gae_lambda) ** n * delta for n, delta in enumerate(deltas[k:])]
            expected[step, env] = sum(terms)
    return expected


@given(streams(), st.floats(0, 1), st.floats(0, 1))
def test_continuing_advantages_match_a_slow_sum_over_the_valid_steps(stream, gamma, gae_lambda):
    advantages, returns = continuing_advantage_estimation(*stream, gamma, gae_lambda)
    for (step, env), expected in slow_advantages(*stream, gamma, gae_lambda).items():
        assert advantages[step, env].item() == pytest.approx(expected, rel=1e-12, abs=1e-11)
    torch.testing.assert_close(returns, advantages + stream[1], **EXACT)


@given(streams(), st.floats(0, 1), st.floats(0, 1))
def test_continuing_advantages_are_those_of_one_long_episode(stream, gamma, gae_lambda):
    rewards, values, last, valid = stream
    never, always = torch.zeros_like(valid), torch.ones_like(valid)
    next_values = torch.cat([values[1:], last[None]])
    expected = generalized_advantage_estimation(rewards, values, next_values, never, never, gamma, gae_lambda)
    actual = continuing_advantage_estimation(rewards, values, last, always, gamma, gae_lambda)
    torch.testing.assert_close(actual, expected, **EXACT)


@given(streams())
def test_what_an_invalid_step_says_is_nothing(stream):
    rewards, values, last, valid = stream
    expected, _ = continuing_advantage_estimation(rewards, values, last, valid, 0.9, 0.8)
    spoilt = [x.masked_fill(~valid, torch.nan) for x in (rewards, values)]
    advantages, _ = continuing_advantage_estimation(*spoilt, last, valid, 0.9, 0.8)
    assert torch.equal(advantages[valid], expected[valid])


def test_continuing_advantages_match_numbers_computed_by_hand():
    # gamma = lambda = 1/2
    rewards, values = columns([1.0, 2.0, 4.0], [1.0, 2.0, 4.0]), columns([2.0, 4.0, 8.0], [2.0, 4.0, 8.0])
    valid = columns([True, True, True], [True, False, True])
    advantages, returns = continuing_advantage_estimation(rewards, values, torch.tensor([16.0, 16.0]), valid, 0.5, 0.5)
    assert advantages[:, 0].tolist() == [1 + 0.75, 2 + 1.0, 4.0]  # deltas 1, 2, 4
    assert advantages[[0, 2], 1].tolist() == [3 + 1.0, 4.0]  # from 2 straight to 8: a delta of 1 + 4 - 2
    assert returns[:, 0].tolist() == [3.75, 7.0, 12.0]


@pytest.mark.parametrize("name", ["values", "valid", "last_values"])
def test_continuing_advantages_refuse_a_shape_that_would_broadcast(name):
    arguments = {"rewards": torch.zeros(4, 2), "values": torch.zeros(4, 2), "last_values": torch.zeros(2)}
    arguments["valid"] = torch.ones(4, 2, dtype=torch.bool)
    arguments[name] = arguments[name][..., :1]
    with pytest.raises(ValueError, match="must be equal"):
        continuing_advantage_estimation(**arguments, gamma=0.9, gae_lambda=0.9)
