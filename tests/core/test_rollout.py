import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from tensordict import TensorDict, TensorDictBase

from ppo_lightning.core.rollout import (
    MemoryRollout,
    PPOBatch,
    Rollout,
    RolloutWriter,
    RowSelector,
    shuffled_minibatches,
    stack_steps,
)

T, N = 3, 2


def dict_obs(step):
    image = torch.full((N, 2, 2, 1), step, dtype=torch.uint8)
    return TensorDict({"image": image, "vector": torch.arange(N) + 10.0 * step}, batch_size=[N])


def filled_rollout():
    rollout = Rollout.allocate(T, dict_obs(0), torch.zeros(N, dtype=torch.int64), torch.zeros(N))
    writer = RolloutWriter(rollout)
    for step in range(T):
        writer.add(
            step, obs=dict_obs(step), actions=torch.tensor([2 * step, 2 * step + 1]), values=torch.ones(N) * step
        )
    return rollout


def batch_of(size):
    numbers = torch.arange(size, dtype=torch.float32)
    return PPOBatch(
        obs=numbers[:, None], actions=numbers.long(), log_probs=numbers, advantages=numbers, returns=numbers,
        values=numbers, batch_size=[size],
    )  # fmt: skip


def test_dict_observations_are_nested_and_keep_their_dtypes():
    rollout = filled_rollout()
    assert rollout.batch_size == (T, N)
    assert isinstance(rollout.obs, TensorDictBase)
    assert rollout.obs["image"].dtype == torch.uint8
    assert rollout.obs["image"].shape == (T, N, 2, 2, 1)
    assert rollout.obs["image"][:, 0, 0, 0, 0].tolist() == [0, 1, 2]
    assert rollout.obs["vector"].tolist() == [[0, 1], [10, 11], [20, 21]]
    assert rollout.actions.tolist() == [[0, 1], [2, 3], [4, 5]]
    assert rollout.actions.dtype == torch.int64
    assert rollout.values.tolist() == [[0, 0], [1, 1], [2, 2]]


def test_added_steps_are_copies():
    obs = torch.zeros(N, 1, dtype=torch.uint8)
    rollout = Rollout.allocate(T, obs, torch.zeros(N), torch.zeros(N))
    RolloutWriter(rollout).add(0, obs=obs)
    obs += 1  # a simulator that reuses its buffer
    assert rollout.obs[0].sum() == 0
    assert rollout.obs.dtype == torch.uint8


def test_flatten_keeps_valid_transitions_in_time_order():
    rollout = filled_rollout()
    rollout.valid = torch.tensor([[True, False], [True, True], [False, True]])
    flat = rollout.flatten()
    assert flat.batch_size == (4,)
    assert flat.actions.tolist() == [0, 2, 3, 5]
    assert flat.obs["vector"].tolist() == [0, 10, 11, 21]
    assert flat.obs["image"].dtype == torch.uint8


def test_flatten_keeps_everything_where_all_is_valid():
    rollout = filled_rollout()
    rollout.valid = torch.ones(T, N, dtype=torch.bool)
    assert rollout.flatten().actions.tolist() == [0, 1, 2, 3, 4, 5]


def test_a_memory_rollout_stores_states():
    state = TensorDict({"h": torch.zeros(N, 4)}, batch_size=[N])
    rollout = MemoryRollout.allocate(T, torch.zeros(N, 1), torch.zeros(N), torch.zeros(N), states=stack_steps(T, state))
    for step in range(T):
        RolloutWriter(rollout).add(step, states=TensorDict({"h": torch.full((N, 4), step)}, batch_size=[N]))
    assert rollout.states["h"][:, 0, 0].tolist() == [0, 1, 2]
    rollout.valid = torch.tensor([[True, False], [True, True], [False, True]])
    assert rollout.flatten().states["h"][:, 0].tolist() == [0, 1, 1, 2]


@given(st.integers(1, 40), st.integers(1, 8), st.integers(0, 2**31))
def test_an_epoch_takes_every_row_once_in_near_equal_parts(size, num_minibatches, seed):
    generator = torch.Generator().manual_seed(seed)
    parts = list(shuffled_minibatches(batch_of(size), min(num_minibatches, size), generator))
    sizes = [len(part) for part in parts]
    assert len(parts) == min(num_minibatches, size)
    assert max(sizes) - min(sizes) <= 1
    assert sorted(torch.cat([part.actions for part in parts]).tolist()) == list(range(size))
    for part in parts:  # rows stay together
        assert torch.equal(part.obs[:, 0], part.values)
        assert torch.equal(part.actions.float(), part.returns)


@given(st.integers(1, 40), st.integers(1, 12), st.integers(1, 3))
def test_generated_minibatches_cover_each_epoch_and_respect_their_size(size, minibatch_size, num_epochs):
    parts = list(batch_of(size).generate_minibatches(num_epochs, minibatch_size, torch.Generator().manual_seed(0)))
    per_epoch = -(-size // minibatch_size)
    assert len(parts) == num_epochs * per_epoch
    assert max(len(part) for part in parts) <= minibatch_size
    for epoch in range(num_epochs):
        rows = [part.actions for part in parts[epoch * per_epoch : (epoch + 1) * per_epoch]]
        assert sorted(torch.cat(rows).tolist()) == list(range(size))


def test_each_epoch_is_shuffled_anew_and_by_the_generator_alone():
    def orders():
        torch.rand(1)  # moves the global generator
        return [
            part.actions.tolist() for part in batch_of(20).generate_minibatches(2, 20, torch.Generator().manual_seed(5))
        ]

    first, second = orders()
    assert first != second
    assert first != list(range(20))
    assert [first, second] == orders()


def test_minibatches_of_dict_observations_stay_nested():
    rollout = filled_rollout()
    rollout.valid = torch.ones(T, N, dtype=torch.bool)
    flat = rollout.flatten()
    part = next(shuffled_minibatches(flat, 2, torch.Generator().manual_seed(0)))
    assert part.obs["image"].dtype == torch.uint8
    assert part.obs["image"].shape == (3, 2, 2, 1)
    with pytest.raises(KeyError):
        part.obs["absent"]


def test_rows_are_taken_where_the_numbers_lie():
    """As on a GPU, whose batches say no device of their own."""
    batch = batch_of(6).apply(lambda x: x.to("meta"))
    assert RowSelector(batch)(torch.tensor([1, 4])).log_probs.device.type == "meta"


def test_rows_of_nested_observations():
    obs = TensorDict(a=torch.arange(6), b=TensorDict(c=torch.arange(12).reshape(6, 2), batch_size=[6]), batch_size=[6])
    fields = {name: torch.arange(6.0) for name in ("actions", "log_probs", "advantages", "returns", "values")}
    rows = RowSelector(PPOBatch(obs=obs, **fields, batch_size=[6]))(torch.tensor([5, 0]))
    assert type(rows) is PPOBatch
    assert rows.batch_size == torch.Size([2])
    assert rows.obs["b", "c"].tolist() == [[10, 11], [0, 1]]
    assert rows.values.tolist() == [5, 0]
