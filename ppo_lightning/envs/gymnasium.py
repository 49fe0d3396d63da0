"""Any environment registered with Gymnasium."""

from __future__ import annotations

import functools
import importlib
import os
from collections.abc import Callable, Sequence
from typing import Any, Literal, Optional

import gymnasium
from gymnasium.vector import AutoresetMode

from ppo_lightning.core.errors import ConfigurationError, close_names
from ppo_lightning.core.spaces import check_spaces
from ppo_lightning.envs.base import EnvFactory, VectorEnv
from ppo_lightning.envs.gymnasium_vector import GymnasiumVectorEnv
from ppo_lightning.envs.in_process import InProcess
from ppo_lightning.envs.mujoco import check_mujoco, choose_renderer, without_notices
from ppo_lightning.envs.restart import Restarting
from ppo_lightning.envs.state import SimulatorState, record_actions
from ppo_lightning.envs.workers import Workers

Vectorization = Literal["sync", "async", "vector_entry_point"]


class GymnasiumEnv(EnvFactory):
    """Any Gymnasium id.

    Args:
        id: as given to ``gymnasium.make``: ``CartPole-v1``, or ``my_module:MyEnv-v0`` for one that ``my_module``
            registers when imported.
        vectorization: ``sync`` steps the environments one after another in this process, ``async`` each in a process
            of its own, ``vector_entry_point`` uses the environment's own vectorised form.
        kwargs: passed on to the environment.
        wrappers: applied in this order to each environment (not with ``vector_entry_point``).
    """

    def __init__(
        self,
        id: str,
        vectorization: Vectorization = "sync",
        kwargs: Optional[dict[str, Any]] = None,
        wrappers: Optional[list[Callable[[gymnasium.Env[Any, Any]], gymnasium.Env[Any, Any]]]] = None,
    ) -> None:
        if vectorization == "vector_entry_point" and wrappers:
            raise ConfigurationError(
                "--data.env.wrappers cannot be applied with --data.env.vectorization=vector_entry_point: use sync or "
                "async, or leave the wrappers out."
            )
        self.id = id
        self.vectorization = vectorization
        self.kwargs = kwargs or {}
        self.wrappers = wrappers or []

    def make(self, seeds: Sequence[int]) -> VectorEnv:
        spec = self._find_spec()
        if self.vectorization == "vector_entry_point" and spec.vector_entry_point is None:
            raise ConfigurationError(
                f"--data.env.vectorization=vector_entry_point: {self.id} has no vectorised form of its own; use sync "
                "or async."
            )
        return self._adapt(seeds, lambda: self._make_vector(len(seeds)))

    def make_rendering(self, seeds: Sequence[int]) -> VectorEnv:
        """One environment after another in this process, each showing the last picture of its episodes."""
        self._find_spec()
        if not any(os.environ.get(name) for name in ("DISPLAY", "WAYLAND_DISPLAY")):
            os.environ.setdefault("SDL_VIDEODRIVER", "dummy")  # else pygame looks for a screen, and complains
        probe = self._adapt(seeds[:1], lambda: self._make_sync(1, {}, AutoresetMode.NEXT_STEP))
        modes, base = probe.render_modes(), probe.env.envs[0].unwrapped
        probe.close()
        if "rgb_array" not in modes:
            raise ConfigurationError(
                f"--data.env.id={self.id} cannot render pictures: its render modes are {', '.join(modes) or 'none'}, "
                "and a video needs rgb_array."
            )
        choose_renderer(self.id, base)
        return self._adapt(
            seeds, lambda: self._make_sync(len(seeds), {"render_mode": "rgb_array"}, AutoresetMode.NEXT_STEP)
        )

    def _adapt(self, seeds: Sequence[int], make: Callable[[], Any]) -> GymnasiumVectorEnv:
        try:
            env = make()
        except ConfigurationError:
            raise
        except Exception as error:
            reason = " ".join(str(error).split())
            raise ConfigurationError(
                f"--data.env: {self.id} cannot be made with kwargs={self.kwargs} ({type(error).__name__}: {reason}); "
                "check --data.env.kwargs, --data.env.wrappers and that the packages it needs are installed."
            ) from error
        adapter = GymnasiumVectorEnv(env, seeds, can_restart=self.vectorization != "vector_entry_point")
        try:
            check_spaces(adapter.observation_space, adapter.action_space)
        except ConfigurationError:
            adapter.close()
            raise
        return adapter

    def _find_spec(self) -> Any:
        module, _, name = self.id.rpartition(":")
        try:
            if module:
                importlib.import_module(module)
            spec = gymnasium.spec(name)
        except ModuleNotFoundError as error:
            raise ConfigurationError(
                f"--data.env.id={self.id}: the module {error.name!r} cannot be imported; write module:EnvId with a "
                "module on the Python path."
            ) from error
        except gymnasium.error.Error as error:
            raise ConfigurationError(
                f"--data.env.id={self.id} is not a registered Gymnasium environment."
                f"{close_names(self.id, gymnasium.registry) or ' Write module:EnvId for one of your own.'}"
            ) from error
        check_mujoco(spec)
        return spec

    def _make_vector(self, num_envs: int) -> Any:
        if self.vectorization == "vector_entry_point":
            return gymnasium.make_vec(
                self.id, num_envs=num_envs, vectorization_mode="vector_entry_point", **self.kwargs
            )
        if self.vectorization == "async":
            make_one = functools.partial(_make_one, self.id, self.kwargs, self.wrappers)
            return Workers([make_one] * num_envs, AutoresetMode.SAME_STEP)
        return self._make_sync(num_envs, {}, AutoresetMode.SAME_STEP)

    def _make_sync(self, num_envs: int, kwargs: dict[str, Any], autoreset_mode: AutoresetMode) -> Any:
        make_one = functools.partial(_make_one, self.id, {**self.kwargs, **kwargs}, self.wrappers)
        return InProcess([make_one] * num_envs, autoreset_mode=autoreset_mode)


def _make_one(id: str, kwargs: dict[str, Any], wrappers: Sequence[Callable[[Any], Any]]) -> Any:
    return SimulatorState(Restarting(functools.partial(_make_plain, id, kwargs, wrappers)))


def _make_plain(id: str, kwargs: dict[str, Any], wrappers: Sequence[Callable[[Any], Any]]) -> Any:
    with without_notices(id, kwargs):
        env = gymnasium.make(id, **kwargs)
    for wrapper in wrappers:
        env = wrapper(env)
    return record_actions(env)
