"""The environments that fall to a rank: those that it trains on, and those of the evaluation's splits."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from gymnasium import spaces

from ppo_lightning.core.errors import ConfigurationError
from ppo_lightning.data.seeding import Streams
from ppo_lightning.envs.base import EnvFactory, VectorEnv, error_of_split
from ppo_lightning.envs.joined import JoinedVectorEnv


def make_envs(factory: EnvFactory, rank: int, streams: Streams, shares: int, iteration: int) -> VectorEnv:
    """One vector environment; or one a share, since some take one seed for all of their rows.

    Args:
        factory: of the environment.
        rank: whose environments they are.
        streams: of this rank.
        shares: of this rank.
        iteration: at which their first episodes start.
    """
    first = rank * shares
    parts = [
        factory.of_share(first + share).make(own.env_seeds(iteration))
        for share, own in enumerate(streams.split(shares))
    ]
    return parts[0] if shares == 1 else JoinedVectorEnv(parts)


def factory_of_split(
    factory: EnvFactory, settings: Mapping[str, Any], flag: str, own: Mapping[str, spaces.Space[Any]]
) -> EnvFactory:
    """The environment with some settings changed, which must leave its spaces (``own``, by name) as they are.

    Raises:
        ConfigurationError: unknown settings, or other spaces; names ``flag``.
    """
    factory = factory.with_settings(settings, flag)
    try:
        probe = factory.make([0])
    except ConfigurationError as error:
        raise error_of_split(error, flag) from error
    probe.close()
    for name, space in own.items():
        others = getattr(probe, name)
        if space != others:
            raise ConfigurationError(
                f"{flag}: its environment has the {name.replace('_', ' ')} {others}, but the policy is made for "
                f"{space}: a split may change what leaves both spaces as they are."
            )
    return factory
