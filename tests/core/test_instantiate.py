import functools
import io
from pathlib import Path

import pytest
import torch
from gymnasium import spaces

from ppo_lightning import PPO
from ppo_lightning.core.checkpoint import NetworkBuilder
from ppo_lightning.core.errors import ConfigurationError
from ppo_lightning.core.instantiate import build_from_config, describe
from ppo_lightning.models import ActorCritic, ImpalaPPOModel, MLPEncoder
from tests.runs import make_data, make_ppo, make_trainer

SPACES = spaces.Dict(shown=spaces.Box(-1, 1, (2,)), hidden=spaces.Box(-1, 1, (3,))), spaces.Discrete(4)
NESTED = functools.partial(
    ActorCritic,
    encoder=functools.partial(MLPEncoder, hidden_sizes=(8, 5), activation="ReLU", in_keys=["shown"]),
    critic_encoder=functools.partial(MLPEncoder, hidden_sizes=[7]),
)


def rebuild(config):
    buffer = io.BytesIO()
    torch.save(config, buffer)
    buffer.seek(0)
    return build_from_config(NetworkBuilder, torch.load(buffer, weights_only=True), "model.network")(*SPACES)


def test_a_nested_partial_is_described_in_plain_containers():
    path = "ppo_lightning.models."
    assert describe(NESTED) == {
        "class_path": path + "actor_critic.ActorCritic",
        "init_args": {
            "encoder": {
                "class_path": path + "encoders.MLPEncoder",
                "init_args": {"hidden_sizes": [8, 5], "activation": "ReLU", "in_keys": ["shown"]},
            },
            "critic_encoder": {"class_path": path + "encoders.MLPEncoder", "init_args": {"hidden_sizes": [7]}},
        },
    }


def test_a_nested_partial_is_rebuilt_from_its_description():
    original, rebuilt = NESTED(*SPACES), rebuild(describe(NESTED))
    assert repr(rebuilt) == repr(original)
    assert rebuilt.embedder.in_keys == ["shown"]
    rebuilt.load_state_dict(original.state_dict())
    obs = {"shown": torch.randn(6, 2), "hidden": torch.randn(6, 3)}
    assert torch.equal(rebuilt(obs).logits, original(obs).logits)
    assert torch.equal(rebuilt(obs).value, original(obs).value)


def test_a_class_is_rebuilt_with_its_defaults():
    config = describe(ImpalaPPOModel)
    assert config == {"class_path": "ppo_lightning.models.actor_critic.ImpalaPPOModel", "init_args": {}}
    network = build_from_config(NetworkBuilder, config, "model.network")(spaces.Box(0, 255, (16, 16, 3)), SPACES[1])
    assert isinstance(network, ImpalaPPOModel)


def test_a_configuration_describes_itself():
    config = describe(NESTED)
    assert describe(config) == config


@pytest.mark.parametrize(
    "part",
    [lambda *_: None, MLPEncoder(SPACES[0]), functools.partial(lambda *_: None), functools.partial(ActorCritic, 1)],
)
def test_what_has_no_name_is_not_described(part):
    assert describe(part) is None


@pytest.mark.parametrize("argument", [lambda space: MLPEncoder(space), [lambda: None], {"a": object()}])
def test_a_part_that_has_no_name_makes_the_whole_undescribable(argument):
    # null in its place would rebuild another network, without a word
    assert describe(functools.partial(ActorCritic, critic_encoder=argument)) is None


def test_an_argument_that_is_none_stays_none():
    assert describe(functools.partial(ActorCritic, critic_encoder=None))["init_args"] == {"critic_encoder": None}


@pytest.mark.parametrize(
    "config",
    [
        {"class_path": "no_such_module.Network", "init_args": {}},
        {"class_path": "ppo_lightning.models.NoSuchNetwork", "init_args": {}},
        {"class_path": "ppo_lightning.models.ActorCritic", "init_args": {"no_such_argument": 1}},
    ],
)
def test_what_cannot_be_built_is_named_with_its_flag(config):
    with pytest.raises(ConfigurationError) as raised:
        build_from_config(NetworkBuilder, config, "model.network")(*SPACES)
    assert str(raised.value).startswith(f"model.network: {config['class_path']} cannot be built")
    assert "\n" not in str(raised.value)


@pytest.mark.parametrize(
    "config",
    [
        {"class_path": "os.system", "init_args": {"command": "touch run_by_the_checkpoint"}},
        {"class_path": "subprocess.call", "init_args": {"args": ["touch", "run_by_the_checkpoint"]}},
        {"class_path": "subprocess.Popen", "init_args": {"args": ["touch", "run_by_the_checkpoint"]}},
        {
            "class_path": "ppo_lightning.ActorCritic",
            "init_args": {"encoder": {"class_path": "subprocess.Popen", "init_args": {"args": ["touch", "x"]}}},
        },
    ],
)
def test_a_strangers_checkpoint_makes_nothing_but_networks(tmp_path, monkeypatch, config):
    monkeypatch.chdir(tmp_path)
    with pytest.raises(ConfigurationError, match=r"is not a class of networks, optimisers or schedulers"):
        build_from_config(NetworkBuilder, config, "model.network")
    assert not list(tmp_path.iterdir())


@pytest.mark.parametrize("part", ["network", "optimizer", "scheduler", "_instantiator"])
def test_a_strangers_checkpoint_runs_nothing_when_it_is_loaded(tmp_path, monkeypatch, part):
    monkeypatch.chdir(tmp_path)
    trainer = make_trainer(enable_checkpointing=True, max_epochs=1)
    trainer.fit(make_ppo(), make_data())
    trainer.save_checkpoint("good.ckpt")
    checkpoint = torch.load("good.ckpt", weights_only=True)
    evil = {"class_path": "os.system", "init_args": {"command": "touch run_by_the_checkpoint"}}
    checkpoint["hyper_parameters"][part] = "tests.core.test_instantiate.run_something" if part[0] == "_" else evil
    torch.save(checkpoint, "evil.ckpt")
    if part == "_instantiator":
        assert PPO.load_from_checkpoint("evil.ckpt").hparams["gamma"] == 0.9
    else:
        with pytest.raises(ConfigurationError, match=r"os.system is not a class"):
            PPO.load_from_checkpoint("evil.ckpt")
    assert not Path("run_by_the_checkpoint").exists()


def run_something(*args, **kwargs):
    Path("run_by_the_checkpoint").touch()
