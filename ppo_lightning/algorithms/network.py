"""Building a network and proving, before any work, that it fits its environment."""

from __future__ import annotations

import functools
from collections.abc import Callable, Mapping
from typing import Any

import torch
from gymnasium import spaces
from tensordict import TensorDictBase
from torch import Tensor, nn

from ppo_lightning.core.checkpoint import NetworkBuilder
from ppo_lightning.core.errors import ConfigurationError
from ppo_lightning.core.instantiate import build_from_config
from ppo_lightning.core.legal import ACTION_MASK, component_sizes, is_masked
from ppo_lightning.core.rollout import Observation
from ppo_lightning.core.spaces import check_spaces, sample_rows
from ppo_lightning.functional.distributions import draw_noise
from ppo_lightning.models.actor_critic import as_observation
from ppo_lightning.models.outputs import initial_state, run_network

Head = Callable[[Observation, Any, Tensor], Tensor]
"""Takes observations, the network's output for them and actions; gives one number each."""

_BATCH = 2
_CERTAIN = 1e-3  # the largest magnitude of a log-probability that should be 0


def build_network(network: Any, observation_space: spaces.Space[Any], action_space: spaces.Space[Any]) -> nn.Module:
    """A network from a builder, a configuration of one, or a module that is built already; checked by a forward pass.

    Raises:
        ConfigurationError: spaces that are not supported, or a network that does not fit them.
    """
    check_spaces(observation_space, action_space)
    if isinstance(network, nn.Module):
        module = network
    else:
        module = build_part(NetworkBuilder, network, "--model.network", observation_space, action_space)
    _check_fit(module, observation_space, action_space)
    return module  # type: ignore[no-any-return]


def build_part(builder_type: Any, builder: Any, flag: str, *part_spaces: spaces.Space[Any]) -> Any:
    """A module made for an observation space, and for an action space where there is a second one.

    Args:
        builder_type: of the builder.
        builder: takes the spaces; or the plain configuration of one, as checkpoints hold it.
        flag: names it in errors.
        part_spaces: what it is given.

    Raises:
        ConfigurationError: it can't be built.
    """
    if builder is None:
        name = flag.rpartition(".")[2]
        raise ConfigurationError(
            f"{flag} is missing: the checkpoint's {name} was given as an object or a lambda and has no name; pass "
            f"{name}=, or train with {name}=<class> or functools.partial(<class>, …)."
        )
    if isinstance(builder, Mapping):
        builder = build_from_config(builder_type, builder, flag)
    try:
        return builder(*part_spaces)
    except ConfigurationError:
        raise
    except Exception as error:
        fits = " and ".join(f"the {kind} space {space}" for kind, space in zip(("observation", "action"), part_spaces))
        raise ConfigurationError(
            f"{flag}: {_name(builder)} does not fit {fits} ({type(error).__name__}: {' '.join(str(error).split())}); "
            "choose another, or mend it."
        ) from error


def _name(builder: Any) -> str:
    """Of the class that a builder makes; the command line's are partials with it among their arguments."""
    parts = [builder.func, *builder.args] if isinstance(builder, functools.partial) else [builder]
    named = next((part for part in parts if isinstance(part, type)), parts[0])
    return str(getattr(named, "__name__", named))


def check_heads(
    network: Any, observation_space: spaces.Space[Any], action_space: spaces.Space[Any], heads: Mapping[str, Head]
) -> None:
    """Try the further heads that an agent reads, each by its name and what calls it.

    Raises:
        ConfigurationError: one of them fails, or gives anything but one number an observation.
    """
    name = type(network).__name__
    for head, call in heads.items():
        try:
            with torch.no_grad():
                shape = tuple(call(*_try(network, observation_space, action_space)).shape)
        except Exception as error:
            reason = f"fails ({type(error).__name__}: {' '.join(str(error).split())})"
        else:
            reason = f"gives a shape of {shape} for {_BATCH} observations" if shape != (_BATCH,) else ""
        if reason:
            raise ConfigurationError(
                f"--model.network: {head} of {name} {reason}: it must give ({_BATCH},), one number an observation."
            )


def _try(
    network: Any, observation_space: spaces.Space[Any], action_space: spaces.Space[Any]
) -> tuple[Observation, Any, Tensor]:
    """Some observations, the network's output for them, and actions of it."""
    obs = as_observation(sample_rows(observation_space, _BATCH), next(network.parameters()).device)
    output, _ = run_network(network, obs, initial_state(network, _BATCH))
    noise = draw_noise(action_space, 1, [torch.Generator()] * _BATCH, torch.float32, output.value.device)[0]
    return obs, output, output.distribution.sample(noise)


def _check_fit(network: nn.Module, observation_space: spaces.Space[Any], action_space: spaces.Space[Any]) -> None:
    name = type(network).__name__
    try:
        with torch.no_grad():
            obs, output, actions = _try(network, observation_space, action_space)
            shapes = tuple(output.value.shape), tuple(output.distribution.log_prob(actions).shape)
    except ConfigurationError:
        raise
    except Exception as error:
        reason = " ".join(str(error).split())
        raise ConfigurationError(
            f"--model.network: {name} does not fit the observation space {observation_space} and the action space "
            f"{action_space} ({type(error).__name__}: {reason})."
        ) from error
    is_whole = not actions.is_floating_point() or isinstance(action_space, spaces.Box)
    if actions.shape[1:] != action_space.shape or not is_whole:
        raise ConfigurationError(
            f"--model.network: the distribution of {name} gives {actions.dtype} actions of shape "
            f"{tuple(actions.shape[1:])}, which are none of {action_space}: return the output of ppo_lightning.models "
            "that is for such actions."
        )
    if shapes != ((_BATCH,), (_BATCH,)):
        raise ConfigurationError(
            f"--model.network: {name} returns values of shape {shapes[0]} and log-probabilities of shape {shapes[1]} "
            f"for {_BATCH} observations: both must be ({_BATCH},), one number an observation."
        )
    if is_masked(observation_space) and not _is_obeyed(network, obs, action_space):
        raise ConfigurationError(
            f"--model.network: the distribution of {name} takes actions that the observation's {ACTION_MASK} forbids: "
            "let it be one of the output's logits, as those of ppo_lightning.models are."
        )


def _is_obeyed(network: nn.Module, obs: Observation, action_space: spaces.Space[Any]) -> bool:
    """Whether the last action of each component, where it alone is legal, is certain."""
    assert isinstance(obs, TensorDictBase)
    sizes = torch.tensor(component_sizes(action_space), device=obs[ACTION_MASK].device)
    only, last = torch.zeros_like(obs[ACTION_MASK]), sizes.cumsum(0) - 1
    only[:, last] = 1
    actions = (sizes - 1).expand(_BATCH, -1).reshape(_BATCH, *(action_space.shape or ()))
    with torch.no_grad():
        output, _ = run_network(network, obs.copy().set(ACTION_MASK, only), initial_state(network, _BATCH))
        log_probs: Tensor = output.distribution.log_prob(actions)
    return bool((log_probs.abs() < _CERTAIN).all())
