"""Episodes as videos."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Any, Optional

import numpy as np
from lightning.pytorch import Callback, LightningModule, Trainer
from lightning.pytorch.loggers import TensorBoardLogger
from lightning.pytorch.utilities import rank_zero_warn

from ppo_lightning.callbacks.evaluation import Evaluation
from ppo_lightning.callbacks.isolation import beside_training
from ppo_lightning.callbacks.schedule import Cadence, env_steps, off_the_clock
from ppo_lightning.core.errors import ConfigurationError, check_range, close_names
from ppo_lightning.core.files import make_writable_folder
from ppo_lightning.data.evaluate import episode_quotas, evaluate
from ppo_lightning.data.scoring import place_networks
from ppo_lightning.data.seeding import Streams
from ppo_lightning.envs.base import Array, EnvFactory
from ppo_lightning.loggers import run_folder_of
from ppo_lightning.video import Animation, Mp4File, check_video_packages


@dataclass
class Recording:
    """One recorded episode.

    Attributes:
        path: of the mp4 file.
        split: that it was played in; empty where splits have no names.
        episode_return: of the episode.
        length: of the episode in steps.
    """

    path: Path
    split: str
    episode_return: float
    length: int


class VideoRecorder(Callback):
    """Records the first episodes of the evaluation as mp4 files, every so often and once at the end.

    TensorBoard and other loggers that take videos get them too. Training goes on exactly as it would without.

    Args:
        num_episodes: episodes of each split, each a file.
        every_n_iterations: record after every so many iterations.
        every_n_env_steps: the same in environment steps; with neither only at the end.
        splits: names of the evaluation's splits to record; null for all.
        temperature: 0 takes the most probable action; null is that of the evaluation.
        max_num_steps: cut longer episodes.
        fps: pictures a second; null is what the environment asks for.
        folder: of the files; null is ``videos/`` in the run's folder.
        gif: write a small animated GIF beside each mp4 file.
        evaluation: whose splits to record; null is the Trainer's ``Evaluation`` callback.
    """

    def __init__(
        self,
        num_episodes: int = 1,
        every_n_iterations: Optional[int] = None,
        every_n_env_steps: Optional[int] = None,
        splits: Optional[list[str]] = None,
        temperature: Optional[float] = None,
        max_num_steps: int = 1000,
        fps: Optional[int] = None,
        folder: Optional[str] = None,
        gif: bool = False,
        evaluation: Optional[Evaluation] = None,
    ) -> None:
        check_range("VideoRecorder.num_episodes", num_episodes, 1)
        check_range("VideoRecorder.max_num_steps", max_num_steps, 1)
        if temperature is not None:
            check_range("VideoRecorder.temperature", temperature, 0)
        if fps is not None:
            check_range("VideoRecorder.fps", fps, 1)
        self.cadence = Cadence("VideoRecorder", every_n_iterations, every_n_env_steps, None)
        self.num_episodes = num_episodes
        self.splits = splits
        self.temperature = temperature
        self.max_num_steps = max_num_steps
        self.fps = fps
        self.folder = folder
        self.gif = gif
        self.recordings: list[Recording] = []
        """Of the last recording."""
        self._evaluation = evaluation
        self._factories: dict[str, EnvFactory] = {}
        self._files_at = Path()
        self._recorded_at: int | None = None

    # -- Lightning's hooks

    def setup(self, trainer: Trainer, pl_module: LightningModule, stage: str) -> None:
        """Render a first picture of every split, and look at the folder, before any work."""
        check_video_packages()
        callbacks: list[Any] = trainer.callbacks  # type: ignore[attr-defined]
        evaluations = [callback for callback in callbacks if isinstance(callback, Evaluation)]
        self._evaluation = self._evaluation or next(iter(evaluations), None) or Evaluation()
        factories = self._evaluation.make_factories(trainer)
        for split in self.splits or []:
            if split not in factories:
                named = ", ".join(filter(None, factories)) or "none, for --evaluation.splits is not given"
                raise ConfigurationError(
                    f"VideoRecorder.splits: {split} is no split of the evaluation, which has {named}."
                    f"{close_names(split, factories)}"
                )
        self._factories = {
            split: factory for split, factory in factories.items() if split in (self.splits or factories)
        }
        for factory in self._factories.values():
            _check_rendering(factory)
        self._files_at = Path(self.folder or run_folder_of(trainer) / "videos")
        if self._may_record(trainer):
            make_writable_folder(self._files_at, "VideoRecorder.folder")

    def on_train_epoch_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Record if it is time."""
        if self.cadence.is_due(trainer) and self._may_record(trainer):
            with off_the_clock(pl_module):
                self._try(trainer, pl_module)

    def on_train_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Record what a callback after this one ended, as ``EarlyStopping`` does."""
        if self._recorded_at != env_steps(trainer) and self._may_record(trainer):
            self._try(trainer, pl_module)

    def _try(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """A picture that fails must not end the training."""
        try:
            self.run(trainer, pl_module)
        except Exception as error:
            reason = " ".join(str(error).split())
            rank_zero_warn(f"Recording failed, training goes on ({type(error).__name__}: {reason}).")

    @staticmethod
    def _may_record(trainer: Trainer) -> bool:
        return trainer.is_global_zero and not trainer.fast_dev_run  # type: ignore[attr-defined]

    def on_validation_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Record for ``trainer.validate``."""
        if trainer.state.fn == "validate" and self._may_record(trainer):
            self.run(trainer, pl_module)

    # -- the work

    def run(self, trainer: Trainer, pl_module: Any) -> list[Recording]:
        """Record every split now."""
        self.recordings, self._recorded_at = [], env_steps(trainer)
        datamodule: Any = trainer.datamodule  # type: ignore[attr-defined]
        for split, factory in self._factories.items():
            with beside_training(pl_module, datamodule.seed):
                self._record(trainer, pl_module, split, factory)
        return self.recordings

    def _record(self, trainer: Trainer, pl_module: Any, split: str, factory: EnvFactory) -> None:
        datamodule: Any = trainer.datamodule  # type: ignore[attr-defined]
        evaluation = self._evaluation
        assert evaluation is not None
        streams = Streams(datamodule.seed, first_env=0, num_envs=self.num_episodes)
        env = factory.make_rendering(streams.eval_env_seeds())
        place_networks(env, trainer)
        fps = self.fps or env.render_fps
        files = [Mp4File(path, fps) for path in self._paths(trainer, split)]
        wants_gif = self.gif or any(isinstance(logger, TensorBoardLogger) for logger in trainer.loggers)
        animations = [Animation(fps) for _ in files if wants_gif]

        def watch(rows: Array) -> None:
            pictures = env.render()
            for row in rows:
                files[row].add(pictures[row])
                if wants_gif:
                    animations[row].add(pictures[row])

        try:
            with pl_module.collecting():
                result = evaluate(
                    evaluation.player(trainer, pl_module),
                    env,
                    streams,
                    episode_quotas(self.num_episodes, self.num_episodes),
                    evaluation.temperature if self.temperature is None else self.temperature,
                    self.max_num_steps,
                    watch=watch,
                )
            for file in files:
                file.close()
            for file, animation in zip(files, animations if self.gif else []):
                file.path.with_suffix(".gif").write_bytes(animation.encode())
        finally:
            env.close()
            for file in files:
                file.discard()
        for row, episode in sorted(zip(result.rows, result.episodes), key=lambda pair: pair[0]):
            self.recordings.append(Recording(files[row].path, split, episode.episode_return, episode.length))
            tag = f"eval/{split}/episode_{row}".replace("//", "/")
            self._log(trainer, tag, files[row].path, animations[row] if wants_gif else None)

    def _paths(self, trainer: Trainer, split: str) -> list[Path]:
        name = "_".join(filter(None, [f"step_{env_steps(trainer)}", split]))
        return [self._files_at / f"{name}_episode_{number}.mp4" for number in range(self.num_episodes)]

    def _log(self, trainer: Trainer, tag: str, path: Path, animation: Animation | None) -> None:
        for logger in trainer.loggers:
            if isinstance(logger, TensorBoardLogger) and animation is not None:
                _add_to_tensorboard(logger, tag, animation, env_steps(trainer))
            elif hasattr(logger, "log_video"):  # Weights & Biases
                logger.log_video(tag, [str(path)], step=env_steps(trainer))


def _check_rendering(factory: EnvFactory) -> None:
    """Render once: some environments only then find out that they can't."""
    env = factory.make_rendering([0])
    try:
        env.reset()
        pictures = env.render()
        if pictures.ndim != 4 or pictures.shape[-1] != 3 or pictures.dtype != np.uint8:
            raise ValueError(f"they are {pictures.dtype} {pictures.shape[1:]} and not uint8 (height, width, 3)")
    except Exception as error:
        reason = " ".join(str(error).split())
        raise ConfigurationError(
            f"--data.env: its pictures cannot be rendered ({type(error).__name__}: {reason}): leave the video out, or "
            "mend the environment's rendering."
        ) from error
    finally:
        env.close()


def _add_to_tensorboard(logger: TensorBoardLogger, tag: str, animation: Animation, step: int) -> None:
    """As an animated picture: TensorBoard has no other form of video."""
    from tensorboard.compat.proto.summary_pb2 import Summary

    width, height = animation.size
    picture = Summary.Image(height=height, width=width, colorspace=3, encoded_image_string=animation.encode())
    logger.experiment._get_file_writer().add_summary(Summary(value=[Summary.Value(tag=tag, image=picture)]), step)
