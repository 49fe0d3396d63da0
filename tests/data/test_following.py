"""What rollouts hold beside what every agent needs: what followed each step, and what else the agent said of it."""

import pytest
import torch
from gymnasium.vector import AutoresetMode
from tensordict import TensorDictBase

from ppo_lightning.data.collect import Collector
from tests.data.agents import MemoryAgent, ScriptedAgent, state_of
from tests.data.test_collect import generators
from tests.toy import make_toy, play_plain_toy

MODES = [AutoresetMode.SAME_STEP, AutoresetMode.NEXT_STEP]
SCRIPT = ((3, "terminated"), (2, "truncated"), (1, "terminated"), (1, "truncated"))


class Keeping:
    keeps_next_obs = True

    def act(self, obs, noise, state):
        output = super().act(obs, noise, state)
        x = state_of(obs)
        output.extra = {"doubled": 2 * output.values, "sides": x[:, :2].clone()}
        return output


class KeepingAgent(Keeping, ScriptedAgent):
    pass


class KeepingMemoryAgent(Keeping, MemoryAgent):
    pass


@pytest.mark.parametrize("mode", MODES)
@pytest.mark.parametrize("obs", ["box", "dict"])
@pytest.mark.parametrize("agent", [KeepingAgent, KeepingMemoryAgent])
def test_what_followed_is_an_episodes_own_last_observation(mode, obs, agent):
    seeds, collector = [0, 1, 2], Collector(make_toy([0, 1, 2], mode, obs=obs, script=SCRIPT), 7)
    player, followed = agent(), {seed: [] for seed in seeds}
    for _ in range(3):  # over the borders of rollouts
        rollout = collector.collect(player, generators(3))
        assert isinstance(rollout.next_obs, TensorDictBase) == (obs == "dict")
        following = state_of(rollout.next_obs)
        if obs == "dict":
            image = rollout.next_obs["image"]
            assert image.dtype == torch.uint8
            assert torch.equal(image[..., 0, 0, 0][rollout.valid].float(), following[..., 2][rollout.valid])
        for env, seed in enumerate(seeds):
            valid = rollout.valid[:, env]
            followed[seed] += following[:, env][valid].tolist()
            assert len(followed[seed]) >= 3
    for seed, rows in followed.items():
        plain = play_plain_toy(seed, len(rows), script=SCRIPT)
        assert [tuple(row) for row in rows] == [transition[6] for transition in plain]


@pytest.mark.parametrize("mode", MODES)
def test_what_else_the_agent_said_is_there_for_every_step(mode):
    collector, agent = Collector(make_toy([0, 1], mode), 6), KeepingAgent()
    for _ in range(2):
        rollout = collector.collect(agent, generators(2))
        assert rollout.extra.batch_size == (6, 2)
        assert torch.equal(rollout.extra["doubled"], 2 * rollout.values)
        assert torch.equal(rollout.extra["sides"], rollout.obs[..., :2])


def test_what_nobody_asked_for_is_not_stored():
    rollout = Collector(make_toy([0]), 3).collect(ScriptedAgent(), generators(1))
    assert rollout.next_obs is None
    assert rollout.extra is None


@pytest.mark.parametrize("mode", MODES)
def test_the_end_of_a_rollout_is_what_the_agent_acts_on_next(mode):
    collector, agent = Collector(make_toy([0, 1], mode), 5), KeepingMemoryAgent()
    for _ in range(3):
        collector.collect(agent, generators(2))
        end = collector.end(agent, 4, lambda: "generators")
        assert (end.num_epochs, end.make_generators()) == (4, "generators")
        end.traces["mine"] = torch.ones(2)
        obs, state = end.obs.clone(), end.state.clone()
        rollout = collector.collect(agent, generators(2))
        assert torch.equal(rollout.obs[0], obs)
        assert torch.equal(rollout.states[0], state)
        assert collector.end(agent, 4, list).traces["mine"].tolist() == [1, 1]
