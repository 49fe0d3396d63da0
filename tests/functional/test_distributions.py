import math

import pytest
import torch
from gymnasium import spaces
from hypothesis import given
from hypothesis import strategies as st

from ppo_lightning.functional import Categorical, DiagonalGaussian
from ppo_lightning.functional.distributions import draw_noise

EXACT = {"rtol": 1e-12, "atol": 1e-12}


def generators(*seeds):
    return [torch.Generator().manual_seed(seed) for seed in seeds]


def matrices(columns, low=-20.0, high=20.0):
    row = st.tuples(*[st.floats(low, high, width=32)] * columns)
    return st.lists(row, min_size=1, max_size=6).map(lambda rows: torch.tensor(rows, dtype=torch.float64))


@given(matrices(4), st.integers(0, 3))
def test_categorical_equals_torch(logits, action):
    ours, torchs = Categorical(logits), torch.distributions.Categorical(logits=logits)
    actions = torch.full((len(logits),), action)
    torch.testing.assert_close(ours.log_prob(actions), torchs.log_prob(actions), **EXACT)
    torch.testing.assert_close(ours.entropy(), torchs.entropy(), **EXACT)
    assert torch.equal(ours.mode(), torchs.mode)


@given(matrices(3, -5, 5), matrices(3, -5, 5), st.tuples(*[st.floats(-3, 2, width=32)] * 3))
def test_gaussian_equals_torch(mean, actions, logstd):
    rows = min(len(mean), len(actions))
    mean, actions, logstd = mean[:rows], actions[:rows], torch.tensor(logstd, dtype=torch.float64)
    for own_logstd in (logstd, logstd.expand(rows, 3) + mean / 10):
        ours = DiagonalGaussian(mean, own_logstd)
        torchs = torch.distributions.Independent(torch.distributions.Normal(mean, own_logstd.exp().expand(rows, 3)), 1)
        torch.testing.assert_close(ours.log_prob(actions), torchs.log_prob(actions), rtol=1e-12, atol=1e-10)
        torch.testing.assert_close(ours.entropy(), torchs.entropy(), **EXACT)
        assert torch.equal(ours.mode(), mean)


@pytest.mark.parametrize("source", ["draw_noise", "own noise"])
def test_categorical_samples_pass_a_chi_square_test(source):
    logits, count = torch.tensor([0.0, 1.0, -1.0, 2.0, -2.5]), 40_000
    distribution = Categorical(logits.expand(count, 5))
    if source == "draw_noise":
        noise = draw_noise(spaces.Discrete(5), count, generators(3), torch.float32, torch.device("cpu"))[:, 0]
    else:
        noise = distribution.noise()
    expected = count * torch.softmax(logits, 0)
    observed = torch.bincount(distribution.sample(noise), minlength=5)
    assert ((observed - expected) ** 2 / expected).sum() < 18.47  # 99.9 % of chi-square with 4 degrees of freedom


@pytest.mark.parametrize("space", [spaces.Discrete(3), spaces.Box(-1, 1, (2,))])
@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_noise_has_the_digits_asked_for_whatever_torchs_default_is(space, dtype):
    """As in the Trainer's bf16-true, where a thousandth of the draws would tie, and 64-true."""
    expected = draw_noise(space, 5, generators(3), dtype, torch.device("cpu"))
    for default in (torch.bfloat16, torch.float64):
        torch.set_default_dtype(default)
        try:
            noise = draw_noise(space, 5, generators(3), dtype, torch.device("cpu"))
        finally:
            torch.set_default_dtype(torch.float32)
        assert noise.dtype == dtype
        assert torch.equal(noise, expected)


@pytest.mark.parametrize("source", ["draw_noise", "own noise"])
def test_gaussian_samples_have_the_right_moments(source):
    mean, logstd, count = torch.tensor([1.0, -2.0]), torch.tensor([0.0, math.log(3)]), 40_000
    distribution = DiagonalGaussian(mean.expand(count, 2), logstd)
    if source == "draw_noise":
        noise = draw_noise(spaces.Box(-1, 1, (2,)), count, generators(3), torch.float32, torch.device("cpu"))[:, 0]
    else:
        noise = distribution.noise()
    samples, std = distribution.sample(noise), logstd.exp()
    assert ((samples.mean(0) - mean).abs() < 4 * std / count**0.5).all()
    assert ((samples.std(0) / std - 1).abs() < 4 / (2 * count) ** 0.5).all()
    assert abs(torch.corrcoef(samples.T)[0, 1]) < 4 / count**0.5


def test_temperature_divides_logits_and_scales_std():
    logits = torch.tensor([[0.0, 1.0, -3.0]], dtype=torch.float64)
    hot = Categorical(logits).tempered(2.0)
    torch.testing.assert_close(hot.log_probs, torch.log_softmax(logits / 2, -1), **EXACT)
    wide = DiagonalGaussian(torch.zeros(1, 2), torch.zeros(2)).tempered(2.0)
    torch.testing.assert_close(wide.sample(torch.ones(1, 2)), torch.full((1, 2), 2.0))
    assert torch.equal(wide.mode(), torch.zeros(1, 2))


def test_an_impossible_action_has_finite_entropy_and_gradient_and_is_never_drawn():
    logits = torch.tensor([[0.0, -math.inf, 0.0]]).expand(10_000, 3).clone().requires_grad_()
    distribution = Categorical(logits)
    torch.testing.assert_close(distribution.entropy()[0].item(), math.log(2), rtol=1e-6, atol=0)
    assert not (distribution.sample(distribution.noise()) == 1).any()
    assert not (distribution.tempered(5.0).sample(distribution.noise()) == 1).any()
    assert distribution.log_prob(torch.ones(10_000, dtype=torch.int64))[0] == -math.inf
    (distribution.entropy() + distribution.log_prob(torch.zeros(10_000, dtype=torch.int64))).sum().backward()
    assert logits.grad.isfinite().all()


@pytest.mark.parametrize("space", [spaces.Discrete(3), spaces.Box(-1, 1, (2,))])
def test_a_noise_column_depends_on_its_generator_alone(space):
    def noise(*seeds):
        return draw_noise(space, 5, generators(*seeds), torch.float32, torch.device("cpu"))

    many = noise(7, 8, 9)
    assert many.shape == (5, 3, 3 if isinstance(space, spaces.Discrete) else 2)
    assert torch.equal(many[:, 1:2], noise(8))
    assert torch.equal(many[:, [2, 0]], noise(9, 7))
    assert not torch.equal(many[:, 0], many[:, 1])


def test_noise_has_the_asked_dtype():
    noise = draw_noise(spaces.Discrete(3), 2, generators(1), torch.float64, torch.device("cpu"))
    assert noise.dtype == torch.float64


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
def test_half_precision_networks_get_float32_distributions(dtype):
    numbers = torch.randn(4, 3).to(dtype)
    categorical, gaussian = Categorical(numbers), DiagonalGaussian(numbers, torch.zeros(3, dtype=dtype))
    assert categorical.log_prob(torch.zeros(4, dtype=torch.int64)).dtype == torch.float32
    assert categorical.entropy().dtype == torch.float32
    assert gaussian.log_prob(torch.zeros(4, 3)).dtype == torch.float32
    assert gaussian.entropy().dtype == torch.float32
    assert gaussian.sample(torch.zeros(4, 3)).dtype == torch.float32
    torch.testing.assert_close(categorical.log_probs, torch.log_softmax(numbers.float(), -1))
