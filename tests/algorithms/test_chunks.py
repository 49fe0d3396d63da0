"""Large minibatches in chunks: the gradients, the numbers and the decisions of whole ones."""

import functools

import numpy as np
import pytest
import torch
from gymnasium import spaces
from lightning.pytorch import Callback
from lightning.pytorch.plugins.precision import MixedPrecision
from torch import nn

from ppo_lightning import ActorCritic, ConfigurationError, GridCNN, LSTMCore, MLPEncoder, NatureCNN
from ppo_lightning.algorithms.chunks import chunk_size_for, chunks_of
from tests.agents import SMALL_DAAC, SMALL_RND, batches_of, daac_data, make_daac, make_rnd
from tests.ranks.tasks import NextStep
from tests.runs import SMALL_NETWORK, Recorder, fit, make_data, make_ppo

WITH_LSTM = functools.partial(SMALL_NETWORK, core=functools.partial(LSTMCore, hidden_dim=8))
DAAC_LSTM = functools.partial(SMALL_DAAC, core=functools.partial(LSTMCore, hidden_dim=8))
RND_LSTM = functools.partial(SMALL_RND, core=functools.partial(LSTMCore, hidden_dim=8))
SMALL = {"num_envs": 4, "num_steps": 11, "num_minibatches": 2}
MANY = {"num_envs": 6, "num_steps": 5, "num_minibatches": 2}
RESETTING = NextStep("tests.ranks.tasks:Uneven-v0")

CASES = {
    "PPO": (make_ppo, make_data, {}),
    "PPO by rollout": (make_ppo, make_data, {"norm_adv": "rollout", "clip_vloss": False}),
    "PPO adapting": (make_ppo, make_data, {"adaptive_lr_kl": 1e-4}),
    "PPO stopping": (make_ppo, make_data, {"target_kl": 1e-5}),
    "PPO pretraining": (make_ppo, make_data, {"critic_pretrain_steps": 44}),
    "PPO with PopArt": (make_ppo, make_data, {"normalize_returns": True}),
    "PPO with memory": (make_ppo, functools.partial(make_data, **MANY), {"network": WITH_LSTM}),
    "PPO with memory and resets": (
        make_ppo,
        functools.partial(make_data, RESETTING, **MANY),
        {"network": WITH_LSTM},
    ),
    "PPO with memory and masks": (
        make_ppo,
        functools.partial(make_data, "tests.tasks:Fork-v0", **MANY),
        {"network": WITH_LSTM},
    ),
    "DAAC": (make_daac, daac_data, {}),
    "DAAC with memory": (make_daac, functools.partial(daac_data, **MANY), {"network": DAAC_LSTM}),
    "RND": (make_rnd, make_data, {}),
    "RND with memory": (make_rnd, functools.partial(make_data, **MANY), {"network": RND_LSTM}),
}


class Gradients(Callback):
    """What the optimiser is given, before it is clipped; and the rows of each run of the network with gradients."""

    def __init__(self):
        self.steps, self.rows, self.autocast = [], [], set()

    def on_train_start(self, trainer, pl_module):
        def note(module, inputs, output):
            if torch.is_grad_enabled():
                self.rows.append(len(output))

        pl_module.network.embedder.register_forward_hook(note)
        for parameter in filter(lambda parameter: parameter.requires_grad, pl_module.parameters()):
            parameter.register_hook(lambda _: self.autocast.add(torch.is_autocast_enabled("cpu")))

    def on_before_optimizer_step(self, trainer, pl_module, optimizer):
        named = pl_module.named_parameters()
        self.steps.append({name: parameter.grad.clone() for name, parameter in named if parameter.grad is not None})


def trained(make, data, chunk_size, flags, **settings):
    gradients, recorder = Gradients(), Recorder()
    agent = make(chunk_size=chunk_size, **flags)
    fit(agent, data(), callbacks=[gradients, recorder], **({"precision": "64-true"} | settings))
    return gradients, recorder


@pytest.mark.parametrize("accumulated", [1, 2])
@pytest.mark.parametrize("chunk_size", [1, 6, 10])
@pytest.mark.parametrize("name", CASES)
def test_chunks_give_the_gradients_and_the_numbers_of_whole_minibatches(name, chunk_size, accumulated):
    make, data, flags = CASES[name]
    data = data if "memory" in name else functools.partial(data, **SMALL)
    whole, whole_numbers = trained(make, data, None, flags, accumulate_grad_batches=accumulated)
    cut, cut_numbers = trained(make, data, chunk_size, flags, accumulate_grad_batches=accumulated)
    assert len(cut.rows) > len(whole.rows)
    assert len(cut.steps) == len(whole.steps) > 1
    for first, second in zip(whole.steps, cut.steps):
        assert first.keys() == second.keys()
        for parameter, gradient in first.items():
            torch.testing.assert_close(second[parameter], gradient, rtol=0, atol=1e-12)
    for first, second in zip(whole_numbers.metrics, cut_numbers.metrics):
        assert first.keys() == second.keys()
        for metric, value in first.items():
            if not metric.startswith("time/"):
                assert second[metric] == pytest.approx(value, rel=1e-9, abs=1e-12, nan_ok=True), metric


@pytest.mark.parametrize("precision", ["bf16-mixed", "16-mixed"])
def test_chunks_are_backpropagated_as_whole_minibatches_are_in_mixed_precision(precision):
    """Outside autocast, and with scaled losses where these are."""

    def make_plugin():
        is_scaled = precision.startswith("16")
        return MixedPrecision(precision, "cpu", torch.amp.GradScaler("cpu", init_scale=256.0) if is_scaled else None)

    data = functools.partial(make_data, **SMALL)
    sgd = {"optimizer": lambda parameters, lr: torch.optim.SGD(parameters, lr)}
    runs = [
        trained(make_ppo, data, chunk_size, sgd, precision=None, plugins=[make_plugin()]) for chunk_size in (None, 6)
    ]
    (whole, _), (cut, _) = runs
    assert cut.autocast == whole.autocast == {False}
    for first, second in zip(whole.steps[:4], cut.steps):
        for name, gradient in first.items():
            torch.testing.assert_close(second[name], gradient, rtol=0, atol=0.02 * gradient.abs().max().item() + 1e-12)


@pytest.mark.parametrize(
    ("rows", "size", "sizes"), [(10, None, [10]), (10, 10, [10]), (10, 4, [4, 3, 3]), (3, 1, [1, 1, 1])]
)
def test_chunks_are_of_about_the_same_size_and_count_what_they_hold(rows, size, sizes):
    batch = seen_batch(num_envs=2, num_steps=rows // 2 + rows % 2)[:rows]
    chunks = chunks_of(batch, size)
    assert [len(chunk) for chunk, _ in chunks] == sizes
    assert [share for _, share in chunks] == pytest.approx([size / rows for size in sizes])
    assert torch.equal(torch.cat([chunk.obs for chunk, _ in chunks]), batch.obs)
    assert (chunks[0][0] is batch) == (len(chunks) == 1)


def test_sequences_stay_whole_and_count_their_transitions():
    batch = seen_batch(RESETTING, network=WITH_LSTM, **MANY)
    chunks = chunks_of(batch, 12)
    assert [tuple(chunk.obs.shape[:2]) for chunk, _ in chunks] == [(2, 5)] * 3
    counts = [int(chunk.valid.sum()) for chunk, _ in chunks]
    assert len(set(counts)) > 1
    assert sum(counts) < 30
    assert [share for _, share in chunks] == pytest.approx([count / sum(counts) for count in counts])
    assert len(chunks_of(batch, 1)) == 6  # a sequence is the least


def test_a_minibatch_of_other_ranks_alone_counts_nothing():
    batch = seen_batch(RESETTING, network=WITH_LSTM, **MANY)
    batch.valid[:] = False
    assert [share for _, share in chunks_of(batch, 10)] == [0.0] * 3


def seen_batch(env="tests.tasks:Walk-v0", network=SMALL_NETWORK, **sizes):
    """What a rollout is learned from."""
    agent = make_ppo(network=network)
    seen = batches_of(agent)
    fit(agent, make_data(env, iterations=1, **sizes))
    ((_, batch),) = seen
    return batch


@pytest.mark.parametrize(
    ("asked", "encoder", "is_set", "device", "expected"),
    [
        ("auto", NatureCNN, False, "cpu", 256),
        ("auto", NatureCNN, False, "meta", None),
        ("auto", NatureCNN, True, "cpu", None),
        ("auto", GridCNN, False, "cpu", None),
        (None, NatureCNN, False, "cpu", None),
        (7, GridCNN, False, "meta", 7),
    ],
)
def test_pictures_are_learned_from_in_chunks_on_the_cpu(asked, encoder, is_set, device, expected):
    network = ActorCritic(spaces.Box(0, 255, (36, 36, 3), np.uint8), spaces.Discrete(2), encoder=encoder)
    assert chunk_size_for(asked, network, {"--model.max_clip_fraction": is_set}, torch.device(device)) == expected


class Normed(ActorCritic):
    """A network with batch norm."""

    def __init__(self, observation_space, action_space):
        super().__init__(observation_space, action_space, encoder=functools.partial(MLPEncoder, hidden_sizes=[8]))
        self.embedder.layers.append(nn.BatchNorm1d(8))


@pytest.mark.parametrize(
    ("flags", "message"),
    [
        ({"chunk_size": 0}, r"--model.chunk_size must be at least 1, not 0"),
        ({"chunk_size": "large"}, r"--model.chunk_size must be a number, auto or null, not large"),
        ({"chunk_size": 4, "max_clip_fraction": 0.5}, r"--model.max_clip_fraction looks at whole minibatches"),
        ({"chunk_size": 4, "network": Normed}, r"--model.network=Normed has batch norm \(embedder.layers.2\)"),
    ],
)
def test_what_cannot_be_cut_is_refused(flags, message):
    with pytest.raises(ConfigurationError, match=message):
        fit(make_ppo(**flags))
