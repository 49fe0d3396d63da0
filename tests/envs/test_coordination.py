"""Who acts, what it costs, and what the coordinator sees, against hand-computed numbers and slow references."""

import functools

import numpy as np
import pytest
import torch
from gymnasium import spaces
from hypothesis import given
from hypothesis import strategies as st

from ppo_lightning import ActorCritic, ConfigurationError, CoordinationEnv, GymnasiumEnv, PPOPolicy
from ppo_lightning.core.errors import NotRestorableError
from ppo_lightning.envs import agents
from ppo_lightning.envs.agents import KeyedNoise
from ppo_lightning.envs.joined import JoinedVectorEnv
from tests.coordination import (
    NESTED,
    TINY,
    WALKS,
    Counted,
    CountedGRU,
    NestedGRU,
    Says,
    Script,
    Scripted,
    policy_of,
    save_agent,
)
from tests.envs.states import assert_same, assert_same_step, through_a_file
from tests.ranks.tasks import NextStep
from tests.runs import SmallGRU
from tests.tasks import Lock

TWO_WALKS = CoordinationEnv(WALKS, policy_of(TINY, 1), policy_of(TINY, 2), 0.4, 1.0, base_penalty=0.5)


def scripted(*rows, query=0.4, switch=0.25, base_penalty=2.0, novice=None, expert=None, **settings):
    """The environment after its reset; by default the novice takes action 0, and the expert 1."""
    agents = novice or Says(0), expert or Says(1)
    shown = {"open_novice": False} | settings
    factory = CoordinationEnv(Scripted(list(rows)), *agents, query, switch, base_penalty, **shown)
    env = factory.make(range(len(rows)))
    env.reset()
    return env


# -- rewards


@pytest.mark.parametrize(
    ("steps", "who", "costs"),
    [
        # one expert step costs 0.4 · 2, a change 0.25 · 2
        (".....", "00000", [0, 0, 0, 0, 0]),
        (".....", "11111", [0.8, 0.8, 0.8, 0.8, 0.8]),
        (".....", "01100", [0, 1.3, 0.8, 0.5, 0]),
        (".....", "01010", [0, 1.3, 0.5, 1.3, 0.5]),
        # no change is charged in an episode's first step, whoever ended the one before, and however it ended
        (".t...", "00110", [0, 0, 0.8, 0.8, 0.5]),
        (".t...", "01001", [0, 1.3, 0, 0, 1.3]),
        (".c...", "01101", [0, 1.3, 0.8, 0.5, 1.3]),
        ("ttctt", "01011", [0, 0.8, 0, 0.8, 0.8]),
        # reset in the next step, which costs nothing and counts for nothing
        (".Tr..", "01101", [0, 1.3, 0, 0, 1.3]),
        (".Cr..", "00111", [0, 0, 0, 0.8, 0.8]),
        (".Tr..", "01010", [0, 1.3, 0, 0.8, 0.5]),
        # broken off by its caller, or lost with its simulator
        ("..r..", "01110", [0, 1.3, 0, 0.8, 0.5]),
        ("..d..", "10010", [0.8, 0.5, 0, 0.8, 0.5]),
        ("dd...", "11011", [0, 0, 0, 1.3, 0.8]),
    ],
)
def test_costs_by_hand(steps, who, costs):
    env = scripted(Script(steps, [10, 20, 30, 40, 50]))
    for time, letter in enumerate(who):
        result = env.step(np.array([int(letter)]))
        is_valid = steps[time] not in "rd"
        assert result.rewards == pytest.approx([(10 * (time + 1) - costs[time]) * is_valid])
        assert result.base_rewards == [10 * (time + 1) * is_valid]
        assert result.base_actions == [int(letter)]
        assert result.rewards.dtype == np.float64


def test_rows_switch_and_end_each_for_itself():
    env = scripted("....", ".t..", ".Tr.", "..d.")
    played = [env.step(np.array(actions)) for actions in ([0, 1, 0, 1], [1, 1, 1, 0], [1, 0, 1, 0], [0, 1, 1, 1])]
    np.testing.assert_allclose(
        [result.rewards for result in played],
        [[0, -0.8, 0, -0.8], [-1.3, -0.8, -1.3, -0.5], [-0.8, 0, 0, 0], [-0.5, -1.3, -0.8, -0.8]],
    )


@pytest.mark.parametrize(
    ("query", "switch", "base_penalty", "costs"),
    [(0, 0, None, [0, 0, 0]), (1, 0, 3.0, [0, 3, 0]), (0, 1, 3.0, [0, 3, 3]), (0.5, 2, 0.0, [0, 0, 0])],
)
def test_each_weight_is_a_multiple_of_the_base_penalty(query, switch, base_penalty, costs):
    env = scripted("...", query=query, switch=switch, base_penalty=base_penalty)
    charged = [-float(env.step(np.array([action])).rewards[0]) for action in (0, 1, 0)]
    assert charged == pytest.approx(costs)


@st.composite
def plays(draw):
    """Scripts that keep to the contract, rewards, and who is asked in each step."""
    num_steps, rows = draw(st.integers(1, 12)), draw(st.integers(1, 4))
    scripts = []
    for _ in range(rows):
        steps = ""
        while len(steps) < num_steps:
            steps += draw(st.sampled_from([".", ".", ".", "t", "c", "Tr", "Cr", "r", "d"]))
        rewards = draw(st.lists(st.integers(-3, 3), min_size=num_steps, max_size=num_steps))
        scripts.append(Script(steps[:num_steps], rewards))
    who = draw(st.lists(st.lists(st.integers(0, 1), min_size=rows, max_size=rows), min_size=num_steps))
    return scripts, who[:num_steps]


def slow_rewards(script, who, query, switch):
    """One row, episode by episode."""
    rewards, episode = [], []
    for time, (letter, asked) in enumerate(zip(script.steps, who)):
        if letter in "rd":
            rewards.append(0.0)
        else:
            episode.append(asked)
            reward = float(script.rewards[time])
            if episode[-1] == 1:
                reward -= query
            if len(episode) > 1 and episode[-2] != episode[-1]:
                reward -= switch
            rewards.append(reward)
        if letter in "tcrd":
            episode = []
    return rewards


@given(plays(), st.sampled_from([0, 0.5, 2]), st.sampled_from([0, 0.25, 1]), st.booleans())
def test_rewards_are_those_of_a_slow_reference(played, query, switch, both_act):
    scripts, who = played
    env = scripted(*scripts, query=query, switch=switch, both_act=both_act)
    results = [env.step(np.array(asked)) for asked in who]
    for row, script in enumerate(scripts):
        expected = slow_rewards(script, [asked[row] for asked in who], query * 2, switch * 2)
        assert [float(result.rewards[row]) for result in results] == pytest.approx(expected)
    assert np.array_equal(env.env.taken, who)  # the novice says 0, and the expert 1


def test_costs_that_are_not_known_are_named_and_may_be_given_later():
    factory = CoordinationEnv(Scripted(["..."]), Says(0), Says(1), 0.5, open_novice=False)
    env = factory.make([0])
    env.reset()
    with pytest.raises(ConfigurationError, match=r"--data.env.base_penalty, or call set_costs"):
        env.step(np.array([1]))
    factory.set_costs(4)
    assert env.step(np.array([1])).rewards == [-2]
    factory.set_costs(1)  # also of environments that are playing
    assert env.step(np.array([1])).rewards == [-0.5]
    with pytest.raises(ConfigurationError, match=r"base_penalty must be at least 0, not -1\."):
        factory.set_costs(-1)


def test_what_the_simulator_offers_is_passed_on():
    env = scripted("...", "...")
    assert env.end_episodes(np.array([True, False]))
    assert env.env.broken_off.tolist() == [True, False]
    env.allow_restarts(7)
    env.restarts = 3
    assert (env.env.limit, env.env.restarts, env.restarts) == (7, 3, 3)
    with pytest.raises(NotImplementedError):
        env.render()


def test_a_broken_off_episode_costs_nothing_in_the_step_that_resets_it():
    env = TWO_WALKS.make([3, 4])
    env.reset()
    env.step(np.array([0, 0]))
    assert env.end_episodes(np.array([True, False]))
    result = env.step(np.array([1, 1]))  # the first row's is ignored, and no switch after it
    assert result.valid.tolist() == [False, True]
    assert result.rewards[0] == result.base_rewards[0] == 0
    assert result.rewards[1] == pytest.approx(result.base_rewards[1] - 0.7)
    after = env.step(np.array([0, 1]))
    assert after.rewards[0] == after.base_rewards[0]


# -- who acts


def alone(policy, temperature, seeds, steps, env=WALKS):
    """One agent by itself, by the noise that coordinated ones act by."""
    vector = env.make(seeds)
    noise = KeyedNoise(vector.action_space, seeds)
    policy = policy.fresh()
    obs = vector.reset()
    policy.reset(np.ones(len(seeds), dtype=bool))
    yield obs, None, None
    for _ in range(steps):
        actions = policy.act(obs, temperature, noise=noise.next()).numpy()
        result = vector.step(actions)
        policy.reset(result.episode_starts)
        obs = result.obs
        yield obs, actions, result


@pytest.mark.parametrize("action", [0, 1])
@pytest.mark.parametrize("temperature", [0.0, 1.0])
@pytest.mark.parametrize("form", [{}, {"both_act": True}, {"open_novice": False}, {"open_expert": True}])
def test_always_the_same_agent_is_that_agent_alone(action, temperature, form):
    policies = policy_of(TINY, 1), policy_of(TINY, 2)
    seeds = [5, 6, 7]
    env = CoordinationEnv(WALKS, *policies, 0.0, temperature=temperature, **form).make(seeds)
    obs, ends, actions = env.reset(), 0, set()
    for expected, taken, reference in alone(policies[action], temperature, seeds, 40):
        if reference is not None:
            result = env.step(np.full(3, action))
            obs = result.obs
            for name in ("rewards", "terminated", "truncated", "episode_starts", "valid"):
                assert np.array_equal(getattr(result, name), getattr(reference, name)), name
            assert np.array_equal(result.base_actions, taken)
            ends, actions = ends + reference.terminated.sum(), actions | set(taken.tolist())
        assert_same(obs["base_obs"], expected)
    assert ends > 3
    assert actions == {0, 1}


@pytest.mark.parametrize("memory", [(True, False), (False, True), (True, True)])
def test_always_the_same_agent_with_memory_is_that_agent_alone(memory):
    policies = [policy_of(SmallGRU if has else TINY, seed) for seed, has in enumerate(memory, 1)]
    for action in (0, 1):
        for is_open in (True, False):
            env = CoordinationEnv(WALKS, *policies, 0.0, open_novice=is_open).make([5, 6, 7])
            env.reset()
            for _, taken, reference in alone(policies[action], 1.0, [5, 6, 7], 40):
                if reference is not None:
                    assert np.array_equal(env.step(np.full(3, action)).base_actions, taken)


def test_an_agent_with_memory_sees_the_steps_of_the_other_one():
    """Its features follow the observations of the whole episode, whoever acted."""
    policy = policy_of(SmallGRU, 1)
    env = CoordinationEnv(WALKS, policy, Says(1), 0.0).make([5, 6, 7])
    obs, rng = env.reset(), np.random.default_rng(0)
    network, state = policy.model, torch.zeros(3, 8)
    for _ in range(30):
        with torch.no_grad():
            output, state = network(torch.from_numpy(obs["base_obs"]), state)
        np.testing.assert_allclose(obs["novice_hidden"], output.hidden, atol=1e-6)
        np.testing.assert_allclose(obs["novice_logits"], output.logits, atol=1e-6)
        result = env.step(rng.integers(0, 2, 3))
        if result.final_obs is not None and result.truncated.any():
            ended = np.flatnonzero(result.terminated | result.truncated)
            with torch.no_grad():
                final, _ = network(torch.from_numpy(result.final_obs["base_obs"]), state[ended])
            np.testing.assert_allclose(result.final_obs["novice_hidden"], final.hidden, atol=1e-6)
            np.testing.assert_allclose(result.final_obs["novice_logits"], final.logits, atol=1e-6)
        state[torch.from_numpy(result.episode_starts)] = 0
        obs = result.obs


@pytest.mark.parametrize("env", [WALKS, NextStep("tests.tasks:Walk-v0")])
def test_final_observations_have_the_novices_features_of_them(env):
    policies = policy_of(TINY, 1), policy_of(TINY, 2)
    coordinated = CoordinationEnv(env, *policies, 0.0, open_expert=True).make([5, 6, 7])
    coordinated.reset()
    truncated = 0
    for step in range(60):
        result = coordinated.step(np.full(3, step % 2))
        if result.final_obs is None:
            continue
        ended = np.flatnonzero(result.terminated | result.truncated)
        assert all(len(part) == len(ended) for part in result.final_obs.values())
        assert list(result.final_obs) == list(result.obs)
        if result.truncated.any():
            truncated += 1
            with torch.no_grad():
                novice, expert = (policy.model(torch.from_numpy(result.final_obs["base_obs"])) for policy in policies)
            np.testing.assert_allclose(result.final_obs["novice_hidden"], novice.hidden, atol=1e-6)
            np.testing.assert_allclose(result.final_obs["novice_logits"], novice.logits, atol=1e-6)
            np.testing.assert_allclose(result.final_obs["expert_hidden"], expert.hidden, atol=1e-6)
            np.testing.assert_allclose(result.final_obs["expert_logits"], expert.logits, atol=1e-6)
    assert truncated > 5


@pytest.mark.parametrize(("temperature", "both_act"), [(1.0, None), (1.0, True), (3.0, None)])
def test_actions_are_drawn_from_the_agents_distributions(both_act, temperature):
    novice, expert = policy_of(TINY, 1), policy_of(TINY, 2)
    forms = {"temperature": temperature, "both_act": both_act, "open_novice": False}
    env = CoordinationEnv(WALKS, novice, expert, 0.0, **forms).make(range(32))
    obs, rng = env.reset(), np.random.default_rng(1)
    surprise = np.zeros(2)
    variance = np.zeros(2)
    for _ in range(150):
        who = rng.integers(0, 2, 32)
        result = env.step(who)
        for number, policy in enumerate((novice, expert)):
            with torch.no_grad():
                logits = policy.model(torch.from_numpy(obs["base_obs"])).logits / temperature
            p = logits.softmax(-1)[:, 1].numpy()[who == number]
            surprise[number] += (result.base_actions[who == number] - p).sum()
            variance[number] += (p * (1 - p)).sum()
        obs = result.obs
    assert (variance > 50).all()
    assert (np.abs(surprise) < 3.5 * np.sqrt(variance)).all()


def test_a_rows_stream_is_a_function_of_its_seed_alone():
    seeds = [11, 12, 13, 14]
    whole = TWO_WALKS.make(seeds)
    parts = JoinedVectorEnv([TWO_WALKS.make(seeds[:2]), TWO_WALKS.make(seeds[2:])])
    other_order = TWO_WALKS.make(seeds[::-1])
    assert_close(whole.reset(), parts.reset())
    other_order.reset()
    rng = np.random.default_rng(0)
    for _ in range(70):  # noise is drawn 64 steps at a time
        who = rng.integers(0, 2, 4)
        one, other, turned = whole.step(who), parts.step(who), other_order.step(who[::-1].copy())
        for name in ("rewards", "base_rewards", "base_actions", "episode_starts"):
            assert np.array_equal(getattr(one, name), getattr(other, name)), name
            assert np.array_equal(getattr(one, name), getattr(turned, name)[::-1]), name
        assert_close(one.obs, other.obs)
        if one.final_obs is not None and one.truncated.any():  # of terminated ones the features are not looked at
            cut = one.truncated[one.terminated | one.truncated]
            for key, value in one.final_obs.items():
                np.testing.assert_allclose(other.final_obs[key][cut], value[cut], atol=1e-5)


def assert_close(one, other):
    assert one.keys() == other.keys()
    for key, value in one.items():
        np.testing.assert_allclose(value, other[key], atol=1e-5)


def test_a_second_reset_is_the_first_again():
    env = TWO_WALKS.make([1, 2])
    played = []
    for _ in range(2):
        env.reset()
        played.append([env.step(np.array([step % 2, 1])) for step in range(20)])
    for one, other in zip(*played):
        assert_same_step(one, other)


# -- forward passes

FORMS = [
    {"open_novice": is_open, "open_expert": expert_is_open, "both_act": both_act}
    for is_open in (True, False)
    for expert_is_open in (True, False)
    for both_act in (None, True)
]


@pytest.mark.parametrize("form", FORMS, ids=str)
def test_each_agent_runs_at_most_once_a_step(form):
    networks = Counted(seed=1), Counted(seed=2)
    env = CoordinationEnv(WALKS, *map(PPOPolicy, networks), 0.0, **form).make([5, 6, 7])
    is_ahead = [form["open_novice"] or form["both_act"], form["open_expert"] or form["both_act"]]
    for network in networks:
        network.seen.clear()  # of how they were looked at
    env.reset()
    rng, ends = np.random.default_rng(0), 0
    assert [len(network.seen) for network in networks] == [int(bool(ahead)) for ahead in is_ahead]
    for _ in range(40):
        for network in networks:
            network.seen.clear()
        who = rng.integers(0, 2, 3)
        result = env.step(who)
        valued = len(result.final_obs["base_obs"]) if result.truncated.any() else 0
        ends += valued
        for number, (network, ahead) in enumerate(zip(networks, is_ahead)):
            shows = form["open_expert" if number else "open_novice"]
            rows = 3 + valued * shows if ahead else int((who == number).sum())
            assert [len(obs) for obs in network.seen] == ([rows] if rows else [])
    assert ends > 3


def test_no_gradients_and_evaluation_mode():
    network = Counted().train()
    modes = []
    network.register_forward_hook(
        lambda module, given, output: modes.append((module.training, output.logits.requires_grad))
    )
    policy = PPOPolicy(network)
    env = CoordinationEnv(WALKS, policy, Says(0), 0.0).make([0])
    env.reset()
    env.step(np.array([0]))
    assert set(modes) == {(False, False)}


def test_agents_from_checkpoints_never_learn(tmp_path):
    save_agent("novice.ckpt")
    factory = CoordinationEnv(WALKS, "novice.ckpt", tmp_path / "novice.ckpt", 0.0)
    factory.make([0])
    parameters = [parameter for name in ("novice", "expert") for parameter in factory._policy(name).model.parameters()]
    assert len(parameters) > 4
    assert not any(parameter.requires_grad for parameter in parameters)


# -- memory


def test_the_memory_of_agents_begins_anew_with_each_episode():
    """Each letter is a step; a row that starts has no memory, others have all of their episode."""
    network = CountedGRU()
    factory = CoordinationEnv(Scripted(["..t...", "....c.", ".Cr..."]), PPOPolicy(network), Says(1), 0.0)
    env = factory.make([0, 1, 2])
    obs, state = env.reset(), torch.zeros(3, 8)
    for who in [[0, 1, 0]] * 6:
        with torch.no_grad():
            output, state = network(torch.from_numpy(obs["base_obs"]), state)
        np.testing.assert_allclose(obs["novice_hidden"], output.hidden, atol=1e-6)
        result = env.step(np.array(who))
        if result.truncated.any():
            ended = np.flatnonzero(result.terminated | result.truncated)
            with torch.no_grad():
                final, _ = network(torch.from_numpy(result.final_obs["base_obs"]), state[ended])
            np.testing.assert_allclose(result.final_obs["novice_hidden"], final.hidden, atol=1e-6)
        state[torch.from_numpy(result.episode_starts)] = 0
        obs = result.obs


@pytest.mark.parametrize("which", [0, 1])
def test_both_act_where_one_has_a_memory(which):
    networks = [Counted(seed=1), Counted(seed=2)]
    networks[which] = CountedGRU()
    settings = {"open_novice": False}
    env = CoordinationEnv(WALKS, *map(PPOPolicy, networks), 0.0, **settings).make([5, 6])
    env.reset()
    for network in networks:
        network.seen.clear()
    for who in ([0, 0], [1, 1], [0, 1]):
        env.step(np.array(who))
    assert [len(network.seen) for network in networks] == [3, 3]
    with pytest.raises(ConfigurationError, match=r"--data.env.both_act=false .* memory of --data.env.(novice|expert)"):
        CoordinationEnv(WALKS, *map(PPOPolicy, networks), 0.0, both_act=False, **settings).make([0])


def test_a_memory_may_be_of_several_tensors():
    plain, nested = policy_of(SmallGRU, 1), policy_of(NestedGRU, 1)
    played = []
    for policy in (plain, nested):
        env = CoordinationEnv(WALKS, policy, policy, 0.0).make([5, 6])
        env.reset()
        played.append([env.step(np.array([0, 1])) for _ in range(20)])
    assert any(result.final_obs is not None for result in played[0])
    for one, other in zip(*played):
        assert_same_step(one, other)


def test_a_memory_of_one_environment_is_not_another_ones():
    factory = CoordinationEnv(WALKS, policy_of(SmallGRU, 1), policy_of(SmallGRU, 2), 0.0)
    one = factory.make([5, 6])
    first = [one.reset(), *(one.step(np.array([0, 1])).obs for _ in range(5))]
    other = factory.make([5, 6])
    again = [other.reset()]
    for _ in range(5):
        one.step(np.array([1, 1]))
        again.append(other.step(np.array([0, 1])).obs)
    for expected, obs in zip(first, again):
        assert_same(obs, expected)


# -- other spaces


def test_agents_of_continuous_actions_show_their_means():
    target = GymnasiumEnv("tests.tasks:Target-v0")
    box = spaces.Box(-1, 1, (2,), np.float32)
    novice, expert = (policy_of(functools.partial(ActorCritic, initial_logstd=-1.0), seed, box, box) for seed in (1, 2))
    env = CoordinationEnv(target, novice, expert, 0.0, temperature=0).make([0, 1])
    obs = env.reset()
    assert {key: part.shape for key, part in env.observation_space.items()} == {
        "base_obs": (2,),
        "novice_hidden": (64,),
        "novice_mean": (2,),
    }
    result = env.step(np.array([0, 1]))
    taken = [policy.act(obs["base_obs"], 0).numpy() for policy in (novice, expert)]
    np.testing.assert_allclose(result.base_actions, [taken[0][0], taken[1][1]], rtol=1e-5, atol=1e-6)
    np.testing.assert_allclose(
        result.rewards, -((np.clip(result.base_actions, -1, 1) - 0.5) ** 2).sum(1), rtol=1e-5, atol=1e-6
    )


@pytest.mark.parametrize(("actions", "width"), [("several", 3), ("binary", 4)])
def test_agents_may_take_several_actions_at_once(actions, width):
    locks = GymnasiumEnv("tests.tasks:Lock-v0", kwargs={"actions": actions})
    space = Lock.ACTIONS[actions]
    novice, expert = (policy_of(TINY, seed, Lock.observation_space, space) for seed in (1, 2))
    env = CoordinationEnv(locks, novice, expert, 0.0, temperature=0).make([3, 4])
    assert set(env.observation_space.spaces) == {"base_obs", "novice_hidden"}
    obs = env.reset()
    for _ in range(20):
        result = env.step(np.array([0, 1]))
        expected = [policy.act(obs["base_obs"][[row]], temperature=0)[0] for row, policy in enumerate((novice, expert))]
        assert result.base_actions.tolist() == torch.stack(expected).tolist()
        obs = result.obs
    env.close()


def test_observations_may_be_dicts_in_dicts():
    env = CoordinationEnv(NESTED, *(policy_of(TINY, seed, NESTED.make([0]).observation_space) for seed in (1, 2)), 0.0)
    vector, plain = env.make([5, 6, 7]), WALKS.make([5, 6, 7])
    obs, reference, finals = vector.reset(), plain.reset(), 0
    for step in range(40):
        assert_same(obs["base_obs"]["pose"]["position"], reference)
        assert vector.observation_space.contains(
            {**{key: part[0] for key, part in obs.items() if key != "base_obs"}, "base_obs": first_row(obs["base_obs"])}
        )
        result = vector.step(np.array([0, 1, step % 2]))
        other = plain.step(result.base_actions)
        if other.final_obs is not None:
            finals += 1
            assert_same(result.final_obs["base_obs"]["pose"]["position"], other.final_obs)
            assert result.final_obs["base_obs"]["steps"].shape == (len(other.final_obs), 1)
        obs, reference = result.obs, other.obs
    assert finals > 3


def first_row(obs):
    if isinstance(obs, dict):
        return {key: first_row(part) for key, part in obs.items()}
    return obs[0]


# -- state


@pytest.mark.parametrize(
    ("networks", "settings"),
    [
        ((TINY, TINY), {}),
        ((TINY, TINY), {"open_novice": False}),
        ((TINY, TINY), {"temperature": 0}),
        ((TINY, TINY), {"open_expert": True, "both_act": True}),
        ((SmallGRU, TINY), {"switch_agent_cost_weight": 0.5}),
        ((TINY, SmallGRU), {"open_novice": False}),
        ((NestedGRU, SmallGRU), {"open_expert": True}),
    ],
)
def test_a_state_can_be_taken_after_any_step(monkeypatch, networks, settings):
    """The seeds of a run that goes on are others; the noise of the agents is not."""
    monkeypatch.setattr(agents, "_BLOCK", 8)  # steps that noise is drawn for at once
    novice, expert = (policy_of(network, seed) for seed, network in enumerate(networks, 1))
    factory = CoordinationEnv(WALKS, novice, expert, base_penalty=0.5, **settings)

    def make(*seeds):
        return JoinedVectorEnv([factory.make([seed, seed + 50]) for seed in seeds])

    saved, rng = make(1, 2), np.random.default_rng(0)
    others = [make(8, 9), make(6, 7)]
    saved.reset()
    for step in range(20):
        others[step % 2].load_state_dict(through_a_file(saved.state_dict()))
        who = rng.integers(0, 2, 4)
        one = saved.step(who)
        for restored in others[: step + 1]:  # the other one goes on from a step before
            assert_same_step(restored.step(who), one)
    for _ in range(10):
        who = rng.integers(0, 2, 4)
        one = saved.step(who)
        for restored in others:
            assert_same_step(restored.step(who), one)


def test_taking_a_state_disturbs_nothing_and_is_a_copy():
    factory = CoordinationEnv(WALKS, policy_of(SmallGRU, 1), policy_of(TINY, 2), base_penalty=0.5)
    watched, alone = factory.make([1, 2]), factory.make([1, 2])
    states = []
    for env in (watched, alone):
        env.reset()
    for step in range(20):
        states.append((watched.state_dict(), through_a_file(watched.state_dict())))
        assert_same_step(watched.step(np.array([step % 2, 1])), alone.step(np.array([step % 2, 1])))
    for now, then in states:
        for agent, before in zip(now["agents"], then["agents"]):
            assert (agent["memory"] is None) == (before["memory"] is None)
            if agent["memory"] is not None:
                assert torch.equal(agent["memory"], before["memory"])
        assert str(now["previous"]) == str(then["previous"])


def test_a_state_of_another_number_of_environments_is_refused():
    saved = TWO_WALKS.make([1, 2])
    saved.reset()
    with pytest.raises(NotRestorableError, match="one of 2 environments, not of 3"):
        TWO_WALKS.make([1, 2, 3]).load_state_dict(saved.state_dict())


def test_it_is_restorable_where_what_is_played_in_is():
    env = CoordinationEnv(NESTED, Says(0), Says(1), open_novice=False).make([0])
    env.reset()
    assert env.why_not_restorable() is None
    bandit = spaces.Discrete(3)
    other = CoordinationEnv(
        GymnasiumEnv("tests.tasks:Bandit-v0"),
        policy_of(TINY, 1, spaces.Box(-1, 1, (3,)), bandit),
        Says(1),
    ).make([0])
    other.reset()
    assert "Bandit" in other.why_not_restorable()
