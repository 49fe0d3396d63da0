"""The command line: ``ppo-lightning fit | validate | test``."""

from __future__ import annotations

import os
import sys
from collections.abc import Sequence
from typing import Any, Optional

import torch
from lightning.pytorch import Trainer
from lightning.pytorch.accelerators import CPUAccelerator
from lightning.pytorch.callbacks import ProgressBar
from lightning.pytorch.cli import LightningArgumentParser, LightningCLI
from lightning.pytorch.utilities import rank_zero_info
from lightning.pytorch.utilities.exceptions import MisconfigurationException

from ppo_lightning.algorithms import OnPolicyModule
from ppo_lightning.callbacks import (
    BestCheckpoint,
    EnvStepProgressBar,
    VideoRecorder,
)
from ppo_lightning.cli.agents import agents_beside
from ppo_lightning.cli.arguments import (
    callbacks_beside,
    check_config,
    check_mapping,
    class_of_agent,
    config_of_run,
    name_env_class,
    precision_in,
    root_of_run,
    run_folder,
    values,
    write_nulls_out,
)
from ppo_lightning.cli.flags import LINKED_SPACES, PARSER_TEXTS, add_flags
from ppo_lightning.cli.precision import HALF, default_precision
from ppo_lightning.cli.reporting_cli import ReportingCLI
from ppo_lightning.cli.resume import resolve_checkpoint
from ppo_lightning.cli.run_config import RunConfigCallback
from ppo_lightning.cli.run_folder import RunFolder, name_of_run
from ppo_lightning.cli.trainer import CommandTrainer
from ppo_lightning.commands.parser import PPOArgumentParser
from ppo_lightning.core.checkpoint import read_checkpoint
from ppo_lightning.core.errors import ConfigurationError, NothingLeftError, check_range
from ppo_lightning.data import RolloutDataModule

_SMALL_NETWORK = 100_000  # parameters


class PPOLightningCLI(ReportingCLI):
    """Links data to model, continues runs in their own folders, and ends with a table."""

    def __init__(self, args: Optional[Sequence[str]] = None) -> None:
        self._run_folder: RunFolder | None = None
        try:
            self._run_command(args)
        except BaseException as error:
            if self._run_folder is not None:
                self._run_folder.leave_no_trace()
            if not (isinstance(error, NothingLeftError) and self._resumes):
                raise
            self._say_complete()
        finally:
            if self._run_folder is not None:
                self._run_folder.release()

    def _run_command(self, args: Optional[Sequence[str]]) -> None:
        super().__init__(
            OnPolicyModule,
            RolloutDataModule,
            subclass_mode_model=True,
            save_config_callback=RunConfigCallback,
            seed_everything_default=1,
            trainer_class=CommandTrainer,
            trainer_defaults={"max_epochs": -1, "gradient_clip_val": 0.5, "enable_model_summary": False},
            auto_configure_optimizers=False,
            parser_class=PPOArgumentParser,
            parser_kwargs=PARSER_TEXTS,
            args=None if args is None else list(args),
        )

    # -- the parser

    @staticmethod
    def subcommands() -> dict[str, set[str]]:
        """``predict`` has no meaning here."""
        known = LightningCLI.subcommands()
        own = {name: {"model", "datamodule"} for name in ("video", "calibrate", "compare")}
        return {name: known[name] for name in ("fit", "validate", "test")} | own

    def add_arguments_to_parser(self, parser: LightningArgumentParser) -> None:
        """The groups beside trainer, model and data."""
        add_flags(parser)

    def parse_arguments(self, parser: LightningArgumentParser, args: Any) -> None:
        """Without ``--config``, a command on a checkpoint takes the configuration that its run was started with."""
        given = list(sys.argv[1:] if args is None else args)
        for path in values(given, "--config", "-c"):
            check_config(path)
        for value in values(given, "--evaluation.splits"):
            check_mapping("--evaluation.splits", value)
        self._resumes = False
        if given and not {"-h", "--help"} & set(given):
            resolved = resolve_checkpoint(given)
            self._resumes = "--resume=null" in resolved and "--resume=null" not in given
            given = resolved
        checkpoint = next(iter(values(given, "--ckpt_path")), None)
        is_asked_for = bool(values(given, "--evaluation.policy") or {"-h", "--help"} & set(given))
        if checkpoint is None and not values(given, "--config", "-c") and not is_asked_for:
            _refuse_without_checkpoint(next(iter(given), ""))
        if checkpoint is not None and not values(given, "--config", "-c"):
            config = config_of_run(run_folder(checkpoint))
            if config is not None:
                check_config(str(config))
                quiet = [] if given[0] == "fit" else ["--trainer.logger=false"]
                given[1:1] = [
                    "--config",
                    str(config),
                    "--init_from=null",
                    "--resume=null",
                    *root_of_run(config),
                    *name_of_run(config),
                    *quiet,
                    *callbacks_beside(config, given),
                    *agents_beside(config, checkpoint, given),
                ]
            elif not values(given, "--init_from"):
                read_checkpoint(checkpoint, "--ckpt_path")  # its own mistakes before those of missing settings
        if given and given[0] in self.subcommands():
            given.insert(1, f"--model={class_of_agent(given)}")
        self.config = parser.parse_args(write_nulls_out(name_env_class(given)))

    def _set_seed(self) -> None:
        seed = self._get(self.config, "seed_everything")
        if isinstance(seed, int) and not isinstance(seed, bool):
            check_range("--seed_everything", seed, 0, 2**32 - 1)
        super()._set_seed()

    def _parse_ckpt_path(self) -> None:
        """Nothing: Lightning would let the checkpoint's hyper-parameters win over flags that were given."""

    # -- the parts

    def before_instantiate_classes(self) -> None:
        """Look at the checkpoints before anything is built."""
        config = self.config[self.subcommand]
        self._resume_step: int | None = None
        for name in LINKED_SPACES:
            if config.model.init_args.get(name) is not None:
                raise ConfigurationError(f"--model.{name} is taken from the environment of --data.env: leave it out.")
        check_range("--trainer.gradient_clip_val", config.trainer.gradient_clip_val or 0, 0)
        if config.resume and self.subcommand != "fit":
            raise ConfigurationError(f"--resume is for fit: give --ckpt_path to {self.subcommand}.")
        if config.init_from and self.subcommand != "fit":
            raise ConfigurationError(f"--init_from is for fit: give --ckpt_path to {self.subcommand}.")
        if config.ckpt_path and config.init_from:
            raise ConfigurationError(
                "--ckpt_path continues a run and --init_from starts a new one: give one of the two."
            )
        if not config.ckpt_path and not config.evaluation.policy:
            _refuse_without_checkpoint(str(self.subcommand))
        if config.init_from:
            read_checkpoint(config.init_from, "--init_from")
        if self.subcommand == "fit":
            self._run_folder = RunFolder(config)
            self._run_folder.claim()
        if config.ckpt_path:  # read once the folder is this run's, when nobody else saves there
            checkpoint = read_checkpoint(config.ckpt_path, "--ckpt_path")
            self._resume_step = checkpoint.get("RolloutDataModule", {}).get("env_steps")

    def instantiate_classes(self) -> None:
        """Build data, model and Trainer; a new run may start from another's weights."""
        super().instantiate_classes()
        init_from = self.config[self.subcommand].init_from
        if init_from:
            self.model.init_from(init_from)

    def instantiate_trainer(self, **kwargs: Any) -> Trainer:
        """The Trainer with this package's callbacks and, unless others are configured, its two loggers."""
        config = self.config_init[self.subcommand].trainer
        self._choose_precision(config)
        given = config.callbacks or []
        callbacks: list[Any] = list(given) if isinstance(given, Sequence) else [given]
        has_bar = any(isinstance(callback, ProgressBar) for callback in callbacks)
        if self._is_json:  # nothing else on standard output
            config.enable_progress_bar = False
            callbacks = [callback for callback in callbacks if not isinstance(callback, ProgressBar)]
            self.config_init[self.subcommand].summary.verbose = False
        elif config.enable_progress_bar is not False and not has_bar:
            callbacks.append(EnvStepProgressBar())
        if self.subcommand == "fit":
            callbacks += self._best_checkpoints(callbacks)
        else:  # the command of its own records, and knows where
            callbacks = [callback for callback in callbacks if not isinstance(callback, VideoRecorder)]
        config.callbacks = callbacks
        if self._run_folder is None:
            kwargs["logger"] = False
        elif config.logger in (None, True):
            kwargs["logger"] = self._run_folder.loggers(self._resume_step)
        try:
            trainer = super().instantiate_trainer(**kwargs)
        except (ValueError, RuntimeError, ImportError, MisconfigurationException) as error:
            raise ConfigurationError(f"--trainer: {' '.join(str(error).split()).rstrip('.!')}.") from error
        if getattr(trainer.strategy, "_start_method", "") == "spawn":
            raise ConfigurationError(
                f"--trainer.strategy={config.strategy} sends the run to its processes as a copy, which live "
                "environments and locks have none of: use --trainer.strategy=ddp."
            )
        return trainer

    def _choose_precision(self, config: Any) -> None:
        """Of a new run that asks for none; config.yaml says which it was, and the run goes on with it elsewhere."""
        network, own = self.model.network, self.config[self.subcommand]
        if self.subcommand != "fit" or config.precision is not None or config.plugins or network is None:
            return
        if own.ckpt_path:
            begun = config_of_run(run_folder(own.ckpt_path))
            config.precision = None if begun is None else precision_in(begun)
        else:
            config.precision = default_precision(network, config.accelerator)
            if config.precision == HALF:
                rank_zero_info(f"The images run in bfloat16 (--trainer.precision={HALF}), which the hardware has.")
        own.trainer.precision = config.precision

    def _best_checkpoints(self, callbacks: Sequence[Any]) -> list[BestCheckpoint]:
        """One a split, beside those that are configured."""
        splits = self.config[self.subcommand].evaluation.splits or [""]
        monitors = [f"eval/{split}/return_mean" if split else "eval/return_mean" for split in splits]
        configured = [callback.monitor for callback in callbacks if isinstance(callback, BestCheckpoint)]
        return [BestCheckpoint(monitor) for monitor in monitors if monitor not in configured]

    # -- the run

    def before_fit(self) -> None:
        """Small networks on the CPU run in one thread, unless ``OMP_NUM_THREADS`` says otherwise.

        Two threads were no faster (6,400–6,800 steps/s against 7,100–7,300 on CartPole) and far slower beside other
        work on the same cores, since they wait for each other in every layer (benchmarks/RESULTS.md).
        """
        size = sum(parameter.numel() for parameter in self.model.parameters())
        on_cpu = isinstance(self.trainer.accelerator, CPUAccelerator)
        if on_cpu and size < _SMALL_NETWORK and "OMP_NUM_THREADS" not in os.environ:
            torch.set_num_threads(1)


def _refuse_without_checkpoint(command: str) -> None:
    if command in ("validate", "test", "video"):
        what = "record" if command == "video" else command
        raise ConfigurationError(f"--ckpt_path is missing: name the checkpoint to {what}.")
