"""What is looked at and rewritten in a command's arguments before they are parsed."""

from __future__ import annotations

import contextlib
import itertools
import json
import re
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any, cast

import yaml  # type: ignore[import-untyped]

from ppo_lightning.core.errors import ConfigurationError
from ppo_lightning.loggers import NAME


def values(args: Sequence[str], *flags: str) -> list[str]:
    """What is given to a flag, as ``--flag value`` or ``--flag=value``."""
    apart = [value for flag, value in itertools.pairwise(args) if flag in flags]
    return [
        *apart,
        *(value for flag, equals, value in (arg.partition("=") for arg in args) if equals and flag in flags),
    ]


def run_folder(ckpt_path: str) -> Path:
    """The folder whose ``checkpoints/`` holds the checkpoint."""
    return Path(ckpt_path).absolute().parent.parent


def config_of_run(folder: Path) -> Path | None:
    """The configuration that a run was started or last continued with."""
    numbered = [path for path in folder.glob("config_*.yaml") if path.stem.removeprefix("config_").isdigit()]
    newest = max(numbered, key=lambda path: int(path.stem.removeprefix("config_")), default=folder / "config.yaml")
    return newest if newest.is_file() else None


def name_env_class(args: Sequence[str]) -> list[str]:
    """``--data.env=CartPole-v1`` as class and id, so that ``--data.env.vectorization`` and the like apply to it."""
    named: list[str] = []
    for arg in itertools.chain.from_iterable(_split(args)):
        if named and named[-1] == "--data.env" and re.fullmatch(r"[\w:./-]+-v\d+", arg):
            named[-1:] = ["--data.env=GymnasiumEnv", f"--data.env.id={arg}"]
        else:
            named.append(arg)
    return named


def write_nulls_out(args: Sequence[str]) -> list[str]:
    """``--model.network.encoder.normalizer=null`` as a mapping: as a flag the parser would hand a class within a class
    the word ``None``.
    """
    written: list[str] = []
    for arg in args:
        flag, equals, value = arg.partition("=")
        is_apart = not equals and arg == "null" and bool(written)
        if is_apart:
            flag = written[-1]
        mapping = _null_within(flag) if is_apart or value == "null" else None
        if mapping is None:
            written.append(arg)
        else:
            written[len(written) - is_apart :] = [mapping]
    return written


def _null_within(flag: str) -> str | None:
    """The argument that says null for a part within a part of the model; None of other flags."""
    if re.fullmatch(r"--model(\.\w+){2,}", flag) is None:
        return None
    part, *keys = [key for key in flag.split(".")[1:] if key != "init_args"]
    mapping: Any = None
    for key in reversed(keys):
        mapping = {"init_args": {key: mapping}}
    return f"--model.{part}={json.dumps(mapping)}" if keys else None


def class_of_agent(args: Sequence[str]) -> str:
    """What ``--model``, a configuration file or, last, the default names; the one that is named last wins.

    The parser must know it from the start: from one class to another it would hand on the defaults of the first.
    """
    named = "ppo_lightning.PPO"
    for index, arg in enumerate(args):
        flag, equals, value = arg.partition("=")
        value = value if equals else next(iter(args[index + 1 : index + 2]), "")
        if flag in ("--config", "-c"):
            with contextlib.suppress(KeyError, TypeError):  # it names none
                named = plain_value(value)["model"]["class_path"] or named
        elif flag in ("--model", "--model.class_path"):
            named = _class_path(value) or named
    return named


def _class_path(value: str) -> str | None:
    """Of a part that is given by its name, or as a mapping."""
    if not value.startswith("{"):
        return value
    with contextlib.suppress(yaml.YAMLError):  # the parser will refuse it
        plain = yaml.safe_load(value)
        return plain.get("class_path") if isinstance(plain, dict) else None
    return None


def _split(args: Sequence[str]) -> Iterator[Sequence[str]]:
    for arg in args:
        yield arg.split("=", 1) if arg.startswith("--data.env=") else [arg]


def root_of_run(config: Path) -> list[str]:
    """The root that a run lies under now; its ``config.yaml`` may name it from elsewhere, or from before a move."""
    logs = config.parent.parent
    return [f"--trainer.default_root_dir={logs.parent}"] if logs.name == NAME else []


def _trainer_in(config: Path) -> dict[str, Any]:
    """The Trainer's settings in a run's ``config.yaml``; none where it has no such section."""
    content = yaml.safe_load(config.read_text())
    trainer = content.get("trainer") if isinstance(content, dict) else None
    return trainer if isinstance(trainer, dict) else {}


def precision_in(config: Path) -> Any:
    """The precision of the run that a ``config.yaml`` is of; None where it names none."""
    return _trainer_in(config).get("precision")


def callbacks_beside(config: Path, args: Sequence[str]) -> list[str]:
    """The callbacks of a run's configuration without those that ``--trainer.callbacks+=…`` names: the same command,
    given again to continue the run, means the same callbacks and no second ones.
    """
    named = {_class_name(plain_value(value)) for value in values(args, "--trainer.callbacks+")}
    callbacks = _trainer_in(config).get("callbacks")
    before = callbacks if isinstance(callbacks, list) else []
    kept = [callback for callback in before if _class_name(callback) not in named]
    return [] if kept == before else [f"--trainer.callbacks={json.dumps(kept)}"]


def plain_value(text: str) -> Any:
    """What an argument holds in itself or in the file that it names; what is no YAML, the parser will refuse."""
    with contextlib.suppress(OSError, UnicodeDecodeError):  # a text too long for a file's name, or a file of no text
        text = Path(text).read_text()
    with contextlib.suppress(yaml.YAMLError):
        return yaml.safe_load(text)
    return text


def _class_name(callback: Any) -> str:
    path = callback.get("class_path") if isinstance(callback, dict) else callback
    return str(path).rpartition(".")[2]


class _StrictLoader(yaml.SafeLoader):
    """Plain YAML takes the second of two equal keys and forgets the first."""

    def compose_mapping_node(self, anchor: Any) -> yaml.MappingNode:
        node = super().compose_mapping_node(anchor)  # as it is written, before ``<<`` is merged in
        seen: set[str] = set()
        for key, _ in node.value:
            if key.value in seen and key.value != "<<":
                raise TwiceError(f"{key.value!r} is given twice, again in line {key.start_mark.line + 1}")
            seen.add(key.value)
        return cast(yaml.MappingNode, node)


class TwiceError(ValueError):
    """A mapping with two equal keys."""


def check_config(path: str) -> None:
    """Raise for a file that holds no settings; one that is missing is the parser's to tell."""
    if not Path(path).is_file():
        return
    try:
        content = yaml.load(Path(path).read_text(), _StrictLoader)
        reason = "" if isinstance(content, dict) else f"it holds {'nothing' if content is None else repr(content)[:40]}"
    except TwiceError as error:
        raise ConfigurationError(f"--config={path}: {error}: leave one of them out.") from error
    except (yaml.YAMLError, UnicodeDecodeError) as error:
        reason = " ".join(str(error).split())
    if reason:
        raise ConfigurationError(
            f"--config={path} is not a YAML file of settings ({reason}): see configs/cartpole.yaml for one that is."
        )


def check_mapping(flag: str, value: str) -> None:
    """Raise for a mapping on the command line that has two equal keys; other mistakes are the parser's to tell."""
    try:
        yaml.load(value, _StrictLoader)
    except TwiceError as error:
        raise ConfigurationError(f"{flag}: {str(error).partition(',')[0]}: leave one of them out.") from error
    except yaml.YAMLError:
        return
