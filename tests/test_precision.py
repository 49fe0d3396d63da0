"""What a run computes in where nothing is asked for, and that it goes on so."""

from unittest import mock

import numpy as np
import pytest
import yaml
from gymnasium import spaces
from torch import nn

from ppo_lightning import ActorCritic, GridCNN, ImpalaCNN, NatureCNN
from ppo_lightning.cli.precision import default_precision, has_bfloat16
from ppo_lightning.models.encoders import ImageEncoder
from tests.commands import RUN, WALK, run

WITH, WITHOUT = {"avx512_bf16": True, "avx2": True}, {"avx512_bf16": False, "amx_bf16": False, "avx2": True}
FILM = [
    *(flag for flag in WALK if "encoder" not in flag and "data.env" not in flag),
    "--data.env=GymnasiumEnv",
    "--data.env.id=tests.stateful:Film-v0",
    "--model.network.encoder=tests.test_precision.Glance",
    "--data.total_timesteps=64",
]


class Glance(ImageEncoder):
    """The smallest network for pictures."""

    def __init__(self, observation_space):
        super().__init__(observation_space)
        self.layers = nn.Sequential(nn.Flatten(), nn.Linear(int(np.prod(self.image_shape)), 4))
        self.output_dim = 4

    def forward(self, obs):
        return self.layers(self.image(obs).flatten(1))


def on(capabilities):
    return mock.patch("torch.cpu.get_capabilities", return_value=capabilities)


@pytest.mark.parametrize(
    ("encoder", "accelerator", "capabilities", "expected"),
    [
        (NatureCNN, "cpu", WITH, "bf16-mixed"),
        (ImpalaCNN, "auto", WITH, "bf16-mixed"),
        (NatureCNN, "cpu", WITHOUT, "32-true"),
        (NatureCNN, "mps", WITH, "32-true"),
        (GridCNN, "cpu", WITH, "32-true"),
    ],
)
def test_pictures_run_in_bfloat16_where_the_hardware_has_it(encoder, accelerator, capabilities, expected):
    pictures = spaces.Box(0, 255, (64, 64, 3), np.uint8)
    network = ActorCritic(pictures, spaces.Discrete(3), encoder=encoder)
    with on(capabilities), mock.patch("torch.cuda.is_available", return_value=False):
        assert default_precision(network, accelerator) == expected


@pytest.mark.parametrize("has_it", [False, True])
def test_a_gpu_is_asked_before_the_cpu(has_it):
    available = mock.patch("torch.cuda.is_available", return_value=True)
    supported = mock.patch("torch.cuda.is_bf16_supported", return_value=has_it)
    with available, supported, on(WITH):
        assert has_bfloat16("auto") == has_it
        assert has_bfloat16("cpu")


def test_a_torch_that_cannot_tell_computes_in_float32(monkeypatch):
    monkeypatch.delattr("torch.cpu.get_capabilities")
    assert not has_bfloat16("cpu")


def written(name="config.yaml"):
    return yaml.safe_load((RUN / name).read_text())["trainer"]["precision"]


def test_a_run_writes_down_what_it_computed_in_and_goes_on_with_it(caplog):
    with on(WITH), caplog.at_level("INFO"):
        run("fit", *FILM)
    assert written() == "bf16-mixed"
    assert "bfloat16 (--trainer.precision=bf16-mixed)" in caplog.text
    longer, ckpt_path = "--data.total_timesteps=128", f"--ckpt_path={RUN}/checkpoints/last.ckpt"
    with on(WITHOUT):  # as on another machine
        run("fit", *[flag for flag in FILM if "timesteps" not in flag], longer, ckpt_path)
    assert written("config_1.yaml") == "bf16-mixed"


@pytest.mark.parametrize("asked", ["32-true", "64-true"])
def test_what_is_asked_for_is_done(asked):
    with on(WITH):
        run("fit", *FILM, f"--trainer.precision={asked}")
    assert written() == asked


def test_vectors_run_in_float32():
    with on(WITH):
        run("fit", *WALK)
    assert written() == "32-true"


def test_a_run_of_an_earlier_version_goes_on_in_float32():
    with on(WITHOUT):
        run("fit", *FILM)
    text = (RUN / "config.yaml").read_text()
    (RUN / "config.yaml").write_text(text.replace("  precision: 32-true", "  precision: null"))
    with on(WITH):
        run("fit", "--data.total_timesteps=128", f"--ckpt_path={RUN}/checkpoints/last.ckpt")
    assert written("config_1.yaml") in (None, "32-true")
