import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from ppo_lightning.functional import merge_moments, moments_of, moments_of_rows, pool_moments


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


def rows_of(columns, low=-1e6, high=1e6):
    return st.lists(st.tuples(*[st.floats(low, high)] * columns), max_size=6).map(
        lambda rows: torch.tensor(rows, dtype=torch.float64).view(-1, columns)
    )


def test_moments_of_rows_match_numbers_computed_by_hand():
    moments = moments_of_rows(torch.tensor([[1.0, 5.0], [2.0, 5.0], [6.0, 5.0]]))
    assert moments.dtype == torch.float64
    torch.testing.assert_close(moments, torch.tensor([[3, 3, 14 / 3], [3, 5, 0]], dtype=torch.float64))
    assert torch.equal(moments_of_rows(torch.zeros(0, 2, 4)), torch.zeros(2, 4, 3, dtype=torch.float64))


def test_moments_of_rows_take_any_shape_and_dtype():
    images = torch.randint(0, 256, (5, 4, 3), dtype=torch.uint8)
    moments = moments_of_rows(images)
    assert moments.shape == (4, 3, 3)
    torch.testing.assert_close(moments[1, 2], moments_of(images[:, 1, 2].double()))
    assert moments_of_rows(torch.tensor([1.0, 3.0])).tolist() == [2, 2, 1]


def test_moments_of_float32_rows_keep_the_digits_of_the_rows():
    rows = torch.tensor([[16_777_214.0], [16_777_215.0], [16_777_216.0]])
    assert moments_of_rows(rows)[0].tolist() == pytest.approx([3, 16_777_215, 2 / 3], rel=1e-12)


@given(rows_of(2), rows_of(2), st.sampled_from([0.0, 1e8]))
def test_merged_moments_are_those_of_the_concatenated_rows(old, new, offset):
    old, new = old / 1e3 + offset, new / 1e3 + offset
    merged = merge_moments(moments_of_rows(old), moments_of_rows(new))
    # a mean of 1e8 is exact to 1e-8, where the mean of squares less the squared mean would be off by 1
    tolerance = {"rtol": 1e-9, "atol": 1e-5} if offset else {"rtol": 1e-12, "atol": 1e-9}
    torch.testing.assert_close(merged, moments_of_rows(torch.cat([old, new])), **tolerance)


def test_merging_is_stable_far_from_zero():
    together = torch.tensor([[1.0], [2.0], [3.0], [4.0]], dtype=torch.float64) + 1e8
    old, new = moments_of_rows(together[:1]), moments_of_rows(together[1:])
    assert merge_moments(old, new)[0].tolist() == [4, 1e8 + 2.5, 1.25]
    # 1/4·0 + 3/4·2/3 + 3/16·2²
    assert merge_moments(old, new, 0.25)[0].tolist() == pytest.approx([4, 1e8 + 2.5, 1.25], rel=1e-15)


def test_many_rollouts_merge_as_one():
    rows = torch.randn(1000, 3, generator=torch.Generator().manual_seed(2), dtype=torch.float64) * 0.1 + 1e8
    merged = torch.zeros(3, 3, dtype=torch.float64)
    for rollout in rows.split(7):
        merged = merge_moments(merged, moments_of_rows(rollout))
    torch.testing.assert_close(merged, moments_of_rows(rows), rtol=1e-13, atol=1e-9)


@given(st.lists(rows_of(1, -100, 100), min_size=1, max_size=5), st.floats(0, 0.999))
def test_a_moving_average_matches_a_slow_loop(rollouts, weight):
    """Of means and of mean squares, of which the variance is what is left."""
    count, mean, mean_square = 0, 0.0, 0.0
    merged = torch.zeros(1, 3, dtype=torch.float64)
    for rollout in rollouts:
        merged = merge_moments(merged, moments_of_rows(rollout), weight)
        numbers = rollout[:, 0].tolist()
        if not numbers:
            continue
        keep = weight if count else 0.0
        mean = keep * mean + (1 - keep) * sum(numbers) / len(numbers)
        mean_square = keep * mean_square + (1 - keep) * sum(x * x for x in numbers) / len(numbers)
        count += len(numbers)
    assert merged[0].tolist() == pytest.approx([count, mean, mean_square - mean**2], rel=1e-9, abs=1e-9)


@pytest.mark.parametrize("weight", [None, 0.0, 0.9])
def test_what_has_no_rows_counts_for_nothing(weight):
    known = torch.tensor([[4.0, 7.0, 2.0], [4.0, 1 / 3, 0.1]], dtype=torch.float64)
    nothing = torch.tensor([[0.0, 0.0, 1.0]], dtype=torch.float64).expand(2, 3)
    assert torch.equal(merge_moments(known, nothing, weight), known)
    assert torch.equal(merge_moments(nothing, known, weight), known)
    assert torch.equal(merge_moments(nothing, torch.zeros_like(nothing), weight), nothing)


def test_each_dimension_is_merged_by_its_own_counts():
    old = torch.tensor([[0.0, 0.0, 1.0], [2.0, 1.0, 0.0]], dtype=torch.float64)
    new = torch.tensor([[2.0, 4.0, 3.0], [2.0, 3.0, 0.0]], dtype=torch.float64)
    assert merge_moments(old, new, 0.75).tolist() == [[2, 4, 3], [4, 1.5, 0.75]]
    assert merge_moments(old, new).tolist() == [[2, 4, 3], [4, 2, 1]]
