"""Runs of one configuration are one group, whatever their seeds; groups of one environment share a panel."""

from __future__ import annotations

import json
import os
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from ppo_lightning.curves.runs import Run

# what differs between seeds, machines and folders, and what only saves or shows
_SEEDS = "seed_everything", "data.seed", "data.env.init_args.rand_seed"
_IGNORED = (
    *_SEEDS,
    *("run_name", "ckpt_path", "resume", "weights_only", "checkpoint", "summary", "json"),
    *("trainer.default_root_dir", "trainer.logger", "trainer.enable_progress_bar", "trainer.enable_model_summary"),
)
_MAX_DIFFERENCES = 3  # in a label that is unique with them


@dataclass(frozen=True)
class Group:
    """Runs that are one curve.

    Args:
        label: what tells it from the others of its environment; empty if it is the only one.
        environment: the title of its panel; empty if unknown.
        runs: one a seed.
    """

    label: str
    environment: str
    runs: list[Run]

    @property
    def size(self) -> str:
        """``3 seeds``, or ``3 runs`` if they are not known to have different seeds."""
        seeds = [_seed_of(run) for run in self.runs]
        noun = "seed" if None not in seeds and len(set(seeds)) == len(seeds) else "run"
        return f"{len(seeds)} {noun}{'s' if len(seeds) != 1 else ''}"


def group_runs(runs: Sequence[Run]) -> list[Group]:
    """Groups in the order of their first runs; those of a label are one, those without are told apart by settings."""
    members: dict[tuple[str, str, str], list[Run]] = {}
    for run in runs:
        members.setdefault((environment_of(run.config), run.label, _identity(run)), []).append(run)
    labels = {key: key[1] for key in members}
    for environment in {key[0] for key in members}:
        here = [key for key in members if key[0] == environment]
        unnamed = {key: members[key] for key in here if not labels[key]}
        if len(here) > 1:
            labels.update(zip(unnamed, _labels(list(unnamed.values()))))
    return [Group(labels[key], key[0], group) for key, group in members.items()]


def environment_of(config: Mapping[str, Any] | None) -> str:
    """``CartPole-v1``, ``Procgen coinrun``, the factory's name, or nothing without a configuration."""
    settings = dict(_flatten(config or {}, ""))
    factory = str(settings.get("data.env.class_path") or "").rpartition(".")[2].removesuffix("Env")
    if game := settings.get("data.env.init_args.env_name"):
        return f"{factory} {game}".strip()
    gym_id = settings.get("data.env") or settings.get("data.env.init_args.id")
    return str(gym_id).rpartition(":")[2] if gym_id else factory


def settings_of(config: Mapping[str, Any]) -> dict[str, Any]:
    """Every setting that makes a group, by its dotted name. ``init_from`` is whether, not which."""
    settings = {name: value for name, value in _flatten(config, "") if not _is_ignored(name)}
    if settings.get("init_from"):
        settings["init_from"] = True
    return settings


def differences(settings: Mapping[str, Any], others: Iterable[Mapping[str, Any]]) -> dict[str, str]:
    """The settings that are not the same everywhere, shortly named and written, for a legend.

    Of a class that differs its arguments are not named too.
    """
    everyone = [settings, *others]
    names = sorted({name for one in everyone for name in one})
    names = [name for name in names if len({_text(one, name) for one in everyone}) > 1]
    classes = [name.removesuffix("class_path") + "init_args." for name in names if name.endswith(".class_path")]
    names = [name for name in names if not name.startswith(tuple(classes))]
    parts = {name: [part for part in name.split(".") if part not in ("init_args", "class_path")] for name in names}
    return {_shortest(parts[name], parts.values()): _shown(settings, name) for name in names}


def _identity(run: Run) -> str:
    """The same for runs of one group: all of a label, and without one all of a configuration."""
    if run.label:
        return ""
    return json.dumps(settings_of(run.config), sort_keys=True, default=str) if run.config else str(run.folder)


def _labels(groups: Sequence[Sequence[Run]]) -> list[str]:
    """What tells groups without labels apart: their settings, or where they lie if there are none to compare."""
    settings = [settings_of(group[0].config) if group[0].config else None for group in groups]
    known = [one for one in settings if one is not None]
    if len(known) < 2:
        return [_place(group) for group in groups]
    differing = [None if one is None else differences(one, known) for one in settings]
    short = [_label(one or {}, _MAX_DIFFERENCES) for one in differing]
    long = [_label(one or {}, len(one or {})) for one in differing]
    best = short if len(set(short)) == len(short) else long
    return [label or _place(group) for label, group in zip(best, groups)]


def _label(differing: Mapping[str, str], limit: int) -> str:
    pairs = [f"{name}={value}" for name, value in differing.items()]
    more = [f"{len(pairs) - limit} more"] if len(pairs) > limit else []
    return ", ".join([*pairs[:limit], *more])


def _place(group: Sequence[Run]) -> str:
    folder = Path(os.path.commonpath([run.folder for run in group]))
    return str(folder.parent if folder.name == "lightning_logs" else folder)


def _flatten(value: Any, name: str) -> Iterable[tuple[str, Any]]:
    if not isinstance(value, Mapping):
        return [(name, value)]
    return [pair for key, item in value.items() for pair in _flatten(item, f"{name}.{key}".lstrip("."))]


def _is_ignored(name: str) -> bool:
    return any(name == ignored or name.startswith(f"{ignored}.") for ignored in _IGNORED)


def _text(settings: Mapping[str, Any], name: str) -> str:
    return json.dumps(settings[name], sort_keys=True, default=str) if name in settings else ""


def _shown(settings: Mapping[str, Any], name: str) -> str:
    value = settings.get(name)
    if name.endswith("class_path"):
        return str(value).rpartition(".")[2]
    if isinstance(value, float):
        return f"{value:g}"
    text = value if isinstance(value, str) else json.dumps(value, default=str)
    return text if len(text) <= 24 else f"{text[:23]}…"


def _shortest(parts: Sequence[str], everyone: Iterable[Sequence[str]]) -> str:
    """The fewest last words of a dotted name that no other name ends with."""
    others = [list(other) for other in everyone if list(other) != list(parts)]
    lengths = range(1, len(parts) + 1)
    fits = (length for length in lengths if all(other[-length:] != list(parts[-length:]) for other in others))
    return ".".join(parts[-next(fits, len(parts)) :])


def _seed_of(run: Run) -> Any:
    settings = dict(_flatten(run.config or {}, ""))
    seeds = [settings.get(name) for name in _SEEDS]
    return tuple(seeds) if any(seed is not None for seed in seeds) else None
