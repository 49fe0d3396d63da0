"""What ranks tell each other, with the sending replaced."""

from types import SimpleNamespace

import torch

from ppo_lightning.core import ranks


def test_rows_are_joined_however_many_each_rank_has(monkeypatch):
    """Three ranks with three rows, none and one."""
    tables = [torch.arange(6.0).view(3, 2), torch.zeros(0, 2), torch.full((1, 2), 7.0)]
    sent = []

    def gather(trainer, x):
        sent.append(x)
        if x.ndim == 0:
            return torch.tensor([len(table) for table in tables])
        others = [torch.nn.functional.pad(table, (0, 0, 0, 3 - len(table)), value=9) for table in tables]
        assert x.shape == others[0].shape  # all_gather wants the same one of every rank
        return torch.stack(others)

    monkeypatch.setattr(ranks, "gather_over_ranks", gather)
    for rank, table in enumerate(tables):
        assert torch.equal(ranks.gather_rows_over_ranks(None, table), torch.cat(tables))
        assert torch.equal(sent[-1][: len(table)], tables[rank])


def test_one_rank_has_its_own():
    x = torch.arange(4)
    assert torch.equal(ranks.gather_rows_over_ranks(SimpleNamespace(world_size=1), x), x)
