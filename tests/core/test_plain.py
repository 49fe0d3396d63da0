"""Values go into a file that loads with weights_only=True, and come out of it as they were, type for type."""

import io
import random
import threading
from collections import Counter, OrderedDict, deque

import hypothesis.extra.numpy as arrays
import hypothesis.strategies as st
import numpy as np
import pytest
import torch
from hypothesis import given

from ppo_lightning.core.errors import NotRestorableError
from ppo_lightning.core.plain import from_plain, to_plain

DTYPES = [
    *("?", "i1", "i2", "i4", "i8", "u1", "u2", "u4", "u8", "f2", "f4", "f8", "c8", "c16"),
    *(">i4", ">u8", ">f4", ">f8"),
]


def through_a_file(value):
    file = io.BytesIO()
    torch.save({"state": to_plain(value)}, file)
    file.seek(0)
    return from_plain(torch.load(file, weights_only=True)["state"])


def same(first, second):
    """Equal in type and in every bit."""
    if type(first) is not type(second):
        return False
    if isinstance(first, dict):
        return len(first) == len(second) and all(
            same(a, b) and same(first[a], second[b]) for a, b in zip(first, second)
        )
    if isinstance(first, (list, tuple, deque)):
        return (
            len(first) == len(second)
            and getattr(first, "maxlen", None) == getattr(second, "maxlen", None)
            and all(same(a, b) for a, b in zip(first, second))
        )
    if isinstance(first, np.ndarray):
        return (
            first.dtype.str == second.dtype.str
            and first.shape == second.shape
            and first.flags.writeable == second.flags.writeable
            and first.tobytes() == second.tobytes()
        )
    if isinstance(first, torch.Tensor):
        return first.dtype == second.dtype and torch.equal(first, second)
    if isinstance(first, np.generic):
        return first.dtype == second.dtype and first.tobytes() == second.tobytes()
    if isinstance(first, float):
        return np.float64(first).tobytes() == np.float64(second).tobytes()
    return first == second


KEYS = st.one_of(st.text(), st.integers(), st.booleans(), st.none(), st.tuples(st.integers(), st.text()), st.just("~"))
LEAVES = st.one_of(
    st.none(),
    st.booleans(),
    st.integers(),
    st.integers(-(2**5000), 2**5000),
    st.floats(),
    st.text(),
    st.binary(),
    st.sets(st.integers()),
    st.frozensets(st.text()),
    arrays.arrays(st.sampled_from(DTYPES), arrays.array_shapes(min_dims=0, min_side=0, max_side=3)),
    st.sampled_from(DTYPES).flatmap(lambda dtype: arrays.from_dtype(np.dtype(dtype))),
)
VALUES = st.recursive(
    LEAVES,
    lambda inner: st.one_of(
        st.lists(inner, max_size=3),
        st.tuples(inner, inner),
        st.lists(inner, max_size=3).map(tuple),
        st.dictionaries(KEYS, inner, max_size=3),
        st.dictionaries(KEYS, inner, max_size=3).map(OrderedDict),
        st.builds(deque, st.lists(inner, max_size=3), st.one_of(st.none(), st.integers(0, 5))),
    ),
    max_leaves=8,
)


@given(VALUES)
def test_values_come_back_type_for_type_and_bit_for_bit(value):
    assert same(through_a_file(value), value)


@pytest.mark.parametrize(
    "value",
    [
        np.float32(0.1),
        np.float64(0.1),
        np.bool_(True),
        np.str_("K"),
        np.array(3.0),
        np.zeros((0, 3), np.uint16),
        np.arange(12.0).reshape(3, 4)[::2, ::-1],
        np.array([2**64 - 1, 1], np.uint64),
        torch.arange(3, dtype=torch.bfloat16),
        torch.tensor(1.5),
        {"~": "array", "data": 3},
        {1: 2, "1": 3, (1,): {True: None}},
        -0.0,
        float("nan"),
        2**2039,
        -(2**2041),
        "\ud800 and \0",
        deque([1, 2], maxlen=2),
    ],
    ids=repr,
)
def test_values_that_are_easily_mistaken(value):
    assert same(through_a_file(value), value)


def test_arrays_keep_the_order_of_their_memory_and_whether_they_may_be_written():
    array = np.asfortranarray(np.random.default_rng(0).normal(size=(50, 7)).astype(np.float32))
    array.flags.writeable = False
    back = through_a_file(array)
    assert back.flags.f_contiguous
    assert not back.flags.writeable
    assert back.sum() == array.sum()
    assert np.array_equal(back, array)


def test_what_was_saved_does_not_change_with_what_it_was_saved_from():
    array, inner = np.zeros(3), [1]
    plain = to_plain({"array": array, "list": inner, "tensor": torch.zeros(1)})
    array[:], inner[0] = 1, 2
    first = from_plain(plain)
    assert first["array"].tolist() == [0, 0, 0]
    assert first["list"] == [1]
    first["array"][:], first["tensor"][:] = 5, 5
    assert from_plain(plain)["array"].tolist() == [0, 0, 0]
    assert from_plain(plain)["tensor"].item() == 0


@pytest.mark.parametrize("bits", ["PCG64", "PCG64DXSM", "MT19937", "Philox", "SFC64"])
def test_generators_go_on_with_the_same_numbers(bits):
    generator = np.random.Generator(getattr(np.random, bits)(7))
    generator.integers(0, 3, 5, dtype=np.uint8)  # half a word is left over
    generator.spawn(2)
    back = through_a_file(generator)
    assert type(back.bit_generator) is type(generator.bit_generator)
    assert back.integers(0, 1000, 50, dtype=np.uint32).tolist() == generator.integers(0, 1000, 50, np.uint32).tolist()
    assert back.normal(size=50).tolist() == generator.normal(size=50).tolist()
    assert back.spawn(1)[0].normal() == generator.spawn(1)[0].normal()


def test_old_generators_and_the_global_ones():
    generator = np.random.RandomState(3)
    generator.normal()  # and one more is kept for the next call
    assert through_a_file(generator).normal(size=9).tolist() == generator.normal(size=9).tolist()
    own = random.Random(5)
    own.gauss(0, 1)
    other = random.Random()
    other.setstate(through_a_file(own.getstate()))
    assert [other.gauss(0, 1) for _ in range(9)] == [own.gauss(0, 1) for _ in range(9)]
    state = np.random.RandomState(4).get_state()
    generator.set_state(through_a_file(state))
    assert generator.rand() == np.random.RandomState(4).rand()
    torches = torch.Generator().manual_seed(11)
    torch.randn(3, generator=torches)
    fresh = torch.Generator()
    fresh.set_state(through_a_file(torches.get_state()))
    assert torch.equal(torch.randn(9, generator=fresh), torch.randn(9, generator=torches))


@pytest.mark.parametrize(
    ("value", "name"),
    [
        ([1, {"a": (threading.Thread,)}], "type"),
        ({"deep": [object()]}, "object"),
        (Counter(), "collections.Counter"),
        (np.ma.masked_array([1]), "numpy.ma"),
        (np.array(["a"]), "<U1"),
        (np.array([None]), "object"),
        (np.datetime64("2026-01-01"), "datetime64"),
        (np.longdouble(1), "longdouble"),
        (np.zeros(2, np.longdouble), "float128|longdouble|float96"),
        (np.zeros(2, [("a", "i4")]), "'a'"),
        (lambda: 0, "function"),
        (torch.nn.Parameter(torch.zeros(1)), "Parameter"),
        (np.random.RandomState(np.random.PCG64(1)), "RandomState of PCG64"),
    ],
)
def test_other_types_are_refused_by_name(value, name):
    with pytest.raises(NotRestorableError, match=name):
        to_plain(value)


@pytest.mark.parametrize("plain", [{"~": "lambda"}, b"raw", {"a": 1j}, [{"~": "array "}]])
def test_what_was_never_saved_is_refused(plain):
    with pytest.raises(NotRestorableError):
        from_plain(plain)
