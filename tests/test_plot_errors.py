"""Every mistake of ``ppo-lightning plot`` is one sentence, and leaves the pictures that were there."""

import sys
from pathlib import Path

import pytest
from matplotlib.figure import Figure

from ppo_lightning import ConfigurationError, plot_runs
from tests.commands import command, sentence_of
from tests.curves.files import config, returns, write_run


def refused(*args):
    """The sentence; a picture that was there is as it was, and nothing is beside it."""
    Path("out").mkdir()
    Path("out/curves.png").write_text("of yesterday")
    out = [] if any(arg.startswith("--out") for arg in args) else ["--out=out/curves.png"]
    sentence = sentence_of(command("plot", *args, *out))
    assert Path("out/curves.png").read_text() == "of yesterday"
    assert [path.name for path in Path("out").iterdir()] == ["curves.png"]
    return sentence


@pytest.mark.parametrize(
    ("args", "words"),
    [
        (["missing"], ["missing does not exist"]),
        (["runs", "--metric=train/entrpy"], ["--metric=train/entrpy", "rollout/return_mean", "Did you mean train/ent"]),
        (["runs", "other", "--metric=train/entropy"], ["--metric=train/entropy", "other has time/sps"]),
        (["runs", "other"], ["no return in common", "runs has rollout/return_mean", "other has time/sps", "--metric"]),
        (["runs", "headed"], ["no return in common", "headed has no values at all"]),
        (["runs", "--x=time"], ["--x=time needs time/seconds", "metrics.csv of runs"]),
        (["runs", "--x=tme"], ["--x=tme", "env_steps, time"]),
        (["runs", "--smooth=2"], ["--smooth must be at least 0 and at most 1, not 2"]),
        (["runs", "--smooth=much"], ["--smooth=much", "float"]),
        (["runs", "--metrik=a"], ["--metrik=a", "Did you mean metric?", "plot --help"]),
        (["runs", "--out=curves.pgn"], ["--out=curves.pgn", "svg", "Did you mean png"]),
        (["runs", "--out=curves"], ["--out=curves does not end", "name a .png"]),
        (["runs", "--out=out"], ["--out=out does not end"]),
        (["runs", "--out=out/curves.png/new.png"], ["out/curves.png/new.png cannot be written", "is a file"]),
        ([], ["runs", "plot --help"]),
        (["=runs"], ["empty label"]),
    ],
)
def test_a_mistake_is_one_sentence(args, words):
    write_run("runs", returns(1, 2, train_entropy=(1, 2)))
    write_run("other", [{"step": 1, "time/sps": 3}])
    write_run("headed").joinpath("metrics.csv").write_text("step,rollout/return_mean\n")
    sentence = refused(*args)
    for word in words:
        assert word in sentence


def test_runs_that_are_nowhere_together_are_refused():
    write_run("logs/version_0", [{"step": 10, "rollout/return_mean": 1}])
    write_run("logs/version_1", [{"step": 11, "rollout/return_mean": 1}], config(seed=2))
    sentence = refused("logs")
    assert "Walk-v0" in sentence
    assert "rollout/return_mean" in sentence


def test_an_out_folder_that_cannot_be_written_is_refused(monkeypatch):
    write_run("run")
    monkeypatch.setattr("os.access", lambda path, mode: False)
    with pytest.raises(ConfigurationError, match=r"--out=curves.png cannot be written \(.* is read-only\)"):
        plot_runs("run", out="curves.png")


def test_a_picture_that_cannot_be_finished_leaves_the_old_one(monkeypatch):
    write_run("run")

    def full(self, path, **kwargs):
        Path(path).write_text("half a picture")
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(Figure, "savefig", full)
    assert "No space left on device" in refused("run")


def test_without_matplotlib_the_extra_is_named(monkeypatch):
    write_run("run")
    monkeypatch.setitem(sys.modules, "matplotlib", None)
    monkeypatch.delitem(sys.modules, "ppo_lightning.curves.figure", raising=False)
    monkeypatch.delattr("ppo_lightning.curves.figure", raising=False)
    assert "matplotlib is not installed: pip install 'ppo-lightning[plot]'" in refused("run")
