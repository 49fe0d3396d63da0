"""The outermost wrapper of every Gymnasium environment: hands its state out and takes it in, in a worker process too."""

from __future__ import annotations

from typing import Any

import gymnasium

from ppo_lightning.core.errors import NotRestorableError
from ppo_lightning.core.plain import map_arrays
from ppo_lightning.envs.state.layers import Layers, find_codec, load_layers, save_layers
from ppo_lightning.envs.state.replay import Recorder, Replay


class SimulatorState(gymnasium.Wrapper[Any, Any, Any, Any]):
    """An environment whose state can be taken and loaded through a vector environment's ``call`` and ``set_attr``.

    What goes wrong is answered, not raised: an exception would end the worker process. Arrays travel as numpy's.
    Environments that have to be played to where they were are recorded from here on.
    """

    def __init__(self, env: gymnasium.Env[Any, Any]) -> None:
        super().__init__(_record(env))
        self.simulator_state_to_load: dict[str, Any] = {}
        self._resets_next = False

    @property
    def spec(self) -> Any:
        return self.env.spec

    def take_simulator_state(self) -> Layers | str:
        """The state of each layer, or why there is none."""
        try:
            return map_arrays(save_layers(self.env), lambda tensor: tensor.numpy())
        except NotRestorableError as error:
            return str(error)

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
        return self.env.step(action)


def _record(env: Any) -> Any:
    """The environment with a recorder right around its innermost part, where that can only be played again."""
    outer, base = None, env
    while isinstance(base, gymnasium.Wrapper):
        outer, base = base, base.env
    try:
        codec = find_codec(base)
    except NotRestorableError:
        return env
    if not isinstance(codec, Replay) or isinstance(outer, Recorder):
        return env
    recorder = Recorder(base, codec.renew)
    if outer is None:
        return recorder
    outer.env = recorder
    return env
