"""Lightning's Trainer with the commands that it lacks."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any, Optional, Union

from lightning.pytorch import Callback, LightningDataModule, LightningModule, Trainer

from ppo_lightning.callbacks import CoordinatorComparison, Evaluation, ThresholdCalibration, VideoRecorder
from ppo_lightning.callbacks.comparison import PROBABILITIES
from ppo_lightning.callbacks.coordination import check_table, write_rows
from ppo_lightning.callbacks.thresholds import PERCENTILES
from ppo_lightning.cli.arguments import run_folder
from ppo_lightning.cli.coordination_report import points_of, table_beside
from ppo_lightning.curves.comparison import check_picture, plot_comparison


class CommandTrainer(Trainer):
    """A Trainer that can also record videos of a checkpoint, and judge coordinators."""

    def video(
        self,
        model: LightningModule,
        datamodule: LightningDataModule,
        ckpt_path: Optional[str] = None,
        out: Optional[str] = None,
        num_episodes: int = 1,
        max_num_steps: int = 1000,
        fps: Optional[int] = None,
        gif: bool = False,
        weights_only: Optional[bool] = None,
    ) -> None:
        """Record episodes of the agent of --ckpt_path as mp4 files.

        Args:
            model: the agent.
            datamodule: its environment.
            ckpt_path: the checkpoint.
            out: folder of the files; ``videos/`` in the folder of the checkpoint's run where it is left out.
            num_episodes: episodes of each split, each a file: the first ones that validate plays.
            max_num_steps: cut longer episodes.
            fps: pictures a second; what the environment asks for where it is left out.
            gif: write a small animated GIF beside each mp4 file.
            weights_only: as for validate.
        """
        recorder = VideoRecorder(
            num_episodes=num_episodes,
            max_num_steps=max_num_steps,
            fps=fps,
            gif=gif,
            folder=out or str(_folder_of(ckpt_path) / "videos"),
            evaluation=self._evaluation,
        )
        self._validate_with(recorder, model, datamodule, ckpt_path, weights_only)

    def calibrate(
        self,
        model: LightningModule,
        datamodule: LightningDataModule,
        ckpt_path: Optional[str] = None,
        out: Optional[str] = None,
        confidence: Union[list[str], str] = "max_prob",
        num_rollouts: int = 128,
        percentiles: Sequence[float] = PERCENTILES,
        explore_temperatures: Sequence[float] = (1.0,),
        score_temperatures: Sequence[float] = (1.0,),
        weights_only: Optional[bool] = None,
    ) -> None:
        """Find thresholds of the novice's confidence below which LogitThresholdPolicy asks the expert.

        Args:
            model: not used.
            datamodule: a CoordinationEnv.
            ckpt_path: a coordinator's checkpoint, to take its run's configuration and base penalty from.
            out: folder of the files; ``thresholds/`` where the command is typed, or with --ckpt_path in the run's
                folder.
            confidence: max_logit, max_prob, margin, entropy or energy; a list of them, or all.
            num_rollouts: episodes that the novice plays alone in --data.env at each exploration temperature.
            percentiles: of the novice's confidences in their steps: the thresholds to try.
            explore_temperatures: at which the novice samples in these episodes.
            score_temperatures: by which its logits are divided before they are measured.
            weights_only: as for validate.
        """
        calibration = ThresholdCalibration(
            confidence=confidence,
            num_rollouts=num_rollouts,
            percentiles=percentiles,
            explore_temperatures=explore_temperatures,
            score_temperatures=score_temperatures,
            folder=out or str(_folder_of(ckpt_path) / "thresholds"),
            evaluation=self._evaluation,
        )
        self._validate_with(calibration, model, datamodule, ckpt_path, weights_only)

    def compare(
        self,
        model: LightningModule,
        datamodule: LightningDataModule,
        ckpt_path: Optional[str] = None,
        out: str = "comparison.png",
        probabilities: Sequence[float] = PROBABILITIES,
        confidence: Union[list[str], str] = "max_prob",
        percentiles: Sequence[float] = PERCENTILES,
        num_rollouts: int = 128,
        learned: Optional[dict[str, Union[list[str], str]]] = None,
        weights_only: Optional[bool] = None,
    ) -> None:
        """Compare coordinators on the same episodes: always one agent, random, by thresholds, learned.

        Args:
            model: what --ckpt_path is loaded into.
            datamodule: a CoordinationEnv.
            ckpt_path: a trained coordinator, labelled learned.
            out: the picture to write; a CSV file of the same name has all numbers.
            probabilities: of asking the expert, of a random coordinator each.
            confidence: what thresholds are on: max_logit, max_prob, margin, entropy or energy; a list of them, all, or
                [] for none.
            percentiles: of the novice's confidences when it plays alone: the thresholds.
            num_rollouts: episodes that it plays alone for them in --data.env.
            learned: more trained coordinators, as {LABEL: CHECKPOINT} or {LABEL: [CHECKPOINT, …]} of several seeds.
            weights_only: as for validate.
        """
        check_picture(out)
        check_table(table_beside(out))
        comparison = CoordinatorComparison(
            probabilities=probabilities,
            confidence=confidence,
            percentiles=percentiles,
            num_rollouts=num_rollouts,
            learned=learned,
            with_agent=ckpt_path is not None,
            evaluation=self._evaluation,
        )
        self._validate_with(comparison, model, datamodule, ckpt_path, weights_only)
        if self.is_global_zero:
            write_rows(table_beside(out), comparison.scores)
            plot_comparison(points_of(comparison.scores), out)

    @property
    def _evaluation(self) -> Evaluation:
        callbacks: list[Any] = self.callbacks  # type: ignore[has-type]
        return next(callback for callback in callbacks if isinstance(callback, Evaluation))

    def _validate_with(
        self,
        callback: Callback,
        model: LightningModule,
        datamodule: LightningDataModule,
        ckpt_path: str | None,
        weights_only: bool | None,
    ) -> None:
        """Let ``callback`` play in place of the evaluation."""
        callbacks: list[Any] = self.callbacks  # type: ignore[has-type]
        self.callbacks = [callback, *(own for own in callbacks if not isinstance(own, (Evaluation, VideoRecorder)))]
        loading: dict[str, Any] = {} if weights_only is None else {"weights_only": weights_only}
        self.validate(model, datamodule=datamodule, ckpt_path=ckpt_path, verbose=False, **loading)


def _folder_of(ckpt_path: str | None) -> Path:
    """Where results go: into the run's folder, or where the command is typed."""
    return run_folder(ckpt_path) if ckpt_path else Path()
