"""The Gaussian actor-critic, in TensorDict programs and as an agent runs it."""

import functools
import math

import numpy as np
import pytest
import torch
from gymnasium import spaces
from tensordict import TensorDict
from tensordict.nn import TensorDictModule, TensorDictSequential
from torch import distributions as torchs

from ppo_lightning import ConfigurationError
from ppo_lightning.models import GaussianModelOutput, MLPEncoder, PPOActor, PPOModel, SquashedModelOutput
from ppo_lightning.models.gaussian import check_reach

VECTOR, ACTIONS = spaces.Box(-1, 1, (3,)), spaces.Box(np.array([-2.0, 0.0]), np.array([2.0, 1.0]), dtype=np.float64)
DICT = spaces.Dict(shown=spaces.Box(-1, 1, (2,)), kind=spaces.Discrete(3), private=spaces.Box(-1, 1, (4,)))
NESTED = spaces.Dict(body=spaces.Dict(arm=spaces.Box(-1, 1, (2,)), leg=spaces.Box(-1, 1, (2, 2))), goal=VECTOR)
SPACES = {"vector": VECTOR, "dict": DICT, "nested": NESTED}
SMALL = functools.partial(MLPEncoder, hidden_sizes=[8])
ASYMMETRIC = {
    "encoder": functools.partial(SMALL, in_keys=["shown", "kind"]),
    "critic_encoder": functools.partial(MLPEncoder, hidden_sizes=[6], in_keys=["private", "shown"]),
}


def draw(space, rows=5):
    """Observations as a TensorDict program has them; those that are no Dict under ``obs``."""
    if not isinstance(space, spaces.Dict):
        return TensorDict({"obs": torch.randn(rows, *space.shape)}, batch_size=[rows])
    parts = {}
    for key, part in space.items():
        if isinstance(part, spaces.Dict):
            parts[key] = draw(part, rows)
        elif isinstance(part, spaces.Discrete):
            parts[key] = torch.randint(int(part.n), (rows,))
        else:
            parts[key] = torch.randn(rows, *part.shape)
    return TensorDict(parts, batch_size=[rows])


def make(space=VECTOR, actions=ACTIONS, kind=PPOModel, **kwargs):
    """With means away from zero, which the initial gain of 0.01 leaves near it."""
    network = kind(space, actions, **{"encoder": SMALL} | kwargs)
    torch.nn.init.normal_(getattr(network, "actor", network).mu.weight)
    return network


def parameters(network, td):
    mean, logstd, _ = getattr(network, "actor", network).parameters_for(td)
    return mean.double(), logstd.double().expand_as(mean)


def reference(network, td, squash):
    """The same distribution, of torch."""
    mean, logstd = parameters(network, td)
    normal = torchs.Independent(torchs.Normal(mean, logstd.exp()), 1)
    return torchs.TransformedDistribution(normal, torchs.TanhTransform()) if squash else normal


# -- in a TensorDict program


@pytest.mark.parametrize("name", SPACES)
def test_a_call_adds_what_out_keys_say_for_what_in_keys_say(name):
    td, model = draw(SPACES[name]), make(SPACES[name])
    own = set(td.keys())
    assert set(model.in_keys) == own
    assert model.out_keys == ["action", "mean_action", "neglogp", "value"]
    assert model(td) is td
    assert set(td.keys()) == own | set(model.out_keys)
    assert td["action"].shape == td["mean_action"].shape == (5, 2)
    assert td["neglogp"].shape == td["value"].shape == (5,)
    actor = make(SPACES[name], kind=PPOActor)
    assert actor.out_keys == ["action", "mean_action", "neglogp"]
    assert set(actor(draw(SPACES[name])).keys()) == own | set(actor.out_keys)


def test_it_is_one_of_a_sequence_of_modules():
    model = make()
    program = TensorDictSequential(
        TensorDictModule(lambda raw: raw / 2, in_keys=["raw"], out_keys=["obs"]),
        model,
        TensorDictModule(torch.neg, in_keys=["neglogp"], out_keys=["log_prob"]),
    )
    assert program.in_keys == ["raw"]
    raw = torch.randn(4, 3)
    td = program(TensorDict({"raw": raw}, batch_size=[4]))
    torch.testing.assert_close(td["mean_action"], model.evaluate(raw / 2).mean)
    assert torch.equal(td["value"], model.evaluate(raw / 2).value)
    assert torch.equal(td["log_prob"], -td["neglogp"])


def test_it_is_called_with_tensors_by_their_keys():
    model, td = make(DICT, **ASYMMETRIC), draw(DICT)
    action, mean_action, neglogp, value = model(**td.to_dict())
    torch.testing.assert_close(neglogp, -model.log_prob(td, action))
    assert torch.equal(mean_action, model.evaluate(td).mean)
    assert torch.equal(value, model.evaluate(td).value)
    actor, obs = make(kind=PPOActor), torch.randn(4, 3)
    _, mean_action, _ = actor(obs=obs)
    assert torch.equal(mean_action, actor(obs)[1])
    assert torch.equal(mean_action, actor.distribution(obs).mode())


@pytest.mark.parametrize("squash", [False, True])
@pytest.mark.parametrize("std", ["learned", "fixed", "state_dependent"])
@pytest.mark.parametrize("name", SPACES)
def test_neglogp_is_minus_the_log_probability_of_the_action(name, std, squash):
    model = make(SPACES[name], std=std, squash=squash, initial_logstd=-0.5).double()
    td = draw(SPACES[name], rows=64)
    model(td)
    assert torch.equal(td["neglogp"], -model.log_prob(td, td["action"]))
    expected = reference(model, td, squash).log_prob(td["action"])
    torch.testing.assert_close(td["neglogp"], -expected, rtol=1e-8, atol=1e-8)
    torch.testing.assert_close(model.evaluate(_obs_of(td, name)).distribution.log_prob(td["action"]), expected)


def _obs_of(td, name):
    """As an agent has them: a plain tensor where observations are no Dict."""
    return td["obs"] if name == "vector" else td


@pytest.mark.parametrize("squash", [False, True])
def test_a_call_samples_the_distribution_and_tells_its_mode(squash):
    actor = make(kind=PPOActor, squash=squash, initial_logstd=-1.0)
    rows = 20_000
    td = TensorDict({"obs": torch.randn(1, 3).expand(rows, 3)}, batch_size=[rows])
    torch.manual_seed(1)
    actor(td)
    mean, logstd = parameters(actor, td)
    actions = td["action"].double()
    torch.testing.assert_close(td["mean_action"].double(), mean.tanh() if squash else mean)
    before_tanh = actions.atanh() if squash else actions
    assert ((before_tanh.mean(0) - mean[0]).abs() < 4 * math.exp(-1) / rows**0.5).all()
    assert ((before_tanh.std(0) / logstd[0].exp() - 1).abs() < 4 / (2 * rows) ** 0.5).all()
    assert not torch.equal(td["action"], actor(td)["action"])  # fresh noise each time


@pytest.mark.parametrize("name", SPACES)
def test_training_writes_nothing_into_a_batch(name):
    model, td = make(SPACES[name]), draw(SPACES[name])
    td["action"], td["value"] = torch.full((5, 2), 7.0), torch.full((5,), 8.0)
    before = td.clone()
    td.lock_()  # a write raises
    model.log_prob(td, td["action"])
    model.actor.log_prob(td, td["action"])
    model.evaluate(td)
    assert set(td.keys()) == set(before.keys())
    assert (td == before).all()


def test_an_agent_may_bring_arrays_and_mappings_of_them():
    model, td = make(DICT), draw(DICT)
    arrays = {key: tensor.numpy() for key, tensor in td.items()}
    assert torch.equal(model.evaluate(arrays).mean, model.evaluate(td).mean)
    vector, obs = make(), torch.randn(4, 3)
    assert torch.equal(vector.evaluate(obs.numpy()).value, vector.evaluate(obs).value)


def test_the_output_says_whether_it_is_squashed():
    plain, squashed = (make(squash=squash).evaluate(torch.randn(4, 3)) for squash in (False, True))
    assert type(plain) is GaussianModelOutput
    assert type(squashed) is SquashedModelOutput
    assert plain.hidden.shape == (4, 8)


# -- standard deviation


def test_a_learned_std_is_a_parameter_with_a_gradient():
    actor = make(kind=PPOActor, initial_logstd=-0.5)
    assert actor.logstd.tolist() == [-0.5, -0.5]
    actor.log_prob(draw(VECTOR), torch.zeros(5, 2)).sum().backward()
    assert actor.logstd.grad.abs().min() > 0
    assert actor.logstd_head is None


def test_a_fixed_std_is_saved_and_never_learns():
    actor = make(kind=PPOActor, std="fixed", initial_logstd=-2.9)
    assert actor.state_dict()["logstd"].tolist() == pytest.approx([-2.9, -2.9])
    actor.log_prob(draw(VECTOR), torch.zeros(5, 2)).sum().backward()
    assert actor.logstd.grad is None
    assert actor.mu.weight.grad is not None


def test_a_state_dependent_std_follows_the_observation_within_its_range():
    actor = make(kind=PPOActor, std="state_dependent", initial_logstd=-0.5)
    assert actor.logstd is None
    assert actor.logstd_head.weight.abs().max() < 0.02  # it begins as a constant
    td = draw(VECTOR, rows=200)
    torch.testing.assert_close(parameters(actor, td)[1], torch.full((200, 2), -0.5).double(), atol=0.05, rtol=0)
    torch.nn.init.normal_(actor.logstd_head.weight, std=5.0)
    logstd = parameters(actor, td)[1]
    assert (logstd.min(), logstd.max()) == (-5, 2)
    assert len(logstd[:, 0].unique()) > 20
    actor.log_prob(td, torch.zeros(200, 2)).sum().backward()
    assert actor.logstd_head.weight.grad.abs().sum() > 0


# -- the environment's door


def test_rescaled_actions_reach_the_bounds_and_no_further():
    model = make(rescale_actions=True)
    actions = torch.tensor([[-1.0, -1.0], [1.0, 1.0], [0.0, 0.5], [-3.0, 3.0]])
    assert model.to_env(actions).tolist() == [[-2, 0], [2, 1], [0, 0.75], [-2, 1]]
    assert torch.equal(model.actor.to_env(actions), model.to_env(actions))


def test_other_actions_are_in_the_units_of_the_environment_and_clipped():
    actions = torch.tensor([[-1.0, -1.0], [3.0, 0.25]], dtype=torch.float64)
    assert make().to_env(actions).tolist() == [[-1, 0], [2, 0.25]]
    assert make().to_env(actions).dtype == torch.float64
    half_bounded = spaces.Box(np.array([-np.inf, 0]), np.array([np.inf, np.inf]), dtype=np.float64)
    assert make(actions=half_bounded).to_env(actions).tolist() == [[-1, 0], [3, 0.25]]


def test_squashed_actions_stay_within_the_bounds_that_they_are_scaled_to():
    model = make(squash=True, rescale_actions=True, initial_logstd=2.0)
    td = model(draw(VECTOR, rows=1000))
    assert td["action"].abs().max() < 1
    assert td["action"].abs().max() > 0.999
    low, high = torch.from_numpy(ACTIONS.low), torch.from_numpy(ACTIONS.high)
    env_actions = model.to_env(td["action"])
    assert (env_actions >= low).all()
    assert (env_actions <= high).all()
    torch.testing.assert_close(env_actions.double(), low + (td["action"].double() + 1) / 2 * (high - low))


def test_the_bounds_are_no_weights_and_move_with_the_module():
    model = make(rescale_actions=True)
    assert not [name for name in model.state_dict() if "low" in name or "high" in name]
    assert model.double().to_env(torch.ones(1, 2, dtype=torch.float64)).tolist() == [[2, 1]]


# -- what each half sees


def test_the_critics_private_keys_never_reach_the_actor():
    model, td = make(DICT, **ASYMMETRIC), draw(DICT)
    assert (model.actor.in_keys, model.critic.in_keys) == (["shown", "kind"], ["private", "shown"])
    assert model.in_keys == ["shown", "kind", "private"]
    for key in ("shown", "private"):
        td[key].requires_grad_()
    model.log_prob(td, torch.zeros(5, 2)).sum().backward()
    assert td["private"].grad is None
    assert td["shown"].grad.abs().sum() > 0
    model.critic.values(td).sum().backward()
    assert td["private"].grad.abs().sum() > 0

    td = td.detach().clone()
    without = td.exclude("private")
    assert torch.equal(model.actor.distribution(without).mean, model.evaluate(td).mean)
    assert torch.equal(model.actor(without)["mean_action"], model(td.clone())["mean_action"])
    with pytest.raises(KeyError, match="private"):
        model.critic(td.exclude("private"))


def test_actor_and_critic_share_nothing():
    model = make(DICT, **ASYMMETRIC, std="state_dependent")
    critic = model.critic_parameters()
    names = [name for name, parameter in model.named_parameters() if any(parameter is own for own in critic)]
    assert names == [name for name, _ in model.named_parameters() if name.startswith("critic.")]
    assert len(critic) == 4
    model.evaluate(draw(DICT)).value.sum().backward()
    assert {name for name, p in model.named_parameters() if p.grad is not None} == set(names)
    assert model.fc_value is model.critic.fc_value


def test_the_critic_has_the_actors_kind_of_encoder_by_default():
    assert make().critic.embedder.output_dim == 8
    assert make(critic_encoder=MLPEncoder).critic.embedder.output_dim == 64


# -- precision


@pytest.mark.parametrize("std", ["learned", "state_dependent"])
def test_heads_stay_in_full_precision_under_bf16_autocast(std):
    model, obs = make(std=std), torch.randn(6, 3)
    with torch.autocast("cpu", dtype=torch.bfloat16):
        features, critic_features = model.actor.embedder(obs), model.critic.embedder(obs)
        output = model.evaluate(obs)
        td = model(TensorDict({"obs": obs}, batch_size=[6]))
    assert features.dtype == torch.bfloat16
    assert torch.equal(output.mean, model.actor.mu(features.float()))
    assert torch.equal(output.value, model.fc_value(critic_features.float()).squeeze(-1))
    assert output.logstd.dtype == td["neglogp"].dtype == td["action"].dtype == td["value"].dtype == torch.float32
    if std == "state_dependent":
        assert torch.equal(output.logstd, model.actor.logstd_head(features.float()))


def test_a_float64_network_answers_in_float64():
    td = make().double()(draw(VECTOR))
    assert {td[key].dtype for key in ("action", "mean_action", "neglogp", "value")} == {torch.float64}


# -- what is refused


@pytest.mark.parametrize("kind", [PPOActor, PPOModel])
@pytest.mark.parametrize(
    "space", [spaces.Discrete(3), spaces.MultiDiscrete([2, 2]), spaces.MultiBinary(2), spaces.Box(-1, 1, (2, 2))]
)
def test_other_action_spaces_are_refused(kind, space):
    with pytest.raises(ConfigurationError, match=r"^--model\.network=PPOModel .*take ActorCritic, or .*\.$"):
        kind(VECTOR, space)


@pytest.mark.parametrize(
    ("low", "high"),
    [([-1, -np.inf], [1, 1]), ([-1, -1], [1, np.inf]), ([-1, -3e38], [1, 3e38]), ([-1, -1e300], [1, 0])],
)
def test_actions_without_bounds_cannot_be_rescaled(low, high):
    space = spaces.Box(np.array(low, np.float64), np.array(high, np.float64), dtype=np.float64)
    with pytest.raises(ConfigurationError, match=r"^--model\.network\.rescale_actions=true needs bounds .*\.$"):
        PPOModel(VECTOR, space, rescale_actions=True)
    PPOModel(VECTOR, space)


def test_a_std_that_there_is_not_is_refused_with_close_names():
    with pytest.raises(ConfigurationError, match=r"^--model\.network\.std=state-dependent .*mean state_dependent\?$"):
        PPOModel(VECTOR, ACTIONS, std="state-dependent")


@pytest.mark.parametrize("logstd", [-5.1, 2.1, math.nan])
def test_a_state_dependent_std_cannot_begin_where_it_has_no_gradient(logstd):
    with pytest.raises(ConfigurationError, match=r"^--model\.network\.initial_logstd must be at least -5 and at most"):
        PPOModel(VECTOR, ACTIONS, std="state_dependent", initial_logstd=logstd)


@pytest.mark.parametrize("logstd", [math.inf, -math.inf, math.nan])
def test_an_infinite_std_is_refused(logstd):
    with pytest.raises(ConfigurationError, match=r"^--model\.network\.initial_logstd"):
        PPOModel(VECTOR, ACTIONS, initial_logstd=logstd)


@pytest.mark.parametrize("squash", [False, True])
def test_observations_of_any_batch_size_are_taken_in_a_tensordict(squash):
    space = spaces.Dict(seen=spaces.Box(-1, 1, (3,)), number=spaces.Discrete(4))
    model = PPOModel(space, spaces.Box(-1, 1, (2,)), squash=squash, std="state_dependent")
    rows = TensorDict({"seen": torch.randn(10, 3), "number": torch.arange(10) % 4}, batch_size=[10])
    steps = model(rows.reshape(5, 2).clone())
    assert steps["action"].shape == steps["mean_action"].shape == (5, 2, 2)
    assert steps["neglogp"].shape == steps["value"].shape == (5, 2)
    flat = model(rows.clone())
    torch.testing.assert_close(steps["mean_action"].flatten(0, 1), flat["mean_action"])
    torch.testing.assert_close(steps["value"].flatten(), flat["value"])
    torch.testing.assert_close(model.log_prob(steps, steps["action"]), -steps["neglogp"])


def test_squashed_actions_that_reach_no_bound_are_refused_by_an_agent():
    space = spaces.Box(-2, 2, (1,))
    with pytest.raises(ConfigurationError, match=r"squash=true .*rescale_actions=true"):
        check_reach(PPOModel(spaces.Box(-1, 1, (3,)), space, squash=True), space)
    check_reach(PPOModel(spaces.Box(-1, 1, (3,)), space, squash=True, rescale_actions=True), space)
    check_reach(PPOModel(spaces.Box(-1, 1, (3,)), space), space)


def test_a_key_that_the_critic_lacks_is_named_by_its_own_flag():
    space = spaces.Dict(seen=spaces.Box(-1, 1, (3,)))
    wrong = functools.partial(MLPEncoder, in_keys=["sen"])
    with pytest.raises(ConfigurationError, match=r"network\.critic_encoder\.in_keys.*Did you mean seen"):
        PPOModel(space, spaces.Box(-1, 1, (2,)), critic_encoder=wrong)
    with pytest.raises(ConfigurationError, match=r"network\.encoder\.in_keys"):
        PPOModel(space, spaces.Box(-1, 1, (2,)), encoder=wrong)
