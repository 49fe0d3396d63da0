"""Coordinators side by side: who plays, on what, and what is left of it."""

import csv
import json
import sys
from pathlib import Path

import pytest

from ppo_lightning import ConfigurationError, CoordinationEnv, CoordinatorComparison, Evaluation
from ppo_lightning.curves import figure
from tests.callbacks import coordinators
from tests.callbacks.coordinators import COST, SURE, make_env, returns, validate, write_config
from tests.commands import WALK, command, run, sentence_of
from tests.ranks.processes import TWO_RANKS, process

CHECKPOINTS = Path("lightning_logs/version_0/checkpoints")
QUICK = {"confidence": "max_logit", "percentiles": [0, 50, 100], "num_rollouts": 2}


def names(comparison, split="train"):
    return [score.candidate.name for score in comparison.scores if score.split == split]


def compare(evaluation=None, **settings):
    comparison = CoordinatorComparison(**(QUICK | settings))
    validate(comparison, evaluation)
    return comparison


def test_everyone_plays_every_split():
    comparison = compare(probabilities=[0, 1], with_agent=False)
    assert (
        names(comparison)
        == names(comparison, "rich")
        == [
            *("always novice", "always expert", "random 0", "random 1", "max_logit < 100 (percentile 0)"),
            *("max_logit < 101.5 (percentile 50)", "max_logit < 103 (percentile 100)"),
        ]
    )
    expert = 2 - 4 * COST
    assert returns(comparison.scores, "train") == pytest.approx([0, expert, 0, expert, 0, 2 - 2 * COST, 2 - 3 * COST])
    assert [score.metrics["expert_fraction"] for score in comparison.scores[:7]] == [0, 1, 0, 1, 0, 0.5, 0.75]
    assert [score.candidate.name for score in comparison.scores if score.is_best] == [
        "max_logit < 101.5 (percentile 50)",
        "always expert",
    ]
    assert {score.metrics["base_return_mean"] for score in comparison.scores[:2]} == {0, 2}


def test_all_play_the_same_episodes(monkeypatch):
    seeds, make = [], CoordinationEnv.make
    monkeypatch.setattr(CoordinationEnv, "make", lambda self, own: seeds.append(own) or make(self, own))
    comparison = compare(Evaluation(num_episodes=7), confidence=[])
    played = [tuple(own) for own in seeds if len(own) == 7]
    assert len(played) == len(comparison.scores) == 2 + 5 + 1
    assert len(set(played)) == 1


def test_kinds_can_be_left_out():
    assert names(compare(probabilities=[], confidence=[])) == ["always novice", "always expert", "learned"]


def test_the_share_of_the_expert_is_counted_whatever_training_logs(monkeypatch):
    make = coordinators.make_ppo
    monkeypatch.setattr(coordinators, "make_ppo", lambda: make(log_action_id=0))
    comparison = compare(probabilities=[], confidence=[])
    assert [score.metrics["expert_fraction"] for score in comparison.scores[:2]] == [0, 1]


@pytest.mark.parametrize(
    ("settings", "reason"),
    [
        ({"probabilities": [0.5, 1.5]}, "--probabilities must be at least 0 and at most 1, not 1.5"),
        ({"confidence": "enrgy"}, r"--confidence=enrgy .* Did you mean energy or entropy\?"),
        ({"percentiles": [-1]}, "--percentiles must be at least 0"),
        ({"num_rollouts": 0}, "--num_rollouts must be at least 1"),
        ({"learned": {"ours": "none.ckpt"}}, "--learned.ours: .*none.ckpt"),
        ({"learned": {"ours": []}}, "--learned.ours is empty"),
    ],
)
def test_bad_settings_are_refused(settings, reason):
    with pytest.raises(ConfigurationError, match=reason):
        compare(**settings)


def test_a_closed_novice_has_no_thresholds():
    closed = make_env(open_novice=False)
    with pytest.raises(ConfigurationError, match=r"--data\.env\.open_novice=true"):
        validate(CoordinatorComparison(**QUICK), env=closed)
    assert len(validate(CoordinatorComparison([0.5], confidence=[]), env=closed)) == 2 * 4


# -- the command

FLAGS = "--confidence=max_logit", "--percentiles=[0,50,100]", "--num_rollouts=2", "--probabilities=[0.5]"


def test_the_command_judges_checkpoints_beside_the_rest(monkeypatch):
    config, drawn = write_config(), []
    run("fit", config)
    save = figure.save
    monkeypatch.setattr(figure, "save", lambda picture, path: drawn.append(picture) or save(picture, path))
    last, best = CHECKPOINTS / "last.ckpt", CHECKPOINTS / "best_rich.ckpt"
    learned = f"--learned={{seeds: [{last}, {best}], other: {best}}}"
    out = run("compare", f"--ckpt_path={last}", learned, *FLAGS, "--out=pictures/all.svg").out
    assert "<svg" in Path("pictures/all.svg").read_text()
    with open("pictures/all.csv") as file:
        rows = list(csv.DictReader(file))
    assert [row["coordinator"] for row in rows[len(rows) // 2 :]] == [
        *("always novice", "always expert", "random 0.5", "max_logit < 100 (percentile 0)"),
        *("max_logit < 101.5 (percentile 50)", "max_logit < 103 (percentile 100)"),
        *("learned", "seeds 1", "seeds 2", "other"),
    ]
    assert [row["checkpoint"] for row in rows[-4:]] == [str(path) for path in (last, last, best, best)]
    assert rows[-4]["return_mean"] == rows[-3]["return_mean"]
    assert (rows[4]["percentile"], rows[4]["threshold"], rows[4]["probability"]) == ("50.0", str(SURE + 1.5), "")
    (line,) = [line for line in out.splitlines() if "best" in line and "101.5" in line]
    assert all(cell in line for cell in ("1.60 ± 0.00", "2.00 ± 0.00", "50.0 %", "4.0"))
    assert "Comparison: pictures/all.svg, pictures/all.csv" in out.splitlines()
    check_picture(drawn[0])


def check_picture(figure):
    assert [axis.get_title() for axis in figure.axes] == ["train", "rich"]
    legend = [text.get_text() for text in figure.legends[0].get_texts()]
    assert legend == ["always novice", "always expert", "random", "threshold (max_logit)", "learned", "seeds", "other"]
    drawn = dict(zip(legend, (container.lines for container in figure.axes[0].containers)))
    line, _, (bars,) = drawn["threshold (max_logit)"]
    assert line.get_xdata().tolist() == [0, 50, 75]
    assert line.get_ydata().tolist() == pytest.approx([0, 2 - 2 * COST, 2 - 3 * COST])
    assert [line.get_linestyle() for line, *_ in drawn.values()] == ["None", "None", "-", "-", "None", "None", "None"]
    assert len(drawn["seeds"][0].get_xdata()) == 2
    assert len(bars.get_segments()) == 3
    assert len({line.get_color() for line, *_ in drawn.values()}) == 7


def test_json_and_no_checkpoint():
    told = json.loads(run("compare", write_config(splits=None), *FLAGS, "--json").out)
    assert [row["label"] for row in told["rows"]][:3] == ["always novice", "always expert", "random"]
    assert "learned" not in {row["label"] for row in told["rows"]}
    assert told["rows"][4] == told["rows"][4] | {
        "percentile": 50,
        "threshold": SURE + 1.5,
        "is_best": True,
        "split": "",
    }
    assert (told["picture"], told["table"]) == ("comparison.png", "comparison.csv")
    assert Path("comparison.png").read_bytes().startswith(b"\x89PNG")
    run("compare", write_config(splits=None), *FLAGS, "--json")  # again, over its own


def test_the_command_refuses_in_one_sentence(monkeypatch):
    config = write_config()
    assert "does not end with a picture format" in sentence_of(command("compare", config, "--out=all.csv"))
    Path("all.csv").mkdir()
    assert "--out=all.csv cannot be written (it is a folder)" in sentence_of(
        command("compare", config, "--out=all.png")
    )
    assert not Path("all.png").exists()
    Path("metrics.csv").write_text("eval/return_mean,step\n1,2\n")
    sentence = sentence_of(command("compare", config, "--out=metrics.png"))
    assert "--out: the numbers go to metrics.csv, which holds something else" in sentence
    assert Path("metrics.csv").read_text() == "eval/return_mean,step\n1,2\n"
    assert "--learned.ours: " in sentence_of(command("compare", config, "--learned={ours: none.ckpt}"))
    assert "--resume is for fit" in sentence_of(command("compare", config, "--resume=auto"))
    assert "neither: set --data.env to CoordinationEnv" in sentence_of(command("compare", *WALK))
    monkeypatch.setitem(sys.modules, "matplotlib", None)
    monkeypatch.delitem(sys.modules, "ppo_lightning.curves.figure")
    monkeypatch.delattr("ppo_lightning.curves.figure")
    assert "pip install 'ppo-lightning[plot]'" in sentence_of(command("compare", config))


@pytest.mark.slow
def test_two_ranks_tell_what_one_does():
    flags = write_config(), *FLAGS, "--num_rollouts=3", "--json"
    alone, shared = json.loads(run("compare", *flags).out), json.loads(process("compare", *flags, *TWO_RANKS))
    assert shared == alone
