import math

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from ppo_lightning.functional.confidence import CONFIDENCES

LOGITS = torch.log(torch.tensor([[0.5, 0.25, 0.25], [0.1, 0.1, 0.8]])) + 2  # probabilities times e²


@pytest.mark.parametrize(
    ("name", "expected"),
    [
        ("max_logit", [2 + math.log(0.5), 2 + math.log(0.8)]),
        ("max_prob", [0.5, 0.8]),
        ("margin", [0.25, 0.7]),
        ("entropy", [-1.5 * math.log(2), 0.8 * math.log(0.8) + 0.2 * math.log(0.1)]),
        ("energy", [2.0, 2.0]),
    ],
)
def test_measures_by_hand(name, expected):
    torch.testing.assert_close(CONFIDENCES[name](LOGITS), torch.tensor(expected))


def reference(name, logits):
    """In numpy's float64, a row at a time."""
    values = []
    for row in np.asarray(logits, dtype=np.float64):
        shifted = np.exp(row - row.max())
        p = np.sort(shifted / shifted.sum())[::-1]
        values.append(
            {
                "max_logit": row.max(),
                "max_prob": p[0],
                "margin": p[0] - p[1],
                "entropy": sum(x * math.log(x) for x in p if x > 0),
                "energy": row.max() + math.log(shifted.sum()),
            }[name]
        )
    return values


@pytest.mark.parametrize("name", CONFIDENCES)
@given(st.lists(st.lists(st.floats(-40, 40, width=32), min_size=4, max_size=4), min_size=1, max_size=5))
def test_measures_are_those_of_a_slow_reference(name, logits):
    tensor = torch.tensor(logits)
    np.testing.assert_allclose(CONFIDENCES[name](tensor), reference(name, logits), rtol=1e-5, atol=2e-6)
    exact = CONFIDENCES[name](tensor.double())
    assert exact.dtype == torch.float64
    np.testing.assert_allclose(exact, reference(name, logits), rtol=1e-12, atol=1e-12)


@pytest.mark.parametrize("name", CONFIDENCES)
def test_an_impossible_action_counts_for_nothing(name):
    possible = torch.tensor([[1.0, 0.5, -0.5]])
    masked = torch.tensor([[1.0, -math.inf, 0.5, -0.5]])
    torch.testing.assert_close(CONFIDENCES[name](masked), CONFIDENCES[name](possible))


@pytest.mark.parametrize("name", CONFIDENCES)
def test_higher_is_surer(name):
    spread = torch.arange(1, 6)[:, None] * torch.tensor([1.0, 0.0, 0.0])
    confidence = CONFIDENCES[name](spread)
    assert (confidence.diff() > 0).all()
