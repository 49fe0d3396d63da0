"""A coordinator's run finds its novice and its expert wherever a command is given, and says which file is gone."""

import os
import shutil
from pathlib import Path

import pytest
import torch

from tests.commands import LAST, WALK, command, load, run, sentence_of

COORDINATION = [
    "--data.env=CoordinationEnv",
    "--data.env.env=GymnasiumEnv",
    "--data.env.env.id=tests.tasks:Walk-v0",
    "--data.env.base_penalty=0.5",
    "--model.network=CoordPPOModel",
    "--model.network.encoder=MLPEncoder",
]
PATHS = {name: f"{name}/lightning_logs/version_0/checkpoints/last.ckpt" for name in ("novice", "expert")}
AGENTS = [f"--data.env.{name}={path}" for name, path in PATHS.items()]
OTHERS = [flag for flag in WALK if not flag.startswith(("--data.env", "--model.network"))]


@pytest.fixture(autouse=True)
def coordinator():
    for seed, name in enumerate(PATHS, start=1):
        run("fit", *WALK, f"--seed_everything={seed}", f"--trainer.default_root_dir={name}")
    run("fit", *OTHERS, *COORDINATION, *AGENTS)


def table_of(outcome):
    return [line for line in outcome.out.splitlines() if line.startswith("│")]


def test_agents_are_found_from_another_folder_and_after_a_move(tmp_path_factory, monkeypatch):
    before = table_of(run("test", f"--ckpt_path={LAST}"))
    home, elsewhere = Path.cwd(), tmp_path_factory.mktemp("elsewhere")
    monkeypatch.chdir(elsewhere)
    assert table_of(run("test", f"--ckpt_path={home / LAST}")) == before
    shutil.copytree(home / "lightning_logs", "lightning_logs")  # the agents are where they were
    assert table_of(run("test", f"--ckpt_path={LAST}")) == before
    moved = elsewhere / "moved"
    shutil.move(home, moved)
    home.mkdir()
    assert table_of(run("test", f"--ckpt_path={moved / LAST}")) == before


def test_a_name_that_no_file_can_have_is_not_looked_for():
    checkpoint = torch.load(LAST, weights_only=True)
    checkpoint["RolloutDataModule"]["env"]["agents"]["novice"]["absolute"] = 5000 * "x"
    torch.save(checkpoint, LAST)
    os.rename("novice", "weak")
    sentence = sentence_of(command("test", f"--ckpt_path={LAST}"))
    assert f"--data.env.novice: the checkpoint {PATHS['novice']} does not exist" in sentence


def test_a_missing_or_another_agent_is_told():
    saved = load(LAST)["RolloutDataModule"]["env"]
    assert saved["base_penalty"] == 0.5
    for name, path in PATHS.items():
        assert saved["agents"][name]["path"] == path
        assert saved["agents"][name]["absolute"] == str(Path(path).absolute())
    assert saved["agents"]["novice"]["sha256"] != saved["agents"]["expert"]["sha256"]

    outcome = run("test", f"--ckpt_path={LAST}", f"--data.env.expert={PATHS['novice']}")
    assert "The checkpoint was trained with another --data.env.expert." in outcome.warnings

    os.rename("novice", "weak")
    sentence = sentence_of(command("test", f"--ckpt_path={LAST}"))
    for words in ("--data.env.novice", PATHS["novice"], "does not exist"):
        assert words in sentence
    outcome = run("test", f"--ckpt_path={LAST}", f"--data.env.novice={PATHS['novice'].replace('novice', 'weak')}")
    assert "another" not in outcome.warnings
