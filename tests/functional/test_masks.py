"""Distributions of which some actions are illegal."""

import math

import pytest
import torch
from gymnasium import spaces

from ppo_lightning.functional import Categorical, MultiCategorical, approx_kl_divergence
from ppo_lightning.functional.confidence import CONFIDENCES
from ppo_lightning.functional.distributions import _gumbel, draw_noise, mask_logits, temper

LOGITS = torch.tensor([[1.0, 2.0, 3.0, 4.0]]).log()
MASK = torch.tensor([[1, 0, 1, 0]], dtype=torch.int8)
TWO, TWO_MASK = (1, 4), torch.tensor([[1, 0, 1, 1, 0]], dtype=torch.bool)  # of sizes 1 and 4


def masked(logits=LOGITS, mask=MASK):
    return Categorical(mask_logits(logits, mask))


def masked_two(logits=None):
    logits = torch.tensor([[5.0, 7.0, 1.0, 3.0, 9.0]]).log() if logits is None else logits
    return MultiCategorical(mask_logits(logits, TWO_MASK), TWO)


def entropy(*probabilities):
    return -sum(p * math.log(p) for p in probabilities)


def test_one_action_of_the_legal_ones():
    distribution = masked()
    torch.testing.assert_close(distribution.log_probs.exp(), torch.tensor([[0.25, 0, 0.75, 0]]))
    assert distribution.log_probs.exp()[0, [1, 3]].tolist() == [0, 0]
    assert float(distribution.log_prob(torch.tensor([2]))) == pytest.approx(math.log(0.75))
    assert float(distribution.entropy()) == pytest.approx(entropy(0.25, 0.75))
    assert distribution.mode().tolist() == [2]


def test_several_actions_of_the_legal_ones():
    distribution = masked_two()
    torch.testing.assert_close(distribution.log_probs.exp(), torch.tensor([[1, 0, 0.25, 0.75, 0]]))
    assert float(distribution.log_prob(torch.tensor([[0, 1]]))) == pytest.approx(math.log(0.25))
    assert float(distribution.entropy()) == pytest.approx(entropy(0.25, 0.75))
    assert distribution.mode().tolist() == [[0, 2]]


def test_a_divergence_is_that_of_the_legal_actions():
    actions = torch.tensor([0, 2])
    before, after = (masked(logits.expand(2, -1), MASK.expand(2, -1)) for logits in (LOGITS, torch.zeros(1, 4)))
    ratios = [0.5 / 0.25, 0.5 / 0.75]
    expected = sum(ratio - 1 - math.log(ratio) for ratio in ratios) / 2
    assert float(approx_kl_divergence(after.log_prob(actions), before.log_prob(actions))) == pytest.approx(expected)


@pytest.mark.parametrize("temperature", [1e-3, 0.5, 2.0, 1e30, math.inf])
def test_a_temperature_makes_no_action_legal(temperature):
    probabilities = masked().tempered(temperature).log_probs.exp()[0]
    assert probabilities[[1, 3]].tolist() == [0, 0]
    assert float(probabilities.sum()) == pytest.approx(1)
    ratio = 3 ** (1 / temperature) if temperature > 0.01 else math.inf
    assert float(probabilities[0]) == pytest.approx(1 / (1 + ratio))
    two = masked_two().tempered(temperature).log_probs.exp()[0]
    assert two[[1, 4]].tolist() == [0, 0]


@pytest.mark.parametrize("space", [spaces.Discrete(4), spaces.MultiDiscrete([4, 1])])
def test_an_illegal_action_is_never_sampled(space):
    """However much better it looks than the legal ones."""
    draws = 10**6
    noise = draw_noise(space, draws, [torch.Generator().manual_seed(0)], torch.float32, torch.device("cpu"))[:, 0]
    logits = torch.tensor([-30.0, 80.0, -29.0, 1e6, 0.0])[: noise.shape[1]].expand(draws, -1)
    mask = torch.tensor([1, 0, 1, 0, 1])[: noise.shape[1]].expand(draws, -1)
    kind = Categorical if isinstance(space, spaces.Discrete) else lambda logits: MultiCategorical(logits, (4, 1))
    counts = kind(mask_logits(logits, mask)).sample(noise).reshape(draws, -1)[:, 0].bincount(minlength=4)
    assert counts[[1, 3]].tolist() == [0, 0]
    assert float(counts[2] / counts[0]) == pytest.approx(math.e, rel=0.02)


class Zeros(torch.Tensor):
    """Storage in which the generator draws nothing but 0."""

    def exponential_(self, generator=None):
        return self.zero_()


def test_noise_is_finite_whatever_is_drawn():
    assert bool(torch.isfinite(_gumbel(Zeros(3))).all())
    assert masked(torch.full((1, 4), -1e6)).sample(_gumbel(Zeros(1, 4))).tolist()[0] in (0, 2)


def test_noise_is_what_it_was():
    drawn = torch.empty(1000).exponential_(generator=torch.Generator().manual_seed(3))
    assert torch.equal(_gumbel(torch.empty(1000), torch.Generator().manual_seed(3)), -drawn.log())


@pytest.mark.parametrize("make", [masked, masked_two])
def test_illegal_logits_get_no_gradient_and_legal_ones_do(make):
    mask = MASK[0].bool() if make is masked else TWO_MASK[0]
    logits = torch.randn(1, len(mask), requires_grad=True)
    distribution = make(logits)
    (distribution.log_prob(distribution.mode()) + 0.3 * distribution.entropy()).sum().backward()
    assert bool((logits.grad[0, ~mask] == 0).all())
    assert bool(logits.grad[0, mask].abs().sum() > 0)


@pytest.mark.parametrize("make", [masked, masked_two])
@pytest.mark.parametrize("precision", [torch.bfloat16, torch.float16, torch.float32, torch.float64])
def test_all_precisions_give_such_actions_no_probability(make, precision):
    width = 4 if make is masked else 5
    distribution = make(torch.full((1, width), -6e4).to(precision))
    assert bool((distribution.log_probs.exp()[0, ~(MASK[0].bool() if width == 4 else TWO_MASK[0])] == 0).all())
    assert distribution.log_probs.dtype == (torch.float64 if precision == torch.float64 else torch.float32)


def test_a_row_without_a_legal_action_is_uniform_and_finite():
    logits = torch.randn(2, 4, requires_grad=True)
    distribution = masked(logits, torch.tensor([[0, 0, 0, 0], [0, 1, 0, 0]]))
    torch.testing.assert_close(distribution.log_probs[0].exp(), torch.full((4,), 0.25))
    (distribution.entropy().sum() + distribution.log_prob(torch.tensor([3, 1])).sum()).backward()
    assert bool((logits.grad == 0).all())
    two = MultiCategorical(mask_logits(torch.randn(1, 5), torch.tensor([[0, 0, 0, 0, 1]])), TWO)
    assert float(two.log_prob(torch.tensor([[0, 3]]))) == 0  # the one of the first component, the legal one


@pytest.mark.parametrize("name", CONFIDENCES)
@pytest.mark.parametrize("temperature", [0.5, 1.0, 3.0])
def test_confidence_is_of_the_legal_actions(name, temperature):
    measure = CONFIDENCES[name]
    logits = temper(mask_logits(LOGITS, MASK), temperature)
    torch.testing.assert_close(measure(logits), measure(LOGITS[:, [0, 2]] / temperature))
    nothing = measure(temper(mask_logits(LOGITS, torch.zeros(1, 4)), temperature))
    assert bool(torch.isfinite(nothing).all())


def test_a_mask_of_another_shape_is_refused():
    with pytest.raises(ValueError, match=r"logits has shape \(1, 4\) and mask \(1, 3\)"):
        mask_logits(LOGITS, MASK[:, :3])
