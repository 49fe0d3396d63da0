"""Learning curves: runs are read, grouped by configuration, averaged over seeds and drawn."""

from ppo_lightning.curves.plot import DEFAULT_SMOOTH, plot_runs

__all__ = ["DEFAULT_SMOOTH", "plot_runs"]
