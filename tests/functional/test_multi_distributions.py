"""Distributions of several actions at once: MultiDiscrete and MultiBinary."""

import itertools
import math

import pytest
import torch
from gymnasium import spaces
from hypothesis import given
from hypothesis import strategies as st

from ppo_lightning.functional import Bernoullis, Categorical, MultiCategorical
from ppo_lightning.functional.distributions import _padding, draw_noise
from tests.functional.test_distributions import EXACT, generators

EQUAL, RAGGED = (3, 3), (3, 1, 4)
SIZES = st.one_of(
    st.lists(st.integers(1, 6), min_size=1, max_size=5).map(tuple),
    st.tuples(st.integers(1, 6), st.integers(1, 4)).map(lambda pair: (pair[0],) * pair[1]),
)


@st.composite
def components(draw):
    """``(logits, nvec, actions)``."""
    nvec, rows = draw(SIZES), draw(st.integers(1, 4))
    numbers = st.floats(-20, 20, width=32)
    logits = [[draw(numbers) for _ in range(sum(nvec))] for _ in range(rows)]
    actions = [[draw(st.integers(0, size - 1)) for size in nvec] for _ in range(rows)]
    return torch.tensor(logits, dtype=torch.float64), nvec, torch.tensor(actions)


def torchs_of(logits, nvec):
    return [torch.distributions.Categorical(logits=part) for part in logits.split(nvec, -1)]


@given(components())
def test_several_categoricals_equal_torchs(drawn):
    logits, nvec, actions = drawn
    ours, theirs = MultiCategorical(logits, nvec), torchs_of(logits, nvec)
    log_prob = sum(part.log_prob(column) for part, column in zip(theirs, actions.unbind(-1)))
    torch.testing.assert_close(ours.log_prob(actions), log_prob, **EXACT)
    torch.testing.assert_close(ours.entropy(), sum(part.entropy() for part in theirs), **EXACT)
    torch.testing.assert_close(ours.log_probs, torch.cat([part.logits for part in theirs], -1), **EXACT)
    assert torch.equal(ours.mode(), torch.stack([part.argmax(-1) for part in logits.split(nvec, -1)], -1))


@given(components(), st.floats(0.1, 10))
def test_temperature_acts_in_each_component(drawn, temperature):
    logits, nvec, actions = drawn
    hot, theirs = MultiCategorical(logits, nvec).tempered(temperature), torchs_of(logits / temperature, nvec)
    log_prob = sum(part.log_prob(column) for part, column in zip(theirs, actions.unbind(-1)))
    torch.testing.assert_close(hot.log_prob(actions), log_prob, rtol=1e-9, atol=1e-9)


@given(components())
def test_probabilities_of_all_combinations_sum_to_one(drawn):
    logits, nvec, _ = drawn
    combinations = torch.tensor(list(itertools.product(*map(range, nvec[:3]))))
    width = sum(nvec[:3])
    distribution = MultiCategorical(logits[:1, :width].expand(len(combinations), width), nvec[:3])
    assert abs(float(distribution.log_prob(combinations).exp().sum()) - 1) < 1e-12


@given(components())
def test_gradients_equal_torchs(drawn):
    logits, nvec, actions = drawn
    ours, theirs = (logits.clone().requires_grad_() for _ in range(2))
    distribution = MultiCategorical(ours, nvec)
    (distribution.log_prob(actions) + 0.3 * distribution.entropy()).sum().backward()
    for part, column in zip(torchs_of(theirs, nvec), actions.unbind(-1)):
        (part.log_prob(column) + 0.3 * part.entropy()).sum().backward(retain_graph=True)
    torch.testing.assert_close(ours.grad, theirs.grad, rtol=1e-9, atol=1e-9)


@given(components(), st.integers(0, 2**31))
def test_samples_are_those_of_each_component_by_its_own_noise(drawn, seed):
    logits, nvec, _ = drawn
    noise = draw_noise(spaces.MultiDiscrete(nvec), 1, generators(*[seed] * len(logits)), torch.float64, "cpu")[0]
    samples = MultiCategorical(logits, nvec).sample(noise)
    parts = zip(logits.split(nvec, -1), noise.split(nvec, -1))
    assert torch.equal(samples, torch.stack([Categorical(part).sample(own) for part, own in parts], -1))


def binaries(columns=3):
    row = st.tuples(*[st.floats(-30, 30, width=32)] * columns)
    return st.lists(row, min_size=1, max_size=5).map(lambda rows: torch.tensor(rows, dtype=torch.float64))


@given(binaries(), st.integers(0, 7))
def test_bernoullis_equal_torchs(logits, number):
    ours, grown = logits.clone().requires_grad_(), logits.clone().requires_grad_()
    actions = torch.tensor([number >> place & 1 for place in range(3)]).expand(len(logits), 3)
    distribution = Bernoullis(ours)
    theirs = torch.distributions.Independent(torch.distributions.Bernoulli(logits=grown), 1)
    torch.testing.assert_close(distribution.log_prob(actions), theirs.log_prob(actions.double()), **EXACT)
    torch.testing.assert_close(distribution.entropy(), theirs.entropy(), rtol=1e-9, atol=1e-12)
    assert torch.equal(distribution.mode(), (logits > 0).long())
    for one in (distribution.log_prob(actions) + distribution.entropy(),
                theirs.log_prob(actions.double()) + theirs.entropy()):  # fmt: skip
        one.sum().backward()
    torch.testing.assert_close(ours.grad, grown.grad, rtol=1e-9, atol=1e-9)


@given(binaries(1), st.floats(0.1, 10))
def test_a_yes_or_no_choice_is_a_categorical_of_two(logits, temperature):
    one, two = Bernoullis(logits), Categorical(torch.cat([torch.zeros_like(logits), logits], -1))
    for binary, categorical in ((one, two), (one.tempered(temperature), two.tempered(temperature))):
        torch.testing.assert_close(binary.entropy(), categorical.entropy(), rtol=1e-9, atol=1e-12)
        for action in (0, 1):
            actions = torch.full((len(logits), 1), action)
            expected = categorical.log_prob(actions[:, 0])
            torch.testing.assert_close(binary.log_prob(actions), expected, rtol=1e-9, atol=1e-12)


def chi_square(samples, nvec, probabilities):
    """Of all combinations against the product of the components' probabilities."""
    strides = torch.tensor([math.prod(nvec[d + 1 :]) for d in range(len(nvec))])
    observed = torch.bincount((samples * strides).sum(-1), minlength=math.prod(nvec))
    joint = probabilities[0]
    for own in probabilities[1:]:
        joint = (joint[:, None] * own).flatten()
    expected = len(samples) * joint
    assert expected.min() > 5
    return float(((observed - expected) ** 2 / expected).sum())


@pytest.mark.parametrize("source", ["draw_noise", "own noise", "tempered"])
@pytest.mark.parametrize(("nvec", "limit"), [(EQUAL, 26.12), (RAGGED, 31.26)])  # 99.9 % with 8 and 11 degrees
def test_samples_of_categoricals_pass_a_chi_square_test_together(nvec, limit, source):
    """Of the combinations: each component right by itself, and independent of the others."""
    count, temperature = 60_000, 2.0 if source == "tempered" else 1.0
    logits = torch.tensor([0.0, 1.0, -1.0, 0.7, -0.4, 0.2, 0.9, -0.6])[: sum(nvec)]
    distribution = MultiCategorical(logits.expand(count, -1), nvec)
    distribution = distribution if source != "tempered" else distribution.tempered(temperature)
    if source == "draw_noise":
        noise = draw_noise(spaces.MultiDiscrete(nvec), count, generators(3), torch.float32, "cpu")[:, 0]
    else:
        torch.manual_seed(1)
        noise = distribution.noise()
    probabilities = [(part / temperature).softmax(-1) for part in logits.split(nvec)]
    assert chi_square(distribution.sample(noise), nvec, probabilities) < limit


@pytest.mark.parametrize("source", ["draw_noise", "own noise"])
def test_samples_of_bernoullis_pass_a_chi_square_test_together(source):
    logits, count = torch.tensor([0.0, 1.5, -2.0]), 60_000
    distribution = Bernoullis(logits.expand(count, 3))
    if source == "draw_noise":
        noise = draw_noise(spaces.MultiBinary(3), count, generators(5), torch.float32, "cpu")[:, 0]
    else:
        torch.manual_seed(1)
        noise = distribution.noise()
    probabilities = [torch.stack([1 - p, p]) for p in logits.sigmoid()]
    assert chi_square(distribution.sample(noise), (2, 2, 2), probabilities) < 24.32  # 99.9 % with 7 degrees


def test_logistic_noise_is_finite_and_symmetric():
    noise = draw_noise(spaces.MultiBinary(4), 50_000, generators(1), torch.float32, "cpu")
    assert noise.isfinite().all()
    assert abs(noise.mean()) < 4 * math.pi / 3**0.5 / noise.numel() ** 0.5
    assert abs(noise.std() / (math.pi / 3**0.5) - 1) < 0.02


def test_impossible_actions_have_finite_entropy_and_gradient_and_are_never_drawn():
    never = -math.inf
    logits = torch.tensor([[0.0, never, 0.0, never, 1.0]]).expand(10_000, 5).clone().requires_grad_()
    distribution = MultiCategorical(logits, (3, 2))
    torch.testing.assert_close(distribution.entropy()[0].item(), math.log(2), rtol=1e-6, atol=0)
    for drawn in (distribution, distribution.tempered(5.0)):
        samples = drawn.sample(drawn.noise())
        assert not (samples[:, 0] == 1).any()
        assert (samples[:, 1] == 1).all()
    actions = torch.tensor([[0, 1]]).expand(10_000, 2)
    assert distribution.log_prob(torch.zeros_like(actions))[0] == never
    (distribution.entropy() + distribution.log_prob(actions)).sum().backward()
    assert logits.grad.isfinite().all()


@pytest.mark.parametrize(("logit", "action"), [(math.inf, 1), (-math.inf, 0)])
def test_a_certain_choice_is_made_without_surprise(logit, action):
    logits = torch.full((1000, 2), logit, requires_grad=True)
    distribution, actions = Bernoullis(logits), torch.full((1000, 2), action)
    assert torch.equal(distribution.sample(distribution.noise()), actions)
    assert torch.equal(distribution.mode(), actions)
    assert not distribution.log_prob(actions).any()
    assert (distribution.log_prob(1 - actions) == -math.inf).all()
    assert not distribution.entropy().any()
    (distribution.entropy() + distribution.log_prob(actions)).sum().backward()
    assert logits.grad.isfinite().all()


@pytest.mark.parametrize(
    ("space", "width"),
    [(spaces.MultiDiscrete(EQUAL), 6), (spaces.MultiDiscrete(RAGGED), 8), (spaces.MultiBinary(4), 4)],
)
def test_a_noise_column_depends_on_its_generator_alone(space, width):
    def noise(*seeds):
        return draw_noise(space, 5, generators(*seeds), torch.float32, torch.device("cpu"))

    many = noise(7, 8, 9)
    assert many.shape == (5, 3, width)
    assert torch.equal(many[:, 1:2], noise(8))
    assert torch.equal(many[:, [2, 0]], noise(9, 7))
    assert not torch.equal(many[:, 0], many[:, 1])
    assert draw_noise(space, 2, generators(1), torch.float64, torch.device("cpu")).dtype == torch.float64


def test_actions_start_from_0_wherever_the_space_does():
    """The start is added at the environment's door."""
    started = spaces.MultiDiscrete([3, 2], start=[5, -9])
    noise = draw_noise(started, 200, generators(1), torch.float32, "cpu")[:, 0]
    samples = MultiCategorical(torch.zeros(200, 5), (3, 2)).sample(noise)
    assert samples.dtype == torch.int64
    assert [column.unique().tolist() for column in samples.unbind(-1)] == [[0, 1, 2], [0, 1]]


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
@pytest.mark.parametrize(
    "made", [lambda logits: MultiCategorical(logits, (2, 1, 3)), Bernoullis], ids=["categoricals", "bernoullis"]
)
def test_half_precision_networks_get_float32_distributions(made, dtype):
    numbers = torch.randn(4, 6).to(dtype)
    distribution, exact = made(numbers), made(numbers.float())
    actions = distribution.sample(distribution.noise())
    assert distribution.noise().dtype == torch.float32
    assert actions.dtype == torch.int64
    assert distribution.log_prob(actions).dtype == distribution.entropy().dtype == torch.float32
    assert torch.equal(distribution.log_prob(actions), exact.log_prob(actions))


def test_components_seen_first_without_gradients_have_them_later():
    """What is kept for a nvec must not be a tensor of the inference mode, or of a trace."""
    nvec = (2, 5, 3)
    _padding.cache_clear()
    with torch.inference_mode():
        MultiCategorical(torch.zeros(1, 10), nvec).mode()
    logits = torch.zeros(2, 10, requires_grad=True)
    MultiCategorical(logits, nvec).log_prob(torch.ones(2, 3, dtype=torch.int64)).sum().backward()
    assert logits.grad.abs().sum() > 0


class Greedy(torch.nn.Module):
    def forward(self, logits):
        return MultiCategorical(logits, (4, 5, 3)).mode()


@pytest.mark.parametrize("is_known", [False, True])
def test_components_can_be_traced_and_leave_nothing_behind(is_known):
    _padding.cache_clear()
    logits = torch.randn(3, 12)
    expected = torch.stack([part.argmax(-1) for part in logits.split((4, 5, 3), -1)], -1)
    if is_known:
        Greedy()(logits)
    batch = torch.export.Dim("batch")
    program = torch.export.export(Greedy(), (torch.randn(2, 12),), dynamic_shapes=({0: batch},))
    assert torch.equal(program.module()(logits), expected)
    assert torch.equal(Greedy()(logits), expected)
    assert type(_padding((4, 5, 3), logits.device)) is torch.Tensor
