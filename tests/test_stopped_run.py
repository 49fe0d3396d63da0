from pathlib import Path

import pytest

from tests.callbacks.test_video import DRAWN
from tests.commands import LAST, run


@pytest.fixture
def stopped():
    """A run that was configured with early stopping and a video recorder of its own."""
    callbacks = ["--trainer.callbacks+=EvaluationEarlyStopping", "--trainer.callbacks+=VideoRecorder"]
    run("fit", *DRAWN, *callbacks)


@pytest.mark.parametrize("splits", [[], ["--evaluation.splits={other: {}}"]])
@pytest.mark.parametrize("name", ["validate", "video"])
def test_a_run_with_early_stopping_is_validated_and_recorded_on_any_splits(stopped, name, splits):
    run(name, f"--ckpt_path={LAST}", *splits)


def test_video_records_once_whatever_the_run_recorded(stopped):
    run("video", f"--ckpt_path={LAST}", "--out=films")
    assert not Path("videos").exists()
    assert len(list(Path("films").iterdir())) == 1
