"""Losses on a policy's means, as a minibatch's loss has them."""

import functools
import math

import pytest
import torch
from gymnasium import spaces
from tensordict import TensorDict

from ppo_lightning import PPO, ActorCritic, ConfigurationError, MLPEncoder, ObservationNormalizer, PPOModel
from ppo_lightning.core.rollout import PPOBatch
from ppo_lightning.functional import bounds_loss, l2c2_loss, mean_squared_difference
from tests.runs import Recorder, SmallGRU, fit, make_data, make_ppo, make_trainer
from tests.tasks import Reach, Target, Walk

SMALL = functools.partial(MLPEncoder, hidden_sizes=[6])
GAUSSIAN = functools.partial(
    PPOModel,
    encoder=functools.partial(SMALL, in_keys=["noisy"]),
    critic_encoder=functools.partial(SMALL, in_keys=["clean", "left"]),
)
PLAIN = functools.partial(ActorCritic, encoder=functools.partial(SMALL, in_keys=["noisy", "left"]))
PAIRS = {"l2c2_pairs": {"noisy": "clean"}}
UNBOUNDED = spaces.Box(-math.inf, math.inf, (2,))


def ready(network=GAUSSIAN, observation_space=Reach.observation_space, action_space=Reach.action_space, **flags):
    """An agent in float64 whose means lie on both sides of the bounds, as one minibatch meets it."""
    ppo = make_ppo(network=network, norm_adv=False, **flags)
    ppo.build_network(observation_space, action_space)
    ppo.double().trainer = make_trainer()
    mu = ppo.network.fc_policy if network is PLAIN else ppo.network.actor.mu
    with torch.no_grad():
        torch.nn.init.normal_(mu.weight)
        mu.bias.copy_(torch.tensor([2.0, -0.4]))
    return ppo


def minibatch(ppo, rows=12):
    generator = torch.Generator().manual_seed(1)

    def normal(*shape):
        return torch.randn(*shape, generator=generator, dtype=torch.float64)

    clean = normal(rows, 4)
    obs = TensorDict({"noisy": clean + 0.3 * normal(rows, 4), "clean": clean}, batch_size=[rows])
    obs["left"] = torch.randint(0, 10, (rows,), generator=generator)
    distribution = ppo(obs).distribution
    actions = distribution.sample(normal(rows, 2))
    return PPOBatch(
        obs=obs.lock_(),
        actions=actions.detach(),
        log_probs=distribution.log_prob(actions).detach() + 0.05,  # off the kink of the clip at 1
        advantages=normal(rows),
        returns=normal(rows),
        values=normal(rows),
        batch_size=[rows],
    )


def loss_of(ppo, batch):
    ppo._statistics.clear()
    return ppo.training_step(batch, 0)


def gradients(ppo, batch):
    ppo.zero_grad()
    loss_of(ppo, batch).backward()
    return {name: parameter.grad.clone() for name, parameter in ppo.named_parameters() if parameter.grad is not None}


def penalty_of(ppo, batch, kind):
    """By the functional forms, on the means that the network gives."""
    mean = ppo(batch.obs).mean
    if kind == "bounds":
        return bounds_loss(mean, torch.tensor([-2, -0.5]).double(), torch.tensor([2, 0.5]).double())
    clean = batch.obs.clone().unlock_()
    clean["noisy"] = clean["clean"]
    distance = mean_squared_difference([(batch.obs["noisy"], batch.obs["clean"])])
    return l2c2_loss(mean, ppo(clean).mean, distance)


FLAGS = {"bounds": {"bounds_coef": 3.0}, "l2c2": {**PAIRS, "l2c2_coef": 3.0}}


@pytest.mark.parametrize("network", [GAUSSIAN, PLAIN], ids=["PPOModel", "ActorCritic"])
@pytest.mark.parametrize("kind", FLAGS)
def test_the_loss_has_the_penalty_times_its_weight(kind, network):
    ppo, plain = ready(network, **FLAGS[kind]), ready(network)
    plain.network.load_state_dict(ppo.network.state_dict())
    batch = minibatch(ppo)
    penalty = penalty_of(ppo, batch, kind)
    assert penalty > 0.01
    torch.testing.assert_close(loss_of(ppo, batch) - loss_of(plain, batch), 3 * penalty, rtol=1e-10, atol=0)


@pytest.mark.parametrize("kind", FLAGS)
def test_the_whole_loss_has_the_gradient_of_finite_differences(kind):
    ppo = ready(**FLAGS[kind])
    batch, step = minibatch(ppo), 1e-6
    exact = gradients(ppo, batch)
    actor = ppo.network.actor
    for name, parameter in {"mu.bias": actor.mu.bias, "logstd": actor.logstd, "mu.weight": actor.mu.weight[0]}.items():
        own = exact[f"network.actor.{name}"]
        for index in range(len(parameter)):
            losses = []
            for shift in (step, -step):
                with torch.no_grad():
                    parameter[index] += shift
                losses.append(loss_of(ppo, batch).item())
                with torch.no_grad():
                    parameter[index] -= shift
            slope = (losses[0] - losses[1]) / (2 * step)
            assert (own[0] if own.dim() == 2 else own)[index].item() == pytest.approx(slope, rel=1e-6, abs=1e-7)


@pytest.mark.parametrize(("kind", "same"), [("bounds", {"logstd"}), ("l2c2", {"logstd", "mu.bias"})])
def test_it_moves_the_actor_and_never_the_critic_or_the_std(kind, same):
    ppo, plain = ready(**FLAGS[kind]), ready()
    plain.network.load_state_dict(ppo.network.state_dict())
    batch = minibatch(ppo)
    with_it, without = gradients(ppo, batch), gradients(plain, batch)
    assert with_it.keys() == without.keys()
    differing = {name for name in with_it if not torch.allclose(with_it[name], without[name], rtol=1e-9, atol=1e-12)}
    actor = {name for name in with_it if name.startswith("network.actor.")}
    assert differing == actor - {f"network.actor.{name}" for name in same}  # a bias moves both means alike


def test_rescaled_actions_are_bounded_by_one():
    """Not by the bounds of the environment, which are to be reached from -1 to 1."""
    network = functools.partial(GAUSSIAN, rescale_actions=True)
    ppo, plain = ready(network, bounds_coef=2.0), ready(network)
    plain.network.load_state_dict(ppo.network.state_dict())
    batch = minibatch(ppo)
    one = torch.ones(2).double()
    expected = 2 * bounds_loss(ppo(batch.obs).mean, -one, one)
    torch.testing.assert_close(loss_of(ppo, batch) - loss_of(plain, batch), expected, rtol=1e-10, atol=0)


def test_half_a_bound_is_a_bound():
    space = spaces.Box(torch.tensor([-math.inf, 0.0]).numpy(), torch.tensor([math.inf, math.inf]).numpy())
    assert ready(action_space=space, bounds_coef=1.0)._penalties["bounds"][0] == 1


def test_smoothness_with_more_ranks_is_by_the_distance_of_all():
    ppo = ready(**FLAGS["l2c2"])
    batch = minibatch(ppo)
    mean, average = ppo(batch.obs).mean, []

    def of_all(x):
        average.append(x)
        return torch.tensor(0.5).double()

    _, smoothness = ppo._penalties["l2c2"]
    own = penalty_of(ppo, batch, "l2c2") * (average_of(batch) + 1e-8)
    torch.testing.assert_close(smoothness(batch.obs, mean, of_all), own / (0.5 + 1e-8))
    torch.testing.assert_close(average, [average_of(batch)])


def average_of(batch):
    return mean_squared_difference([(batch.obs["noisy"], batch.obs["clean"])])


def test_a_run_logs_them():
    normalized = functools.partial(SMALL, in_keys=["noisy"], normalizer=ObservationNormalizer)
    network = functools.partial(PPOModel, encoder=normalized, initial_logstd=-2.0)
    ppo, recorder = make_ppo(network=network, bounds_coef=1.0, **PAIRS), Logged()
    data = make_data("tests.tasks:Reach-v0", iterations=3)
    ppo.build_network(data.observation_space, data.action_space)
    with torch.no_grad():
        ppo.network.actor.mu.bias.fill_(3.0)
    fit(ppo, data, callbacks=[recorder])
    names = {"train/bounds_loss", "train/l2c2_loss"}
    assert names <= set(ppo.metric_names)
    assert recorder.metrics[0]["train/bounds_loss"] == pytest.approx(1 + 2.5**2, rel=0.2)  # beyond by 1 and 2.5
    assert recorder.metrics[-1]["train/l2c2_loss"] > 0


def test_means_come_back_within_their_bounds():
    """Where the environment, which clips, tells them nothing."""

    def mean_after(**flags):
        network = functools.partial(PPOModel, encoder=SMALL, initial_logstd=-2.0)
        ppo, data = make_ppo(network=network, learning_rate=0.03, **flags), make_data("tests.tasks:Target-v0", 10)
        ppo.build_network(data.observation_space, data.action_space)
        with torch.no_grad():
            ppo.network.actor.mu.bias.fill_(2.0)
        return fit(ppo, data)(torch.zeros(1, 2)).mean[0]

    assert (mean_after() > 1.6).all()
    assert (mean_after(bounds_coef=10.0) < 1.2).all()


class Logged(Recorder):
    """What each iteration logged."""

    def on_train_epoch_end(self, trainer, pl_module):
        self.metrics.append(pl_module.iteration_metrics)


@pytest.mark.parametrize(
    ("case", "flags", "words"),
    [
        ({"network": PLAIN, "action_space": spaces.Discrete(3)}, {"bounds_coef": 1.0}, "bounds_coef is for the means"),
        ({"action_space": UNBOUNDED}, {"bounds_coef": 1.0}, "bounds_coef needs bounds, and .* has none: leave it out"),
        (
            {"network": functools.partial(GAUSSIAN, squash=True)},
            {"bounds_coef": 1.0},
            r"bounds_coef and --model\.network\.squash=true contradict each other",
        ),
        ({}, {"l2c2_pairs": {"nosy": "clean"}}, r".*'nosy', only \[.*\]\. Did you mean noisy"),
        ({}, {"l2c2_pairs": {"noisy": "claen"}}, r".*'claen', only \[.*\]\. Did you mean clean"),
        ({}, {"l2c2_pairs": {"noisy": "left"}}, r".*: 'noisy' is Box.* and 'left' Discrete"),
        ({}, {"l2c2_pairs": {"clean": "noisy"}}, r".*does not read 'clean', only \['noisy'\]: add it to"),
        ({"network": PLAIN, "action_space": spaces.Discrete(3)}, PAIRS, "l2c2_pairs=.* is for the means of a Gaussian"),
        (
            {"network": functools.partial(PPOModel, encoder=SMALL), "observation_space": Target.observation_space},
            PAIRS,
            "l2c2_pairs=.* names keys, and the observation space .* has none",
        ),
        (
            {"network": SmallGRU, "observation_space": Walk.observation_space, "action_space": Walk.action_space},
            PAIRS,
            "l2c2_pairs=.* is not for networks with memory, as SmallGRU is one",
        ),
    ],
)
def test_what_they_cannot_be_for_is_refused_before_any_work(case, flags, words):
    settings = {"network": GAUSSIAN, "observation_space": Reach.observation_space, "action_space": Reach.action_space}
    settings |= case
    ppo = make_ppo(network=settings["network"], **flags)
    with pytest.raises(ConfigurationError, match=rf"^--model\.{words}.*[.?]$"):
        ppo.build_network(settings["observation_space"], settings["action_space"])


@pytest.mark.parametrize(
    ("flags", "words"),
    [
        ({"bounds_coef": -1.0}, r"--model\.bounds_coef must be at least 0, not -1\."),
        ({"bounds_coef": math.nan}, r"--model\.bounds_coef"),
        ({**PAIRS, "l2c2_coef": -1.0}, r"--model\.l2c2_coef must be at least 0, not -1\."),
        ({"l2c2_pairs": {}}, r"--model\.l2c2_pairs=\{\} names no keys: .*\.$"),
    ],
)
def test_numbers_outside_their_range_are_refused_by_name(flags, words):
    with pytest.raises(ConfigurationError, match=f"^{words}"):
        PPO(**flags)
