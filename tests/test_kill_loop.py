"""A run that is killed again and again ends as the one that was left in peace; and what counts as the same."""

import math
import re
from collections import OrderedDict
from pathlib import Path

import pytest
import torch

from benchmarks.kill_loop import RUN, compare, differences, kill_loop
from ppo_lightning.core.checkpoint_io import write_checkpoint
from tests.commands import REPOSITORY, WALK

STROLL = [
    *(flag for flag in WALK if not flag.startswith(("--data.env.id", "--data.total_timesteps"))),
    *("--data.env.id=tests.tasks:Stroll-v0", "--evaluation.every_n_iterations=5"),
]


def killed(capsys, monkeypatch, *flags, **how):
    """The steps that were safe after each kill; at its end the run is the one that was never killed."""
    monkeypatch.setenv("PYTHONPATH", str(REPOSITORY))
    monkeypatch.setenv("STROLL_SECONDS", "0.002")
    assert kill_loop(Path("loop"), [*STROLL, *flags], **how) == []
    return [int(steps.replace(",", "")) for steps in re.findall(r"s: ([\d,]+) steps are safe", capsys.readouterr().out)]


def test_a_run_killed_three_times_ends_as_one_left_in_peace(capsys, monkeypatch):
    safe = killed(capsys, monkeypatch, "--data.total_timesteps=1920", kills=3, within=None, seed=97)
    assert safe  # where the machine dawdled in the run that was left in peace, the other ends before the last kill
    assert safe == sorted(safe)


@pytest.mark.slow
def test_a_run_killed_fifteen_times_ends_as_one_left_in_peace(capsys, monkeypatch):
    safe = killed(capsys, monkeypatch, "--data.total_timesteps=16000", kills=15, within=12, seed=1)
    assert safe == sorted(safe)
    assert len(set(safe)) > 3


def ones():
    return torch.ones(3)


@pytest.mark.parametrize(
    ("first", "second"),
    [
        (ones(), torch.tensor([1.0, 1.0, math.nextafter(1.0, 2.0)], dtype=torch.float64).float() + 2**-23),
        (torch.zeros(3), -torch.zeros(3)),
        (ones(), ones().double()),
        (ones(), ones()[None]),
        (ones(), [1.0, 1.0, 1.0]),
        (0.0, -0.0),
        (1, True),
        (1, 1.0),
        (1.0, math.nextafter(1.0, 2.0)),
        ("a", "b"),
        (None, 0),
        ([1, 2], [1, 2, 3]),
        ((1,), [1]),
        ({"a": 1}, {}),
        ({}, {"a": 1}),
        ({"a": 1, "b": 2}, {"b": 2, "a": 1}),
        ({"a": 1}, OrderedDict(a=1)),
        ({"a": [{"b": ones()}]}, {"a": [{"b": 2 * ones()}]}),
    ],
)
def test_what_differs(first, second):
    assert list(differences(first, second))
    assert list(differences(second, first))


@pytest.mark.parametrize(
    ("first", "second"),
    [
        (torch.tensor([math.nan, -0.0]), torch.tensor([math.nan, -0.0])),
        (math.nan, float("nan")),
        (torch.zeros(0, 2), torch.zeros(0, 2)),
        (torch.tensor(1), torch.tensor(1)),
        (torch.arange(6).view(2, 3).T, torch.tensor([[0, 3], [1, 4], [2, 5]])),
        ({"time/sps": 3.0, "a": ones()}, {"time/sps": 4.0, "a": ones()}),
        ("/one/lightning_logs/version_0/last.ckpt", "other/lightning_logs/version_0/last.ckpt"),
        ({"/one/last.ckpt": 1}, {"/other/last.ckpt": 1}),
    ],
)
def test_what_is_the_same(first, second):
    assert list(differences(first, second)) == []


def test_a_difference_is_told_by_its_place():
    assert list(differences({"a": [1, {"b": ones()}]}, {"a": [1, {"b": -ones()}]})) == ["/a[1]/b: other tensors"]


def end_of_a_run(name, weight=1.0, rows="1,2,30\n"):
    write_checkpoint({"weight": torch.tensor(weight)}, Path(name, RUN, "checkpoints/last.ckpt"))
    Path(name, RUN, "metrics.csv").write_text(f"step,train/loss,time/sps\n{rows}")
    return Path(name)


def test_runs_are_compared_by_last_checkpoint_and_curves():
    whole = end_of_a_run("whole")
    assert compare(whole, end_of_a_run("same", rows="1,2,40\n")) == []
    assert compare(whole, end_of_a_run("weight", 2.0)) == ["/weight: other tensors"]
    for number, rows in enumerate(["1,2.5,30\n", "", "1,2,30\n1,2,30\n"]):
        assert compare(whole, end_of_a_run(f"rows{number}", rows=rows)) == ["metrics.csv: other rows"]
