"""Whole runs of a coordinator: costs, checkpoints, command line, and mistakes."""

import functools
import json
import shutil
import warnings
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pytest
import torch
from tensordict import TensorDict
from torch import nn

from ppo_lightning import (
    AlwaysPolicy,
    ConfigurationError,
    CoordinationEnv,
    CoordPPOModel,
    Evaluation,
    GymnasiumEnv,
    LogitThresholdPolicy,
    Policy,
    PPOPolicy,
    RandomPolicy,
    RunCheckpoint,
    export_onnx,
)
from ppo_lightning.data.evaluate import envs_for
from ppo_lightning.data.scoring import Scoring, score_of
from ppo_lightning.data.seeding import Streams
from tests.commands import LAST, RUN, command, load, rows, run, sentence_of
from tests.coordination import (
    COORDINATED,
    NESTED,
    NETWORK,
    SMALL_COORDINATOR,
    TINY,
    TWO,
    VECTOR,
    WALKS,
    Always,
    Counted,
    CountedGRU,
    Says,
    Scripted,
    policy_of,
    save_agent,
    save_agents,
)
from tests.runs import Recorder, SmallGRU, fit, make_data, make_ppo, make_trainer

BONUS = GymnasiumEnv("tests.coordination:Bonus-v0")
UNIT = "--data.env.base_penalty=0.5"


def coordinated(env=WALKS, novice=None, expert=None, **settings):
    return CoordinationEnv(env, novice or policy_of(TINY, 1), expert or policy_of(TINY, 2), **settings)


def make_coordinator(feature_type="obs_hidden_dist", **kwargs):
    return make_ppo(network=functools.partial(SMALL_COORDINATOR, feature_type=feature_type), **kwargs)


# -- the agents in a run


def test_agents_are_what_they_were_after_training_and_always_evaluate():
    """Dropout stays off in them, while the coordinator's own network trains."""
    networks = Counted(seed=1), Counted(seed=2)
    modes = set()
    for network in networks:
        network.dropout.register_forward_hook(lambda module, given, output: modes.add(module.training))
    before = [{name: value.clone() for name, value in network.state_dict().items()} for network in networks]
    ppo = make_coordinator()
    data = make_data(coordinated(WALKS, *map(PPOPolicy, networks), base_penalty=0.5))
    fit(ppo, data, callbacks=[Evaluation(num_episodes=2)])
    assert ppo.training
    assert modes == {False}
    for network, old in zip(networks, before):
        assert all(torch.equal(value, old[name]) for name, value in network.state_dict().items())
        assert all(parameter.grad is None for parameter in network.parameters())
        own = {parameter.data_ptr() for parameter in ppo.parameters()}
        assert not own & {parameter.data_ptr() for parameter in network.parameters()}
    assert not any("novice" in name or "expert" in name for name in ppo.state_dict())


@pytest.mark.parametrize("networks", [(Counted, Counted), (CountedGRU, Counted)])
def test_agents_run_once_a_step_in_a_whole_rollout(networks):
    """A rollout looks one step ahead; nothing is computed again for values or for the border between rollouts."""
    novice, expert = (network(seed=seed) for seed, network in enumerate(networks, 1))
    data = make_data(coordinated(WALKS, PPOPolicy(novice), PPOPolicy(expert), base_penalty=0.5), iterations=3)
    played = []

    class Watch(Recorder):
        def on_train_start(self, trainer, pl_module):
            novice.seen.clear()
            expert.seen.clear()

        def on_train_epoch_end(self, trainer, pl_module):
            played.append((len(novice.seen), len(expert.seen)))

    fit(make_coordinator(), data, callbacks=[Watch()])
    if networks[0] is CountedGRU:
        assert played == [(9, 9), (17, 17), (25, 25)]
    else:
        assert [seen for seen, _ in played] == [9, 17, 25]
        assert [seen for _, seen in played] == sorted(seen for _, seen in played)
        assert played[-1][1] <= 24


def test_returns_are_reported_with_and_without_costs():
    recorder = Recorder()
    novice, expert = Says(0), Says(1)
    env = coordinated(BONUS, novice, expert, open_novice=False, base_penalty=2.0, expert_query_cost_weight=0.25)
    evaluation = Evaluation(num_episodes=4, every_n_iterations=1)
    fit(make_coordinator("obs"), make_data(env, iterations=3, num_steps=16), callbacks=[recorder, evaluation])
    for metrics in recorder.metrics:
        # each step of the expert pays 1 and costs 0.5; every episode pays 10 besides
        paid = metrics["rollout/base_return_mean"] - 10
        assert metrics["rollout/return_mean"] == pytest.approx(10 + paid / 2, abs=1e-4)
    result = evaluation.results[""]
    assert all(episode.episode_return == 10 + (episode.base_return - 10) / 2 for episode in result.episodes)
    assert sum(result.base_actions.values()) == result.steps
    assert result.base_actions[1] == sum(episode.base_return - 10 for episode in result.episodes)


# -- the base penalty


def penalty_by_hand(num_episodes, seed=1, bonus=10.0):
    """An expert that always takes action 1: a length ``l`` returns ``l + bonus``."""
    num_envs = envs_for(num_episodes, 64)
    lengths = [2 + key % 5 for key in Streams(seed, 0, num_envs).eval_env_seeds()]
    assert num_envs == num_episodes
    return (sum(lengths) + bonus * num_episodes) / sum(lengths)


class Listen(Recorder):
    """Notes what is told at the start."""

    def __init__(self):
        super().__init__()
        self.known = []

    def on_train_start(self, trainer, pl_module):
        self.known.append(trainer.datamodule.env.state_dict()["base_penalty"])


@pytest.fixture
def sentences(monkeypatch):
    told = []
    monkeypatch.setattr("ppo_lightning.data.scoring.rank_zero_info", told.append)
    return told


def bonus_env(**settings):
    return coordinated(BONUS, Says(0), Says(1), open_novice=False, base_penalty_episodes=6, **settings)


def test_the_base_penalty_is_the_experts_mean_return_over_its_mean_length(sentences):
    listen, expected = Listen(), penalty_by_hand(6)
    global_generator = torch.get_rng_state()
    env = bonus_env()
    fit(make_coordinator("obs"), make_data(env), callbacks=[listen])
    assert listen.known == [pytest.approx(expected)]
    (told,) = sentences
    assert told.startswith(f"The base penalty is {expected:.6g}: the expert's mean return ")
    assert "of 6 episodes (--data.env.base_penalty gives another)." in told
    assert not torch.equal(torch.get_rng_state(), global_generator)  # of the run itself


def test_measuring_the_base_penalty_changes_nothing_else_in_training():
    expected = penalty_by_hand(6)
    one = fit(make_coordinator("obs"), make_data(bonus_env()))
    known = fit(make_coordinator("obs"), make_data(bonus_env(base_penalty=float(np.float64(expected)))))
    for name, value in one.state_dict().items():
        torch.testing.assert_close(known.state_dict()[name], value)


def test_the_base_penalty_is_kept_by_checkpoints_and_not_measured_again(tmp_path, sentences):
    data = make_data(bonus_env())
    fit(make_coordinator("obs"), data, callbacks=[RunCheckpoint(1)], enable_checkpointing=True, folder=tmp_path)
    path = tmp_path / "checkpoints/step_32.ckpt"
    kept = load(path)["RolloutDataModule"]["env"]
    assert kept["base_penalty"] == pytest.approx(penalty_by_hand(6))
    assert {name: list(agent) for name, agent in kept["agents"].items()} == {"novice": ["sha256"], "expert": ["sha256"]}
    assert len(sentences) == 1
    for given, known in ((None, kept["base_penalty"]), (7.0, 7.0)):
        listen = Listen()
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            fit(make_coordinator("obs"), make_data(bonus_env(base_penalty=given)), path, callbacks=[listen])
        assert listen.known == [known]
    evaluation = Evaluation(num_episodes=2)
    trainer = make_trainer(tmp_path, callbacks=[evaluation])
    data = make_data(bonus_env())
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        trainer.test(make_coordinator("obs"), data, ckpt_path=path, verbose=False, weights_only=True)
    assert data.env.state_dict()["base_penalty"] == kept["base_penalty"]
    assert len(sentences) == 1


@pytest.mark.parametrize("weights", [(0, 0), (0.5, 0), (0, 0.5)])
def test_only_costs_need_a_base_penalty(sentences, weights):
    query, switch = weights
    fit(make_coordinator("obs"), make_data(bonus_env(expert_query_cost_weight=query, switch_agent_cost_weight=switch)))
    assert len(sentences) == (weights != (0, 0))


@pytest.mark.parametrize("given", [0, 3, 1.5])
def test_a_base_penalty_that_is_given_is_not_measured(tmp_path, sentences, given):
    data = make_data(bonus_env(base_penalty=given))
    fit(make_coordinator("obs"), data, callbacks=[RunCheckpoint()], enable_checkpointing=True, folder=tmp_path)
    assert sentences == []
    again = bonus_env()
    again.load_state_dict(load(tmp_path / "checkpoints/last.ckpt")["RolloutDataModule"]["env"])
    assert again.state_dict()["base_penalty"] == given


def test_an_expert_without_returns_makes_no_cost():
    env = coordinated(GymnasiumEnv("tests.coordination:Bonus-v0", kwargs={"bonus": -10.0}), Says(0), Says(1))
    env.open_novice = False
    with pytest.raises(
        ConfigurationError, match=r"^--data.env.base_penalty is not given, and the expert's mean return"
    ):
        fit(make_coordinator("obs"), make_data(env))


def test_each_rank_measures_on_environments_of_its_own(monkeypatch):
    played = []
    monkeypatch.setattr(Scoring, "play", lambda self, trainer, factory, policy: played.append(factory))
    monkeypatch.setattr(Scoring, "over_ranks", lambda self, trainer, result, reports_solved: {"length_mean": 1.0})

    class Seeded(Scripted):
        def of_share(self, index):
            return f"share {index}"

    how = {"num_episodes": 2, "temperature": 1.0, "max_num_steps": None}
    assert score_of(SimpleNamespace(global_rank=2))(Seeded([]), Says(1), **how) == {"length_mean": 1.0}
    assert played == ["share 2"]


def test_splits_share_the_base_penalty(sentences):
    splits = {
        "free": {"expert_query_cost_weight": 0.0},
        "dear": {"expert_query_cost_weight": 2.0},
        "own": {"base_penalty": 1.0},
        "other": {"env": {"kwargs": {"bonus": 5.0}}},
        "null": {"base_penalty": None},
    }
    evaluation = Evaluation(num_episodes=3, splits=splits, policy=AlwaysPolicy("expert"))
    trainer = make_trainer(callbacks=[evaluation])
    trainer.validate(make_coordinator("obs"), make_data(bonus_env(expert_query_cost_weight=0.5)), verbose=False)
    assert len(sentences) == 1
    unit = penalty_by_hand(6)
    costs = {"free": 0, "dear": 2 * unit, "own": 0.5, "other": 0.5 * unit, "null": 0.5 * unit}
    for split, cost in costs.items():
        bonus = 5 if split == "other" else 10
        for episode in evaluation.results[split].episodes:
            assert episode.base_return == episode.length + bonus
            assert episode.episode_return == pytest.approx(episode.base_return - cost * episode.length)


def test_a_split_may_charge_where_training_does_not(sentences):
    env = bonus_env(expert_query_cost_weight=0.0)
    splits = {"free": None, "dear": {"expert_query_cost_weight": 1.0}}
    evaluation = Evaluation(num_episodes=2, splits=splits, every_n_iterations=1)
    fit(make_coordinator("obs"), make_data(env), callbacks=[evaluation])
    assert len(sentences) == 1
    assert all(episode.episode_return == episode.base_return for episode in evaluation.results["free"].episodes)
    assert any(episode.episode_return < episode.base_return for episode in evaluation.results["dear"].episodes)


# -- other environments and precisions


def test_a_base_of_nested_dicts_trains_evaluates_and_resumes(tmp_path):
    space = NESTED.make([0]).observation_space
    agents = [policy_of(TINY, seed, space) for seed in (1, 2)]

    def play(folder, ckpt_path=None):
        data = make_data(coordinated(NESTED, *agents, base_penalty=0.5), iterations=2, minibatch_shares=2)
        callbacks = [Evaluation(num_episodes=2), RunCheckpoint(1)]
        ppo = make_coordinator()
        fit(ppo, data, ckpt_path, callbacks=callbacks, enable_checkpointing=True, folder=folder)
        return ppo.state_dict()

    whole = play(tmp_path / "whole")
    again = play(tmp_path / "again", tmp_path / "whole/checkpoints/step_32.ckpt")
    assert all(torch.equal(again[name], value) for name, value in whole.items())
    policy = PPOPolicy(load_path=tmp_path / "whole/checkpoints/last.ckpt")
    assert policy.observation_space["base_obs"] == space


@pytest.mark.parametrize(("precision", "dtype"), [("64-true", torch.float64), ("bf16-mixed", torch.bfloat16)])
@pytest.mark.parametrize("network", [TINY, SmallGRU])
def test_agents_run_in_the_trainers_precision(precision, dtype, network):
    seen = set()
    agents = [policy_of(network, seed) for seed in (1, 2)]
    for agent in agents:
        for module in agent.model.modules():
            if isinstance(module, (nn.Linear, nn.GRUCell)):
                module.register_forward_hook(lambda module, given, output: seen.add(output.dtype))
    recorder = Recorder()
    env = coordinated(WALKS, *agents, base_penalty_episodes=2, expert_query_cost_weight=0.0, base_penalty=0.5)
    callbacks = [recorder, Evaluation(num_episodes=2)]
    for agent in agents:
        env._policy("novice" if agent is agents[0] else "expert")
    seen.clear()
    data = make_data(env)
    data.env.make([0])  # looked at before the run
    seen.clear()

    class Clear(Recorder):
        def on_train_start(self, trainer, pl_module):
            seen.clear()

    ppo = make_coordinator()
    fit(ppo, data, callbacks=[Clear(), *callbacks], precision=precision)
    assert dtype in seen
    if precision == "64-true":
        assert seen == {dtype}
    assert all(metrics["train/first_ratio_error"] < 1e-4 for metrics in recorder.metrics)


def test_a_coordinator_of_nested_dicts_can_be_exported(tmp_path):
    pytest.importorskip("onnxruntime")
    space = NESTED.make([0]).observation_space
    data = make_data(coordinated(NESTED, *(policy_of(TINY, seed, space) for seed in (1, 2)), base_penalty=0.5))
    fit(make_coordinator("obs_dist"), data, callbacks=[RunCheckpoint()], enable_checkpointing=True, folder=tmp_path)
    exported = export_onnx(tmp_path / "checkpoints/last.ckpt", tmp_path / "policy.onnx")
    assert set(exported.inputs) == {
        "base_obs.pose.parity",
        "base_obs.pose.position",
        "base_obs.steps",
        "novice_hidden",
        "novice_logits",
    }
    assert exported.difference < 1e-5


# -- from the command line


def test_a_run_from_checkpoints_goes_on_wherever_they_are_moved():
    save_agents()
    flags = [
        *COORDINATED,
        *NETWORK,
        "--data.env.base_penalty_episodes=8",
        "--data.env.env.id=tests.coordination:Bonus-v0",
    ]
    run("fit", *flags, "--model.network.feature_type=hidden_obs", "--checkpoint.save_freq=64")
    assert "rollout/base_return_mean" in rows()[0]
    checkpoint = load(LAST)
    agents = checkpoint["RolloutDataModule"]["env"]["agents"]
    assert {name: agent["path"] for name, agent in agents.items()} == {
        "novice": "novice.ckpt",
        "expert": "expert.ckpt",
    }
    assert Path(agents["novice"]["absolute"]) == Path("novice.ckpt").absolute()
    assert agents["novice"]["sha256"] != agents["expert"]["sha256"]
    before = evaluated(f"--ckpt_path={LAST}")
    # the same agents at another place are the same environment
    shutil.copytree(RUN, "again")
    shutil.move("novice.ckpt", "moved.ckpt")
    again = run("fit", f"--ckpt_path={RUN / 'checkpoints/step_64.ckpt'}", "--data.env.novice=moved.ckpt")
    assert "fresh episodes" not in again.warnings
    ends = [load(folder / "checkpoints/last.ckpt") for folder in (Path("again"), RUN)]
    assert all(torch.equal(ends[1]["state_dict"][name], value) for name, value in ends[0]["state_dict"].items())
    assert evaluated(f"--ckpt_path={LAST}", "--data.env.novice=moved.ckpt") == before


POLICIES = {
    "always novice": ["--evaluation.policy=AlwaysPolicy", "--evaluation.policy.agent=novice"],
    "random 0": ["--evaluation.policy=RandomPolicy", "--evaluation.policy.expert_probability=0"],
    "margin < 0.3": [
        "--evaluation.policy=LogitThresholdPolicy",
        "--evaluation.policy.confidence=margin",
        "--evaluation.policy.threshold=0.3",
    ],
}


def evaluated(*flags, name="validate"):
    return json.loads(run(name, *flags, "--json").out)["metrics"]


def test_policies_are_judged_without_a_checkpoint():
    save_agents()
    flags = [*COORDINATED, *NETWORK, UNIT]
    titles = "always novice", "random 0", "margin < 0.3"
    novice, never, asked = (evaluated(*flags, *POLICIES[title], name="test")["eval/return_mean"] for title in titles)
    assert novice == never != asked
    shown = run("validate", *COORDINATED, *NETWORK, UNIT, *POLICIES["margin < 0.3"]).out
    assert "Evaluation of margin < 0.3" in shown
    assert not list(Path().rglob("last.ckpt"))


def test_a_trained_coordinator_is_a_policy_too(tmp_path):
    save_agents()
    run("fit", *COORDINATED, *NETWORK, UNIT)
    policy = ["--evaluation.policy=PPOPolicy", f"--evaluation.policy.load_path={LAST}"]
    assert evaluated(*COORDINATED, *NETWORK, UNIT, *policy) == evaluated(f"--ckpt_path={LAST}")


def test_a_policy_is_recorded_here():
    pytest.importorskip("pygame")
    cartpole = GymnasiumEnv("CartPole-v1").make([0])
    for name, seed in (("novice", 1), ("expert", 2)):
        save_agent(f"{name}.ckpt", TINY, seed, cartpole.observation_space, cartpole.action_space)
    flags = [*COORDINATED, *NETWORK, UNIT, "--data.env.env.id=CartPole-v1", *POLICIES["always novice"]]
    run("video", *flags, "--max_num_steps=3")
    assert [str(path) for path in Path().rglob("*.mp4")] == ["videos/step_0_episode_0.mp4"]
    policy = "--evaluation.policy=AlwaysPolicy", "--evaluation.policy.agent=expert"
    plain = ["--data.env=CartPole-v1", "--trainer.accelerator=cpu"]
    assert "--evaluation.policy: AlwaysPolicy chooses" in sentence_of(command("video", *plain, *policy))


def test_policies_do_not_train():
    save_agents()
    sentence = refused(UNIT, *NETWORK, *POLICIES["always novice"])
    assert "plays in place of the agent" in sentence
    assert "validate or test" in sentence


def test_splits_may_change_the_base_environment_and_the_agents():
    save_agents()
    save_agent("other.ckpt", seed=9)
    splits = "{train: null, test: {env: {kwargs: {bonus: 3.0}}}, other: {novice: other.ckpt}}"
    env = ["--data.env.env.id=tests.coordination:Bonus-v0", f"--evaluation.splits={splits}"]
    flags = [*COORDINATED, *NETWORK, UNIT, *env, "--data.env.expert_query_cost_weight=0"]
    metrics = evaluated(*flags, *POLICIES["always novice"])
    train, test, other = (metrics[f"eval/{split}/return_mean"] for split in ("train", "test", "other"))
    assert test == pytest.approx(train - 7)
    assert other != train
    for settings, words in (
        ({"novice": "none.ckpt"}, r"^--evaluation.splits.a: (novice: )?.*none\.ckpt does not exist"),
        ({"env": {"idd": "x"}}, r"^--evaluation.splits.a.env.idd is not a setting of GymnasiumEnv.*Did you mean id\?"),
    ):
        with pytest.raises(ConfigurationError, match=words):
            fit(make_coordinator("obs"), make_data(coordinated()), callbacks=[Evaluation(splits={"a": settings})])


# -- mistakes


def refused(*flags, name="fit"):
    sentence = sentence_of(command(name, *COORDINATED, *flags))
    assert not list(Path().rglob("last.ckpt"))
    assert not list(Path().rglob("metrics.csv"))
    return sentence


def test_mistakes_are_one_sentence_before_any_work():
    save_agents()
    save_agent("three.ckpt", observation_space=VECTOR, action_space=type(TWO)(3))
    Path("text.ckpt").write_text("not a checkpoint")
    nameless = dict(load("novice.ckpt"))
    nameless["hyper_parameters"]["network"] = None
    torch.save(nameless, "nameless.ckpt")
    closed = ["--data.env.open_novice=false", *NETWORK]
    cases = [
        (["--data.env.novice=three.ckpt", *NETWORK], ["--data.env.novice", "actions Discrete(3)", "Discrete(2)"]),
        (["--data.env.expert=none.ckpt", *NETWORK], ["--data.env.expert", "none.ckpt does not exist", "novice.ckpt"]),
        (["--data.env.novice=text.ckpt", *NETWORK], ["--data.env.novice", "text.ckpt is damaged"]),
        (["--data.env.novice=nameless.ckpt", *NETWORK], ["--data.env.novice", "network was given as an object"]),
        ([*NETWORK, "--model.network.feature_type=obs_dit"], ["feature_type=obs_dit", "Did you mean obs_dist"]),
        (
            [*closed, "--model.network.feature_type=obs_dist"],
            ["feature_type=obs_dist reads novice_logits", "open_novice=true"],
        ),
        ([*NETWORK, "--data.env.expert_query_cost_weight=-1"], ["expert_query_cost_weight must be at least 0, not -1"]),
    ]
    for flags, words in cases:
        sentence = refused(UNIT, *flags)
        for part in words:
            assert part in sentence, sentence


def test_a_bad_expert_is_told_before_training():
    save_agent("novice.ckpt", seed=1)
    save_agent("expert.ckpt", functools.partial(Always, action=0))
    flags = [*NETWORK, "--data.env.env.id=tests.coordination:Bonus-v0", "--data.env.env.kwargs={bonus: -1.0}"]
    sentence = sentence_of(command("fit", *COORDINATED, *flags))
    assert "--data.env.base_penalty is not given, and the expert's mean return -1 over its mean length" in sentence
    assert not list(Path().rglob("last.ckpt"))


@pytest.mark.parametrize(
    ("flags", "words"),
    [
        (["--model.network=ImpalaCoordPPOModel"], ["--model.network is one of a coordinator", "CoordinationEnv"]),
        (["--model.network=CoordPPOModel"], ["--model.network is one of a coordinator", "CoordinationEnv"]),
    ],
)
def test_a_coordinators_network_needs_a_coordination_environment(flags, words):
    sentence = sentence_of(command("fit", "--data.env=CartPole-v1", "--trainer.accelerator=cpu", *flags))
    for part in words:
        assert part in sentence


def test_a_coordinators_policy_needs_a_coordination_environment():
    sentence = sentence_of(
        command("validate", "--data.env=CartPole-v1", "--trainer.accelerator=cpu", *POLICIES["always novice"])
    )
    assert sentence.count("--evaluation.policy: AlwaysPolicy chooses between a novice and an expert") == 1


@pytest.mark.parametrize(
    ("policy", "words"),
    [
        (["--evaluation.policy=AlwaysPolicy", "--evaluation.policy.agent=me"], ["agent", "novice", "expert"]),
        (["--evaluation.policy=RandomPolicy", "--evaluation.policy.expert_probability=2"], ["at most 1, not 2"]),
        (
            ["--evaluation.policy=LogitThresholdPolicy", "--evaluation.policy.confidence=margn"],
            ["confidence=margn", "Did you mean margin?"],
        ),
        (["--evaluation.policy=LogitThresholdPolicy", "--data.env.open_novice=false"], ["open_novice=true"]),
        (
            ["--evaluation.policy=PPOPolicy", "--evaluation.policy.load_path=novice.ckpt"],
            ["--evaluation.policy", "observations"],
        ),
        (["--evaluation.policy=PPOPolicy", "--evaluation.policy.load_path=none.ckpt"], ["none.ckpt does not exist"]),
    ],
)
def test_policies_that_do_not_fit_are_refused(policy, words):
    save_agents()
    sentence = refused(UNIT, *NETWORK, *policy, name="validate")
    for part in words:
        assert part in sentence


def test_a_policy_that_is_no_network_has_nothing_to_show():
    with pytest.raises(ConfigurationError, match=r"--data.env.novice is no network.*open_novice=false"):
        fit(make_coordinator("obs"), make_data(coordinated(WALKS, Says(0), Says(1), base_penalty=0.5)))


def test_a_policy_of_ones_own_always_gets_tensors_and_may_answer_with_arrays():
    """Where it plays as an agent, where the base penalty is measured, and where it coordinates."""
    got = []

    class Own(Policy):
        def act(self, obs, temperature=1.0, *, noise=None):
            got.append(type(obs))
            values = obs if isinstance(obs, torch.Tensor) else obs["base_obs"]
            return (values[:, 2] + values[:, 3] > 0).long().numpy()

        def draws(self, temperature):
            return False

    env = coordinated(BONUS, Own(), Own(), open_novice=False, base_penalty_episodes=2)
    env.make([0]).reset()
    data = make_data(env)
    make_trainer(callbacks=[Evaluation(num_episodes=2, policy=Own())]).test(
        make_coordinator("obs"), data, verbose=False
    )
    assert set(got) == {torch.Tensor, TensorDict}
    assert env.state_dict()["base_penalty"] > 0


def test_policies_in_python():
    env = coordinated(base_penalty=0.5)
    found = {}
    for policy in (AlwaysPolicy("novice"), RandomPolicy(0.0), RandomPolicy(0.7), LogitThresholdPolicy("max_prob", 2.0)):
        evaluation = Evaluation(num_episodes=5, policy=policy)
        trainer = make_trainer(callbacks=[evaluation])
        trainer.test(make_ppo(network=SMALL_COORDINATOR), make_data(env), verbose=False)
        found[str(policy)] = [episode.episode_return for episode in evaluation.results[""].episodes]
    assert found["always novice"] == found["random 0"]
    assert found["random 0.7"] != found["random 0"]
    assert CoordPPOModel is SMALL_COORDINATOR.func
    always_expert = Evaluation(num_episodes=5, policy=AlwaysPolicy("expert"))
    make_trainer(callbacks=[always_expert]).test(make_ppo(network=SMALL_COORDINATOR), make_data(env), verbose=False)
    asked = [episode.episode_return for episode in always_expert.results[""].episodes]
    assert found["max_prob < 2"] == asked
