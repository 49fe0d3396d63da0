import time

import pytest

from ppo_lightning import ConfigurationError, Evaluation
from tests.runs import Recorder, equal, fit, make_data, make_ppo, weights


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
