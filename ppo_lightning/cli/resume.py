"""Which checkpoint ``--resume`` and ``--ckpt_path=last | best | hpc`` mean: found in the folders of runs."""

from __future__ import annotations

import itertools
import re
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import Any

import yaml  # type: ignore[import-untyped]
from lightning.pytorch.utilities.rank_zero import rank_zero_warn

from ppo_lightning.cli.arguments import plain_value, values
from ppo_lightning.core.checkpoint import DamagedCheckpointError, read_checkpoint
from ppo_lightning.core.errors import ConfigurationError
from ppo_lightning.loggers import NAME

KEYWORDS = "last", "best", "hpc"  # Lightning's


def resolve_checkpoint(args: Sequence[str]) -> list[str]:
    """Arguments in which ``--resume`` and the keywords of ``--ckpt_path`` are replaced by the checkpoint they mean.

    Each rank does it for itself, and all come to the same: nothing is saved before all of them have set up.
    """
    resume, root = _setting(args, "resume"), Path(str(_setting(args, "trainer.default_root_dir") or "."))
    has_logger = str(_setting(args, "trainer.logger")).lower() != "false"
    given = values(args, "--ckpt_path")
    if resume is None or args[0] != "fit":
        is_keyword = bool(given) and given[-1] in KEYWORDS
        return _replace(args, "--ckpt_path", str(_keyword(given[-1], root))) if is_keyword else list(args)
    for flag in ("--ckpt_path", "--init_from"):
        if [value for value in values(args, flag) if value != "null"]:
            raise ConfigurationError(
                f"--resume={resume} finds the checkpoint to continue from, and {flag}={values(args, flag)[-1]} names "
                "where to start: give one of the two."
            )
    checkpoint = newest_checkpoint(root, has_logger) if resume == "auto" else checkpoint_of_run(Path(str(resume)))
    if checkpoint is None:
        return list(args)
    return [*_without(args, "--resume"), "--resume=null", "--init_from=null", f"--ckpt_path={checkpoint}"]


def newest_checkpoint(root: Path, has_logger: bool = True) -> Path | None:
    """The newest good checkpoint of the newest run below ``root`` that has any; None if there is none.

    Without a logger ``root`` itself is the run's folder.
    """
    run = newest_run(root) if has_logger else root if any(_candidates(root)) else None
    last_resort = _hpc_files(root)
    if run is None and not last_resort:
        return None
    return _newest_good([*(_candidates(run) if run else []), last_resort], "auto")


def checkpoint_of_run(folder: Path) -> Path:
    """The newest good checkpoint of a run's folder.

    Raises:
        ConfigurationError: there is none.
    """
    if not folder.is_dir():
        what = "is a file: give it to --ckpt_path" if folder.is_file() else "does not exist: name the folder of a run"
        raise ConfigurationError(f"--resume={folder} {what}, or let --resume=auto find the newest run.")
    candidates = _candidates(folder.absolute().parent if folder.absolute().name == "checkpoints" else folder)
    if not any(candidates):
        raise ConfigurationError(
            f"--resume={folder} holds no checkpoint: name the folder of a run, such as lightning_logs/version_0."
        )
    return _newest_good(candidates, str(folder))


def newest_run(root: Path) -> Path | None:
    """The run with the highest ``version_<n>`` that has a checkpoint; one whose folder is empty has not begun."""
    runs = [folder for folder in (root / NAME).glob("*") if any(_candidates(folder))]
    return max(runs, key=lambda run: (_number(run.name, "version_"), run.name), default=None)


def _candidates(run: Path) -> list[list[Path]]:
    """``last.ckpt``, which alone is read if it is good (a ``step_<n>.ckpt`` beside it may be of a future that was
    given up), and the others.
    """
    folder = run / "checkpoints"
    last = folder / "last.ckpt"
    others = sorted(path for path in folder.glob("*.ckpt") if path != last and path.is_file())
    return [[last] if last.is_file() else [], [*others, *_hpc_files(run)]]


def _hpc_files(folder: Path) -> list[Path]:
    """Where Lightning saves when SLURM ends a job."""
    return sorted(path for path in folder.glob("hpc_ckpt_*.ckpt") if path.is_file())


def _newest_good(groups: Iterable[Sequence[Path]], value: str) -> Path:
    damaged: list[Path] = []
    for paths in groups:
        steps: dict[Path, int] = {}
        for path in paths:
            try:
                steps[path] = read_checkpoint(path, "--resume").get("RolloutDataModule", {}).get("env_steps", 0)
            except DamagedCheckpointError as error:
                rank_zero_warn(f"{str(error).partition(';')[0]}: it is left out.")
                damaged.append(path)
        if steps:
            return max(paths, key=lambda path: steps.get(path, -1))
    names = ", ".join(str(path) for path in damaged)
    raise ConfigurationError(
        f"--resume={value}: every checkpoint is damaged ({names}): restore one from a copy, or start a new run without "
        "--resume."
    )


def _keyword(word: str, root: Path) -> Path:
    run = newest_run(root)
    folder = run / "checkpoints" if run else root / NAME
    if word == "hpc":
        found = [path for place in (root, *((run, folder) if run else ())) for path in _hpc_files(place)]
        found = sorted(found, key=lambda path: _number(path.stem, "hpc_ckpt_"))[-1:]
    elif word == "last":
        found = [path for path in [folder / "last.ckpt"] if path.is_file()]
    else:
        found = [path for path in [folder / "best.ckpt"] if path.is_file()] or sorted(folder.glob("best_*.ckpt"))
    if len(found) == 1:
        return found[0]
    what = f"there are {', '.join(path.name for path in found)}" if found else f"there is no {word} checkpoint"
    way_out = "name one of the files" if found else "name a file, or begin a run with fit --resume=auto"
    raise ConfigurationError(f"--ckpt_path={word}: {what} in {folder}: {way_out}.")


def _number(name: str, prefix: str) -> int:
    number = name.removeprefix(prefix)
    return int(number) if name.startswith(prefix) and re.fullmatch(r"\d+", number) else -1


def _setting(args: Sequence[str], name: str) -> Any:
    """What the command line gives to a flag, itself or in a configuration file; the last one holds, be it null."""
    found = None
    for arg, following in itertools.zip_longest(args, args[1:]):
        flag, equals, value = arg.partition("=")
        value = value if equals else following
        group, _, rest = name.partition(".")
        if value is not None and flag == f"--{name}":
            found = None if value == "null" else value
        elif value is not None and rest and flag == f"--{group}":  # --trainer='{default_root_dir: …}', or a file
            content = plain_value(value)
            found = content.get(rest, found) if isinstance(content, dict) else found
        elif value is not None and flag in ("--config", "-c") and Path(value).is_file():
            content = yaml.safe_load(Path(value).read_text())
            content = content.get(args[0], content)
            *groups, last = name.split(".")
            for part in groups:
                content = content.get(part) if isinstance(content, dict) else None
            found = content.get(last, found) if isinstance(content, dict) else found
    return found


def _without(args: Sequence[str], flag: str) -> list[str]:
    kept = [arg for before, arg in zip(["", *args], args) if arg != flag and before != flag]
    return [arg for arg in kept if not arg.startswith(f"{flag}=")]


def _replace(args: Sequence[str], flag: str, value: str) -> list[str]:
    return [*_without(args, flag), f"{flag}={value}"]
