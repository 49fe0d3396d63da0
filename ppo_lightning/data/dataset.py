"""One iteration of PPO as a dataset: a rollout, then its minibatches."""

from __future__ import annotations

from collections.abc import Callable, Iterator

from torch.utils.data import IterableDataset

from ppo_lightning.core.agent import Agent, Batch
from ppo_lightning.core.rollout import shuffled_minibatches
from ppo_lightning.data.collect import Collector
from ppo_lightning.data.seeding import Streams


class RolloutDataset(IterableDataset[Batch]):
    """Each pass plays one rollout with the agent as it is then, and yields ``update_epochs × num_minibatches`` batches.

    The length is known, so Lightning fetches nothing ahead: a rollout is collected with exactly the parameters that
    the update before it left.

    Args:
        agent: what plays and learns.
        collector: plays it.
        update_epochs: passes over each rollout.
        num_minibatches: parts of each pass.
        streams: the random numbers of actions and shuffles.
        iterations: counts the rollouts; read at the start of each pass and raised by ``on_rollout``.
        on_rollout: called after each rollout, before its first minibatch.
    """

    def __init__(
        self,
        agent: Agent,
        collector: Collector,
        update_epochs: int,
        num_minibatches: int,
        streams: Streams,
        iterations: Callable[[], int],
        on_rollout: Callable[[], None],
    ) -> None:
        self.agent = agent
        self.collector = collector
        self.update_epochs = update_epochs
        self.num_minibatches = num_minibatches
        self.streams = streams
        self.iterations = iterations
        self.on_rollout = on_rollout

    def __len__(self) -> int:
        return self.update_epochs * self.num_minibatches

    def __iter__(self) -> Iterator[Batch]:
        iteration = self.iterations()
        self.streams.seed_globals(iteration)
        rollout = self.collector.collect(self.agent, self.streams.action_generators(iteration))
        self.on_rollout()
        batch = self.agent.prepare(rollout)
        shuffle = self.streams.shuffle_generator(iteration)
        for _ in range(self.update_epochs):
            for minibatch in shuffled_minibatches(batch, self.num_minibatches, shuffle):
                yield minibatch
                if self.agent.update_stopped:
                    return
