"""Thresholds: which are tried, which is kept, and what is left on disk."""

import csv
import json
from pathlib import Path

import numpy as np
import pytest
import torch
import yaml

from ppo_lightning import ConfigurationError, CoordinationEnv, Evaluation, RandomPolicy, ThresholdCalibration
from ppo_lightning.callbacks import coordination
from ppo_lightning.functional.confidence import CONFIDENCES
from tests.callbacks.coordinators import COST, SURE, make_env, returns, validate, write_config
from tests.commands import WALK, command, run, sentence_of
from tests.ranks.processes import TWO_RANKS, process
from tests.runs import fit, make_data

LOGITS = torch.tensor([[SURE + step, 0] for step in range(4)] * 5)  # of five episodes


def calibrate(**settings):
    calibration = ThresholdCalibration(**({"confidence": "max_logit", "num_rollouts": 5} | settings))
    validate(calibration)
    return calibration


def thresholds(calibration, split="train"):
    return [score.candidate.policy.threshold for score in calibration.scores if score.split == split]


def test_candidates_are_percentiles_of_what_the_novice_shows_alone():
    calibration = calibrate(confidence=["max_logit", "energy"], percentiles=[0, 37, 100], score_temperatures=[1, 20.0])
    expected = [
        np.percentile(CONFIDENCES[name](LOGITS / temperature).double().numpy(), percentile)
        for name in ("max_logit", "energy")
        for temperature in (1, 20.0)
        for percentile in (0, 37, 100)
    ]
    assert thresholds(calibration) == thresholds(calibration, "rich") == pytest.approx(expected, abs=1e-12)
    assert expected[2] == SURE + 3
    settings = calibration.scores[4].candidate.settings
    assert (settings["percentile"], settings["temperature"], settings["confidence"]) == (37, 20.0, "max_logit")


def test_the_default_is_every_tenth_percentile_of_the_largest_probability():
    calibration = ThresholdCalibration(num_rollouts=2)
    validate(calibration)
    told = [score.candidate.settings for score in calibration.scores[:11]]
    assert [settings["percentile"] for settings in told] == list(range(0, 101, 10))
    assert {settings["confidence"] for settings in told} == {"max_prob"}


def test_every_measure():
    calibration = calibrate(confidence="all", percentiles=[50])
    assert [score.candidate.policy.confidence for score in calibration.scores[:5]] == list(CONFIDENCES)


def test_the_best_of_each_split_is_kept():
    """Asked in the first two steps, the expert earns 2; where later steps pay, too, all but the last are best."""
    calibration = calibrate(percentiles=[0, 50, 100])
    assert thresholds(calibration) == [SURE, SURE + 1.5, SURE + 3]
    assert returns(calibration.scores, "train") == pytest.approx([0, 2 - 2 * COST, 2 - 3 * COST])
    assert returns(calibration.scores, "rich") == pytest.approx([0, 2 - 2 * COST, 3 - 3 * COST])
    assert [score.metrics["expert_fraction"] for score in calibration.scores[:3]] == [0, 0.5, 0.75]
    assert {split: score.candidate.policy.threshold for split, score in calibration.best.items()} == {
        "train": SURE + 1.5,
        "rich": SURE + 3,
    }


def test_of_equals_the_first_is_kept_and_played_once(monkeypatch):
    played, play = [], coordination.play
    monkeypatch.setattr(coordination, "play", lambda *args: played.append(args) or play(*args))
    calibration = calibrate(percentiles=[30, 30, 50], explore_temperatures=[1.0, 2.0])  # the novice is that sure
    assert len(calibration.scores) == 2 * 6
    assert len(played) == 2 * 2
    assert [score.is_best for score in calibration.scores[:6]] == [False, False, True, False, False, False]


def test_the_novice_explores_at_the_temperature_asked_for(monkeypatch):
    made, make = [], CoordinationEnv.make
    monkeypatch.setattr(CoordinationEnv, "make", lambda self, seeds: made.append(self.temperature) or make(self, seeds))
    calibrate(explore_temperatures=[0.5, 3.0], percentiles=[50])
    playing = made[made.index(0.5) :]
    assert playing.count(0.5) == playing.count(3.0) == 2  # looked at, and played
    assert playing[-2:] == [1.0, 1.0]  # the splits


def test_rollouts_are_as_many_as_asked_for_and_as_long_as_evaluation_lets_them():
    calibration = ThresholdCalibration("max_logit", num_rollouts=1, percentiles=[100])
    validate(calibration, Evaluation(num_episodes=2, max_num_steps=2))
    assert thresholds(calibration, "") == [SURE + 1]  # of the steps 0 and 1
    assert calibration.scores[0].metrics["length_max"] == 2


def test_files_hold_the_best_and_all_of_them():
    calibration = calibrate(percentiles=[0, 50, 100])
    assert {path.name for path in Path("thresholds").iterdir()} == {
        *("threshold_train.yaml", "threshold_rich.yaml", "candidates.csv")
    }
    assert yaml.safe_load(calibration.files["rich"].read_text()) == {
        "class_path": "ppo_lightning.LogitThresholdPolicy",
        "init_args": {"confidence": "max_logit", "threshold": SURE + 3, "temperature": 1.0},
    }
    with calibration.table.open() as file:
        rows = list(csv.DictReader(file))
    assert [(row["split"], float(row["threshold"]), row["is_best"]) for row in rows] == [
        (split, SURE + add, str(best))
        for split, at in (("train", 1.5), ("rich", 3))
        for add, best in ((add, add == at) for add in (0, 1.5, 3))
    ]
    assert float(rows[1]["return_mean"]) == pytest.approx(2 - 2 * COST)


# -- bad input


@pytest.mark.parametrize(
    ("settings", "reason"),
    [
        ({"confidence": "max_prop"}, r"--confidence=max_prop is not a measure .* Did you mean max_prob\?"),
        ({"confidence": []}, "--confidence is empty"),
        ({"percentiles": [50, 101]}, "--percentiles must be at least 0 and at most 100, not 101"),
        ({"percentiles": []}, "--percentiles is empty"),
        ({"explore_temperatures": [0]}, "--explore_temperatures must be greater than 0"),
        ({"score_temperatures": [-1.0]}, "--score_temperatures must be greater than 0"),
        ({"num_rollouts": 0}, "--num_rollouts must be at least 1"),
    ],
)
def test_bad_settings_are_refused(settings, reason):
    with pytest.raises(ConfigurationError, match=reason):
        ThresholdCalibration(**settings)


def test_what_cannot_be_calibrated_is_refused_before_any_work():
    (Path() / "file").write_text("")
    for evaluation, env, folder, reason in (
        (None, "tests.tasks:Walk-v0", "x", "--data.env=GymnasiumEnv has neither: set --data.env to CoordinationEnv"),
        (None, make_env(open_novice=False), "x", "--data.env.open_novice=true"),
        (Evaluation(policy=RandomPolicy()), None, "x", "--evaluation.policy=RandomPolicy is for validate and test"),
        (None, None, "file/x", "--out=file/x cannot be written"),
    ):
        with pytest.raises(ConfigurationError, match=reason):
            validate(ThresholdCalibration(folder=folder), evaluation, env)
    assert not Path("x").exists()


def test_it_is_no_part_of_training():
    with pytest.raises(ConfigurationError, match="give it to validate"):
        fit(data=make_data(), callbacks=[ThresholdCalibration()])


# -- the command

FLAGS = "--confidence=max_logit", "--percentiles=[0,50,100]", "--num_rollouts=2"


def test_the_command_writes_what_test_takes():
    config = write_config()
    out = run("calibrate", config, *FLAGS).out
    assert (
        "Best threshold on rich: max_logit < 103 (percentile 100): thresholds/threshold_rich.yaml" in out.splitlines()
    )
    (line,) = [line for line in out.splitlines() if "best" in line and "101.5" in line]
    assert all(cell in line for cell in ("50", "1.60 ± 0.00", "2.00 ± 0.00", "50.0 %", "4.0"))
    policy = "--evaluation.policy=thresholds/threshold_rich.yaml"
    metrics = json.loads(run("test", config, policy, "--json").out)["metrics"]
    assert metrics["eval/rich/return_mean"] == pytest.approx(3 - 3 * COST)


def test_json_has_every_candidate_and_nothing_else():
    told = json.loads(run("calibrate", write_config(splits=None), *FLAGS, "--out=elsewhere", "--json").out)
    assert told["thresholds"][""]["file"] == "elsewhere/threshold.yaml"
    assert told["thresholds"][""]["threshold"] == SURE + 1.5
    assert [row["percentile"] for row in told["rows"]] == [0, 50, 100]
    assert Path(told["table"]) == Path("elsewhere/candidates.csv")
    assert Path("elsewhere/threshold.yaml").is_file()


def test_with_a_checkpoint_files_are_beside_its_run():
    run("fit", write_config(splits=None))
    run("calibrate", "--ckpt_path=lightning_logs/version_0/checkpoints/last.ckpt", *FLAGS)
    assert Path("lightning_logs/version_0/thresholds/threshold.yaml").is_file()


def test_the_command_refuses_in_one_sentence():
    config = write_config()
    assert "Did you mean margin?" in sentence_of(command("calibrate", config, "--confidence=[margins]"))
    assert "--evaluation.policy" in sentence_of(command("calibrate", config, "--evaluation.policy=RandomPolicy"))
    assert "neither: set --data.env to CoordinationEnv" in sentence_of(command("calibrate", *WALK))
    assert "--init_from is for fit" in sentence_of(command("calibrate", config, "--init_from=x.ckpt"))
    assert "data.env" in sentence_of(command("calibrate"))
    assert not Path("thresholds").exists()


@pytest.mark.slow
def test_two_ranks_find_the_thresholds_of_one():
    """Of three rollouts and three episodes one rank plays one, the other two."""
    flags = write_config(), *FLAGS, "--num_rollouts=3", "--json"
    alone, shared = json.loads(run("calibrate", *flags).out), json.loads(process("calibrate", *flags, *TWO_RANKS))
    assert shared == alone
