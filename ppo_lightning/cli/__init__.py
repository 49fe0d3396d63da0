"""The command line; the only place that knows everything."""

from ppo_lightning.cli.program import main

__all__ = ["main"]
