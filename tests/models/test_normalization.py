"""Running statistics, and what an encoder makes of observations by them."""

import functools
import math

import numpy as np
import pytest
import torch
from gymnasium import spaces
from hypothesis import given
from hypothesis import strategies as st
from tensordict import TensorDict
from torch import nn

from ppo_lightning import ConfigurationError
from ppo_lightning.functional import moments_of_rows
from ppo_lightning.models import MLPEncoder, ObservationNormalizer
from ppo_lightning.models.normalization import RunningMoments

MIXED = spaces.Dict(
    speed=spaces.Box(-np.inf, np.inf, (2,), np.float32),
    kind=spaces.Discrete(3, start=1),
    bits=spaces.MultiBinary(2),
    pixels=spaces.Box(0, 255, (2,), np.uint8),
)
SPEED, KIND, BITS, PIXELS = slice(0, 2), slice(2, 5), slice(5, 7), slice(7, 9)
KEYS = ["speed", "kind", "bits", "pixels"]


def rollouts(*sizes, columns=3, offset=0.0):
    generator = torch.Generator().manual_seed(3)
    rows = torch.randn(sum(sizes), columns, generator=generator, dtype=torch.float64)
    return (rows * torch.arange(1, columns + 1) + offset).split(sizes)


def mixed(rows=50):
    generator = torch.Generator().manual_seed(4)
    return TensorDict(
        {
            "speed": 100 + 10 * torch.randn(rows, 2, generator=generator),
            "kind": torch.randint(1, 4, (rows,), generator=generator),
            "bits": torch.randint(0, 2, (rows, 2), generator=generator).to(torch.int8),
            "pixels": torch.randint(0, 256, (rows, 2), generator=generator, dtype=torch.uint8),
        },
        batch_size=[rows],
    )


def encoder_of(space=MIXED, normalizer=ObservationNormalizer, **kwargs):
    return MLPEncoder(space, hidden_sizes=[4], normalizer=normalizer, **kwargs)


def normalized(encoder, obs):
    """What reaches the first layer."""
    seen = []
    handle = encoder.layers[0].register_forward_pre_hook(lambda _, args: seen.append(args[0]))
    encoder(obs)
    handle.remove()
    return seen[0]


# -- running moments


@pytest.mark.parametrize("offset", [0.0, 1e6])
def test_several_rollouts_are_their_concatenation(offset):
    moments, parts = RunningMoments((3,)).double(), rollouts(7, 1, 40, offset=offset)
    for part in parts:
        moments.update(moments_of_rows(part))
    together = torch.cat(parts)
    assert moments.count == 48
    torch.testing.assert_close(moments.mean, together.mean(0), rtol=1e-12, atol=1e-12)
    torch.testing.assert_close(moments.var, together.var(0, correction=0), rtol=1e-9, atol=0)


@given(st.floats(0, 0.99))
def test_a_moving_average_keeps_so_much_of_what_was(ema):
    moments, (first, second) = RunningMoments((3,), ema=ema).double(), rollouts(7, 20)
    moments.update(moments_of_rows(first))
    torch.testing.assert_close(moments.mean, first.mean(0))  # the first rollout is taken as it is
    torch.testing.assert_close(moments.var, first.var(0, correction=0))
    moments.update(moments_of_rows(second))
    mean = ema * first.mean(0) + (1 - ema) * second.mean(0)
    square = ema * first.square().mean(0) + (1 - ema) * second.square().mean(0)
    torch.testing.assert_close(moments.mean, mean)
    torch.testing.assert_close(moments.var, square - mean.square())
    assert moments.count == 27


def test_a_single_number_has_moments_too():
    moments = RunningMoments()
    moments.update(torch.tensor([4.0, 2.5, 0.25], dtype=torch.float64))
    assert (moments.count, moments.mean, moments.var) == (4, 2.5, 0.25)


@pytest.mark.parametrize("ema", [None, 0.0, 0.9])
def test_nothing_seen_changes_nothing(ema):
    moments = RunningMoments((2,), ema=ema)
    moments.update(moments_of_rows(torch.zeros(0, 2)))
    assert (moments.count, moments.mean.tolist(), moments.var.tolist()) == (0, [0, 0], [1, 1])
    moments.update(moments_of_rows(torch.tensor([[1.0, 2.0], [3.0, 2.0]])))
    moments.update(moments_of_rows(torch.zeros(0, 2)))
    assert (moments.count, moments.mean.tolist(), moments.var.tolist()) == (2, [2, 2], [1, 0])


def test_they_are_in_the_state_dict_and_are_no_parameters():
    one, other = ObservationNormalizer(3), ObservationNormalizer(3)
    one.update(moments_of_rows(rollouts(10)[0]))
    assert set(one.state_dict()) == {"count", "mean", "var"}
    assert not list(one.parameters())
    other.load_state_dict(one.state_dict())
    x = torch.randn(4, 3)
    assert torch.equal(one(x), other(x))


# -- their precision


@pytest.mark.parametrize("half", [torch.bfloat16, torch.float16])
def test_statistics_are_never_in_half_precision(half):
    module = nn.Sequential(nn.Linear(3, 3), ObservationNormalizer(3))
    module[1].update(moments_of_rows(rollouts(1000, offset=300.0)[0]))
    before = {name: tensor.clone() for name, tensor in module[1].state_dict().items()}
    assert module.to(half) is module
    assert module[0].weight.dtype == half
    for name, tensor in module[1].state_dict().items():
        assert tensor.dtype == torch.float32
        assert torch.equal(tensor, before[name])
    assert module[1](torch.randn(4, 3, dtype=half)).dtype == half


def test_statistics_that_half_precision_leaves_alone_move_with_their_module():
    module = ObservationNormalizer(3).double()
    assert {tensor.dtype for tensor in module.state_dict().values()} == {torch.float64}
    assert {tensor.dtype for tensor in module.bfloat16().state_dict().values()} == {torch.float64}
    assert {tensor.dtype for tensor in module.float().state_dict().values()} == {torch.float32}
    assert {tensor.device.type for tensor in module.to("meta", torch.bfloat16).state_dict().values()} == {"meta"}
    assert {tensor.dtype for tensor in module.state_dict().values()} == {torch.float32}


def test_an_encoder_in_half_precision_normalises_in_full():
    """Of an observation around 1000, bfloat16 would keep a step of 8."""
    obs = torch.tensor([[1000.0], [1001.0], [1002.0]])
    encoder = encoder_of(spaces.Box(-np.inf, np.inf, (1,), np.float32)).to(torch.bfloat16)
    encoder.normalizer.update(encoder.moments_of(obs))
    reached = normalized(encoder, obs)
    assert reached.dtype == torch.bfloat16
    assert reached.flatten().tolist() == pytest.approx([-(1.5**0.5), 0, 1.5**0.5], rel=1e-2)
    with torch.autocast("cpu", dtype=torch.bfloat16):
        full = encoder_of(spaces.Box(-np.inf, np.inf, (1,), np.float32))
        full.normalizer.load_state_dict(encoder.normalizer.state_dict())
        assert normalized(full, obs).flatten().tolist() == pytest.approx([-(1.5**0.5), 0, 1.5**0.5], rel=1e-5)


# -- of observations


def test_rows_come_out_with_mean_zero_and_std_one_in_their_own_dtype():
    (rows,) = rollouts(400, offset=50.0)
    normalizer = ObservationNormalizer(3)
    assert torch.equal(normalizer(rows[:2].float()), rows[:2].float().clamp(-10, 10))  # before the first rollout
    normalizer.update(normalizer.moments_of(rows))
    normal = normalizer(rows.float())
    assert normal.dtype == torch.float32
    torch.testing.assert_close(normal.mean(0), torch.zeros(3), atol=1e-4, rtol=0)
    torch.testing.assert_close(normal.std(0, correction=0), torch.ones(3), atol=1e-4, rtol=0)


@pytest.mark.parametrize(("clip", "largest"), [(2.5, 2.5), (None, 1000.0)])
def test_outliers_are_clipped_or_not(clip, largest):
    normal = ObservationNormalizer(1, clip=clip)(torch.tensor([[1000.0], [-1000.0], [1.0]]))
    torch.testing.assert_close(normal, torch.tensor([[largest], [-largest], [1.0]]))


def test_a_number_that_never_changes_becomes_zero():
    normalizer = ObservationNormalizer(1)
    normalizer.update(normalizer.moments_of(torch.full((9, 1), 7.0)))
    assert normalizer(torch.full((2, 1), 7.0)).tolist() == [[0], [0]]


def test_only_numbers_are_normalised_not_what_is_one_of_several():
    encoder, plain, obs = encoder_of(in_keys=KEYS), encoder_of(in_keys=KEYS, normalizer=None), mixed()
    encoder.normalizer.update(encoder.moments_of(obs))
    reached, raw = normalized(encoder, obs), normalized(plain, obs)
    for part in (BITS, KIND):
        torch.testing.assert_close(reached[:, part], raw[:, part], rtol=1e-6, atol=0)
    for part in (PIXELS, SPEED):
        torch.testing.assert_close(reached[:, part].mean(0), torch.zeros(2), atol=1e-4, rtol=0)
        torch.testing.assert_close(reached[:, part].std(0, correction=0), torch.ones(2), atol=1e-4, rtol=0)
    assert encoder.normalizer.mean[PIXELS].max() < 1  # bytes are scaled before
    torch.testing.assert_close(encoder.normalizer.mean[SPEED], obs["speed"].mean(0))


def test_an_encoder_has_statistics_of_its_own_keys_alone():
    encoder, obs = encoder_of(in_keys=["speed"]), mixed()
    assert encoder.normalizer.mean.shape == (2,)
    torch.testing.assert_close(encoder.moments_of(obs)[:, 1].float(), obs["speed"].mean(0))


def test_looking_changes_no_statistics():
    encoder, obs = encoder_of(), mixed()
    encoder.moments_of(obs)
    encoder.train()(obs)
    assert encoder.normalizer.count == 0
    assert not encoder.normalizer.mean.any()


# -- what is refused

FLAG = r"^--model\.network\.encoder\.normalizer"


@pytest.mark.parametrize(
    ("flags", "words"),
    [
        ({"ema": 1.0}, r"\.ema must be at least 0 and less than 1, not 1\."),
        ({"ema": -0.1}, r"\.ema"),
        ({"ema": math.nan}, r"\.ema"),
        ({"clip": 0.0}, r"\.clip must be greater than 0, not 0\."),
        ({"clip": -1.0}, r"\.clip"),
        ({"clip": math.nan}, r"\.clip"),
    ],
)
def test_numbers_outside_their_range_are_refused_by_name(flags, words):
    with pytest.raises(ConfigurationError, match=FLAG + words):
        encoder_of(normalizer=functools.partial(ObservationNormalizer, **flags))
