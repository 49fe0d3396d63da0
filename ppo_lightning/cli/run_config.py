"""The configuration of a run, in its folder."""

from __future__ import annotations

from lightning.pytorch import LightningModule, Trainer
from lightning.pytorch.cli import SaveConfigCallback

from ppo_lightning.core.files import written_whole
from ppo_lightning.loggers import run_folder_of


class RunConfigCallback(SaveConfigCallback):
    """Writes ``config.yaml`` into the run's folder; a run that continues there adds ``config_<n>.yaml`` beside it."""

    def setup(self, trainer: Trainer, pl_module: LightningModule, stage: str) -> None:
        """Nothing yet: a run that is refused leaves no trace in the folder of the one it would have continued."""

    def on_train_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Write it once, on the first rank; whole, whenever the run is killed, since the next one reads it."""
        if not trainer.loggers or self.already_saved:
            return
        folder = run_folder_of(trainer)
        if not trainer.is_global_zero:
            return
        names = ["config.yaml", *(f"config_{number}.yaml" for number in range(1, 10_000))]
        path = next(folder / name for name in names if not (folder / name).exists())
        with written_whole(path, "--trainer.default_root_dir") as part:
            self.parser.save(self.config, part, skip_none=False, overwrite=True, multifile=False)
        self.already_saved = True
