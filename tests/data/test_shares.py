import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from ppo_lightning import ConfigurationError
from ppo_lightning.core.agent import Phase
from ppo_lightning.data.collect import Collector
from ppo_lightning.data.dataset import RolloutDataset
from ppo_lightning.data.seeding import Streams
from ppo_lightning.data.shares import rows_of_shares, shares_of_a_rank
from tests.data.agents import ScriptedAgent
from tests.runs import fit, make_data
from tests.toy import make_toy

SIZES = {"num_envs": 8, "num_steps": 4, "num_minibatches": 4}


@pytest.mark.parametrize(("shares", "ranks", "each"), [(None, 1, 1), (None, 3, 1), (4, 1, 4), (4, 2, 2), (2, 2, 1)])
def test_shares_are_divided_between_ranks(shares, ranks, each):
    assert shares_of_a_rank(shares, ranks, **SIZES) == each


@pytest.mark.parametrize(
    ("shares", "changed", "words"),
    [
        (3, {"world_size": 2}, "minibatch_shares=3 cannot be divided between 2 ranks"),
        (6, {"world_size": 2}, "3 of each rank, into which its --data.num_envs=8"),
        (8, {"num_minibatches": 3}, "1 environments × --data.num_steps=4 = 4 transitions"),
        (None, {"num_minibatches": 3}, "num_envs=8 × --data.num_steps=4 = 32 transitions cannot be divided"),
        (
            None,
            {"num_minibatches": 16, "sequences": 1},
            "num_envs=8 cannot be divided into --data.num_minibatches=16",
        ),
        (4, {"sequences": 1}, "2 environments cannot be divided into --data.num_minibatches=4"),
    ],
)
def test_what_cannot_be_divided_is_refused(shares, changed, words):
    with pytest.raises(ConfigurationError, match=words):
        shares_of_a_rank(shares, **({"world_size": 1} | SIZES | changed))


def test_the_data_module_refuses_before_any_work():
    with pytest.raises(ConfigurationError, match="minibatch_shares=3 are 3 of each rank"):
        fit(data=make_data(minibatch_shares=3))


@given(st.integers(1, 4), st.integers(1, 3), st.integers(1, 5), st.data())
def test_rows_of_shares_are_those_of_their_environments(num_shares, envs, num_steps, data):
    num_envs = num_shares * envs
    flags = st.lists(st.booleans(), min_size=num_envs * num_steps, max_size=num_envs * num_steps)
    valid = torch.tensor(data.draw(flags)).view(num_steps, num_envs)
    env_of_row = torch.arange(num_envs).repeat(num_steps, 1)[valid]
    for share, rows in enumerate(rows_of_shares(valid, sequences=None, num_shares=num_shares)):
        own = [row for row, env in enumerate(env_of_row.tolist()) if env // envs == share]
        assert rows.tolist() == own
    by_env = rows_of_shares(valid, sequences=1, num_shares=num_shares)
    assert [rows.tolist() for rows in by_env] == torch.arange(num_envs).view(num_shares, envs).tolist()


def batches(seeds, streams, num_shares):
    dataset = RolloutDataset(
        ScriptedAgent(),
        Collector(make_toy(seeds), 6),
        [Phase("update", 3)],
        2,
        streams,
        lambda: 5,
        lambda: None,
        num_shares,
    )
    return [[tuple(row) for row in batch.obs.tolist()] for batch in dataset]


def test_a_minibatch_of_two_shares_is_that_of_two_ranks_together():
    together = batches([0, 1, 2, 3], Streams(1, 0, 4), num_shares=2)
    first = batches([0, 1], Streams(1, 0, 2), num_shares=1)
    second = batches([2, 3], Streams(1, 2, 2), num_shares=1)
    assert together == [one + other for one, other in zip(first, second)]
    assert together != batches([0, 1, 2, 3], Streams(1, 0, 4), num_shares=1)
