"""Where the novice and the expert of a run lie now, when a command is given from elsewhere or the run was moved."""

from __future__ import annotations

import contextlib
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

from ppo_lightning.cli.arguments import plain_value, values
from ppo_lightning.core.checkpoint import read_checkpoint
from ppo_lightning.envs.coordination import AGENTS


def agents_beside(config: Path, checkpoint: str, args: Sequence[str]) -> list[str]:
    """Flags that name the agents of a coordinator's run, where its configuration names files that aren't there.

    They are looked for relative to the root that the run lies under now, and where the checkpoint says that they were.
    """
    content = plain_value(str(config))
    found = []
    for name in AGENTS:
        given = _agent_of(content, name)
        flags = (f"--data.env.{name}", f"--data.env.init_args.{name}", "--data.env", "--data")
        if given is None or _is_file(Path(given)) or values(args, *flags):
            continue
        places = [place for place in _places(given, config, checkpoint, name) if _is_file(place)]
        found += [f"--data.env.init_args.{name}={places[0]}"] if places else []
    return found


def _agent_of(content: Any, name: str) -> str | None:
    for key in ("data", "env", "init_args", name):
        content = content.get(key) if isinstance(content, Mapping) else None
    return content if isinstance(content, str) else None


def _is_file(path: Path) -> bool:
    """False also for what can be no file's name, in a checkpoint of a stranger's."""
    with contextlib.suppress(OSError, ValueError):
        return path.is_file()
    return False


def _places(given: str, config: Path, checkpoint: str, name: str) -> Iterator[Path]:
    yield config.absolute().parent.parent.parent / given
    saved: Any = read_checkpoint(checkpoint, "--ckpt_path").get("RolloutDataModule", {}).get("env") or {}
    for key in ("agents", name, "absolute"):
        saved = saved.get(key) if isinstance(saved, Mapping) else None
    if isinstance(saved, str):
        yield Path(saved)
