"""What is the same on every rank, what never is, and what happens where ranks come apart."""

import itertools
import json
from pathlib import Path

import pytest

from tests.commands import WALK
from tests.ranks.processes import TWO_RANKS, finish, process, start

NOTED = "--trainer.callbacks+=tests.ranks.witnesses.Witness"


def noted():
    return [json.loads(Path(f"rank_{rank}.json").read_text()) for rank in (0, 1)]


def assert_strangers(ranks):
    """No observation of one rank is one of the other's."""
    first, second = ({obs for iteration in rank for obs in iteration["observations"]} for rank in ranks)
    assert first
    assert not first & second


@pytest.fixture(scope="module")
def alternating(tmp_path_factory):
    """Six iterations, in every second of which only the critic learns, with Adam's momentum and weight decay."""
    folder = tmp_path_factory.mktemp("alternating")
    with pytest.MonkeyPatch.context() as patch:
        patch.chdir(folder)
        agent = ["--model=tests.ranks.witnesses.Alternating", "--model.learning_rate=0.01", "--model.anneal_lr=true"]
        optimizer = ["--model.optimizer=torch.optim.AdamW", "--model.optimizer.weight_decay=0.1"]
        often = ["--evaluation.every_n_iterations=1", "--evaluation.temperature=1", "--summary.log_freq=2"]
        length = ["--data.total_timesteps=800", "--model.log_param_hash=true"]
        process("fit", *WALK, *TWO_RANKS, *agent, *optimizer, *often, *length, NOTED)
        return noted()


def test_ranks_log_the_same_numbers_and_hold_the_same_parameters(alternating):
    first, second = alternating
    assert len(first) == len(second) == 6
    for one, other in zip(first, second):
        for name in ("metrics", "learning_rate", "env_steps", "optimizer_steps", "parameters", "gradients"):
            assert one[name] == other[name], name
    assert {"debug/param_hash", "eval/return_mean", "time/sps", "rollout/return_std"} <= set(first[-1]["metrics"])
    assert first[0]["metrics"]["debug/param_hash"] != first[1]["metrics"]["debug/param_hash"]


def test_counters_are_of_both_ranks(alternating):
    assert [iteration["env_steps"] for iteration in alternating[0]] == [128, 256, 384, 512, 640, 768]
    assert [iteration["learning_rate"] for iteration in alternating[0]] == pytest.approx(
        [0.01 * (1 - steps / 800) for steps in range(0, 768, 128)]
    )


def test_ranks_never_play_the_same(alternating):
    assert_strangers(alternating)


def test_the_actor_rests_while_only_the_critic_learns(alternating):
    """Its gradients are absent, not zero: else Adam's momentum and weight decay would move it."""
    iterations = alternating[0]
    for before, after in itertools.pairwise(iterations):
        moved = {name for name in before["parameters"] if before["parameters"][name] != after["parameters"][name]}
        assert moved == set(after["gradients"])
    everything = set(iterations[0]["parameters"])
    critic = {name for name in everything if "value" in name or "critic" in name}
    assert [set(iteration["gradients"]) for iteration in iterations] == [everything, critic] * 3
    assert critic < everything


@pytest.mark.parametrize(
    ("flags", "sentence"),
    [
        (
            ["--trainer.callbacks+=tests.ranks.witnesses.Poison"],
            "TrainingError: train/loss, train/value_loss became NaN or infinite in minibatch 2 of the update at 256",
        ),
        (
            ["--trainer.callbacks+=tests.ranks.witnesses.Nudge", "--model.log_param_hash=true"],
            "TrainingError: The parameters or buffers of rank 1 differ from those of rank 0 at 256 environment steps",
        ),
    ],
    ids=["a NaN", "other parameters"],
)
def test_what_goes_wrong_on_one_rank_stops_all(flags, sentence):
    code, _, err = finish(
        start("-m", "ppo_lightning", "fit", *WALK, *TWO_RANKS, *flags, NOTED, "--data.total_timesteps=512")
    )
    assert code == 1
    assert f"ppo-lightning: error: {sentence.partition(': ')[2]}" in err
    for rank in (0, 1):
        assert Path(f"rank_{rank}.txt").read_text().startswith(sentence)


def test_parameters_that_no_loss_reaches_are_refused_in_a_sentence():
    flags = ["--model.network=tests.ranks.witnesses.NeverUsed"]
    walk = [flag for flag in WALK if "model.network" not in flag]
    code, _, err = finish(start("-m", "ppo_lightning", "fit", *walk, *TWO_RANKS, *flags))
    assert code == 2
    assert "use --trainer.strategy=ddp_find_unused_parameters_true" in err
    assert "Traceback" not in err


@pytest.mark.slow
@pytest.mark.parametrize("flags", [[], ["--data.env.rand_seed=7"]], ids=["drawn", "given"])
def test_ranks_never_play_the_same_procgen_levels_in_the_same_order(flags):
    pytest.importorskip("procgen")
    network = ["--model.network=ActorCritic", "--model.network.encoder=NatureCNN"]
    settings = [*network, "--data.env=ProcgenEnv", "--data.env.env_name=coinrun", "--data.env.num_threads=1", *flags]
    size = ["--data.num_envs=4", "--data.num_steps=16", "--data.num_minibatches=2", "--data.update_epochs=1"]
    run = ["--data.total_timesteps=256", "--evaluation.num_episodes=2", "--evaluation.max_num_steps=4"]
    process("fit", *settings, *size, *run, *TWO_RANKS, NOTED, timeout=120)
    assert_strangers(noted())
