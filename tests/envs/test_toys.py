import gymnasium
import numpy as np
import pytest

from ppo_lightning.core.errors import ConfigurationError
from ppo_lightning.envs.toys import Chain, Doors


def doors_of(obs, kind):
    """The open doors that earn, and those that don't."""
    open_doors = np.flatnonzero(obs["action_mask"])
    is_right = (open_doors % 2 == 0) == (kind > 0)
    return open_doors[is_right], open_doors[~is_right]


def test_an_episode_of_right_doors_earns_one_a_room():
    env = gymnasium.make("ppo_lightning.envs.toys:Doors-v0", length=6, num_doors=10, num_open=4)
    kinds = set()
    for seed in range(10):
        obs, _ = env.reset(seed=seed)
        kind = float(obs["obs"][0])
        kinds.add(kind)
        for room in range(6):
            assert env.observation_space.contains(obs)
            right, wrong = doors_of(obs, kind)
            assert (len(right), len(wrong)) == (2, 2)
            obs, reward, terminated, truncated, _ = env.step(right[0])
            assert (reward, terminated, truncated) == (1.0, room == 5, False)
            assert obs["obs"][0] == kind
    assert kinds == {-1.0, 1.0}


def test_wrong_doors_earn_nothing_and_closed_ones_end_the_episode():
    env = Doors()
    obs, _ = env.reset(seed=1)
    obs, reward, terminated, _, _ = env.step(doors_of(obs, obs["obs"][0])[1][0])
    assert (reward, terminated) == (0.0, False)
    closed = int(np.flatnonzero(obs["action_mask"] == 0)[0])
    _, reward, terminated, _, _ = env.step(closed)
    assert (reward, terminated) == (0.0, True)


def test_the_hint_may_be_shown_in_the_first_room_alone():
    env = Doors(hint="first", length=4)
    obs, _ = env.reset(seed=1)
    assert obs["obs"][0] in (-1, 1)
    for _ in range(3):
        obs, *_ = env.step(int(np.flatnonzero(obs["action_mask"])[0]))
        assert obs["obs"][0] == 0


def test_the_doors_that_are_open_are_a_function_of_the_seed_and_change():
    rooms = [Doors().reset(seed=seed)[0]["action_mask"] for seed in (1, 1, 2)]
    np.testing.assert_array_equal(rooms[0], rooms[1])
    assert (rooms[0] != rooms[2]).any()


@pytest.mark.parametrize(
    ("settings", "words"),
    [
        ({"num_doors": 5}, "num_doors=5 and num_open=4 must be even"),
        ({"num_open": 3}, "num_open=3 must be even"),
        ({"num_open": 18}, "num_open=18 must be even"),
        ({"num_open": 0}, "num_open=0 must be even"),
        ({"length": 0}, r"kwargs\.length must be at least 1, not 0"),
        ({"hint": "frist"}, "hint=frist is not known: choose from always, first"),
    ],
)
def test_rooms_that_cannot_be_are_refused(settings, words):
    with pytest.raises(ConfigurationError, match=words):
        Doors(**settings)


def test_a_chain_is_walked_by_its_right_actions_and_earns_at_its_end_alone():
    env = gymnasium.make("ppo_lightning.envs.toys:Chain-v0", length=3, num_actions=5, layout=2)
    right = env.unwrapped.leads_on.tolist()
    obs, _ = env.reset(seed=1)
    for place, action in enumerate(right):
        assert env.observation_space.contains(obs)
        assert obs.tolist() == [place == 0, place == 1, place == 2, 0]
        obs, reward, terminated, truncated, _ = env.step(action)
        assert (reward, terminated, truncated) == (float(place == 2), place == 2, False)
    assert obs.tolist() == [0, 0, 0, 1]


def test_a_wrong_action_ends_an_episode_with_nothing():
    env = Chain(length=3)
    env.reset()
    env.step(env.leads_on[0])
    obs, reward, terminated, truncated, _ = env.step((env.leads_on[1] + 1) % 4)
    assert (obs.any(), reward, terminated, truncated) == (False, 0.0, True, False)
    assert env.reset()[0].tolist() == [1, 0, 0, 0]


def test_a_chain_is_the_same_in_all_environments_of_one_layout():
    chains = [Chain(layout=layout).leads_on.tolist() for layout in (0, 0, 1)]
    assert chains[0] == chains[1] != chains[2]


@pytest.mark.parametrize(("name", "value"), [("length", 0), ("num_actions", 1), ("layout", -1)])
def test_a_chain_that_cannot_be_is_refused(name, value):
    with pytest.raises(ConfigurationError, match=rf"--data\.env\.kwargs\.{name} must be at least"):
        Chain(**{name: value})
