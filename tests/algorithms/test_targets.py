"""What critics learn, chosen by ``--model.returns``, in every agent."""

import pytest
import torch

from ppo_lightning import PPO, ConfigurationError
from ppo_lightning.algorithms.targets import ValueTargets
from ppo_lightning.functional import generalized_advantage_estimation, lambda_returns, n_step_returns
from tests.agents import batches_of, daac_data, make_daac, make_rnd
from tests.algorithms.test_normalization import random_rollout
from tests.runs import Recorder, fit, make_data, make_ppo

AGENTS = {"PPO": (make_ppo, make_data), "DAAC": (make_daac, daac_data), "RND": (make_rnd, make_data)}
RETURNS = ["gae", "lambda", "nstep"]


def expected(returns, rewards, rollout, gamma, gae_lambda):
    values, next_values, ends = rollout.values, rollout.next_values, (rollout.terminated, rollout.truncated)
    if returns == "gae":
        return generalized_advantage_estimation(rewards, values, next_values, *ends, gamma, gae_lambda)
    if returns == "lambda":
        targets = lambda_returns(rewards, next_values, *ends, gamma, gae_lambda)
    else:
        targets = n_step_returns(rewards, next_values, *ends, gamma)
    return targets - values, targets


@pytest.mark.parametrize("returns", RETURNS)
def test_each_is_what_its_function_says(returns):
    rollout = random_rollout(1)
    rewards = 2 * rollout.rewards  # in place of the rollout's own
    for own, other in zip(
        ValueTargets(returns, 0.9, 0.7)(rewards, rollout), expected(returns, rewards, rollout, 0.9, 0.7)
    ):
        assert torch.equal(own, other)


@pytest.mark.parametrize("agent", AGENTS)
@pytest.mark.parametrize("returns", RETURNS)
def test_every_agent_learns_from_the_returns_that_are_asked_for(agent, returns):
    make, data = AGENTS[agent]
    flags = {"intr_adv_coeff": 0.0, "extr_adv_coeff": 1.0} if agent == "RND" else {}
    module = make(returns=returns, gae_lambda=0.6, norm_adv=False, **flags)
    seen = batches_of(module)
    fit(module, data(num_steps=12))
    assert len(seen) == 2
    for rollout, batch in seen:
        assert (rollout.terminated | rollout.truncated).any()
        advantages, targets = expected(returns, rollout.rewards, rollout, 0.9, 0.6)
        torch.testing.assert_close(batch.advantages, advantages.flatten())
        torch.testing.assert_close(batch.returns, targets.flatten())


def test_n_step_returns_take_no_lambda():
    runs = [fit(make_ppo(returns="nstep", gae_lambda=gae_lambda)) for gae_lambda in (0.1, 0.9)]
    assert all(torch.equal(*pair) for pair in zip(*(run.parameters() for run in runs)))


@pytest.mark.parametrize("agent", AGENTS)
@pytest.mark.parametrize("returns", RETURNS)
def test_rollouts_may_be_of_one_step(agent, returns):
    make, data = AGENTS[agent]
    module, recorder = make(returns=returns, norm_adv=False), Recorder()
    seen = batches_of(module)
    fit(module, data(num_steps=1, num_envs=4, iterations=3), callbacks=[recorder])
    assert len(recorder.metrics) == 3
    for rollout, batch in seen:
        continues = ~rollout.terminated
        targets = rollout.rewards + 0.9 * continues * rollout.next_values  # the temporal difference, in all three
        torch.testing.assert_close(batch.returns, targets.flatten())


@pytest.mark.parametrize("make", [make_ppo, make_daac, make_rnd])
def test_a_name_that_there_is_not_is_refused_by_those_that_there_are(make):
    with pytest.raises(
        ConfigurationError,
        match=r"^--model\.returns=lamda is not known: choose from gae, lambda, nstep\. Did you mean lambda\?$",
    ):
        make(returns="lamda")


@pytest.mark.parametrize("name", ["gamma", "gae_lambda"])
@pytest.mark.parametrize("number", [-0.1, 1.1, float("nan")])
def test_numbers_outside_their_range_are_refused_by_name(name, number):
    with pytest.raises(ConfigurationError, match=rf"^--model\.{name} "):
        PPO(**{name: number})
