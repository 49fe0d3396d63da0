"""Numbers of the loss that change over a run."""

import math

import pytest
from lightning.pytorch import Callback

from ppo_lightning import PPO, ConfigurationError
from ppo_lightning.algorithms import closed_form, objective
from ppo_lightning.algorithms.schedules import LinearSchedule
from ppo_lightning.models import host_pass
from tests.runs import equal, fit, make_data, make_ppo, weights

TARGET = "tests.tasks:Target-v0"
FLAGS = {"clip_coef": 0.2, "final_clip_coef": 0.1, "ent_coef": 0.02, "final_ent_coef": 0.0, "vf_coef": 0.5}
CLIPS, ENTROPIES = (
    [0.2, 0.175, 0.15, 0.125],
    [0.02, 0.015, 0.01, 0.005],
)  # of four iterations, a quarter of the way each


class Entropies(Callback):
    """The weight of the entropy in each iteration, from the means over its minibatches that it logged."""

    def __init__(self):
        self.weights = []

    def on_train_epoch_end(self, trainer, pl_module):
        logged = {name: pl_module.iteration_metrics[f"train/{name}"] for name in ("policy_loss", "value_loss", "loss")}
        rest = logged["policy_loss"] + 0.5 * logged["value_loss"] - logged["loss"]
        self.weights.append(rest / pl_module.iteration_metrics["train/entropy"])


@pytest.fixture
def clips(monkeypatch):
    """The clip range that each minibatch's policy loss, value loss and clip fraction were computed with."""
    seen = []

    def spied(module, name):
        function = getattr(module, name)

        def spy(*args):
            seen.append(args[-1])
            return function(*args)

        monkeypatch.setattr(module, name, spy)

    for module in (closed_form, host_pass):  # where all of them are one call
        monkeypatch.setattr(module, "MOST", 0)
    for name in ("ppo_clipped_policy_loss", "clip_fraction", "value_loss"):
        spied(objective, name)
    return seen


def play(iterations=4, ckpt_path=None, total=4, **flags):
    entropies = Entropies()
    settings = {} if iterations == total else {"max_epochs": iterations}
    ppo = make_ppo(**flags)
    fit(ppo, make_data(TARGET, iterations=total), ckpt_path=ckpt_path, callbacks=[entropies], **settings)
    return ppo, entropies.weights


@pytest.mark.parametrize("exclude_zero", [False, True])
def test_it_goes_from_the_first_to_the_final_number(exclude_zero):
    schedule = LinearSchedule("clip_coef", 0.3, 0.1, exclude_zero)
    seen = []
    for remaining in (1.0, 0.75, 0.5, 0.0):
        schedule.start_iteration(remaining)
        seen.append(schedule.now)
    assert seen == pytest.approx([0.3, 0.25, 0.2, 0.1], rel=1e-15)
    assert schedule.flag == "--model.final_clip_coef=0.1"


def test_without_a_final_number_it_stays():
    schedule = LinearSchedule("ent_coef", 0.3, None)
    schedule.start_iteration(0.5)
    assert (schedule.now, schedule.flag) == (0.3, None)


def test_it_may_rise():
    schedule = LinearSchedule("ent_coef", 0.0, 0.4)
    schedule.start_iteration(0.25)
    assert schedule.now == pytest.approx(0.3)


def test_each_iteration_is_learned_from_with_its_own_numbers(clips):
    _, entropies = play(**FLAGS)
    # three losses and four minibatches an iteration
    assert clips == pytest.approx([clip for clip in CLIPS for _ in range(12)], rel=1e-12)
    assert entropies == pytest.approx(ENTROPIES, abs=1e-5)


def test_other_flags_leave_them_as_they_are(clips):
    _, entropies = play(clip_coef=0.2, ent_coef=0.02, clip_vloss=True)
    assert set(clips) == {0.2}
    assert entropies == pytest.approx([0.02] * 4, abs=1e-5)


def test_a_resumed_run_goes_on_with_the_same_schedule(clips):
    whole, _ = play(**FLAGS)
    clips.clear()
    first, _ = play(iterations=2, **FLAGS)
    first.trainer.save_checkpoint("a.ckpt")
    rest, entropies = play(ckpt_path="a.ckpt", **FLAGS)
    assert clips == pytest.approx([clip for clip in CLIPS for _ in range(12)], rel=1e-12)
    assert entropies == pytest.approx(ENTROPIES[2:], abs=1e-5)
    assert equal(weights(rest), weights(whole))


def test_a_longer_resumed_run_takes_its_own_length(clips):
    first, _ = play(iterations=2, **FLAGS)
    first.trainer.save_checkpoint("a.ckpt")
    clips.clear()
    play(ckpt_path="a.ckpt", iterations=8, total=8, **FLAGS)
    assert clips[::12] == pytest.approx([0.2 - 0.1 * iteration / 8 for iteration in range(2, 8)], rel=1e-12)


@pytest.mark.parametrize(
    ("flags", "words"),
    [
        ({"final_clip_coef": 0.1}, r"--model\.final_clip_coef=0\.1"),
        ({"final_ent_coef": 0.0}, r"--model\.final_ent_coef=0"),
        ({"anneal_lr": True, "final_ent_coef": 0.0}, r"--model\.anneal_lr=true"),
    ],
)
def test_a_schedule_needs_to_know_the_end(flags, words):
    sentence = rf"^{words} needs to know when training ends: set --data\.total_timesteps\.$"
    with pytest.raises(ConfigurationError, match=sentence):
        fit(make_ppo(**flags), make_data(TARGET, total_timesteps=None), max_epochs=1)
    fit(make_ppo(), make_data(TARGET, total_timesteps=None), max_epochs=1)


@pytest.mark.parametrize(
    ("flags", "words"),
    [
        ({"final_clip_coef": 0.0}, r"--model\.final_clip_coef must be greater than 0, not 0\."),
        ({"final_clip_coef": math.nan}, r"--model\.final_clip_coef"),
        ({"final_ent_coef": -0.1}, r"--model\.final_ent_coef must be at least 0, not -0\.1\."),
    ],
)
def test_numbers_outside_their_range_are_refused_by_name(flags, words):
    with pytest.raises(ConfigurationError, match=f"^{words}"):
        PPO(**flags)
