import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from ppo_lightning.functional import moments_of, pool_moments


def test_moments_match_numbers_computed_by_hand():
    assert moments_of(torch.tensor([1.0, 2.0, 6.0])).tolist() == pytest.approx([3, 3, 14 / 3], rel=1e-6)
    assert moments_of(torch.tensor([[5.0]])).tolist() == [1, 5, 0]
    assert moments_of(torch.tensor([])).tolist() == [0, 0, 0]


@given(st.lists(st.lists(st.floats(-1e6, 1e6), max_size=5), min_size=1, max_size=4))
def test_pooled_groups_are_one_group(groups):
    together = moments_of(torch.tensor([x for group in groups for x in group], dtype=torch.float64))
    pooled = pool_moments(torch.stack([moments_of(torch.tensor(group, dtype=torch.float64)) for group in groups]))
    torch.testing.assert_close(pooled, together, rtol=1e-9, atol=1e-6)


def test_pooling_is_stable_far_from_zero():
    """Where the mean of squares minus the square of the mean would have no digit left."""
    groups = torch.tensor([[1.0, 2.0], [3.0, 4.0]], dtype=torch.float64) + 1e9
    pooled = pool_moments(torch.stack([moments_of(group) for group in groups]))
    assert pooled.tolist() == [4, 1e9 + 2.5, 1.25]


def test_one_group_is_itself_to_the_bit():
    own = moments_of(torch.randn(1000, dtype=torch.float64) / 3)
    assert torch.equal(pool_moments(own[None]), own)


def test_pooling_keeps_other_dimensions():
    groups = torch.rand(2, 4, 5, 3)
    groups[..., 0] = 7
    assert pool_moments(groups).shape == (4, 5, 3)
    torch.testing.assert_close(pool_moments(groups)[1, 2], pool_moments(groups[:, 1, 2]))
