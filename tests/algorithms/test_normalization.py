"""Rewards, returns and advantages, normalised by statistics of whole rollouts."""

import functools
import math
import statistics

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch import nn

from ppo_lightning import PPO, ActorCritic, ConfigurationError, MLPEncoder
from ppo_lightning.algorithms.normalization import AdvantageNormalizer, ReturnNormalizer, RewardNormalizer
from ppo_lightning.core.agent import RolloutEnd
from ppo_lightning.core.rollout import Rollout
from ppo_lightning.functional import generalized_advantage_estimation
from tests.runs import Recorder, SmallGRU, equal, fit, make_data, make_ppo, weights
from tests.tasks import Wage


def alone(x):
    """What one rank gathers."""
    return x.unsqueeze(0)


def rollout_of(rewards, values=0.0, terminated=False, truncated=False, valid=True):
    """``(T, N)`` each, in float64; one that is given for all by a single value."""
    rewards = torch.as_tensor(rewards, dtype=torch.float64)

    def column(x, dtype=torch.bool):
        return torch.as_tensor(x, dtype=dtype).expand(rewards.shape).clone()

    return Rollout(
        obs=torch.randn(*rewards.shape, 4),
        actions=column(0, torch.int64),
        log_probs=column(-0.7, torch.float64),
        values=column(values, torch.float64),
        next_values=column(values, torch.float64),
        rewards=rewards,
        terminated=column(terminated),
        truncated=column(truncated),
        valid=column(valid),
        episode_starts=column(False),
        batch_size=rewards.shape,
    )


def random_rollout(seed, steps=7, envs=3, scale=5.0):
    generator = torch.Generator().manual_seed(seed)
    draws = torch.rand(4, steps, envs, generator=generator)
    return rollout_of(scale * draws[0] - 1, draws[1], draws[2] < 0.15, draws[2] > 0.85, draws[3] < 0.8)


# -- rewards


def normalize(normalizer, rollout, traces):
    ends = rollout.terminated | rollout.truncated
    return normalizer.normalize(rollout.rewards, ends, rollout.valid, traces, alone)


def slow_rewards(rollouts, gamma, clip):
    """Step by step and environment by environment, with the variance of the sums so far at each rollout's end."""
    running, sums, normal = [0.0] * rollouts[0].rewards.shape[1], [], []
    for rollout in rollouts:
        for step in range(len(rollout.rewards)):
            for env in range(len(running)):
                if rollout.valid[step, env]:
                    running[env] = gamma * running[env] + rollout.rewards[step, env].item()
                    sums.append(running[env])
                    if rollout.terminated[step, env] or rollout.truncated[step, env]:
                        running[env] = 0.0
        std = math.sqrt(statistics.pvariance(sums) + 1e-8)
        normal.append((rollout.rewards / std).clamp(-clip, clip))
    return normal


@pytest.mark.parametrize("clip", [10.0, 0.5])
def test_rewards_match_a_slow_loop_over_rollouts_that_episodes_run_across(clip):
    rollouts = [random_rollout(seed) for seed in range(4)]
    normalizer, traces = RewardNormalizer(0.9, clip, None).double(), {}
    for rollout, expected in zip(rollouts, slow_rewards(rollouts, 0.9, clip)):
        torch.testing.assert_close(normalize(normalizer, rollout, traces), expected, rtol=1e-9, atol=1e-12)
    assert normalizer.count == sum(int(rollout.valid.sum()) for rollout in rollouts)


def test_a_sum_runs_on_over_the_border_of_rollouts_and_starts_anew_with_the_environments():
    normalizer, traces = RewardNormalizer(0.5, 10.0, None).double(), {}
    normalize(normalizer, rollout_of([[1.0], [1.0]]), traces)
    assert {name: trace.tolist() for name, trace in traces.items()} == {"discounted_return": [1.5]}
    normalize(normalizer, rollout_of([[1.0], [1.0]], truncated=[[False], [True]]), traces)
    sums = [1.0, 1.5, 1.75, 1.875]
    assert normalizer.var.item() == pytest.approx(statistics.pvariance(sums), rel=1e-12)
    assert traces["discounted_return"].tolist() == [0]
    anew = {}
    normalize(normalizer, rollout_of([[4.0]]), anew)
    assert anew["discounted_return"].tolist() == [4]


def test_the_mean_of_rewards_stays_and_a_constant_one_does_no_harm():
    normal = normalize(RewardNormalizer(0.9, 10.0, None).double(), rollout_of([[-3.0, -5.0], [-4.0, -6.0]]), {})
    assert (normal < 0).all()
    assert normalize(RewardNormalizer(0.0, 10.0, None), rollout_of([[1.0], [1.0]]), {}).tolist() == [[10], [10]]
    assert normalize(RewardNormalizer(0.9, 10.0, None), rollout_of([[0.0], [0.0]]), {}).tolist() == [[0], [0]]


def test_a_moving_average_of_rewards_forgets():
    normalizer, traces = RewardNormalizer(0.0, 1e9, 0.25).double(), {}
    normalize(normalizer, rollout_of([[-1.0], [1.0]]), traces)
    normalize(normalizer, rollout_of([[-3.0], [3.0]]), traces)
    assert normalizer.var.item() == pytest.approx(0.25 * 1 + 0.75 * 9, rel=1e-12)


def test_returns_are_of_the_normalised_rewards():
    ppo, rollout = make_ppo(normalize_rewards=True, norm_adv=False), random_rollout(5)
    ppo.build_network(make_data().observation_space, make_data().action_space)
    ppo.double().gather = alone
    batch = ppo.prepare(rollout, RolloutEnd(rollout.obs[-1], None, {}, 1, list))
    (rewards,) = slow_rewards([rollout], 0.9, 10.0)
    advantages, returns = generalized_advantage_estimation(
        rewards, rollout.values, rollout.next_values, rollout.terminated, rollout.truncated, 0.9, 0.95
    )
    torch.testing.assert_close(batch.returns, returns[rollout.valid], rtol=1e-9, atol=1e-12)
    torch.testing.assert_close(batch.advantages, advantages[rollout.valid], rtol=1e-9, atol=1e-12)


# -- returns (PopArt)


@given(st.floats(-1e6, 1e6), st.floats(1e-3, 1e4), st.sampled_from([None, 0.0, 0.9]))
def test_the_critic_says_the_same_before_and_after_its_statistics_change(offset, scale, ema):
    torch.manual_seed(0)
    layer, normalizer = nn.Linear(5, 1).double(), ReturnNormalizer(ema).double()
    hidden = torch.randn(20, 5, dtype=torch.float64)
    for step in range(3):
        before = normalizer.values_of(layer(hidden))
        normalizer.learn(offset + scale * (step + 1) * torch.randn(30, dtype=torch.float64), layer, alone)
        after = normalizer.values_of(layer(hidden))
        torch.testing.assert_close(after, before, rtol=1e-9, atol=1e-9 * (abs(offset) + scale))


def test_the_critic_learns_standardised_returns():
    normalizer, layer = ReturnNormalizer(None).double(), nn.Linear(2, 1).double()
    returns = 1000 + 50 * torch.randn(200, dtype=torch.float64)
    normalizer.learn(returns, layer, alone)
    targets = normalizer.outputs_for(returns)
    assert targets.mean().item() == pytest.approx(0, abs=1e-9)
    assert targets.std(correction=0).item() == pytest.approx(1, rel=1e-9)
    torch.testing.assert_close(normalizer.values_of(targets), returns)


def test_equal_returns_do_not_blow_up():
    normalizer, layer = ReturnNormalizer(None).double(), nn.Linear(2, 1).double()
    normalizer.learn(torch.full((9,), 3.0, dtype=torch.float64), layer, alone)
    assert normalizer.std == 1e-4
    assert normalizer.outputs_for(torch.tensor(3.0)).item() == pytest.approx(0, abs=1e-6)
    assert layer.weight.isfinite().all()


@pytest.mark.parametrize("shared", [False, True])
def test_an_agent_acts_and_bootstraps_in_the_units_of_rewards(shared):
    ppo = make_ppo(normalize_returns=True, network=functools.partial(ActorCritic, shared=shared))
    data = make_data()
    ppo.build_network(data.observation_space, data.action_space)
    ppo.return_normalizer.mean.fill_(100.0)
    ppo.return_normalizer.var.fill_(25.0)
    obs, noise = torch.randn(6, 4), torch.zeros(6, 2)
    expected = 100 + 5 * ppo.network(obs).value
    values = ppo.act(obs, noise, None).values
    assert (values is None) == (not shared)  # a critic of its own is asked for all steps of a rollout together
    if shared:
        torch.testing.assert_close(values, expected)
    torch.testing.assert_close(ppo.value_of(obs, None), expected)


def test_a_minibatch_holds_the_critics_outputs_and_their_targets():
    """After the statistics changed, what the network says of the first minibatch is still what the rollout said."""
    ppo, seen = make_ppo(normalize_returns=True), []
    step = ppo.training_step

    def spy(batch, batch_idx):
        if not batch_idx:
            with torch.no_grad():
                seen.append((ppo.network(batch.obs).value, batch.values, batch.returns))
        return step(batch, batch_idx)

    ppo.training_step = spy
    fit(ppo, make_data(iterations=3, num_minibatches=1), precision="64-true")
    for outputs, values, _ in seen:
        torch.testing.assert_close(outputs, values, rtol=1e-9, atol=1e-9)
    _, _, targets = seen[0]
    assert targets.mean().item() == pytest.approx(0, abs=1e-9)
    assert targets.std(correction=0).item() == pytest.approx(1, abs=1e-9)


def test_a_critic_keeps_up_with_large_returns():
    """Three steps that each pay 1000: 2710 at the beginning."""

    def value_at_start(**flags):
        data = make_data("tests.tasks:Wage-v0", iterations=25, update_epochs=4)
        data.env.kwargs = {"wage": 1000.0}
        ppo = fit(make_ppo(gae_lambda=1.0, learning_rate=1e-2, **flags), data)
        with torch.no_grad():
            return ppo.value_of(torch.zeros(1, Wage().width), None).item()

    assert value_at_start(normalize_returns=True) == pytest.approx(2710, rel=0.1)
    assert value_at_start() < 1000


class Valueless(ActorCritic):
    def __init__(self, observation_space, action_space):
        super().__init__(observation_space, action_space, encoder=functools.partial(MLPEncoder, hidden_sizes=[4]))
        self.fc_value = nn.Linear(4, 1, bias=False)


@pytest.mark.parametrize("network", [SmallGRU, Valueless])
def test_a_network_without_a_last_layer_to_rescale_is_refused(network):
    data, name = make_data(), network.__name__
    with pytest.raises(ConfigurationError, match=rf"^--model\.normalize_returns=true .*and {name} has no Linear .*\.$"):
        make_ppo(network=network, normalize_returns=True).build_network(data.observation_space, data.action_space)


# -- advantages


def normalized(scope, advantages, valid=True, weight=0.05, clip=4.0, gather=alone, normalizer=None):
    advantages = torch.as_tensor(advantages, dtype=torch.float64)
    valid = torch.as_tensor(valid).expand(advantages.shape)
    return (normalizer or AdvantageNormalizer(scope, weight, clip).double()).normalize(advantages, valid, gather)


def test_a_rollouts_advantages_have_mean_zero_and_std_one_where_they_are_valid():
    advantages, valid = 3 + 5 * torch.randn(20, 4, dtype=torch.float64), torch.rand(20, 4) < 0.7
    normal = normalized("rollout", torch.where(valid, advantages, 1e9), valid)[valid]
    assert normal.mean().item() == pytest.approx(0, abs=1e-12)
    assert normal.std().item() == pytest.approx(1, rel=1e-7)


def test_minibatches_are_left_to_themselves():
    assert normalized("minibatch", [[1.0, 5.0]]).tolist() == [[1, 5]]


@pytest.mark.parametrize("scope", ["rollout", "ema"])
def test_the_rollout_is_that_of_all_ranks(scope):
    own, others = torch.randn(6, 2, dtype=torch.float64), 4 + torch.randn(6, 2, dtype=torch.float64)
    sent = []
    for part in (own, others):
        normalized(scope, part, gather=lambda x: alone(sent.append(x) or x))
    together = torch.cat([own, others])
    expected = normalized(scope, together)
    for part, rows in ((own, expected[:6]), (others, expected[6:])):
        torch.testing.assert_close(normalized(scope, part, gather=lambda _: torch.stack(sent)), rows)


def test_moving_averages_match_numbers_computed_by_hand():
    step = functools.partial(normalized, "ema", normalizer=AdvantageNormalizer("ema", 0.25, 2.0).double())
    assert step([[1.0, 3.0]]).tolist() == [[-1, 1]]  # the first rollout's own mean 2 and std 1
    # mean 3/4·2 + 1/4·10 = 4, std 3/4·1 + 1/4·2 = 5/4
    assert step([[8.0, 12.0]]).tolist() == [[2, 2]]  # 3.2 and 6.4, clipped
    # mean 3/4·4 + 1/4·5 = 4.25, std 3/4·5/4 + 1/4·0 = 15/16
    assert step([[5.0], [5.0]]).tolist() == [[0.8], [0.8]]


def test_a_small_spread_is_not_blown_up():
    assert normalized("ema", [[0.001, -0.001]]).tolist() == [[0.05, -0.05]]  # by a std of at least 0.02
    assert normalized("ema", [[7.0, 7.0]]).tolist() == [[0, 0]]


def test_a_rollout_of_one_transition_is_no_reason_for_nan():
    for scope in ("rollout", "ema"):
        assert normalized(scope, [[3.0]]).tolist() == [[0]]


def test_each_scope_trains_otherwise_and_logs_the_same_spread():
    runs, spreads = [], []
    for norm_adv in (True, False, "minibatch", "rollout", "ema"):
        recorder = Recorder()
        runs.append(weights(fit(make_ppo(norm_adv=norm_adv), make_data(iterations=3), callbacks=[recorder])))
        spreads.append(recorder.metrics[0]["train/advantage_std"])
    assert equal(runs[0], runs[2])
    assert not any(equal(runs[i], runs[j]) for i in range(1, 5) for j in range(1, i))
    assert spreads == [spreads[0]] * 5


# -- what is refused


@pytest.mark.parametrize(
    ("flags", "words"),
    [
        ({"norm_adv": "rolout"}, r"--model\.norm_adv=rolout is not known: .*Did you mean rollout\?"),
        ({"norm_adv": "ema", "adv_ema_weight": 0.0}, r"--model\.adv_ema_weight must be greater than 0"),
        ({"norm_adv": "ema", "adv_ema_weight": 1.1}, r"--model\.adv_ema_weight"),
        ({"norm_adv": "ema", "adv_clip": 0.0}, r"--model\.adv_clip"),
        (
            {"normalize_rewards": True, "norm_ema": 1.0},
            r"--model\.norm_ema must be at least 0 and less than 1, not 1\.",
        ),
        ({"normalize_returns": True, "norm_ema": -0.1}, r"--model\.norm_ema"),
        ({"norm_ema": 0.9}, r"--model\.norm_ema=0\.9 is of .*neither is set: .*\.$"),
        ({"normalize_rewards": True, "reward_clip": 0.0}, r"--model\.reward_clip must be greater than 0, not 0\."),
        (
            {"normalize_rewards": True, "normalize_returns": True},
            r"--model\.normalize_rewards=true and --model\.norm.*",
        ),
    ],
)
def test_numbers_outside_their_range_and_contradictions_are_refused_by_name(flags, words):
    with pytest.raises(ConfigurationError, match=f"^{words}"):
        PPO(**flags)
