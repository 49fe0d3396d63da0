"""What the commands say at their end."""

from __future__ import annotations

import sys
from typing import Any

from lightning.pytorch.cli import LightningCLI

from ppo_lightning.callbacks import (
    BestCheckpoint,
    CoordinatorComparison,
    Evaluation,
    ThresholdCalibration,
    VideoRecorder,
)
from ppo_lightning.callbacks.saving import relative_path
from ppo_lightning.cli.arguments import run_folder
from ppo_lightning.cli.coordination_report import report_calibration, report_comparison
from ppo_lightning.cli.report import console, evaluation_json, evaluation_table, recordings_json


class ReportingCLI(LightningCLI):
    """Ends every command with a table, or with JSON.

    Attributes:
        _resumes: the command goes on with a run that it found by itself.
        _resume_step: environment steps of the checkpoint that it goes on from.
    """

    _resumes: bool
    _resume_step: int | None

    @property
    def _is_json(self) -> bool:
        return bool(self.config[self.subcommand].json)

    def _say_complete(self) -> None:
        """A scheduler that starts a complete run again has made no mistake."""
        if self.trainer.is_global_zero:
            folder = relative_path(run_folder(self.config[self.subcommand].ckpt_path))
            text = f"The run {folder} is complete: {self._resume_step} environment steps, nothing left to train."
            print(text, file=sys.stderr if self._is_json else sys.stdout)

    def after_fit(self) -> None:
        """The table, and where the best checkpoints are."""
        if self._resumes and self.datamodule.env_steps == self._resume_step:
            return self._say_complete()
        best = [callback for callback in self._callbacks(BestCheckpoint) if callback.best_model_path]
        paths = {callback.monitor: relative_path(callback.best_model_path) for callback in best}
        self._report(best_checkpoints=paths)
        if self.trainer.is_global_zero and not self._is_json:
            for callback in best:
                *split, metric = callback.monitor.removeprefix("eval/").split("/")
                what = " of ".join([metric.removesuffix("_mean").replace("_", " "), *split])
                print(f"Best checkpoint ({what} {callback.best_model_score:.4g}): {paths[callback.monitor]}")

    def after_validate(self) -> None:
        """The table."""
        self._report()

    def after_test(self) -> None:
        """The table."""
        self._report()

    def after_video(self) -> None:
        """The files."""
        recordings = self._callbacks(VideoRecorder)[0].recordings
        if not self.trainer.is_global_zero:
            return
        if self._is_json:
            print(recordings_json(recordings, self.config[self.subcommand].ckpt_path))
            return
        for recording in recordings:
            path = relative_path(recording.path)
            print(f"{path}: return {recording.episode_return:.4g} in {recording.length} steps")

    def after_calibrate(self) -> None:
        """The thresholds."""
        if self.trainer.is_global_zero:
            config = self.config[self.subcommand]
            report_calibration(self._callbacks(ThresholdCalibration)[0], self._is_json, config.ckpt_path)

    def after_compare(self) -> None:
        """The coordinators, side by side."""
        if self.trainer.is_global_zero:
            config = self.config[self.subcommand]
            comparison = self._callbacks(CoordinatorComparison)[0]
            report_comparison(comparison, self._is_json, config.ckpt_path, config.out)

    def _callbacks(self, kind: type) -> list[Any]:
        callbacks: list[Any] = vars(self.trainer)["callbacks"]
        return [callback for callback in callbacks if isinstance(callback, kind)]

    def _report(self, **more: Any) -> None:
        steps, evaluations = self.datamodule.env_steps, [own for own in self._callbacks(Evaluation) if own.metrics]
        if not evaluations or not self.trainer.is_global_zero:
            return
        if self._is_json:
            checkpoint = self.config[self.subcommand].ckpt_path
            print(evaluation_json(evaluations, steps, checkpoint=checkpoint, **more))
            return
        policy = evaluations[0].policy
        title = f"Evaluation after {steps:,} environment steps" if policy is None else f"Evaluation of {policy}"
        speed = self.trainer.callback_metrics.get("time/sps")
        if speed is not None:
            title += f", {float(speed):,.0f} steps/s"
        for evaluation in evaluations:
            console().print(evaluation_table(evaluation, title))
