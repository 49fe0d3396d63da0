"""Random network distillation: what is looked at, how it is normalised, and what is refused."""

import functools
import math

import numpy as np
import pytest
import torch
from gymnasium import spaces
from tensordict import TensorDict
from torch import nn

from ppo_lightning import ConfigurationError, MLPEncoder, NatureCNN, RandomNetworkDistillation, RNDModel
from ppo_lightning.models.encoders import GridCNN
from tests.tasks import Drawn, Walk

VECTOR = spaces.Box(-np.inf, np.inf, (3,), np.float32)
FRAMES, IMAGE = spaces.Box(0, 255, (4, 84, 84), np.uint8), spaces.Box(0, 255, (84, 84, 4), np.uint8)
DICT = spaces.Dict(vector=VECTOR, image=IMAGE, number=spaces.Discrete(3))
SMALL = functools.partial(RandomNetworkDistillation, hidden_sizes=[6], output_dim=5)


def alone(x):
    return x.unsqueeze(0)


def learn(novelty, *parts):
    for part in parts:
        novelty.learn(novelty.moments_of(part), alone)


def test_the_error_is_the_mean_square_of_the_predictors():
    novelty, x = SMALL(VECTOR), torch.randn(7, 3)
    learn(novelty, torch.randn(50, 3))
    normal = novelty.normalize(x)
    expected = ((novelty.predictor(normal) - novelty.target(normal)) ** 2).sum(1) / 5
    torch.testing.assert_close(novelty(x), expected)
    assert novelty(x).shape == (7,)
    assert novelty(x[:0]).shape == (0,)


def test_only_the_predictor_can_learn():
    novelty = SMALL(VECTOR)
    novelty(torch.randn(7, 3)).sum().backward()
    assert all(parameter.grad is None and not parameter.requires_grad for parameter in novelty.target.parameters())
    assert all(parameter.grad is not None for parameter in novelty.predictor.parameters())


def test_the_two_networks_differ_from_the_start():
    novelty = SMALL(VECTOR)
    assert novelty(torch.randn(7, 3)).min() > 1e-3


def test_statistics_are_those_of_all_that_was_seen_and_bound_what_is_read():
    novelty = SMALL(VECTOR, obs_clip=2.0)
    rows = torch.randn(1300, 3, dtype=torch.float64).float() * torch.tensor([1.0, 10.0, 100.0]) + 5
    learn(novelty, rows[:3], rows[3:700], rows[700:])  # more than one part of a chunk
    assert novelty.statistics.count == 1300
    torch.testing.assert_close(novelty.statistics.mean, rows.double().mean(0).float(), rtol=1e-5, atol=1e-5)
    torch.testing.assert_close(novelty.statistics.var, rows.double().var(0, correction=0).float(), rtol=1e-5, atol=1e-5)
    normal = novelty.normalize(rows)
    expected = (rows - rows.mean(0)) / rows.std(0, correction=0)
    torch.testing.assert_close(normal, expected.clamp(-2, 2), rtol=1e-4, atol=1e-5)
    assert normal.abs().max() == 2


def test_a_number_that_never_changed_is_bounded_when_it_does():
    novelty = SMALL(VECTOR)
    learn(novelty, torch.ones(10, 3))
    assert novelty.normalize(torch.tensor([[1.0, 1.5, -7.0]])).tolist() == [[0, 5, -5]]


class Inputs:
    """What reached the first layer of a network of this kind."""

    def __init__(self, network, kind):
        self.seen = []
        first = next(module for module in network.modules() if isinstance(module, kind))
        first.register_forward_hook(lambda module, args, output: self.seen.append(args[0].clone()))


@pytest.mark.parametrize("space", [FRAMES, IMAGE])
def test_pixels_reach_the_first_convolution_standardised_and_never_divided(space):
    novelty = SMALL(space)
    generator = torch.Generator().manual_seed(1)
    pixels = torch.randint(0, 256, (40, *space.shape), generator=generator, dtype=torch.uint8)
    learn(novelty, novelty.select(pixels))
    inputs = [Inputs(network, nn.Conv2d) for network in (novelty.target, novelty.predictor)]
    novelty(novelty.select(pixels))
    for seen in inputs:
        (x,) = seen.seen
        assert x.shape == (40, 4, 84, 84)
        assert x.std().item() == pytest.approx(1, rel=0.01)
    assert torch.equal(inputs[0].seen[0], inputs[1].seen[0])
    expected = (pixels.double() - pixels.double().mean(0)) / pixels.double().std(0, correction=0)
    expected = expected.clamp(-5, 5).float()
    expected = expected if space is FRAMES else expected.permute(0, 3, 1, 2)
    torch.testing.assert_close(inputs[0].seen[0], expected, rtol=1e-4, atol=1e-4)


@pytest.mark.parametrize("frames", [1, 2, 4])
def test_of_a_stack_only_the_newest_frames_are_looked_at_in_both_layouts(frames):
    first, last = SMALL(FRAMES, num_frames=frames), SMALL(IMAGE, num_frames=frames)
    stack = torch.arange(4, dtype=torch.uint8).reshape(1, 4, 1, 1).expand(2, 4, 84, 84)  # 3 is the newest
    expected = list(range(4))[-frames:]
    assert first.select(stack).shape == (2, frames, 84, 84)
    assert first.select(stack)[0, :, 0, 0].tolist() == expected
    other = last.select(stack.permute(0, 2, 3, 1))
    assert other.shape == (2, 84, 84, frames)
    assert other[0, 0, 0].tolist() == expected
    for novelty, x in ((first, first.select(stack)), (last, other)):
        assert novelty.statistics.mean.shape == (frames * 84 * 84,)
        assert novelty(x).shape == (2,)
    rollout = stack.expand(3, *stack.shape)  # (T, N, …)
    assert first.select(rollout).shape == (3, 2, frames, 84, 84)


def test_the_key_that_is_named_is_looked_at():
    obs = TensorDict({"vector": torch.randn(2, 3), "image": torch.zeros(2, 84, 84, 4, dtype=torch.uint8)}, [2])
    assert torch.equal(SMALL(DICT, obs_key="vector").select(obs), obs["vector"])
    image = SMALL(DICT, obs_key="image", num_frames=1)
    assert image.select(obs).shape == (2, 84, 84, 1)
    only = spaces.Dict(number=spaces.Discrete(3), vector=VECTOR)
    assert torch.equal(SMALL(only).select(obs), obs["vector"])


def test_statistics_stay_in_full_precision():
    novelty = SMALL(VECTOR).to(torch.bfloat16)
    learn(novelty, torch.randn(1000, 3) + 1000)
    assert {buffer.dtype for buffer in novelty.statistics.buffers()} == {torch.float32}
    assert novelty.statistics.count == 1000
    assert novelty.statistics.mean.tolist() == pytest.approx([1000] * 3, abs=0.2)
    assert novelty(torch.randn(4, 3) + 1000).isfinite().all()
    assert {parameter.dtype for parameter in novelty.parameters()} == {torch.bfloat16}


def test_the_encoder_is_chosen_by_what_is_looked_at_unless_it_is_given():
    assert isinstance(SMALL(VECTOR).target[0], MLPEncoder)
    assert isinstance(SMALL(spaces.Box(0, 255, (8, 8), np.uint8)).target[0], MLPEncoder)
    assert isinstance(SMALL(IMAGE).target[0], NatureCNN)
    grid = SMALL(Drawn.OBSERVATIONS["grid"], encoder=functools.partial(GridCNN, scale=1.0))
    assert isinstance(grid.predictor[0], GridCNN)
    assert grid(torch.zeros(2, 7, 7, 3, dtype=torch.uint8)).shape == (2,)


def test_the_predictor_has_further_layers():
    novelty = RandomNetworkDistillation(VECTOR, hidden_sizes=[7, 9], output_dim=4)
    widths = [[part.out_features for part in network if isinstance(part, nn.Linear)] for network in novelty.children()
              if isinstance(network, nn.Sequential)]  # fmt: skip
    assert widths == [[4], [7, 9, 4]]


@pytest.mark.parametrize(
    ("space", "flags", "words"),
    [
        (VECTOR, {"output_dim": 0}, r"--model\.novelty\.output_dim must be at least 1, not 0\."),
        (VECTOR, {"obs_clip": 0.0}, r"--model\.novelty\.obs_clip must be greater than 0, not 0\."),
        (VECTOR, {"obs_clip": math.nan}, r"--model\.novelty\.obs_clip"),
        (VECTOR, {"hidden_sizes": [8, 0]}, r"--model\.novelty\.hidden_sizes=\[8, 0\] must be widths of at least 1\."),
        (VECTOR, {"obs_key": "a"}, r"--model\.novelty\.obs_key=a needs a Dict observation, not Box\(.*\): leave it"),
        (DICT, {}, r"--model\.novelty\.obs_key is missing: the observation has the keys vector, image; name the one"),
        (DICT, {"obs_key": "vectr"}, r"--model\.novelty\.obs_key=vectr is none of .* Did you mean vector\?"),
        (DICT, {"obs_key": "number"}, r"RND looks at Box observations, not at Discrete\(3\): name another key by"),
        (spaces.Dict(a=spaces.Discrete(3)), {}, r"RND looks at Box observations, not at Discrete\(3\): name another"),
        (
            spaces.Discrete(3),
            {},
            r"RND looks at Box observations, not at Discrete\(3\): name another key by --model\.n",
        ),
        (spaces.Box(-1, 1, ()), {}, r"RND looks at Box observations, not at Box"),
        (VECTOR, {"num_frames": 1}, r"--model\.novelty\.num_frames=1 needs a stack of frames .* not \(3,\): leave it"),
        (FRAMES, {"num_frames": 5}, r"--model\.novelty\.num_frames must be at least 1 and at most 4, not 5\."),
        (IMAGE, {"num_frames": 0}, r"--model\.novelty\.num_frames must be at least 1 and at most 4, not 0\."),
        (Drawn.OBSERVATIONS["grid"], {}, r"NatureCNN needs images of .* set --model\.novelty\.encoder to GridCNN"),
        (IMAGE, {"encoder": MLPEncoder}, r"MLPEncoder does not fit the image .* set --model\.novelty\.encoder to Nat"),
    ],
)
def test_what_it_cannot_take_is_refused_in_a_sentence(space, flags, words):
    with pytest.raises(ConfigurationError, match=f"^{words}") as caught:
        RandomNetworkDistillation(space, **flags)
    assert str(caught.value).endswith((".", "?"))
    assert "network.encoder" not in str(caught.value)


# -- the agent's network


def test_both_values_read_the_shared_features():
    network, obs = RNDModel(Walk.observation_space, spaces.Discrete(2)), torch.randn(5, 4)
    output = network(obs)
    intrinsic = network.intrinsic_values(output.hidden)
    assert intrinsic.shape == output.value.shape == (5,)
    torch.testing.assert_close(intrinsic, network.fc_intrinsic_value(network.embedder(obs)).squeeze(1))
    torch.testing.assert_close(output.value, network.fc_value(network.embedder(obs)).squeeze(1))
    assert not torch.equal(intrinsic, output.value)


@pytest.mark.parametrize("head", ["fc_value", "fc_intrinsic_value"])
def test_each_value_moves_its_own_head_and_the_trunk(head):
    network = RNDModel(Walk.observation_space, spaces.Discrete(2))
    output = network(torch.randn(5, 4))
    (output.value if head == "fc_value" else network.intrinsic_values(output.hidden)).sum().backward()
    moved = {name.split(".")[0] for name, parameter in network.named_parameters() if parameter.grad is not None}
    assert moved == {head, "embedder"}
