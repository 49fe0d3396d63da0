"""Whole runs in which simulators fail."""

import json
import os
import signal
import subprocess
import sys
import time

import pytest

from ppo_lightning import RunCheckpoint
from tests.commands import LAST, REPOSITORY, RUN, WALK, command, load, logged, rows, run, sentence_of
from tests.faults import SimulatorError
from tests.ranks.processes import TWO_RANKS, process
from tests.runs import Recorder, equal, fit, make_data, make_ppo, make_trainer, weights

FAULTY = ["--data.env.id=tests.faults:FaultyWalk-v0"]
ASYNC = "--data.env.vectorization=async"


@pytest.mark.parametrize("how", ["raise", "exit", "kill"])
def test_a_run_goes_on_and_reports_what_it_lost(how):
    """Each environment fails in its 21st step, the fifth of the second rollout."""
    vectorization = [] if how == "raise" else [ASYNC]
    outcome = run("fit", *WALK, *FAULTY, *vectorization, f"--data.env.kwargs={{how: {how}}}", "--summary.log_freq=1")
    assert logged(rows(column="train/loss")) == [64, 128]
    assert rows(column="rollout/dropped_episodes") == [(128, 4)]
    assert load(LAST)["RolloutDataModule"]["env_steps"] == 128
    warned = [line for line in outcome.warnings.splitlines() if "restarted" in line]
    assert len(warned) == 4
    for row, line in enumerate(warned):
        what = "raised SimulatorError: the simulator crashed (7)" if how == "raise" else "lost its worker process"
        assert line.startswith(f"Environment {row} {what}")
        assert f"({9 - row} restarts left of --data.max_env_restarts=10)" in line
    assert "dropped episodes 4" in outcome.out
    assert not rows(column="eval/dropped_episodes")


def test_what_was_lost_is_reported_in_every_iteration_after_the_first_loss():
    run("fit", *WALK, *FAULTY, "--data.total_timesteps=320", "--data.env.kwargs={after: 40}")
    assert rows(column="rollout/dropped_episodes") == [(192, 4), (256, 0), (320, 0)]
    assert not rows(column="train/nothing")


def test_past_the_limit_the_run_ends_with_the_environments_own_error():
    limited = ["--data.max_env_restarts=2", "--data.total_timesteps=192"]
    with pytest.raises(SimulatorError, match="the simulator crashed"):
        command("fit", *WALK, *FAULTY, *limited)
    assert load(LAST)["RolloutDataModule"]["env_steps"] == 64


def test_past_the_limit_a_lost_process_ends_the_run_in_a_sentence():
    limited = ["--data.max_env_restarts=2", "--data.env.kwargs={how: kill}", ASYNC]
    sentence = sentence_of(command("fit", *WALK, *FAULTY, *limited), code=1)
    for word in ("environment 2", "SIGKILL", "--data.max_env_restarts=2"):
        assert word in sentence
    assert load(LAST)["RolloutDataModule"]["env_steps"] == 64


@pytest.mark.parametrize("vectorization", ["sync", "async"])
def test_an_environment_that_cannot_begin_ends_the_run_at_once(vectorization):
    no_reset = ["--data.env.id=tests.faults:NoReset-v0", f"--data.env.vectorization={vectorization}"]
    with pytest.raises(SimulatorError, match="there is no floor"):
        command("fit", *WALK, *no_reset)
    assert not LAST.exists()


def test_a_negative_limit_is_refused():
    sentence = sentence_of(command("fit", *WALK, "--data.max_env_restarts=-1"))
    assert "--data.max_env_restarts must be at least 0, not -1" in sentence


def test_zero_is_never():
    with pytest.raises(SimulatorError):
        command("fit", *WALK, *FAULTY, "--data.max_env_restarts=0")
    assert not rows(column="rollout/dropped_episodes")


def test_an_evaluation_plays_its_episodes_all_the_same():
    """Environments of the evaluation fail in their tenth step: episodes have 3 to 9."""
    flags = ["--data.env.kwargs={after: 9}", "--evaluation.num_envs=2", "--evaluation.num_episodes=8"]
    outcome = run("fit", *WALK, *FAULTY, *flags, "--data.total_timesteps=64", "--data.max_env_restarts=20")
    (last,) = rows()
    assert int(float(last["eval/episodes"])) == 8
    assert float(last["eval/dropped_episodes"]) > 0
    assert "Evaluation environment" in outcome.warnings


@pytest.mark.parametrize("vectorization", ["sync", "async"])
def test_runs_that_lose_the_same_episodes_are_equal(vectorization):
    """Seeds after restarts follow from those before."""
    runs = []
    for _ in range(2):
        data, recorder = make_data("tests.faults:FaultyWalk-v0", iterations=3), Recorder()
        data.env.kwargs, data.env.vectorization = {"after": 9}, vectorization
        runs.append((weights(fit(data=data, callbacks=[recorder])), recorder.metrics))
        assert data.rollout_metrics()["rollout/dropped_episodes"] == 4
    assert equal(runs[0][0], runs[1][0])
    logged = [[{n: v for n, v in row.items() if not n.startswith("time/")} for row in rows] for _, rows in runs]
    assert logged[0] == logged[1]


def test_a_run_that_goes_on_knows_of_its_restarts_though_its_simulators_are_fresh(tmp_path):
    last = tmp_path / "checkpoints/last.ckpt"
    for iterations, path, dropped in ((2, None, 4), (3, last, 0)):
        trainer = make_trainer(tmp_path, enable_checkpointing=True, callbacks=[RunCheckpoint()])
        data = make_data("tests.faults:FaultyWalk-v0", iterations)
        data.env.kwargs = {"after": 10}
        trainer.fit(make_ppo(), data, ckpt_path=path)
        assert data.rollout_metrics()["rollout/dropped_episodes"] == dropped


def test_a_rank_restarts_its_own():
    """The other one goes on, and both train to the end."""
    kwargs = "--data.env.kwargs={rank: 1}"
    out = process("fit", *WALK, *FAULTY, *TWO_RANKS, kwargs, "--data.total_timesteps=256", "--json")
    assert load(LAST)["RolloutDataModule"]["env_steps"] == 256
    assert json.loads(out)["metrics"]["eval/episodes"] == 4


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])
def test_a_signal_to_the_whole_group_leaves_no_worker_and_no_traceback(number):
    args = [
        *WALK,
        ASYNC,
        "--data.total_timesteps=10000000",
        "--data.num_envs=12",
        "--evaluation.every_n_iterations=9999",
    ]
    started = subprocess.Popen(
        [sys.executable, "-m", "ppo_lightning", "fit", *args],
        env=os.environ | {"PYTHONPATH": str(REPOSITORY), "OMP_NUM_THREADS": "1"},
        stdout=subprocess.DEVNULL,
        stderr=subprocess.PIPE,
        text=True,
        start_new_session=True,
    )
    try:
        deadline = time.monotonic() + 60
        while not (RUN / "metrics.csv").is_file():
            assert time.monotonic() < deadline
            time.sleep(0.1)
        os.killpg(started.pid, number)
        _, err = started.communicate(timeout=30)
    finally:
        if started.poll() is None:
            os.killpg(started.pid, signal.SIGKILL)
    assert "worker" not in err  # more of them than may be restarted: none was lost before its parent was done
    if number == signal.SIGINT:
        assert started.returncode == 130
        assert "Traceback" not in err
    with pytest.raises(ProcessLookupError):
        os.killpg(started.pid, 0)
