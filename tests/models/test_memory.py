import pytest
import torch
from tensordict import TensorDict
from torch import nn

from ppo_lightning.models import GaussianModelOutput, MultiBinaryModelOutput, MultiDiscreteModelOutput, PPOModelOutput
from ppo_lightning.models.memory import take_rows, unroll

N, T, H = 3, 5, 4
STARTS = torch.tensor(
    [[False, False, True, False, False], [True, False, False, False, True], [False, False, False, False, False]]
)


class Recurrent(nn.Module):
    """A GRU whose memory starts at a learned value; ``nested`` keeps it in a TensorDict beside a counter."""

    def __init__(self, nested=False, continuous=False):
        super().__init__()
        self.cell, self.head = nn.GRUCell(2, H), nn.Linear(H, 3)
        self.start = nn.Parameter(torch.randn(H))
        self.logstd = nn.Parameter(torch.zeros(2))
        self.nested, self.continuous = nested, continuous

    def initial_state(self, num_envs):
        hidden = self.start.expand(num_envs, H)
        if not self.nested:
            return hidden
        return TensorDict({"h": hidden, "age": torch.full((num_envs,), 100)}, batch_size=[num_envs])

    def forward(self, obs, state):
        obs = obs["x"] if not isinstance(obs, torch.Tensor) else obs
        hidden = self.cell(obs, state["h"] if self.nested else state)
        out = self.head(hidden)
        if self.continuous:
            output = GaussianModelOutput(mean=out[:, :2], logstd=self.logstd, value=out[:, 2], hidden=hidden)
        else:
            value = out[:, 2] + state["age"] if self.nested else out[:, 2]
            output = PPOModelOutput(logits=out[:, :2], value=value, hidden=hidden)
        after = TensorDict({"h": hidden, "age": state["age"] + 1}, batch_size=[len(obs)]) if self.nested else hidden
        return output, after


def by_hand(network, obs, state):
    """One environment and one step at a time."""
    rows = []
    for env in range(N):
        own = state[env : env + 1]
        for step in range(T):
            if STARTS[env, step]:
                own = network.initial_state(1)
            output, own = network(obs[env : env + 1, step], own)
            rows.append(output)
    return rows


@pytest.mark.parametrize("nested", [False, True])
def test_unroll_equals_a_loop_over_environments_and_steps(nested):
    network = Recurrent(nested).double()
    obs, hidden = torch.randn(N, T, 2, dtype=torch.float64), torch.randn(N, H, dtype=torch.float64)
    state = TensorDict({"h": hidden, "age": torch.tensor([5, 6, 7])}, batch_size=[N]) if nested else hidden
    output = unroll(network, obs, state, STARTS)
    expected = by_hand(network, obs, state)
    assert output.value.shape == (N * T,)
    for name in ("logits", "value", "hidden"):
        rows = torch.cat([getattr(row, name) for row in expected])
        torch.testing.assert_close(getattr(output, name), rows, rtol=1e-12, atol=1e-12)


def test_unroll_takes_dict_observations():
    network = Recurrent()
    obs, state = torch.randn(N, T, 2), torch.randn(N, H)
    plain = unroll(network, obs, state, STARTS)
    nested = unroll(network, TensorDict({"x": obs}, batch_size=[N, T]), state, STARTS)
    assert torch.equal(nested.value, plain.value)


def test_gradients_flow_back_to_the_episode_start_and_not_beyond():
    network = Recurrent()
    obs, state = torch.randn(N, T, 2, requires_grad=True), torch.randn(N, H, requires_grad=True)
    value = unroll(network, obs, state, STARTS).value.view(N, T)
    value[0, 3].backward()  # environment 0 started an episode at step 2
    moved = obs.grad.abs().sum(-1) > 0
    assert moved.tolist() == [[False, False, True, True, False], [False] * T, [False] * T]
    assert not state.grad.any()
    assert network.start.grad.abs().sum() > 0


def test_taking_rows_leaves_a_common_logstd_alone():
    rows = torch.tensor([True, False])  # as many rows as the action has dimensions
    common = GaussianModelOutput(torch.ones(2, 2), torch.zeros(2), torch.ones(2), torch.ones(2, 3))
    own = GaussianModelOutput(torch.ones(2, 2), torch.zeros(2, 2), torch.ones(2), torch.ones(2, 3))
    assert take_rows(common, rows).logstd.shape == (2,)
    assert take_rows(own, rows).logstd.shape == (1, 2)
    assert take_rows(common, rows).mean.shape == (1, 2)


@pytest.mark.parametrize("num_steps", [1, T])
@pytest.mark.parametrize("num_envs", [2, 3])
def test_a_common_logstd_stays_common(num_envs, num_steps):
    # two environments and two action dimensions: a shape alone can't tell (D,) from (N,)
    network = Recurrent(continuous=True)
    obs, starts = torch.randn(num_envs, num_steps, 2), torch.zeros(num_envs, num_steps, dtype=torch.bool)
    output = unroll(network, obs, torch.zeros(num_envs, H), starts)
    assert torch.equal(output.logstd, network.logstd)
    assert output.distribution.log_prob(torch.zeros(num_envs * num_steps, 2)).shape == (num_envs * num_steps,)


class OfSeveral(Recurrent):
    """Two discrete actions, of two and one, or one yes-or-no choice of each."""

    def __init__(self, kind):
        super().__init__()
        self.kind = kind

    def forward(self, obs, state):
        output, state = super().forward(obs, state)
        if self.kind == "binary":
            return MultiBinaryModelOutput(output.logits, output.value, output.hidden), state
        logits = torch.cat([output.logits, output.value[:, None]], dim=1)
        return MultiDiscreteModelOutput(logits, output.value, output.hidden, (2, 1)), state


@pytest.mark.parametrize("kind", ["several", "binary"])
@pytest.mark.parametrize("num_envs", [2, 3])
def test_what_is_no_tensor_of_an_output_belongs_to_all_rows(kind, num_envs):
    network = OfSeveral(kind)
    obs, starts = torch.randn(num_envs, T, 2), torch.zeros(num_envs, T, dtype=torch.bool)
    output = unroll(network, obs, torch.zeros(num_envs, H), starts)
    rows = torch.arange(num_envs * T) % 3 == 0
    actions = torch.zeros(num_envs * T, 2, dtype=torch.int64)
    log_probs = output.distribution.log_prob(actions)
    assert log_probs.shape == (num_envs * T,)
    taken = take_rows(output, rows)
    assert torch.equal(taken.distribution.log_prob(actions[rows]), log_probs[rows])
    assert type(taken) is type(output)


class ClampedStd(Recurrent):
    def forward(self, obs, state):
        output, state = super().forward(obs, state)
        output.logstd = output.logstd.clamp(-5, 2)  # a new tensor at each step, common to all rows
        return output, state


@pytest.mark.parametrize("num_envs", [2, 3])
def test_a_common_logstd_that_is_computed_at_each_step_stays_common(num_envs):
    network = ClampedStd(continuous=True)
    obs, starts = torch.randn(num_envs, T, 2), torch.zeros(num_envs, T, dtype=torch.bool)
    output = unroll(network, obs, torch.zeros(num_envs, H), starts)
    assert output.distribution.log_prob(torch.zeros(num_envs * T, 2)).shape == (num_envs * T,)
