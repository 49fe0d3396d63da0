"""``ppo-lightning export``: the file alone gives what the policy gives."""

import functools
import json
from dataclasses import dataclass
from pathlib import Path
from unittest import mock

import gymnasium
import numpy as np
import onnxruntime
import pytest
import torch
from gymnasium import spaces
from tensordict import TensorDict
from torch import nn

from ppo_lightning import (
    ActorCritic,
    DAACModel,
    GridCNN,
    GymnasiumEnv,
    ImpalaCNN,
    ImpalaPPOModel,
    MLPEncoder,
    NatureCNN,
    PPOModelOutput,
    PPOPolicy,
    RNDModel,
    __version__,
    export_onnx,
)
from ppo_lightning.core.spaces import space_from_dict, space_to_dict
from tests.commands import run
from tests.exports import SMALL_MLP, VECTOR, Loud, assert_close, draw, save
from tests.runs import SmallGRU, fit, make_data, make_ppo
from tests.tasks import Drawn

SMALL_IMPALA = functools.partial(ImpalaCNN, channels=[4, 8], hidden_dim=16)


class Averaging(nn.Module):
    """Memory in a TensorDict that does not begin with zeros, and an operation with the name of an output."""

    def __init__(self, observation_space, action_space):
        super().__init__()
        self.features = nn.Linear(observation_space.shape[0], 6)
        self.policy = nn.Linear(6, int(action_space.n))

    def initial_state(self, num_envs):
        count, total = torch.full((num_envs, 1), 2.0), torch.arange(6.0).expand(num_envs, 6).clone()
        return TensorDict({"count": count, "inner": {"total": total}}, batch_size=[num_envs])

    def forward(self, obs, state):
        count, total = state["count"] + 1, state["inner", "total"] + self.features(obs)
        logits = self.policy(total / count)
        after = TensorDict({"count": count, "inner": {"total": total}}, batch_size=obs.shape[:1])
        return PPOModelOutput(logits - logits.mean(-1, keepdim=True), total.mean(-1), total), after


@dataclass
class Case:
    obs: str
    actions: str
    network: object


CASES = {
    "mlp": Case("vector", "discrete", functools.partial(ActorCritic, encoder=SMALL_MLP)),
    "mlp-shared": Case("double", "discrete", functools.partial(ActorCritic, encoder=SMALL_MLP, shared=True)),
    "start": Case("vector", "started", functools.partial(ActorCritic, encoder=SMALL_MLP)),
    "box": Case("vector", "box", functools.partial(Loud, encoder=SMALL_MLP, initial_logstd=-0.7)),
    "box-shared": Case("vector", "unbounded", functools.partial(ActorCritic, encoder=SMALL_MLP, shared=True)),
    "box-whole": Case("vector", "whole", functools.partial(Loud, encoder=SMALL_MLP)),
    "several": Case("vector", "several", functools.partial(Loud, encoder=SMALL_MLP)),
    "alike-shared": Case("vector", "alike", functools.partial(ActorCritic, encoder=SMALL_MLP, shared=True)),
    "binary": Case("vector", "binary", functools.partial(Loud, encoder=SMALL_MLP)),
    "nature": Case("frames", "discrete", functools.partial(ActorCritic, encoder=NatureCNN, shared=True)),
    "grid": Case("grid", "discrete", functools.partial(ActorCritic, encoder=GridCNN, shared=True)),
    "impala": Case("image", "box", functools.partial(ActorCritic, encoder=SMALL_IMPALA)),
    "impala-ppo": Case("image", "discrete", functools.partial(ImpalaPPOModel, channels=[4, 8], hidden_dim=16)),
    "daac": Case("vector", "several", functools.partial(DAACModel, encoder=SMALL_MLP)),
    "rnd": Case("vector", "box", functools.partial(RNDModel, encoder=SMALL_MLP)),
    "bits": Case("bits", "discrete", functools.partial(ActorCritic, encoder=SMALL_MLP)),
    "number": Case("number", "started", functools.partial(ActorCritic, encoder=SMALL_MLP)),
    "dict": Case(
        "dict",
        "discrete",
        functools.partial(
            ActorCritic,
            encoder=functools.partial(MLPEncoder, in_keys=["mean", "state"]),
            critic_encoder=functools.partial(SMALL_IMPALA, in_keys=["cat"]),
        ),
    ),
    "memory": Case("vector", "discrete", SmallGRU),
    "memory-dict": Case("vector", "discrete", Averaging),
}
SPECIAL_KEYS = {"value": "obs.value", "mean": "obs.mean"}


@dataclass
class Exported:
    case: Case
    ckpt_path: Path
    path: Path
    said: str
    errors: str
    left: list[str]

    @functools.cached_property
    def session(self):
        return onnxruntime.InferenceSession(str(self.path), providers=["CPUExecutionProvider"])

    def run(self, obs, state=None):
        """What the file gives, by name, for raw observations as the simulator gives them."""
        keyed = (
            {SPECIAL_KEYS.get(key, key): part for key, part in obs.items()} if isinstance(obs, dict) else {"obs": obs}
        )
        names = [output.name for output in self.session.get_outputs()]
        return dict(zip(names, self.session.run(names, keyed | (state or {}))))

    def initial_state(self, rows):
        begins = json.loads(self.metadata.get("initial_state", "{}"))
        shapes = {entry.name: entry.shape[1:] for entry in self.session.get_inputs()}
        return {
            name: np.broadcast_to(np.array(value, np.float32), (rows, *shapes[name])).copy()
            for name, value in begins.items()
        }

    @property
    def metadata(self):
        return self.session.get_modelmeta().custom_metadata_map


@pytest.fixture(scope="module", params=list(CASES))
def exported(request, tmp_path_factory):
    """The file of a short run, written by the command."""
    case, folder = CASES[request.param], tmp_path_factory.mktemp(request.param)
    ckpt_path, path = folder / "run" / "last.ckpt", folder / "policy.onnx"
    env = GymnasiumEnv("tests.tasks:Drawn-v0", kwargs={"obs": case.obs, "actions": case.actions})
    ppo = fit(make_ppo(network=case.network), make_data(env, iterations=1, num_envs=2), default_root_dir=folder)
    ppo.trainer.save_checkpoint(ckpt_path, weights_only=False)
    outcome = run("export", "--ckpt_path", ckpt_path, "--out", path)
    return Exported(
        case, ckpt_path, path, outcome.out, outcome.err + outcome.warnings, sorted(p.name for p in folder.iterdir())
    )


def as_the_environment_takes_it(actions, space):
    if isinstance(space, spaces.Discrete):
        return actions + space.start
    if not isinstance(space, spaces.Box):
        return (actions + getattr(space, "start", 0)).astype(space.dtype)
    return np.clip(actions, space.low, space.high).astype(space.dtype)


@pytest.mark.parametrize("rows", [1, 2, 7])
def test_the_file_gives_what_the_policy_gives(exported, rows):
    policy, action_space = PPOPolicy(load_path=exported.ckpt_path), Drawn.ACTIONS[exported.case.actions]
    state = exported.initial_state(rows)
    for step in range(3):
        obs = draw(Drawn.OBSERVATIONS[exported.case.obs], rows, seed=step)
        actions, output = policy.act(obs, temperature=0, return_model_output=True)
        given = exported.run(obs, state)
        assert_close(given["value"], output.value.numpy())
        if not isinstance(action_space, spaces.Box):
            assert_close(given["logits"], output.logits.numpy())
            expected = {"action", "logits", "value"}
        else:
            assert_close(given["mean"], output.mean.numpy())
            assert_close(given["std"], output.logstd.detach().exp().expand_as(output.mean).numpy())
            expected = {"action", "mean", "std", "value"}
        wanted = as_the_environment_takes_it(actions.numpy(), action_space)
        if wanted.dtype.kind == "f":
            assert_close(given["action"], wanted)
        else:
            np.testing.assert_array_equal(given["action"], wanted)
        assert given["action"].dtype == wanted.dtype
        assert given.keys() == expected | {f"next_{name}" for name in state}
        state = {name: given[f"next_{name}"] for name in state}


def test_the_file_alone_plays_the_policys_episode(exported):
    kwargs = {"obs": exported.case.obs, "actions": exported.case.actions}
    by_policy = actions_of_policy(exported.ckpt_path, kwargs, seed=3)
    env = gymnasium.make("tests.tasks:Drawn-v0", **kwargs)
    (obs, _), state, by_file, ended = env.reset(seed=3), exported.initial_state(1), [], False
    while not ended:
        batch = (
            {key: np.asarray(part)[None] for key, part in obs.items()}
            if isinstance(obs, dict)
            else np.asarray(obs)[None]
        )
        given = exported.run(batch, state)
        by_file.append(given["action"][0])
        state = {name: given[f"next_{name}"] for name in state}
        obs, _, ended, _, _ = env.step(given["action"][0])
    assert len(by_file) == len(by_policy) == 8
    exact = np.issubdtype(env.action_space.dtype, np.integer)
    np.testing.assert_allclose(by_file, by_policy, rtol=0, atol=0 if exact else 1e-5)


def actions_of_policy(ckpt_path, kwargs, seed):
    """One greedy episode, as the simulator received it."""
    env, policy = GymnasiumEnv("tests.tasks:Drawn-v0", kwargs=kwargs).make([seed]), PPOPolicy(load_path=ckpt_path)
    with mock.patch.object(env.env, "step", wraps=env.env.step) as step:
        obs, ended = env.reset(), False
        while not ended:
            result = env.step(policy.act(obs, temperature=0).numpy())
            obs, ended = result.obs, result.terminated[0]
    return [call.args[0][0] for call in step.call_args_list]


def test_inputs_are_raw_observations_and_all_of_them(exported):
    space = Drawn.OBSERVATIONS[exported.case.obs]
    parts = (
        {SPECIAL_KEYS.get(key, key): part for key, part in space.items()}
        if isinstance(space, spaces.Dict)
        else {"obs": space}
    )
    inputs = {entry.name: entry for entry in exported.session.get_inputs() if not entry.name.startswith("state.")}
    inputs = {name: entry for name, entry in inputs.items() if (name, exported.case.obs) != ("state", "vector")}
    assert inputs.keys() == parts.keys()
    kinds = {"float32": "float", "float64": "double"}
    for name, part in parts.items():
        assert inputs[name].type == f"tensor({kinds.get(str(part.dtype), part.dtype)})"
        assert inputs[name].shape == ["batch", *part.shape]


def test_one_file_is_left_and_two_lines_are_said(exported):
    assert exported.left == ["policy.onnx", "run"]
    wrote, checked = exported.said.splitlines()
    assert wrote.startswith(f"Wrote {exported.path}: ")
    for entry in (*exported.session.get_inputs(), *exported.session.get_outputs()):
        assert f" {entry.name} " in wrote
    assert "onnxruntime" in checked
    assert exported.errors == ""


def test_the_file_says_what_it_is(exported):
    metadata = exported.metadata
    assert metadata["ppo_lightning_version"] == __version__
    assert metadata["env_steps"] == "16"
    for name, space in (
        ("observation_space", Drawn.OBSERVATIONS[exported.case.obs]),
        ("action_space", Drawn.ACTIONS[exported.case.actions]),
    ):
        stored = space_from_dict(json.loads(metadata[name], parse_constant=pytest.fail))
        assert space_to_dict(stored) == space_to_dict(space)
    assert ("initial_state" in metadata) == PPOPolicy(load_path=exported.ckpt_path).has_memory


def test_the_file_tells_nothing_of_this_machine(exported):
    content = exported.path.read_bytes()
    assert str(Path(__file__).parents[1]).encode() not in content
    assert b".py" not in content


class Own(nn.Module):
    """A distribution that is not the package's, without a name for its parameters."""

    def __init__(self, observation_space, action_space):
        super().__init__()
        self.layer = nn.Linear(4, 4)

    def forward(self, obs):
        return OwnOutput(self.layer(obs))


class OwnOutput:
    def __init__(self, scores):
        self.scores, self.value, self.distribution = scores, scores.sum(-1), self

    def mode(self):
        return self.scores.argmin(-1)


def test_a_distribution_of_ones_own_gives_action_and_value():
    network = save(Own, actions=Drawn.ACTIONS["started"])
    assert list(export_onnx("a.ckpt", "policy.onnx").outputs) == ["action", "value"]
    obs = draw(VECTOR, 9)
    (action,) = onnxruntime.InferenceSession("policy.onnx").run(["action"], {"obs": obs})
    np.testing.assert_array_equal(action, network(torch.from_numpy(obs)).mode().numpy() + 10)
