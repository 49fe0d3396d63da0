"""What an agent normalises by statistics of its rollouts: of all ranks, and changed once an iteration."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any, Literal, get_args

import torch
from gymnasium import spaces
from torch import Tensor, nn

from ppo_lightning.core.checkpoint import LEAST_STD_OF_RETURNS
from ppo_lightning.core.errors import ConfigurationError, check_range, close_names
from ppo_lightning.core.rollout import Rollout
from ppo_lightning.core.spaces import sample_rows
from ppo_lightning.functional.advantages import discounted_sums, normalize_advantages
from ppo_lightning.functional.moments import moments_of, pool_moments
from ppo_lightning.models.actor_critic import as_observation
from ppo_lightning.models.encoders import MLPEncoder
from ppo_lightning.models.normalization import FullPrecision, RunningMoments

Gather = Callable[[Tensor], Tensor]
"""``x`` of every rank, ``(W, *x.shape)``."""
Scope = Literal["minibatch", "rollout", "ema"]

_STD_FLOOR = 0.02  # of advantages by EMA


class ObservationStatistics:
    """Lets a network's encoders learn the statistics of a rollout's observations, when its update is over.

    While a rollout is played and learned from, the encoders normalise it in the same way, so that the first ratio of
    an update is 1.
    """

    def __init__(self) -> None:
        self._seen: Tensor | None = None

    def check(self, network: nn.Module, observation_space: spaces.Space[Any]) -> None:
        """Raise :class:`ConfigurationError` for an encoder that normalises what the network made of an observation."""
        for encoder in _normalizing(network):
            try:
                encoder.moments_of(as_observation(sample_rows(observation_space, 2), next(encoder.parameters()).device))
            except Exception as error:
                raise ConfigurationError(
                    f"--model.network={type(network).__name__} gives an encoder with a normalizer something else than "
                    "the environment's observation, of which its statistics are: leave the normalizer out, or set the "
                    "encoder's attribute within to the keys that lead there."
                ) from error

    def look(self, network: nn.Module, rollout: Rollout) -> None:
        """Remember the moments of what each encoder reads of a rollout."""
        encoders = _normalizing(network)
        if encoders:
            obs = rollout.flatten().obs
            self._seen = torch.cat([encoder.moments_of(obs) for encoder in encoders])

    def update(self, network: nn.Module, gather: Gather) -> None:
        """Take in what all ranks remember."""
        if self._seen is None:
            return
        pooled = pool_moments(gather(self._seen)).to(self._seen)
        encoders = _normalizing(network)
        sizes = [len(encoder.normalizer.mean) for encoder in encoders if encoder.normalizer is not None]
        for encoder, moments in zip(encoders, torch.split(pooled, sizes)):
            assert encoder.normalizer is not None
            encoder.normalizer.update(moments)
        self._seen = None


def _normalizing(network: nn.Module) -> list[MLPEncoder]:
    encoders = (module for module in network.modules() if isinstance(module, MLPEncoder))
    return [encoder for encoder in encoders if encoder.normalizer is not None]


class RewardNormalizer(RunningMoments):
    r"""Rewards in units of the standard deviation of the discounted return, clipped; their mean is not subtracted.

    .. math::
        G_t = \gamma\,G_{t-1} + r_t \qquad \hat r_t = \operatorname{clip}(r_t / \sqrt{\operatorname{Var}(G)}, \pm c)

    where :math:`G` starts at 0 with each episode. A rollout enters the statistics before it is normalised by them.

    Source: Engstrom et al., "Implementation Matters in Deep Policy Gradients" (arXiv 2005.12729, section 3).

    Args:
        gamma: discount a step.
        clip: the largest magnitude of what comes out; None for none.
        ema: what the statistics so far count beside those of a new rollout; None weighs all steps the same.
        trace: the name that the running sums are kept by.
    """

    def __init__(self, gamma: float, clip: float | None, ema: float | None, trace: str = "discounted_return") -> None:
        super().__init__((), ema, "--model.norm_ema")
        self.gamma = gamma
        self.clip = clip
        self.trace = trace

    def normalize(
        self, rewards: Tensor, ends: Tensor, valid: Tensor, traces: dict[str, Tensor], gather: Gather
    ) -> Tensor:
        """A rollout's rewards ``(T, N)``; ``traces`` carries the running sums of its environments, ``(N,)``."""
        trace = traces.get(self.trace, torch.zeros_like(rewards[0]))
        sums, traces[self.trace] = discounted_sums(rewards, ends, valid, trace, self.gamma)
        self.update(pool_moments(gather(moments_of(sums[valid]))).to(sums.device))
        normal = rewards * (self.var + 1e-8).rsqrt().to(rewards.dtype)
        return normal if self.clip is None else normal.clamp(-self.clip, self.clip)


def reward_normalizer(
    is_asked_for: bool, gamma: float, clip: float, ema: float | None = None
) -> RewardNormalizer | None:
    """What ``--model.normalize_rewards`` asks for; None where rewards stay as they are.

    Raises:
        ConfigurationError: a number outside its range.
    """
    check_range("--model.reward_clip", clip, 0, exclude_low=True)
    return RewardNormalizer(gamma, clip, ema) if is_asked_for else None


class ReturnNormalizer(RunningMoments):
    r"""PopArt: the critic learns standardised returns, and its outputs are preserved when their statistics change.

    .. math::
        V = \sigma\,(w^\top h + b) + \mu \qquad
        w \leftarrow \tfrac{\sigma}{\sigma'} w \qquad b \leftarrow \tfrac{\sigma b + \mu - \mu'}{\sigma'}

    Source: van Hasselt et al., "Learning values across many orders of magnitude" (arXiv 1602.07714, section 2).

    Args:
        ema: what the statistics so far count beside those of a new rollout; None weighs all returns the same.
    """

    def __init__(self, ema: float | None) -> None:
        super().__init__((), ema, "--model.norm_ema")

    @property
    def std(self) -> Tensor:
        """Of the returns so far, at least 1e-4."""
        return self.var.sqrt().clamp(min=LEAST_STD_OF_RETURNS)

    def values_of(self, outputs: Tensor) -> Tensor:
        """The values that the critic's outputs stand for."""
        return outputs * self.std.to(outputs.dtype) + self.mean.to(outputs.dtype)

    def outputs_for(self, values: Tensor) -> Tensor:
        """The inverse of :meth:`values_of`."""
        return (values - self.mean.to(values.dtype)) / self.std.to(values.dtype)

    @torch.no_grad()
    def learn(self, returns: Tensor, layer: nn.Linear, gather: Gather) -> None:
        """Take in the returns ``(B,)`` of all ranks, and let the critic's last layer say the same as before."""
        mean, std = self.mean.clone(), self.std
        self.update(pool_moments(gather(moments_of(returns))).to(returns.device))
        layer.weight.mul_((std / self.std).to(layer.weight.dtype))
        bias = (std * layer.bias + mean - self.mean) / self.std
        layer.bias.copy_(bias)


def value_layer(network: nn.Module) -> nn.Linear:
    """The critic's last layer.

    Raises:
        ConfigurationError: the network has no ``fc_value``.
    """
    layer = getattr(network, "fc_value", None)
    if not isinstance(layer, nn.Linear) or layer.bias is None:
        raise ConfigurationError(
            f"--model.normalize_returns=true rescales the critic's last layer, and {type(network).__name__} has no "
            "Linear named fc_value: name it so, or use --model.normalize_rewards=true."
        )
    return layer


class AdvantageNormalizer(FullPrecision):
    r"""Normalises the advantages of a whole rollout, of all ranks.

    By the rollout's own mean and standard deviation, or (``ema``) by moving averages of both and clipped:

    .. math::
        \mu \leftarrow (1 - w)\,\mu + w\,\mu_\text{rollout} \qquad
        \sigma \leftarrow (1 - w)\,\sigma + w\,\sigma_\text{rollout} \qquad
        \hat A = \operatorname{clip}\left(\frac{A - \mu}{\max(\sigma, 0.02)}, \pm c\right)

    The first rollout's are taken as they are.

    Args:
        scope: of the statistics.
        weight: :math:`w`, of a new rollout.
        clip: :math:`c`.
    """

    mean: Tensor
    std: Tensor

    def __init__(self, scope: Scope, weight: float, clip: float) -> None:
        super().__init__()
        self.scope = scope
        self.weight = weight
        self.clip = clip
        if scope == "ema":
            self.register_buffer("mean", torch.zeros(()))
            self.register_buffer("std", torch.zeros(()))  # 0 says that there was no rollout yet

    @torch.no_grad()
    def normalize(self, advantages: Tensor, valid: Tensor, gather: Gather) -> Tensor:
        """``(T, N)`` to the same; only what is ``valid`` counts."""
        if self.scope == "minibatch":
            return advantages
        moments = pool_moments(gather(moments_of(advantages[valid]))).to(advantages.device)
        if self.scope == "rollout":
            return normalize_advantages(advantages, moments)
        mean, std = moments[1], moments[2].sqrt()
        weight = self.weight if bool(self.std) else 1.0
        self.mean.lerp_(mean.to(self.mean), weight)
        self.std.lerp_(std.to(self.std), weight)
        normal = (advantages - self.mean.to(advantages.dtype)) / self.std.clamp(min=_STD_FLOOR).to(advantages.dtype)
        return normal.clamp(-self.clip, self.clip)


def advantage_normalizer(norm_adv: bool | Scope, weight: float = 0.05, clip: float = 4.0) -> AdvantageNormalizer | None:
    """What ``--model.norm_adv`` asks for; None where advantages stay as they are.

    Raises:
        ConfigurationError: a number outside its range, or a name that there is not.
    """
    check_range("--model.adv_ema_weight", weight, 0, 1, exclude_low=True)
    check_range("--model.adv_clip", clip, 0, exclude_low=True)
    if norm_adv is False:
        return None
    scope = "minibatch" if norm_adv is True else norm_adv
    if scope not in get_args(Scope):
        raise ConfigurationError(
            f"--model.norm_adv={scope} is not known: choose from true, false, {', '.join(get_args(Scope))}."
            f"{close_names(str(scope), get_args(Scope))}"
        )
    return AdvantageNormalizer(scope, weight, clip)


_FLAGS = {
    "reward_normalizer": "--model.normalize_rewards",
    "return_normalizer": "--model.normalize_returns",
    "advantage_normalizer": "--model.norm_adv=ema",
}


def check_same_statistics(own: Mapping[str, Any], loaded: Mapping[str, Any]) -> None:
    """Raise :class:`ConfigurationError` where only one of two states of a module has some statistics."""
    for part, flag in _FLAGS.items():
        if any(name.startswith(f"{part}.") for name in own) != any(name.startswith(f"{part}.") for name in loaded):
            raise ConfigurationError(
                f"{flag} is set here or was set in the run of --ckpt_path, but not both, and its statistics are a part "
                "of the agent: do as that run did, or start a new one with --init_from."
            )


def check_returns_flags(rewards: bool, returns: bool, ema: float | None) -> None:
    """Raise :class:`ConfigurationError` where flags of rewards and returns contradict each other."""
    if rewards and returns:
        raise ConfigurationError(
            "--model.normalize_rewards=true and --model.normalize_returns=true both bring value targets to unit scale: "
            "leave one of them out."
        )
    if ema is not None and not (rewards or returns):
        raise ConfigurationError(
            f"--model.norm_ema={ema:g} is of --model.normalize_rewards or --model.normalize_returns, and neither is "
            "set: set one, or leave it out."
        )
