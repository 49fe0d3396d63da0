"""``ppo-lightning``: runs a command, and says what went wrong in one sentence."""

from __future__ import annotations

import errno
import importlib
import logging
import os
import signal
import sys
import threading
import time
import warnings
from collections.abc import Sequence
from typing import NoReturn, Optional

import torch
from lightning.pytorch.utilities.exceptions import MisconfigurationException

from ppo_lightning.callbacks.fault_watch import is_watching
from ppo_lightning.cli.lightning_cli import PPOLightningCLI
from ppo_lightning.cli.parser_errors import sentence_for
from ppo_lightning.commands import COMMANDS
from ppo_lightning.commands.parser import PROGRAM, ParserError
from ppo_lightning.core.allocator import keep_freed_memory
from ppo_lightning.core.errors import ConfigurationError, Terminated, TrainingError

EXIT_CONFIGURATION, EXIT_TRAINING, EXIT_INTERRUPTED = 2, 1, 130
_FULL = {errno.ENOSPC, errno.EDQUOT, errno.EFBIG, errno.EROFS}
_SECONDS_TO_END = 20.0
_SECONDS_ALONE, _SECONDS_UNWATCHED = 45.0, 8.0
"""That a rank without the process that started it may still take, and how many of them while nothing looks after it."""

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


def _fail(message: str, code: int) -> NoReturn:
    sentence = " ".join(line.strip() for line in message.splitlines())  # a space may be written in several lines
    print(f"{PROGRAM}: error: {sentence}", file=sys.stderr)
    sys.exit(code)


def main(args: Optional[Sequence[str]] = None) -> None:
    """Run the command line. Errors that a user can mend are one sentence on standard error and an exit code."""
    os.environ.setdefault(
        "TORCH_CPP_LOG_LEVEL", "ERROR"
    )  # of child ranks: twenty lines of C++ where the first one dies
    _end_with_parent()
    try:
        _run(args)
    except SystemExit as end:
        if torch.distributed.is_available() and torch.distributed.is_initialized():
            _end_within(_SECONDS_TO_END, end.code)
        raise
    finally:
        if torch.distributed.is_available() and torch.distributed.is_initialized():
            torch.distributed.destroy_process_group()  # else gloo's threads may abort the process as it ends


def _end_with_parent() -> None:
    """A rank ends when what started it is gone (the first rank by Lightning's launcher, or torchrun), whatever it waits
    for. While it trains, the watch over faults ends it in order and sooner.
    """
    if not os.environ.get("LOCAL_RANK", "0").strip("0") and "TORCHELASTIC_RUN_ID" not in os.environ:
        return
    parent = os.getppid()

    def watch() -> None:
        while os.getppid() == parent:
            time.sleep(1.0)
        alone = unwatched = 0.0
        while alone < _SECONDS_ALONE and unwatched < _SECONDS_UNWATCHED:
            time.sleep(1.0)
            alone, unwatched = alone + 1.0, 0.0 if is_watching() else unwatched + 1.0
        os._exit(EXIT_TRAINING)

    threading.Thread(target=watch, daemon=True, name="parent-watch").start()


def _end_within(seconds: float, code: object) -> None:
    """Do not wait for connections to ranks that are gone, which may take for ever."""

    def end() -> None:
        time.sleep(seconds)
        os._exit(code if isinstance(code, int) else EXIT_TRAINING)

    threading.Thread(target=end, daemon=True, name="end-within").start()


def _run(args: Optional[Sequence[str]]) -> None:
    keep_freed_memory()
    sys.path.insert(0, os.getcwd())  # environments and networks of one's own, beside where the command is typed
    for message in _QUIET:
        warnings.filterwarnings("ignore", message)
    for handler in logging.getLogger("lightning.pytorch").handlers:
        handler.addFilter(_is_news)
    warnings.formatwarning = lambda message, *_, **__: f"{PROGRAM}: warning: {message}\n"
    try:
        given = list(sys.argv[1:] if args is None else args)
        if given and given[0] in COMMANDS:
            importlib.import_module(f"ppo_lightning.commands.{given[0]}").main(given[1:])
        else:
            PPOLightningCLI(args)
    except Terminated:
        for signum in (signal.SIGTERM, signal.SIGINT):  # a second one changes nothing
            signal.signal(signum, signal.SIG_IGN)
        raise
    except SystemExit as end:
        interrupted = isinstance(end.__context__, KeyboardInterrupt)
        sys.exit(EXIT_INTERRUPTED if interrupted else end.code)
    except ParserError as error:
        _fail(sentence_for(error, sys.argv[1:] if args is None else args), EXIT_CONFIGURATION)
    except MisconfigurationException as error:
        _fail(" ".join(str(error).split()), EXIT_CONFIGURATION)
    except TrainingError as error:
        _fail(str(error), EXIT_TRAINING)
    except ModuleNotFoundError as error:
        _fail(
            " ".join(str(error).split()).rstrip(".") + ": install it, or leave out what needs it.", EXIT_CONFIGURATION
        )
    except Exception as error:
        _say_cause(error)
        raise


def _say_cause(error: Exception) -> None:
    """End with the sentence behind an exception: jsonargparse wraps what a constructor raises, and a logger's end
    may fail like the row before it.
    """
    if isinstance(error, RuntimeError) and "not used in producing the loss" in str(error):
        _fail(
            "--trainer.strategy=ddp waits for a gradient of every parameter, but some of --model.network have none: "
            "use --trainer.strategy=ddp_find_unused_parameters_true, or take them out of the network.",
            EXIT_CONFIGURATION,
        )
    for kind, code in ((ConfigurationError, EXIT_CONFIGURATION), (TrainingError, EXIT_TRAINING)):
        cause = _in_chain(error, kind)
        if cause is not None:
            _fail(str(cause), code)
    if isinstance(error, OSError) and error.errno in _FULL:
        _fail(
            f"{error.filename or 'A file of the run'} cannot be written ({error.strerror}): free some space or make it "
            "writable, then continue with --resume=auto.",
            EXIT_TRAINING,
        )


def _in_chain(error: BaseException | None, kind: type[Exception]) -> BaseException | None:
    while error is not None and not isinstance(error, kind):
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
