"""One iteration of PPO as a dataset: a rollout, then its minibatches."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence

import torch
from torch import Tensor
from torch.utils.data import IterableDataset

from ppo_lightning.core.agent import Agent, Batch, Phase
from ppo_lightning.core.rollout import MemoryRollout, PPOSequenceBatch, Rollout, RowSelector, shuffled_rows
from ppo_lightning.data.collect import Collector
from ppo_lightning.data.seeding import Streams
from ppo_lightning.data.shares import rows_of_shares


class RolloutDataset(IterableDataset[Batch]):
    """Each pass plays one rollout with the agent as it is then, and yields ``epochs × num_minibatches`` batches.

    The length is known, so Lightning fetches nothing ahead: a rollout is collected with exactly the parameters that
    the update before it left.

    Args:
        agent: what plays and learns.
        collector: plays it.
        phases: of the update; each has its passes over the rollout.
        num_minibatches: parts of each pass.
        streams: the random numbers of actions and shuffles.
        iterations: counts the rollouts; read at the start of each pass and raised by ``on_rollout``.
        on_rollout: called after each rollout, before its first minibatch.
        num_shares: groups of environments that are shuffled each by itself; a minibatch takes a part of each.
        sequence_length: steps of the sequences that a network with memory learns from, which divides the rollout's;
            None for all of it.
    """

    def __init__(
        self,
        agent: Agent,
        collector: Collector,
        phases: Sequence[Phase],
        num_minibatches: int,
        streams: Streams,
        iterations: Callable[[], int],
        on_rollout: Callable[[], None],
        num_shares: int = 1,
        sequence_length: int | None = None,
    ) -> None:
        self.agent = agent
        self.collector = collector
        self.phases = phases
        self.num_minibatches = num_minibatches
        self.streams = streams
        self.iterations = iterations
        self.on_rollout = on_rollout
        self.num_shares = num_shares
        self.sequence_length = sequence_length

    def __len__(self) -> int:
        return self.epochs * self.num_minibatches

    @property
    def epochs(self) -> int:
        """Passes over each rollout."""
        return sum(phase.epochs for phase in self.phases)

    def __iter__(self) -> Iterator[Batch]:
        iteration = self.iterations()
        self.streams.seed_globals(iteration)
        if not iteration and self.agent.warm_up_steps:
            self.collector.warm_up(self.agent, self.streams.warm_up_seeds())
            self.streams.seed_globals(iteration)  # the rollout begins as if it were the first thing that is played
        rollout = self.collector.collect(self.agent, self.streams.action_generators(iteration))
        self.on_rollout()
        end = self.collector.end(self.agent, self.epochs, lambda: self.streams.update_generators(iteration))
        batch = self.agent.prepare(rollout, end)
        if self.sequence_length and isinstance(rollout, MemoryRollout) and isinstance(batch, PPOSequenceBatch):
            batch = batch.cut(rollout.states, self.sequence_length)
        minibatches = self._draw_minibatches(rollout, len(batch), iteration)
        phases = [phase.name for phase in self.phases for _ in range(phase.epochs * self.num_minibatches)]
        self.agent.start_update(batch, minibatches, phases)
        select = RowSelector(batch)
        for rows in minibatches:
            # a rank without a row of this minibatch still takes part in its step; what it does counts nothing
            yield select(rows if len(rows) else torch.zeros(1, dtype=torch.long))
            if self.agent.update_stopped:
                return

    def _draw_minibatches(self, rollout: Rollout, num_rows: int, iteration: int) -> Sequence[Tensor]:
        """The rows of every minibatch of every epoch."""
        streams, epochs = self.streams.split(self.num_shares), range(self.epochs)
        if self.num_shares == 1:
            generator = streams[0].shuffle_generator(iteration)
            return [rows for _ in epochs for rows in shuffled_rows(num_rows, self.num_minibatches, generator)]
        sequences = num_rows // rollout.valid.shape[1] if isinstance(rollout, MemoryRollout) else None
        shares = rows_of_shares(rollout.valid, sequences, self.num_shares)
        parts = []
        for own, share in zip(streams, shares):
            generator = own.shuffle_generator(iteration)
            orders = [order for _ in epochs for order in shuffled_rows(len(share), self.num_minibatches, generator)]
            parts.append([share[order] for order in orders])
        return [torch.cat(minibatch) for minibatch in zip(*parts)]
