"""MiniGrid's worlds: things that are known from several places come back as one."""

import gymnasium
import pytest

from ppo_lightning.core.errors import NotRestorableError
from ppo_lightning.core.plain import TAG
from ppo_lightning.envs import GymnasiumEnv
from ppo_lightning.envs.state import load_layers, save_layers
from tests.envs.states import through_a_file

minigrid = pytest.importorskip("minigrid")
LEFT, RIGHT, FORWARD, PICKUP, DROP, TOGGLE = range(6)


def make(id, seed, **kwargs):
    env = gymnasium.make(f"MiniGrid-{id}", **kwargs).unwrapped
    env.reset(seed=seed)
    return env


def restore(env, id, **kwargs):
    """The state of ``env`` in another, which played other episodes."""
    other = make(id, 77, **kwargs)
    other.step(FORWARD)
    load_layers(other, through_a_file(save_layers(env)))
    return other


def put_before(env, thing):
    """Move a thing to the cell in front of the agent."""
    env.grid.set(*thing.cur_pos, None)
    env.grid.set(*env.front_pos, thing)
    thing.cur_pos = tuple(env.front_pos)


def test_a_door_is_the_same_for_the_grid_the_rooms_and_the_mission():
    env = restore(make("Unlock-v0", 1), "Unlock-v0")
    left, right = env.room_grid[0]
    assert left.neighbors[0] is right
    assert right.neighbors[2] is left
    assert env.door is env.grid.get(*env.door.cur_pos) is left.doors[0] is right.doors[2]
    (key,) = left.objs
    assert key is env.grid.get(*key.cur_pos)
    env.step(LEFT)
    put_before(env, key)
    env.step(PICKUP)
    assert env.carrying is key
    put_before(env, env.door)
    *_, reward, terminated, _, _ = env.step(TOGGLE)
    assert terminated
    assert reward > 0


def test_what_is_carried_is_what_is_to_be_found():
    saved = make("UnlockPickup-v0", 2)
    put_before(saved, saved.obj)
    assert saved.step(PICKUP)[2]
    env = restore(saved, "UnlockPickup-v0")
    assert env.carrying is env.obj
    assert env.carrying is not saved.carrying
    assert env.carrying.cur_pos.tolist() == [-1, -1]
    env.step(DROP)
    assert env.grid.get(*env.front_pos) is env.obj


def test_obstacles_are_those_of_the_grid():
    env = restore(make("Dynamic-Obstacles-8x8-v0", 3), "Dynamic-Obstacles-8x8-v0")
    assert [env.grid.get(*obstacle.cur_pos) for obstacle in env.obstacles] == env.obstacles
    env.step(FORWARD)
    assert sum(thing is not None and thing.type == "ball" for thing in env.grid.grid) == len(env.obstacles)


def test_the_key_is_still_in_its_box():
    saved = make("ObstructedMaze-1Dlhb-v0", 4)
    env = restore(saved, "ObstructedMaze-1Dlhb-v0")
    (box,) = [thing for thing in env.grid.grid if thing is not None and thing.type == "box"]
    key = box.contains
    assert key.type == "key"
    put_before(env, box)
    env.step(TOGGLE)
    assert env.grid.get(*env.front_pos) is key


def test_what_was_taken_does_not_change_with_the_world():
    saved = make("Fetch-5x5-N2-v0", 5)
    before = saved.hash()
    state = save_layers(saved)
    for action in (LEFT, FORWARD, PICKUP, RIGHT, FORWARD, FORWARD):
        saved.step(action)
    assert saved.hash() != before
    load_layers(saved, state)
    assert saved.hash() == before
    assert saved.step_count == 0


def test_a_changed_setting_stays_changed():
    env = restore(make("Empty-8x8-v0", 6, max_steps=50), "Empty-8x8-v0", max_steps=9)
    assert env.max_steps == 9


def test_a_user_s_field_is_saved_and_a_user_s_thing_refused():
    class Gem(minigrid.core.world_object.Ball):
        """Looks like a ball."""

    saved, other = make("Empty-5x5-v0", 7), make("Empty-5x5-v0", 8)
    saved.tired, other.tired = 0.5, 0.0
    load_layers(other, save_layers(saved))
    assert other.tired == 0.5
    with pytest.raises(NotRestorableError, match="EmptyEnv has other fields than the saved one: tired"):
        restore(saved, "Empty-5x5-v0")
    saved.put_obj(Gem("red"), 2, 2)
    with pytest.raises(NotRestorableError, match=r"^the environment EmptyEnv holds a value of type .*Gem cannot"):
        save_layers(saved)


def test_other_kinds_of_things_are_not_made():
    env = make("Empty-5x5-v0", 9)
    ((_, state),) = states = save_layers(env)
    grid = state["fields"]["grid"]
    assert grid == {TAG: "thing", "number": 0}
    state["things"][0] = ("subprocess:Popen", {})
    with pytest.raises(NotRestorableError, match="subprocess:Popen is no thing of MiniGrid's"):
        load_layers(env, states)


def test_before_a_reset_and_of_another_family_there_is_no_state():
    env = GymnasiumEnv("minigrid:MiniGrid-Empty-5x5-v0", wrappers=[minigrid.wrappers.ImgObsWrapper]).make([0])
    assert env.why_not_restorable() == "the environment EmptyEnv has no state yet: reset it first"
    env.reset()
    assert env.why_not_restorable() is None
    env = GymnasiumEnv("minigrid:BabyAI-GoToRedBall-v0", wrappers=[minigrid.wrappers.ImgObsWrapper]).make([0])
    env.reset()
    assert env.why_not_restorable() == "the environment GoToRedBall cannot be saved and restored"
