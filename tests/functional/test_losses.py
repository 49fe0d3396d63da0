import math

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from ppo_lightning.functional import (
    advantage_loss,
    approx_kl_divergence,
    clip_fraction,
    ppo_clipped_policy_loss,
    value_loss,
)

COLUMN, ROW = torch.zeros(5, 1), torch.zeros(5)


def vector(*numbers):
    return torch.tensor(numbers, dtype=torch.float64)


def vectors(count):
    row = st.tuples(*[st.floats(-3, 3, width=32)] * count)
    return st.lists(row, min_size=1, max_size=20).map(lambda rows: torch.tensor(rows, dtype=torch.float64).T)


def test_policy_loss_matches_numbers_computed_by_hand():
    log_probs = vector(1.5, 0.5, 1.5, 0.5).log() - 1
    loss, ratio = ppo_clipped_policy_loss(log_probs, vector(-1, -1, -1, -1), vector(1, 1, -1, -1), clip_coef=0.2)
    # -1.2 (clipped), -0.5, 1.5, 0.8 (clipped)
    assert loss.item() == pytest.approx((-1.2 - 0.5 + 1.5 + 0.8) / 4, abs=1e-15)
    torch.testing.assert_close(ratio, vector(1.5, 0.5, 1.5, 0.5), rtol=1e-15, atol=0)


def test_policy_gradient_is_cut_only_where_the_clip_binds():
    log_probs = vector(1.5, 0.5, 1.5, 0.5).log().requires_grad_()
    ppo_clipped_policy_loss(log_probs, vector(0, 0, 0, 0), vector(1, 1, -1, -1), 0.2)[0].backward()
    # d(-A r)/d log_prob = -A r, over four rows
    torch.testing.assert_close(log_probs.grad, vector(0, -0.5, 1.5, 0) / 4, rtol=1e-14, atol=0)


@given(vectors(3), st.floats(0.01, 0.9))
def test_policy_loss_matches_the_formula_of_stable_baselines3(rows, clip_coef):
    log_probs, old_log_probs, advantages = rows
    ratio = torch.exp(log_probs - old_log_probs)
    expected = -torch.min(advantages * ratio, advantages * torch.clamp(ratio, 1 - clip_coef, 1 + clip_coef)).mean()
    loss, _ = ppo_clipped_policy_loss(log_probs, old_log_probs, advantages, clip_coef)
    torch.testing.assert_close(loss, expected, rtol=1e-13, atol=1e-13)


def test_unclipped_value_loss_matches_numbers_computed_by_hand():
    loss = value_loss(vector(3, 1, 0), vector(0, 2, 0), vector(1, 1.5, 2), clip_coef=None)
    assert loss.item() == pytest.approx((9 + 1 + 0) / 3 / 2, rel=1e-15)


def test_clipped_value_loss_takes_the_worse_prediction():
    # predictions moved to 1.5, 1 and 1.5: squared errors max(9, 2.25), max(1, 1), max(0, 2.25)
    loss = value_loss(vector(3, 1, 0), vector(0, 2, 0), vector(1, 1.5, 2), clip_coef=0.5)
    assert loss.item() == pytest.approx((9 + 1 + 2.25) / 3 / 2, rel=1e-15)


@given(vectors(3), st.floats(0.01, 2))
def test_value_loss_matches_a_slow_loop(rows, clip_coef):
    slow = []
    for value, target, old in zip(*(row.tolist() for row in rows)):
        moved = old + min(max(value - old, -clip_coef), clip_coef)
        slow.append(max((value - target) ** 2, (moved - target) ** 2))
    loss = value_loss(*rows, clip_coef=clip_coef)
    assert loss.item() == pytest.approx(0.5 * math.fsum(slow) / len(slow), rel=1e-12, abs=1e-14)


def test_kl_estimate_matches_numbers_computed_by_hand():
    # (2 - 1 - log 2 + 1/2 - 1 + log 2) / 2
    assert approx_kl_divergence(vector(2, 0.5).log(), vector(0, 0)).item() == pytest.approx(0.25, rel=1e-14)


def test_kl_estimate_is_from_old_to_new_and_unbiased():
    old, new = vector(0.5, 0.25, 0.25), vector(0.2, 0.3, 0.5)
    samples = torch.tensor([0, 0, 1, 2])  # in the old policy's proportions
    kl = (old * (old / new).log()).sum()
    torch.testing.assert_close(approx_kl_divergence(new.log()[samples], old.log()[samples]), kl, rtol=1e-13, atol=0)


@given(vectors(2))
def test_kl_estimate_is_never_negative_and_zero_for_equal_policies(rows):
    assert approx_kl_divergence(rows[0], rows[1]).item() >= 0
    assert approx_kl_divergence(rows[0], rows[0]).item() == 0


def test_advantage_loss_matches_numbers_computed_by_hand():
    predictions = vector(1, 2, -3).requires_grad_()
    loss = advantage_loss(predictions, vector(3, 2, -1))
    assert loss.item() == pytest.approx((4 + 0 + 4) / 3, rel=1e-15)  # a mean over the batch, and no half of it
    loss.backward()
    torch.testing.assert_close(predictions.grad, vector(-4, 0, -4) / 3, rtol=1e-15, atol=0)


def test_kl_estimate_of_a_tiny_change_keeps_its_digits_in_float32():
    # half the square of the change, which (ratio - 1) - log ratio would round to noise
    change = torch.full((8,), 1e-3)
    assert approx_kl_divergence(change, torch.zeros(8)).item() == pytest.approx(0.5e-6, rel=1e-3)


def test_clip_fraction_counts_both_sides():
    ratio = torch.tensor([1.3, 0.7, 1.1, 0.95, 1.0])
    assert clip_fraction(ratio, 0.2).item() == pytest.approx(0.4)
    assert clip_fraction(ratio, 0.35).item() == 0.0
    sb3 = np.mean(np.abs(ratio.numpy() - 1) > 0.08)
    assert clip_fraction(ratio, 0.08).item() == pytest.approx(sb3)


@pytest.mark.parametrize(
    ("call", "name", "first"),
    [
        (lambda: ppo_clipped_policy_loss(ROW, COLUMN, ROW, 0.2), "old_log_probs", "log_probs"),
        (lambda: ppo_clipped_policy_loss(ROW, ROW, COLUMN, 0.2), "advantages", "log_probs"),
        (lambda: value_loss(ROW, COLUMN, ROW, None), "returns", "values"),
        (lambda: value_loss(ROW, ROW, COLUMN, 0.2), "old_values", "values"),
        (lambda: approx_kl_divergence(ROW, COLUMN), "old_log_probs", "log_probs"),
        (lambda: advantage_loss(ROW, COLUMN), "advantages", "predictions"),
    ],
)
def test_a_column_beside_a_row_is_refused_by_both_shapes(call, name, first):
    with pytest.raises(ValueError, match=rf"^{name} has shape \(5, 1\) and {first} \(5,\)"):
        call()
