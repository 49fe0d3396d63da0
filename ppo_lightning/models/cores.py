"""What remembers: recurrent layers between an encoder and the heads."""

from __future__ import annotations

from abc import abstractmethod
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any, cast

import numpy as np
import torch
from torch import Tensor, nn

from ppo_lightning.core.errors import check_range

_FLAG = "--model.network.core"


class MemoryCore(nn.Module):
    """Recurrent layers, whose memory is one tensor of ``(N, S, L, H)``: ``S`` vectors for each of ``L`` layers.

    They run in full precision also where the encoder runs in half. Weights are orthogonal, biases zero but for those of
    the gate that keeps what was there (an LSTM's forget gate, a GRU's update gate), which are 1: else a new layer loses
    half of it in each step (Jozefowicz et al., ICML 2015, section 2.2).

    Args:
        input_dim: features in.
        hidden_dim: features out, and the width of each layer (``H``).
        num_layers: layers on top of each other (``L``).
        span: steps over which a new core remembers: each of its units for a time of its own, up to so many steps (the
            "chrono initialisation" of Tallec and Ollivier, arXiv 1804.11188, section 2). By default some three.

    Raises:
        ConfigurationError: a number outside its range.
    """

    LAYERS: type[nn.LSTM] | type[nn.GRU]
    VECTORS: int
    """That each layer carries from step to step (``S``)."""

    def __init__(self, input_dim: int, hidden_dim: int = 128, num_layers: int = 1, span: int | None = None) -> None:
        super().__init__()
        check_range(f"{_FLAG}.hidden_dim", hidden_dim, 1)
        check_range(f"{_FLAG}.num_layers", num_layers, 1)
        if span is not None:
            check_range(f"{_FLAG}.span", span, 3)
        self.layers = self.LAYERS(input_dim, hidden_dim, num_layers)
        for name, parameter in self.layers.named_parameters():
            nn.init.zeros_(parameter) if "bias" in name else nn.init.orthogonal_(parameter)
            if name.startswith("bias_ih"):
                self._open_gates(torch.split(parameter.data, hidden_dim), span)
        self.output_dim = hidden_dim
        self.state_shape = (self.VECTORS, num_layers, hidden_dim)

    def _open_gates(self, gates: Sequence[Tensor], span: int | None) -> None:
        """Fill the biases ``(H,)`` of one layer's gates so that it keeps what it holds."""
        kept = gates[1]  # of both kinds
        if span is None:
            nn.init.ones_(kept)
        else:
            kept.copy_(torch.empty_like(kept).uniform_(1, span - 1).log())
            if self.LAYERS is nn.LSTM:
                gates[0].copy_(-kept)  # what it takes in; a GRU takes in what it does not keep

    def initial_state(self, num_envs: int) -> Tensor:
        """The memory at an episode's start: zeros ``(N, S, L, H)``."""
        weight = cast(Tensor, self.layers.weight_hh_l0)
        return weight.new_zeros(num_envs, *self.state_shape)

    def step(self, features: Tensor, state: Tensor) -> tuple[Tensor, Tensor]:
        """One step of ``N`` environments.

        Args:
            features: ``(N, F)``.
            state: before the step, ``(N, S, L, H)``.

        Returns:
            Features ``(N, H)``, and the memory after the step.
        """
        x, after = features.to(state.dtype), []
        for layer, weights in enumerate(self.layers.all_weights):
            vectors = self._cell(x, state[:, :, layer].unbind(1), weights)
            x = vectors[0]
            after.append(torch.stack(vectors, dim=1))
        return x, torch.stack(after, dim=2)

    def sequences(self, features: Tensor, state: Tensor, episodes: Tensor | EpisodeParts) -> Tensor:
        """Whole sequences, each part between two episode starts as a sequence of its own.

        Args:
            features: ``(N, T, F)``.
            state: before the first step, ``(N, S, L, H)``.
            episodes: where they start, ``(N, T)`` bool: the memory is cleared before each step where it is true; or
                :class:`EpisodeParts`, which several cores can share.

        Returns:
            Features ``(N, T, H)``.
        """
        parts = episodes if isinstance(episodes, EpisodeParts) else EpisodeParts(episodes)
        rows = features.to(state.dtype).flatten(0, 1)
        outputs = []
        for group in parts.groups:
            x = rows.index_select(0, group.rows).reshape(-1, len(group.envs), rows.shape[1])
            memory = torch.where(group.is_carried, state.index_select(0, group.envs), 0)
            vectors = [vector.contiguous() for vector in memory.permute(1, 2, 0, 3)]  # each (L, P, H)
            output, _ = self.layers(x, tuple(vectors) if len(vectors) > 1 else vectors[0])
            outputs.append(output.flatten(0, 1))
        return torch.cat(outputs).index_select(0, parts.places).reshape(*parts.shape, -1)

    @abstractmethod
    def _cell(self, x: Tensor, vectors: tuple[Tensor, ...], weights: Any) -> tuple[Tensor, ...]:
        """One layer's step: what it carries on, each ``(N, H)``; the first of these is its output."""


class LSTMCore(MemoryCore):
    """Long short-term memory (Hochreiter and Schmidhuber, Neural Computation 1997), PyTorch's."""

    LAYERS, VECTORS = nn.LSTM, 2

    def _cell(self, x: Tensor, vectors: tuple[Tensor, ...], weights: Any) -> tuple[Tensor, ...]:
        return torch.lstm_cell(x, list(vectors), *weights)


class GRUCore(MemoryCore):
    """Gated recurrent units (Cho et al., arXiv 1406.1078), PyTorch's: half the memory of an LSTM."""

    LAYERS, VECTORS = nn.GRU, 1

    def _cell(self, x: Tensor, vectors: tuple[Tensor, ...], weights: Any) -> tuple[Tensor, ...]:
        return (torch.gru_cell(x, vectors[0], *weights),)


class EpisodeParts:
    """``(N, T)`` sequences cut where episodes start, and the parts grouped by length.

    In each group the longest part is less than twice the shortest. One call of a layer for each group is several
    times as fast as their packed sequences, whose gradient takes time in the square of ``T``, and as a call for each
    stretch in which no environment starts anew.

    Args:
        episode_starts: ``(N, T)`` bool.

    Attributes:
        shape: ``(N, T)``.
        groups: of parts of like length.
        places: of each step, environment-major, its row among all steps of all groups, ``(N·T,)``.
    """

    def __init__(self, episode_starts: Tensor) -> None:
        self.shape = num_envs, num_steps = episode_starts.shape
        device, num_rows = episode_starts.device, num_envs * num_steps
        is_new = episode_starts.cpu().numpy()  # many small arrays: numpy takes a third of the time
        begins = is_new.copy()
        begins[:, 0] = True
        first = np.flatnonzero(begins)
        lengths = np.diff(first, append=num_rows)
        envs = first // num_steps
        is_carried = (first % num_steps == 0) & ~is_new[envs, 0]
        sizes = np.frexp(lengths)[1]
        self.groups: list[PartGroup] = []
        places, rows_before = np.empty(num_rows, dtype=np.int64), 0
        for size in np.unique(sizes):
            (group,) = np.nonzero(sizes == size)
            begin, length = first[group], lengths[group]
            steps = np.arange(length.max())[:, None]
            rows, own = (begin + np.minimum(steps, length - 1)).ravel(), np.flatnonzero(steps < length)
            places[rows[own]] = rows_before + own
            rows_before += len(rows)
            parts = rows, envs[group], is_carried[group].reshape(-1, 1, 1, 1)
            self.groups.append(PartGroup(*(torch.from_numpy(part).to(device) for part in parts)))
        self.places = torch.from_numpy(places).to(device)


@dataclass
class PartGroup:
    """``P`` parts of sequences, of up to ``K`` steps, each between two episode starts."""

    rows: Tensor
    """Of each step its row among all steps, ``(K·P,)``; beyond a part's end its last one is repeated."""
    envs: Tensor
    """``(P,)``, the sequence that each is a part of."""
    is_carried: Tensor
    """``(P, 1, 1, 1)``, whether it goes on with what was remembered before the sequence."""


CoreBuilder = Callable[[int], MemoryCore]
"""Builds a core from the number of features that it is given."""


def run_core(core: MemoryCore | None, features: Tensor, state: Tensor, episodes: EpisodeParts) -> Tensor:
    """Features ``(N·T, F)`` of ``N`` sequences, environment-major, to what a core makes of them, ``(N·T, H)``."""
    assert core is not None
    return core.sequences(features.reshape(*episodes.shape, -1), state, episodes).flatten(0, 1)
