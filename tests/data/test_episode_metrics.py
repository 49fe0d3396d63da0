import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from ppo_lightning.data.episode_metrics import EpisodeMetrics
from ppo_lightning.data.episodes import Episode

# returns 1, 2, 6: mean 3, variance (4 + 1 + 9) / 3; base returns 2, 2, 8: mean 4, variance (4 + 4 + 16) / 3
EPISODES = [Episode(1.0, 5, 2.0, True), Episode(2.0, 7, 2.0, False), Episode(6.0, 3, 8.0, True)]


def computed(*parts, **settings):
    """The numbers after one ``update`` a part; a part is ``(episodes, action_steps)``."""
    metrics = EpisodeMetrics(**settings)
    for episodes, action_steps in parts:
        metrics.update(episodes, action_steps)
    return {name: float(value) for name, value in metrics.compute().items()}


def test_by_hand():
    assert computed((EPISODES, 6), action_id=2, reports_solved=True) == pytest.approx(
        {
            "episodes": 3,
            "steps": 15,
            "length_mean": 5,
            "length_min": 3,
            "length_max": 7,
            "return_mean": 3,
            "return_ci95": 1.96 * (14 / 3) ** 0.5 / 3**0.5,
            "base_return_mean": 4,
            "base_return_ci95": 1.96 * 8**0.5 / 3**0.5,
            "action_2_fraction": 6 / 15,
            "solved_fraction": 2 / 3,
        },
        abs=1e-12,
    )


def test_one_episode_has_no_interval():
    metrics = computed((EPISODES[:1], 0))
    assert (metrics["return_mean"], metrics["return_ci95"], metrics["base_return_ci95"]) == (1, 0, 0)


def test_large_returns_are_not_rounded():
    """float32 would take 2²⁴ + 1 for 2²⁴."""
    assert computed(([Episode(2.0**24 + 1, 2**24 + 1, 0.0)], 0))["return_mean"] == 2**24 + 1
    assert computed(([Episode(2.0**24 + 1, 2**24 + 1, 0.0)], 0))["steps"] == 2**24 + 1


def test_an_end_without_a_word_about_the_goal_is_not_solved():
    assert computed(([Episode(1.0, 1, 1.0, None), Episode(1.0, 1, 1.0, True)], 0), reports_solved=True)[
        "solved_fraction"
    ] == pytest.approx(1 / 2)


@pytest.mark.parametrize("action_id", [None, 0, 3])
@pytest.mark.parametrize("reports_solved", [False, True])
def test_the_names_are_those_of_the_numbers(action_id, reports_solved):
    settings = {"action_id": action_id, "reports_solved": reports_solved}
    assert sorted(EpisodeMetrics.names(**settings)) == sorted(computed((EPISODES, 0), **settings))


episodes = st.builds(
    lambda reward, length, cost, solved: Episode(reward, length, reward + cost, solved),
    st.floats(-1e3, 1e3),
    st.integers(1, 1000),
    st.floats(0, 10),
    st.booleans(),
)


@given(st.lists(st.tuples(st.lists(episodes, max_size=4), st.integers(0, 4)), min_size=1).filter(lambda p: p[0][0]))
def test_any_split_over_several_updates_gives_the_same(parts):
    settings = {"action_id": 1, "reports_solved": True}
    together = [episode for part, _ in parts for episode in part], sum(steps for _, steps in parts)
    assert computed(*parts, **settings) == pytest.approx(computed(together, **settings), abs=1e-9)


def test_reset_forgets():
    metrics = EpisodeMetrics(action_id=0)
    metrics.update(EPISODES, 5)
    metrics.reset()
    metrics.update(EPISODES[:1], 1)
    assert float(metrics.compute()["return_mean"]) == 1
    assert torch.equal(metrics.compute()["action_0_fraction"], torch.tensor(1 / 5, dtype=torch.float64))


def test_dropped_episodes_are_reported_only_where_there_are_any():
    metrics = EpisodeMetrics()
    metrics.update(EPISODES, dropped=0)
    assert "dropped_episodes" not in metrics.compute()
    metrics.update(EPISODES, dropped=2)
    metrics.update([], dropped=1)
    assert metrics.compute()["dropped_episodes"] == 3
    assert metrics.compute()["episodes"] == 6
