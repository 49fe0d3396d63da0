"""What agents with PPO's clipped objective share: from a rollout to the loss of the actor, and what it reacts to."""

from __future__ import annotations

import inspect
from collections.abc import Callable, Sequence
from typing import Any, cast

import torch
from gymnasium import spaces
from lightning.pytorch.strategies import SingleDeviceStrategy
from torch import Tensor

from ppo_lightning.algorithms.base import OnPolicyModule
from ppo_lightning.algorithms.batches import batch_of, rows_of_sequences
from ppo_lightning.algorithms.chunks import chunk_size_for, chunks_of, mean_of
from ppo_lightning.algorithms.clipping import is_plain
from ppo_lightning.algorithms.guards import ActorPause
from ppo_lightning.algorithms.normalization import AdvantageNormalizer, ObservationStatistics, RewardNormalizer
from ppo_lightning.algorithms.objective import ClippedObjective, MinibatchLoss
from ppo_lightning.algorithms.optimization import Optimization
from ppo_lightning.algorithms.targets import ValueTargets
from ppo_lightning.core.agent import Batch, RolloutEnd
from ppo_lightning.core.checkpoint import NetworkBuilder
from ppo_lightning.core.errors import ConfigurationError, check_range
from ppo_lightning.core.ranks import mean_over_ranks
from ppo_lightning.core.rollout import Observation, PPOBatch, Rollout
from ppo_lightning.models.host_pass import HostPass, host_pass
from ppo_lightning.models.memory import unroll
from ppo_lightning.models.outputs import ModelOutput, run_network

_OF_MINIBATCHES = (
    *("training_step", "minibatch_loss", "minibatch_advantages", "evaluate", "evaluate_by", "react", "average"),
    *("_run_rows", "_normalize", "_finish_minibatch", "backward"),
)


class ClippedModule(OnPolicyModule):
    """Base of PPO and its family. A subclass adds its critics, and what else it learns, in ``minibatch_loss``.

    Args:
        network: builds the network from the observation and action space; in Python a built module also works.
        optimization: how it learns.
        objective: of the actor.
        targets: of the critic.
        advantage_normalizer: normalises advantages; None leaves them.
        reward_normalizer: normalises rewards; None leaves them.
        log_action_id: log the fraction of this action as ``rollout/action_<id>_fraction``; None for none.
        log_param_hash: log ``debug/param_hash`` every iteration, and stop if ranks' parameters differ.

    Raises:
        ConfigurationError: a number outside its range, or options that contradict each other.
    """

    PARTS = (*OnPolicyModule.PARTS, "objective", "targets", "advantage_normalizer", "reward_normalizer")

    def __init__(
        self,
        network: NetworkBuilder,
        optimization: Optimization,
        objective: ClippedObjective,
        targets: ValueTargets,
        advantage_normalizer: AdvantageNormalizer | None = None,
        reward_normalizer: RewardNormalizer | None = None,
        log_action_id: int | None = None,
        log_param_hash: bool = False,
    ) -> None:
        super().__init__(network, optimization, log_param_hash)
        self.objective = objective
        self.targets = targets
        self.advantage_normalizer = advantage_normalizer
        self.reward_normalizer = reward_normalizer
        self.log_action_id = log_action_id
        self.actor_pause: ActorPause | None = None
        self._observation_statistics = ObservationStatistics()
        self._chunk_size: int | None = None
        self._host_pass: HostPass | None = None

    def build_network(self, observation_space: spaces.Space[Any], action_space: spaces.Space[Any]) -> None:
        """Build the network for these spaces and remember them in the checkpoint."""
        if self.log_action_id is not None:
            if not isinstance(action_space, spaces.Discrete):
                raise ConfigurationError("--model.log_action_id needs a Discrete action space: leave it out.")
            check_range("--model.log_action_id", self.log_action_id, 0, int(action_space.n) - 1)
        super().build_network(observation_space, action_space)
        self._observation_statistics.check(self._net, observation_space)
        self._find_chunk_size()

    def _find_chunk_size(self) -> None:
        size, options = self.optimization.chunk_size, self.whole_minibatch_flags
        self._chunk_size = chunk_size_for(size, self._net, options, self.device)

    def on_train_start(self) -> None:
        """The size of chunks depends on the device."""
        super().on_train_start()
        self._find_chunk_size()

    # -- a rollout

    def prepare(self, rollout: Rollout, end: RolloutEnd) -> Batch:
        """Advantages and returns; transitions in one row, or whole environments for a network with memory."""
        advantages, returns = self.look_at(rollout, end)
        advantages = self.normalized(advantages, rollout.valid)
        return batch_of(rollout, advantages=advantages, returns=returns, values=rollout.values)

    def look_at(self, rollout: Rollout, end: RolloutEnd) -> tuple[Tensor, Tensor]:
        """Advantages and returns ``(T, N)`` of a rollout, whose statistics are taken down."""
        self._observation_statistics.look(self._net, rollout)
        rewards = rollout.rewards
        if self.reward_normalizer is not None:
            ends = rollout.terminated | rollout.truncated
            rewards = self.reward_normalizer.normalize(rewards, ends, rollout.valid, end.traces, self.gather)
        advantages, returns = self.targets(rewards, rollout)
        self.add_rollout_statistics(rollout, advantages, returns)
        return advantages, returns

    def normalized(self, advantages: Tensor, valid: Tensor) -> Tensor:
        """Advantages ``(T, N)`` as minibatches are drawn from them."""
        normalizer = self.advantage_normalizer
        return advantages if normalizer is None else normalizer.normalize(advantages, valid, self.gather)

    def add_rollout_statistics(self, rollout: Rollout, advantages: Tensor, returns: Tensor) -> None:
        """What is logged of a rollout."""
        valid, statistics = rollout.valid, self._statistics
        values = rollout.values[valid]
        statistics.add_explained_variance("train/explained_variance", values, returns[valid])
        statistics.add_spread("train/advantage", advantages[valid])
        statistics.add_spread("train/value", values)
        statistics.add_mean("rollout/action_prob_mean", rollout.log_probs[valid].exp())
        if self.log_action_id is not None:
            taken = (rollout.actions[valid] == self.log_action_id).to(values.dtype)
            statistics.add_mean(f"rollout/action_{self.log_action_id}_fraction", taken)

    def finish_statistics(self, gather: Callable[[Tensor], Tensor]) -> None:
        """Let the encoders take in the observations of the rollout that was learned from."""
        self._observation_statistics.update(self._net, gather)

    # -- an update

    def start_update(self, batch: Batch, minibatches: Sequence[Tensor], phases: Sequence[str]) -> None:
        """Ask the other ranks what they have of each minibatch, and whether the network is one for ``HostPass``."""
        super().start_update(batch, minibatches, phases)
        self._host_pass = self._find_host_pass(max(map(len, minibatches)))

    def _find_host_pass(self, num_rows: int) -> HostPass | None:
        """What runs the network in this update, where that is faster and the same."""
        trainer, kind = self.trainer, type(self)
        # what others make of a minibatch may ask autograd for the parameters
        base = next(base for base in kind.__mro__ if base.__module__.startswith("ppo_lightning."))
        is_ours = all(getattr(kind, name) is getattr(base, name) and name not in vars(self) for name in _OF_MINIBATCHES)
        is_alone = type(trainer.strategy) is SingleDeviceStrategy and is_plain(trainer.precision_plugin)
        return host_pass(self._net, num_rows) if is_ours and is_alone else None

    def end_update(self) -> None:
        """Forget what was for the minibatches of one update; also where it broke off."""
        self._host_pass = None

    def host_pass(self) -> HostPass | None:
        """What runs the network in this minibatch; None for itself."""
        if self._host_pass is not None and not self._host_pass.is_for(self._net):  # since the update began
            self._host_pass = None
        return self._host_pass

    def start_schedules(self, remaining: float) -> None:
        """The clip range and the weight of the entropy; the actor learns again."""
        for schedule in self.objective.schedules:
            schedule.start_iteration(remaining)
        if self.actor_pause is not None:
            self.actor_pause.start_iteration()

    @property
    def scheduled_flags(self) -> list[str]:
        """The flags that are set and depend on the run's length."""
        flags = [schedule.flag for schedule in self.objective.schedules]
        return [*super().scheduled_flags, *(flag for flag in flags if flag is not None)]

    def evaluate(self, batch: Batch) -> tuple[ModelOutput, PPOBatch]:
        """The network on a minibatch, and the minibatch as independent transitions."""
        output: tuple[ModelOutput, PPOBatch] = self.evaluate_by(self._run_rows, batch)
        return output

    def evaluate_by(self, run: Callable[..., Any], batch: Batch) -> tuple[Any, PPOBatch]:
        """What ``run`` makes of a minibatch's observations, and the minibatch as independent transitions.

        It is given ``(B, *shape)``, or with memory ``(N, T, *shape)``, the memory before them and where episodes start.
        """
        if isinstance(batch, PPOBatch):
            return run(batch.obs), batch
        return rows_of_sequences(run(batch.obs, batch.initial_state, batch.episode_starts), batch)

    def _run_rows(self, obs: Observation, *memory: Any) -> ModelOutput:
        output: ModelOutput
        passes = self.host_pass()
        if passes is not None:
            output = passes(cast(Tensor, obs))
        else:
            output = unroll(self._net, obs, *memory) if memory else run_network(self._net, obs)[0]
        return output

    def minibatch_advantages(self, rows: PPOBatch, batch_idx: int) -> Tensor:
        """The advantages ``(B,)`` of these rows, normalised where that is done minibatch by minibatch."""
        normalizer = self.advantage_normalizer
        is_due = normalizer is not None and normalizer.scope == "minibatch"
        return self._normalize(rows.advantages, batch_idx) if is_due else rows.advantages

    def minibatch_loss(self, batch: Batch, batch_idx: int) -> MinibatchLoss:
        """The loss of a minibatch or of a chunk of it, all of whose means are over its rows."""
        raise NotImplementedError

    @property
    def whole_minibatch_flags(self) -> dict[str, bool]:
        """Flags for which ``minibatch_loss`` must see a whole minibatch at once, and whether they are set."""
        return {"--model.max_clip_fraction": self.actor_pause is not None}

    def training_step(self, batch: Batch, batch_idx: int) -> Tensor:
        """The loss of one minibatch; of one in chunks the last chunk's, the gradients of the others being there."""
        chunks = chunks_of(batch, self._chunk_size)
        if len(chunks) == 1:
            return self._finish_minibatch(self.minibatch_loss(batch, batch_idx), batch_idx)
        self.look_at_minibatch(batch)
        losses: list[tuple[MinibatchLoss, float]] = []
        for chunk, share in chunks:
            found = self.minibatch_loss(chunk, batch_idx)
            losses.append((found, share))
            loss = found.total * (share * self._weight(batch_idx))
            if len(losses) < len(chunks):
                self.add_gradients(loss, begins_step=len(losses) == 1 and self._begins_step(batch_idx))
        self._moments = None
        self._finish_minibatch(mean_of(losses), batch_idx)
        return loss

    # Lightning looks for it in every minibatch, and a function's takes three times as long to find out
    training_step.__signature__ = inspect.signature(training_step)  # type: ignore[attr-defined]

    def _finish_minibatch(self, found: MinibatchLoss, batch_idx: int) -> Tensor:
        """Take a minibatch's numbers down, react to them, and give its loss the weight that it has among ranks."""
        weight = self._weight(batch_idx)
        waits = "approx_kl" in found.parts and self.react(found, batch_idx)
        if found.told is not None:
            self._statistics.add_numbers(found.ratio, *found.told, weight)
            return found.total if weight == 1 else found.total * weight
        loss = found.rest if waits else found.total
        metrics = {f"train/{name}": value for name, value in {found.name: loss, **found.parts}.items()}
        if self.actor_pause is not None:
            metrics["train/actor_paused"] = torch.full_like(loss, float(waits))
        self._statistics.add_minibatch(found.ratio, metrics, weight)
        return loss if weight == 1 else loss * weight

    def react(self, found: MinibatchLoss, batch_idx: int) -> bool:
        """Stop, adapt or pause by what all ranks see of a minibatch; whether the actor waits in it."""
        target_kl, adaptive_lr, pause = self.objective.target_kl, self.optimization.adaptive_lr, self.actor_pause
        if target_kl is None and adaptive_lr is None and pause is None:
            return False
        seen = torch.stack([found.parts["approx_kl"], found.parts["clip_fraction"]])
        kl, clipped = self.average(batch_idx, seen).tolist()
        is_first_of_step = self._begins_step(batch_idx)
        # else the divergence tells nothing of the learning rate
        is_paused = pause is not None and pause.is_on
        actor_learned = found.actor is not None and not (is_paused or self._is_first_of_phase(batch_idx))
        if target_kl is not None and kl > target_kl:
            self.stop_update()
        if adaptive_lr is not None and is_first_of_step and actor_learned:
            adaptive_lr.adapt(self.trainer.optimizers[0], kl)
        return pause is not None and pause.look(clipped > pause.max_clip_fraction, is_first_of_step)

    def _begins_step(self, batch_idx: int) -> bool:
        """Whether a minibatch is the first of those that are accumulated for an optimiser step."""
        return batch_idx % self.trainer.accumulate_grad_batches == 0

    def _is_first_of_phase(self, batch_idx: int) -> bool:
        return batch_idx == 0 or self.phase_of(batch_idx - 1) != self.phase_of(batch_idx)

    def average(self, batch_idx: int, means: Tensor) -> Tensor:
        """Means over a minibatch of this rank to those of all ranks together."""
        return mean_over_ranks(self.trainer, means.detach() * self._weight(batch_idx))

    @property
    def metric_names(self) -> list[str]:
        """What is logged every iteration; a subclass adds what is its own."""
        update = ["loss", *self.objective.PARTS, "first_ratio_error"]
        batch = ["explained_variance", "advantage_mean", "advantage_std", "value_mean", "value_std"]
        names = [*super().metric_names, *(f"train/{name}" for name in [*update, *batch]), "rollout/action_prob_mean"]
        return names if self.log_action_id is None else [*names, f"rollout/action_{self.log_action_id}_fraction"]
