import time
from pathlib import Path

import pytest
import torch
from lightning.pytorch import Callback
from torch import nn

from ppo_lightning import (
    BestCheckpoint,
    ConfigurationError,
    Evaluation,
    GymnasiumEnv,
    RunCheckpoint,
    run_loggers,
)
from ppo_lightning.callbacks import TrainingSummary
from ppo_lightning.envs import EnvFactory
from ppo_lightning.models import PPOModelOutput
from tests.runs import Recorder, equal, fit, make_data, make_ppo, make_trainer, weights
from tests.tasks import Wage


class Counting(Evaluation):
    """Notes the environment steps of each evaluation."""

    def __init__(self, **kwargs):
        super().__init__(**{"num_episodes": 2} | kwargs)
        self.at = []

    def run(self, trainer, pl_module):
        self.at.append(trainer.datamodule.env_steps)
        return super().run(trainer, pl_module)


def evaluated_at(iterations=5, **kwargs):
    evaluation = Counting(**kwargs)
    fit(data=make_data(iterations=iterations), callbacks=[evaluation])
    return evaluation.at


def test_every_n_iterations_and_once_at_the_end():
    assert evaluated_at(every_n_iterations=2) == [64, 128, 160]


def test_every_n_env_steps_as_soon_as_they_are_passed():
    assert evaluated_at(every_n_env_steps=50) == [64, 128, 160]  # 50, 100 and 150 are passed within an iteration


def test_every_ten_iterations_by_default():
    assert evaluated_at(iterations=12) == [320, 384]


def test_training_goes_on_exactly_as_without():
    alone = weights(fit(make_ppo(), make_data(iterations=4)))
    watched = weights(
        fit(make_ppo(), make_data(iterations=4), callbacks=[Evaluation(num_episodes=5, every_n_iterations=1)])
    )
    assert equal(alone, watched)


def test_the_same_episodes_at_every_evaluation():
    results = []

    class Noting(Evaluation):
        def run(self, trainer, pl_module):
            super().run(trainer, pl_module)
            results.append(self.results[""])

    frozen = make_ppo(learning_rate=1e-12)
    fit(frozen, callbacks=[Noting(num_episodes=6, every_n_iterations=1, temperature=1)])
    first, second = ([episode.episode_return for episode in result.episodes] for result in results)
    assert first == second
    assert len(set(first)) > 1


def test_its_numbers_are_logged():
    recorder, evaluation = Recorder(), Evaluation(num_episodes=7, every_n_iterations=1)
    fit(callbacks=[evaluation, recorder])
    last = recorder.metrics[-1]
    assert last["eval/return_mean"] == pytest.approx(evaluation.metrics["eval/return_mean"])
    assert last["eval/return_ci95"] == pytest.approx(evaluation.metrics["eval/return_ci95"])
    assert last["eval/episodes"] == 7


def test_the_network_is_in_evaluation_mode_only_meanwhile():
    modes = []

    class Watching(Evaluation):
        def run(self, trainer, pl_module):
            hook = pl_module.network.register_forward_hook(lambda module, *_: modes.append(module.training))
            result = super().run(trainer, pl_module)
            hook.remove()
            modes.append(pl_module.training)
            return result

    fit(make_ppo(), callbacks=[Watching(num_episodes=2)])
    assert not any(modes[:-1])
    assert modes[-1]


def test_it_is_left_out_of_the_speed(monkeypatch):
    class Slow(Evaluation):
        def run(self, trainer, pl_module):
            super().run(trainer, pl_module)
            now[0] += 1000

    now, clock = [0.0], time.perf_counter
    monkeypatch.setattr(time, "perf_counter", lambda: clock() + now[0])
    recorder = Recorder()
    fit(data=make_data(iterations=3), callbacks=[Slow(num_episodes=1, every_n_iterations=1), recorder])
    assert recorder.metrics[1]["time/sps"] > 1  # 32 steps in 1000 s would be 0.03 a second
    assert recorder.metrics[1]["time/seconds"] > 1000  # but it is time that the run takes


def test_max_num_steps_cuts_episodes():
    evaluation = Evaluation(num_episodes=8, max_num_steps=4)
    fit(callbacks=[evaluation])
    assert max(episode.length for episode in evaluation.results[""].episodes) == 4


@pytest.mark.parametrize(
    ("settings", "words"),
    [
        ({"num_episodes": 0}, "--evaluation.num_episodes"),
        ({"num_envs": 0}, "--evaluation.num_envs"),
        ({"temperature": -0.1}, "--evaluation.temperature"),
        ({"every_n_iterations": 0}, "--evaluation.every_n_iterations"),
        ({"every_n_env_steps": 0}, "--evaluation.every_n_env_steps"),
        ({"max_num_steps": 0}, "--evaluation.max_num_steps"),
        ({"every_n_iterations": 1, "every_n_env_steps": 1}, "leave one out"),
    ],
)
def test_bad_settings_are_refused(settings, words):
    with pytest.raises(ConfigurationError, match=words):
        Evaluation(**settings)


# -- splits


WAGE = "tests.tasks:Wage-v0"
SPLITS = {"short": None, "long": {"kwargs": {"length": 5, "wage": 2.0}}}


class FirstStep(nn.Module):
    """Takes action 1 in the first step of an episode, else action 0."""

    def __init__(self):
        super().__init__()
        self.sharpness = nn.Parameter(torch.tensor(50.0))

    def forward(self, obs):
        logits = torch.stack([torch.zeros(len(obs)), self.sharpness * (0.5 - obs[:, 0])], dim=1)
        return PPOModelOutput(logits=logits, value=obs[:, 0] * self.sharpness, hidden=obs)


def wages(**kwargs):
    recorder, evaluation = (
        Recorder(),
        Evaluation(**{"num_episodes": 6, "num_envs": 4, "every_n_iterations": 1} | kwargs),
    )
    ppo = make_ppo(network=FirstStep(), learning_rate=1e-9, log_action_id=1)
    fit(ppo, make_data(GymnasiumEnv(WAGE)), callbacks=[evaluation, recorder])
    return recorder.metrics[-1], evaluation


def test_each_split_has_its_own_environment_and_names():
    logged, evaluation = wages(splits=SPLITS)
    for split, length, total in (("short", 3, 3), ("long", 5, 10)):
        of_split = {name.removeprefix(f"eval/{split}/"): value for name, value in logged.items() if split in name}
        assert of_split["return_mean"] == total
        assert of_split["length_min"] == of_split["length_max"] == length
        assert of_split["episodes"] == 6
        assert of_split["steps"] == 6 * length
        assert [episode.length for episode in evaluation.results[split].episodes] == [length] * 6
    assert "eval/return_mean" not in logged


def test_the_fraction_of_the_logged_action_is_counted():
    logged, _ = wages(splits=SPLITS)
    assert logged["eval/short/action_1_fraction"] == pytest.approx(1 / 3)
    assert logged["eval/long/action_1_fraction"] == pytest.approx(1 / 5)
    assert wages()[0]["eval/action_1_fraction"] == pytest.approx(1 / 3)


@pytest.mark.parametrize("splits", [None, SPLITS])
@pytest.mark.parametrize("log_action_id", [None, 1])
def test_metric_names_are_those_that_are_logged(splits, log_action_id):
    names, evaluation = [], Evaluation(num_episodes=2, splits=splits)

    class Asking(Callback):
        def on_fit_start(self, trainer, pl_module):
            names.extend(evaluation.metric_names(trainer))

    recorder = Recorder()
    ppo = make_ppo(log_action_id=log_action_id)
    fit(ppo, make_data(GymnasiumEnv(WAGE)), callbacks=[evaluation, Asking(), recorder])
    assert sorted(names) == sorted(name for name in recorder.metrics[-1] if name.startswith("eval/"))
    assert len(set(names)) == len(names)


def training(*callbacks):
    """Parameters after each iteration, and every number of training but the clock's."""
    recorder, numbers = Recorder(), []

    class Noting(Callback):
        def on_train_epoch_end(self, trainer, pl_module):
            numbers.append({k: v for k, v in pl_module.iteration_metrics.items() if not k.startswith("time/")})

    fit(make_ppo(log_action_id=1), make_data(iterations=4), callbacks=[*callbacks, recorder, Noting()])
    return recorder.after, numbers


def test_training_is_bitwise_the_same_with_splits_sampling_and_summaries():
    splits = {"same": {}, "async": {"vectorization": "async"}}
    evaluation = Evaluation(num_episodes=5, num_envs=3, every_n_iterations=1, temperature=1.0, splits=splits)
    alone, numbers = training()
    watched, watched_numbers = training(evaluation, TrainingSummary(2, verbose=False))
    assert len(numbers) == 4
    assert any("rollout/return_std" in metrics for metrics in numbers)
    assert numbers == watched_numbers
    assert all(equal(first, second) for first, second in zip(alone, watched))


def refused(words, *evaluations, env=None):
    """The sentence, having seen that no environment was stepped and nothing was written."""
    Wage.stepped = 0
    with pytest.raises(ConfigurationError, match=words) as caught:
        fit(
            data=make_data(env or GymnasiumEnv(WAGE)),
            callbacks=[*evaluations, BestCheckpoint("eval/val/return_mean"), RunCheckpoint()],
            logger=run_loggers("."),
            enable_checkpointing=True,
        )
    assert Wage.stepped == 0
    assert not list(Path().rglob("*.ckpt"))
    assert not list(Path().rglob("metrics.csv"))
    sentence = str(caught.value)
    assert "\n" not in sentence
    assert sentence.endswith((".", "?"))
    return sentence


FLAG = r"--evaluation\.splits\.val"


@pytest.mark.parametrize(
    ("settings", "words"),
    [
        ({"kwarg": {}}, rf"{FLAG}\.kwarg is not a setting of GymnasiumEnv.*Did you mean kwargs\?"),
        ({"kwargs": {"lenght": 3}}, rf"{FLAG}.*lenght"),
        ({"vectorization": "asink"}, rf"{FLAG}\.vectorization='asink' is not accepted.*sync.*async"),
        ({"kwargs": 7}, rf"{FLAG}\.kwargs=7 is not accepted"),
        ({"id": "CartPol-v1"}, rf"{FLAG}.*CartPol-v1 is not a registered.*Did you mean CartPole-v1"),
        ({"kwargs": {"width": 3}}, rf"{FLAG}: its environment has the observation space Box.*\(3,\).*\(2,\)"),
        ({"id": "tests.tasks:Target-v0", "kwargs": {}}, rf"{FLAG}: its environment has the \w+ space Box"),
        ({"vectorization": "vector_entry_point"}, rf"{FLAG}.*has no vectorised form"),
    ],
)
def test_a_wrong_split_is_refused_before_any_work(settings, words):
    refused(words, Evaluation(splits={"val": settings}))


@pytest.mark.parametrize("name", ["", "a/b", "a b", "a\n"])
def test_a_split_needs_a_name_that_can_be_one(name):
    with pytest.raises(ConfigurationError, match=r"--evaluation.splits: .* is no name: use letters"):
        Evaluation(splits={name: {}})


def test_two_evaluations_of_one_split_are_refused():
    first, second = (Evaluation(splits={"val": {}, other: {}}) for other in ("a", "b"))
    refused("two Evaluation callbacks have a split named 'val'", first, second)
    refused(
        "two Evaluation callbacks have no named split", Evaluation(splits={"val": None}), Evaluation(), Evaluation()
    )


def test_two_evaluations_of_different_splits_are_both_logged():
    recorder = Recorder()
    evaluations = [Evaluation(num_episodes=2), Evaluation(num_episodes=3, splits={"val": {"kwargs": {"wage": 7.0}}})]
    fit(data=make_data(GymnasiumEnv(WAGE)), callbacks=[*evaluations, recorder])
    assert (recorder.metrics[-1]["eval/return_mean"], recorder.metrics[-1]["eval/val/return_mean"]) == (3, 21)


# -- splits of an environment in an environment


class Taxed(EnvFactory):
    """Takes a part of another environment's rewards."""

    def __init__(self, env: EnvFactory, tax: float = 0.5) -> None:
        if tax > 1:
            raise ConfigurationError(f"--data.env.tax={tax} is more than there is.")
        self.env, self.tax = env, tax

    def make(self, seeds):
        env, tax = self.env.make(seeds), self.tax
        step = env.step

        def taxed(actions):
            result = step(actions)
            result.base_rewards, result.rewards = result.rewards, result.rewards * (1 - tax)
            return result

        env.step = taxed
        return env


def taxed(splits):
    recorder, evaluation = Recorder(), Evaluation(num_episodes=2, splits=splits)
    fit(data=make_data(Taxed(GymnasiumEnv(WAGE, kwargs={"wage": 4.0}))), callbacks=[evaluation, recorder])
    metrics = recorder.metrics[-1]
    return [(metrics[f"eval/{split}/return_mean"], metrics[f"eval/{split}/base_return_mean"]) for split in splits]


def test_a_split_changes_settings_of_the_inner_and_of_the_outer_environment():
    splits = {
        "same": {},
        "outer": {"tax": 0.25},
        "inner": {"env": {"kwargs": {"length": 5}}},
        "both": {"tax": 0.0, "env": {"kwargs": {"length": 5}}},
        "other": {"env": {"class_path": "GymnasiumEnv", "init_args": {"id": WAGE}}},
    }
    assert taxed(splits) == [(6, 12), (9, 12), (2.5, 5), (5, 5), (1.5, 3)]


def test_a_split_leaves_the_environment_of_training_as_it_was():
    env = Taxed(GymnasiumEnv(WAGE, kwargs={"wage": 4.0}))
    changed = env.with_settings({"tax": 0.0, "env": {"kwargs": {"wage": 1.0}}}, "--flag")
    assert (changed.tax, changed.env.kwargs, changed.env.id) == (0.0, {"wage": 1.0}, WAGE)
    assert (env.tax, env.env.kwargs) == (0.5, {"wage": 4.0})


@pytest.mark.parametrize(
    ("settings", "words"),
    [
        ({"tex": 0.1}, rf"{FLAG}\.tex is not a setting of Taxed: choose from env, tax\. Did you mean tax\?"),
        ({"tax": "much"}, rf"{FLAG}\.tax='much' is not accepted: it should be float\."),
        ({"tax": 2.0}, rf"{FLAG}: tax=2\.0 is more than there is\."),
        ({"env": {"kwarg": {}}}, rf"{FLAG}\.env\.kwarg is not a setting of GymnasiumEnv.*Did you mean kwargs\?"),
    ],
)
def test_a_wrong_setting_of_either_environment_is_refused_by_its_path(settings, words):
    refused(words, Evaluation(splits={"val": settings}), env=Taxed(GymnasiumEnv(WAGE)))


def test_validation_evaluates_the_splits_too():
    evaluation = Evaluation(num_episodes=2, splits=SPLITS)
    ppo = fit(make_ppo(), make_data(GymnasiumEnv(WAGE)))
    make_trainer(callbacks=[evaluation]).validate(ppo, make_data(GymnasiumEnv(WAGE)), verbose=False)
    assert (evaluation.metrics["eval/short/return_mean"], evaluation.metrics["eval/long/return_mean"]) == (3, 10)


@pytest.mark.parametrize("name", [1, None])
def test_names_of_splits_are_strings(name):
    with pytest.raises(ConfigurationError, match="is no name"):
        Evaluation(splits={name: {}})


@pytest.mark.parametrize(("settings", "words"), [({"id": None}, r"id=None is not accepted"), ({1: 2}, r"\.1 is not a")])
def test_settings_of_splits_are_checked_whatever_their_type(settings, words):
    with pytest.raises(ConfigurationError, match=words):
        GymnasiumEnv("CartPole-v1").with_settings(settings, "--evaluation.splits.a")
    assert GymnasiumEnv("CartPole-v1", kwargs={"a": 1}).with_settings({"kwargs": None}, "").kwargs == {}
