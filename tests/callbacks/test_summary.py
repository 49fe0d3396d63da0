import math

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from lightning.pytorch import Callback
from lightning.pytorch.callbacks import EarlyStopping

from ppo_lightning import ConfigurationError, EnvStepProgressBar, Evaluation, RunCheckpoint, run_loggers
from ppo_lightning.callbacks import TrainingSummary
from ppo_lightning.callbacks.summary import summarize, text_of
from ppo_lightning.data.collect import Collector
from tests.commands import RUN, rows
from tests.runs import fit, make_data, make_ppo, make_trainer

# -- the numbers


def test_returns_are_weighted_by_episodes_and_all_else_by_iterations():
    summary = summarize(
        [
            {"rollout/episodes": 1.0, "rollout/return_mean": 10.0, "rollout/solved_fraction": 1.0, "train/loss": 1.0},
            {"rollout/episodes": 3.0, "rollout/return_mean": 2.0, "rollout/solved_fraction": 0.0, "train/loss": 2.0},
        ]
    )
    assert summary == {"episodes": 4, "return_mean": 4, "solved_fraction": 0.25, "loss": 1.5}


def test_learning_rate_and_seconds_are_the_last():
    rates = [{"train/learning_rate": rate, "time/seconds": 10 * rate, "time/sps": rate} for rate in (4.0, 2.0)]
    assert summarize(rates) == {"learning_rate": 2, "seconds": 20, "sps": 3}


def test_iterations_in_which_no_episode_ended_count_for_the_others_only():
    ended = {"rollout/episodes": 2.0, "rollout/return_mean": 5.0, "rollout/return_std": 1.0, "train/loss": 4.0}
    none = {"rollout/episodes": 0.0, "train/loss": 2.0}
    for iterations in ([none, ended], [ended, none]):
        assert summarize(iterations) == {"episodes": 2, "return_mean": 5, "return_std": 1, "loss": 3}
    assert summarize([none]) == {"episodes": 0, "loss": 2}


returns = st.lists(st.floats(-100, 100), min_size=1, max_size=5)


@given(st.lists(returns, min_size=1, max_size=4))
def test_deviations_are_those_of_all_episodes_together(groups):
    summary = summarize(
        [
            {
                "rollout/episodes": float(len(group)),
                "rollout/return_mean": float(np.mean(group)),
                "rollout/return_std": float(np.std(group)),
            }
            for group in groups
        ]
    )
    together = np.concatenate(groups)
    assert summary["return_mean"] == pytest.approx(together.mean(), abs=1e-9)
    assert summary["return_std"] == pytest.approx(together.std(), abs=1e-5)  # a root takes the half of the digits


@given(st.lists(st.lists(st.floats(-100, 100), min_size=4, max_size=4), min_size=1, max_size=4))
def test_deviations_of_advantages_are_those_of_all_transitions_together(groups):
    summary = summarize(
        [
            {
                "rollout/episodes": float(number),  # not their weight
                "train/advantage_mean": float(np.mean(group)),
                "train/advantage_std": float(np.std(group)),
            }
            for number, group in enumerate(groups)
        ]
    )
    assert summary["advantage_std"] == pytest.approx(np.std(groups), abs=1e-5)


# -- in a run


class Noting(Callback):
    """Notes the metrics of each iteration."""

    def __init__(self):
        self.iterations = []

    def on_train_epoch_end(self, trainer, pl_module):
        self.iterations.append(dict(pl_module.iteration_metrics))


def summaries(folder=RUN):
    """``{steps: {name: value}}`` of what a run logged as ``summary/…``."""
    return {
        int(row["step"]): {name: float(value) for name, value in row.items() if value and name.startswith("summary/")}
        for row in rows(folder)
        if row.get("summary/loss")
    }


def train(summary, *callbacks, iterations=5, logger=True, **kwargs):
    noting = Noting()
    settings = {"learning_rate": 0.01, "anneal_lr": True, "log_action_id": 1} | kwargs
    fit(
        make_ppo(**settings),
        make_data(iterations=iterations),
        logger=run_loggers(".", version=0) if logger else False,
        callbacks=[*callbacks, summary, noting],
    )
    return noting.iterations


def test_every_log_freq_iterations_and_the_rest_at_the_end():
    iterations = train(TrainingSummary(2, verbose=False))
    logged = summaries()
    assert list(logged) == [64, 128, 160]
    windows = [iterations[:2], iterations[2:4], iterations[4:]]
    for numbers, window in zip(logged.values(), windows):
        assert numbers == pytest.approx({f"summary/{name}": value for name, value in summarize(window).items()})


def test_the_rest_is_summed_up_where_training_is_ended_early():
    class Ending(EarlyStopping):
        def on_train_epoch_end(self, trainer, pl_module):
            trainer.should_stop = trainer.datamodule.iteration == 3

    train(TrainingSummary(2, verbose=False), Ending("train/loss"), Evaluation(num_episodes=1))
    assert list(summaries()) == [64, 96]


def test_the_rest_is_in_no_later_summary():
    callbacks = [TrainingSummary(2, verbose=False), RunCheckpoint()]
    fit(data=make_data(iterations=3), callbacks=callbacks, logger=run_loggers("."), enable_checkpointing=True)
    checkpoint = torch.load(RUN / "checkpoints/last.ckpt", weights_only=True)
    assert checkpoint["callbacks"]["TrainingSummary"] == {"window": []}


def test_log_freq_0_logs_and_prints_nothing(capsys):
    train(TrainingSummary(0))
    assert summaries() == {}
    assert "steps" not in capsys.readouterr().out


def test_a_negative_log_freq_is_refused():
    with pytest.raises(ConfigurationError, match=r"--summary\.log_freq must be at least 0, not -1\."):
        TrainingSummary(-1)


def test_everything_that_is_promised_is_in_it(capsys):
    iterations = train(TrainingSummary(5))
    ((_, numbers),) = summaries().items()
    promised = {
        *("learning_rate", "return_mean", "return_std", "base_return_mean", "base_return_std", "length_mean"),
        *("episodes", "loss", "policy_loss", "value_loss", "entropy", "advantage_mean", "advantage_std"),
        *("value_mean", "value_std", "action_1_fraction", "action_prob_mean", "sps"),
    }
    assert promised <= {name.removeprefix("summary/") for name in numbers}
    assert numbers["summary/learning_rate"] == pytest.approx(0.01 * 1 / 5)
    assert numbers["summary/episodes"] == sum(metrics["rollout/episodes"] for metrics in iterations)
    printed = " ".join(capsys.readouterr().out.split())
    for name in ("loss", "policy_loss", "value_loss", "entropy", "action_prob_mean", "action_1_fraction"):
        assert f"{name.replace('_', ' ')} {numbers[f'summary/{name}']:.4g}" in printed
    for name in ("return", "advantage", "value"):
        mean, std = (numbers[f"summary/{name}_{part}"] for part in ("mean", "std"))
        assert f"{name} {mean:.4g} ± {std:.4g}" in printed
    assert "160 steps" in printed
    assert "learning rate 0.002" in printed


def test_the_base_return_is_printed_where_it_is_another():
    summary = {"return_mean": 1.0, "return_std": 2.0, "base_return_mean": 1.0, "base_return_std": 2.0}
    assert "base return" not in text_of(summary, 5)
    assert "return 1 ± 2   base return 3 ± 2" in text_of(summary | {"base_return_mean": 3.0}, 5)


def test_not_verbose_prints_nothing(capsys):
    train(TrainingSummary(2, verbose=False))
    assert capsys.readouterr().out == ""
    assert list(summaries()) == [64, 128, 160]


def test_it_is_printed_above_the_progress_bar(capsys, monkeypatch):
    printed = []
    monkeypatch.setattr(EnvStepProgressBar, "print", lambda self, text: printed.append(text))
    fit(data=make_data(iterations=4), callbacks=[TrainingSummary(2), EnvStepProgressBar()], enable_progress_bar=True)
    assert [text.split()[0] for text in printed] == ["64", "128"]
    assert "policy loss" not in capsys.readouterr().out


def test_a_window_goes_on_over_an_interruption():
    """Interrupted in the middle of the second window: the same numbers as those of the uninterrupted run."""
    scripted = [
        {"train/loss": float(i), "rollout/episodes": float(i), "rollout/return_mean": -float(i)} for i in range(9)
    ]

    class Scripted(Callback):
        def on_train_epoch_end(self, trainer, pl_module):
            pl_module.iteration_metrics = scripted[trainer.datamodule.iteration - 1]

    fit(
        data=make_data(iterations=9),
        callbacks=[Scripted(), TrainingSummary(4, verbose=False), RunCheckpoint(32)],
        logger=run_loggers("."),
        enable_checkpointing=True,
    )
    whole = summaries()
    assert list(whole) == [128, 256, 288]
    path = RUN / "checkpoints/step_192.ckpt"
    (state,) = (s for key, s in torch.load(path, weights_only=True)["callbacks"].items() if "Summary" in key)
    assert len(state["window"]) == 2
    trainer = make_trainer(callbacks=[Scripted(), TrainingSummary(4, verbose=False)], logger=run_loggers(".", 1))
    trainer.fit(make_ppo(), make_data(iterations=9), ckpt_path=path, weights_only=True)
    assert summaries(RUN.parent / "version_1") == {steps: whole[steps] for steps in (256, 288)}


# -- the numbers that it is made of


@pytest.mark.parametrize("log_action_id", [None, 0])
@pytest.mark.parametrize("iterations", [3])
def test_metric_names_are_those_of_an_iteration(log_action_id, iterations):
    noting, names = Noting(), []

    class Asking(Callback):
        def on_fit_start(self, trainer, pl_module):
            names.extend(pl_module.metric_names)

    fit(make_ppo(log_action_id=log_action_id), make_data(iterations=iterations), callbacks=[noting, Asking()])
    assert len(set(names)) == len(names)
    for metrics in noting.iterations:
        assert sorted(metrics) == sorted(names)


def test_the_numbers_of_a_rollout_by_hand():
    """From the rollout itself, and the probabilities from the network before its update."""
    seen, noting = [], Noting()

    class Recomputing(Callback):
        def on_train_epoch_start(self, trainer, pl_module):
            prepare = type(pl_module).prepare

            def spying(rollout, *rest):
                batch = prepare(pl_module, rollout, *rest)
                with torch.no_grad():
                    output = pl_module.network(rollout.obs.flatten(0, 1))
                probabilities = torch.softmax(output.logits, 1).gather(1, rollout.actions.reshape(-1, 1))
                seen.append(
                    {
                        "rollout/action_prob_mean": probabilities.mean(),
                        "rollout/action_1_fraction": (rollout.actions == 1).double().mean(),
                        "train/value_mean": output.value.mean(),
                        "train/value_std": output.value.std(correction=0),
                        "train/advantage_mean": batch.advantages.mean(),
                        "train/advantage_std": batch.advantages.std(correction=0),
                    }
                )
                return batch

            pl_module.prepare = spying

    fit(make_ppo(log_action_id=1), make_data(iterations=3), callbacks=[Recomputing(), noting])
    assert len(seen) == 3
    for expected, metrics in zip(seen, noting.iterations):
        for name, value in expected.items():
            assert metrics[name] == pytest.approx(float(value), abs=1e-5), name
        assert not math.isclose(metrics["rollout/action_prob_mean"], 1)


def test_returns_of_an_iteration_by_hand(monkeypatch):
    noting, finished, collect = Noting(), [], Collector.collect

    def spying(self, *args):
        rollout = collect(self, *args)
        finished.append(list(self.episodes.finished))
        return rollout

    monkeypatch.setattr(Collector, "collect", spying)
    fit(make_ppo(), make_data(iterations=3), callbacks=[noting])
    for episodes, metrics in zip(finished, noting.iterations):
        returns = [episode.episode_return for episode in episodes]
        assert metrics["rollout/episodes"] == len(returns) > 1
        assert metrics["rollout/return_mean"] == pytest.approx(np.mean(returns))
        assert metrics["rollout/return_std"] == pytest.approx(np.std(returns))
        assert metrics["rollout/base_return_std"] == pytest.approx(np.std(returns))


def test_a_resumed_run_without_summaries_forgets_the_window():
    summary = TrainingSummary(log_freq=0)
    summary.load_state_dict({"window": [{"rollout/episodes": 1.0}]})
    assert summary.state_dict() == {"window": []}


def test_a_deviation_of_ones_own_needs_no_mean():
    assert summarize([{"train/action_std": 1.0}, {"train/action_std": 3.0}]) == {"action_std": 2}
