"""Two ranks that are interrupted go on as if nothing had happened."""

import shutil
from pathlib import Path

import pytest

from benchmarks.kill_loop import compare
from tests.commands import RUN, load
from tests.ranks.processes import TWO_RANKS, process
from tests.stateful import AGENTS, agent_flags

ALWAYS = ["--evaluation.every_n_iterations=4", "--summary.log_freq=3", "--checkpoint.save_freq=48"]
QUICK = ("PPO of unequal ranks, stopped by KL",)


@pytest.mark.parametrize(
    "name", [name if name in QUICK else pytest.param(name, marks=pytest.mark.slow) for name in AGENTS]
)
def test_two_ranks_go_on_bit_for_bit(name):
    check_goes_on([*agent_flags(name), *ALWAYS, "--data.num_envs=2", *TWO_RANKS], 2, 240)


@pytest.mark.slow
def test_three_ranks_go_on_bit_for_bit():
    """More than two sum in an order that must be the same after a restart."""
    check_goes_on([*agent_flags("PPO"), *ALWAYS, "--data.num_envs=2", *TWO_RANKS, "--trainer.devices=3"], 3, 288)


def check_goes_on(flags, world_size, step):
    process("fit", *flags, "--trainer.default_root_dir=whole")
    shutil.copytree("whole", "again")
    middle = Path("again", RUN, f"checkpoints/step_{step}.ckpt")
    states = load(middle)["RolloutDataModule"]["running"]["ranks"]
    assert len(states) == world_size
    assert not any("not_restorable" in state for state in states)
    process("fit", *flags, f"--ckpt_path={middle}", "--trainer.default_root_dir=again")
    assert compare(Path("whole"), Path("again")) == []


def test_another_number_of_ranks_starts_fresh_episodes_and_says_so():
    flags = [*agent_flags("PPO"), *ALWAYS, "--data.num_envs=2"]
    process("fit", *flags, *TWO_RANKS)
    out = process("fit", f"--ckpt_path={RUN / 'checkpoints/step_240.ckpt'}", "--trainer.devices=1", with_errors=True)
    assert out.count("The simulators start fresh episodes") == 1
    assert "the checkpoint has 2 ranks of 2 environments, and this run 1 rank of 2" in " ".join(out.split())
    assert load(RUN / "checkpoints/last.ckpt")["RolloutDataModule"]["env_steps"] == 480
