"""The outermost wrapper of Gymnasium environments: hands their state out and takes it in, in worker processes too."""

from __future__ import annotations

import copy
from typing import Any

import gymnasium

from ppo_lightning.core.errors import NotRestorableError
from ppo_lightning.core.plain import map_arrays
from ppo_lightning.envs.state.layers import Layers, load_layers, save_layers


class SimulatorState(gymnasium.Wrapper[Any, Any, Any, Any]):
    """An environment whose state can be taken and loaded through a vector environment's ``call`` and ``set_attr``.

    What goes wrong is answered, not raised: an exception would end the worker process.
    """

    def __init__(self, env: gymnasium.Env[Any, Any]) -> None:
        super().__init__(env)
        self.simulator_state_to_load: dict[str, Any] = {}
        self._resets_next = False

    @property
    def spec(self) -> Any:  # type: ignore[override]
        return self.env.spec

    def take_simulator_state(self, to_send: bool = False) -> Layers | str:
        """The state of each layer, or why there is none; with numpy's arrays for tensors if it is ``to_send``."""
        try:
            layers = save_layers(self.env)
        except NotRestorableError as error:
            return str(error)
        return map_arrays(layers, lambda tensor: tensor.numpy()) if to_send else layers

    def load_simulator_state(self) -> str | None:
        """Go on as the environment did whose state lies in ``simulator_state_to_load``; returns why that failed."""
        state, self.simulator_state_to_load = self.simulator_state_to_load, {}
        try:
            load_layers(self.env, state["layers"])
        except NotRestorableError as error:
            return str(error)
        # a vector environment that resets in the next step holds this itself, where a worker's can't be set
        self._resets_next = state["resets_next"]
        return None

    def reset(self, *, seed: int | None = None, options: dict[str, Any] | None = None) -> tuple[Any, dict[str, Any]]:
        self._resets_next = False
        return self.env.reset(seed=seed, options=options)

    def step(self, action: Any) -> Any:
        if self._resets_next:
            obs, info = self.reset()
            return obs, 0.0, False, False, info
        obs, reward, terminated, truncated, info = self.env.step(action)
        if terminated or truncated:  # the reset in the same step may write over it
            obs = copy.deepcopy(obs)
        return obs, reward, terminated, truncated, info
