"""What MuJoCo needs of the machine is missed in one sentence, and found where it is."""

import os
import sys
from pathlib import Path
from unittest import mock

import gymnasium
import numpy as np
import pytest
from gymnasium.envs.registration import EnvSpec

from ppo_lightning.core.errors import ConfigurationError
from ppo_lightning.envs import GymnasiumEnv, mujoco
from tests.commands import WALK, command, sentence_of
from tests.stateful import Film

gymnasium.register("old/HalfCheetah-v2", Film)


@pytest.fixture
def installed():
    pytest.importorskip("mujoco")


@pytest.fixture
def surroundings():
    """The environment variables that count, for this test to set."""
    with mock.patch.dict(os.environ):
        for name in ("MUJOCO_GL", "DISPLAY", "WAYLAND_DISPLAY"):
            os.environ.pop(name, None)
        yield os.environ


# -- MuJoCo itself


@pytest.mark.parametrize("method", ["make", "make_rendering"])
@pytest.mark.parametrize("id", ["HalfCheetah-v5", "Hopper-v4"])
def test_without_mujoco_the_sentence_says_what_to_install(monkeypatch, id, method):
    monkeypatch.setitem(sys.modules, "mujoco", None)
    with pytest.raises(ConfigurationError) as caught:
        getattr(GymnasiumEnv(id, "async"), method)([0])
    assert str(caught.value) == (
        f"--data.env.id={id} needs MuJoCo, which cannot be imported here (import of mujoco halted; None in sys.modules)"
        ": pip install 'ppo-lightning[mujoco]'."
    )


@pytest.mark.parametrize("id", ["HalfCheetah-v2", "HalfCheetah-v3", "Humanoid-v3", "Reacher-v2"])
def test_environments_of_the_old_bindings_name_those_to_take(id):
    with pytest.raises(ConfigurationError) as caught:
        GymnasiumEnv(id).make([0])
    assert str(caught.value) == (
        f"--data.env.id={id} needs mujoco-py, which is no longer maintained: use {id[:-1]}5, after "
        "pip install 'ppo-lightning[mujoco]'."
    )


@pytest.mark.parametrize("id", ["old/HalfCheetah-v2", "HalfCheetah-v99", "CartPole-v1"])
def test_other_environments_need_no_mujoco(monkeypatch, id):
    monkeypatch.setitem(sys.modules, "mujoco", None)
    monkeypatch.setitem(gymnasium.registry, "HalfCheetah-v99", EnvSpec("HalfCheetah-v99", Film))
    GymnasiumEnv(id).make([0]).close()


def test_a_backend_that_keeps_mujoco_from_being_loaded_is_named(monkeypatch, surroundings):
    def load(name):
        raise AttributeError("'NoneType' object has no attribute\n'glGetError'")

    surroundings["MUJOCO_GL"] = "osmesa"
    monkeypatch.setattr(mujoco.importlib, "import_module", load)
    with pytest.raises(ConfigurationError) as caught:
        GymnasiumEnv("Hopper-v5").make([0])
    assert str(caught.value) == (
        "MUJOCO_GL=osmesa: MuJoCo cannot be loaded with it (AttributeError: 'NoneType' object has no attribute "
        "'glGetError'); unset it, or install egl (libegl1 and libgl1-mesa-dri on Debian and Ubuntu) or osmesa "
        "(libosmesa6) and name that."
    )


@pytest.mark.usefixtures("installed")
@pytest.mark.parametrize("vectorization", ["sync", "async"])
def test_making_environments_says_nothing_and_leaves_no_file(capfd, vectorization):
    GymnasiumEnv("HalfCheetah-v5", vectorization).make([0, 1]).close()
    assert capfd.readouterr() == ("", "")
    assert list(Path().iterdir()) == []


@pytest.mark.usefixtures("installed")
def test_what_mujoco_says_of_a_model_of_one_s_own_is_heard():
    from mujoco import get_mju_user_warning, set_mju_user_warning

    model = Path(gymnasium.envs.__file__).parent / "mujoco/assets/half_cheetah.xml"
    heard = []
    set_mju_user_warning(heard.append)
    try:
        gymnasium.make("HalfCheetah-v5")
        by_gymnasium = heard.copy()
        heard.clear()
        GymnasiumEnv("HalfCheetah-v5").make([0])
        assert heard == []
        GymnasiumEnv("HalfCheetah-v5", kwargs={"xml_file": str(model)}).make([0])
        assert set(heard) == set(by_gymnasium)
        assert get_mju_user_warning() is not None
    finally:
        set_mju_user_warning(None)


# -- pictures


@pytest.mark.usefixtures("installed")
@pytest.mark.parametrize(
    ("screen", "works", "chosen"),
    [
        ("", {"egl", "osmesa"}, "egl"),
        ("", {"osmesa"}, "osmesa"),
        (":0", {"glfw", "egl"}, "glfw"),
        (":0", {"egl"}, "egl"),
    ],
)
def test_what_works_is_chosen(monkeypatch, surroundings, screen, works, chosen):
    monkeypatch.setattr(mujoco, "_draws", works.__contains__)
    monkeypatch.setattr(sys, "platform", "linux")
    surroundings["DISPLAY"] = screen
    GymnasiumEnv("Hopper-v5").make_rendering([0]).close()
    assert surroundings["MUJOCO_GL"] == chosen


@pytest.mark.usefixtures("installed")
def test_where_nothing_draws_the_sentence_says_what_to_install(monkeypatch, surroundings):
    monkeypatch.setattr(mujoco, "_draws", lambda backend: backend == "glfw")
    monkeypatch.setattr(sys, "platform", "linux")
    with pytest.raises(ConfigurationError) as caught:
        GymnasiumEnv("Hopper-v5").make_rendering([0])
    assert str(caught.value) == (
        "--data.env.id=Hopper-v5: MuJoCo cannot draw pictures on this machine, for it finds no OpenGL: install egl "
        "(libegl1 and libgl1-mesa-dri on Debian and Ubuntu) or osmesa (libosmesa6), or leave the video out."
    )
    assert "MUJOCO_GL" not in surroundings


@pytest.mark.usefixtures("installed")
@pytest.mark.skipif(sys.platform != "linux", reason="the choice is left to Gymnasium elsewhere")
def test_what_the_user_names_is_taken_or_refused(surroundings):
    surroundings["MUJOCO_GL"] = "nonsense"
    flags = ["--data.env.id=Hopper-v5", "--data.env.wrappers=null", "--trainer.callbacks+=VideoRecorder"]
    assert sentence_of(command("fit", *WALK, *flags)) == (
        "ppo-lightning: error: MUJOCO_GL=nonsense: MuJoCo cannot draw the pictures of Hopper-v5 with it; unset it to "
        "have one chosen, or install egl (libegl1 and libgl1-mesa-dri on Debian and Ubuntu) or osmesa (libosmesa6) and "
        "name that."
    )


@pytest.mark.usefixtures("installed", "surroundings")
def test_each_row_s_picture_is_its_own(capfd):
    try:
        both = pictures([0, 1])
    except ConfigurationError as error:
        pytest.skip(str(error))
    assert both.shape[1:] == (480, 480, 3)
    assert both.std() > 10
    assert not np.array_equal(both[0], both[1])
    assert np.array_equal(both[0], pictures([0])[0])
    assert np.array_equal(both[1], pictures([1])[0])
    assert capfd.readouterr() == ("", "")


def pictures(seeds):
    env = GymnasiumEnv("Hopper-v5").make_rendering(seeds)
    env.reset()
    for _ in range(5):
        env.step(np.ones((len(seeds), 3), np.float32))
    drawn = env.render()
    env.close()
    return drawn


@pytest.mark.usefixtures("installed")
def test_other_environments_are_drawn_without_a_choice(monkeypatch, surroundings):
    monkeypatch.setattr(mujoco, "_draws", lambda backend: pytest.fail("was asked"))
    GymnasiumEnv("CartPole-v1").make_rendering([0]).close()
    assert "MUJOCO_GL" not in surroundings
