"""The folder that ``fit`` writes to: a new one, the one of ``run_name``, or that of the run which it continues."""

from __future__ import annotations

import re
from pathlib import Path
from typing import Any

from lightning.pytorch.loggers import Logger
from lightning.pytorch.utilities.rank_zero import rank_zero_warn

from ppo_lightning.callbacks.saving import relative_path
from ppo_lightning.cli.arguments import config_of_run, plain_value, run_folder
from ppo_lightning.core.errors import ConfigurationError
from ppo_lightning.core.files import make_writable_folder
from ppo_lightning.core.lock import FolderLock
from ppo_lightning.loggers import NAME, leave_no_trace, own_rank, run_loggers

_CURVES = "metrics.csv"
_OF_A_START = _CURVES, "events.out.tfevents.*", "hparams.yaml", "config.yaml", "config_[0-9]*.yaml", ".*.part"


class RunFolder:
    """Where this package's own loggers write.

    Args:
        config: the settings of ``fit``.

    Raises:
        ConfigurationError: they have a ``run_name`` that is none, or that nothing would come of.
    """

    def __init__(self, config: Any) -> None:
        root = config.trainer.default_root_dir
        self._root, self._name = Path(root or Path.cwd()), config.run_name
        self._may_start_again = config.resume == "auto"
        self._lock: FolderLock | None = None
        self._new_loggers: list[Logger] = []
        self._continued = _continued(config)
        if self._continued is not None:
            self._root = self._continued.parent.parent
        self._named = None if self._name is None else named_folder(self._root, self._name)
        if self._named is not None and config.trainer.logger not in (None, True):
            what = "no logger" if config.trainer.logger is False else "a logger of your own"
            raise ConfigurationError(
                f"--run_name={self._name} names the folder of the command's own curves, and --trainer.logger asks for "
                f"{what}: leave one of them out (--run_name=null for a name in a configuration)."
            )

    def claim(self) -> None:
        """Have a folder with a name for this process alone, until it ends; only the first rank does.

        Raises:
            ConfigurationError: another process has it, or a run that is not the one to continue lies in it.
        """
        if self._named is None or own_rank():
            return
        flag, shown = f"--run_name={self._name}", relative_path(self._named)
        make_writable_folder(self._root / NAME, "--trainer.default_root_dir", self._root)
        make_writable_folder(self._named, "--run_name", Path(self._name))
        lock = FolderLock(self._named)
        if not lock.take():
            raise ConfigurationError(
                f"{flag}: another process is writing to {shown}: wait for its end, or give another --run_name."
            )
        self._lock = lock
        if self._continued is None and _has_begun(self._named, self._may_start_again):
            raise ConfigurationError(
                f"{flag}: there is a run in {shown} already: go on with it by --resume=auto, or give another "
                "--run_name."
            )

    def loggers(self, resume_step: int | None) -> list[Logger]:
        """Those of the run, which is continued after environment step ``resume_step`` or new."""
        make_writable_folder(self._root / NAME, "--trainer.default_root_dir", self._root)
        if self._continued is not None:
            return run_loggers(self._root, self._continued.name, resume_step)
        if self._lock is not None and self._named is not None:
            _clear(self._named)
        self._new_loggers = run_loggers(self._root, self._name)
        return self._new_loggers

    def leave_no_trace(self) -> None:
        """Remove what a run that was refused has made."""
        leave_no_trace(self._new_loggers)

    def release(self) -> None:
        """Let others have it."""
        if self._lock is not None:
            self._lock.release()


def named_folder(root: Path, name: object) -> Path:
    """The folder of ``run_name``.

    Raises:
        ConfigurationError: it is not the plain name of a folder, or has the form of those that the package gives.
    """
    text = str(name)
    if not re.fullmatch(r"[A-Za-z0-9_-][A-Za-z0-9_.-]{0,199}", text):
        reason = "is not the plain name of a folder: use up to 200 letters, digits, _, - and dots, and no dot first"
    elif re.fullmatch(r"version_\d+", text):
        reason = "has the form of the names that runs without one are given: use another"
    else:
        return root / NAME / text
    raise ConfigurationError(f"--run_name={text} {reason}.")


def is_named(folder: Path) -> bool:
    """Whether the run was started with a ``run_name``."""
    return _started_with_name(folder / "config.yaml") and not re.fullmatch(r"version_\d+", folder.name)


def name_of_run(config: Path) -> list[str]:
    """The name that a run has now; its configuration may have that of before a move."""
    if not _started_with_name(config):
        return []
    try:
        return [f"--run_name={named_folder(Path(), config.parent.name).name}"]
    except ConfigurationError:
        return ["--run_name=null"]


def _started_with_name(config: Path) -> bool:
    content = plain_value(str(config))
    return isinstance(content, dict) and content.get("run_name") is not None


def checkpoints_in(run: Path) -> list[list[Path]]:
    """``last.ckpt``, which alone is read if it is good (a ``step_<n>.ckpt`` beside it may be of a future that was
    given up), and the others.
    """
    folder = run / "checkpoints"
    last = folder / "last.ckpt"
    others = sorted(path for path in folder.glob("*.ckpt") if path != last and path.is_file())
    return [[last] if last.is_file() else [], [*others, *hpc_files(run)]]


def hpc_files(folder: Path) -> list[Path]:
    """Where Lightning saves when SLURM ends a job."""
    return sorted(path for path in folder.glob("hpc_ckpt_*.ckpt") if path.is_file())


def _continued(config: Any) -> Path | None:
    """The run of ``--ckpt_path``, if it goes on in its folder: another root or another name moves it to a new one."""
    if not config.ckpt_path:
        return None
    folder, root = run_folder(config.ckpt_path), config.trainer.default_root_dir
    is_root = root is None or Path(root).resolve() == folder.parent.parent.resolve()
    is_name = config_of_run(folder) is not None if config.run_name is None else folder.name == config.run_name
    return folder if folder.parent.name == NAME and is_root and is_name else None


def _has_begun(folder: Path, may_start_again: bool) -> bool:
    """Whether there is something to lose: a checkpoint, or curves unless the run may start again.

    Only a run that was killed in its first iteration, or could not save, has curves and no checkpoint.
    """
    return any(checkpoints_in(folder)) or (not may_start_again and (folder / _CURVES).is_file())


def _clear(folder: Path) -> None:
    """Remove what a start left that never came to a checkpoint, lest its curves are mixed with those of this one."""
    curves = folder / _CURVES
    if curves.is_file():
        kept = next(path for n in range(10_000) if not (path := folder / f"metrics_before_{n}.csv").exists())
        curves.rename(kept)
        rank_zero_warn(
            f"--resume=auto: {relative_path(folder)} has curves but no checkpoint to go on from: the run starts again, "
            f"and the curves of before are in {kept.name}."
        )
    for pattern in _OF_A_START:
        for path in folder.glob(pattern):
            path.unlink()
