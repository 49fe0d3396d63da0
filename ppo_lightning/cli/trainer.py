"""Lightning's Trainer with one command more."""

from __future__ import annotations

from typing import Any, Optional

from lightning.pytorch import LightningDataModule, LightningModule, Trainer

from ppo_lightning.callbacks import Evaluation, VideoRecorder
from ppo_lightning.cli.arguments import run_folder


class RecordingTrainer(Trainer):
    """A Trainer that can record videos of a checkpoint."""

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
        callbacks: list[Any] = self.callbacks  # type: ignore[has-type]
        evaluation = next(callback for callback in callbacks if isinstance(callback, Evaluation))
        recorder = VideoRecorder(
            num_episodes=num_episodes,
            max_num_steps=max_num_steps,
            fps=fps,
            gif=gif,
            folder=out or str(run_folder(ckpt_path or "") / "videos"),
            evaluation=evaluation,
        )
        others = [callback for callback in callbacks if not isinstance(callback, (Evaluation, VideoRecorder))]
        self.callbacks = [recorder, *others]
        loading: dict[str, Any] = {} if weights_only is None else {"weights_only": weights_only}
        self.validate(model, datamodule=datamodule, ckpt_path=ckpt_path, verbose=False, **loading)
