"""Agents learn: these fail if the sign of a loss flips."""

from pathlib import Path

import pytest

from ppo_lightning import Evaluation, GymnasiumEnv
from tests.runs import fit, make_data, make_ppo


@pytest.mark.parametrize(("env", "before", "after"), [("Bandit", 0.6, 0.97), ("Target", -0.25, -0.05)])
def test_ppo_learns(env, before, after):
    assert score_of(f"tests.tasks:{env}-v0", 1, critic_pretrain_steps=10**6) < before
    assert score_of(f"tests.tasks:{env}-v0", 25) > after


@pytest.mark.parametrize("actions", ["several", "binary"])
def test_ppo_learns_every_component_of_an_action(actions):
    """One that is wrong costs at least a quarter."""
    env = GymnasiumEnv("tests.tasks:Lock-v0", kwargs={"actions": actions})
    assert score_of(env, 1, critic_pretrain_steps=10**6) < 0.8
    assert score_of(env, 30) > 0.97


def score_of(env, iterations, **kwargs):
    """What the greedy policy earns after so many iterations."""
    evaluation = Evaluation(num_episodes=200, num_envs=20)
    ppo = make_ppo(learning_rate=1e-2, ent_coef=0.0, **kwargs)
    data = make_data(env, iterations, num_envs=16, num_steps=16, num_minibatches=2, update_epochs=4)
    fit(ppo, data, callbacks=[evaluation])
    return evaluation.metrics["eval/return_mean"]


def test_the_critic_learns():
    ppo = make_ppo(learning_rate=1e-2, gamma=0.0, gae_lambda=1.0, clip_vloss=False)
    data = make_data("tests.tasks:Walk-v0", 40, num_envs=16, num_steps=16, update_epochs=4)
    explained = []
    finish = ppo.finish_iteration
    ppo.finish_iteration = lambda: (
        finish(),
        explained.append(float(ppo.trainer.callback_metrics["train/explained_variance"])),
    )
    fit(ppo, data)
    assert explained[0] < 0.3
    assert explained[-1] > 0.8


@pytest.mark.slow
@pytest.mark.parametrize("seed", [1, 2, 3])
@pytest.mark.parametrize(
    ("config", "score"),
    [("cartpole", 475), ("acrobot", -100), ("doors_masked", 19), ("doors_memory", 19), ("cartpole_memory", 450)],
)
def test_configuration_reaches_its_score(config, score, seed, tmp_path, monkeypatch):
    """The figures of benchmarks/RESULTS.md, at their full length."""
    from ppo_lightning.cli.lightning_cli import PPOLightningCLI

    path = Path(__file__).resolve().parents[1] / f"configs/{config}.yaml"
    cli = PPOLightningCLI(
        ["fit", "--config", str(path), f"--seed_everything={seed}", f"--trainer.default_root_dir={tmp_path}"]
    )
    (evaluation,) = (callback for callback in cli.trainer.callbacks if isinstance(callback, Evaluation))
    assert len(evaluation.results[""].episodes) == 100
    assert evaluation.metrics["eval/return_mean"] >= score
