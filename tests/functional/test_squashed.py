import itertools
import math

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch import distributions as torchs

from ppo_lightning.functional import SquashedGaussian


def column(*numbers):
    return torch.tensor(numbers, dtype=torch.float64)[:, None]


def log_cosh(u):
    return u.abs() + torch.nn.functional.softplus(-2 * u.abs()) - math.log(2)


def normal_mass(low, high, mean, std):
    normal = torchs.Normal(torch.tensor(mean, dtype=torch.float64), std)
    return (normal.cdf(high) - normal.cdf(low)).item()


@pytest.mark.parametrize("mean", [0.0, -1.0, 3.0])
@pytest.mark.parametrize("std", [0.05, 0.5, 1.0, 3.0, 8.0])
def test_the_density_integrates_to_one(mean, std):
    """By trapezes over the actions themselves, narrow at the borders, where a wide normal piles up."""
    edge = 15.0  # float64's actions reach u = 18; what lies beyond the edge, the normal distribution says
    actions = torch.linspace(-edge, edge, 400_001, dtype=torch.float64).tanh()
    distribution = SquashedGaussian(column(mean).expand(len(actions), 1), torch.tensor([math.log(std)]).double())
    integral = torch.trapezoid(distribution.log_prob(actions[:, None]).exp(), actions)
    inside = normal_mass(actions[0].atanh(), actions[-1].atanh(), mean, std)
    assert integral.item() == pytest.approx(inside, abs=1e-6)
    assert std > 3 or inside == pytest.approx(1, abs=1e-4)


@st.composite
def cases(draw, furthest=5.0, rows=3, dimensions=2):
    size = rows * dimensions

    def matrix(low, high):
        numbers = draw(st.lists(st.floats(low, high, width=32), min_size=size, max_size=size))
        return torch.tensor(numbers, dtype=torch.float64).view(rows, dimensions)

    return matrix(-furthest, furthest), matrix(-5, 2), matrix(-4, 4)


@given(cases())
def test_log_probabilities_equal_torchs(case):
    mean, logstd, u = case
    normal = torchs.Independent(torchs.Normal(mean, logstd.exp()), 1)
    reference = torchs.TransformedDistribution(normal, torchs.TanhTransform())
    actions = u.tanh()
    ours = SquashedGaussian(mean, logstd).log_prob(actions)
    torch.testing.assert_close(ours, reference.log_prob(actions), rtol=1e-9, atol=1e-9)


def test_log_probabilities_match_numbers_computed_by_hand():
    distribution = SquashedGaussian(torch.zeros(1, 2, dtype=torch.float64), torch.tensor([0.0, math.log(2)]).double())
    actions = torch.tensor([[0.6, -0.6]], dtype=torch.float64)  # u = ± log(1.6 / 0.4) / 2 = ± log 2
    normal = -0.5 * math.log(2) ** 2 * (1 + 1 / 4) - math.log(2) - math.log(2 * math.pi)
    assert distribution.log_prob(actions).item() == pytest.approx(normal - 2 * math.log(1 - 0.36), rel=1e-7)


def test_samples_have_the_density_of_log_prob():
    edges = torch.tensor([-1, -0.95, -0.7, -0.3, 0, 0.4, 0.8, 0.97, 1], dtype=torch.float64)
    count, mean, logstd = 40_000, torch.tensor([0.4]), torch.tensor([0.3])
    torch.manual_seed(5)
    distribution = SquashedGaussian(mean.expand(count, 1), logstd)
    observed = torch.histogram(distribution.sample(distribution.noise())[:, 0].double(), bins=edges).hist

    inner = edges.clamp(-1 + 1e-9, 1 - 1e-9).atanh()
    pieces = [torch.linspace(low, high, 1001, dtype=torch.float64) for low, high in itertools.pairwise(inner.tolist())]
    grid = torch.cat(pieces).tanh()
    density = SquashedGaussian(mean.double().expand(len(grid), 1), logstd.double()).log_prob(grid[:, None]).exp()
    expected = count * torch.trapezoid(density.view(-1, 1001), grid.view(-1, 1001))
    assert ((observed - expected) ** 2 / expected).sum() < 24.3  # 99.9 % of chi-square with 7 degrees of freedom


def test_stored_actions_have_the_log_probability_they_were_sampled_with():
    torch.manual_seed(3)
    mean, logstd = 4 * torch.randn(1000, 3), torch.tensor([-2.0, 0.0, 1.5])
    rollout = SquashedGaussian(mean, logstd)
    actions = rollout.sample(rollout.noise())
    assert (actions.abs() > 1 - 1e-6).any()  # some are at the borders
    stored = torch.frombuffer(bytearray(actions.numpy().tobytes()), dtype=torch.float32).view_as(actions)
    assert torch.equal(SquashedGaussian(mean, logstd).log_prob(stored), rollout.log_prob(actions))


@given(cases(furthest=20.0), st.sampled_from([torch.float32, torch.float64]))
def test_saturated_distributions_stay_finite_in_value_and_gradient(case, dtype):
    mean, logstd, noise = (x.to(dtype) for x in case)
    mean.requires_grad_()
    logstd.requires_grad_()
    distribution = SquashedGaussian(mean, logstd)
    actions = distribution.sample(noise).detach()
    assert (actions.abs() < 1).all()
    assert (distribution.mode().abs() < 1).all()
    entropy = distribution.entropy()
    assert (entropy <= 2 * math.log(2) + 1e-5).all()  # no density on (-1, 1) has more than the uniform one
    edges = torch.ones_like(actions)
    numbers = [distribution.log_prob(a) for a in (actions, edges, -edges)]
    for number in (entropy, *numbers, distribution.sample(noise)):
        assert number.isfinite().all()
        for gradient in torch.autograd.grad(number.sum(), (mean, logstd), retain_graph=True, allow_unused=True):
            assert gradient is None or gradient.isfinite().all()


def test_an_action_at_the_border_counts_as_the_nearest_that_is_sampled():
    distribution = SquashedGaussian(torch.full((1, 1), 20.0), torch.zeros(1))
    nearest = distribution.sample(torch.zeros(1, 1))
    assert nearest.item() == 1 - 2**-23
    assert torch.equal(distribution.mode(), nearest)
    assert torch.equal(distribution.log_prob(torch.ones(1, 1)), distribution.log_prob(nearest))
    assert torch.equal(distribution.log_prob(torch.ones(1, 1, dtype=torch.float64)), distribution.log_prob(nearest))


@given(cases())
def test_float32_log_probabilities_are_near_float64s_of_the_same_actions(case):
    mean, logstd, noise = case
    narrow = SquashedGaussian(mean.float(), logstd.float())
    actions = narrow.sample(noise.float())
    exact = SquashedGaussian(mean, logstd).log_prob(actions)
    torch.testing.assert_close(narrow.log_prob(actions).double(), exact, rtol=1e-4, atol=1e-2)


def integrated_entropy(mean, logstd):
    """``(B, 1)`` each: the normal's own, and the mean of ``log(1 - tanh²)`` by a sum over a fine grid."""
    z = torch.linspace(-12, 12, 8001, dtype=torch.float64)
    weight = torch.exp(-z.square() / 2)
    inner = (-2 * log_cosh(mean + logstd.exp() * z) * weight).sum(-1) / weight.sum()
    return inner + logstd[:, 0] + 0.5 * math.log(2 * math.pi * math.e)


def test_entropy_and_its_gradient_equal_a_numerical_integral():
    grid = torch.cartesian_prod(torch.linspace(-5, 5, 21).double(), torch.linspace(-5, 2, 15).double())
    mean, logstd = grid[:, :1].requires_grad_(), grid[:, 1:].requires_grad_()
    exact, ours = integrated_entropy(mean, logstd), SquashedGaussian(mean, logstd).entropy()
    torch.testing.assert_close(ours, exact, rtol=0, atol=8.1e-7)
    expected = torch.autograd.grad(exact.sum(), (mean, logstd))
    for gradient, reference in zip(torch.autograd.grad(ours.sum(), (mean, logstd)), expected):
        torch.testing.assert_close(gradient, reference, rtol=0, atol=1e-5)
    single = SquashedGaussian(mean.float(), logstd.float()).entropy()
    torch.testing.assert_close(single.double(), exact, rtol=0, atol=5e-6)


def test_the_error_of_entropy_is_bounded_where_the_normal_averages_nothing():
    """Every other mean and std only averages these errors: so none is larger."""
    mean = torch.linspace(-40, 40, 80_001, dtype=torch.float64)[:, None]
    logstd = torch.tensor([-30.0], dtype=torch.float64)
    exact = -2 * log_cosh(mean)[:, 0] - 30 + 0.5 * math.log(2 * math.pi * math.e)
    torch.testing.assert_close(SquashedGaussian(mean, logstd).entropy(), exact, rtol=0, atol=8.1e-7)


def test_entropy_is_the_mean_of_minus_log_prob():
    torch.manual_seed(11)
    count, mean = 200_000, torch.tensor([0.5, -1.5], dtype=torch.float64)
    distribution = SquashedGaussian(mean.expand(count, 2), torch.tensor([-0.5, 0.4], dtype=torch.float64))
    surprise = -distribution.log_prob(distribution.sample(distribution.noise()))
    standard_error = surprise.std().item() / count**0.5
    assert distribution.entropy()[0].item() == pytest.approx(surprise.mean().item(), abs=4 * standard_error)


@pytest.mark.parametrize("rows", [1, 3])
def test_gradients_equal_finite_differences(rows):
    torch.manual_seed(0)
    mean, noise = torch.randn(2, 3, 2, dtype=torch.float64)
    logstd = torch.randn((2,) if rows == 1 else (rows, 2), dtype=torch.float64) / 2
    inputs = (mean.requires_grad_(), logstd.requires_grad_())
    actions = (1.5 * torch.randn(3, 2, dtype=torch.float64)).tanh().requires_grad_()
    gradcheck = torch.autograd.gradcheck
    assert gradcheck(lambda mean, logstd, a: SquashedGaussian(mean, logstd).log_prob(a), (*inputs, actions))
    assert gradcheck(lambda mean, logstd: SquashedGaussian(mean, logstd).entropy(), inputs)
    assert gradcheck(lambda mean, logstd: SquashedGaussian(mean, logstd).sample(noise), inputs)


def test_temperature_scales_the_std_and_keeps_the_mode():
    distribution = SquashedGaussian(torch.full((1, 2), 0.5), torch.zeros(2))
    hot = distribution.tempered(2.0)
    torch.testing.assert_close(hot.sample(torch.ones(1, 2)), torch.full((1, 2), 2.5).tanh())
    assert torch.equal(hot.mode(), torch.full((1, 2), 0.5).tanh())
    assert torch.equal(distribution.mode(), hot.mode())


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
def test_half_precision_networks_get_float32_actions(dtype):
    distribution = SquashedGaussian(torch.full((4, 3), 9.0, dtype=dtype), torch.zeros(3, dtype=dtype))
    actions = distribution.sample(torch.zeros(4, 3))
    assert actions.dtype == distribution.log_prob(actions.to(dtype)).dtype == distribution.entropy().dtype
    assert actions.dtype == torch.float32
    assert distribution.log_prob(actions.to(dtype)).isfinite().all()  # which rounds to 1
