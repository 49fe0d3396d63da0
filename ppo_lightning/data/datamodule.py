"""The data side of a run: which environment, how many, how long."""

from __future__ import annotations

import functools
import os
from collections.abc import Mapping, Sequence
from typing import Any, Optional, Union

import torch
from gymnasium import spaces
from lightning.pytorch import LightningDataModule
from lightning.pytorch.trainer.states import TrainerFn
from lightning.pytorch.utilities import rank_zero_warn

from ppo_lightning.core.agent import Phase
from ppo_lightning.core.errors import ConfigurationError, check_range
from ppo_lightning.core.ranks import gather_over_ranks
from ppo_lightning.data.collect import Collector
from ppo_lightning.data.dataset import RolloutDataset
from ppo_lightning.data.environments import factory_of_split, make_envs
from ppo_lightning.data.episodes import EpisodeStatistics
from ppo_lightning.data.length import RunLength, TrainerLimits
from ppo_lightning.data.running import EnvironmentsOfRanks, Layout
from ppo_lightning.data.scoring import place_networks, prepare_env
from ppo_lightning.data.seeding import Streams
from ppo_lightning.data.shares import check_sequence_length, sequences_of_an_env, shares_of_a_rank
from ppo_lightning.data.trainer_settings import (
    name_of_envs,
    refuse_meaningless_settings,
    warn_of_emulated_precision,
)
from ppo_lightning.envs.base import EnvFactory
from ppo_lightning.envs.gymnasium import GymnasiumEnv


class RolloutDataModule(LightningDataModule):
    """Environments and the rollouts played on them. One Lightning epoch is one rollout with its updates.

    Args:
        env: the environment: a factory (``GymnasiumEnv``, ``ProcgenEnv`` or one of your own), or a Gymnasium id.
        num_envs: environments per rank.
        num_steps: steps of each environment a rollout.
        num_minibatches: parts that each pass over a rollout is cut into.
        update_epochs: passes over each rollout; 3 by default. Not for agents with epochs of their own (DAAC).
        total_timesteps: environment steps over all ranks after which training ends, lowered to whole rollouts; null
            leaves the end to the Trainer.
        seed: of environments, actions and shuffles; by default that of ``seed_everything``, else 0.
        max_env_restarts: restarts of each rank's environments over the run, all of them together, after an error or
            the loss of a worker process; the unfinished episode is dropped. Past it the error ends the run; 0 for
            never. Also of each evaluation. Of Gymnasium's environments, not with ``vector_entry_point``.
        minibatch_shares: groups of environments, over all ranks, from which every minibatch takes an equal part; by
            default the number of ranks. One rank with 2 shares trains as two ranks with half its environments each.
        sequence_length: steps of the sequences that a network with memory learns from, each from the memory that the
            rollout had where it begins: a divisor of ``num_steps``. By default all of a rollout is one sequence.

    Raises:
        ConfigurationError: a number outside its range, or a rollout that cannot be cut into ``num_minibatches``.
    """

    def __init__(
        self,
        env: Union[EnvFactory, str],
        num_envs: int = 8,
        num_steps: int = 256,
        num_minibatches: int = 8,
        update_epochs: Optional[int] = None,
        total_timesteps: Optional[int] = 1_500_000,
        seed: Optional[int] = None,
        max_env_restarts: int = 10,
        minibatch_shares: Optional[int] = None,
        sequence_length: Optional[int] = None,
    ) -> None:
        super().__init__()
        for flag, value in {
            "num_envs": num_envs,
            "num_steps": num_steps,
            "num_minibatches": num_minibatches,
            "update_epochs": update_epochs,
        }.items():
            if value is not None:
                check_range(f"--data.{flag}", value, 1)
        check_range("--data.seed", seed or 0, 0)
        check_range("--data.max_env_restarts", max_env_restarts, 0)
        if minibatch_shares is not None:
            check_range("--data.minibatch_shares", minibatch_shares, 1)
        check_sequence_length(sequence_length, num_steps)
        shares_of_a_rank(None, 1, num_envs, num_steps, num_minibatches)  # refuses what no run can cut into minibatches
        self.env = GymnasiumEnv(env) if isinstance(env, str) else env
        self.num_envs = num_envs
        self.num_steps = num_steps
        self.num_minibatches = num_minibatches
        self.update_epochs = update_epochs
        self.total_timesteps = total_timesteps
        self.max_env_restarts = max_env_restarts
        self.minibatch_shares = minibatch_shares
        self.sequence_length = sequence_length
        self.env_steps = 0
        self.iteration = 0
        self._seed = seed
        self._limits: TrainerLimits | None = None  # while it trains
        self._collector: Collector | None = None
        self._environments = EnvironmentsOfRanks()
        self._length.check()

    # -- what others read

    @property
    def seed(self) -> int:
        """The run's seed: as given, else of ``seed_everything``, else 0."""
        return self._seed if self._seed is not None else int(os.environ.get("PL_GLOBAL_SEED", 0))

    @property
    def observation_space(self) -> spaces.Space[Any]:
        """One environment's observations."""
        return self._spaces[0]

    @property
    def action_space(self) -> spaces.Space[Any]:
        """One environment's actions."""
        return self._spaces[1]

    @functools.cached_property
    def _spaces(self) -> tuple[spaces.Space[Any], spaces.Space[Any], bool]:
        probe = self.env.make([0])
        probe.close()
        return probe.observation_space, probe.action_space, probe.reports_solved

    @property
    def world_size(self) -> int:
        """Ranks that train together."""
        return self.trainer.world_size if self.trainer is not None else 1

    @property
    def steps_per_iteration(self) -> int:
        """Environment steps of one rollout over all ranks."""
        return self._length.rollout

    @property
    def _length(self) -> RunLength:
        return RunLength(self.total_timesteps, self.num_envs, self.num_steps, self.world_size)

    @property
    def recent_returns(self) -> list[float]:
        """Returns of this rank's last episodes, at most 100."""
        return list(self._collector.episodes.recent_returns) if self._collector is not None else []

    def rollout_metrics(self) -> dict[str, float]:
        """``rollout/episodes``, and returns and lengths of the episodes that ended in the last rollout, of all ranks.

        ``rollout/dropped_episodes`` joins them once an environment was restarted, and stays. Every rank must call this.
        """
        if self._collector is None:
            return {}
        assert self.trainer is not None
        gather = functools.partial(gather_over_ranks, self.trainer)
        return self._collector.episodes.metrics(gather, self._collector.env.restarts)

    def rollout_metric_names(self) -> list[str]:
        """The names that ``rollout_metrics`` gives once episodes have ended."""
        return EpisodeStatistics.names(self.reports_solved)

    def eval_factory(self, settings: Mapping[str, Any], flag: str) -> EnvFactory:
        """The environment of a split of the evaluation, for this rank: this one with some settings changed.

        Raises:
            ConfigurationError: unknown settings, or other spaces than those that are trained on; names ``flag``.
        """
        rank = self.trainer.global_rank if self.trainer is not None else 0
        if not settings:
            return self.env.of_share(rank)
        own = {"observation_space": self.observation_space, "action_space": self.action_space}
        return factory_of_split(self.env, settings, flag, own).of_share(rank)

    def eval_streams(self, num_envs: int) -> Streams:
        """The evaluation environments, of ``num_envs`` over all ranks, that fall to this rank; there may be none."""
        rank = self.trainer.global_rank if self.trainer is not None else 0
        first, end = (num_envs * part // self.world_size for part in (rank, rank + 1))
        return Streams(self.seed, first, end - first)

    @property
    def reports_solved(self) -> bool:
        """Whether the environment tells if an episode reached its goal."""
        return self._spaces[2]

    # -- the run's length

    def setup(self, stage: str) -> None:
        """Lower the Trainer's ``max_epochs`` to whole rollouts within ``total_timesteps``."""
        assert self.trainer is not None
        refuse_meaningless_settings(self.trainer, stage)
        if stage == "fit":
            warn_of_emulated_precision(self.trainer)
            self._length.check()
            self._shares_of_a_rank()
            self._start_counters()
            self._limits = TrainerLimits(self.trainer)
            self._lower_limits()

    def _start_counters(self) -> None:
        """With a fresh Trainer anew; a used one goes on with the data that it was used with, or from a checkpoint."""
        assert self.trainer is not None
        epochs = self.trainer.current_epoch
        if not epochs and self._collector is not None:  # used by another Trainer
            self.iteration = self.env_steps = 0
            self._environments = EnvironmentsOfRanks()
        elif epochs and epochs != self.iteration and not self.trainer.ckpt_path:
            raise ConfigurationError(
                f"This Trainer has trained {epochs} iterations already, and this RolloutDataModule {self.iteration}: "
                "make a new Trainer for another run."
            )

    def _lower_limits(self) -> None:
        assert self._limits is not None
        minibatches = sum(phase.epochs for phase in self._phases()) * self.num_minibatches
        self._limits.lower(self._length, self.env_steps, self.iteration, minibatches)

    def _phases(self) -> Sequence[Phase]:
        """What an update of the Trainer's agent consists of.

        Raises:
            ConfigurationError: gradients would be accumulated over the border of two phases.
        """
        assert self.trainer is not None
        agent: Any = self.trainer.lightning_module
        phases: Sequence[Phase] = agent.phases(self.update_epochs)
        accumulated = self.trainer.accumulate_grad_batches
        for phase in phases[:-1]:
            if phase.epochs * self.num_minibatches % accumulated:
                raise ConfigurationError(
                    f"--trainer.accumulate_grad_batches={accumulated} does not divide the {phase.epochs} × "
                    f"--data.num_minibatches={self.num_minibatches} minibatches of the {phase.name} phase, so that a "
                    "step would be of two phases: choose a divisor."
                )
        return phases

    def _put_limits_back(self) -> None:
        if self._limits is not None:
            self._limits.put_back()
        self._limits = None

    # -- Lightning's hooks

    def train_dataloader(self) -> RolloutDataset:
        """The rollouts of this rank, in this process: the policy that plays is the one that is trained."""
        assert self.trainer is not None
        agent: Any = self.trainer.lightning_module
        sequences = sequences_of_an_env(self.sequence_length, self.num_steps, agent.initial_state(1) is not None)
        shares = self._shares_of_a_rank(sequences)
        streams = Streams(self.seed, self.trainer.global_rank * self.num_envs, self.num_envs)
        self._close()
        prepare_env(self.env, self.trainer)
        env = make_envs(self.env, self.trainer.global_rank, streams, shares, self.iteration)
        place_networks(env, self.trainer)
        env.allow_restarts(self.max_env_restarts, name_of_envs(self.trainer, "environment"))
        self._collector = Collector(env, self.num_steps)
        reason = self._environments.restore(
            self._collector, self._layout(shares), self.trainer.global_rank, agent.device
        )
        if reason:
            rank_zero_warn(f"The simulators start fresh episodes, from new seeds: {reason}.")
        return RolloutDataset(
            agent=agent,
            collector=self._collector,
            phases=self._phases(),
            num_minibatches=self.num_minibatches,
            streams=streams,
            iterations=lambda: self.iteration,
            on_rollout=self._count_rollout,
            num_shares=shares,
            sequence_length=self.sequence_length,
        )

    def _shares_of_a_rank(self, sequences: int | None = None) -> int:
        sizes = self.num_envs, self.num_steps, self.num_minibatches
        return shares_of_a_rank(self.minibatch_shares, self.world_size, *sizes, sequences)

    def _layout(self, shares: int) -> Layout:
        return Layout(self.env, self.num_envs, shares, self.world_size)

    def _count_rollout(self) -> None:
        self.iteration += 1
        self.env_steps += self.steps_per_iteration

    def transfer_batch_to_device(self, batch: Any, device: torch.device, dataloader_idx: int) -> Any:
        """As it is: rollouts live on the policy's device."""
        return batch

    def val_dataloader(self) -> range:
        """One empty batch for ``validate``: the ``Evaluation`` callback plays."""
        assert self.trainer is not None
        prepare_env(self.env, self.trainer)
        return range(1)

    def test_dataloader(self) -> range:
        """As for ``validate``."""
        assert self.trainer is not None
        prepare_env(self.env, self.trainer)
        return range(1)

    def state_dict(self) -> dict[str, Any]:
        """The counters, of which random streams are functions, and the environments of all ranks."""
        if self._collector is not None and self._collector.is_open:
            self._environments.gather(self._collector, self._layout(self._shares_of_a_rank()), self.iteration)
        state = {"env_steps": self.env_steps, "iteration": self.iteration, "running": self._environments.running}
        env = self.env.state_dict()
        return {**state, "env": env} if env else state

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        """Take up the counters of a checkpoint, and its environments when they are made."""
        self.env_steps = state_dict["env_steps"]
        self.iteration = state_dict["iteration"]
        self._environments.load(state_dict.get("running"), self.iteration)  # format 1 had none
        assert self.trainer is not None
        changed = self.env.load_state_dict(state_dict.get("env") or {})
        if self.trainer.state.fn != TrainerFn.FITTING:
            if changed:
                rank_zero_warn(changed)
            return
        self._length.check_left(self.env_steps)
        self._lower_limits()

    def teardown(self, stage: str) -> None:
        """Close the simulators, of which a checkpoint may still be saved."""
        if stage == "fit":
            self.state_dict()
        self._close()
        self._put_limits_back()

    def on_exception(self, exception: BaseException) -> None:
        """Close the simulators, so that no worker process outlives the run."""
        self._close()
        self._put_limits_back()

    def _close(self) -> None:
        if self._collector is not None:
            self._collector.close()
