"""Masks of legal actions, as observations tell them."""

import re

import numpy as np
import pytest
from gymnasium import spaces

from ppo_lightning.core.errors import ConfigurationError, TrainingError
from ppo_lightning.core.legal import LegalActions
from ppo_lightning.core.spaces import check_spaces, sample_rows, space_from_dict, space_to_dict

ONE, TWO = spaces.Discrete(4, start=2), spaces.MultiDiscrete([3, 2], start=[1, 0])
PLACE = spaces.Box(-1, 1, (3,), np.float32)
BITS = [spaces.MultiBinary(4), spaces.MultiBinary([4])]
BOXES = [spaces.Box(0, 1, (4,), dtype) for dtype in (np.int8, np.uint8, np.int64, bool)]


def with_mask(mask):
    return spaces.Dict(place=PLACE, action_mask=mask)


@pytest.mark.parametrize("mask", [*BITS, *BOXES], ids=str)
def test_masks_of_bits_are_taken_and_come_back_from_a_checkpoint(mask):
    space = with_mask(mask)
    check_spaces(space, ONE)
    assert space_from_dict(space_to_dict(space)) == space
    told = LegalActions.told_by(space, ONE)
    (drawn,) = told.masks(sample_rows(space, 5))
    assert drawn.shape == (5, 4)
    assert set(np.unique(drawn)) == {0, 1}


def test_the_mask_of_several_actions_is_that_of_all_components():
    check_spaces(with_mask(spaces.MultiBinary(5)), TWO)


@pytest.mark.parametrize(
    ("mask", "actions"),
    [
        (spaces.MultiBinary(3), ONE),
        (spaces.MultiBinary(6), TWO),
        (spaces.MultiBinary((2, 2)), ONE),
        (spaces.Box(0, 1, (4,), np.float32), ONE),
        (spaces.Box(0, 2, (4,), np.int8), ONE),
        (spaces.Box(-1, 1, (4,), np.int8), ONE),
        (spaces.Box(0, 1, (4, 1), np.int8), ONE),
        (spaces.Discrete(4), ONE),
        (spaces.Dict(a=spaces.MultiBinary(4)), ONE),
    ],
    ids=str,
)
def test_other_masks_are_refused(mask, actions):
    size = spaces.flatdim(actions)
    words = (
        rf"^The observation's action_mask is {re.escape(str(mask))}, .* MultiBinary\({size}\), or a Box .*{size} int"
    )
    with pytest.raises(ConfigurationError, match=words):
        check_spaces(with_mask(mask), actions)


@pytest.mark.parametrize("actions", [PLACE, spaces.MultiBinary(4)], ids=str)
def test_masks_of_other_actions_are_refused(actions):
    with pytest.raises(
        ConfigurationError, match=r"key action_mask, .* not for .*: give the key another name, or leave"
    ):
        check_spaces(with_mask(spaces.MultiBinary(4)), actions)


@pytest.mark.parametrize("space", [PLACE, spaces.Dict(inner=with_mask(spaces.MultiBinary(9)))], ids=str)
def test_only_the_key_at_the_top_is_a_mask(space):
    check_spaces(space, ONE)
    assert LegalActions.told_by(space, ONE) is None


def test_the_first_legal_actions_have_the_shape_of_actions():
    one, two, vector = (LegalActions(("action_mask",), space) for space in (ONE, TWO, spaces.MultiDiscrete([4])))
    obs = {"action_mask": np.array([[0, 0, 1, 1], [1, 0, 0, 0], [0, 0, 0, 0]], np.int8)}
    assert one.first(obs).tolist() == [2, 0, 0]
    assert vector.first(obs).tolist() == [[2], [0], [0]]
    assert two.first({"action_mask": np.array([[0, 1, 1, 0, 1]], bool)}).tolist() == [[1, 1]]


def test_an_observation_that_allows_nothing_is_named_if_it_is_acted_on():
    one, two = (LegalActions(("action_mask",), space) for space in (ONE, TWO))
    obs = {"action_mask": np.array([[1, 0, 0, 0], [0, 0, 0, 0], [0, 0, 0, 0]], np.int8)}
    one.check(obs, np.array([True, False, False]), "here")
    with pytest.raises(TrainingError, match=r"^The action_mask of environment 2 here allows no action, and one has "):
        one.check(obs, np.array([True, False, True]), "here")
    with pytest.raises(TrainingError, match="environment 0 there allows no action of component 1, and"):
        two.below("base_obs").check(
            {"base_obs": {"action_mask": np.array([[0, 1, 0, 0, 0]])}}, np.array([True]), "there"
        )
