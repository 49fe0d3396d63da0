import itertools

import pytest
import torch
from lightning.pytorch import Callback
from lightning.pytorch.callbacks import EarlyStopping, ModelCheckpoint

from ppo_lightning import (
    BestCheckpoint,
    ConfigurationError,
    Evaluation,
    EvaluationEarlyStopping,
    RunCheckpoint,
    run_loggers,
)
from tests.runs import equal, fit, make_data, make_ppo, make_trainer, weights


class Scripted(Evaluation):
    """Evaluates to given scores, one after another, at its own times; several splits by name."""

    def __init__(self, *scores, **kwargs):
        super().__init__(**{"num_episodes": 1} | kwargs)
        self.scores, self.at, self.seen = list(scores), [], None

    def run(self, trainer, pl_module):
        score = self.scores.pop(0)
        scores = score if isinstance(score, dict) else {"": score}
        self._evaluated_at = trainer.datamodule.env_steps
        self.at.append(trainer.datamodule.iteration)
        self.seen = weights(pl_module)
        self.metrics = {
            f"eval/{split}/return_mean" if split else "eval/return_mean": float(score)
            for split, score in scores.items()
        }
        trainer.callback_metrics.update({name: torch.tensor(value) for name, value in self.metrics.items()})


def train(*callbacks, iterations=12, ckpt_path=None, folder=None, data=None, **kwargs):
    """Parameters and the iteration at which training ended."""
    kwargs.setdefault("enable_checkpointing", True)  # the stock ModelCheckpoint comes with it
    if folder is not None:
        kwargs["logger"] = run_loggers(folder, version=0)
    data = data or make_data(iterations=iterations, update_epochs=1)
    ppo = fit(make_ppo(), data, callbacks=list(callbacks), ckpt_path=ckpt_path, **kwargs)
    return ppo, data.iteration


def load(path):
    return torch.load(path, weights_only=True)


@pytest.fixture
def checkpoints(tmp_path):
    return tmp_path / "lightning_logs/version_0/checkpoints"


def test_patience_counts_evaluations_and_not_iterations():
    scripted = Scripted(1, 5, 4, 3, 2, every_n_iterations=3)
    _, ended = train(scripted, EvaluationEarlyStopping(patience=2))
    assert scripted.at == [3, 6, 9, 12]
    assert ended == 12  # the best at 6, then two that are worse at 9 and 12


def test_an_improvement_starts_patience_anew():
    scripted = Scripted(1, 0, 2, 1, 3, 2, 2, 9, every_n_iterations=1)
    _, ended = train(scripted, EvaluationEarlyStopping(patience=2))
    assert ended == 7


def test_min_delta_is_what_counts_as_an_improvement():
    scores = [1, 1.5, 2, 2.5, 3, 3.5]
    assert train(Scripted(*scores, every_n_iterations=1), EvaluationEarlyStopping(patience=2), iterations=6)[1] == 6
    stopping = EvaluationEarlyStopping(patience=2, min_delta=10)
    assert train(Scripted(*scores, every_n_iterations=1), stopping, iterations=6)[1] == 3


@pytest.mark.parametrize(
    ("settings", "ended"),
    [
        ({"stopping_threshold": 10}, 4),
        ({"divergence_threshold": -10}, 6),
        ({"mode": "min", "stopping_threshold": -10}, 6),
        ({"mode": "min", "divergence_threshold": 10}, 4),
        ({"monitor": "eval/length_mean"}, 8),
    ],
)
def test_thresholds_end_training_at_their_evaluation(settings, ended):
    scripted = Scripted(0, 11, -11, 0, every_n_iterations=2)
    if settings.get("monitor"):
        scripted = Evaluation(num_episodes=1, every_n_iterations=2)
    assert train(scripted, EvaluationEarlyStopping(patience=50, **settings), iterations=8)[1] == ended


@pytest.mark.parametrize("order", list(itertools.permutations(range(4))))
def test_whatever_the_order_of_callbacks_the_last_evaluation_and_checkpoint_are_of_the_final_parameters(
    tmp_path, checkpoints, order
):
    scripted = Scripted(1, 2, 1, 0, 9, every_n_iterations=2)
    callbacks = [scripted, EvaluationEarlyStopping(patience=1), BestCheckpoint(), RunCheckpoint()]
    ppo, ended = train(*(callbacks[index] for index in order), folder=tmp_path)
    assert ended == 6
    assert scripted.at == [2, 4, 6]
    assert equal(scripted.seen, weights(ppo))
    last = load(checkpoints / "last.ckpt")
    assert last["RolloutDataModule"]["iteration"] == 6
    assert equal({name: last["state_dict"][f"network.{name}"] for name in weights(ppo)}, weights(ppo))
    assert load(checkpoints / "best.ckpt")["RolloutDataModule"]["iteration"] == 4
    (state,) = (state for key, state in last["callbacks"].items() if "EarlyStopping" in key)
    assert state["wait_count"] == 1
    (state,) = (state for key, state in last["callbacks"].items() if "BestCheckpoint" in key)
    assert state["best_model_score"] == 2


class Ending(Callback):
    """Ends training after the third iteration."""

    def on_train_epoch_end(self, trainer, pl_module):
        trainer.should_stop = trainer.datamodule.iteration >= 3


class MonitoringEnding(Ending, EarlyStopping):
    """Lightning calls these after all others, wherever they are in the list."""

    def __init__(self):
        EarlyStopping.__init__(self, "train/loss")


@pytest.mark.parametrize("order", [1, -1])
@pytest.mark.parametrize("ending", [Ending, MonitoringEnding])
def test_what_another_callback_ends_is_evaluated_and_saved_at_its_end(tmp_path, checkpoints, ending, order):
    scripted = Scripted(1, 7, every_n_iterations=2)
    ppo, ended = train(*[scripted, ending()][::order], BestCheckpoint(), RunCheckpoint(), folder=tmp_path)
    assert ended == 3
    assert scripted.at == [2, 3]
    assert equal(scripted.seen, weights(ppo))
    assert load(checkpoints / "best.ckpt")["RolloutDataModule"]["iteration"] == 3
    last = load(checkpoints / "last.ckpt")
    assert last["RolloutDataModule"]["iteration"] == 3
    (state,) = (state for key, state in last["callbacks"].items() if "BestCheckpoint" in key)
    assert state["best_model_score"] == 7


def test_a_resumed_run_stops_at_the_evaluation_at_which_the_whole_one_does(tmp_path, checkpoints):
    """Interrupted one iteration after an evaluation without improvement, of three that are waited for."""
    scores = [5, 6, 4, 3, 2, 1, 0, 0, 0]
    _, whole = train(Scripted(*scores, every_n_iterations=3), EvaluationEarlyStopping(patience=3), iterations=40)
    assert whole == 15
    folder = tmp_path
    first = Scripted(*scores, every_n_iterations=3)
    train(first, EvaluationEarlyStopping(patience=3), RunCheckpoint(32), iterations=11, folder=folder)
    stopping = EvaluationEarlyStopping(patience=3)
    second = Scripted(*scores[3:], every_n_iterations=3)
    _, resumed = train(second, stopping, RunCheckpoint(), iterations=40, ckpt_path=checkpoints / "step_320.ckpt")
    assert second.at == [12, 15]
    assert resumed == whole
    assert stopping.best_score == 6


def test_patience_given_on_resume_wins_over_the_checkpoint(tmp_path, checkpoints):
    scores = [5, 4, 3, 2, 1, 0, 0, 0]
    stopping = EvaluationEarlyStopping(patience=3)
    train(Scripted(*scores, every_n_iterations=1), stopping, RunCheckpoint(), iterations=2, folder=tmp_path)
    _, resumed = train(
        Scripted(*scores[2:], every_n_iterations=1),
        EvaluationEarlyStopping(patience=5),
        iterations=40,
        ckpt_path=checkpoints / "last.ckpt",
    )
    assert resumed == 6  # 5 evaluations after the best, not 3


# -- monitors


def refused(words, *callbacks, **kwargs):
    with pytest.raises(ConfigurationError, match=words):
        train(*callbacks, enable_checkpointing=True, **kwargs)


@pytest.mark.parametrize("kind", [EvaluationEarlyStopping, BestCheckpoint])
@pytest.mark.parametrize(
    ("splits", "monitor", "words"),
    [
        (None, "eval/return_men", r"no evaluation logs that name.* Did you mean eval/return_mean"),
        (None, "eval/val/return_mean", r"no evaluation logs that name.*Known are .*eval/return_mean"),
        ({"val": {}, "test": {}}, "eval/return_mean", r"no evaluation .* Did you mean eval/\w+/return_mean"),
        ({"val": {}}, "eval/vall/return_mean", r"no evaluation .* Did you mean eval/val/return_mean"),
        (None, "rollout/return_mean", r"no evaluation logs that name"),
        (None, "my_own", r"no evaluation logs that name"),
    ],
)
def test_a_monitor_that_no_evaluation_logs_is_refused_with_close_names(kind, splits, monitor, words):
    words = rf"{kind.__name__}\(monitor='{monitor}'\): {words}"
    refused(words, kind(monitor), Evaluation(splits=splits))
    refused(words, Evaluation(splits=splits), kind(monitor))


@pytest.mark.parametrize("kind", [EvaluationEarlyStopping, BestCheckpoint])
def test_without_an_evaluation_there_is_nothing_to_monitor(kind):
    refused("none, for there is no Evaluation callback", kind())


STOCK = [lambda monitor: EarlyStopping(monitor, mode="max"), lambda monitor: ModelCheckpoint(monitor=monitor)]


@pytest.mark.parametrize("stock", STOCK)
@pytest.mark.parametrize("cadence", [{}, {"every_n_iterations": 2}, {"every_n_env_steps": 1}])
def test_a_stock_callback_on_an_evaluation_that_is_not_every_iteration_is_refused(stock, cadence):
    refused(
        r"would act after every iteration, on a score of earlier parameters: use .* or set "
        r"--evaluation\.every_n_iterations=1\.",
        stock("eval/return_mean"),
        Evaluation(num_episodes=1, **cadence),
    )


@pytest.mark.parametrize("order", [1, -1])
def test_stock_callbacks_work_on_an_evaluation_every_iteration(tmp_path, order):
    scripted = Scripted(5, 6, 4, 3, 2, 1, every_n_iterations=1)
    best = ModelCheckpoint(tmp_path, monitor="eval/return_mean", mode="max", filename="stock")
    _, ended = train(
        *[scripted, EarlyStopping("eval/return_mean", mode="max", patience=2)][::order], best, enable_checkpointing=True
    )
    assert ended == 4
    assert load(tmp_path / "stock.ckpt")["RolloutDataModule"]["iteration"] == 2


@pytest.mark.parametrize("stock", STOCK)
@pytest.mark.parametrize(
    ("monitor", "close"),
    [
        ("rollout/return_men", "rollout/return_mean"),
        ("train/los", "train/loss"),
        ("time/sp", "time/sps"),
        ("eval/return_men", "eval/return_mean"),
    ],
)
def test_a_misspelt_monitor_of_a_stock_callback_is_refused_with_close_names(stock, monitor, close):
    refused(rf"'{monitor}'\): no callback or agent .* Did you mean .*{close}", Evaluation(), stock(monitor))


def test_a_metric_of_ones_own_may_be_monitored(tmp_path):
    class Own(Callback):
        def on_train_epoch_start(self, trainer, pl_module):
            trainer.callback_metrics["my/metric"] = torch.tensor(float(trainer.current_epoch))

    checkpoint = ModelCheckpoint(tmp_path, monitor="my/metric", mode="max", filename="own")
    train(Own(), Evaluation(num_episodes=1), checkpoint, iterations=2)
    assert (tmp_path / "own.ckpt").is_file()


# -- the best checkpoint of each split

TWO = {"val": {}, "test": {}}
SCORES = [{"val": 1, "test": 9}, {"val": 5, "test": 8}, {"val": 3, "test": 7}]


def test_each_split_keeps_its_best(tmp_path, checkpoints):
    scripted = Scripted(*SCORES, splits=TWO, every_n_iterations=2)
    best = [BestCheckpoint("eval/val/return_mean"), BestCheckpoint("eval/test/return_mean")]
    train(scripted, *best, iterations=6, folder=tmp_path)
    assert {path.name for path in checkpoints.iterdir()} == {"best_val.ckpt", "best_test.ckpt"}
    assert load(checkpoints / "best_val.ckpt")["RolloutDataModule"]["iteration"] == 4
    assert load(checkpoints / "best_test.ckpt")["RolloutDataModule"]["iteration"] == 2
    assert [callback.best_model_score for callback in best] == [5, 9]


@pytest.mark.parametrize(
    ("monitor", "name"),
    [
        ("eval/return_mean", "best"),
        ("eval/val/return_mean", "best_val"),
        ("eval/length_mean", "best_length_mean"),
        ("eval/val/length_mean", "best_val_length_mean"),
    ],
)
def test_files_are_named_by_split_and_metric(monitor, name):
    assert BestCheckpoint(monitor).filename == name
    assert BestCheckpoint(monitor, filename="mine").filename == "mine"


@pytest.mark.parametrize(("val", "test", "kept"), [(4, 8, (4, 2)), (6, 8, (8, 2)), (4, 10, (4, 8))])
def test_a_resumed_run_keeps_the_best_of_each_split(tmp_path, checkpoints, val, test, kept):
    def callbacks():
        return BestCheckpoint("eval/val/return_mean"), BestCheckpoint("eval/test/return_mean"), RunCheckpoint()

    train(
        Scripted(*SCORES, splits=TWO, every_n_iterations=2),
        *callbacks(),
        data=make_data(iterations=6),
        folder=tmp_path,
    )
    trainer = make_trainer(
        logger=run_loggers(tmp_path, 0, 192),
        enable_checkpointing=True,
        callbacks=[Scripted({"val": val, "test": test}, splits=TWO, every_n_iterations=2), *callbacks()],
    )
    trainer.fit(make_ppo(), make_data(iterations=8), ckpt_path=checkpoints / "last.ckpt", weights_only=True)
    found = [load(checkpoints / f"best_{split}.ckpt")["RolloutDataModule"]["iteration"] for split in ("val", "test")]
    assert tuple(found) == kept
    assert {path.name for path in checkpoints.iterdir()} == {"best_val.ckpt", "best_test.ckpt", "last.ckpt"}


# -- several evaluations


def test_patience_counts_the_evaluations_that_log_the_monitor():
    often = Evaluation(num_episodes=1, every_n_iterations=1, splits={"often": {}})
    seldom = Scripted({"seldom": 3}, {"seldom": 2}, {"seldom": 1}, splits={"seldom": {}}, every_n_iterations=3)
    _, ended = train(often, seldom, EvaluationEarlyStopping("eval/seldom/return_mean", patience=2))
    assert (seldom.at, ended) == ([3, 6, 9], 9)


def test_a_stock_early_stopping_on_what_may_be_absent_is_refused_unless_it_is_not_strict():
    with pytest.raises(ConfigurationError, match="in which no episode ends: set strict=false"):
        fit(callbacks=[Evaluation(num_episodes=1), EarlyStopping("rollout/return_mean", mode="max")])
    lenient = EarlyStopping("rollout/return_mean", mode="max", strict=False, patience=99)
    ppo = fit(data=make_data(iterations=3, num_steps=2), callbacks=[Evaluation(num_episodes=1), lenient])
    assert ppo.trainer.current_epoch == 3


def test_patience_is_at_least_one_evaluation():
    with pytest.raises(ConfigurationError, match=r"patience must be at least 1, not 0"):
        EvaluationEarlyStopping(patience=0)
