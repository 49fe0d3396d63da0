import os

import pytest
import torch

from ppo_lightning import BestCheckpoint, ConfigurationError, Evaluation, RunCheckpoint, run_loggers
from ppo_lightning.callbacks import checkpoint as module
from tests.runs import Recorder, equal, fit, make_data, make_ppo, make_trainer, weights


class Scores(Evaluation):
    """Evaluates to the given scores, one after another, every iteration; None leaves one out."""

    def __init__(self, *scores):
        super().__init__(num_episodes=1, every_n_iterations=1)
        self.scores = list(scores)

    def on_train_epoch_end(self, trainer, pl_module):
        score = self.scores.pop(0)
        if score is None:
            return
        trainer.callback_metrics["eval/return_mean"] = torch.tensor(float(score))
        self._evaluated_at = trainer.datamodule.env_steps

    def on_train_end(self, trainer, pl_module):
        """Nothing, where the last score was left out."""


def load(path):
    return torch.load(path, weights_only=True)


def steps_in(path):
    return load(path)["RolloutDataModule"]["env_steps"]


def train(folder, iterations, *callbacks, **kwargs):
    return fit(
        make_ppo(),
        make_data(iterations=iterations),
        logger=run_loggers(folder, version=0),
        enable_checkpointing=True,
        callbacks=list(callbacks),
        **kwargs,
    )


@pytest.fixture
def folder(tmp_path):
    return tmp_path / "lightning_logs/version_0/checkpoints"


@pytest.mark.parametrize(
    ("save_freq", "names"),
    [
        (0, set()),
        (32, {"step_32.ckpt", "step_64.ckpt", "step_96.ckpt", "step_128.ckpt"}),
        (50, {"step_64.ckpt", "step_128.ckpt"}),
        (128, {"step_128.ckpt"}),
    ],
)
def test_save_freq_keeps_a_checkpoint_at_each_multiple(tmp_path, folder, save_freq, names):
    train(tmp_path, 4, RunCheckpoint(save_freq))
    assert {path.name for path in folder.iterdir()} == names | {"last.ckpt"}
    assert all(steps_in(folder / name) == int(name[5:-5]) for name in names)


def test_last_is_the_end_of_training(tmp_path, folder):
    ppo = train(tmp_path, 3, RunCheckpoint())
    assert steps_in(folder / "last.ckpt") == 96
    saved = load(folder / "last.ckpt")["state_dict"]
    assert equal({name: saved[f"network.{name}"] for name in weights(ppo)}, weights(ppo))


def test_last_is_saved_when_two_seconds_have_passed_and_not_sooner(tmp_path, folder, monkeypatch):
    clock, seen = [100.0], []

    class Clock(Recorder):
        def on_train_epoch_end(self, trainer, pl_module):
            seen.append(steps_in(folder / "last.ckpt"))
            clock[0] += 0.9

    monkeypatch.setattr(module.time, "monotonic", lambda: clock[0])
    train(tmp_path, 5, RunCheckpoint(), _After(Clock(), seen, folder, clock))
    assert seen == [32, 32, 32, 128, 160]


class _After(Recorder):
    """Looks at ``last.ckpt`` in the next iteration's beginning: checkpoints are saved after all other callbacks."""

    def __init__(self, _, seen, folder, clock):
        super().__init__()
        self.seen, self.folder, self.clock = seen, folder, clock

    def on_train_epoch_start(self, trainer, pl_module):
        if (self.folder / "last.ckpt").exists():
            self._look()

    def on_train_end(self, trainer, pl_module):
        self._look()

    def _look(self):
        self.seen.append(steps_in(self.folder / "last.ckpt"))
        self.clock[0] += 0.9


def test_no_unfinished_file_is_left(tmp_path, folder):
    train(tmp_path, 2, RunCheckpoint(32))
    assert all(path.suffix == ".ckpt" for path in folder.iterdir())


def test_fast_dev_run_saves_nothing(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    fit(
        make_ppo(),
        make_data(),
        fast_dev_run=True,
        enable_checkpointing=True,
        callbacks=[RunCheckpoint(32)],
        folder=tmp_path,
    )
    assert not os.listdir(tmp_path)


def test_a_negative_save_freq_is_refused():
    with pytest.raises(ConfigurationError, match=r"--checkpoint.save_freq must be at least 0, not -1"):
        RunCheckpoint(-1)


@pytest.mark.parametrize(
    ("scores", "best"),
    [((1, 3, 2), 64), ((3, 2, 1), 32), ((1, 2, 3), 96), ((-5, -7, -6), 32), ((1, None, None), 32), ((2, 1, None), 32)],
)
def test_best_is_the_best_evaluation(tmp_path, folder, scores, best):
    train(tmp_path, len(scores), Scores(*scores), BestCheckpoint())
    assert [path.name for path in folder.iterdir()] == ["best.ckpt"]
    assert steps_in(folder / "best.ckpt") == best


def test_parameters_that_were_not_evaluated_are_never_best(tmp_path, folder):
    """An old score stays in the callback metrics; it is not the score of what came after."""
    train(tmp_path, 3, Scores(5, None, 5), BestCheckpoint())
    assert steps_in(folder / "best.ckpt") == 32


@pytest.mark.parametrize(("score", "best"), [(4, 64), (6, 96)])
def test_best_is_remembered_by_a_resumed_run(tmp_path, folder, score, best):
    train(tmp_path, 2, Scores(1, 5), BestCheckpoint(), RunCheckpoint())
    callback = BestCheckpoint()
    trainer = make_trainer(
        logger=run_loggers(tmp_path, 0, 64), enable_checkpointing=True, callbacks=[Scores(score), callback]
    )
    trainer.fit(make_ppo(), make_data(iterations=3), ckpt_path=folder / "last.ckpt", weights_only=True)
    assert steps_in(folder / "best.ckpt") == best
    assert callback.best_model_score == max(5, score)


def test_an_evaluation_is_in_last_as_well(tmp_path, folder):
    train(tmp_path, 3, Scores(1, 5, 2), BestCheckpoint(), RunCheckpoint())
    (state,) = (state for key, state in load(folder / "last.ckpt")["callbacks"].items() if "BestCheckpoint" in key)
    assert state["best_model_score"] == 5
