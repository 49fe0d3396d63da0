"""Gymnasium's MuJoCo environments: the numbers of their simulator."""

from __future__ import annotations

import hashlib
from collections.abc import Mapping
from typing import Any
from weakref import WeakKeyDictionary

import numpy as np

from ppo_lightning.core.errors import NotRestorableError
from ppo_lightning.core.plain import from_plain, to_plain
from ppo_lightning.envs.state.fields import Fields, describe

_FIELDS = Fields(
    saved=("_np_random", "_np_random_seed"),
    optional=("goal", "goal_pos", "cylinder_pos"),  # of Reacher and Pusher
    fixed=frozenset({
        # of all; Pusher writes the places of a new episode's things into init_qpos before it reads it
        "fullpath", "model", "data", "mujoco_renderer", "width", "height", "camera_id", "camera_name", "frame_skip",
        "init_qpos", "init_qvel",
        # of some
        "observation_structure", "_main_body", "_reset_noise_scale", "_terminate_when_unhealthy",
        "_contact_cost_range", "_contact_force_range", "_impact_cost_range", "_healthy_angle_range",
        "_healthy_state_range", "_healthy_z_range", "_healthy_reward", "_forward_reward_weight", "_contact_cost_weight",
        "_ctrl_cost_weight", "_impact_cost_weight", "_uph_cost_weight", "_reward_control_weight",
        "_reward_dist_weight", "_reward_near_weight", "_exclude_current_positions_from_observation",
        "_include_cfrc_ext_in_observation", "_include_cinert_in_observation", "_include_cvel_in_observation",
        "_include_qfrc_actuator_in_observation",
    }),
)  # fmt: skip


class MujocoWorld:
    """The codec of Gymnasium's MuJoCo environments: every real number of their ``MjData`` but those of contacts.

    What MuJoCo itself takes for the state is not enough: rewards and observations are also made of what the last step
    left behind, such as positions and forces of bodies, which belong to an earlier moment than the state and can't be
    worked out from it. Contacts and constraints are found anew by each step before anything reads them.

    Only what moves is saved, not the model: what was changed in ``env.unwrapped.model`` after it was made is not.
    """

    def __init__(self) -> None:
        self._worlds: WeakKeyDictionary[Any, _World] = WeakKeyDictionary()

    def save(self, layer: Any) -> dict[str, Any]:
        fields, world = _FIELDS.save(layer), self._world_of(layer)
        return {"fields": fields, "numbers": to_plain(world.read()), "layout": world.layout}

    def load(self, layer: Any, state: Mapping[str, Any]) -> None:
        world, numbers = self._world_of(layer), from_plain(state["numbers"])
        if state["layout"] != world.layout or numbers.shape != (world.size,):
            raise NotRestorableError(
                f"{describe(layer)} has another model than the saved one, or another version of MuJoCo"
            )
        _FIELDS.load(layer, state["fields"])
        world.write(numbers)

    def _world_of(self, layer: Any) -> _World:
        world = self._worlds.get(layer)
        if world is None or world.data is not layer.data:
            _refuse_other_state(layer)
            world = self._worlds[layer] = _World(layer.data)
        return world


class _World:
    """Where the numbers of an ``MjData`` lie, which is the same as long as it lives."""

    def __init__(self, data: Any) -> None:
        self.data = data
        arrays = {name: getattr(data, name) for name in dir(data) if not name.startswith("_")}
        arrays = {name: array for name, array in arrays.items() if _is_kept(array, data) or name == "energy"}
        self._arrays = list(arrays.values())
        self.size = 1 + sum(array.size for array in self._arrays)
        words = " ".join(f"{name}{array.shape}" for name, array in arrays.items())
        self.layout = hashlib.sha256(words.encode()).hexdigest()

    def read(self) -> np.ndarray[Any, Any]:
        """All numbers in a row, ``(size,)``; a copy."""
        return np.concatenate([[self.data.time], *(array.ravel() for array in self._arrays)])

    def write(self, numbers: np.ndarray[Any, Any]) -> None:
        """Make them those of the simulator."""
        self.data.time, end = float(numbers[0]), 1
        for array in self._arrays:
            start, end = end, end + array.size
            array[...] = numbers[start:end].reshape(array.shape)


def _is_kept(array: Any, data: Any) -> bool:
    """Whether it is an array of reals or flags in the one block of memory that is laid out as the model says.

    Those of contacts are elsewhere. Whole numbers are left out: each step writes them before it follows them to other
    places in memory, and a stranger's file could lead it anywhere.
    """
    if not isinstance(array, np.ndarray) or array.size == 0 or not (array.dtype.kind in "fb" or array.dtype == "uint8"):
        return False
    offset = _address(array) - _address(data.qpos)  # which comes first
    return 0 <= offset < int(data.nbuffer)


def _address(array: np.ndarray[Any, Any]) -> int:
    return int(array.__array_interface__["data"][0])


def _refuse_other_state(layer: Any) -> None:
    """Raise where the model, a user's own, has state besides: whole numbers, places in memory, or a plugin's."""
    from mujoco import mjtEnableBit

    def has_flag(name: str) -> bool:  # older versions don't have all
        return bool(layer.model.opt.enableflags & int(getattr(mjtEnableBit, name, 0)))

    used = {
        "plugins": layer.model.nplugin > 0,
        "delays": getattr(layer.model, "nhistory", 0) > 0,
        "sleeping bodies": has_flag("mjENBL_SLEEP"),
        "IPC contacts": has_flag("mjENBL_IPC"),
    }
    found = [name for name, is_used in used.items() if is_used]
    if found:
        raise NotRestorableError(f"{describe(layer)} has a model with {' and '.join(found)}, which cannot be saved")
