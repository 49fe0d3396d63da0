"""Losses in closed form: those of autograd, with its gradients, and only where that is sure."""

import functools
import math
from types import SimpleNamespace

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from ppo_lightning.algorithms import closed_form
from ppo_lightning.algorithms.closed_form import MOST, are_small, critic_loss, has_closed_form
from ppo_lightning.algorithms.objective import ClippedObjective, loss_of_values
from ppo_lightning.core.rollout import PPOBatch
from ppo_lightning.functional import value_loss
from ppo_lightning.functional.distributions import ILLEGAL, Categorical, DiagonalGaussian, MultiCategorical
from ppo_lightning.functional.squashed import SquashedGaussian
from ppo_lightning.models import host_pass
from tests.agents import make_daac, make_rnd
from tests.runs import Recorder, fit, make_data, make_ppo

EXACT = {"rtol": 1e-12, "atol": 1e-12}
SEEDS = st.integers(0, 2**31)


def draw(*shape, generator, dtype=torch.float64):
    return torch.randn(*shape, generator=generator, dtype=dtype)


def minibatch(kind, size, seed, dtype=torch.float64, common=False):
    """What describes the policies, what makes a distribution of it, and rows of which some ratios are clipped."""
    generator = torch.Generator().manual_seed(seed)
    if kind == "choice":
        inputs, make = [3 * draw(size, 5, generator=generator, dtype=dtype)], Categorical
        actions = torch.randint(5, (size,), generator=generator)
    else:
        shape = (3,) if common else (size, 3)
        inputs = [draw(size, 3, generator=generator, dtype=dtype), 0.3 * draw(*shape, generator=generator, dtype=dtype)]
        make, actions = DiagonalGaussian, 2 * draw(size, 3, generator=generator, dtype=dtype)
    log_probs = make(*inputs).log_prob(actions)
    old, advantages, returns = (draw(size, generator=generator, dtype=dtype) for _ in range(3))
    rows = PPOBatch(
        obs=torch.zeros(size, 1),
        actions=actions,
        log_probs=log_probs + 0.3 * old,
        advantages=advantages,
        returns=returns,
        values=returns + old,
        batch_size=[size],
    )
    return [x.requires_grad_() for x in inputs], make, rows


def both(monkeypatch, inputs, make, rows, objective, advantages=None):
    """Loss, ratio, parts and gradients: in closed form, then by autograd."""
    advantages = rows.advantages if advantages is None else advantages
    found = []
    for is_closed in (True, False):
        with monkeypatch.context() as patch:
            if not is_closed:
                patch.setattr("ppo_lightning.algorithms.closed_form.has_closed_form", lambda *_: False)
            loss, ratio, parts = objective.loss(make(*inputs), rows, advantages)
        assert ("ActorLoss" in type(loss.grad_fn).__name__) == is_closed
        gradients = torch.autograd.grad(2.5 * loss, inputs)  # as a weight among ranks or of a part has it
        found.append((loss.detach(), ratio.detach(), {k: v.detach() for k, v in parts.items()}, gradients))
    return found


@pytest.fixture
def patched():
    with pytest.MonkeyPatch.context() as patch:
        yield patch


@pytest.mark.parametrize("common", [False, True])
@pytest.mark.parametrize("kind", ["choice", "numbers"])
@given(seed=SEEDS, size=st.integers(1, 40), clip_coef=st.floats(0.01, 1.5), ent_coef=st.sampled_from([0.0, 0.01, 1.0]))
def test_the_actors_loss_and_gradients_are_those_of_autograd(kind, common, seed, size, clip_coef, ent_coef):
    with pytest.MonkeyPatch.context() as patch:
        objective = ClippedObjective(clip_coef, ent_coef)
        own, reference = both(patch, *minibatch(kind, size, seed, common=common), objective)
    torch.testing.assert_close(own, reference, **EXACT)


@pytest.mark.parametrize("kind", ["choice", "numbers"])
def test_float32_agrees_to_its_rounding(patched, kind):
    own, reference = both(patched, *minibatch(kind, 64, 3, torch.float32), ClippedObjective(0.2, 0.01))
    torch.testing.assert_close(own, reference, rtol=2e-5, atol=1e-6)
    assert all(x.dtype is torch.float32 for x in [own[0], own[1], *own[2].values(), *own[3]])


@pytest.mark.parametrize("kind", ["choice", "numbers"])
def test_ratios_of_one_and_advantages_of_nothing(patched, kind):
    inputs, make, rows = minibatch(kind, 8, 1)
    log_probs = make(*inputs).log_prob(rows.actions).detach()
    shifts = torch.tensor([0.0, 0.6, -0.6, 0.0, 1.5, 0.25, 0.0, 0.4], dtype=torch.float64).log1p()
    rows.log_probs = log_probs - shifts  # ratios of 1, 1.6, 0.4, …
    advantages = torch.tensor([1.0, -1.0, 2.0, 0.0, 0.0, -0.0, 3.0, 1.0], dtype=torch.float64)
    own, reference = both(patched, inputs, make, rows, ClippedObjective(0.5, 0.01), advantages)
    torch.testing.assert_close(own, reference, **EXACT)


@pytest.mark.parametrize("ent_coef", [0.0, 0.05])
@pytest.mark.parametrize("lowest", [ILLEGAL, -math.inf])
def test_illegal_actions_get_no_gradient(patched, lowest, ent_coef):
    inputs, make, rows = minibatch("choice", 16, 2, torch.float32)
    mask = torch.arange(5) < torch.where(torch.arange(16) % 2 == 0, 3, 5).unsqueeze(-1)
    rows.actions = rows.actions % 3

    def masked(logits):
        return make(logits.masked_fill(~mask, lowest))

    own, reference = both(patched, inputs, masked, rows, ClippedObjective(0.2, ent_coef))
    torch.testing.assert_close(own, reference, rtol=2e-5, atol=1e-6)
    assert own[0].isfinite()
    assert not own[3][0][~mask].any()


@pytest.mark.parametrize("is_closed", [True, False])
def test_only_the_loss_has_a_gradient(monkeypatch, is_closed):
    inputs, make, rows = minibatch("choice", 4, 0)
    monkeypatch.setattr(closed_form, "MOST", MOST if is_closed else 0)
    loss, ratio, parts = ClippedObjective(0.2, 0.01).loss(make(*inputs), rows, rows.advantages)
    assert loss.requires_grad
    assert not any(x.requires_grad for x in [ratio, *parts.values()])


@pytest.mark.parametrize("kind", ["choice", "numbers", "values"])
def test_derivatives_of_the_gradients_are_those_of_autograd(monkeypatch, kind):
    """What a penalty on the gradient asks for."""
    found = []
    for most in (MOST, 0):
        monkeypatch.setattr(closed_form, "MOST", most)
        inputs, make, rows = minibatch("numbers" if kind == "numbers" else "choice", 6, 4)
        if kind == "values":
            inputs = [rows.values.clone().add(0.1).requires_grad_()]
            loss = loss_of_values(inputs[0], rows.returns, rows.values, 0.2)
        else:
            fixed = [inputs[0], *(x.detach() for x in inputs[1:])]  # as a policy of fixed std has it
            loss, *_ = ClippedObjective(0.2, 0.05).loss(make(*fixed), rows, rows.advantages)
        assert ("Loss" in type(loss.grad_fn).__name__) == bool(most)
        (gradient,) = torch.autograd.grad(loss, inputs[:1], create_graph=True)
        found.append(torch.autograd.grad(loss + 10 * gradient.square().sum(), inputs[:1]))
    torch.testing.assert_close(*found, **EXACT)


@given(seed=SEEDS, size=st.integers(1, 40), clip_coef=st.one_of(st.none(), st.floats(0.01, 3)), is_tied=st.booleans())
def test_the_critics_loss_and_gradient_are_those_of_autograd(seed, size, clip_coef, is_tied):
    generator = torch.Generator().manual_seed(seed)
    values, returns, old_values = (draw(size, generator=generator) for _ in range(3))
    if is_tied:  # whole numbers, of which many a maximum is reached twice
        values, returns, old_values = (x.mul(2).round() for x in (values, returns, old_values))
        clip_coef = None if clip_coef is None else max(1.0, float(round(clip_coef)))
    values.requires_grad_()
    own, reference = (
        critic_loss(values, returns, old_values, clip_coef),
        value_loss(values, returns, old_values, clip_coef),
    )
    torch.testing.assert_close(own, reference, **EXACT)
    gradients = [torch.autograd.grad(-3 * loss, values)[0] for loss in (own, reference)]
    torch.testing.assert_close(*gradients, **EXACT)


def test_a_maximum_reached_twice_outside_the_range_learns_half():
    values = torch.tensor([2.0], dtype=torch.float64, requires_grad=True)
    # 2 is as far from 1.5 as the clipped 1 is
    loss = critic_loss(values, torch.tensor([1.5]).double(), torch.tensor([0.0]).double(), 1.0)
    (gradient,) = torch.autograd.grad(loss, values)
    assert (loss.item(), gradient.item()) == (0.125, 0.25)


ROWS = {"actions": torch.zeros(4).long(), "old_log_probs": torch.zeros(4), "advantages": torch.zeros(4)}
NUMBERS = ROWS | {"actions": torch.zeros(4, 2)}
CHOICE, GAUSSIAN = Categorical(torch.zeros(4, 2)), DiagonalGaussian(torch.zeros(4, 2), torch.zeros(2))


def test_policies_of_one_choice_or_of_numbers_have_a_closed_form():
    assert has_closed_form(CHOICE, **ROWS)
    assert has_closed_form(GAUSSIAN, **NUMBERS)


@pytest.mark.parametrize(
    ("distribution", "rows"),
    [
        (MultiCategorical(torch.zeros(4, 4), (2, 2)), ROWS | {"actions": torch.zeros(4, 2).long()}),
        (SquashedGaussian(torch.zeros(4, 2), torch.zeros(2)), NUMBERS),
        (Categorical(torch.zeros(4, MOST // 4 + 1)), ROWS),
        (Categorical(torch.zeros(4, 2, device="meta")), ROWS),
        (Categorical(torch.zeros(4, 2).double()), ROWS),
        (Categorical(torch.zeros(2)), {name: x[0] for name, x in ROWS.items()}),
        (Categorical(torch.zeros(0, 2)), {name: x[:0] for name, x in ROWS.items()}),
        (CHOICE, ROWS | {"actions": torch.zeros(4).int()}),
        (CHOICE, ROWS | {"actions": torch.zeros(3).long()}),
        (CHOICE, ROWS | {"actions": torch.zeros(4, device="meta").long()}),
        (CHOICE, ROWS | {"advantages": torch.zeros(4, 1)}),
        (CHOICE, ROWS | {"advantages": torch.zeros(4, device="meta")}),
        (CHOICE, ROWS | {"advantages": torch.zeros(4, requires_grad=True)}),
        (CHOICE, ROWS | {"old_log_probs": torch.zeros(4).double()}),
        (DiagonalGaussian(torch.zeros(4, 2), torch.zeros(2).double()), NUMBERS),
        (GAUSSIAN, NUMBERS | {"actions": torch.zeros(4, 2).double()}),
        (GAUSSIAN, NUMBERS | {"actions": torch.zeros(4, 1)}),
    ],
)
def test_others_are_left_to_autograd(distribution, rows):
    assert not has_closed_form(distribution, **rows)


def test_small_tensors_of_one_full_precision_alone():
    single, double = torch.zeros(4), torch.zeros(4, dtype=torch.float64)
    assert [are_small(*pair) for pair in [(single, single), (double, double)]] == [True, True]
    half, learned = single.bfloat16(), single.clone().requires_grad_()
    assert [are_small(*pair) for pair in [(single, double), (half, half), (single, learned)]] == [False] * 3
    assert loss_of_values(half.requires_grad_(), single, single, None).dtype is torch.float32


@pytest.mark.parametrize("name", ["values", "returns", "old_values"])
def test_a_column_is_no_row(name):
    rows = dict.fromkeys(("values", "returns", "old_values"), torch.zeros(4)) | {name: torch.zeros(4, 1)}
    with pytest.raises(ValueError, match="must be equal"):
        loss_of_values(**rows, clip_coef=None)


@pytest.mark.parametrize("name", ["log_probs", "advantages"])
def test_a_column_is_no_row_of_the_actors(name):
    _, _, rows = minibatch("choice", 4, 0, torch.float32)
    columns = SimpleNamespace(actions=rows.actions, log_probs=rows.log_probs, advantages=rows.advantages)
    setattr(columns, name, torch.zeros(4, 1))
    with pytest.raises(ValueError, match="must be equal"):
        ClippedObjective(0.2, 0.01).loss(Categorical(torch.zeros(4, 5)), columns, columns.advantages)


@pytest.mark.parametrize("factor", [1.0, 3e38, 0.0])
def test_what_overflows_is_told_of_by_no_warning(factor, recwarn):
    values = torch.tensor([math.nan, math.inf, 1e30, 3e38], requires_grad=True)
    loss = critic_loss(values, torch.zeros(4), torch.zeros(4), 0.2)
    assert loss.isnan()
    (factor * loss).backward()
    logits = torch.tensor([[math.nan, 0.0], [1e38, -1e38], [0.0, 0.0]], requires_grad=True)
    rows = torch.zeros(3).long(), torch.tensor([0.0, 0.0, -200.0]), torch.tensor([1.0, 1.0, -3e38])
    loss, ratio, told = closed_form.actor_loss(Categorical(logits), *rows, 0.2, 0.01)
    assert loss.isnan()
    assert ratio[2] == math.inf
    assert told[3] == pytest.approx(1 / 3)  # NaN is not beyond the range
    (factor * loss).backward()
    assert not recwarn.list


def note(calls, name, forward, *args):
    calls.add(name)
    return forward(*args)


@pytest.mark.parametrize("name", ["advantages", "log_probs", "returns"])
@pytest.mark.parametrize("most", [MOST, 0])
def test_a_row_that_is_nan_makes_its_gradient_nan(monkeypatch, name, most):
    """Else a guard of gradients would let its step pass."""
    monkeypatch.setattr(closed_form, "MOST", most)
    (logits,), make, rows = minibatch("choice", 4, 0)
    getattr(rows, name)[1] = math.nan
    values = torch.zeros(4, dtype=torch.float64, requires_grad=True)
    loss, *_ = ClippedObjective(0.2, 0.01).loss(make(logits), rows, rows.advantages)
    (loss + loss_of_values(values, rows.returns, rows.values, 0.2)).backward()
    found = values.grad if name == "returns" else logits.grad
    assert found[1].isnan().all()
    assert found[[0, 2, 3]].isfinite().all()


@pytest.mark.parametrize("agent", [make_ppo, make_daac, make_rnd])
def test_rounding_alone_tells_runs_in_closed_form_from_others(agent, monkeypatch):
    """Whole runs, in float64."""
    runs = {}
    for most in (MOST, 0):
        calls = set()
        monkeypatch.setattr(closed_form, "MOST", most)
        monkeypatch.setattr(host_pass, "MOST", 0)
        with monkeypatch.context() as patch:
            for name in ("_ActorLoss", "_CriticLoss"):
                kind = getattr(closed_form, name)
                spy = functools.partial(note, calls, name, kind.forward)
                patch.setattr(kind, "forward", staticmethod(spy))
            recorder = Recorder()
            settings = {} if agent is not make_daac else {"update_epochs": None}
            fit(agent(), make_data(iterations=3, **settings), callbacks=[recorder], precision="64-true")
        assert calls == ({"_ActorLoss", "_CriticLoss"} if most else set())
        runs[most] = recorder
    for first, second in zip(*(recorder.after for recorder in runs.values())):
        for name in first:
            torch.testing.assert_close(first[name], second[name], rtol=0, atol=1e-11)
