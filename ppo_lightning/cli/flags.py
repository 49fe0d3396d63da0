"""The command line's help texts, and its flags beside those of trainer, model and data."""

from __future__ import annotations

from typing import Any, Optional

from lightning.pytorch.cli import LightningArgumentParser

from ppo_lightning.callbacks import Evaluation, FaultHandling, RunCheckpoint, TrainingSummary
from ppo_lightning.commands import COMMANDS
from ppo_lightning.commands.parser import PROGRAM
from ppo_lightning.core.spaces import space_to_dict

LINKED_SPACES = "observation_space", "action_space"

_OPTIONS = (
    "The options of a class that can be chosen: --model.help=PPO, --model.network.help=ActorCritic, "
    "--data.env.help=ProcgenEnv."
)
PARSER_TEXTS: dict[str, Any] = {
    "prog": PROGRAM,
    "description": "Proximal Policy Optimization for PyTorch Lightning. More commands, each with its own --help: "
    + ", ".join(f"{name} ({text.rstrip('.')})" for name, text in COMMANDS.items())
    + ".",
    "allow_abbrev": False,
    "fit": {"allow_abbrev": False, "description": f"Train an agent, or continue a run with --ckpt_path. {_OPTIONS}"},
    "validate": {"allow_abbrev": False, "description": "Evaluate the agent of --ckpt_path and print a table."},
    "video": {"allow_abbrev": False, "description": "Record episodes of the agent of --ckpt_path as mp4 files."},
    "calibrate": {
        "allow_abbrev": False,
        "description": "Find thresholds of the novice's confidence below which LogitThresholdPolicy asks the expert.",
    },
    "compare": {"allow_abbrev": False, "description": "Judge and draw coordinators on the same episodes."},
    "test": {"allow_abbrev": False, "description": "Evaluate the agent of --ckpt_path and print a table."},
}


def add_flags(parser: LightningArgumentParser) -> None:
    """Callbacks that are always there, what a run starts from, and how it reports."""
    parser.add_lightning_class_args(Evaluation, "evaluation")
    parser.add_lightning_class_args(RunCheckpoint, "checkpoint")
    parser.add_lightning_class_args(FaultHandling, "faults")
    parser.add_lightning_class_args(TrainingSummary, "summary")
    parser.add_argument(
        "--init_from",
        type=Optional[str],
        default=None,
        help="Start a new run from the network weights of this checkpoint (fit only).",
    )
    parser.add_argument(
        "--resume",
        type=Optional[str],
        default=None,
        help="auto: go on from the newest good checkpoint of the newest run below --trainer.default_root_dir, or of "
        "the one of --run_name, or start a run where there is none; or the folder of a run to go on with (fit only).",
    )
    parser.add_argument(
        "--run_name",
        type=Optional[str],
        default=None,
        help="Name the run's folder: lightning_logs/<run_name> in place of version_<n>. --resume=auto and "
        "--ckpt_path=last, best or hpc then mean this run and no other.",
    )
    parser.add_argument("--json", action="store_true", help="Print the evaluation as JSON, and nothing else.")
    for name in LINKED_SPACES:
        parser.link_arguments(
            f"data.{name}", f"model.init_args.{name}", compute_fn=space_to_dict, apply_on="instantiate"
        )
