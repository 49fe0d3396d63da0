"""``--run_name``: a run in a folder of its own name, which is continued by it and belongs to one process at a time."""

import contextlib
import shutil
import subprocess
import sys
from argparse import Namespace
from pathlib import Path

import pytest
import yaml
from lightning.pytorch import Callback
from lightning.pytorch.utilities import rank_zero_only

from ppo_lightning import ConfigurationError
from ppo_lightning.cli.resume import newest_run
from ppo_lightning.cli.run_folder import RunFolder, named_folder
from tests.commands import WALK, command, config_of, logged, network_weights, rows, run, same, sentence_of
from tests.ranks.processes import TWO_RANKS, process
from tests.test_resume_auto import LONGER, damage, fake, steps_in

LOGS, A, B = Path("lightning_logs"), Path("lightning_logs/a"), Path("lightning_logs/b")
NAMED = ["fit", *WALK, "--run_name=a"]


def last(folder):
    return folder / "checkpoints/last.ckpt"


def names(folder=LOGS):
    return sorted(path.name for path in folder.iterdir())


def start_without_checkpoint(*files):
    """What a kill leaves."""
    A.mkdir(parents=True)
    for name in files:
        (A / name).write_text({"config.yaml": "run_name: a\n", "metrics.csv": "old,step\n1,64\n"}.get(name, ""))


# -- a new run


def test_the_run_lies_in_the_folder_of_its_name_below_the_root():
    Path("c.yaml").write_text(yaml.safe_dump({"run_name": "procgen-novice_1.b"}))
    outcome = run("fit", *WALK, "--config=c.yaml", "--trainer.default_root_dir=runs")
    assert names(Path("runs/lightning_logs")) == ["procgen-novice_1.b"]
    folder = Path("runs/lightning_logs/procgen-novice_1.b")
    assert {name.partition("events.")[0] for name in names(folder)} == {
        *("", "checkpoints", "config.yaml", "hparams.yaml", "metrics.csv")
    }
    assert names(folder / "checkpoints") == ["best.ckpt", "last.ckpt"]
    assert str(folder / "checkpoints/best.ckpt") in outcome.out
    assert config_of(folder)["run_name"] == "procgen-novice_1.b"


@pytest.mark.parametrize("name", ["", ".", "..", ".a", "a/b", "a b", "ä", "~", "version_3", "version_007", 201 * "a"])
def test_what_is_no_plain_name_is_refused(name):
    with pytest.raises(ConfigurationError, match=r"--run_name=.*(letters, digits|use another).*\.$"):
        named_folder(Path(), name)


@pytest.mark.parametrize("name", ["a", "7", "-", "version_old", "a..b", 200 * "a"])
def test_what_is_one_is_taken(name):
    assert named_folder(Path("runs"), name) == Path("runs/lightning_logs") / name


def test_a_bad_name_is_a_sentence_of_every_command():
    for args in (["fit", *WALK], ["validate", "--ckpt_path=best"]):
        assert "--run_name=../a is not the plain name" in sentence_of(command(*args, "--run_name=../a"))
    assert not list(Path().iterdir())


@pytest.mark.parametrize("file", ["checkpoints/last.ckpt", "metrics.csv"])
def test_a_name_that_has_a_run_is_refused_before_any_work(file):
    fake(A / file, 64)  # any content
    before = sorted(A.rglob("*"))
    sentence = sentence_of(command(*NAMED, "--data.env.id=None-v0"))  # which would be refused, too
    assert all(word in sentence for word in ("--run_name=a", str(A), "--resume=auto", "another --run_name"))
    assert sorted(A.rglob("*")) == before


@pytest.mark.parametrize("files", [[], ["config.yaml", "events.out.tfevents.1", "hparams.yaml", ".lock"]])
def test_what_a_run_left_that_saved_nothing_is_taken_over(files):
    start_without_checkpoint(*files)
    run(*NAMED)
    assert steps_in(last(A)) == 128
    assert len(list(A.glob("events*"))) == 1
    assert not {"config_1.yaml", ".lock"} & set(names(A))
    assert config_of(A)["data"]["total_timesteps"] == 128


def test_a_run_killed_before_its_first_checkpoint_starts_again_with_a_curve_of_its_own():
    start_without_checkpoint("config.yaml", "events.out.tfevents.1", "metrics.csv")
    outcome = run(*NAMED, "--resume=auto")
    assert "no checkpoint to go on from: the run starts again" in outcome.warnings
    assert logged(rows(A, "train/value_loss")) == [64, 128]
    assert "old" not in rows(A)[0]
    assert (A / "metrics_before_0.csv").read_text() == "old,step\n1,64\n"
    assert len(list(A.glob("events*"))) == 1
    assert config_of(A)["resume"] == "auto"


@pytest.mark.parametrize("flag", ["--model.gamma=2", "--trainer.limit_train_batches=1"])
def test_a_named_run_that_is_refused_leaves_no_folder(flag):
    assert command(*NAMED, flag).code == 2
    assert not list(Path().glob("lightning_logs/*"))


@pytest.mark.parametrize("logger", [False, {"class_path": "CSVLogger", "init_args": {"save_dir": "x"}}])
def test_a_name_for_other_loggers_is_refused(logger):
    Path("c.yaml").write_text(yaml.safe_dump({"run_name": "a", "trainer": {"logger": logger}}))
    sentence = sentence_of(command("fit", *WALK, "--config=c.yaml"))
    assert all(word in sentence for word in ("--run_name=a", "--trainer.logger", "leave one of them out"))
    assert names(Path()) == ["c.yaml"]


# -- going on


def test_the_same_command_starts_goes_on_and_ends_whatever_else_is_there():
    fake("lightning_logs/version_9/checkpoints/last.ckpt", 500)
    fake(last(B), 500)
    fake("hpc_ckpt_1.ckpt", 500)
    run(*NAMED, "--resume=auto")
    assert steps_in(last(A)) == 128
    run(*NAMED, "--resume=auto", LONGER)
    assert logged(rows(A, "train/value_loss")) == [64, 128, 192]
    assert config_of(A, "config_1.yaml")["run_name"] == "a"
    outcome = run(*NAMED, "--resume=auto", LONGER)
    assert outcome.out.strip().splitlines()[-1] == (
        f"The run {A} is complete: 192 environment steps, nothing left to train."
    )
    assert names() == ["a", "b", "version_9"]


def test_a_chain_of_configurations_starts_from_one_another_again_and_again():
    chain = [{"run_name": "a"}, {"run_name": "b", "init_from": str(last(A))}]
    for _ in range(2):
        for link in chain:
            Path("c.yaml").write_text(yaml.safe_dump(link))
            outcome = run("fit", *WALK, "--config=c.yaml", "--resume=auto")
    assert "lightning_logs/b is complete" in outcome.out
    assert names() == ["a", "b"]
    assert logged(rows(B, "train/value_loss")) == [64, 128]


def test_a_named_run_is_continued_by_its_name_only():
    for name in ("a", "version_0"):
        fake(last(LOGS / name), 64)
    (A / "config.yaml").write_text("run_name: a\n")
    assert newest_run(Path()) == LOGS / "version_0"
    shutil.rmtree(LOGS / "version_0")
    assert newest_run(Path()) is None
    assert "--ckpt_path=last" in sentence_of(command("fit", *WALK, "--ckpt_path=last"))


def test_where_all_are_damaged_the_way_out_is_another_name():
    fake(last(A), 64)
    damage(last(A))
    sentence = sentence_of(command(*NAMED, "--resume=auto"))
    assert "every checkpoint is damaged" in sentence
    assert "another --run_name" in sentence


@pytest.mark.parametrize("flag", [f"--ckpt_path={last(A)}", f"--resume={A}"])
def test_its_own_checkpoint_goes_on_in_place(flag):
    run(*NAMED)
    run("fit", flag, LONGER)
    assert names() == ["a"]
    assert logged(rows(A, "train/value_loss")) == [64, 128, 192]


def test_another_name_moves_it_to_a_new_folder():
    """As another root does; a folder that was renamed has the name that it has."""
    run(*NAMED)
    A.rename(B)
    run("fit", f"--ckpt_path={last(B)}", LONGER)
    assert (names(), steps_in(last(B))) == (["b"], 192)
    run("fit", f"--ckpt_path={last(B)}", "--run_name=c", "--data.total_timesteps=256")
    assert (names(), steps_in(last(B)), steps_in(last(LOGS / "c"))) == (["b", "c"], 192, 256)
    refused = command("fit", f"--ckpt_path={last(B)}", "--run_name=c", "--data.total_timesteps=320")
    assert "there is a run in lightning_logs/c already" in sentence_of(refused)
    assert command("fit", f"--ckpt_path={last(B)}", "--run_name=d").code == 2  # nothing left
    assert names() == ["b", "c"]


def test_another_root_keeps_the_name():
    run(*NAMED)
    run("fit", f"--ckpt_path={last(A)}", "--trainer.default_root_dir=elsewhere", LONGER)
    assert steps_in("elsewhere" / last(A)) == 192
    assert steps_in(last(A)) == 128


def test_words_for_checkpoints_and_configurations_are_of_the_run():
    run(*NAMED)
    run("fit", *WALK, "--seed_everything=2", "--run_name=b")
    assert not same(network_weights(last(A)), network_weights(last(B)))
    for name, folder in {"a": A, "b": B}.items():
        assert str(last(folder)) in run("validate", f"--run_name={name}", "--ckpt_path=last", "--json").out
    assert str(A) in run("test", "--config", A / "config.yaml", f"--ckpt_path={A}/checkpoints/best.ckpt", "--json").out
    run("fit", "--run_name=a", "--ckpt_path=best", LONGER)
    assert (steps_in(last(A)), steps_in(last(B)), names()) == (192, 128, ["a", "b"])
    refused = sentence_of(command("validate", "--run_name=a", f"--ckpt_path={last(A)}"))
    assert all(word in refused for word in ("--run_name=a", "--ckpt_path", "leave it out"))


# -- several processes

HOLD = """
import fcntl, os, sys
file = os.open(sys.argv[1], os.O_RDWR | os.O_CREAT)
fcntl.lockf(file, fcntl.LOCK_EX)
print(flush=True)
sys.stdin.read()
"""


@contextlib.contextmanager
def held(path):
    """By another process."""
    with subprocess.Popen(
        [sys.executable, "-c", HOLD, str(path)], stdin=subprocess.PIPE, stdout=subprocess.PIPE
    ) as holder:
        holder.stdout.readline()
        yield holder
        holder.kill()


def test_a_second_process_is_refused_until_the_first_has_ended():
    """Also where the first has saved nothing yet, and however it ends."""
    A.mkdir(parents=True)
    with held(A / ".lock") as holder:
        for resume in ([], ["--resume=auto"]):
            sentence = sentence_of(command(*NAMED, *resume))
            assert all(word in sentence for word in ("--run_name=a", "another process is writing to lightning_logs/a"))
            assert names(A) == [".lock"]
        holder.kill()
        holder.wait()
        run(*NAMED)
    assert ".lock" not in names(A)


class TryLock(Callback):
    """What another process would get."""

    def on_train_start(self, trainer, pl_module):
        code = f"import fcntl; fcntl.lockf(open({str(A / '.lock')!r}, 'r+'), fcntl.LOCK_EX | fcntl.LOCK_NB)"
        tried = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True)
        Path("tried").write_text(tried.stderr.strip().rpartition("\n")[2])


def test_while_it_trains_the_folder_is_its_own():
    run(*NAMED, "--trainer.callbacks=tests.test_run_name.TryLock")
    assert Path("tried").read_text().startswith("BlockingIOError")


def test_other_ranks_take_the_folder_of_the_first_as_it_is(monkeypatch):
    start_without_checkpoint("metrics.csv")
    settings = Namespace(
        run_name="a", ckpt_path=None, resume=None, trainer=Namespace(default_root_dir=None, logger=None)
    )
    monkeypatch.setattr(rank_zero_only, "rank", 1)
    with held(A / ".lock"):
        folder = RunFolder(settings)
        folder.claim()
        assert {Path(logger.log_dir).resolve() for logger in folder.loggers(None)} == {A.resolve()}
        folder.leave_no_trace()
        folder.release()
    assert names(A) == [".lock", "metrics.csv"]


@pytest.mark.slow
def test_two_ranks_share_the_folder_of_the_name():
    for total in (128, 256):
        process(*NAMED, *TWO_RANKS, "--resume=auto", f"--data.total_timesteps={total}")
    assert (names(), steps_in(last(A))) == (["a"], 256)
    assert logged(rows(A, "train/value_loss")) == [128, 256]
