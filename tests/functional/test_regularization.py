import math

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from ppo_lightning.functional import bounds_loss, l2c2_loss, mean_squared_difference


def matrix(*rows):
    return torch.tensor(rows, dtype=torch.float64)


def vector(*numbers):
    return torch.tensor(numbers, dtype=torch.float64)


def matrices(count, columns=3):
    row = st.tuples(*[st.floats(-3, 3, width=32)] * (columns * count))
    stacked = st.lists(row, min_size=1, max_size=8)
    return stacked.map(lambda rows: torch.tensor(rows, dtype=torch.float64).view(-1, count, columns).unbind(1))


def test_bounds_loss_matches_numbers_computed_by_hand():
    mean = matrix([0.5, -3.0], [2.0, 5.0], [-1.0, 4.0])
    # outside by 0 and 1, 1 and 1, 0 (on the bound) and 0 (on the bound)
    assert bounds_loss(mean, vector(-1, -2), vector(1, 4)).item() == pytest.approx((1 + 1 + 1) / 3, rel=1e-15)


@given(matrices(1))
def test_bounds_loss_matches_a_slow_loop(matrices):
    (mean,), low, high = matrices, [-1.0, -0.5, 0.25], [1.0, 2.0, 0.25]
    slow = [
        max(x - top, 0) ** 2 + max(bottom - x, 0) ** 2
        for row in mean.tolist()
        for x, bottom, top in zip(row, low, high)
    ]
    loss = bounds_loss(mean, vector(*low), vector(*high))
    assert loss.item() == pytest.approx(math.fsum(slow) / len(mean), rel=1e-12, abs=1e-14)


def test_bounds_loss_has_the_gradient_of_finite_differences_and_none_inside():
    mean = matrix([0.5, -3.1], [2.2, 5.0], [-1.4, 0.0]).requires_grad_()
    low, high = vector(-1, -2), vector(1, 4)
    assert torch.autograd.gradcheck(lambda mean: bounds_loss(mean, low, high), (mean,))
    bounds_loss(mean, low, high).backward()
    torch.testing.assert_close(mean.grad, 2 / 3 * matrix([0, -1.1], [1.2, 1.0], [-0.4, 0]), rtol=1e-12, atol=1e-15)


def test_missing_bounds_cost_nothing_and_give_no_nan():
    mean = matrix([7.0, -9.0, 3.0]).requires_grad_()
    loss = bounds_loss(mean, vector(-math.inf, -math.inf, -1), vector(math.inf, 2, math.inf))
    loss.backward()
    assert loss.item() == 0
    assert mean.grad.tolist() == [[0, 0, 0]]


def test_a_nan_mean_is_not_hidden():
    assert bounds_loss(matrix([math.nan, 0]), vector(-1, -1), vector(1, 1)).isnan()


@pytest.mark.parametrize("wrong", ["low", "high", "mean"])
def test_bounds_of_another_shape_are_refused(wrong):
    arguments = {"mean": torch.zeros(4, 2), "low": torch.zeros(2), "high": torch.zeros(2)}
    arguments[wrong] = torch.zeros(4, 1) if wrong == "mean" else torch.zeros(1)
    with pytest.raises(ValueError, match="must be equal"):
        bounds_loss(**arguments)


def test_squared_differences_are_averaged_over_all_elements_of_all_pairs():
    pairs = [(matrix([1, 2], [3, 4]), matrix([0, 2], [2, 2])), (matrix([0], [3]), matrix([0], [1]))]
    assert mean_squared_difference(pairs).item() == pytest.approx((1 + 0 + 1 + 4 + 0 + 4) / 6, rel=1e-15)


def test_differences_of_bytes_and_half_precisions_do_not_wrap_or_round():
    dark, bright = torch.tensor([[3]], dtype=torch.uint8), torch.tensor([[250]], dtype=torch.uint8)
    assert mean_squared_difference([(dark, bright)]).item() == 247**2
    halves = torch.tensor([[300.0]], dtype=torch.bfloat16)
    assert mean_squared_difference([(halves, torch.zeros_like(halves))]).item() == 90_000  # 89,600 in bfloat16


def test_smoothness_loss_matches_numbers_computed_by_hand():
    noisy, clean = matrix([1, 3], [2, 4]), matrix([0, 1], [1, 2])
    loss = l2c2_loss(noisy, clean, vector(0.5).squeeze())
    assert loss.item() == pytest.approx((1 + 4 + 1 + 4) / 4 / (0.5 + 1e-8), rel=1e-15)


@given(matrices(4))
def test_smoothness_loss_is_a_ratio_of_mean_squares(matrices):
    noisy, clean, noisy_obs, clean_obs = matrices
    loss = l2c2_loss(noisy, clean, mean_squared_difference([(noisy_obs, clean_obs)]))
    numerator = math.fsum((a - b) ** 2 for a, b in zip(noisy.flatten().tolist(), clean.flatten().tolist()))
    below = math.fsum((a - b) ** 2 for a, b in zip(noisy_obs.flatten().tolist(), clean_obs.flatten().tolist()))
    size = noisy.numel()
    assert loss.item() == pytest.approx(numerator / size / (below / size + 1e-8), rel=1e-12, abs=1e-300)


def test_a_linear_policy_has_its_squared_slope_whatever_the_noise():
    torch.manual_seed(0)
    clean = torch.randn(50, 1, dtype=torch.float64)
    for noise in (0.01, 1.0):
        noisy = clean + noise * torch.randn_like(clean)
        loss = l2c2_loss(3 * noisy, 3 * clean, mean_squared_difference([(noisy, clean)]))
        assert loss.item() == pytest.approx(9, rel=1e-3)


def test_smoothness_moves_both_means_and_never_the_observations():
    torch.manual_seed(0)
    noisy, clean, noisy_obs, clean_obs = (x.requires_grad_() for x in torch.randn(4, 5, 2).double().unbind())
    distance = mean_squared_difference([(noisy_obs, clean_obs)])
    assert torch.autograd.gradcheck(lambda a, b: l2c2_loss(a, b, distance), (noisy, clean))
    assert torch.autograd.gradcheck(lambda a, b: mean_squared_difference([(a, b)]), (noisy_obs, clean_obs))
    l2c2_loss(noisy, clean, distance).backward()
    assert noisy.grad.abs().sum() > 0
    torch.testing.assert_close(noisy.grad, -clean.grad)
    assert noisy_obs.grad is None
    assert clean_obs.grad is None


def test_equal_observations_cost_nothing():
    same = matrix([1, 2])
    assert l2c2_loss(same, same.clone(), mean_squared_difference([(same, same)])).item() == 0


def test_pairs_of_two_shapes_are_refused():
    with pytest.raises(ValueError, match=r"second has shape \(4,\) and first \(4, 1\)"):
        mean_squared_difference([(torch.zeros(4, 1), torch.zeros(4))])
