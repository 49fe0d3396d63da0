"""The learning rate's polynomial decay over environment steps."""

import math

import pytest
import torch

from ppo_lightning import PPO, ConfigurationError
from ppo_lightning.algorithms.schedules import LearningRateDecay, learning_rate_decay
from tests.agents import daac_data, make_daac, make_rnd
from tests.runs import Recorder, equal, fit, make_data, make_ppo, weights


def rates(agent=None, data=None, **settings):
    recorder = Recorder()
    fit(agent, data or make_data(iterations=4), callbacks=[recorder], **settings)
    return recorder.lrs


@pytest.mark.parametrize(
    ("power", "steps", "expected"),
    [
        (1.0, 100, [1.0, 0.775, 0.55, 0.325, 0.1, 0.1]),
        (2.0, 100, [1.0, 0.1 + 0.9 * 0.75**2, 0.325, 0.1 + 0.9 / 16, 0.1, 0.1]),
        (0.5, 50, [1.0, 0.1 + 0.9 * 0.5**0.5, 0.1, 0.1, 0.1, 0.1]),
        (1.0, None, [1.0, 0.82, 0.64, 0.46, 0.28, 0.1]),  # of 125 steps in all
    ],
)
def test_the_factor_by_hand(power, steps, expected):
    decay = LearningRateDecay(0.02, 0.002, steps, power)
    assert [decay.factor(25 * n, 1 - n / 5) for n in range(6)] == pytest.approx(expected, rel=1e-12)


def test_it_may_rise():
    assert LearningRateDecay(0.1, 0.3, 100, 1.0).factor(50, 0.0) == pytest.approx(2.0)


def test_each_iteration_has_the_rate_of_its_first_step():
    assert rates(make_ppo(learning_rate=1.0, final_learning_rate=0.2)) == pytest.approx([1.0, 0.8, 0.6, 0.4])
    agent = make_ppo(learning_rate=1e-3, final_learning_rate=1e-4, lr_decay_steps=64)  # two of four iterations
    assert rates(agent) == pytest.approx([1e-3, 5.5e-4, 1e-4, 1e-4])
    agent = make_ppo(learning_rate=1e-3, anneal_lr=True, lr_decay_steps=64, lr_decay_power=2.0)
    assert rates(agent) == pytest.approx([1e-3, 2.5e-4, 0, 0])


def test_it_is_every_agents():
    flags = {"learning_rate": 1e-3, "final_learning_rate": 5e-4}
    assert rates(make_rnd(**flags), make_data(iterations=2)) == pytest.approx([1e-3, 7.5e-4])
    assert rates(make_daac(**flags), daac_data(iterations=2)) == pytest.approx([1e-3, 7.5e-4])


def test_the_critics_rate_keeps_its_proportion():
    agent = make_ppo(learning_rate=1e-3, critic_learning_rate=4e-3, final_learning_rate=5e-4)
    recorder = Recorder()
    fit(agent, make_data(), callbacks=[recorder])
    logged = [(m["train/learning_rate"], m["train/critic_learning_rate"]) for m in recorder.metrics]
    assert logged == [pytest.approx((1e-3, 4e-3)), pytest.approx((7.5e-4, 3e-3))]


def test_it_holds_for_any_optimizer():
    assert rates(make_ppo(learning_rate=0.1, final_learning_rate=0.02, optimizer=torch.optim.RMSprop)) == pytest.approx(
        [0.1, 0.08, 0.06, 0.04]
    )


def test_a_resumed_run_goes_on_with_the_same_rates():
    flags = {"learning_rate": 1e-2, "final_learning_rate": 1e-3, "lr_decay_steps": 96, "lr_decay_power": 2.0}
    whole = make_ppo(**flags)
    expected = rates(whole)
    first = make_ppo(**flags)
    rates(first, max_epochs=2)
    first.trainer.save_checkpoint("a.ckpt")
    rest = make_ppo(**flags)
    assert rates(rest, ckpt_path="a.ckpt") == expected[2:]
    assert equal(weights(rest), weights(whole))


def test_a_decay_of_its_own_length_needs_no_end():
    agent = make_ppo(learning_rate=1e-2, final_learning_rate=0.0, lr_decay_steps=64)
    assert rates(agent, make_data(total_timesteps=None), max_epochs=3) == pytest.approx([1e-2, 5e-3, 0])


def test_one_over_the_whole_run_does():
    sentence = r"^--model\.final_learning_rate=0\.001 needs to know when training ends: set --data\.total_timesteps\.$"
    with pytest.raises(ConfigurationError, match=sentence):
        fit(make_ppo(final_learning_rate=1e-3), make_data(total_timesteps=None), max_epochs=1)


def test_without_a_flag_there_is_none():
    assert learning_rate_decay(1e-3, None, None, 1.0, False) is None


EXPONENTIAL = torch.optim.lr_scheduler.ExponentialLR


@pytest.mark.parametrize(
    ("flags", "words"),
    [
        ({"final_learning_rate": -1e-4}, r"--model\.final_learning_rate must be at least 0, not -0\.0001\."),
        ({"final_learning_rate": math.nan}, r"--model\.final_learning_rate"),
        ({"final_learning_rate": 0.0, "lr_decay_steps": 0}, r"--model\.lr_decay_steps must be at least 1, not 0\."),
        ({"final_learning_rate": 0.0, "lr_decay_power": 0.0}, r"--model\.lr_decay_power must be greater than 0, not 0"),
        ({"anneal_lr": True, "lr_decay_power": -1.0}, r"--model\.lr_decay_power"),
        (
            {"anneal_lr": True, "final_learning_rate": 1e-5},
            r"--model\.anneal_lr=true and --model\.final_learning_rate=1e-05 both set the learning rate: leave one of",
        ),
        (
            {"final_learning_rate": 1e-5, "scheduler": EXPONENTIAL},
            r"--model\.final_learning_rate=1e-05 and --model\.scheduler both set the learning rate: leave one of them",
        ),
        (
            {"final_learning_rate": 1e-4, "adaptive_lr_kl": 0.01},
            r"--model\.final_learning_rate=0\.0001 and --model\.adaptive_lr_kl both set the learning rate",
        ),
        ({"lr_decay_steps": 100}, r"--model\.lr_decay_steps=100 is of --model\.final_learning_rate, which is not set"),
        ({"lr_decay_power": 2.0}, r"--model\.lr_decay_power=2 is of --model\.final_learning_rate, which is not set"),
    ],
)
def test_contradictions_are_refused_by_name(flags, words):
    with pytest.raises(ConfigurationError, match=f"^{words}"):
        PPO(**flags)
