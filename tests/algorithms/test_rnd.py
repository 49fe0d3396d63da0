"""PPO with random network distillation: two streams of rewards, each with its own value, and what makes them."""

import copy
import functools
import math
import statistics

import gymnasium
import pytest
import torch
from lightning.pytorch import Callback

from ppo_lightning import RND, ActorCritic, ConfigurationError, GymnasiumEnv, RNDModel
from ppo_lightning.core.rollout import ExtraBatch
from ppo_lightning.functional import generalized_advantage_estimation
from tests.agents import SMALL_NOVELTY, RewardingGRU, make_rnd
from tests.algorithms.test_guards import Steps
from tests.ranks.tasks import NextStep
from tests.runs import Recorder, fit, make_data
from tests.toy import ToyEnv


class Stairs(ToyEnv):
    """The toy with small seeds; of each step the true next observation is the one a stair higher."""

    def reset(self, *, seed=None, options=None):
        return super().reset(seed=None if seed is None else seed % 5)

    def state_dict(self):
        return {name: vars(self)[name] for name in ("number", "episode", "time")}

    def load_state_dict(self, state):
        vars(self).update(state)


gymnasium.register("Stairs-v0", Stairs, disable_env_checker=True, order_enforce=False)
STAIRS = {"same": GymnasiumEnv("Stairs-v0"), "next": NextStep("Stairs-v0")}
UP = torch.tensor([0.0, 0.0, 1.0])


# -- a rollout


class Hand:
    """Recomputes, slowly and in float64, what each rollout of a run is learned from."""

    def __init__(self, agent):
        self.agent, self.prepare, self.sums, self.running, self.count = agent, agent.prepare, [], None, 0
        agent.prepare = self

    def __call__(self, rollout, end):
        agent, valid = self.agent, rollout.valid
        steps, envs = valid.shape
        with torch.no_grad():
            errors = agent.novelty((rollout.obs + UP).flatten(0, 1)).reshape(steps, envs)
            values = agent.network.intrinsic_values(agent.network(rollout.obs.flatten(0, 1)).hidden).reshape(
                steps, envs
            )
            last = agent.network.intrinsic_values(agent.network(end.obs).hidden)
        self.running = self.running or [0.0] * envs
        for step in range(steps):
            for env in range(envs):
                if valid[step, env]:
                    self.running[env] = agent.gamma_intr * self.running[env] + errors[step, env].item()
                    self.sums.append(self.running[env])
        rewards = errors / math.sqrt(statistics.pvariance(self.sums) + 1e-8)
        advantages = torch.zeros(steps, envs, dtype=torch.float64)
        for env in range(envs):
            following, trace = last[env], 0.0
            for step in reversed(range(steps)):
                if valid[step, env]:
                    delta = rewards[step, env] + agent.gamma_intr * following - values[step, env]
                    trace = delta + agent.gamma_intr * agent.targets.gae_lambda * trace
                    following, advantages[step, env] = values[step, env], trace
        ends = rollout.terminated, rollout.truncated
        gamma, gae_lambda = agent.targets.gamma, agent.targets.gae_lambda
        extrinsic, returns = generalized_advantage_estimation(
            rollout.rewards, rollout.values, rollout.next_values, *ends, gamma, gae_lambda
        )
        batch = self.prepare(rollout, end)
        self.count += 1
        close = functools.partial(torch.testing.assert_close, rtol=1e-5, atol=1e-7)
        close(batch.extra["intrinsic_values"], values[valid])
        close(batch.extra["intrinsic_returns"], (advantages + values)[valid])
        close(batch.returns, returns[valid])
        close(batch.advantages, (1.5 * extrinsic + 0.5 * advantages)[valid])
        assert torch.equal(batch.extra["next_obs"], (rollout.obs + UP)[valid])
        return batch


@pytest.mark.parametrize("mode", STAIRS)
def test_every_number_of_a_rollout_by_hand(mode):
    """Over episodes of both ends and three rollouts; the sum of errors runs on over the ends of both."""
    agent = make_rnd(norm_adv=False, extr_adv_coeff=1.5, intr_adv_coeff=0.5, gamma_intr=0.8, gae_lambda=0.7)
    hand = Hand(agent)
    fit(agent, make_data(STAIRS[mode], iterations=3, num_steps=10), precision="64-true")
    assert hand.count == 3


class Statistics(Callback):
    """The statistics of observations before each rollout is prepared and after each minibatch and iteration."""

    def __init__(self, agent):
        self.counts, prepare = [], agent.prepare

        def spy(rollout, end):
            self.look(agent, "rollout")
            return prepare(rollout, end)

        agent.prepare = spy

    def look(self, agent, when):
        self.counts.append((when, int(agent.novelty.statistics.count), agent.novelty.statistics.mean.tolist()))

    def on_train_batch_end(self, trainer, pl_module, outputs, batch, batch_idx):
        if not trainer.is_last_batch:
            self.look(pl_module, "minibatch")

    def on_train_epoch_end(self, trainer, pl_module):
        self.look(pl_module, "iteration")


def test_statistics_begin_with_random_actions_and_are_frozen_while_they_are_used():
    agent = make_rnd(init_obs_steps=22)  # six steps of four environments
    seen = Statistics(agent)
    fit(agent, make_data(), callbacks=[seen])
    counts = [(when, count) for when, count, _ in seen.counts]
    first = [("rollout", 24), *[("minibatch", 24)] * 3, ("iteration", 56)]
    assert counts == [*first, ("rollout", 56), *[("minibatch", 56)] * 3, ("iteration", 88)]
    means = [mean for _, _, mean in seen.counts]
    assert means[0] == means[1] == means[3] != means[4] == means[5] == means[8] != means[9]
    assert all(any(mean) for mean in means)


def test_what_enters_the_statistics_is_what_followed():
    agent, followed = make_rnd(init_obs_steps=2), []
    prepare = agent.prepare

    def spy(rollout, end):
        followed.append((rollout.obs + UP)[rollout.valid].double())
        return prepare(rollout, end)

    agent.prepare = spy
    warm_up, begun = agent.warm_up, []
    agent.warm_up = lambda obs: (begun.append(obs.double()), warm_up(obs))
    fit(agent, make_data(STAIRS["next"], num_steps=10))
    everything = torch.cat([*begun, *followed])
    assert agent.novelty.statistics.count == len(everything)
    torch.testing.assert_close(agent.novelty.statistics.mean, everything.mean(0).float())
    torch.testing.assert_close(agent.novelty.statistics.var, everything.var(0, correction=0).float())


def test_the_predictor_is_shown_its_share_anew_in_each_epoch():
    agent, masks = make_rnd(predictor_fraction=0.3), []
    prepare = agent.prepare
    agent.prepare = lambda *args: masks.append(prepare(*args)) or masks[-1]
    fit(agent, make_data(num_steps=256, update_epochs=3))
    first, second = (batch.extra["is_predicted"] for batch in masks)
    assert first.shape == (1024, 3)
    for mask in (first, second):
        assert mask.float().mean(0).tolist() == pytest.approx([0.3] * 3, abs=0.05)
        both = (mask[:, 0] & mask[:, 1]).float().mean().item()
        assert both == pytest.approx(0.09, abs=0.03)  # independent
    assert not torch.equal(first, second)


def test_a_fraction_of_one_is_all():
    agent, masks = make_rnd(predictor_fraction=1.0), []
    prepare = agent.prepare
    agent.prepare = lambda *args: masks.append(prepare(*args)) or masks[-1]
    fit(agent, make_data(num_steps=256))
    assert all(batch.extra["is_predicted"].all() for batch in masks)


# -- an update


def built(**flags):
    """An agent with its networks in float64, and a batch of six transitions of an update of two epochs."""
    agent, data = make_rnd(**flags), make_data()
    agent.build_network(data.observation_space, data.action_space)
    agent.double()
    agent._phases = ["update"] * 4

    def draw(*shape, seed):
        return torch.randn(*shape, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)

    mask = torch.tensor([[1, 0], [0, 0], [1, 1], [0, 1], [0, 1], [0, 0]], dtype=torch.bool)
    extra = {
        "next_obs": draw(6, 4, seed=1),
        "intrinsic_values": draw(6, seed=2),
        "intrinsic_returns": draw(6, seed=3),
        "is_predicted": mask,
    }
    batch = ExtraBatch(
        obs=draw(6, 4, seed=4),
        actions=torch.tensor([0, 1, 1, 0, 1, 0]),
        log_probs=draw(6, seed=5) * 0.1 - 0.7,
        advantages=draw(6, seed=6),
        returns=draw(6, seed=7),
        values=draw(6, seed=8),
        extra=extra,
        batch_size=[6],
    )
    return agent, batch


def gradients(agent, batch, batch_idx=0):
    agent.zero_grad()
    agent.training_step(batch, batch_idx).backward()
    return {name: parameter.grad.clone() for name, parameter in agent.named_parameters() if parameter.grad is not None}


@pytest.mark.parametrize("batch_idx", [0, 1, 2, 3])
@pytest.mark.parametrize("clip_vloss", [False, True])
def test_the_loss_of_a_minibatch_by_hand(batch_idx, clip_vloss):
    flags = {"extr_coeff": 0.7, "intr_coeff": 0.3, "ent_coef": 0.02, "clip_coef": 0.1, "predictor_fraction": 0.4}
    agent, batch = built(**flags, clip_vloss=clip_vloss)
    net, novelty, extra = agent.network, agent.novelty, batch.extra
    hidden = net.embedder(batch.obs)
    log_p = torch.log_softmax(net.fc_policy(hidden), -1)
    ratio = (log_p.gather(1, batch.actions[:, None]).squeeze(1) - batch.log_probs).exp()
    advantages = (batch.advantages - batch.advantages.mean()) / (batch.advantages.std() + 1e-8)
    policy_loss = torch.max(-advantages * ratio, -advantages * ratio.clamp(0.9, 1.1)).mean()
    entropy = -(log_p.exp() * log_p).sum(1).mean()
    value_losses = []
    for head, old, returns in (
        (net.fc_value, batch.values, batch.returns),
        (net.fc_intrinsic_value, extra["intrinsic_values"], extra["intrinsic_returns"]),
    ):
        values = head(hidden).squeeze(1)
        errors = (values - returns) ** 2
        if clip_vloss:
            errors = torch.max(errors, (old + (values - old).clamp(-0.1, 0.1) - returns) ** 2)
        value_losses.append(0.5 * errors.mean())
    rows = [0, 2] if batch_idx < 2 else [2, 3, 4]  # two minibatches an epoch
    predicted = novelty(extra["next_obs"][rows]).sum() / (0.4 * 6)
    expected = policy_loss - 0.02 * entropy + 0.7 * value_losses[0] + 0.3 * value_losses[1] + predicted
    torch.testing.assert_close(agent.training_step(batch, batch_idx), expected, rtol=1e-10, atol=0)


def test_each_value_head_has_gradients_of_its_own_loss_alone():
    agent, batch = built()
    before = gradients(agent, batch)
    for changed, own in (("returns", "fc_value"), ("intrinsic_returns", "fc_intrinsic_value")):
        other = copy.deepcopy(batch)
        if changed == "returns":
            other.returns += 1
        else:
            other.extra["intrinsic_returns"] += 1
        after = gradients(agent, other)
        moved = {name for name in before if not torch.equal(before[name], after[name])}
        trunk = {name for name in before if name.startswith("network.embedder.")}
        assert moved == {f"network.{own}.weight", f"network.{own}.bias"} | trunk


def test_the_predictor_has_gradients_of_its_loss_alone_and_the_target_none():
    agent, batch = built()
    before = gradients(agent, batch)
    other = copy.deepcopy(batch)
    other.extra["next_obs"] += 1
    after = gradients(agent, other)
    moved = {name for name in before if not torch.equal(before[name], after[name])}
    assert moved == {name for name, _ in agent.named_parameters() if name.startswith("novelty.predictor.")}
    assert not any(name.startswith("novelty.target.") for name in before)


def test_the_predictors_loss_does_not_depend_on_its_share_in_expectation():
    agent, batch = built(predictor_fraction=0.25)
    with torch.no_grad():
        expected = agent.novelty(batch.extra["next_obs"]).mean().item()
        generator, losses = torch.Generator().manual_seed(0), []
        for _ in range(2000):
            batch.extra["is_predicted"] = torch.rand(6, 2, generator=generator) < 0.25
            agent._statistics.clear()
            agent.training_step(batch, 0)
            losses.append(agent._statistics._minibatches[0][1])
    (names, _), *_ = agent._statistics._minibatches
    mean = torch.stack(losses).mean(0)[names.index("train/predictor_loss")].item()
    assert mean == pytest.approx(expected, rel=0.05)


def test_a_minibatch_without_a_row_for_the_predictor_is_learned_from():
    agent, batch = built()
    batch.extra["is_predicted"][:] = False
    assert all(gradient.isfinite().all() for gradient in gradients(agent, batch).values())


def test_the_target_never_changes_and_all_else_does():
    steps, agent = Steps(), make_rnd(predictor_fraction=1.0)
    fit(agent, make_data(), callbacks=[steps])
    names = {name for name, _ in agent.named_parameters()}
    target = {name for name in names if name.startswith("novelty.target.")}
    assert target
    for changes in steps.changes():
        assert names - target <= changes
        assert not any(name.split()[0] in target for name in changes)


# -- runs


def test_what_is_logged_is_what_is_announced():
    agent = make_rnd(log_action_id=1)
    fit(agent, make_data(num_steps=16))
    assert sorted(agent.iteration_metrics) == sorted(agent.metric_names)
    assert not any(math.isnan(value) for value in agent.iteration_metrics.values())
    assert agent.iteration_metrics["rollout/novelty"] > 0
    assert agent.iteration_metrics["rollout/intrinsic_reward"] > 0


@pytest.mark.parametrize(
    "flags",
    [
        {"gamma_intr": 0.5},
        {"extr_adv_coeff": 0.0},
        {"intr_adv_coeff": 0.0},
        {"extr_coeff": 0.0},
        {"intr_coeff": 0.0},
        {"predictor_fraction": 0.9},
        {"init_obs_steps": 100},
        {"clip_vloss": True},
        {"norm_adv": "rollout"},
        {"novelty": functools.partial(SMALL_NOVELTY, obs_clip=0.5)},
    ],
    ids=lambda flags: next(iter(flags)),
)
def test_flag_changes_the_run(flags):
    def run(**extra):
        return list(fit(make_rnd(learning_rate=5e-2, **extra), make_data()).network.parameters())

    assert any(not torch.equal(*pair) for pair in zip(run(), run(**flags)))


def test_what_is_often_seen_is_new_no_longer():
    recorder = Recorder()
    fit(make_rnd(predictor_fraction=1.0), make_data("tests.tasks:Wage-v0", 20, num_steps=16), callbacks=[recorder])
    novelty = [metrics["rollout/novelty"] for metrics in recorder.metrics]
    assert novelty[-1] < 0.2 * novelty[0]


@pytest.mark.parametrize("network", [None, RewardingGRU])
@pytest.mark.parametrize("mode", STAIRS)
def test_a_resumed_run_is_the_same_run(network, mode):
    recorders = [Recorder(), Recorder(), Recorder()]

    def run(recorder, **settings):
        agent = make_rnd(**({} if network is None else {"network": network}))
        return fit(agent, make_data(STAIRS[mode], iterations=4, num_steps=10), callbacks=[recorder], **settings)

    whole, first = run(recorders[0]), run(recorders[1], max_epochs=2)
    first.trainer.save_checkpoint("a.ckpt")
    assert {"novelty.statistics.mean", "novelty_normalizer.var", "novelty.target.0.layers.0.weight"} <= {
        *first.state_dict()
    }
    resumed = run(recorders[2], ckpt_path="a.ckpt")
    for name, tensor in whole.state_dict().items():
        assert torch.equal(tensor, resumed.state_dict()[name]), name
    assert all(metrics["train/first_ratio_error"] < 1e-5 for metrics in recorders[0].metrics)
    names = ("train/predictor_loss", "rollout/intrinsic_reward", "train/intrinsic_value_loss")
    assert [[metrics[name] for name in names] for metrics in recorders[2].metrics] == [
        [metrics[name] for name in names] for metrics in recorders[0].metrics[2:]
    ]


@pytest.mark.parametrize("precision", ["bf16-mixed", "bf16-true", "16-true", "64-true"])
def test_statistics_keep_their_digits_in_every_precision(precision):
    recorder, agent = Recorder(), make_rnd(learning_rate=1e-3)
    fit(agent, make_data(), callbacks=[recorder], precision=precision)
    exact = torch.float64 if precision == "64-true" else torch.float32
    for part in (agent.novelty.statistics, agent.novelty_normalizer):
        assert {buffer.dtype for buffer in part.buffers()} == {exact}
    assert agent.novelty.statistics.count == 24 + 64
    assert all(metrics["train/first_ratio_error"] < 1e-2 for metrics in recorder.metrics)
    assert math.isfinite(recorder.metrics[-1]["train/loss"])


# -- what is refused


def test_the_checkpoint_of_another_novelty_is_refused_by_its_flag():
    fit(make_rnd(), make_data(iterations=1)).trainer.save_checkpoint("a.ckpt")
    words = (
        r"^--ckpt_path: the checkpoint holds another novelty than --model\.novelty builds .* "
        r"\(novelty\.target\.1\.weight is \(8, 16\) in the checkpoint and \(9, 16\) here\); use the novelty"
    )
    with pytest.raises(ConfigurationError, match=words):
        fit(make_rnd(novelty=functools.partial(SMALL_NOVELTY, output_dim=9)), make_data(), ckpt_path="a.ckpt")


@pytest.mark.parametrize(
    ("flags", "words"),
    [
        ({"gamma_intr": 1.5}, r"--model\.gamma_intr must be at least 0 and at most 1, not 1\.5\."),
        ({"predictor_fraction": 0.0}, r"--model\.predictor_fraction must be greater than 0 and at most 1, not 0\."),
        ({"predictor_fraction": 1.1}, r"--model\.predictor_fraction"),
        ({"init_obs_steps": 1}, r"--model\.init_obs_steps must be at least 2, not 1\."),
        ({"extr_adv_coeff": -1.0}, r"--model\.extr_adv_coeff must be at least 0, not -1\."),
        ({"intr_adv_coeff": -1.0}, r"--model\.intr_adv_coeff"),
        ({"extr_coeff": math.nan}, r"--model\.extr_coeff"),
        ({"intr_coeff": -0.5}, r"--model\.intr_coeff"),
    ],
)
def test_numbers_outside_their_range_are_refused_by_name(flags, words):
    with pytest.raises(ConfigurationError, match=f"^{words}"):
        RND(**flags)


class Column(RNDModel):
    def intrinsic_values(self, hidden):
        return super().intrinsic_values(hidden).unsqueeze(-1)


class Failing(RNDModel):
    def intrinsic_values(self, hidden):
        return hidden @ torch.zeros(3)


@pytest.mark.parametrize(
    ("flags", "words"),
    [
        ({"network": ActorCritic}, r"--model\.network=ActorCritic has no value head for intrinsic rewards: take RNDM"),
        ({"network": Column}, r"--model\.network: intrinsic_values of Column gives a shape of \(2, 1\) for 2"),
        ({"network": Failing}, r"--model\.network: intrinsic_values of Failing fails \(RuntimeError: "),
        ({"novelty": functools.partial(SMALL_NOVELTY, obs_key="x")}, r"--model\.novelty\.obs_key=x needs a Dict"),
        ({"novelty": lambda space: 1 / 0}, r"--model\.novelty: .* does not fit the observation space .*ZeroDivision"),
        ({"novelty": None}, r"--model\.novelty is missing"),
    ],
)
def test_parts_that_it_cannot_learn_with_are_refused_before_any_work(flags, words):
    data = make_data()
    with pytest.raises(ConfigurationError, match=f"^{words}"):
        make_rnd(**flags).build_network(data.observation_space, data.action_space)
