"""Statistics of observations: frozen while a rollout is played and learned from, changed once an iteration."""

import functools

import gymnasium
import pytest
import torch
from gymnasium import spaces
from lightning.pytorch import Callback
from torch import nn

from ppo_lightning import (
    ActorCritic,
    ConfigurationError,
    CoordinationEnv,
    CoordPPOModel,
    MLPEncoder,
    ObservationNormalizer,
    PPOModel,
    PPOModelOutput,
)
from ppo_lightning.functional import moments_of_rows
from tests.coordination import TINY, policy_of
from tests.ranks.tasks import NextStep
from tests.runs import Recorder, SmallGRU, fit, make_data, make_ppo

NORMALIZED = functools.partial(MLPEncoder, hidden_sizes=[8], normalizer=ObservationNormalizer)
REACH = "tests.tasks:Reach-v0"
ACTOR_AND_CRITIC = functools.partial(
    PPOModel,
    encoder=functools.partial(NORMALIZED, in_keys=["noisy", "left"]),
    critic_encoder=functools.partial(
        NORMALIZED, in_keys=["clean"], normalizer=functools.partial(ObservationNormalizer, ema=0.7)
    ),
)


class Watch(Callback):
    """Notes the rollouts, and every time that statistics of observations change."""

    def __init__(self, ppo):
        self.rollouts, self.changes = [], []
        act, prepare, step = ppo.act, ppo.prepare, ppo.training_step
        self._before = {}

        def watched(name, call):
            def watch(*args):
                self.look(ppo, name)
                result = call(*args)
                self.look(ppo, name)
                return result

            return watch

        def keep(rollout, traces):
            self.rollouts.append(rollout.clone())
            return prepare(rollout, traces)

        ppo.act, ppo.prepare, ppo.training_step = watched("act", act), watched("prepare", keep), watched("step", step)

    def look(self, ppo, name):
        now = {name: tensor.clone() for name, tensor in ppo.state_dict().items() if "normalizer" in name}
        if self._before and any(not torch.equal(now[name], self._before[name]) for name in now):
            self.changes.append(name)
        self._before = now

    def on_train_epoch_end(self, trainer, pl_module):
        self.look(pl_module, "end")


def moments(normalizer):
    return torch.stack([normalizer.count.expand_as(normalizer.mean), normalizer.mean, normalizer.var], dim=-1)


def test_statistics_change_once_an_iteration_and_the_first_ratio_stays_one():
    ppo, recorder = make_ppo(network=ACTOR_AND_CRITIC), Recorder()
    watch = Watch(ppo)
    fit(ppo, make_data(REACH, iterations=4), callbacks=[recorder, watch])
    assert watch.changes == ["end"] * 4
    means = [state["actor.embedder.normalizer.mean"] for state in recorder.after]
    assert len({tuple(mean.tolist()) for mean in means}) == 4
    assert all(metrics["train/first_ratio_error"] < 1e-5 for metrics in recorder.metrics)


def test_each_encoder_has_the_statistics_of_all_rollouts_of_its_own_keys():
    ppo = make_ppo(network=ACTOR_AND_CRITIC)
    watch = Watch(ppo)
    fit(ppo, make_data(REACH, iterations=3), callbacks=[watch], precision="64-true")
    obs = [rollout.flatten().obs for rollout in watch.rollouts]
    actor, critic = ppo.network.actor.embedder.normalizer, ppo.network.critic.embedder.normalizer
    noisy = torch.cat([part["noisy"] for part in obs]).double()
    assert actor.count == len(noisy) == 96
    torch.testing.assert_close(moments(actor)[:4], moments_of_rows(noisy), rtol=1e-12, atol=0)
    assert actor.mean[4:].tolist() == [0] * 10  # one-hot
    assert actor.var[4:].tolist() == [1] * 10
    mean = obs[0]["clean"].double().mean(0)
    for part in obs[1:]:
        mean = 0.7 * mean + 0.3 * part["clean"].double().mean(0)
    torch.testing.assert_close(critic.mean, mean, rtol=1e-12, atol=0)


def test_a_step_that_only_resets_is_in_no_statistics():
    ppo = make_ppo(network=functools.partial(ActorCritic, encoder=NORMALIZED))
    watch = Watch(ppo)
    fit(ppo, make_data(NextStep("tests.tasks:Walk-v0"), iterations=2), callbacks=[watch], precision="64-true")
    assert not all(rollout.valid.all() for rollout in watch.rollouts)
    obs = torch.cat([rollout.obs[rollout.valid] for rollout in watch.rollouts]).double()
    for encoder in (ppo.network.embedder, ppo.network.critic_embedder):
        torch.testing.assert_close(moments(encoder.normalizer), moments_of_rows(obs), rtol=1e-12, atol=0)


def test_an_update_that_is_stopped_early_changes_them_as_well():
    ppo = make_ppo(network=ACTOR_AND_CRITIC, target_kl=1e-12)
    fit(ppo, make_data(REACH, iterations=3, update_epochs=4))
    assert ppo.network.actor.embedder.normalizer.count == 96


def test_a_network_without_normalisers_has_nothing_to_remember():
    ppo = fit()
    assert not [name for name in ppo.state_dict() if "normalizer" in name]


# -- networks whose encoders are given a part of the observation


def test_a_coordinators_encoder_has_the_statistics_of_what_it_is_given():
    cartpole = gymnasium.make("CartPole-v1")
    novice, expert = (policy_of(TINY, seed, cartpole.observation_space, cartpole.action_space) for seed in (1, 2))
    network = functools.partial(CoordPPOModel, encoder=NORMALIZED, feature_type="obs_dist")
    ppo = make_ppo(network=network)
    watch = Watch(ppo)
    fit(ppo, make_data(CoordinationEnv("CartPole-v1", novice, expert, 0.4, 0.2, 0.5)), callbacks=[watch])
    obs = torch.cat([rollout.flatten().obs["base_obs"] for rollout in watch.rollouts])
    torch.testing.assert_close(ppo.network.embedder.normalizer.mean, obs.mean(0), rtol=1e-4, atol=1e-6)
    assert ppo.network.embedder.normalizer.count == len(obs)


class Remembering(SmallGRU):
    """A memory behind a normalised observation."""

    def __init__(self, observation_space, action_space):
        super().__init__(spaces.Box(-1, 1, (8,)), action_space)
        self.encoder = NORMALIZED(observation_space)

    def forward(self, obs, state):
        return super().forward(self.encoder(obs), state)


def test_a_network_with_memory_is_normalised_too():
    ppo, recorder = make_ppo(network=Remembering), Recorder()
    watch = Watch(ppo)
    fit(ppo, make_data(iterations=3), callbacks=[watch, recorder], precision="64-true")
    obs = torch.cat([rollout.flatten().obs for rollout in watch.rollouts]).double()
    torch.testing.assert_close(moments(ppo.network.encoder.normalizer), moments_of_rows(obs), rtol=1e-12, atol=0)
    assert all(metrics["train/first_ratio_error"] < 1e-5 for metrics in recorder.metrics)


class Halving(nn.Module):
    """Gives its encoder what no observation is."""

    def __init__(self, observation_space, action_space):
        super().__init__()
        self.encoder, self.head = NORMALIZED(spaces.Box(-1, 1, (2,))), nn.Linear(8, 3)

    def forward(self, obs):
        hidden = self.encoder(obs[:, :2])
        logits, value = self.head(hidden).split((2, 1), dim=-1)
        return PPOModelOutput(logits, value.squeeze(-1), hidden)


def test_an_encoder_of_something_else_than_an_observation_is_refused_before_any_work():
    data = make_data()
    with pytest.raises(ConfigurationError, match=r"^--model\.network=Halving gives an encoder with a normalizer .*\.$"):
        make_ppo(network=Halving).build_network(data.observation_space, data.action_space)


# -- precision


def test_bf16_true_leaves_statistics_in_float32():
    ppo = make_ppo(network=ACTOR_AND_CRITIC)
    fit(ppo, make_data(REACH), precision="bf16-true", gradient_clip_val=None)
    normalizer = ppo.network.actor.embedder.normalizer
    assert ppo.network.actor.mu.weight.dtype == torch.bfloat16
    assert normalizer.mean.dtype == torch.float32
    assert normalizer.count == 64
    assert (normalizer.mean[:4] - 100).abs().max() < 20


def test_ddp_sends_no_statistics_from_rank_to_rank():
    """They are of all ranks already."""
    ppo = make_ppo(network=ACTOR_AND_CRITIC, norm_adv="ema", normalize_rewards=True)
    fit(ppo, make_data(REACH, iterations=1))
    names = {name for name in ppo.state_dict() if "normalizer" in name}
    assert len(names) == 2 * 3 + 3 + 2
    bounds = {"network.actor.low", "network.actor.high"}  # which never change
    assert set(ppo._ddp_params_and_buffers_to_ignore) == names | bounds
