"""What the last iterations were like, on the terminal and to the loggers."""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Any

from lightning.pytorch import Callback, LightningModule, Trainer

from ppo_lightning.callbacks.schedule import env_steps, is_last_iteration
from ppo_lightning.core.errors import check_range
from ppo_lightning.core.metrics import log_metrics

_OF_EPISODES = "rollout/return", "rollout/base_return", "rollout/length", "rollout/solved"


class TrainingSummary(Callback):
    """Sums up every ``log_freq`` iterations in a few lines, and logs the same numbers as ``summary/…``.

    Returns and lengths are means over the episodes that ended in these iterations, all other numbers means over the
    iterations; standard deviations are of all episodes or transitions together.

    Args:
        log_freq: iterations between two summaries; 0 for none.
        verbose: print it; else it is only logged.
    """

    def __init__(self, log_freq: int = 10, verbose: bool = True) -> None:
        check_range("--summary.log_freq", log_freq, 0)
        self.log_freq = log_freq
        self.verbose = verbose
        self._window: list[dict[str, float]] = []

    def state_dict(self) -> dict[str, Any]:
        """The iterations since the last summary."""
        return {"window": self._window}

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        """Go on with them, unless this run is not summed up."""
        self._window = list(state_dict["window"]) if self.log_freq else []

    def on_train_epoch_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Note this iteration, and sum up if it is time."""
        if not self.log_freq:
            return
        self._window.append(dict(pl_module.iteration_metrics))  # type: ignore[arg-type]
        if len(self._window) >= self.log_freq or is_last_iteration(trainer):
            self._sum_up(trainer)

    def on_train_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Sum up the rest where a callback after this one ended training, as ``EarlyStopping`` does."""
        if self._window:
            self._sum_up(trainer)

    def _sum_up(self, trainer: Trainer) -> None:
        summary = summarize(self._window)
        self._window = []
        log_metrics(trainer, {f"summary/{name}": value for name, value in summary.items()}, env_steps(trainer))
        if self.verbose and trainer.is_global_zero:
            show(trainer, text_of(summary, env_steps(trainer)))


def summarize(iterations: Sequence[dict[str, float]]) -> dict[str, float]:
    """Aggregates of the metrics of some iterations, by their names without ``rollout/``, ``train/`` and ``time/``."""
    summary: dict[str, float] = {}
    for name in dict.fromkeys(name for metrics in iterations for name in metrics):
        having = [metrics for metrics in iterations if name in metrics]
        weights = [metrics["rollout/episodes"] if name.startswith(_OF_EPISODES) else 1.0 for metrics in having]
        key = name.partition("/")[2]
        if name in ("rollout/episodes", "rollout/dropped_episodes"):
            summary[key] = sum(metrics[name] for metrics in having)
        elif name in ("train/learning_rate", "time/seconds"):
            summary[key] = having[-1][name]
        elif name.endswith("_std") and all(_mean_of(name) in metrics for metrics in having):
            means = [metrics[_mean_of(name)] for metrics in having]
            summary[key] = _pooled_std(means, [metrics[name] for metrics in having], weights)
        else:
            summary[key] = _mean([metrics[name] for metrics in having], weights)
    return summary


def _mean_of(name: str) -> str:
    return name.removesuffix("_std") + "_mean"


def _mean(values: Sequence[float], weights: Sequence[float]) -> float:
    return sum(value * weight for value, weight in zip(values, weights)) / sum(weights)


def _pooled_std(means: Sequence[float], stds: Sequence[float], weights: Sequence[float]) -> float:
    """Of several groups together: what varies within them and between them."""
    mean = _mean(means, weights)
    return math.sqrt(_mean([std**2 + (own - mean) ** 2 for own, std in zip(means, stds)], weights))


_SHOWN = {
    *("learning_rate", "sps", "seconds", "episodes", "dropped_episodes", "first_ratio_error", "param_hash"),
    *("loss", "policy_loss", "value_loss", "entropy", "explained_variance", "approx_kl"),
}
_PARTS = "_mean", "_std", "_fraction"  # a spread is shown as one; fractions are in their line


def text_of(summary: dict[str, float], steps: int) -> str:
    """The summary in a few lines; what is not known is left out, and what an agent adds comes last."""
    base = ["base_return"] if summary.get("base_return_mean") != summary.get("return_mean") else []
    fractions = [name for name in summary if name.endswith("_fraction") and name != "clip_fraction"]
    lines = [
        [f"{steps:,} steps", _number(summary, "sps", "steps/s", ",.0f"), _number(summary, "learning_rate")],
        [_spread(summary, name) for name in ["return", *base]]
        + [_number(summary, "length_mean")]
        + [_number(summary, name, form=",.0f") for name in ("episodes", "dropped_episodes")],
        [_number(summary, name) for name in ("loss", "policy_loss", "value_loss", "entropy")],
        [_spread(summary, "advantage"), _spread(summary, "value"), _number(summary, "explained_variance")],
        [_number(summary, name) for name in ("action_prob_mean", *fractions, "approx_kl", "clip_fraction")],
        [_number(summary, name) for name in summary if name not in _SHOWN and not name.endswith(_PARTS)],
    ]
    return "\n  ".join("   ".join(filter(None, line)) for line in lines if any(line))


def show(trainer: Trainer, text: str) -> None:
    """Print above the progress bar, if there is one."""
    bar = trainer.progress_bar_callback
    (bar.print if bar is not None else print)(text)


def _number(summary: dict[str, float], name: str, unit: str = "", form: str = ".4g") -> str:
    if name not in summary:
        return ""
    return f"{summary[name]:{form}} {unit}" if unit else f"{name.replace('_', ' ')} {summary[name]:{form}}"


def _spread(summary: dict[str, float], name: str) -> str:
    if f"{name}_mean" not in summary:
        return ""
    return f"{name.replace('_', ' ')} {summary[f'{name}_mean']:.4g} ± {summary[f'{name}_std']:.4g}"
