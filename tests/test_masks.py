"""Illegal actions through the whole path: rollouts, updates, evaluation, random actions, coordination.

The environments do not take an illegal action: they raise, and nothing here restarts them.
"""

import functools

import numpy as np
import pytest
import torch
from gymnasium import spaces
from gymnasium.vector import AutoresetMode

from ppo_lightning import (
    AlwaysPolicy,
    CoordinationEnv,
    Evaluation,
    GymnasiumEnv,
    LogitThresholdPolicy,
    LSTMCore,
    TrainingError,
)
from ppo_lightning.core.rollout import PPOSequenceBatch
from ppo_lightning.data.evaluate import evaluate
from ppo_lightning.data.seeding import Streams
from ppo_lightning.data.warm_up import warm_up
from ppo_lightning.envs.joined import JoinedVectorEnv
from ppo_lightning.functional.distributions import ILLEGAL
from tests.agents import SMALL_DAAC, ForkGRU, batches_of, daac_data, make_daac, make_rnd
from tests.coordination import SMALL_COORDINATOR, TINY, policy_of
from tests.data.test_warm_up import Watcher
from tests.ranks.tasks import NextStep
from tests.runs import SMALL_NETWORK, Recorder, fit, make_data, make_ppo
from tests.tasks import Fork, Walk

ID = "tests.tasks:Fork-v0"
LSTM = functools.partial(LSTMCore, hidden_dim=8)
MODES = {AutoresetMode.SAME_STEP: GymnasiumEnv, AutoresetMode.NEXT_STEP: NextStep}
each_mode = pytest.mark.parametrize("factory", MODES.values(), ids=lambda factory: factory.__name__)
each_kind = pytest.mark.parametrize("actions", Fork.ACTIONS)


def forks(factory=GymnasiumEnv, **kwargs):
    return factory(ID, kwargs=kwargs)


def space_of(actions):
    mask = spaces.MultiBinary(spaces.flatdim(Fork.ACTIONS[actions]))
    return spaces.Dict(place=Walk.observation_space, action_mask=mask)


def policy(actions, seed=1, network=TINY):
    return policy_of(network, seed, space_of(actions), Fork.ACTIONS[actions])


def illegal(rollout):
    """Of the actions that counted, those that the mask beside them forbids; per component."""
    mask = rollout.obs["action_mask"][rollout.valid].bool()
    actions = rollout.actions[rollout.valid].reshape(len(mask), -1)
    sizes = [4] if actions.shape[1] == 1 else [3, 2]
    parts = zip(mask.split(sizes, -1), actions.unbind(-1))
    return sum(int((~part.gather(1, action.unsqueeze(1))).sum()) for part, action in parts)


RUNS = {
    "PPO": (make_ppo, make_data),
    "PPO with memory": (functools.partial(make_ppo, network=ForkGRU), make_data),
    "PPO with an LSTM and memory": (
        functools.partial(make_ppo, network=functools.partial(SMALL_NETWORK, core=LSTM)),
        make_data,
    ),
    "DAAC with an LSTM and memory": (
        functools.partial(make_daac, network=functools.partial(SMALL_DAAC, core=LSTM)),
        functools.partial(daac_data, sequence_length=4),
    ),
    "RND": (make_rnd, make_data),
    "DAAC": (make_daac, daac_data),
}


@each_mode
@pytest.mark.parametrize(
    ("name", "actions"),
    [
        ("PPO", "several"),
        ("PPO with memory", "one"),
        ("PPO with an LSTM and memory", "several"),
        ("DAAC with an LSTM and memory", "several"),
        ("RND", "several"),
        ("DAAC", "several"),
    ],
)
def test_agents_learn_from_legal_actions_alone(name, actions, factory):
    make_agent, data = RUNS[name]
    agent, recorder = make_agent(ent_coef=0.01), Recorder()
    seen = batches_of(agent)
    data = data(forks(factory, actions=actions), num_steps=16, max_env_restarts=0)
    fit(agent, data, callbacks=[recorder, Evaluation(num_episodes=5, temperature=1)])
    assert len(seen) == 2
    for rollout, batch in seen:
        assert isinstance(batch, PPOSequenceBatch) == ("memory" in name)
        assert illegal(rollout) == 0
        assert 0 < float(rollout.obs["action_mask"][rollout.valid].double().mean()) < 1
        # the last observations of episodes allow nothing: the network saw them before steps that only reset
        assert bool(rollout.valid.all()) == (factory is GymnasiumEnv)
    for metrics in recorder.metrics:
        assert metrics["train/first_ratio_error"] < 1e-5
        assert all(np.isfinite(value) for value in metrics.values())
    assert all(bool(torch.isfinite(parameter).all()) for parameter in agent.parameters())


def test_the_entropy_is_that_of_the_legal_actions():
    """An untrained policy is all but uniform over them."""
    agent, recorder = make_ppo(learning_rate=1e-9), Recorder()
    seen = batches_of(agent)
    fit(agent, make_data(forks(), iterations=1, num_steps=32, max_env_restarts=0), callbacks=[recorder])
    counts = seen[0][0].obs["action_mask"].sum(-1).double()
    assert recorder.metrics[0]["train/entropy"] == pytest.approx(float(counts.log().mean()), abs=0.01)


@each_mode
@each_kind
@pytest.mark.parametrize("temperature", [0, 0.5, 1, 3])
def test_an_evaluation_plays_legal_actions_also_where_no_more_is_to_be_played(factory, actions, temperature):
    env = forks(factory, actions=actions).make(range(3))
    result = evaluate(policy(actions), env, Streams(1, 0, 3), np.array([1, 6, 0]), temperature)
    env.close()
    assert len(result.episodes) == 7


def test_a_policy_takes_legal_actions_of_arrays_and_tensors():
    obs = {"place": np.zeros((500, 4), np.float32), "action_mask": np.tile(np.array([1, 0, 0, 1], np.int8), (500, 1))}
    for temperature in (0.3, 1.0, 50.0):
        actions, output = policy("one").act(obs, temperature, return_model_output=True)
        assert set(actions.tolist()) <= {0, 3}
        assert bool((output.logits[:, 1:3] == ILLEGAL).all())
    only = {**obs, "action_mask": np.tile(np.array([False, True, False, False]), (500, 1))}
    assert policy("one").act(only, 0).tolist() == [1] * 500


# -- random actions


@each_mode
@each_kind
def test_random_actions_are_legal(factory, actions):
    env, watcher = forks(factory, actions=actions).make([5, 6]), Watcher(400)
    given, step = [], env.step
    env.step = lambda chosen: (given.append(np.array(chosen)), step(chosen))[1]
    warm_up(env, watcher, [3, 4], chunk=50)
    env.close()
    assert sum(map(len, watcher.seen)) > 250
    columns = np.stack(given).reshape(-1, 2 if actions == "several" else 1).T
    assert [len(set(column)) for column in columns] == ([3, 2] if actions == "several" else [4])


def test_random_actions_follow_from_the_seed_of_their_environment_alone():
    def given(seeds, draws):
        env, chosen = forks().make(seeds), []
        step = env.step
        env.step = lambda actions: (chosen.append(np.array(actions)), step(actions))[1]
        warm_up(env, Watcher(20 * len(seeds)), draws, chunk=7)
        env.close()
        return np.stack(chosen)

    assert np.array_equal(given([5, 6], [3, 4])[:, 1], given([6], [4])[:, 0])


# -- where nothing is legal


def stuck(index, **kwargs):
    return forks(stuck=Streams(1, 0, 4).env_seeds(0)[index], **kwargs)


@pytest.mark.parametrize(("actions", "which"), [("one", "no action"), ("several", "no action of component 1")])
def test_a_rollout_that_cannot_go_on_names_the_environment_and_the_step(actions, which):
    words = rf"^The action_mask of environment 2 after step 0 of the rollout allows {which}, and one has to be taken: "
    with pytest.raises(TrainingError, match=words):
        fit(make_ppo(), make_data(stuck(2, actions=actions)))


def test_random_actions_that_cannot_go_on_name_the_environment_and_the_step():
    env = forks(stuck=6).make([5, 6])
    words = (
        "^The action_mask of environment 1 at step 1 of the random actions before the first rollout allows no action"
    )
    with pytest.raises(TrainingError, match=words):
        warm_up(env, Watcher(40), [3, 4], chunk=50)
    env.close()


@pytest.mark.parametrize("is_coordinated", [False, True])
def test_an_evaluation_that_cannot_go_on_names_the_environment_and_the_step(is_coordinated):
    factory, player = forks(stuck=6), policy("one")
    if is_coordinated:
        factory, player = CoordinationEnv(factory, policy("one", 1), policy("one", 2), base_penalty=0.1), NOVICE
    env = factory.make([5, 6])
    with pytest.raises(
        TrainingError, match=r"^The action_mask of environment 1 after step 0 of an evaluation allows no"
    ):
        evaluate(player, env, Streams(1, 0, 2), np.array([2, 2]), 1.0)
    env.close()


# -- coordination

NOVICE = AlwaysPolicy("novice")


def coordinated(factory=GymnasiumEnv, **settings):
    agents = policy("one", 1), policy("one", 2)
    return CoordinationEnv(forks(factory), *agents, 0.4, 0.2, 0.5, open_expert=True, **settings)


@each_mode
@pytest.mark.parametrize("settings", [{}, {"temperature": 0, "both_act": True}, {"open_novice": False}], ids=str)
def test_the_agents_of_a_coordinator_act_legally_and_show_it(factory, settings):
    env = JoinedVectorEnv([coordinated(factory, **settings).make(seeds) for seeds in ([1, 2], [3])])
    obs, rng = env.reset(), np.random.default_rng(0)
    told = env.legal_actions()
    assert told.path == ("base_obs", "action_mask")
    assert not told.is_own
    for _ in range(60):
        mask = obs["base_obs"]["action_mask"].astype(bool)
        for name in ("novice", "expert") if settings.get("open_novice", True) else ("expert",):
            assert np.isfinite(obs[f"{name}_logits"]).all()
            probabilities = torch.from_numpy(obs[f"{name}_logits"]).softmax(-1).numpy()
            some = mask.any(-1)
            assert (probabilities[some][~mask[some]] == 0).all()
            np.testing.assert_allclose(probabilities[~some], 0.25)
        obs = env.step(rng.integers(0, 2, 3)).obs
    env.close()


@each_mode
@pytest.mark.parametrize("precision", ["32-true", "bf16-true"])
def test_a_coordinator_learns_around_agents_with_masks(factory, precision):
    recorder = Recorder()
    network = functools.partial(SMALL_COORDINATOR, feature_type="obs_hidden_dist")
    data = make_data(coordinated(factory), num_steps=16, max_env_restarts=0)
    agent = fit(make_ppo(network=network), data, callbacks=[recorder], precision=precision)
    assert all(np.isfinite(value) for metrics in recorder.metrics for value in metrics.values())
    assert all(bool(torch.isfinite(parameter).all()) for parameter in agent.parameters())


@pytest.mark.parametrize("confidence", ["max_prob", "margin", "entropy", "energy", "max_logit"])
def test_thresholds_are_of_the_legal_actions(confidence):
    logits = torch.tensor([[1.0, ILLEGAL, 0.5, ILLEGAL]])
    threshold = LogitThresholdPolicy(confidence, temperature=0.5)
    torch.testing.assert_close(threshold.confidence_of(logits), threshold.confidence_of(logits[:, [0, 2]]))
    env = coordinated(NextStep).make([1, 2])
    assert len(evaluate(threshold, env, Streams(1, 0, 2), np.array([3, 3]), 1.0).episodes) == 6
    env.close()
