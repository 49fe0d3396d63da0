"""Moving means, wall time, mean and band, by hand."""

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from ppo_lightning.curves.statistics import Series, common_range, mean_and_band, moving_mean, over_time


def series(x, y):
    return Series(np.array(x, dtype=float), np.array(y, dtype=float))


@pytest.mark.parametrize(
    ("window", "expected"),
    [
        (0, [1, 5, 3, 11]),
        (10, [1, 5, 3, 11]),  # (x - 10, x] has one value
        (11, [1, 3, 4, 11]),  # the last two, but 50 is alone in (39, 50]
        (25, [1, 3, 3, 7]),  # (25, 50] has 30 and 50
        (1000, [1, 3, 3, 5]),
    ],
)
def test_moving_mean_is_over_the_window_before_each_point(window, expected):
    smoothed = moving_mean(series([10, 20, 30, 50], [1, 5, 3, 11]), window)
    assert smoothed.x.tolist() == [10, 20, 30, 50]
    assert smoothed.y.tolist() == expected


@given(st.lists(st.floats(-1e6, 1e6), min_size=1, max_size=20), st.floats(0, 30))
def test_moving_mean_against_a_loop(values, window):
    steps = np.arange(1.0, len(values) + 1)
    slow = [np.mean([v for s, v in zip(steps, values) if step - window < s <= step or s == step]) for step in steps]
    np.testing.assert_allclose(moving_mean(series(steps, values), window).y, slow, rtol=1e-9, atol=1e-6)


def test_moving_mean_keeps_small_values_after_large_ones():
    assert moving_mean(series([1, 2, 3, 4], [1e20, 1.0, 2.0, 4.0]), 2).y[2:].tolist() == [1.5, 3.0]


def test_mean_and_sample_deviation_of_seeds_at_the_same_steps():
    curve = mean_and_band([series([1, 2], [0, 10]), series([1, 2], [2, 20]), series([1, 2], [4, 60])])
    assert curve.x.tolist() == [1, 2]
    assert curve.mean.tolist() == [2, 30]
    assert curve.std.tolist() == pytest.approx([2, 700**0.5])  # (4 + 0 + 4) / 2 and (400 + 100 + 900) / 2


def test_seeds_at_other_steps_are_interpolated_where_all_of_them_are():
    early, late = series([0, 10, 40], [0, 10, 40]), series([5, 15, 25], [10, 30, 10])
    assert common_range([early, late]) == (5, 25)
    curve = mean_and_band([early, late])
    assert curve.x.tolist() == [5, 10, 15, 25]
    assert curve.mean.tolist() == [7.5, 15, 22.5, 17.5]
    assert curve.std.tolist() == pytest.approx(np.array([5, 10, 15, 15]) / 2**0.5)


def test_one_seed_has_no_band():
    curve = mean_and_band([series([1, 3], [5, 7])])
    assert (curve.x.tolist(), curve.mean.tolist(), curve.std) == ([1, 3], [5, 7], None)


def test_wall_time_of_a_step_lies_between_those_of_its_neighbours():
    clock = series([100, 200, 400], [10, 30, 40])
    timed = over_time(series([0, 50, 100, 150, 300, 400], range(6)), clock)
    assert timed.x.tolist() == [0, 5, 10, 20, 35, 40]  # a run's first second is at step 0
    assert timed.y.tolist() == [0, 1, 2, 3, 4, 5]
