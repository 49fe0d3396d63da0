"""LSTM and GRU cores: one step, whole sequences, and networks that have one."""

import functools

import pytest
import torch
from gymnasium import spaces
from hypothesis import given, settings
from hypothesis import strategies as st
from tensordict import TensorDict
from torch import nn

from ppo_lightning import (
    ActorCritic,
    ConfigurationError,
    CoordPPOModel,
    DAACModel,
    GRUCore,
    ImpalaCoordPPOModel,
    ImpalaPPOModel,
    LSTMCore,
    MLPEncoder,
    NatureCNN,
    RNDModel,
)
from ppo_lightning.models.memory import unroll
from ppo_lightning.models.outputs import initial_state, run_network

CORES = [LSTMCore, GRUCore]
VECTOR, IMAGE, DISCRETE = (
    spaces.Box(-1, 1, (3,)),
    spaces.Box(0, 255, (36, 36, 3), dtype="uint8"),
    spaces.Discrete(4),
)
COORDINATED = spaces.Dict(base_obs=VECTOR, novice_hidden=spaces.Box(-9, 9, (5,)), novice_logits=spaces.Box(-9, 9, (4,)))
COORDINATED_IMAGE = spaces.Dict(
    base_obs=IMAGE, novice_hidden=spaces.Box(-9, 9, (5,)), novice_logits=spaces.Box(-9, 9, (4,))
)
TWO = spaces.Discrete(2)


@pytest.mark.parametrize("num_layers", [1, 2])
@pytest.mark.parametrize(("core", "cell"), [(LSTMCore, nn.LSTMCell), (GRUCore, nn.GRUCell)])
def test_a_step_is_that_of_pytorchs_cells(core, cell, num_layers):
    torch.manual_seed(0)
    own = core(5, 7, num_layers).double()
    x, state = torch.randn(3, 5).double(), torch.randn(3, *own.state_shape).double()
    features, after = own.step(x, state)
    for layer, weights in enumerate(own.layers.all_weights):
        one = cell(x.shape[1], 7).double()
        for parameter, value in zip(one.parameters(), weights):
            parameter.data = value
        vectors = [state[:, vector, layer] for vector in range(core.VECTORS)]
        outs = one(x, tuple(vectors)) if core is LSTMCore else (one(x, vectors[0]),)
        for vector, out in enumerate(outs):
            torch.testing.assert_close(after[:, vector, layer], out, atol=1e-14, rtol=0)
        x = outs[0]
    torch.testing.assert_close(features, x, atol=1e-14, rtol=0)


def by_steps(core, features, state, starts):
    """One environment and one step at a time."""
    rows = []
    for env, own in enumerate(state.split(1)):
        for step in range(starts.shape[1]):
            if starts[env, step]:
                own = core.initial_state(1)
            out, own = core.step(features[env : env + 1, step], own)
            rows.append(out)
    return torch.cat(rows).reshape(*starts.shape, -1)


@settings(deadline=None, max_examples=40)
@given(
    st.sampled_from(CORES),
    st.integers(1, 2),
    st.integers(1, 4),
    st.integers(1, 17),
    st.floats(0, 1),
    st.integers(0, 99),
)
def test_sequences_are_their_steps_wherever_episodes_begin(core, num_layers, num_envs, num_steps, share, seed):
    torch.manual_seed(seed)
    core = core(3, 4, num_layers).double()
    features = torch.randn(num_envs, num_steps, 3).double().requires_grad_()
    state = torch.randn(num_envs, *core.state_shape).double().requires_grad_()
    starts = torch.rand(num_envs, num_steps) < share
    weight = torch.randn(num_envs, num_steps, 4).double()
    results = []
    for run in (core.sequences, functools.partial(by_steps, core)):
        out = run(features, state, starts)
        inputs = [features, state, *core.parameters()]
        grads = torch.autograd.grad((out * weight).sum(), inputs, allow_unused=True, materialize_grads=True)
        results.append([out, *grads])
    for fast, slow in zip(*results):
        torch.testing.assert_close(fast, slow, atol=1e-12, rtol=0)


def test_nothing_passes_an_episodes_start():
    core = LSTMCore(3, 4)
    features = torch.randn(1, 6, 3, requires_grad=True)
    starts = torch.tensor([[False, False, False, True, False, False]])
    core.sequences(features, torch.randn(1, *core.state_shape), starts)[0, 3:].sum().backward()
    assert (features.grad[0, :3] == 0).all()
    assert (features.grad[0, 3:] != 0).any(-1).all()


@pytest.mark.parametrize("core", CORES)
def test_orthogonal_weights_and_no_biases_but_of_the_gate_that_keeps(core):
    core = core(6, 4, num_layers=2)
    for name, parameter in core.layers.named_parameters():
        if "bias" in name:
            gates = parameter.reshape(-1, 4).tolist()  # of an LSTM i, f, g, o; of a GRU r, z, n
            kept = float(name.startswith("bias_ih"))
            assert gates == [[0.0] * 4, [kept] * 4, *[[0.0] * 4] * (len(gates) - 2)]
        else:
            tall = parameter if parameter.shape[0] >= parameter.shape[1] else parameter.T
            torch.testing.assert_close(tall.T @ tall, torch.eye(tall.shape[1]), atol=1e-5, rtol=0)


@pytest.mark.parametrize(("span", "least", "most"), [(None, 0.7, 0.75), (3, 0.5, 0.67), (100, 0.9, 1.0)])
@pytest.mark.parametrize("core", CORES)
def test_a_new_core_keeps_its_memory_for_about_its_span(core, span, least, most):
    core = core(3, 64, span=span)
    with torch.no_grad():
        for name, parameter in core.layers.named_parameters():
            if "weight" in name:
                parameter.zero_()  # nothing comes in, so that what is left was kept
        _, after = core.step(torch.zeros(1, 3), torch.ones(1, *core.state_shape))
    kept = after[0, -1].flatten()  # an LSTM's cell, a GRU's only vector
    assert least < kept.median() < most
    # of a unit that remembers for k steps (k - 1) / k
    assert span is None or (kept.min() > 0.49 and kept.max() < 1 - 1 / span)


@pytest.mark.parametrize(("flag", "value"), [("hidden_dim", 0), ("hidden_dim", -1), ("num_layers", 0), ("span", 2)])
def test_sizes_that_mean_nothing_are_refused(flag, value):
    with pytest.raises(
        ConfigurationError, match=rf"^--model\.network\.core\.{flag} must be at least [13], not {value}"
    ):
        LSTMCore(3, **{flag: value})


def nets(core):
    """Every network that takes a core, with its spaces."""
    vector, mlp = (VECTOR, DISCRETE), functools.partial(MLPEncoder, hidden_sizes=[6])
    return {
        "separate": (functools.partial(ActorCritic, encoder=mlp, core=core), *vector),
        "shared": (functools.partial(ActorCritic, encoder=mlp, shared=True, core=core), *vector),
        "continuous": (functools.partial(ActorCritic, encoder=mlp, core=core), VECTOR, spaces.Box(-1, 1, (2,))),
        "image": (
            functools.partial(ActorCritic, encoder=functools.partial(NatureCNN, hidden_dim=8), core=core),
            IMAGE,
            DISCRETE,
        ),
        "ImpalaPPOModel": (functools.partial(ImpalaPPOModel, channels=(4,), hidden_dim=8, core=core), IMAGE, DISCRETE),
        "RNDModel": (functools.partial(RNDModel, encoder=mlp, core=core), *vector),
        "DAACModel": (functools.partial(DAACModel, encoder=mlp, core=core), *vector),
        "CoordPPOModel": (
            functools.partial(CoordPPOModel, encoder=mlp, feature_type="obs_hidden_dist", core=core),
            COORDINATED,
            TWO,
        ),
        "CoordPPOModel without obs": (
            functools.partial(CoordPPOModel, feature_type="hidden_dist", core=core),
            COORDINATED,
            TWO,
        ),
        "ImpalaCoordPPOModel": (
            functools.partial(ImpalaCoordPPOModel, channels=(4,), hidden_dim=8, core=core),
            COORDINATED_IMAGE,
            TWO,
        ),
    }


def observations(space, *shape):
    """``(*shape, *)`` of a space, nested as it is."""
    if isinstance(space, spaces.Dict):
        return TensorDict({key: observations(part, *shape) for key, part in space.items()}, batch_size=shape)
    if space.dtype == "uint8":
        return torch.randint(0, 255, (*shape, *space.shape), dtype=torch.uint8)
    return torch.randn(*shape, *space.shape)


@pytest.mark.parametrize("core", [functools.partial(LSTMCore, hidden_dim=5), functools.partial(GRUCore, hidden_dim=5)])
@pytest.mark.parametrize("name", nets(None))
def test_every_network_remembers_and_unrolls_as_it_steps(core, name):
    torch.manual_seed(0)
    build, obs_space, action_space = nets(core)[name]
    network = build(obs_space, action_space)
    assert network.hidden_dim == 5
    obs, starts = observations(obs_space, 3, 4), torch.rand(3, 4) < 0.4
    state = torch.randn_like(initial_state(network, 3))
    fast = unroll(network, obs, state, starts)
    rows = []
    for step in range(4):
        state = torch.where(starts[:, step].reshape(-1, *[1] * (state.dim() - 1)), initial_state(network, 3), state)
        output, after = run_network(network, obs[:, step], state)
        assert not torch.equal(after, state)
        state = after
        rows.append(output)
    for field in ("value", "hidden", "mean" if name == "continuous" else "logits"):
        slow = torch.stack([getattr(output, field) for output in rows], dim=1).flatten(0, 1)
        torch.testing.assert_close(getattr(fast, field), slow, atol=1e-5, rtol=0)


@pytest.mark.parametrize("name", nets(None))
def test_without_a_core_there_is_no_memory(name):
    build, obs_space, action_space = nets(None)[name]
    network = build(obs_space, action_space)
    assert initial_state(network, 2) is None
    output, state = run_network(network, observations(obs_space, 2))
    assert output.value.shape == (2,)
    assert state is None


def test_a_network_that_is_given_no_memory_begins_anew():
    network = ActorCritic(VECTOR, DISCRETE, core=LSTMCore)
    obs = torch.randn(2, 3)
    output, after = network(obs.numpy())
    same, _ = network(obs, network.initial_state(2))
    torch.testing.assert_close(output.logits, same.logits)
    assert after.shape == (2, 2, 2, 1, 128)


def test_actor_and_critic_remember_by_themselves():
    network = ActorCritic(VECTOR, DISCRETE, core=LSTMCore)
    obs, state = torch.randn(2, 3), torch.randn(2, 2, 2, 1, 128)
    output, _ = network(obs, state)
    other = state.clone()
    other[:, 1] += 1
    changed, _ = network(obs, other)
    assert torch.equal(changed.logits, output.logits)
    assert not torch.equal(changed.value, output.value)
    critic = {id(parameter) for parameter in network.critic_parameters()}
    assert {id(parameter) for parameter in network.critic_core.parameters()} < critic
    assert not {id(parameter) for parameter in network.core.parameters()} & critic


class Louder(ActorCritic):
    """Changes the steps and not ``unroll``."""

    def forward(self, obs, state=None):
        output, state = super().forward(obs, state)
        output.value = 2 * output.value
        return output, state


def test_a_subclass_that_changes_the_steps_is_unrolled_by_them():
    network = Louder(VECTOR, DISCRETE, core=LSTMCore)
    obs, starts, state = torch.randn(2, 3, 3), torch.zeros(2, 3).bool(), network.initial_state(2)
    torch.testing.assert_close(
        unroll(network, obs, state, starts).value, 2 * network.unroll(obs, state, starts).value, atol=1e-6, rtol=0
    )


@pytest.mark.parametrize("half", ["policy", "values"])
def test_a_half_of_daac_is_that_of_the_whole(half):
    torch.manual_seed(0)
    network = DAACModel(VECTOR, DISCRETE, core=GRUCore)
    obs, starts, state = torch.randn(3, 4, 3), torch.rand(3, 4) < 0.4, torch.randn(3, 2, 1, 1, 128)
    whole = network.unroll(obs, state, starts)
    alone = getattr(network, half)(obs, state, starts)
    if half == "policy":
        torch.testing.assert_close(alone.logits, whole.logits)
        torch.testing.assert_close(alone.hidden, whole.hidden)
    else:
        torch.testing.assert_close(alone, whole.value)


def test_the_core_runs_in_full_precision():
    network = ActorCritic(VECTOR, DISCRETE, core=LSTMCore)
    with torch.autocast("cpu", torch.bfloat16):
        output, after = network(torch.randn(2, 3), network.initial_state(2))
    assert (output.value.dtype, after.dtype) == (torch.float32, torch.float32)
