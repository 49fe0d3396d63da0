"""Whole iterations against a plain PyTorch loop, and the traps between rollout and update."""

import functools

import gymnasium
import numpy as np
import pytest
import torch
from torch import nn

from ppo_lightning import ActorCritic, Evaluation, GymnasiumEnv, MLPEncoder
from ppo_lightning.data.seeding import Streams
from tests.runs import Recorder, equal, fit, make_data, make_ppo, weights


@pytest.mark.parametrize(("actions", "width"), [("several", 3), ("binary", 4)])
def test_rollouts_hold_the_integers_that_the_update_evaluates(actions, width):
    rollouts, recorder = [], Recorder()
    ppo = make_ppo()
    prepare = ppo.prepare
    ppo.prepare = lambda rollout, *rest: (rollouts.append(rollout.clone()), prepare(rollout, *rest))[1]
    env = GymnasiumEnv("tests.tasks:Lock-v0", kwargs={"actions": actions})
    fit(ppo, make_data(env), callbacks=[recorder])
    assert all(rollout.actions.dtype == torch.int64 for rollout in rollouts)
    assert all(rollout.actions.shape == (8, 4, width) for rollout in rollouts)
    assert all(metrics["train/first_ratio_error"] < 1e-5 for metrics in recorder.metrics)


@pytest.mark.parametrize("is_plain", [True, False])
def test_one_iteration_equals_a_plain_loop(is_plain, monkeypatch):
    """To the bit where it is all torch, as the loop is; in numpy to the rounding of float64."""
    for module in (
        ["models.host", "models.host_pass", "algorithms.closed_form", "algorithms.clipping"] if is_plain else []
    ):
        monkeypatch.setattr(f"ppo_lightning.{module}.MOST", 0)
    num_envs, num_steps, epochs, minibatches, seed = 4, 16, 4, 2, 3
    gamma, lam, clip, vf, ent, lr, max_norm = 0.9, 0.8, 0.2, 0.5, 0.01, 3e-3, 0.5
    ppo = make_ppo(gamma=gamma, gae_lambda=lam, clip_coef=clip, vf_coef=vf, ent_coef=ent, learning_rate=lr)
    # Bandit's episodes only terminate, so the loop below needs no bootstrap at truncations
    data = make_data(
        "tests.tasks:Bandit-v0", 1, num_envs=num_envs, num_steps=num_steps, num_minibatches=minibatches,
        update_epochs=epochs, seed=seed,
    )  # fmt: skip
    ppo.build_network(data.observation_space, data.action_space)
    before = {name: tensor.double() for name, tensor in weights(ppo).items()}
    fit(ppo, data, precision="64-true", gradient_clip_val=max_norm)

    network = ActorCritic(
        data.observation_space, data.action_space, encoder=lambda space: MLPEncoder(space, hidden_sizes=[16])
    ).double()
    network.load_state_dict(before)
    optimizer = torch.optim.Adam(network.parameters(), lr=lr, eps=1e-5, fused=True)
    streams = Streams(seed, 0, num_envs)
    envs = [gymnasium.make("tests.tasks:Bandit-v0") for _ in range(num_envs)]
    obs = np.stack([env.reset(seed=s)[0] for env, s in zip(envs, streams.env_seeds(0))])
    noise = torch.stack(
        [-torch.empty(num_steps, 3).exponential_(generator=g).log() for g in streams.action_generators(0)], dim=1
    ).double()
    all_obs, actions, log_probs, values, rewards, dones = [], [], [], [], [], []
    with torch.no_grad():
        for t in range(num_steps):
            all_obs.append(torch.as_tensor(obs))
            output = network(torch.as_tensor(obs))
            log_p = torch.log_softmax(output.logits, -1)
            action = (log_p + noise[t]).argmax(-1)
            actions.append(action)
            log_probs.append(log_p.gather(-1, action[:, None])[:, 0])
            values.append(output.value)
            next_obs, step_rewards, step_dones = [], [], []
            for env, a in zip(envs, action.tolist()):
                o, r, terminated, truncated, _ = env.step(a)
                if terminated or truncated:
                    o, _ = env.reset()
                next_obs.append(o)
                step_rewards.append(r)
                step_dones.append(terminated)
            obs = np.stack(next_obs)
            rewards.append(torch.tensor(step_rewards, dtype=torch.float64))
            dones.append(torch.tensor(step_dones, dtype=torch.float64))
        values.append(network(torch.as_tensor(obs)).value)
        advantages, trace = [None] * num_steps, torch.zeros(num_envs, dtype=torch.float64)
        for t in reversed(range(num_steps)):
            delta = rewards[t] + gamma * (1 - dones[t]) * values[t + 1] - values[t]
            trace = delta + gamma * lam * (1 - dones[t]) * trace
            advantages[t] = trace
    flat = [torch.stack(x).flatten(0, 1) for x in (all_obs, actions, log_probs, values[:-1], advantages)]
    b_obs, b_actions, b_log_probs, b_values, b_advantages = flat
    b_returns = b_advantages + b_values
    shuffle = streams.shuffle_generator(0)
    for _ in range(epochs):
        for rows in torch.randperm(len(b_obs), generator=shuffle).chunk(minibatches):
            output = network(b_obs[rows])
            log_p = torch.log_softmax(output.logits, -1)
            new_log_probs = log_p.gather(-1, b_actions[rows][:, None])[:, 0]
            ratio = (new_log_probs - b_log_probs[rows]).exp()
            adv = b_advantages[rows]
            adv = (adv - adv.mean()) / (adv.std() + 1e-8)
            policy_loss = torch.max(-adv * ratio, -adv * ratio.clamp(1 - clip, 1 + clip)).mean()
            clipped = b_values[rows] + (output.value - b_values[rows]).clamp(-clip, clip)
            errors = torch.max((output.value - b_returns[rows]) ** 2, (clipped - b_returns[rows]) ** 2)
            entropy = -(log_p.exp() * log_p).sum(-1).mean()
            loss = policy_loss + vf * 0.5 * errors.mean() - ent * entropy
            optimizer.zero_grad()
            loss.backward()
            nn.utils.clip_grad_norm_(network.parameters(), max_norm)
            optimizer.step()

    assert not equal(before, weights(ppo))
    if is_plain:
        assert equal(network.state_dict(), weights(ppo))
    for name, parameter in weights(ppo).items():
        torch.testing.assert_close(parameter, network.state_dict()[name], rtol=0, atol=1e-12)


def test_each_rollout_is_collected_with_the_parameters_after_the_last_update(monkeypatch):
    recorder, ppo, at_rollout_start = Recorder(), make_ppo(), []
    act = ppo.act

    def spy(*args):
        at_rollout_start.append(weights(ppo))
        return act(*args)

    monkeypatch.setattr(ppo, "act", spy)
    fit(ppo, make_data(iterations=4), callbacks=[recorder])
    for iteration in range(1, 4):
        for step in range(8):  # every step of the rollout, not only its first
            assert equal(at_rollout_start[8 * iteration + step], recorder.after[iteration - 1])
    assert not equal(recorder.after[0], recorder.after[1])


@pytest.mark.parametrize("env", ["tests.tasks:Walk-v0", "tests.tasks:Target-v0", "tests.tasks:DictWalk-v0"])
def test_the_first_ratio_is_one(env):
    recorder = Recorder()
    keys = ["position", "parity"] if "Dict" in env else None
    network = functools.partial(ActorCritic, encoder=functools.partial(MLPEncoder, in_keys=keys))
    fit(make_ppo(network=network), make_data(env, iterations=3), callbacks=[recorder])
    assert len(recorder.metrics) == 3
    assert all(metrics["train/first_ratio_error"] < 1e-5 for metrics in recorder.metrics)
    assert recorder.metrics[-1]["train/approx_kl"] > 0  # later minibatches do move


def test_rollout_and_update_share_the_trainers_precision():
    recorder = Recorder()
    fit(data=make_data(iterations=2), callbacks=[recorder], precision="bf16-mixed")
    in_bf16 = [metrics["train/first_ratio_error"] for metrics in recorder.metrics]
    # the same kernels on both sides: far below bfloat16's rounding of 2^-8
    assert max(in_bf16) < 1e-3


def test_evaluation_leaves_training_untouched():
    without = fit(make_ppo(), make_data(iterations=4))
    evaluation = Evaluation(5, every_n_iterations=1, temperature=1.0)
    with_evaluation = fit(make_ppo(), make_data(iterations=4), callbacks=[evaluation])
    assert len(evaluation.results[""].episodes) == 5
    assert equal(weights(without), weights(with_evaluation))


def test_same_seed_same_run_and_another_seed_another():
    runs = [weights(fit(make_ppo(), make_data(seed=seed))) for seed in (1, 1, 2)]
    assert equal(runs[0], runs[1])
    assert not equal(runs[0], runs[2])


def test_next_step_and_same_step_resets_train_on_the_same_transitions():
    """CartPole's own vector form resets in the next step; every transition that is only a reset is dropped."""
    data = make_data("CartPole-v1", num_steps=64)
    data.env.vectorization = "vector_entry_point"
    recorder = Recorder()
    seen = []

    ppo = make_ppo()
    prepare = ppo.prepare

    def spy(rollout, traces):
        batch = prepare(rollout, traces)
        seen.append((len(batch), int(rollout.valid.sum()), rollout.valid.numel()))
        return batch

    ppo.prepare = spy
    fit(ppo, data, callbacks=[recorder])
    for rows, valid, everything in seen:
        assert rows == valid < everything
