"""Two processes on the CPU share one run."""

import json
import time
from unittest import mock

import pytest
from lightning.pytorch import Callback

from ppo_lightning.callbacks import checkpoint
from tests.commands import LAST, RUN, WALK, counters, logged, rows, run
from tests.ranks.processes import TWO_RANKS, process

SPLITS = '--evaluation.splits={"val": {}, "nil": {"wrappers": [{"class_path": "tests.test_resume.Negative"}]}}'


class LateClock(Callback):
    """The clock of every rank but the first stands still: to it nothing is ever due."""

    def setup(self, trainer, pl_module, stage):
        if not trainer.is_global_zero:
            now = time.monotonic()
            checkpoint.time = mock.Mock(monotonic=lambda: now)
        checkpoint._SECONDS_BETWEEN_SAVES = 1e-3  # on the first rank every iteration


@pytest.mark.parametrize("num_episodes", [1, 7])
def test_two_ranks_evaluate_the_episodes_of_one(num_episodes):
    run("fit", *WALK, "--model.log_action_id=1")
    flags = [f"--ckpt_path={LAST}", "--json", "--evaluation.temperature=1", f"--evaluation.num_episodes={num_episodes}"]
    alone = json.loads(run("validate", *flags).out)["metrics"]
    shared = json.loads(process("validate", *flags, *TWO_RANKS))["metrics"]
    assert shared == pytest.approx(alone, abs=1e-12)
    assert shared["eval/episodes"] == num_episodes
    assert shared["eval/action_1_fraction"] > 0


def test_two_ranks_train_with_two_splits_and_log_once():
    """And save together, though their clocks differ: ``last.ckpt`` is due by the clock, and saving waits for all."""
    clock = "--trainer.callbacks=tests.ranks.test_commands.LateClock"
    out = process("fit", *WALK, *TWO_RANKS, SPLITS, clock, "--data.total_timesteps=512", "--json")
    metrics = json.loads(out)["metrics"]
    assert counters(LAST) == {"env_steps": 512, "iteration": 4}
    assert logged(rows(column="train/loss")) == [128, 256, 384, 512]
    for split in ("val", "nil"):
        assert rows(column=f"eval/{split}/return_mean") == [(512, metrics[f"eval/{split}/return_mean"])]
        assert metrics[f"eval/{split}/episodes"] == 4
        assert (RUN / f"checkpoints/best_{split}.ckpt").is_file()
    assert metrics["eval/nil/return_mean"] == pytest.approx(-metrics["eval/val/return_mean"])  # same episodes
    assert [path.name for path in RUN.parent.iterdir()] == ["version_0"]
