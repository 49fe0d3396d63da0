import io

import numpy as np
import pytest
import torch
from gymnasium import spaces
from hypothesis import given
from hypothesis import strategies as st

from ppo_lightning.core.errors import ConfigurationError
from ppo_lightning.core.spaces import check_spaces, space_from_dict, space_to_dict

SHAPES = st.lists(st.integers(1, 3), max_size=3).map(tuple)


@st.composite
def boxes(draw):
    dtype = draw(st.sampled_from([np.float32, np.float64, np.uint8, np.int64, np.int8]))
    shape = draw(SHAPES)
    if np.issubdtype(dtype, np.integer):
        info = np.iinfo(dtype)
        low, high = st.integers(info.min, info.min + 100), st.integers(info.max - 100, info.max)
    else:
        low = st.one_of(st.just(-np.inf), st.floats(-100, 0, width=32))
        high = st.one_of(st.just(np.inf), st.floats(1, 100, width=32))
    size = int(np.prod(shape))
    bounds = [
        draw(st.one_of(st.lists(s, min_size=size, max_size=size), s.map(lambda x: [x] * size))) for s in (low, high)
    ]
    low, high = (np.array(bound, dtype=dtype).reshape(shape) for bound in bounds)
    return spaces.Box(low, high, shape=shape, dtype=dtype)


discretes = st.builds(lambda n, start: spaces.Discrete(n, start=start), st.integers(1, 50), st.integers(-9, 9))


@st.composite
def multi_discretes(draw):
    dtype, shape = draw(st.sampled_from([np.int64, np.int32, np.int8, np.uint8])), draw(SHAPES.filter(len))
    size = int(np.prod(shape))
    low = 0 if dtype is np.uint8 else -9
    nvec, start = (
        np.array(draw(st.lists(st.integers(*ends), min_size=size, max_size=size))).reshape(shape)
        for ends in ((1, 50), (low, 9))
    )
    return spaces.MultiDiscrete(nvec, dtype=dtype, start=start)


simple_spaces = st.one_of(boxes(), discretes, SHAPES.filter(len).map(spaces.MultiBinary))
dicts = st.dictionaries(st.text("abc", min_size=1, max_size=2), simple_spaces, min_size=1, max_size=3).map(
    lambda parts: spaces.Dict(list(parts.items()))  # a list keeps the drawn order
)


def through_a_file(plain):
    buffer = io.BytesIO()
    torch.save(plain, buffer)
    buffer.seek(0)
    return torch.load(buffer, weights_only=True)


@given(st.one_of(simple_spaces, dicts, multi_discretes()))
def test_a_space_survives_a_file_that_loads_weights_only(space):
    rebuilt = space_from_dict(through_a_file(space_to_dict(space)))
    assert rebuilt == space
    assert rebuilt.dtype == space.dtype
    assert rebuilt.shape == space.shape


@pytest.mark.parametrize("keys", [["pos", "goal"], ["goal", "pos"]])
def test_dict_keys_keep_their_order(keys):
    # encoders concatenate the keys in this order: another order is another network with the same weights
    space = spaces.Dict([(key, spaces.Discrete(2)) for key in keys])
    assert list(space) == keys
    assert list(space_from_dict(through_a_file(space_to_dict(space)))) == keys


@pytest.mark.parametrize("n", [4, [4], [2, 3], np.array([2, 3])])
def test_multi_binary_keeps_its_shape(n):
    space = spaces.MultiBinary(n)
    rebuilt = space_from_dict(through_a_file(space_to_dict(space)))
    assert rebuilt.shape == space.shape
    assert rebuilt == space  # a policy refuses environments of other spaces


def test_multi_discrete_is_stored_as_numbers():
    space = spaces.MultiDiscrete([3, 2], dtype=np.int32, start=[1, -4])
    assert space_to_dict(space) == {"type": "MultiDiscrete", "nvec": [3, 2], "start": [1, -4], "dtype": "int32"}


def test_bounds_that_are_the_same_everywhere_are_stored_once():
    image = space_to_dict(spaces.Box(0, 255, (64, 64, 3), np.uint8))
    assert image == {"type": "Box", "low": 0, "high": 255, "shape": [64, 64, 3], "dtype": "uint8"}


@pytest.mark.parametrize("space", [spaces.Text(3), spaces.Tuple((spaces.Discrete(2),))])
def test_other_spaces_cannot_be_stored(space):
    with pytest.raises(ConfigurationError, match="cannot be stored"):
        space_to_dict(space)


def test_an_unknown_type_in_a_checkpoint_is_named():
    with pytest.raises(ConfigurationError, match="'Graph' in the checkpoint is not known"):
        space_from_dict({"type": "Graph"})


BOX, DISCRETE = spaces.Box(-1, 1, (2,)), spaces.Discrete(3)


@pytest.mark.parametrize(
    "observation_space",
    [BOX, DISCRETE, spaces.MultiBinary(3), spaces.Box(0, 1, (2, 2)), spaces.Dict(a=BOX, b=DISCRETE)],
)
@pytest.mark.parametrize(
    "action_space",
    [
        BOX,
        DISCRETE,
        spaces.Discrete(3, start=2),
        spaces.MultiDiscrete([2, 2]),
        spaces.MultiDiscrete([3, 1, 2], start=[1, 0, -2]),
        spaces.MultiBinary(3),
    ],
)
def test_supported_spaces_pass(observation_space, action_space):
    check_spaces(observation_space, action_space)


@pytest.mark.parametrize(
    "observation_space",
    [
        spaces.Tuple((BOX, BOX)),
        spaces.Text(4),
        spaces.MultiDiscrete([2, 2]),
        spaces.Dict(a=spaces.Dict(b=spaces.Text(4))),
        spaces.Dict(a=BOX, b=spaces.Text(4)),
    ],
)
def test_an_unsupported_observation_space_is_refused_with_a_way_out(observation_space):
    with pytest.raises(
        ConfigurationError, match=r"^The observation space .* is not supported: .*--data\.env\.wrappers"
    ):
        check_spaces(observation_space, DISCRETE)


@pytest.mark.parametrize(
    "action_space",
    [
        spaces.MultiDiscrete([[2, 2], [3, 3]]),
        spaces.MultiBinary((2, 2)),
        spaces.Box(-1, 1, (2, 2)),
        spaces.Box(-1, 1, ()),
        spaces.Tuple((DISCRETE, DISCRETE)),
        spaces.Dict(a=DISCRETE),
    ],
)
def test_an_unsupported_action_space_is_refused_with_a_way_out(action_space):
    with pytest.raises(
        ConfigurationError, match=r"(?s)^The action space .* is not supported: .*MultiBinary.*--data\.env\.wrappers"
    ):
        check_spaces(BOX, action_space)
