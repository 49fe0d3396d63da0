"""Every mistake is one sentence that names the flag, the value and the way out, before any work."""

import random
import sys
from pathlib import Path

import pytest
import torch

from tests.commands import (
    LAST,
    RESUME,
    RUN,
    WALK,
    command,
    load,
    logged,
    rows,
    run,
    sentence_of,
)
from tests.runs import fit, make_data, make_ppo, make_trainer
from tests.toy import ToyEnv  # noqa: F401  (registers Toy-v0)

LOCK = ["--data.env.id=tests.tasks:Lock-v0"]
TOY = ["--data.env.id=tests.toy:Toy-v0"]


def refused(*flags, name="fit"):
    """The sentence, having seen that nothing was trained."""
    sentence = sentence_of(command(name, *WALK, *flags))
    assert not list(Path().rglob("*.ckpt"))
    assert not list(Path().rglob("metrics.csv"))
    return sentence


@pytest.mark.parametrize(
    ("flags", "words"),
    [
        # environments
        (["--data.env.id=CartPol-v1"], ["--data.env.id=CartPol-v1", "Did you mean CartPole-v1"]),
        (["--data.env=CartPol-v1"], ["CartPol-v1", "Did you mean CartPole-v1"]),
        (["--data.env.id=Zzyzx-v9"], ["--data.env.id=Zzyzx-v9", "module:EnvId"]),
        (["--data.env.id=nomod:Walk-v0"], ["--data.env.id=nomod:Walk-v0", "nomod", "module:EnvId"]),
        (["--data.env.kwargs={foo: 1}"], ["--data.env", "'foo': 1", "--data.env.kwargs"]),
        (["--data.env.vectorization=asink"], ["--data.env.vectorization=asink", "sync, async, vector_entry_point"]),
        (["--data.env.vectorization=vector_entry_point"], ["vector_entry_point", "use sync or async"]),
        (["--data.env=ProcgenEnv", "--data.env.env_name=coinran"], ["env_name=coinran", "Did you mean coinrun?"]),
        ([*TOY, "--data.env.kwargs={actions: grid}"], ["action space MultiDiscrete", "of one dimension", "wrappers"]),
        ([*TOY, "--data.env.kwargs={actions: matrix}"], ["action space Box", "(2, 2)", "wrappers"]),
        ([*TOY, "--data.env.kwargs={obs: tuple}"], ["observation space Tuple", "Dict", "FlattenObservation"]),
        # networks
        (["--model.network.encoder=NatureCNN"], ["NatureCNN", "(4,)", "--model.network.encoder", "MLPEncoder"]),
        (["--model.network=ImpalaPPOModel"], ["ImpalaCNN", "(4,)", "MLPEncoder"]),
        (["--model.network.encoder=Encoder"], ["--model.network: ActorCritic does not fit", "Encoder"]),
        (["--model.network=torch.nn.Linear"], ["--model.network", "Linear", "does not fit", "Box(-inf, inf, (4,)"]),
        (["--model.network.encoder.hidden_sizes=[0]"], ["hidden_sizes=[0]", "at least 1"]),
        (
            ["--model.network.encoder.activation=tanh"],
            ["--model.network.encoder.activation=tanh", "Did you mean Tanh?"],
        ),
        # sizes and numbers
        (["--data.num_minibatches=3"], ["--data.num_envs=4", "--data.num_steps=16", "--data.num_minibatches=3"]),
        (["--data.num_envs=0"], ["--data.num_envs must be at least 1, not 0"]),
        (["--data.num_steps=-1"], ["--data.num_steps must be at least 1, not -1"]),
        (["--data.num_minibatches=0"], ["--data.num_minibatches must be at least 1, not 0"]),
        (["--data.update_epochs=0"], ["--data.update_epochs must be at least 1, not 0"]),
        (["--data.seed=-1"], ["--data.seed must be at least 0, not -1"]),
        (["--data.total_timesteps=63"], ["--data.total_timesteps=63", "one rollout", "64 steps", "raise it"]),
        (["--model.clip_coef=-0.2"], ["--model.clip_coef must be greater than 0, not -0.2"]),
        (["--model.gamma=1.5"], ["--model.gamma must be at least 0 and at most 1, not 1.5"]),
        (["--model.gae_lambda=-1"], ["--model.gae_lambda must be at least 0 and at most 1, not -1"]),
        (["--model.learning_rate=0"], ["--model.learning_rate must be greater than 0, not 0"]),
        ([*LOCK, "--model.log_action_id=1"], ["--model.log_action_id", "Discrete action space", "leave it out"]),
        (["--model.log_action_id=7"], ["--model.log_action_id must be at least 0 and at most 1, not 7"]),
        (["--evaluation.num_episodes=0"], ["--evaluation.num_episodes must be at least 1, not 0"]),
        (["--evaluation.temperature=-1"], ["--evaluation.temperature must be at least 0, not -1"]),
        (["--checkpoint.save_freq=-1"], ["--checkpoint.save_freq must be at least 0, not -1"]),
        (["--seed_everything=-1"], ["--seed_everything must be at least 0", "not -1"]),
        (["--trainer.gradient_clip_val=-1"], ["--trainer.gradient_clip_val", "at least 0", "-1"]),
        (["--model.optimizer=torch.optim.Adam", "--model.optimizer.eps=-1"], ["--model.optimizer", "epsilon", "-1"]),
        # contradictions
        (["--ckpt_path=a.ckpt", "--init_from=b.ckpt"], ["--ckpt_path", "--init_from", "one of the two"]),
        (
            ["--model.anneal_lr=true", "--model.scheduler=torch.optim.lr_scheduler.ConstantLR"],
            ["--model.anneal_lr=true", "--model.scheduler", "leave one"],
        ),
        (
            ["--model.scheduler=torch.optim.lr_scheduler.ReduceLROnPlateau"],
            ["--model.scheduler=ReduceLROnPlateau", "choose another"],
        ),
        (["--model.optimizer=torch.optim.Adam", "--model.optimizer.lr=0.1"], ["--model.optimizer.lr=0.1"]),
        (
            ["--evaluation.every_n_iterations=1", "--evaluation.every_n_env_steps=2"],
            ["--evaluation.every_n_iterations=1", "--evaluation.every_n_env_steps=2", "leave one out"],
        ),
        # names
        (["--model.network=ActorCritc"], ["--model.network=ActorCritc", "Did you mean ActorCritic"]),
        (["--model.network.encoder=MLPEncodr"], ["--model.network.encoder=MLPEncodr", "Did you mean MLPEncoder"]),
        (["--data.env.class_path=ProcgnEnv"], ["ProcgnEnv", "Did you mean ProcgenEnv"]),
        (["--model.optimizer=torch.optim.Adm"], ["--model.optimizer=torch.optim.Adm", "Did you mean Adam"]),
        (["--model=PP0"], ["--model=PP0", "Did you mean PPO?"]),
        (["--model.gama=0.9"], ["--model.gama=0.9", "Did you mean gamma?"]),
        (["--model.network.shard=true"], ["--model.network.shard=true", "Did you mean shared?"]),
        (["--data.num_envs=many"], ["--data.num_envs=many", "int"]),
        (["--model.chunk_size=all"], ["--model.chunk_size=all", "choose from a whole number, null, auto"]),
        (["--model.norm_adv=maybe"], ["--model.norm_adv=maybe", "choose from true, false, minibatch, rollout, ema"]),
        (["--trianer.max_epochs=3"], ["--trianer.max_epochs=3"]),
        (["--model.observation_space={}"], ["--model.observation_space", "--data.env", "leave it out"]),
        (["--model.action_space={}"], ["--model.action_space", "--data.env", "leave it out"]),
        # the Trainer
        (["--trainer.accelerator=gpuu"], ["--trainer", "gpuu", "cpu"]),
        (["--trainer.strategy=dpp"], ["--trainer", "dpp", "ddp"]),
        (["--trainer.precision=17"], ["--trainer.precision=17", "bf16-mixed"]),
        (["--trainer.max_epochs=-5"], ["max_epochs", "-5"]),
    ],
    ids=lambda part: " ".join(part) if isinstance(part, list) and str(part[0]).startswith("--") else "",
)
def test_a_mistake_is_a_sentence_with_flag_value_and_way_out(flags, words):
    sentence = refused(*flags)
    for word in words:
        assert word in sentence


@pytest.mark.parametrize("args", [[], ["fitt"], ["predict"]])
def test_an_unknown_command_is_answered_with_the_known_ones(args):
    sentence = sentence_of(command(*args))
    for name in ("fit", "validate", "test"):
        assert name in sentence


@pytest.mark.parametrize("args", [["fit"], ["fit", f"--init_from={LAST}"]])
def test_a_missing_environment_is_asked_for_by_its_flag(args):
    assert "--data.env" in sentence_of(command(*args))


def test_procgen_without_its_package_names_the_extra_and_the_pythons(monkeypatch):
    monkeypatch.setitem(sys.modules, "procgen", None)
    sentence = refused("--data.env=ProcgenEnv", "--data.env.env_name=coinrun")
    for word in ("--data.env=ProcgenEnv", "ppo-lightning[procgen]", "3.10, 3.11 or 3.12"):
        assert word in sentence


# -- configuration files


@pytest.mark.parametrize(
    ("content", "words"),
    [
        (None, ["does not exist"]),
        (b"a: [b", []),
        (b"\xff\xfe\x00\x81", []),
        (b"[1, 2]\n", []),
        (b"hello world\n", []),
        (b"", []),
    ],
    ids=["missing", "not YAML", "not text", "a list", "a string", "empty"],
)
def test_a_configuration_that_is_not_one_is_named(content, words):
    if content is not None:
        Path("odd.yaml").write_bytes(content)
    sentence = refused("--config=odd.yaml")
    for word in ["odd.yaml", *words]:
        assert word in sentence


@pytest.mark.parametrize(
    ("content", "words"),
    [
        ("model: {gama: 0.5}\n", ["gama", "Did you mean gamma?"]),
        ("modell: {gamma: 0.5}\n", ["modell"]),
        ("data: {env: {class_path: GymnasiumEnv, init_args: {idd: a}}}\n", ["idd"]),
        ("data: {num_envs: many}\n", ["num_envs", "many"]),
    ],
)
def test_an_unknown_key_of_a_configuration_is_named(content, words):
    Path("odd.yaml").write_text(content)
    sentence = refused("--config=odd.yaml")
    for word in words:
        assert word in sentence


# -- checkpoints

COMMANDS = {
    "continue": ("fit", "--ckpt_path"),
    "init_from": ("fit", "--init_from"),
    "validate": ("validate", "--ckpt_path"),
    "test": ("test", "--ckpt_path"),
}


@pytest.fixture(scope="module")
def good(tmp_path_factory):
    """A checkpoint's bytes."""
    path = tmp_path_factory.mktemp("good") / "good.ckpt"
    trainer = make_trainer()
    trainer.fit(make_ppo(), make_data())
    trainer.save_checkpoint(path, weights_only=False)
    return path.read_bytes()


def write(kind, good):
    path = Path("a.ckpt")
    if kind == "truncated":
        path.write_bytes(good[: len(good) // 2])
    elif kind == "random bytes":
        path.write_bytes(random.Random(0).randbytes(4096))
    elif kind == "foreign":
        torch.save({"state_dict": {"weight": torch.zeros(2)}}, path)
    elif kind == "empty":
        path.touch()
    elif kind == "folder":
        path.mkdir()


@pytest.mark.parametrize("settings", [WALK, []], ids=["settings", "no settings"])
@pytest.mark.parametrize("name", COMMANDS)
@pytest.mark.parametrize(
    ("kind", "words"),
    {
        "missing": "does not exist",
        "truncated": "damaged",
        "random bytes": "damaged",
        "empty": "damaged",
        "foreign": "was not written by ppo-lightning",
        "folder": "is a folder",
    }.items(),
)
def test_a_bad_checkpoint_is_refused(kind, words, name, settings, good):
    if name == "init_from" and not settings:
        pytest.skip("a new run has no settings but those given")
    write(kind, good)
    what, flag = COMMANDS[name]
    sentence = sentence_of(command(what, *settings, f"{flag}=a.ckpt"))
    for word in (flag, "a.ckpt", words):
        assert word in sentence
    assert not Path("lightning_logs").exists()


@pytest.mark.parametrize("name", COMMANDS)
@pytest.mark.parametrize(
    "other",
    [
        ["--model.network.encoder.hidden_sizes=[16]"],
        ["--model.network.shared=true"],
        ["--data.env.id=Acrobot-v1"],
        ["--data.env.id=tests.tasks:Bandit-v0"],
    ],
    ids=["narrower", "shared", "Acrobot", "Bandit"],
)
def test_a_checkpoint_of_another_network_or_environment_is_refused(name, other):
    run("fit", *WALK)
    before = rows()
    what, flag = COMMANDS[name]
    sentence = sentence_of(command(what, *WALK, f"{flag}={LAST}", "--data.total_timesteps=256", *other))
    for word in (flag, "--model.network", "in the checkpoint", "environment"):
        assert word in sentence
    assert rows() == before
    assert not (RUN / "config_1.yaml").exists()


def test_a_missing_checkpoint_is_answered_with_those_nearby():
    run("fit", *WALK)
    sentence = sentence_of(command("validate", f"--ckpt_path={LAST.parent / 'lst.ckpt'}"))
    assert "best.ckpt, last.ckpt" in sentence


def test_init_from_is_for_fit():
    run("fit", *WALK)
    sentence = sentence_of(command("validate", RESUME, "--init_from=a.ckpt"))
    assert "--init_from is for fit" in sentence
    assert "--ckpt_path" in sentence


# -- while training


BROKEN = ["--data.env.id=tests.tasks:Broken-v0", "--data.total_timesteps=640"]


@pytest.mark.parametrize("what", ["reward", "observation"])
def test_a_nan_of_the_environment_keeps_the_last_good_checkpoint(what):
    outcome = command("fit", *WALK, *BROKEN, f"--data.env.kwargs={{what: {what}, after: 40}}")
    sentence = sentence_of(outcome, code=1)
    for word in (what, "environment 0", "step"):
        assert word in sentence
    done = load(LAST)["RolloutDataModule"]["env_steps"]
    assert 64 <= done <= 128
    assert all(tensor.isfinite().all() for tensor in load(LAST)["state_dict"].values())
    run("fit", RESUME, f"--data.total_timesteps={done + 64}", "--data.env.kwargs={what: reward, after: 1000}")
    assert logged(rows(column="train/value_loss"))[-1] == done + 64


def test_a_nan_loss_keeps_the_last_good_checkpoint():
    run("fit", *WALK)
    good = load(LAST)["state_dict"]
    explosive = ["--model.learning_rate=1e30", "--model.vf_coef=1e30", "--trainer.gradient_clip_val=null"]
    sentence = sentence_of(command("fit", RESUME, "--data.total_timesteps=256", *explosive), code=1)
    for word in ("train/", "minibatch", "192 environment steps", "--model.learning_rate", "--ckpt_path"):
        assert word in sentence
    kept = load(LAST)["state_dict"]
    assert all(torch.equal(kept[name], good[name]) for name in good)
    assert logged(rows(column="train/value_loss")) == [64, 128]


# -- folders


@pytest.mark.parametrize("folder", ["a_file", "a_file/below", "/proc/nowhere"])
def test_a_folder_that_cannot_be_written_is_refused(folder):
    Path("a_file").touch()
    sentence = refused(f"--trainer.default_root_dir={folder}")
    for word in ("--trainer.default_root_dir", folder):
        assert word in sentence


def test_a_crash_of_the_environment_is_not_hidden():
    """It is the environment's bug: its author needs the traceback."""
    with pytest.raises(RuntimeError, match="the simulator crashed"):
        command("fit", *WALK, *BROKEN, "--data.env.kwargs={what: crash, after: 40}")
    assert LAST.is_file()


def test_an_environments_own_crash_is_raised_as_it_is():
    data = make_data("tests.tasks:Broken-v0")
    data.env.kwargs = {"what": "crash", "after": 0}
    with pytest.raises(RuntimeError, match="the simulator crashed"):
        fit(data=data)
