"""Finding runs below folders, each with its label, metrics and configuration."""

from __future__ import annotations

import os
import re
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Union

import yaml  # type: ignore[import-untyped]

from ppo_lightning.core.errors import ConfigurationError, close_names
from ppo_lightning.curves.metrics_file import FILE_NAME, read_metrics
from ppo_lightning.curves.statistics import Series

CONFIG_NAME = "config.yaml"  # of a run's beginning; one that is continued adds config_1.yaml and so on


@dataclass(frozen=True)
class Run:
    """What a run left in its folder.

    Args:
        folder: where ``metrics.csv`` is.
        label: as given by ``LABEL=FOLDER``, else empty.
        config: as it was started, or None for one that was started from Python.
        metrics: name to values over environment steps, of those that have any.
    """

    folder: Path
    label: str
    config: dict[str, Any] | None
    metrics: dict[str, Series]

    @property
    def last_step(self) -> float:
        """The last environment step with a value."""
        return max(float(series.x[-1]) for series in self.metrics.values())

    def has(self) -> str:
        """The names of its metrics, for a message."""
        return ", ".join(sorted(self.metrics)) or "no values at all"


def find_runs(given: Sequence[Union[str, Path]]) -> list[Run]:
    """Read every run of folders or ``LABEL=FOLDER``s, each once, in the order given.

    Raises:
        ConfigurationError: a folder is missing or has no run, a label is empty, a file is damaged, or one run has two
            labels.
    """
    if not given:
        raise ConfigurationError("No runs were given: name a folder that ppo-lightning fit wrote, lightning_logs say.")
    found: dict[Path, tuple[Path, str]] = {}
    for label, root in map(split_label, given):
        for folder in _search(root):
            known, first = found.get(folder.resolve(), (folder, ""))
            if label and first and label != first:
                raise ConfigurationError(
                    f"{folder} belongs to {first} and to {label}: give it one label, or name the folders apart."
                )
            found[folder.resolve()] = (known, first or label)
    return [
        Run(folder, label, _read_config(folder / CONFIG_NAME), read_metrics(folder / FILE_NAME))
        for folder, label in found.values()
    ]


def split_label(given: Union[str, Path]) -> tuple[str, Path]:
    """Label and folder of ``LABEL=FOLDER``; a folder or a label may have equals signs of its own."""
    text = str(given)
    if "=" not in text or isinstance(given, Path) or Path(text).is_dir():
        return "", Path(text)
    splits = [(text[: match.start()], text[match.end() :]) for match in re.finditer("=", text)]
    label, folder = next(((label, folder) for label, folder in splits if folder and Path(folder).is_dir()), splits[0])
    if not label.strip():
        raise ConfigurationError(f"{text} has an empty label: write LABEL={folder}, or only {folder}.")
    if not folder:
        raise ConfigurationError(f"{text} names no folder after its label: write {text}FOLDER.")
    return label.strip(), Path(folder)


def _search(root: Path) -> list[Path]:
    """The folders of runs at or below ``root``, version_2 before version_10."""
    if not root.is_dir():
        raise ConfigurationError(_why_not(root))
    folders = sorted(_folders_with_metrics(root), key=lambda path: _natural(str(path)))
    if not folders:
        raise ConfigurationError(
            f"{root} holds no run: there is no {FILE_NAME} in it or in any folder below; "
            "name a folder that ppo-lightning fit wrote, lightning_logs/version_0 say, or one above."
        )
    return folders


def _folders_with_metrics(root: Path) -> Iterator[Path]:
    for folder, _, files in os.walk(root):
        if FILE_NAME in files:
            yield Path(folder)


def _why_not(root: Path) -> str:
    if root.is_file():
        return f"{root} is a file: name the run's folder, {root.parent}."
    parent = root.parent
    while not parent.is_dir():
        root, parent = parent, parent.parent
    close = close_names(root.name, sorted(path.name for path in parent.iterdir() if path.is_dir()))
    return f"The folder {root} does not exist: name one that ppo-lightning fit wrote, or one above.{close}"


def _natural(text: str) -> list[Any]:
    parts = re.split(r"(\d+)", text)  # text and digits in turn
    return [(int(part) if index % 2 else part) for index, part in enumerate(parts)]


def _read_config(path: Path) -> dict[str, Any] | None:
    if not path.is_file():
        return None
    try:
        config = yaml.safe_load(path.read_text(encoding="utf-8"))
        reason = "" if isinstance(config, dict) else f"it holds {'nothing' if config is None else repr(config)[:40]}"
    except (yaml.YAMLError, UnicodeDecodeError, OSError) as error:
        reason = " ".join(str(error).split())
    if reason:
        raise ConfigurationError(
            f"{path} is damaged ({reason}), and runs are grouped by configuration: mend it, or leave the run out."
        )
    return dict(config)
