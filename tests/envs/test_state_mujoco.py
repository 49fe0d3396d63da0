"""MuJoCo's numbers: what the last step left behind comes back as well, in any process, and into the same model only."""

import hashlib
import os
import subprocess
import sys
from pathlib import Path

import gymnasium
import numpy as np
import pytest
import torch

from ppo_lightning.core.errors import NotRestorableError
from ppo_lightning.envs import GymnasiumEnv
from ppo_lightning.envs.state import load_layers, save_layers
from tests.envs.states import assert_same_step, draw, through_a_file

mujoco = pytest.importorskip("mujoco")


def make(id, seed, **kwargs):
    env = gymnasium.make(id, **kwargs).unwrapped
    env.reset(seed=seed)
    return env


def play(env, steps):
    for _ in range(steps):
        env.step(env.action_space.high)
    return env


@pytest.mark.parametrize("id", ["Humanoid-v5", "Ant-v5", "Reacher-v5"])
def test_a_state_can_be_taken_after_any_step(id):
    saved, restored = GymnasiumEnv(id).make([0, 1]), GymnasiumEnv(id).make([60, 61])
    rng, ends = np.random.default_rng(0), 0
    saved.reset()
    for _ in range(60):
        restored.load_state_dict(saved.state_dict())
        actions = draw(saved, rng)
        step = saved.step(actions)
        assert_same_step(restored.step(actions), step)
        ends += int((step.terminated | step.truncated).sum())
    assert ends or id == "Ant-v5"


def go_on(env, steps=40):
    """What an environment is heard and seen of, in one word."""
    rng, heard = np.random.default_rng(3), hashlib.sha256()
    for _ in range(steps):
        result = env.step(draw(env, rng))
        for value in (result.obs, result.rewards, result.terminated, result.truncated):
            heard.update(value.tobytes())
    return heard.hexdigest()


def test_another_process_goes_on_alike():
    kinds = ("sync", "async")
    saved = [GymnasiumEnv("Humanoid-v5", kind).make([0, 1]) for kind in kinds]
    for env in saved:
        env.reset()
        go_on(env, 33)
    torch.save([env.state_dict() for env in saved], "states.pt")
    program = (
        "import torch\n"
        "from ppo_lightning.envs import GymnasiumEnv\n"
        "from tests.envs.test_state_mujoco import go_on\n"
        f"for kind, state in zip({kinds}, torch.load('states.pt', weights_only=True)):\n"
        "    env = GymnasiumEnv('Humanoid-v5', kind).make([7, 8])\n"
        "    env.load_state_dict(state)\n"
        "    print(go_on(env))\n"
        "    env.close()\n"
    )
    path = os.pathsep.join([str(Path(__file__).parents[2]), *os.environ.get("PYTHONPATH", "").split(os.pathsep)])
    settings = {**os.environ, "PYTHONPATH": path}
    done = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, env=settings)
    assert done.stdout.split() == [go_on(env) for env in saved], done.stderr
    for env in saved:
        env.close()


def test_what_the_last_step_left_behind_is_not_worked_out_anew():
    saved, other = play(make("Humanoid-v5", 0), 12), make("Humanoid-v5", 1)
    load_layers(other, through_a_file(save_layers(saved)))
    names = ("time", "qpos", "qvel", "qacc_warmstart", "ctrl", "xpos", "xipos", "xmat", "cinert", "cvel")
    names += ("cfrc_ext", "qfrc_actuator", "subtree_com", "geom_xpos", "cam_xpos", "ten_length", "energy")
    for name in names:
        assert np.array_equal(getattr(other.data, name), getattr(saved.data, name)), name
    left = other.data.xipos.copy()
    mujoco.mj_forward(other.model, other.data)
    assert not np.array_equal(left, other.data.xipos)


def test_what_was_taken_does_not_change_with_the_simulator():
    env = play(make("Hopper-v5", 0), 3)
    state, place = save_layers(env), env.data.qpos.copy()
    play(env, 2)
    load_layers(env, state)
    assert np.array_equal(env.data.qpos, place)
    play(env, 2)
    load_layers(env, state)
    assert np.array_equal(env.data.qpos, place)


def test_goals_come_back():
    for id, names in {"Reacher-v5": ["goal"], "Pusher-v5": ["goal_pos", "cylinder_pos"]}.items():
        saved, other = make(id, 0), make(id, 1)
        load_layers(other, save_layers(saved))
        for name in names:
            assert np.array_equal(getattr(other, name), getattr(saved, name))


def test_a_simulator_that_was_made_anew_is_the_one_that_is_saved():
    env = make("Swimmer-v5", 0)
    save_layers(env)
    env.data = mujoco.MjData(env.model)
    env.data.qpos[:] = 0.25
    other = make("Swimmer-v5", 1)
    load_layers(other, save_layers(env))
    assert (other.data.qpos == 0.25).all()


def with_a_site(folder):
    """Gymnasium's inverted pendulum, and a place on it."""
    model = Path(gymnasium.envs.mujoco.__file__).parent / "assets/inverted_pendulum.xml"
    changed = folder / "model.xml"
    changed.write_text(model.read_text().replace("<worldbody>", '<worldbody><site name="here"/>'))
    return str(changed)


def test_another_model_or_other_numbers_are_refused(tmp_path):
    saved = make("InvertedPendulum-v5", 0)
    other = make("InvertedPendulum-v5", 1, xml_file=with_a_site(tmp_path))
    with pytest.raises(
        NotRestorableError, match=r"^the environment InvertedPendulumEnv has another model than the sav"
    ):
        load_layers(other, save_layers(saved))
    ((_, state),) = states = save_layers(saved)
    state["numbers"]["data"] = state["numbers"]["data"][:-1]
    with pytest.raises(NotRestorableError, match="has another model"):
        load_layers(saved, states)
    load_layers(make("InvertedPendulum-v5", 1, xml_file=with_a_site(tmp_path)), save_layers(other))


def test_a_model_with_state_of_another_kind_is_refused_by_its_name(tmp_path):
    env = make("Hopper-v5", 0)
    sleep = getattr(mujoco.mjtEnableBit, "mjENBL_SLEEP", None)
    if sleep is None:
        pytest.skip("nothing sleeps in this version of MuJoCo")
    env.model.opt.enableflags |= int(sleep)
    with pytest.raises(NotRestorableError, match=r"^the environment HopperEnv has a model with sleeping bodies, wh"):
        save_layers(env)


def test_a_user_s_field_is_refused_by_its_name():
    env = make("Walker2d-v5", 0)
    env.wind = 3
    with pytest.raises(NotRestorableError, match=r"^the environment Walker2dEnv has a field that is not known: wind"):
        save_layers(env)


def test_older_versions_of_the_environments_are_refused_by_their_name():
    with pytest.warns(DeprecationWarning, match="out of date"):
        env = make("Hopper-v4", 0)
    with pytest.raises(NotRestorableError, match=r"^the environment HopperEnv cannot be saved and restored"):
        save_layers(env)
