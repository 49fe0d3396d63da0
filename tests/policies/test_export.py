"""What a file holds, and every reason for which none is written."""

import functools
import json
import subprocess
import sys
from pathlib import Path

import numpy as np
import onnxruntime
import pytest
import torch
from gymnasium import spaces
from torch import nn

from ppo_lightning import (
    ActorCritic,
    GRUCore,
    LSTMCore,
    NatureCNN,
    export_onnx,
)
from ppo_lightning.policies import export
from tests.commands import command, run
from tests.exports import DISCRETE, SMALL_MLP, VECTOR, Loud, assert_close, draw, refused, save
from tests.runs import SMALL_NETWORK, SmallGRU
from tests.tasks import Drawn


def test_raw_bytes_are_scaled_inside():
    """A hand-made forward pass of a picture as the simulator gives it."""
    obs = Drawn.OBSERVATIONS["frames"]
    network = save(functools.partial(ActorCritic, encoder=NatureCNN, shared=True), obs=obs)
    export_onnx("a.ckpt", "policy.onnx")
    picture = np.random.default_rng(0).integers(0, 256, (3, *obs.shape), dtype=np.uint8)
    with torch.no_grad():
        scaled = torch.tensor(picture / 255, dtype=torch.float32)
        value = network.fc_value(network.embedder.linear(network.embedder.layers(scaled))).squeeze(-1).numpy()
    session = onnxruntime.InferenceSession("policy.onnx")
    (given,) = session.run(["value"], {"obs": picture})
    assert_close(given, value)
    assert np.ptp(value) > 1e-3


def test_actions_beyond_the_bounds_are_clipped():
    save(functools.partial(Loud, encoder=SMALL_MLP), actions=Drawn.ACTIONS["box"])
    export_onnx("a.ckpt", "policy.onnx")
    obs = draw(VECTOR, 64)
    action, mean = onnxruntime.InferenceSession("policy.onnx").run(["action", "mean"], {"obs": obs})
    low, high = Drawn.ACTIONS["box"].low, Drawn.ACTIONS["box"].high
    outside = (mean < low) | (mean > high)
    assert outside.any()
    assert not outside.all()
    np.testing.assert_array_equal(action, np.clip(mean, low, high))


class Dropping(ActorCritic):
    """Dropout, and a learned memory's beginning."""

    def __init__(self, observation_space, action_space):
        super().__init__(observation_space, action_space, encoder=SMALL_MLP)
        self.dropout, self.beginning = nn.Dropout(), nn.Parameter(torch.randn(3))

    def initial_state(self, num_envs):
        return self.beginning.expand(num_envs, 3)

    def forward(self, obs, state):
        output = super().forward(self.dropout(obs))
        output.value = output.value + state.sum(-1)
        return output, state / 2


def test_the_network_is_in_evaluation_mode_and_its_memory_begins_as_it_learned():
    network = save(Dropping).eval()
    assert export_onnx("a.ckpt", "policy.onnx").outputs["next_state"] == "float32 (B, 3)"
    session, obs = onnxruntime.InferenceSession("policy.onnx"), draw(VECTOR, 5)
    begins = np.array(json.loads(session.get_modelmeta().custom_metadata_map["initial_state"])["state"], np.float32)
    np.testing.assert_array_equal(begins, network.beginning.detach())
    value, state = session.run(["value", "next_state"], {"obs": obs, "state": np.tile(begins, (5, 1))})
    with torch.no_grad():
        assert_close(value, network(torch.from_numpy(obs), network.initial_state(5))[0].value.numpy())
    assert_close(state, np.tile(begins / 2, (5, 1)))


@pytest.mark.parametrize("core", [functools.partial(LSTMCore, hidden_dim=5), functools.partial(GRUCore, num_layers=2)])
@pytest.mark.parametrize("shared", [True, False])
def test_a_core_is_a_part_of_the_file(core, shared):
    network = save(functools.partial(SMALL_NETWORK, core=core, shared=shared)).eval()
    assert export_onnx("a.ckpt", "policy.onnx").difference < 1e-5
    session, obs = onnxruntime.InferenceSession("policy.onnx"), draw(VECTOR, 3)
    state = np.random.default_rng(0).standard_normal(network.initial_state(3).shape).astype(np.float32)
    value, after = session.run(["value", "next_state"], {"obs": obs, "state": state})
    with torch.no_grad():
        output, expected = network(torch.from_numpy(obs), torch.from_numpy(state))
    assert_close(value, output.value.numpy())
    assert_close(after, expected.numpy())


class KeyedGRU(SmallGRU):
    def __init__(self, observation_space, action_space):
        super().__init__(observation_space["state"], action_space)

    def forward(self, obs, state):
        return super().forward(obs["state"], state)


def test_a_key_with_the_name_of_the_memory_is_told_apart():
    save(KeyedGRU, obs=spaces.Dict(state=VECTOR, std=DISCRETE, next=DISCRETE))
    assert list(export_onnx("a.ckpt", "policy.onnx").inputs) == ["obs.state", "obs.std", "next", "state"]


def test_from_python_the_names_shapes_and_difference_are_told():
    save()
    written = export_onnx("a.ckpt", "policy.onnx")
    assert written.path == Path("policy.onnx")
    assert written.inputs == {"obs": "float32 (B, 4)"}
    assert written.outputs == {"action": "int64 (B)", "logits": "float32 (B, 4)", "value": "float32 (B)"}
    assert 0 <= written.difference < 1e-5


def test_an_older_file_is_replaced():
    save()
    Path("policy.onnx").write_text("older")
    run("export", "--ckpt_path=a.ckpt", "--out=policy.onnx")
    onnxruntime.InferenceSession("policy.onnx")


def test_without_onnxruntime_the_file_is_written_and_said_to_be_unchecked(monkeypatch):
    save()
    with monkeypatch.context() as patch:
        patch.setitem(sys.modules, "onnxruntime", None)
        said = run("export", "--ckpt_path=a.ckpt", "--out=policy.onnx").out
    assert "Not checked" in said
    assert "pip install 'ppo-lightning[export]'" in said
    onnxruntime.InferenceSession("policy.onnx")


def test_in_a_process_of_its_own_nothing_else_is_said():
    save()
    words = [sys.executable, "-m", "ppo_lightning", "export", "--ckpt_path=a.ckpt", "--out=policy.onnx"]
    outcome = subprocess.run(words, capture_output=True, text=True, check=True, timeout=300)
    assert outcome.stderr == ""
    assert len(outcome.stdout.splitlines()) == 2


def test_help_is_short_and_names_both_flags():
    said = command("export", "--help").out
    assert "--ckpt_path" in said
    assert "--out" in said
    assert len(said.splitlines()) < 20
    assert "export" in command("--help").out


@pytest.mark.parametrize("package", ["onnx", "onnxscript"])
def test_missing_packages_are_named_with_what_installs_them(monkeypatch, package):
    save()
    monkeypatch.setitem(sys.modules, package, None)
    sentence = refused("--ckpt_path=a.ckpt", "--out=policy.onnx")
    assert f"the package {package}," in sentence
    assert "pip install 'ppo-lightning[export]'" in sentence


@pytest.mark.parametrize(
    ("args", "words"),
    [
        (["--ckpt_path=a.ckpt"], ["required: out", "ppo-lightning export --help"]),
        (["--out=policy.onnx"], ["required: ckpt_path"]),
        (["--ckpt_path=a.ckpt", "--out=policy.onnx", "--batch=3"], ["--batch"]),
        (["--ckpt_path=b.ckpt", "--out=policy.onnx"], ["--ckpt_path", "b.ckpt does not exist", "a.ckpt"]),
        (["--ckpt_path=folder", "--out=policy.onnx"], ["--ckpt_path", "is a folder"]),
        (["--ckpt_path=notes.onnx", "--out=policy.onnx"], ["--ckpt_path", "notes.onnx is damaged"]),
        (["--ckpt_path=a.ckpt", "--out=policy.pt"], ["--out=policy.pt", "does not end in .onnx", "policy.onnx"]),
        (["--ckpt_path=a.ckpt", "--out=folder"], ["--out=folder", "is a folder", "policy.onnx"]),
        (["--ckpt_path=a.ckpt", "--out=folder.onnx"], ["--out=folder.onnx", "is a folder"]),
        (["--ckpt_path=a.ckpt", "--out=/proc/no/policy.onnx"], ["--out=/proc/no/policy.onnx", "cannot be written"]),
        (["--ckpt_path=a.ckpt", "--out=notes.onnx/policy.onnx"], ["--out=notes.onnx/policy.onnx", "cannot be written"]),
    ],
)
def test_bad_input_is_refused(args, words):
    save()
    Path("folder").mkdir()
    Path("folder.onnx").mkdir()
    Path("notes.onnx").write_text("no model")
    sentence = refused(*args)
    assert [word for word in words if word not in sentence] == []


def test_a_network_that_cannot_be_rebuilt_is_refused():
    save(network=SMALL_NETWORK)
    checkpoint = torch.load("a.ckpt", weights_only=True)
    checkpoint["hyper_parameters"]["network"] = None
    torch.save(checkpoint, "a.ckpt")
    assert "--ckpt_path: this checkpoint's network was given as an object" in refused(
        "--ckpt_path=a.ckpt", "--out=policy.onnx"
    )


@pytest.mark.parametrize("method", ["touch", "write_bytes", "replace"])
def test_what_cannot_be_written_leaves_the_older_file(monkeypatch, method):
    save()
    Path("policy.onnx").write_text("older")
    original = getattr(Path, method)

    def full(path, *args, **kwargs):
        if path.name.endswith(".part"):
            raise OSError(28, "No space left on device")
        return original(path, *args, **kwargs)

    monkeypatch.setattr(Path, method, full)
    assert "--out=policy.onnx cannot be written (No space left on device)" in refused(
        "--ckpt_path=a.ckpt", "--out=policy.onnx"
    )
    assert Path("policy.onnx").read_text() == "older"


def test_a_missing_folder_is_made():
    save()
    run("export", "--ckpt_path=a.ckpt", "--out=exports/new/policy.onnx")
    assert [path.name for path in Path("exports/new").iterdir()] == ["policy.onnx"]


def test_a_network_beyond_the_limit_of_one_file_is_refused(monkeypatch):
    save()
    monkeypatch.setattr(export, "_MAX_BYTES", 100)
    assert "an ONNX file holds less than 2" in refused("--ckpt_path=a.ckpt", "--out=policy.onnx")


class Branching(ActorCritic):
    def forward(self, obs):
        output = super().forward(obs)
        if output.value.sum() > 0:
            output.value = -output.value
        return output


class Counting(ActorCritic):
    def forward(self, obs):
        output = super().forward(obs)
        output.value = output.value + torch.arange(len(obs))
        return output


class Decomposing(ActorCritic):
    def forward(self, obs):
        output = super().forward(obs)
        output.value = output.value + torch.linalg.eigvals(output.logits.T @ output.logits).real.sum()
        return output


class Deceiving(ActorCritic):
    """Something else while it is traced."""

    what = "value"

    def forward(self, obs):
        output = super().forward(obs)
        if torch.compiler.is_compiling():
            setattr(output, self.what, getattr(output, self.what).roll(1, -1) + 2e-5)
        return output


class DeceivingLogits(Deceiving):
    what = "logits"


class Forgetful(SmallGRU):
    def initial_state(self, num_envs):
        return torch.rand(num_envs, 8)


@pytest.mark.parametrize(
    ("network", "words"),
    [
        (Branching, ["Branching cannot be exported", "torch.where for if"]),
        (Counting, ["Counting cannot be exported", "batches of 2 alone", "obs.shape[0] for len(obs)"]),
        (Decomposing, ["Decomposing cannot be exported", "eig"]),
        (Deceiving, ["in onnxruntime the output value differs from PyTorch's by", "more than 1e-05"]),
        (DeceivingLogits, ["in onnxruntime the output"]),
        (Forgetful, ["--ckpt_path: the memory of Forgetful begins differently"]),
    ],
)
def test_what_cannot_be_exported_rightly_is_refused(network, words):
    save(network)
    sentence = refused("--ckpt_path=a.ckpt", "--out=policy.onnx")
    assert sentence.startswith("ppo-lightning: error: --ckpt_path: ")
    assert [word for word in words if word not in sentence] == []


def test_weights_that_are_not_numbers_are_refused():
    save(weights={"fc_value.bias": torch.tensor([float("nan")])})
    assert "the output value differs from PyTorch's by nan" in refused("--ckpt_path=a.ckpt", "--out=policy.onnx")


@pytest.mark.parametrize(
    ("difference", "own", "is_allowed"),
    [(0.9e-5, 0, True), (1.1e-5, 0, False), (3e-5, 4e-6, True), (5e-5, 4e-6, False), (2e-3, 1.0, False)],
)
def test_what_rounds_coarsely_may_differ_more_up_to_a_limit(monkeypatch, difference, own, is_allowed):
    save()
    monkeypatch.setattr(export, "largest_difference", lambda path, graph: ("value", difference))
    monkeypatch.setattr(export, "rounding", lambda graph: own)
    args = ["--ckpt_path=a.ckpt", "--out=policy.onnx"]
    if not is_allowed:
        assert "differs from PyTorch's by" in refused(*args)
        return
    said = run("export", *args).out
    assert f"{difference:.1e}" in said
    assert ("the limit 1e-05" in said) == (difference <= 1e-5)
    assert ("within the network's own rounding" in said) == (difference > 1e-5)
