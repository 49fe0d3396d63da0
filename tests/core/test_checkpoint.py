import functools
import os
import pickle

import pytest
import torch
from gymnasium import spaces

from ppo_lightning.core.checkpoint import (
    FORMAT_KEY,
    FORMAT_VERSION,
    describe_mismatch,
    network_from_checkpoint,
    read_checkpoint,
)
from ppo_lightning.core.errors import ConfigurationError
from ppo_lightning.core.instantiate import describe
from ppo_lightning.core.spaces import space_to_dict
from ppo_lightning.models import ActorCritic, MLPEncoder

OBS, ACTIONS = spaces.Box(-1, 1, (3,)), spaces.Discrete(2)
BUILDER = functools.partial(ActorCritic, encoder=functools.partial(MLPEncoder, hidden_sizes=[5]))


def checkpoint_of(network, builder=BUILDER, **changes):
    return {
        FORMAT_KEY: FORMAT_VERSION,
        "state_dict": {f"network.{name}": tensor for name, tensor in network.state_dict().items()},
        "hyper_parameters": {
            "network": describe(builder),
            "observation_space": space_to_dict(OBS),
            "action_space": space_to_dict(ACTIONS),
        },
        **changes,
    }


def refusal(path, flag="ckpt_path"):
    with pytest.raises(ConfigurationError) as raised:
        read_checkpoint(path, flag)
    message = str(raised.value)
    assert message.startswith(f"{flag}: ")
    assert str(path) in message
    assert "\n" not in message
    return message


class Malicious:
    def __init__(self, path):
        self.path = path

    def __reduce__(self):
        return os.mkdir, (str(self.path),)


def test_a_trained_network_comes_back_from_its_file(tmp_path):
    network = BUILDER(OBS, ACTIONS)
    torch.save(checkpoint_of(network), tmp_path / "a.ckpt")
    rebuilt = network_from_checkpoint(read_checkpoint(tmp_path / "a.ckpt"))
    obs = torch.randn(4, 3)
    assert torch.equal(rebuilt(obs).logits, network(obs).logits)
    assert torch.equal(rebuilt(obs).value, network(obs).value)


def test_a_missing_file_is_refused_with_the_ones_nearby(tmp_path):
    (tmp_path / "best.ckpt").touch()
    (tmp_path / "notes.txt").touch()
    message = refusal(tmp_path / "bets.ckpt", flag="load_path")
    assert "does not exist" in message
    assert "best.ckpt" in message
    assert "notes.txt" not in message
    assert "does not exist." in refusal(tmp_path / "no" / "such.ckpt")


def test_a_folder_is_refused_with_the_files_in_it(tmp_path):
    (tmp_path / "last.ckpt").touch()
    message = refusal(tmp_path)
    assert "is a folder" in message
    assert "last.ckpt" in message


@pytest.mark.parametrize("kept", [0.0, 0.3, 0.9, 0.999])
def test_a_truncated_file_is_refused(tmp_path, kept):
    path = tmp_path / "a.ckpt"
    torch.save(checkpoint_of(BUILDER(OBS, ACTIONS)), path)
    content = path.read_bytes()
    path.write_bytes(content[: int(kept * len(content))])
    assert "damaged" in refusal(path)


def test_random_bytes_are_refused(tmp_path):
    (tmp_path / "a.ckpt").write_bytes(bytes((37 * i * i + 11) % 256 for i in range(4096)))
    assert "damaged" in refusal(tmp_path / "a.ckpt")


@pytest.mark.parametrize("save", [torch.save, lambda thing, path: path.write_bytes(pickle.dumps(thing))])
def test_code_in_a_file_does_not_run(tmp_path, save):
    marker = tmp_path / "ran"
    save(checkpoint_of(BUILDER(OBS, ACTIONS), extra=Malicious(marker)), tmp_path / "a.ckpt")
    assert "holds more than tensors" in refusal(tmp_path / "a.ckpt")
    assert not marker.exists()


@pytest.mark.parametrize("env", [[1], 3, "x"])
def test_what_is_said_of_the_environment_is_a_mapping(tmp_path, env):
    torch.save(checkpoint_of(BUILDER(OBS, ACTIONS), RolloutDataModule={"env": env}), tmp_path / "a.ckpt")
    assert "its 'RolloutDataModule' is not what ppo-lightning writes there" in refusal(tmp_path / "a.ckpt")


@pytest.mark.parametrize(
    "content",
    [torch.zeros(3), {"state_dict": {}}, {FORMAT_KEY: 1}, {"pytorch-lightning_version": "2.6", "state_dict": {}}, []],
)
def test_a_foreign_file_is_refused(tmp_path, content):
    torch.save(content, tmp_path / "a.ckpt")
    assert "was not written by ppo-lightning" in refusal(tmp_path / "a.ckpt")


def test_a_newer_format_asks_for_an_update(tmp_path):
    torch.save({FORMAT_KEY: FORMAT_VERSION + 1, "state_dict": {}}, tmp_path / "a.ckpt")
    message = refusal(tmp_path / "a.ckpt")
    assert f"format {FORMAT_VERSION + 1}" in message
    assert "update ppo-lightning" in message


def test_a_network_given_as_an_object_cannot_be_rebuilt():
    checkpoint = checkpoint_of(BUILDER(OBS, ACTIONS))
    checkpoint["hyper_parameters"]["network"] = None
    with pytest.raises(ConfigurationError, match=r"^load_path: .*given as an object or a lambda"):
        network_from_checkpoint(checkpoint, "load_path")


def test_weights_of_another_network_are_refused_by_name_and_shapes():
    checkpoint = checkpoint_of(BUILDER(spaces.Box(-1, 1, (4,)), ACTIONS))
    with pytest.raises(ConfigurationError, match=r"layers\.0\.weight is \(5, 4\) in the checkpoint and \(5, 3\) here"):
        network_from_checkpoint(checkpoint)


def test_mismatches_are_described():
    a, b = torch.zeros(2), torch.zeros(3)
    assert describe_mismatch({"w": a}, {"w": a}) == ""
    assert describe_mismatch({"w": a}, {}) == "w is missing from the checkpoint"
    assert describe_mismatch({}, {"w": a}) == "w is only in the checkpoint"
    assert describe_mismatch({"w": a}, {"w": b}) == "w is (3,) in the checkpoint and (2,) here"
