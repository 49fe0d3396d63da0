"""``--resume``, and the checkpoints that ``--ckpt_path=last | best | hpc`` mean."""

import shutil
from pathlib import Path

import pytest
import yaml
from lightning.pytorch import Callback

from ppo_lightning.cli.resume import newest_checkpoint
from ppo_lightning.core.checkpoint import read_checkpoint
from ppo_lightning.core.checkpoint_io import write_checkpoint
from tests.commands import (
    BEST,
    LAST,
    REPOSITORY,
    RUN,
    WALK,
    command,
    config_of,
    load,
    logged,
    network_weights,
    rows,
    run,
    same,
    sentence_of,
)
from tests.ranks.processes import TWO_RANKS, process

LONGER = "--data.total_timesteps=192"
FORMAT_1 = REPOSITORY / "tests/files/format_1.ckpt"


def steps_in(path):
    return load(path)["RolloutDataModule"]["env_steps"]


def damage(path):
    content = bytearray(Path(path).read_bytes())
    content[len(content) // 2] ^= 1
    Path(path).write_bytes(content)


def fake(path, steps):
    write_checkpoint({"ppo_lightning_format": 2, "state_dict": {}, "RolloutDataModule": {"env_steps": steps}}, path)


def test_the_same_command_starts_goes_on_and_ends():
    """As a scheduler gives it again and again."""
    Path("c.yaml").write_text(yaml.safe_dump({"resume": "auto"}))
    run("fit", *WALK, "--resume=auto")
    assert steps_in(LAST) == 128
    outcome = run("fit", *WALK, "--resume", "auto", LONGER)
    assert logged(rows(column="train/value_loss")) == [64, 128, 192]
    outcome = run("fit", *WALK, "--config=c.yaml", LONGER)
    assert outcome.out.strip().splitlines()[-1] == (
        "The run lightning_logs/version_0 is complete: 192 environment steps, nothing left to train."
    )
    assert [path.name for path in Path("lightning_logs").iterdir()] == ["version_0"]
    assert steps_in(LAST) == 192


def test_without_a_configuration_the_runs_own_is_taken():
    run("fit", *WALK, "--model.gamma=0.5")
    run("fit", "--resume=auto", LONGER)
    assert (steps_in(LAST), load(LAST)["hyper_parameters"]["gamma"]) == (192, 0.5)


def test_a_run_that_was_started_by_it_is_evaluated_as_any_other():
    run("fit", *WALK, "--resume=auto")
    assert '"env_steps": 128' in run("validate", f"--ckpt_path={LAST}", "--json").out


def test_it_continues_as_ckpt_path_does():
    run("fit", *WALK)
    shutil.copytree("lightning_logs", "copy/lightning_logs")
    run("fit", f"--ckpt_path={LAST}", LONGER)
    run("fit", "--resume=auto", "--trainer.default_root_dir=copy", LONGER)
    assert same(network_weights(LAST), network_weights("copy" / LAST))


def test_a_run_limited_by_epochs_is_complete_too():
    limits = ["--data.total_timesteps=null", "--trainer.max_epochs=2", "--resume=auto"]
    run("fit", *WALK, *limits)
    outcome = run("fit", *WALK, *limits, "--json")
    assert "is complete: 128 environment steps" in outcome.err
    assert not outcome.out


def test_a_run_that_early_stopping_ended_stays_ended():
    """Also where a kill came between its last checkpoint and its end; other settings let it go on."""
    stop = ["--trainer.callbacks+=EvaluationEarlyStopping", "--trainer.callbacks.patience"]
    args = ["fit", *WALK, "--resume=auto", "--data.total_timesteps=640", "--evaluation.every_n_iterations=1"]
    args.append("--model.learning_rate=1e-9")  # the score stays as it is
    run(*args, stop[0], f"{stop[1]}=2")
    ended = steps_in(LAST)
    assert ended < 640
    outcome = run(*args, stop[0], f"{stop[1]}=2")
    assert f"is complete: {ended} environment steps" in outcome.out
    assert steps_in(LAST) == ended
    run(*args, stop[0], f"{stop[1]}=4")
    assert ended < steps_in(LAST) < 640


@pytest.mark.parametrize("value", ["{default_root_dir: ", "{default_root_dir: x, nothing: " + 300 * "x" + "}"])
def test_a_group_that_cannot_be_read_is_the_parsers_to_refuse(value):
    sentence_of(command("fit", *WALK, "--resume=auto", f"--trainer={value}"))


def test_the_same_command_has_the_same_callbacks():
    """Also without a --config, where those of the run's own configuration come first."""
    args = ["fit", *WALK, "--resume=auto", "--trainer.callbacks+=EvaluationEarlyStopping"]
    run(*args, "--trainer.callbacks.patience=3", "--trainer.callbacks+=LearningRateMonitor")
    run(*args, "--trainer.callbacks.patience=4", LONGER)
    own = config_of(name="config_1.yaml")["trainer"]["callbacks"]
    names = [callback["class_path"].rpartition(".")[2] for callback in own]
    assert names == ["LearningRateMonitor", "EvaluationEarlyStopping"]
    assert own[1]["init_args"]["patience"] == 4


def test_processes_that_get_a_copy_of_the_run_are_refused():
    outcome = command("fit", *WALK, "--trainer.devices=2", "--trainer.strategy=ddp_spawn")
    assert sentence_of(outcome).endswith("use --trainer.strategy=ddp.")


def test_without_a_logger_the_root_is_the_run():
    for total in (128, 192):
        run("fit", *WALK, "--resume=auto", "--trainer.logger=false", f"--data.total_timesteps={total}")
        assert load("checkpoints/last.ckpt")["RolloutDataModule"] | {"running": None} == {
            "env_steps": total,
            "iteration": total // 64,
            "running": None,
        }
        assert load("checkpoints/last.ckpt")["global_step"] == total // 64 * 4
        shutil.copy("checkpoints/last.ckpt", f"{total}.ckpt")
    assert load("192.ckpt")["train_seconds"] > load("128.ckpt")["train_seconds"]


@pytest.mark.parametrize("is_file", [False, True])
def test_the_root_may_come_in_a_group(is_file):
    group = yaml.safe_dump({"default_root_dir": "runs", "accelerator": "cpu"}, default_flow_style=True).strip()
    Path("t.yaml").write_text(group)
    for total in (128, 192):
        run(
            "fit",
            f"--trainer={'t.yaml' if is_file else group}",
            *WALK,
            "--resume=auto",
            f"--data.total_timesteps={total}",
        )
    assert logged(rows("runs" / RUN, "train/value_loss")) == [64, 128, 192]


def test_a_later_configuration_takes_it_back():
    run("fit", *WALK)
    for name, resume in {"a": "auto", "b": None}.items():
        Path(f"{name}.yaml").write_text(yaml.safe_dump({"resume": resume}))
    run("fit", "--config=a.yaml", "--config=b.yaml", *WALK)
    assert sorted(path.name for path in Path("lightning_logs").iterdir()) == ["version_0", "version_1"]


@pytest.mark.parametrize("folder", ["runs", "runs/deep"])
def test_the_root_may_come_from_a_configuration_file(folder):
    Path("c.yaml").write_text(yaml.safe_dump({"trainer": {"default_root_dir": folder}}))
    for total in (128, 192):
        run("fit", "--config=c.yaml", *WALK, "--resume=auto", f"--data.total_timesteps={total}")
    assert logged(rows(folder / RUN, "train/value_loss")) == [64, 128, 192]


@pytest.mark.parametrize("folder", [RUN, RUN / "checkpoints", RUN.absolute])
def test_a_folder_of_a_run_is_continued(folder):
    run("fit", *WALK)
    run("fit", *WALK)
    run("fit", f"--resume={folder() if callable(folder) else folder}", LONGER)
    assert steps_in(LAST) == 192
    assert steps_in("lightning_logs/version_1/checkpoints/last.ckpt") == 128


def test_a_damaged_file_is_left_out_with_a_warning():
    run("fit", *WALK, "--checkpoint.save_freq=64")
    damage(LAST)
    damage(BEST)
    damage(RUN / "checkpoints/step_128.ckpt")
    outcome = run("fit", "--resume=auto")
    assert f"--resume: the checkpoint {LAST} is damaged" in outcome.warnings
    assert steps_in(LAST) == 128
    assert logged(rows(column="train/value_loss")) == [64, 128]


def test_where_all_are_damaged_no_new_run_begins():
    run("fit", *WALK)
    damage(LAST)
    damage(BEST)
    for resume in ("auto", RUN):
        sentence = sentence_of(command("fit", *WALK, f"--resume={resume}"))
        assert all(word in sentence for word in (f"--resume={resume}", "every checkpoint is damaged", "last.ckpt"))
    assert [path.name for path in Path("lightning_logs").iterdir()] == ["version_0"]


@pytest.mark.parametrize(
    ("args", "words"),
    [
        (["--resume=nowhere"], ["--resume=nowhere does not exist", "--resume=auto"]),
        (["--resume=empty"], ["--resume=empty holds no checkpoint"]),
        (["--resume=a.file"], ["--resume=a.file is a file", "--ckpt_path"]),
        (["--resume=auto", "--ckpt_path=a.file"], ["--resume=auto", "--ckpt_path=a.file", "one of the two"]),
        (["--resume=auto", "--init_from=a.file"], ["--resume=auto", "--init_from=a.file", "one of the two"]),
        (["--ckpt_path=last"], ["--ckpt_path=last", "no last checkpoint", "--resume=auto"]),
        (["--ckpt_path=best"], ["--ckpt_path=best", "no best checkpoint"]),
        (["--ckpt_path=hpc"], ["--ckpt_path=hpc", "no hpc checkpoint"]),
    ],
)
def test_what_cannot_be_meant_is_a_sentence(args, words):
    Path("empty").mkdir()
    Path("a.file").touch()
    sentence = sentence_of(command("fit", *WALK, *args))
    assert all(word in sentence for word in words)
    assert not Path("lightning_logs").exists()


def test_resume_is_for_fit():
    fake("a.ckpt", 1)
    assert "--resume is for fit" in sentence_of(command("validate", *WALK, "--ckpt_path=a.ckpt", "--resume=auto"))


# -- which file


def test_the_newest_run_with_a_checkpoint_and_its_last_file():
    for name, steps in {
        "version_2/checkpoints/last.ckpt": 500,
        "version_10/checkpoints/last.ckpt": 100,
        "version_10/checkpoints/step_300.ckpt": 300,  # of a future that was given up
        "other/checkpoints/last.ckpt": 900,
    }.items():
        fake(f"lightning_logs/{name}", steps)
    Path("lightning_logs/version_11/checkpoints").mkdir(parents=True)
    assert newest_checkpoint(Path()) == Path("lightning_logs/version_10/checkpoints/last.ckpt")


def test_without_a_last_file_the_most_steps_win():
    for name, steps in {"best.ckpt": 20, "step_9.ckpt": 9, "step_10.ckpt": 10}.items():
        fake(RUN / "checkpoints" / name, steps)
    fake("hpc_ckpt_3.ckpt", 99)
    assert newest_checkpoint(Path()).name == "best.ckpt"
    shutil.rmtree("lightning_logs")
    assert newest_checkpoint(Path()).name == "hpc_ckpt_3.ckpt"


def test_nothing_is_found_where_nothing_is():
    assert newest_checkpoint(Path()) is None


def test_lightnings_words_name_files_of_the_newest_run():
    run("fit", *WALK)
    shutil.copy(LAST, "hpc_ckpt_2.ckpt")
    shutil.copy(LAST, "hpc_ckpt_10.ckpt")
    for word, name in {"last": LAST, "best": BEST}.items():
        assert str(name) in run("validate", f"--ckpt_path={word}", "--json").out
    assert "hpc_ckpt_10.ckpt" in run("validate", *WALK, "--ckpt_path", "hpc", "--json").out
    run("fit", "--ckpt_path=last", LONGER)
    assert steps_in(LAST) == 192


def test_one_best_of_several_must_be_named():
    for split in ("easy", "hard"):
        fake(RUN / f"checkpoints/best_{split}.ckpt", 1)
    sentence = sentence_of(command("validate", *WALK, "--ckpt_path=best"))
    assert "best_easy.ckpt, best_hard.ckpt" in sentence


# -- formats and ranks


def test_a_file_of_format_1_validates_and_goes_on():
    assert read_checkpoint(FORMAT_1)["ppo_lightning_format"] == 1
    LAST.parent.mkdir(parents=True)
    shutil.copy(FORMAT_1, LAST)
    assert '"env_steps": 128' in run("validate", *WALK, "--ckpt_path=last", "--json").out
    run("fit", *WALK, "--resume=auto", LONGER)  # in a folder of its own: no configuration lies beside the file
    newest = Path("lightning_logs/version_1/checkpoints/last.ckpt")
    assert (steps_in(newest), load(newest)["ppo_lightning_format"]) == (192, 2)


def test_two_ranks_resume_from_one_file():
    """Lightning starts the second as a process of its own, when the first has chosen long ago."""
    run("fit", *WALK)
    process("fit", *WALK, *TWO_RANKS, "--resume=auto", "--data.total_timesteps=256", timeout=100)
    assert steps_in(LAST) == 256
    assert [path.name for path in Path("lightning_logs").iterdir()] == ["version_0"]


class AnotherFile(Callback):
    """The second rank finds another folder than the first, as on another machine."""

    def on_fit_start(self, trainer, pl_module):
        if trainer.global_rank:
            trainer._checkpoint_connector._ckpt_path = str(FORMAT_1)


def test_ranks_that_resume_from_different_files_are_refused():
    run("fit", *WALK)
    other = "--trainer.callbacks=tests.test_resume_auto.AnotherFile"
    with pytest.raises(AssertionError, match=r"rank 0 from .*last.ckpt and rank 1 from .*format_1.ckpt"):
        process("fit", *WALK, *TWO_RANKS, other, "--resume=auto", "--data.total_timesteps=256", timeout=100)
