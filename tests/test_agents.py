"""Agents beside PPO by the command line: their own defaults, and what is done with their checkpoints."""

import functools
import json
from pathlib import Path

import numpy as np
import pytest
import torch
import yaml

from ppo_lightning import DAAC, RND, ConfigurationError, PPOPolicy, RandomNetworkDistillation
from ppo_lightning.cli.arguments import write_nulls_out
from tests.agents import ENCODER, daac_data, make_daac, make_rnd
from tests.commands import LAST, RESUME, command, config_of, load, rows, run, same, sentence_of
from tests.runs import fit, make_data

FILM = [
    "--data.env=GymnasiumEnv",
    "--data.env.id=tests.stateful:Film-v0",
    "--data.num_envs=2",
    "--data.num_steps=16",
    "--data.num_minibatches=2",
    "--data.total_timesteps=64",
    "--evaluation.num_episodes=2",
    "--trainer.accelerator=cpu",
    "--trainer.enable_progress_bar=false",
]
SMALL_GRID = "{class_path: GridCNN, init_args: {channels: [2], hidden_dim: 4}}"
AGENTS = {
    "RND": [
        "--model=RND",
        f"--model.network.encoder={SMALL_GRID}",
        f"--model.novelty.encoder={SMALL_GRID}",
        "--model.novelty.hidden_sizes=[4]",
        "--model.novelty.output_dim=4",
        "--model.init_obs_steps=20",
    ],
    "DAAC": ["--model=DAAC", f"--model.network.encoder={SMALL_GRID}", "--model.value_epochs=2"],
}
CLASSES = {"RND": RND, "DAAC": DAAC}


@pytest.mark.parametrize("name", AGENTS)
def test_a_run_and_all_that_is_done_with_its_checkpoint(name):
    run("fit", *FILM, *AGENTS[name])
    assert [step for step, _ in rows(column="train/policy_loss")] == [32, 64]
    saved = load(LAST)["state_dict"]
    module, policy = CLASSES[name].load_from_checkpoint(LAST), PPOPolicy(load_path=LAST)
    assert same(saved, module.state_dict())
    pictures = np.random.default_rng(0).integers(0, 256, (5, 6, 5, 3), np.uint8)
    _, output = policy.act(pictures, return_model_output=True)
    with torch.no_grad():
        expected = module(pictures)
    assert torch.equal(output.logits, expected.logits)
    assert torch.equal(output.value, expected.value)

    assert "Checked in onnxruntime" in run("export", f"--ckpt_path={LAST}", "--out=policy.onnx").out
    (video,) = json.loads(run("video", f"--ckpt_path={LAST}", "--num_episodes=1", "--json").out)["videos"]
    assert Path(video["path"]).stat().st_size
    assert "eval/return_mean" in json.loads(run("validate", f"--ckpt_path={LAST}", "--json").out)["metrics"]

    run("fit", RESUME, "--data.total_timesteps=96")
    assert [step for step, _ in rows(column="train/policy_loss")] == [32, 64, 96]
    assert config_of(name="config_1.yaml")["model"] == config_of()["model"]


# -- in Python


def test_the_parts_of_a_partial_come_back_from_a_checkpoint():
    for make, data, kind in ((make_rnd, make_data(), RND), (make_daac, daac_data(), DAAC)):
        agent = fit(make(), data)
        agent.trainer.save_checkpoint("a.ckpt")
        assert same(agent.state_dict(), kind.load_from_checkpoint("a.ckpt").state_dict())
        obs, policy = torch.randn(3, 4), PPOPolicy(load_path="a.ckpt")
        assert torch.equal(policy.act(obs, return_model_output=True)[1].logits, agent(obs).logits)


def test_a_novelty_without_a_name_is_to_be_given_again():
    novelty = functools.partial(RandomNetworkDistillation, encoder=lambda space: ENCODER(space))
    agent = fit(make_rnd(novelty=novelty), make_data())
    agent.trainer.save_checkpoint("a.ckpt")
    with pytest.raises(
        ConfigurationError, match=r"^--model\.novelty is missing: the checkpoint's novelty was given as "
    ):
        RND.load_from_checkpoint("a.ckpt")
    assert same(agent.state_dict(), RND.load_from_checkpoint("a.ckpt", novelty=novelty).state_dict())
    PPOPolicy(load_path="a.ckpt")  # needs none


# -- defaults


def printed(*args):
    """The model that a command would build."""
    model = yaml.safe_load(run("fit", *FILM, *args, "--print_config").out)["model"]
    return model["class_path"].rpartition(".")[2], model["init_args"]


OWN = {
    "RND": {"learning_rate": 1e-4, "clip_coef": 0.1, "ent_coef": 0.001, "clip_vloss": False, "init_obs_steps": 6400},
    "DAAC": {"learning_rate": 5e-4, "clip_coef": 0.2, "ent_coef": 0.01, "clip_vloss": True, "value_epochs": 9},
    "PPO": {"learning_rate": 5e-4, "clip_coef": 0.2, "ent_coef": 0.01, "clip_vloss": True, "vf_coef": 0.5},
}
NETWORKS = {"RND": "RNDModel", "DAAC": "DAACModel", "PPO": "ActorCritic"}


@pytest.fixture
def files():
    for name, text in {
        "ppo": "class_path: PPO, init_args: {vf_coef: 0.3}",
        "rnd": "class_path: RND",
        "daac": "class_path: ppo_lightning.DAAC",
        "more": "init_args: {gamma: 0.5}",
    }.items():
        Path(f"{name}.yaml").write_text(f"model: {{{text}}}")
    Path("short.yaml").write_text("model: RND")
    Path("other.yaml").write_text("data: {num_envs: 4}")


@pytest.mark.parametrize(
    ("args", "name"),
    [
        ([], "PPO"),
        (["--model=RND"], "RND"),
        (["--model", "DAAC"], "DAAC"),
        (["--model=ppo_lightning.algorithms.RND"], "RND"),
        (["--model.class_path=RND"], "RND"),
        (["--model.class_path", "DAAC"], "DAAC"),
        (["--model={class_path: RND}"], "RND"),
        (["--config=rnd.yaml"], "RND"),
        (["--config", "daac.yaml"], "DAAC"),
        (["-c", "rnd.yaml"], "RND"),
        (["--config=short.yaml"], "RND"),
        (["--config=ppo.yaml", "--config=rnd.yaml"], "RND"),
        (["--config=rnd.yaml", "--config=more.yaml", "--config=other.yaml"], "RND"),
        (["--config=rnd.yaml", "--config=daac.yaml", "--config=more.yaml"], "DAAC"),
        (["--config=ppo.yaml", "--model=DAAC"], "DAAC"),
        (["--config=rnd.yaml", "--model=PPO"], "PPO"),
    ],
    ids=lambda part: " ".join(part) or "nothing" if isinstance(part, list) else part,
)
def test_an_agent_has_its_own_defaults_however_it_is_named(args, name, files):
    kind, model = printed(*args)
    assert kind == name
    assert {key: model[key] for key in OWN[name]} == OWN[name]
    assert model["network"]["class_path"] == f"ppo_lightning.{NETWORKS[name]}"
    assert ("vf_coef" in model) == (name == "PPO")
    assert model["gamma"] == (0.5 if "--config=more.yaml" in args else 0.999)


def test_what_is_given_wins_over_them(files):
    kind, model = printed("--config=rnd.yaml", "--model.clip_coef=0.3", "--model.novelty.num_frames=2")
    assert (kind, model["clip_coef"], model["ent_coef"]) == ("RND", 0.3, 0.001)
    assert model["novelty"]["init_args"]["num_frames"] == 2
    assert printed("--model=DAAC", "--config=more.yaml", "--model.gamma=0.25")[1]["gamma"] == 0.25


def test_a_flag_of_another_agent_is_refused_by_name(files):
    assert "vf_coef" in sentence_of(command("fit", *FILM, "--model=RND", "--model.vf_coef=1"))
    assert "Did you mean value_epochs" in sentence_of(command("fit", *FILM, "--model=DAAC", "--model.value_epoch=1"))


@pytest.mark.parametrize("given", ["{bad", "", "[RND]", "{class_path: 3}"])
def test_a_model_that_is_none_is_refused_in_a_sentence(given):
    assert "--model" in sentence_of(command("fit", *FILM, f"--model={given}"))


@pytest.mark.parametrize("flag", ["--model.", "--model.init_args."])
def test_null_leaves_a_part_out_of_any_agent(flag):
    _, model = printed("--model=RND", f"{flag}novelty.num_frames=null", f"{flag}final_learning_rate", "null")
    assert model["novelty"]["init_args"]["num_frames"] is None
    assert model["final_learning_rate"] is None
    assert model["clip_coef"] == 0.1


def test_arguments_that_are_no_null_stay_as_they_are():
    args = ["fit", "--run_name", "", "--model.target_kl=null", "--model.target_kl", "null", "null", "--data.x.y=null"]
    assert write_nulls_out(args) == args
    mapping = '--model.network={"init_args": {"encoder": {"init_args": {"normalizer": null}}}}'
    for flag in ("--model.network.encoder.normalizer", "--model.init_args.network.init_args.encoder.normalizer"):
        assert write_nulls_out(["fit", f"{flag}=null", ""]) == write_nulls_out(["fit", flag, "null", ""])
        assert write_nulls_out(["fit", f"{flag}=null", ""]) == ["fit", mapping, ""]
