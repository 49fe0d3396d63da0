"""Whether somebody looks at a module, or has changed it, where another program is to do what it does."""

from __future__ import annotations

from collections.abc import Iterable

from torch import nn


def is_as_written(module: nn.Module, methods: Iterable[str]) -> bool:
    """Whether no hook sees what goes in or comes out, and none of ``methods`` was replaced in this module alone."""
    is_watched = (
        module._forward_hooks or module._forward_pre_hooks or module._backward_hooks or module._backward_pre_hooks
    )
    return not is_watched and vars(module).keys().isdisjoint(methods)
