"""What jsonargparse says of a wrong argument, as one sentence that names the flag."""

from __future__ import annotations

import importlib
import inspect
import re
from collections.abc import Sequence

import torch
from lightning.pytorch import Trainer

import ppo_lightning
from ppo_lightning.commands import COMMANDS
from ppo_lightning.commands.parser import ParserError
from ppo_lightning.core.errors import ConfigurationError, close_names

_VALUES = {"int": "a whole number", "float": "a number", "bool": "true, false", "NoneType": "null"}
"""How values of these types are written."""


def sentence_for(error: ParserError, args: Sequence[str]) -> str:
    """The innermost reason, after the flag as it was given, before what may have been meant.

    jsonargparse reports a mistake in a nested class as a list of every alternative of every level around it; the
    reason is at the end of the chain of causes, and the parts of the flag are along it.
    """
    chain = [error, *_causes(error)]
    reasons = [" ".join(str(link).split()) for link in chain]
    if isinstance(_own_error(chain), ConfigurationError):
        return str(_own_error(chain))
    reason, path = _plain(reasons), _path(reasons)
    names = [
        name for pair in re.findall(r"""['"]([\w.]+)['"]|arguments: --([\w.]+)""", reason) for name in pair if name
    ]
    wanted = [path, f"{path}.class_path", *(f"{path}.{name}".lstrip(".") for name in names)]
    given = [arg for arg in args if arg.startswith("--") and arg.partition("=")[0][2:] in wanted]
    where = f"{given[-1]}: " if given else f"--{path}: " if path else ""
    command = args[0] if args else ""
    missing = re.search(r"module '([\w.]+)' has no attribute '(\w+)'", reason)
    unknown = [name.rpartition(".")[2] for name in names] or [arg.rpartition("=")[2] for arg in given]
    known = list(error.options) if command in COMMANDS else _known_names(path)
    if missing is not None:
        known, unknown = dir(importlib.import_module(missing[1])), [missing[2]]
    close = next(filter(None, (close_names(name, known) for name in unknown if name not in known)), "")
    commands = [command] if re.fullmatch(r"\w+", command) else []
    hint = "" if "choose from" in reason or re.match(r"Expected an? (int|float|bool)\b", reason) else close
    program = " ".join(["ppo-lightning", *(commands if "invalid choice" not in reason else [])])
    return f"{where}{reason.rstrip('.')}.{hint} See {program} --help."


def _causes(error: BaseException) -> list[BaseException]:
    causes = []
    while error.__cause__ is not None:
        error = error.__cause__
        causes.append(error)
    return causes


def _own_error(chain: Sequence[BaseException]) -> BaseException | None:
    """A sentence of this package's own among the causes."""
    own = [link for link in chain if isinstance(link, ConfigurationError) and not isinstance(link, ParserError)]
    return own[0] if own else None


def _plain(reasons: Sequence[str]) -> str:
    reason = re.sub(r'^(Parser key "[^"]*": )+', "", reasons[-1])
    reason = re.sub(r"<class '([\w.]+)'>", r"\1", reason)
    reason = re.sub(
        r"arguments are required: (fit|validate|test|video|calibrate|compare)\.", "arguments are required: --", reason
    )
    choices = [
        choice for text in reasons for part in re.findall(r"Literal\[(.*?)\]", text) for choice in part.split(", ")
    ]
    if choices and reason.startswith("Expected"):
        beside = re.findall(
            r"Subtypes: \[([^\[]*)typing.Literal\[[^\]]*\]([^\]]*)\]", reasons[-2] if reasons[1:] else ""
        )
        kinds = re.findall(r"\w+(?='>)", "".join(beside[-1])) if beside else []
        words = [*(_VALUES[kind] for kind in kinds if kind in _VALUES), *choices]
        return f"not accepted: choose from {', '.join(dict.fromkeys(words)).replace(chr(39), '')}"
    if "Expected a dot import path" in reason:
        return "no class of this name can be imported: give the name of one of the package's, or module.Class"
    return reason


def _path(reasons: Sequence[str]) -> str:
    """``model.network.encoder`` from the keys named along the chain."""
    path = ""
    for reason in reasons:
        match = re.match(r'Parser key "([^"]*)"', reason)
        if match and not path.endswith(match[1]):
            path = f"{path}.{match[1]}".lstrip(".")
    return path


def _known_names(path: str) -> list[str]:
    """Classes that can be chosen by name, and the options of all of them."""
    classes = [part for part in vars(ppo_lightning).values() if inspect.isclass(part)]
    constructors = [vars(part).get("__init__", object.__init__) for part in [*classes, Trainer]]
    options = [name for constructor in constructors for name in inspect.signature(constructor).parameters]
    module = {"optimizer": torch.optim, "scheduler": torch.optim.lr_scheduler}.get(path.rpartition(".")[2])
    optimizers = [name for name in vars(module) if name[0].isupper()] if module is not None else []
    return [*(part.__name__ for part in classes), *optimizers, *options]
