"""The argument parser of all commands."""

from __future__ import annotations

from typing import NoReturn

from lightning.pytorch.cli import LightningArgumentParser

from ppo_lightning.core.errors import ConfigurationError

PROGRAM = "ppo-lightning"


class ParserError(ConfigurationError):
    """An argument or a configuration file that cannot be parsed; ``options`` are the parser's own."""

    options: tuple[str, ...] = ()


class PPOArgumentParser(LightningArgumentParser):
    """Lightning's parser, whose errors are sentences like all others, without the usage, which is pages long here."""

    def error(self, message: str, ex: Exception | None = None) -> NoReturn:
        """Leave it to the program to say it."""
        error = ParserError(message)
        error.options = tuple(action.dest for action in self._actions)
        raise error from ex
