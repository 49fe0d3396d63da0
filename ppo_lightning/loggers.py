"""TensorBoard and CSV together in one run folder, which a resumed run continues."""

from __future__ import annotations

import contextlib
import csv
import io
import itertools
import os
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, Union

from lightning.fabric.loggers.csv_logs import _ExperimentWriter
from lightning.pytorch import Trainer
from lightning.pytorch.loggers import CSVLogger, Logger, TensorBoardLogger
from lightning.pytorch.loggers.csv_logs import ExperimentWriter
from lightning.pytorch.loggers.logger import rank_zero_experiment
from lightning.pytorch.utilities import rank_zero_only

from ppo_lightning.core.lock import LOCK_NAME

NAME = "lightning_logs"
_VERSION_OF_RUN = "PPO_LIGHTNING_VERSION"  # an environment variable that processes of one run inherit


class AppendingCSVLogger(CSVLogger):
    """Lightning's ``CSVLogger``, which in a folder with a ``metrics.csv`` goes on after its row of ``resume_step``.

    The stock one deletes the file. Every row is written when it is logged.

    Args:
        save_dir: the root of ``lightning_logs``.
        version: the run's folder in it.
        resume_step: environment steps of the checkpoint that is continued; later rows are dropped.
    """

    def __init__(self, save_dir: Union[str, Path], version: int | str, resume_step: int | None = None) -> None:
        super().__init__(save_dir, name=NAME, version=version, flush_logs_every_n_steps=1)
        self._resume_step = resume_step

    @property
    @rank_zero_experiment
    def experiment(self) -> _ExperimentWriter:
        """The writer of ``metrics.csv``."""
        if self._experiment is None:
            Path(self.root_dir).mkdir(parents=True, exist_ok=True)
            self._experiment = _AppendingWriter(self.log_dir, self._resume_step)
        return self._experiment


class _AppendingWriter(ExperimentWriter):
    """A kill at any moment leaves whole rows, but for the one that is being written, which the next start drops."""

    def __init__(self, log_dir: str, resume_step: int | None) -> None:
        self._resume_step = resume_step
        self._last: dict[str, Any] | None = None  # the row that was written last
        self._last_at = 0  # where it begins in the file
        super().__init__(log_dir)

    def save(self) -> None:
        """Append; what is logged at the step of the last row joins that row, so that an iteration is one."""
        if not self.metrics:
            return
        is_joining = self._last is not None and self._last["step"] == self.metrics[0]["step"]
        rows: list[dict[str, Any]] = [self._last] if is_joining and self._last is not None else []
        for metrics in self.metrics:
            if rows and rows[-1]["step"] == metrics["step"]:
                rows[-1] = {**rows[-1], **metrics}
            else:
                rows.append(metrics)
        self.metrics = rows
        path = Path(self.metrics_file_path)
        if self._record_new_keys() or not path.is_file():
            before = _whole_rows(path)
            self._rewrite([*(before[:-1] if is_joining else before), *rows])
        else:
            self._write_at(self._last_at if is_joining else path.stat().st_size, rows)
        self._last, self.metrics = rows[-1], []

    def _write_at(self, place: int, rows: Sequence[Mapping[str, Any]]) -> None:
        """Write from there on, in one go; what stood there is shorter, for rows only grow."""
        with Path(self.metrics_file_path).open("r+b", buffering=0) as file:
            file.seek(place)
            file.write(self._text(rows))
            file.truncate()
        self._last_at = place + len(self._text(rows[:-1]))

    def _rewrite(self, rows: Sequence[Mapping[str, Any]]) -> None:
        """Write the whole file anew, beside the old one until it is there."""
        path = Path(self.metrics_file_path)
        part = path.with_name(f".{path.name}.part")
        try:
            part.write_bytes(self._text(rows, has_header=True))
            part.replace(path)
        finally:
            part.unlink(missing_ok=True)
        self._last_at = len(self._text(rows[:-1], has_header=True))

    def _text(self, rows: Sequence[Mapping[str, Any]], has_header: bool = False) -> bytes:
        text = io.StringIO(newline="")
        writer = csv.DictWriter(text, fieldnames=self.metrics_keys)
        if has_header:
            writer.writeheader()
        writer.writerows(rows)
        return text.getvalue().encode()

    def _check_log_dir_exists(self) -> None:
        path = Path(self.metrics_file_path)
        if not path.is_file():
            return
        before = _whole_rows(path)
        rows = [row for row in before if self._resume_step is None or int(row["step"]) <= self._resume_step]
        self.metrics_keys = list(before[0]) if before else []
        self._rewrite(rows)
        if rows:
            self._last = {**rows[-1], "step": int(rows[-1]["step"])}


def _whole_rows(path: Path) -> list[dict[str, Any]]:
    """The rows of a file, without one that a kill left unfinished."""
    if not path.is_file():
        return []
    content = path.read_bytes()
    return list(csv.DictReader(io.StringIO(content[: content.rfind(b"\n") + 1].decode(), newline="")))


def run_loggers(
    root: Union[str, Path], version: int | str | None = None, resume_step: int | None = None
) -> list[Logger]:
    """TensorBoard and CSV loggers of one run.

    Args:
        root: folder that ``lightning_logs`` is in.
        version: the run's folder in it, ``version_<n>`` for a number; by default the next free one, which is made at
            once.
        resume_step: environment steps of the checkpoint that the run continues.
    """
    if version is None:
        version = _claim_version(Path(root) / NAME)
    kwargs: dict[str, Any] = {} if resume_step is None else {"purge_step": resume_step + 1}
    return [
        TensorBoardLogger(root, name=NAME, version=version, default_hp_metric=False, **kwargs),
        AppendingCSVLogger(root, version, resume_step),
    ]


def _claim_version(folder: Path) -> int:
    """Make the next free ``version_<n>``: runs that start together get folders of their own.

    Only the first rank claims one; the others take that of the process that started them, or the newest.
    """
    taken = [path.name.removeprefix("version_") for path in folder.glob("version_*")]
    newest = max((int(number) for number in taken if number.isdigit()), default=-1)
    if own_rank():
        return int(os.environ.get(_VERSION_OF_RUN, newest))
    folder.mkdir(parents=True, exist_ok=True)
    for number in itertools.count(newest + 1):
        try:
            (folder / f"version_{number}").mkdir()
        except FileExistsError:
            continue
        os.environ[_VERSION_OF_RUN] = str(number)
        break
    return number


def own_rank() -> int:
    """The number of this process among those of a run, as far as it is known before they meet."""
    return getattr(rank_zero_only, "rank", None) or 0


def leave_no_trace(loggers: Sequence[Logger]) -> None:
    """Remove the folder of a run that was refused before it began: one in which nothing was logged."""
    for logger in loggers:
        if isinstance(logger, TensorBoardLogger) and not own_rank():
            logger.finalize("failed")
            folder = Path(logger.log_dir)
            files = [file for file in folder.iterdir() if file.name != LOCK_NAME] if folder.is_dir() else []
            if all(file.name.startswith("events.out.") or file.name == "hparams.yaml" for file in files):
                for file in files:
                    file.unlink()
                with contextlib.suppress(OSError):
                    folder.rmdir()


def run_folder_of(trainer: Trainer) -> Path:
    """The folder of a run, the same on every rank: where the first logger's name and version say, as for Lightning's
    own checkpoints, or the default root without a logger. ``trainer.log_dir`` is no folder of its own for some loggers.
    """
    folder = Path(trainer.default_root_dir)
    if trainer.loggers:
        logger = trainer.loggers[0]
        version = logger.version if isinstance(logger.version, str) else f"version_{logger.version}"
        folder = Path(logger.save_dir or folder, str(logger.name), version)
    return Path(trainer.strategy.broadcast(str(folder)))
