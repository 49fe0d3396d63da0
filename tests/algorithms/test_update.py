import math
import statistics

import pytest
import torch

from ppo_lightning import TrainingError
from ppo_lightning.algorithms.update import UpdateStatistics

CLOCK = {"time/sps": 7.0, "time/seconds": 9.0}


def on_ranks(*fills):
    """What every rank reports, having filled its statistics by one of ``fills``."""
    ranks, sent, reports = [UpdateStatistics() for _ in fills], [], []
    for rank, fill in zip(ranks, fills):
        fill(rank)

    class Stop(Exception):
        pass

    def collect(x):
        sent.append(x)
        raise Stop

    for number, rank in enumerate(ranks):
        with pytest.raises(Stop):
            rank.report(100, {name: value + number for name, value in CLOCK.items()}, collect)
    for rank in ranks:
        reports.append(rank.report(100, CLOCK, lambda x: torch.stack(sent)))
    return reports


def minibatch(statistics_, *values, weight=1.0, ratio=1.0):
    numbers = {f"train/{name}": torch.tensor(value) for name, value in zip("ab", values)}
    statistics_.add_minibatch(torch.tensor([1.0, ratio]), numbers, weight)


def first(rank):
    rank.add_spread("x", torch.tensor([1.0, 2.0, 6.0]))
    rank.add_mean("m", torch.tensor([1.0]))
    rank.add_explained_variance("e", torch.tensor([2.0, 1.0]), torch.tensor([1.0, 2.0]))
    minibatch(rank, 1.0, 10.0, weight=0.5, ratio=1.25)
    minibatch(rank, 3.0, 30.0, weight=0.5, ratio=99.0)


def second(rank):
    rank.add_spread("x", torch.tensor([-4.0]))
    rank.add_mean("m", torch.tensor([0.0, 0.0, 1.0]))
    rank.add_explained_variance("e", torch.tensor([4.0, 3.0]), torch.tensor([3.0, 4.0]))
    minibatch(rank, 2.0, 20.0, weight=1.5, ratio=0.5)
    minibatch(rank, 4.0, 40.0, weight=1.5)


def test_every_number_is_of_all_ranks_together():
    one, other = on_ranks(first, second)
    assert one == other
    together = [1.0, 2.0, 6.0, -4.0]
    assert one == pytest.approx(
        {
            "train/a": ((1 * 0.5 + 2 * 1.5) / 2 + (3 * 0.5 + 4 * 1.5) / 2) / 2,
            "train/b": ((10 * 0.5 + 20 * 1.5) / 2 + (30 * 0.5 + 40 * 1.5) / 2) / 2,
            "x_mean": 1.25,
            "x_std": statistics.pstdev(together),
            "m": 0.5,
            "e": 1 - 1 / 1.25,  # of returns 1, 2, 3, 4 and errors 1, -1, 1, -1
            "train/first_ratio_error": 0.5,  # the worst of the first minibatch
            **CLOCK,  # the first rank's
        }
    )


@pytest.mark.parametrize(
    ("values", "explained"),
    [
        ([1.0, 2.0, 3.0, 4.0], 1.0),
        ([6.0, 7.0, 8.0, 9.0], 1.0),  # a constant offset does not matter
        ([7.0, 7.0, 7.0, 7.0], 0.0),
        ([2.0, 1.0, 4.0, 3.0], 0.2),  # errors -1, 1, -1, 1 have variance 1, the returns 1.25
    ],
)
def test_explained_variance_matches_numbers_computed_by_hand(values, explained):
    assert explained_variance(values, [1.0, 2.0, 3.0, 4.0]) == pytest.approx(explained)


def test_explained_variance_of_equal_returns_is_nan():
    assert math.isnan(explained_variance([1.0, 2.0], [3.0, 3.0]))


def test_explained_variance_refuses_unequal_shapes():
    with pytest.raises(ValueError, match=r"returns has shape \(3, 1\) and values \(3,\)"):
        UpdateStatistics().add_explained_variance("e", torch.zeros(3), torch.zeros(3, 1))


def explained_variance(values, returns):
    def fill(rank):
        rank.add_explained_variance("e", torch.tensor(values), torch.tensor(returns))
        minibatch(rank, 1.0, 1.0)

    return on_ranks(fill)[0]["e"]


@pytest.mark.parametrize("bad", [math.nan, math.inf, -math.inf])
def test_the_first_minibatch_that_is_not_finite_on_any_rank_is_named_on_all(bad):
    def fill(*rows):
        return lambda rank: [minibatch(rank, *row) for row in rows]

    good = fill((1.0, 1.0), (1.0, 1.0), (1.0, 1.0))
    late = fill((1.0, 1.0), (1.0, 1.0), (bad, 1.0))
    early = fill((1.0, 1.0), (1.0, bad), (bad, bad))
    for ranks, words in {
        (good, late): "^train/a became NaN or infinite in minibatch 2 of the update at 100 ",
        (late, early, good): "^train/b became NaN or infinite in minibatch 1 of the update at 100 ",
    }.items():
        with pytest.raises(TrainingError, match=words):
            on_ranks(*ranks)


def test_an_iteration_without_numbers_of_its_rollout_reports_the_others():
    assert set(on_ranks(lambda rank: minibatch(rank, 1.0, 2.0))[0]) == {
        *("train/a", "train/b", "train/first_ratio_error"),
        *CLOCK,
    }


# -- phases


def value_minibatch(rank, value, weight=1.0):
    rank.add_minibatch(None, {"train/value_loss": torch.tensor(value)}, weight)


def test_each_phase_has_means_of_its_own_numbers():
    def fill(rank):
        for value in (1.0, 2.0, 6.0):
            value_minibatch(rank, value)
        minibatch(rank, 10.0, 30.0, ratio=1.5)
        minibatch(rank, 20.0, 50.0, ratio=9.0)

    (report,) = on_ranks(fill)
    assert report == pytest.approx(
        {"train/value_loss": 3.0, "train/a": 15.0, "train/b": 40.0, "train/first_ratio_error": 0.5, **CLOCK}
    )


def test_means_of_phases_are_of_everybody_together():
    def fill(value, weight):
        def fill_rank(rank):
            value_minibatch(rank, value, weight)
            minibatch(rank, value, 10 * value, weight=weight)

        return fill_rank

    one, other = on_ranks(fill(1.0, 0.5), fill(3.0, 1.5))
    assert one == other
    assert (one["train/value_loss"], one["train/a"], one["train/b"]) == (2.5, 2.5, 25.0)


@pytest.mark.parametrize("bad", [math.nan, math.inf])
def test_a_number_that_is_not_finite_is_named_by_its_minibatch_of_the_whole_update(bad):
    def fill(*values):
        def fill_rank(rank):
            for index, value in enumerate(values):
                value_minibatch(rank, value) if index % 3 < 2 else minibatch(rank, value, 1.0)

        return fill_rank

    good = fill(1.0, 1.0, 1.0, 1.0, 1.0, 1.0)
    for ranks, words in {
        (fill(1.0, 1.0, bad, 1.0, 1.0, 1.0),): "^train/a became NaN or infinite in minibatch 2 of",
        (fill(1.0, 1.0, 1.0, 1.0, bad, bad),): "^train/value_loss became NaN or infinite in minibatch 4 of",
        (good, fill(1.0, 1.0, 1.0, 1.0, 1.0, bad)): "^train/a became NaN or infinite in minibatch 5 of",
        (fill(1.0, 1.0, 1.0, bad, 1.0, 1.0), fill(1.0, 1.0, bad, 1.0, 1.0, 1.0)): "^train/a .* in minibatch 2 of",
    }.items():
        with pytest.raises(TrainingError, match=words):
            on_ranks(*ranks)


def test_minibatches_that_were_dropped_are_left_out_of_the_means_of_their_phase():
    rank = UpdateStatistics()
    for value in (1.0, math.nan, 3.0):
        value_minibatch(rank, value)
    minibatch(rank, math.nan, 1.0)
    report = rank.report(100, CLOCK, lambda x: x.unsqueeze(0), bears_nan=True)
    assert report["train/value_loss"] == 2.0
    assert math.isnan(report["train/a"])
    assert report["train/b"] == 1.0
