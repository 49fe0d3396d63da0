import math

import pytest

from ppo_lightning.core.errors import ConfigurationError, check_range, close_names


@pytest.mark.parametrize(
    ("value", "limits", "bounds"),
    [
        (-1, {"low": 0}, "at least 0"),
        (0, {"low": 0, "exclude_low": True}, "greater than 0"),
        (1.5, {"low": 0, "high": 1}, "at least 0 and at most 1"),
        (-0.5, {"low": 0, "high": 1, "exclude_low": True}, "greater than 0 and at most 1"),
        (3, {"high": 2}, "at most 2"),
        (math.nan, {"low": 0, "high": 1}, "at least 0 and at most 1"),
        (math.nan, {"low": 0, "exclude_low": True}, "greater than 0"),
    ],
)
def test_a_value_out_of_range_is_named_with_flag_and_bounds(value, limits, bounds):
    with pytest.raises(ConfigurationError) as raised:
        check_range("--model.gamma", value, **limits)
    assert str(raised.value) == f"--model.gamma must be {bounds}, not {value:g}."


@pytest.mark.parametrize(
    ("value", "limits"),
    [
        (0, {"low": 0}),
        (1, {"low": 0, "high": 1}),
        (1e-9, {"low": 0, "exclude_low": True}),
        (math.inf, {"low": 0}),
        (-1e9, {"high": 0}),
    ],
)
def test_a_value_on_or_within_its_bounds_passes(value, limits):
    check_range("flag", value, **limits)


def test_close_names_are_suggested_without_regard_to_case():
    assert close_names("COINRAN", ["coinrun", "Maze"]) == " Did you mean coinrun?"
    assert close_names("maz", ["coinrun", "Maze"]) == " Did you mean Maze?"
    assert close_names("abcd1", ["abcd2", "abcd3"]) in (
        " Did you mean abcd2 or abcd3?",
        " Did you mean abcd3 or abcd2?",
    )


def test_nothing_is_suggested_where_nothing_is_close():
    assert close_names("zzz", ["coinrun", "Maze"]) == ""
    assert close_names("zzz", []) == ""
