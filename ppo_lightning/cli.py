"""The command line: ``ppo-lightning fit | validate | test``."""

from __future__ import annotations

import itertools
import logging
import os
import re
import sys
import warnings
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any, NoReturn, Optional

import torch
import yaml  # type: ignore[import-untyped]
from lightning.pytorch import LightningModule, Trainer
from lightning.pytorch.accelerators import CPUAccelerator
from lightning.pytorch.cli import LightningArgumentParser, LightningCLI, SaveConfigCallback
from lightning.pytorch.utilities.exceptions import MisconfigurationException
from rich.console import Console
from rich.table import Table

from ppo_lightning.algorithms import PPO
from ppo_lightning.callbacks import BestCheckpoint, EnvStepProgressBar, Evaluation, RunCheckpoint
from ppo_lightning.callbacks.checkpoint import relative_path
from ppo_lightning.core.checkpoint import read_checkpoint
from ppo_lightning.core.errors import ConfigurationError, TrainingError, check_range
from ppo_lightning.core.spaces import space_to_dict
from ppo_lightning.data import RolloutDataModule
from ppo_lightning.loggers import NAME, run_loggers
from ppo_lightning.parser_errors import ParserError, sentence_for

PROGRAM = "ppo-lightning"
_SMALL_NETWORK = 100_000  # parameters
_LINKED_SPACES = "observation_space", "action_space"
EXIT_CONFIGURATION, EXIT_TRAINING, EXIT_INTERRUPTED = 2, 1, 130

_OPTIONS = (
    "The options of a class that can be chosen: --model.help=PPO, --model.network.help=ActorCritic, "
    "--data.env.help=ProcgenEnv."
)
_PARSER_TEXTS: dict[str, Any] = {
    "prog": PROGRAM,
    "description": "Proximal Policy Optimization for PyTorch Lightning.",
    "allow_abbrev": False,
    "fit": {"allow_abbrev": False, "description": f"Train an agent, or continue a run with --ckpt_path. {_OPTIONS}"},
    "validate": {"allow_abbrev": False, "description": "Evaluate the agent of --ckpt_path and print a table."},
    "test": {"allow_abbrev": False, "description": "Evaluate the agent of --ckpt_path and print a table."},
}

# What Lightning says of things that are as they should be here
_QUIET = [
    ".*does not have many workers.*",
    ".*smaller than the logging interval.*",
    ".*treespec.*is deprecated.*",
    ".*resuming from a checkpoint that ended before the epoch ended.*",
    ".*Checkpoint directory .* exists and is not empty.*",
    ".*dirpath has changed from.*",
    ".*srun.*command is available.*",
    ".*callbacks used to create the checkpoint need to be provided.*",
]


class PPOArgumentParser(LightningArgumentParser):
    """Lightning's parser, whose errors are sentences like all others, without the usage, which is pages long here."""

    def error(self, message: str, ex: Exception | None = None) -> NoReturn:
        """Leave it to :func:`main` to say it."""
        raise ParserError(message) from ex


class RunConfigCallback(SaveConfigCallback):
    """Writes ``config.yaml`` into the run's folder; a run that continues there adds ``config_<n>.yaml`` beside it."""

    def setup(self, trainer: Trainer, pl_module: LightningModule, stage: str) -> None:
        """Nothing yet: a run that is refused leaves no trace in the folder of the one it would have continued."""

    def on_train_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Write it once, on the first rank."""
        log_dir = trainer.log_dir
        if log_dir is None or self.already_saved or not trainer.is_global_zero:
            return
        folder = Path(log_dir)
        folder.mkdir(parents=True, exist_ok=True)
        names = ["config.yaml", *(f"config_{number}.yaml" for number in range(1, 10_000))]
        path = next(folder / name for name in names if not (folder / name).exists())
        self.parser.save(self.config, path, skip_none=False, overwrite=False, multifile=False)
        self.already_saved = True


class PPOLightningCLI(LightningCLI):
    """Links data to model, continues runs in their own folders, and ends with a table."""

    def __init__(self, args: Optional[Sequence[str]] = None) -> None:
        super().__init__(
            PPO,
            RolloutDataModule,
            subclass_mode_model=True,
            save_config_callback=RunConfigCallback,
            seed_everything_default=1,
            trainer_class=Trainer,
            trainer_defaults={"max_epochs": -1, "gradient_clip_val": 0.5, "enable_model_summary": False},
            auto_configure_optimizers=False,
            parser_class=PPOArgumentParser,
            parser_kwargs=_PARSER_TEXTS,
            args=None if args is None else list(args),
        )

    # -- the parser

    @staticmethod
    def subcommands() -> dict[str, set[str]]:
        """``predict`` has no meaning here."""
        known = LightningCLI.subcommands()
        return {name: known[name] for name in ("fit", "validate", "test")}

    def add_arguments_to_parser(self, parser: LightningArgumentParser) -> None:
        """The groups beside trainer, model and data."""
        parser.add_lightning_class_args(Evaluation, "evaluation")
        parser.add_lightning_class_args(RunCheckpoint, "checkpoint")
        parser.add_argument(
            "--init_from",
            type=Optional[str],
            default=None,
            help="Start a new run from the network weights of this checkpoint (fit only).",
        )
        parser.set_defaults({"model": {"class_path": "ppo_lightning.PPO"}})
        for name in _LINKED_SPACES:
            parser.link_arguments(
                f"data.{name}", f"model.init_args.{name}", compute_fn=space_to_dict, apply_on="instantiate"
            )

    def parse_arguments(self, parser: LightningArgumentParser, args: Any) -> None:
        """Without ``--config``, a command on a checkpoint takes the configuration that its run was started with."""
        given = list(sys.argv[1:] if args is None else args)
        for path in _values(given, "--config", "-c"):
            _check_config(path)
        checkpoint = next(iter(_values(given, "--ckpt_path")), None)
        if checkpoint is not None and not _values(given, "--config", "-c"):
            config = _config_of_run(_run_folder(checkpoint))
            if config is not None:
                given[1:1] = ["--config", str(config), "--init_from=null", *_root_of_run(config)]
            elif not _values(given, "--init_from"):
                read_checkpoint(checkpoint, "--ckpt_path")  # its own mistakes before those of missing settings
        self.config = parser.parse_args(_name_env_class(given))

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
        self._run_folder: Path | None = None
        self._resume_step: int | None = None
        for name in _LINKED_SPACES:
            if config.model.init_args.get(name) is not None:
                raise ConfigurationError(f"--model.{name} is taken from the environment of --data.env: leave it out.")
        check_range("--trainer.gradient_clip_val", config.trainer.gradient_clip_val or 0, 0)
        if config.ckpt_path and config.init_from:
            raise ConfigurationError(
                "--ckpt_path continues a run and --init_from starts a new one: give one of the two."
            )
        if config.init_from and self.subcommand != "fit":
            raise ConfigurationError(f"--init_from is for fit: give --ckpt_path to {self.subcommand}.")
        if self.subcommand != "fit" and not config.ckpt_path:
            raise ConfigurationError(f"--ckpt_path is missing: name the checkpoint to {self.subcommand}.")
        if config.init_from:
            read_checkpoint(config.init_from, "--init_from")
        if config.ckpt_path:
            checkpoint = read_checkpoint(config.ckpt_path, "--ckpt_path")
            self._resume_step = checkpoint.get("RolloutDataModule", {}).get("env_steps")
            folder = _run_folder(config.ckpt_path)
            if _config_of_run(folder) is not None:
                self._run_folder = folder

    def instantiate_classes(self) -> None:
        """Build data, model and Trainer; a new run may start from another's weights."""
        super().instantiate_classes()
        init_from = self.config[self.subcommand].init_from
        if init_from:
            self.model.init_from(init_from)

    def instantiate_trainer(self, **kwargs: Any) -> Trainer:
        """The Trainer with this package's callbacks and, unless others are configured, its two loggers."""
        config = self.config_init[self.subcommand].trainer
        callbacks: list[Any] = [BestCheckpoint()] if self.subcommand == "fit" else []
        if config.enable_progress_bar is not False:
            callbacks.append(EnvStepProgressBar())
        if self.subcommand == "fit":
            if config.logger in (None, True):
                kwargs["logger"] = self._loggers(config.default_root_dir)
        else:
            kwargs["logger"] = False
        config.callbacks = [*(config.callbacks or []), *callbacks]
        try:
            return super().instantiate_trainer(**kwargs)
        except (ValueError, RuntimeError, ImportError, MisconfigurationException) as error:
            raise ConfigurationError(f"--trainer: {' '.join(str(error).split()).rstrip('.!')}.") from error

    def _loggers(self, default_root_dir: Any) -> Any:
        _check_writable(Path(default_root_dir or Path.cwd()))
        folder = self._run_folder
        if folder is not None and folder.parent.name == NAME:
            root = folder.parent.parent
            if default_root_dir is None or Path(default_root_dir).absolute() == root:
                version = folder.name.removeprefix("version_")
                return run_loggers(root, int(version) if version.isdigit() else folder.name, self._resume_step)
        return run_loggers(default_root_dir or Path.cwd())

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

    # -- the end

    def after_fit(self) -> None:
        """The table, and where the best checkpoint is."""
        self._print_result()
        for callback in self._callbacks(BestCheckpoint):
            if callback.best_model_path and self.trainer.is_global_zero:
                path = relative_path(callback.best_model_path)
                print(f"Best checkpoint (return {callback.best_model_score:.4g}): {path}")

    def after_validate(self) -> None:
        """The table."""
        self._print_result()

    def after_test(self) -> None:
        """The table."""
        self._print_result()

    def _callbacks(self, kind: type) -> list[Any]:
        callbacks: list[Any] = vars(self.trainer)["callbacks"]
        return [callback for callback in callbacks if isinstance(callback, kind)]

    def _print_result(self) -> None:
        result = self._callbacks(Evaluation)[0].result
        if result is None or not self.trainer.is_global_zero:
            return
        table = Table(title=f"Evaluation after {self.datamodule.env_steps:,} environment steps")
        cells = {
            "return (mean ± 95 %)": f"{result.return_mean:.2f} ± {result.return_ci95:.2f}",
            "episodes": str(len(result.episodes)),
            "environment steps": f"{self.datamodule.env_steps:,}",
        }
        speed = self.trainer.callback_metrics.get("time/sps")
        if speed is not None:
            cells["steps/s"] = f"{float(speed):,.0f}"
        for name in cells:
            table.add_column(name, justify="right")
        table.add_row(*cells.values())
        Console().print(table)


def _values(args: Sequence[str], *flags: str) -> list[str]:
    """What is given to a flag, as ``--flag value`` or ``--flag=value``."""
    apart = [value for flag, value in itertools.pairwise(args) if flag in flags]
    return [
        *apart,
        *(value for flag, equals, value in (arg.partition("=") for arg in args) if equals and flag in flags),
    ]


def _run_folder(ckpt_path: str) -> Path:
    """The folder whose ``checkpoints/`` holds the checkpoint."""
    return Path(ckpt_path).absolute().parent.parent


def _config_of_run(folder: Path) -> Path | None:
    """The configuration that a run was started or last continued with."""
    numbered = [path for path in folder.glob("config_*.yaml") if path.stem.removeprefix("config_").isdigit()]
    newest = max(numbered, key=lambda path: int(path.stem.removeprefix("config_")), default=folder / "config.yaml")
    return newest if newest.is_file() else None


def _name_env_class(args: Sequence[str]) -> list[str]:
    """``--data.env=CartPole-v1`` as class and id, so that ``--data.env.vectorization`` and the like apply to it."""
    named: list[str] = []
    for arg in itertools.chain.from_iterable(_split(args)):
        if named and named[-1] == "--data.env" and re.fullmatch(r"[\w:./-]+-v\d+", arg):
            named[-1:] = ["--data.env=GymnasiumEnv", f"--data.env.id={arg}"]
        else:
            named.append(arg)
    return named


def _split(args: Sequence[str]) -> Iterator[Sequence[str]]:
    for arg in args:
        yield arg.split("=", 1) if arg.startswith("--data.env=") else [arg]


def _root_of_run(config: Path) -> list[str]:
    """The root that a run lies under now; its ``config.yaml`` may name it from elsewhere, or from before a move."""
    logs = config.parent.parent
    return [f"--trainer.default_root_dir={logs.parent}"] if logs.name == NAME else []


def _check_config(path: str) -> None:
    """Raise for a file that holds no settings; one that is missing is the parser's to tell."""
    if not Path(path).is_file():
        return
    try:
        content = yaml.safe_load(Path(path).read_text())
        reason = "" if isinstance(content, dict) else f"it holds {'nothing' if content is None else repr(content)[:40]}"
    except (yaml.YAMLError, UnicodeDecodeError) as error:
        reason = " ".join(str(error).split())
    if reason:
        raise ConfigurationError(
            f"--config={path} is not a YAML file of settings ({reason}): see configs/cartpole.yaml for one that is."
        )


def _check_writable(root: Path) -> None:
    """Raise unless ``lightning_logs`` can be made there."""
    try:
        (root / NAME).mkdir(parents=True, exist_ok=True)
        reason = "" if os.access(root / NAME, os.W_OK | os.X_OK) else "Permission denied"
    except OSError as error:
        reason = error.strerror or str(error)
    if reason:
        raise ConfigurationError(
            f"--trainer.default_root_dir={root} cannot be written ({reason}): name a folder that can."
        )


def _fail(message: str, code: int) -> NoReturn:
    print(f"{PROGRAM}: error: {message}", file=sys.stderr)
    sys.exit(code)


def main(args: Optional[Sequence[str]] = None) -> None:
    """Run the command line. Errors that a user can mend are one sentence on standard error and an exit code."""
    sys.path.insert(0, os.getcwd())  # environments and networks of one's own, beside where the command is typed
    for message in _QUIET:
        warnings.filterwarnings("ignore", message)
    for handler in logging.getLogger("lightning.pytorch").handlers:
        handler.addFilter(_is_news)
    warnings.formatwarning = lambda message, *_, **__: f"{PROGRAM}: warning: {message}\n"
    try:
        PPOLightningCLI(args)
    except SystemExit as end:
        interrupted = isinstance(end.__context__, KeyboardInterrupt)
        sys.exit(EXIT_INTERRUPTED if interrupted else end.code)
    except ParserError as error:
        _fail(sentence_for(error, sys.argv[1:] if args is None else args), EXIT_CONFIGURATION)
    except MisconfigurationException as error:
        _fail(" ".join(str(error).split()), EXIT_CONFIGURATION)
    except TrainingError as error:
        _fail(str(error), EXIT_TRAINING)
    except Exception as error:
        cause = _configuration_error(error)
        if cause is None:
            raise
        _fail(str(cause), EXIT_CONFIGURATION)


def _configuration_error(error: BaseException | None) -> ConfigurationError | None:
    """The user's mistake behind an exception: jsonargparse wraps what a constructor raises in its own."""
    while error is not None and not isinstance(error, ConfigurationError):
        error = error.__cause__ or error.__context__
    return error


def _is_news(record: logging.LogRecord) -> bool:
    text = record.getMessage()
    quiet = (
        "litlogger",
        "`weights_only` was not set",
        "TPU available",
        "GPU available: False",
        "`Trainer.fit` stopped",
    )
    return not any(words in text for words in quiet)
