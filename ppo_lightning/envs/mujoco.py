"""What Gymnasium's MuJoCo environments need of the machine: MuJoCo, and OpenGL for their pictures."""

from __future__ import annotations

import contextlib
import functools
import importlib
import os
import subprocess
import sys
from collections.abc import Iterator, Mapping
from typing import Any

import gymnasium

from ppo_lightning.core.errors import ConfigurationError

_INSTALL = "pip install 'ppo-lightning[mujoco]'"
_BACKENDS = "egl (libegl1 and libgl1-mesa-dri on Debian and Ubuntu) or osmesa (libosmesa6)"
_PATIENCE = 60  # seconds for one picture

_FIRST_PICTURE = """
import gymnasium
env = gymnasium.make("InvertedPendulum-v5", render_mode="rgb_array")
env.reset()
env.render()
"""


def is_mujoco(spec: Any) -> bool:
    """Whether it is one of Gymnasium's environments that run on MuJoCo (versions 4 and 5)."""
    return str(spec.entry_point).startswith("gymnasium.envs.mujoco.")


def check_mujoco(spec: Any) -> None:
    """Raise :class:`ConfigurationError` where the environment is a MuJoCo one that can't be made here."""
    newest = gymnasium.registry.get(f"{spec.name}-v5")
    if spec.namespace is not None or newest is None or not is_mujoco(newest):
        return
    if spec.version is not None and spec.version < 4:
        raise ConfigurationError(
            f"--data.env.id={spec.id} needs mujoco-py, which is no longer maintained: use {newest.id}, after "
            f"{_INSTALL}."
        )
    if not is_mujoco(spec):
        return
    try:
        importlib.import_module("mujoco")
        importlib.import_module("gymnasium.envs.mujoco.mujoco_rendering")
    except Exception as error:
        backend, reason = os.environ.get("MUJOCO_GL"), " ".join(str(error).split())
        if backend and not isinstance(error, ModuleNotFoundError):
            raise ConfigurationError(
                f"MUJOCO_GL={backend}: MuJoCo cannot be loaded with it ({type(error).__name__}: {reason}); unset it, "
                f"or install {_BACKENDS} and name that."
            ) from error
        raise ConfigurationError(
            f"--data.env.id={spec.id} needs MuJoCo, which cannot be imported here ({reason}): {_INSTALL}."
        ) from error


@contextlib.contextmanager
def without_notices(id: str, kwargs: Mapping[str, Any]) -> Iterator[None]:
    """Make the environment without what MuJoCo has to say about Gymnasium's model of it.

    It would print it for each environment, and write a file. Of a model of one's own one wants to know.
    """
    spec = gymnasium.registry.get(id.rpartition(":")[2])
    if spec is None or not is_mujoco(spec) or "xml_file" in kwargs:
        yield
        return
    import mujoco

    before = mujoco.get_mju_user_warning()
    mujoco.set_mju_user_warning(lambda text: None)
    try:
        yield
    finally:
        mujoco.set_mju_user_warning(before)


def choose_renderer(id: str, env: gymnasium.Env[Any, Any]) -> None:
    """Let MuJoCo draw with what works on this machine, where ``env`` is of its kind and the user named nothing.

    Gymnasium would try a window first, which is loud where there is no screen.

    Raises:
        ConfigurationError: nothing works, or not what the user named.
    """
    kinds = {f"{kind.__module__}:{kind.__qualname__}" for kind in type(env.unwrapped).__mro__}
    if "gymnasium.envs.mujoco.mujoco_env:MujocoEnv" not in kinds or sys.platform != "linux":
        return
    named = os.environ.get("MUJOCO_GL")
    if named:
        if not _draws(named):
            raise ConfigurationError(
                f"MUJOCO_GL={named}: MuJoCo cannot draw the pictures of {id} with it; unset it to have one chosen, or "
                f"install {_BACKENDS} and name that."
            )
        return
    has_screen = any(os.environ.get(name) for name in ("DISPLAY", "WAYLAND_DISPLAY"))
    for backend in ("glfw", "egl", "osmesa") if has_screen else ("egl", "osmesa"):
        if _draws(backend):
            os.environ["MUJOCO_GL"] = backend
            return
    raise ConfigurationError(
        f"--data.env.id={id}: MuJoCo cannot draw pictures on this machine, for it finds no OpenGL: install "
        f"{_BACKENDS}, or leave the video out."
    )


@functools.cache
def _draws(backend: str) -> bool:
    """Whether a picture comes out. Tried in another process: OpenGL is bound to the first backend that is loaded."""
    try:
        done = subprocess.run(
            [sys.executable, "-c", _FIRST_PICTURE],
            env={**os.environ, "MUJOCO_GL": backend},
            capture_output=True,
            timeout=_PATIENCE,
        )
    except (OSError, subprocess.TimeoutExpired):
        return False
    return done.returncode == 0
