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
from ppo_lightning.cli.run_folder import checkpoints_in, hpc_files, is_named, named_folder
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
    name, given = _setting(args, "run_name"), values(args, "--ckpt_path")
    named = None if name is None else named_folder(root, name)
    if resume is None or args[0] != "fit":
        if given and given[-1] in KEYWORDS:
            return _replace(args, "--ckpt_path", str(_keyword(given[-1], root, named)))
        if args[0] != "fit" and [value for value in values(args, "--run_name") if value != "null"]:
            raise ConfigurationError(
                f"--run_name={name} is for fit, and for --ckpt_path=last, best or hpc: leave it out, --ckpt_path names "
                "a file."
            )
        return list(args)
    for flag in ("--ckpt_path", "--init_from"):
        if [value for value in values(args, flag) if value != "null"]:
            raise ConfigurationError(
                f"--resume={resume} finds the checkpoint to continue from, and {flag}={values(args, flag)[-1]} names "
                "where to start: give one of the two."
            )
    if resume != "auto":
        checkpoint: Path | None = checkpoint_of_run(Path(str(resume)))
    else:
        checkpoint = newest_checkpoint(root, has_logger) if named is None else newest_checkpoint_of(named)
    if checkpoint is None:
        return list(args)
    return [*_without(args, "--resume"), "--resume=null", "--init_from=null", f"--ckpt_path={checkpoint}"]


def newest_checkpoint(root: Path, has_logger: bool = True) -> Path | None:
    """The newest good checkpoint of the newest run below ``root`` that has any; None if there is none.

    Without a logger ``root`` itself is the run's folder.
    """
    run = newest_run(root) if has_logger else root if any(checkpoints_in(root)) else None
    last_resort = hpc_files(root)
    if run is None and not last_resort:
        return None
    return _newest_good([*(checkpoints_in(run) if run else []), last_resort], "auto")


def newest_checkpoint_of(named: Path) -> Path | None:
    """The newest good checkpoint of the run that has this folder by its name; None if there is none."""
    candidates = checkpoints_in(named)
    return _newest_good(candidates, "auto", "with another --run_name") if any(candidates) else None


def checkpoint_of_run(folder: Path) -> Path:
    """The newest good checkpoint of a run's folder.

    Raises:
        ConfigurationError: there is none.
    """
    if not folder.is_dir():
        what = "is a file: give it to --ckpt_path" if folder.is_file() else "does not exist: name the folder of a run"
        raise ConfigurationError(f"--resume={folder} {what}, or let --resume=auto find the newest run.")
    candidates = checkpoints_in(folder.absolute().parent if folder.absolute().name == "checkpoints" else folder)
    if not any(candidates):
        raise ConfigurationError(
            f"--resume={folder} holds no checkpoint: name the folder of a run, such as lightning_logs/version_0."
        )
    return _newest_good(candidates, str(folder))


def newest_run(root: Path) -> Path | None:
    """The run with the highest ``version_<n>`` that has a checkpoint; one whose folder is empty has not begun.

    A run that was given a name is continued by that.
    """
    runs = [folder for folder in (root / NAME).glob("*") if any(checkpoints_in(folder)) and not is_named(folder)]
    return max(runs, key=lambda run: (_number(run.name, "version_"), run.name), default=None)


def _newest_good(groups: Iterable[Sequence[Path]], value: str, anew: str = "without --resume") -> Path:
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
        f"--resume={value}: every checkpoint is damaged ({names}): restore one from a copy, or start a new run {anew}."
    )


def _keyword(word: str, root: Path, named: Path | None) -> Path:
    run = named or newest_run(root)
    folder = run / "checkpoints" if run else root / NAME
    if word == "hpc":
        places = [*([] if named else [root]), *([run, folder] if run else [])]
        found = sorted(itertools.chain(*map(hpc_files, places)), key=lambda path: _number(path.stem, "hpc_ckpt_"))[-1:]
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
