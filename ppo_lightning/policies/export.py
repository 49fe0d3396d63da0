"""A checkpoint's policy as an ONNX file, checked against the network that it was made from."""

from __future__ import annotations

import contextlib
import importlib
import io
import json
import logging
import math
import warnings
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Union

import torch
from torch import Tensor

from ppo_lightning.core.checkpoint import network_from_checkpoint, read_checkpoint
from ppo_lightning.core.errors import ConfigurationError
from ppo_lightning.core.files import written_whole
from ppo_lightning.core.spaces import space_from_dict, space_to_dict
from ppo_lightning.policies.graph import PolicyGraph
from ppo_lightning.policies.onnx_check import largest_difference, rounding
from ppo_lightning.version import __version__

TOLERANCE = 1e-5
_ROUNDINGS, _LOOSEST = 10, 1e-3  # of a network whose own rounding is coarser than the tolerance
_MAX_BYTES = 2**31 - 2**20  # of parameters in one file: protobuf's limit, less some room for the graph
INSTALL = "pip install 'ppo-lightning[export]'"


@dataclass
class OnnxFile:
    """What was written: names with dtype and shape, and the largest difference to PyTorch (None: not checked)."""

    path: Path
    inputs: dict[str, str]
    outputs: dict[str, str]
    difference: float | None


def export_onnx(ckpt_path: Union[str, Path], out: Union[str, Path]) -> OnnxFile:
    """Write the policy of a checkpoint to one ONNX file, normalisation included; see :class:`PolicyGraph` for names.

    Where onnxruntime is installed, the file is run on random observations of several batch sizes first, and must give
    what the network gives to 1e-5: of each output's largest magnitude, or absolute where that is below 1. A network
    whose float32 results are further than that from float64's is allowed ten times its own distance, up to 1e-3.

    Args:
        ckpt_path: a checkpoint of a run.
        out: the file to write, ending in ``.onnx``; one that exists is replaced.

    Raises:
        ConfigurationError: a checkpoint, file name or network that cannot be used, or packages that are missing.
    """
    path = Path(out)
    if path.suffix != ".onnx" or path.is_dir():
        what = "is a folder" if path.is_dir() else "does not end in .onnx"
        raise ConfigurationError(f"--out={out} {what}: name a file like policy.onnx.")
    with written_whole(path) as part:
        _import_exporter()
        checkpoint = read_checkpoint(ckpt_path, "--ckpt_path")
        graph = _graph_of(checkpoint)
        proto, outputs = _to_onnx(graph)
        part.write_bytes(_serialized(proto, _metadata(checkpoint, graph)))
        difference = _check(part, graph)
    inputs = dict(zip(graph.input_names, _example(graph)))
    return OnnxFile(path, _described(inputs), _described(outputs), difference)


def _import_exporter() -> None:
    for name in ("onnx", "onnxscript"):
        try:
            importlib.import_module(name)
        except ImportError as error:
            raise ConfigurationError(
                f"Exporting needs the package {name}, which cannot be imported here: {INSTALL}."
            ) from error


def _graph_of(checkpoint: dict[str, Any]) -> PolicyGraph:
    network = network_from_checkpoint(checkpoint, "--ckpt_path")
    size = sum(parameter.numel() * parameter.element_size() for parameter in network.parameters())
    if size > _MAX_BYTES:
        raise ConfigurationError(
            f"--ckpt_path: the network's parameters take {size / 2**30:.2g} GiB, and an ONNX file holds less than 2: "
            "train a smaller network."
        )
    hparams = checkpoint["hyper_parameters"]
    graph = PolicyGraph(
        network, space_from_dict(hparams["observation_space"]), space_from_dict(hparams["action_space"])
    )
    return graph.eval()


def _to_onnx(graph: PolicyGraph) -> tuple[Any, dict[str, Tensor]]:
    """The model, and an example of each of its outputs."""
    inputs = tuple(_example(graph))
    batch = torch.export.Dim("batch")
    try:
        with torch.no_grad(), _quietly():
            outputs = graph.named_outputs(*inputs)
            program = torch.onnx.export(
                graph,
                inputs,
                input_names=graph.input_names,
                output_names=list(outputs),
                dynamic_shapes=(tuple({0: batch} for _ in inputs),),
                dynamo=True,
                verbose=False,
            )
    except Exception as error:
        raise _refusal(graph, _reason(error)) from error
    assert program is not None
    inner: Any = program.model.graph
    if any(isinstance(value.shape[0], int) for value in inner.inputs):
        raise _refusal(graph, f"once traced, its forward works for batches of {len(inputs[0])} alone")
    _rename_inner_values(inner)
    return program.model_proto, outputs


def _check(path: Path, graph: PolicyGraph) -> float | None:
    """The largest difference to PyTorch; None without onnxruntime."""
    try:
        import onnxruntime  # noqa: F401
    except ImportError:
        return None
    try:
        name, difference = largest_difference(path, graph)
    except Exception as error:
        raise _refusal(graph, f"onnxruntime does not run it, {_reason(error)}") from error
    if difference <= TOLERANCE:
        return difference
    limit = max(TOLERANCE, min(_ROUNDINGS * rounding(graph), _LOOSEST))
    if not difference <= limit:  # NaN too
        raise _refusal(
            graph,
            f"in onnxruntime the output {name} differs from PyTorch's by {difference:.2g}, more than {limit:.2g}",
        )
    return difference


def _example(graph: PolicyGraph) -> list[Tensor]:
    rows = 2  # a batch of one would be taken for a constant
    return [*graph.random_observation(rows, seed=0), *graph.initial_state(rows)]


@contextlib.contextmanager
def _quietly() -> Iterator[None]:
    """Without the exporter's reports on itself, and the graphs that it prints when it fails."""
    disabled = logging.root.manager.disable
    aside = io.StringIO()
    with warnings.catch_warnings(), contextlib.redirect_stdout(aside), contextlib.redirect_stderr(aside):
        warnings.simplefilter("ignore")
        logging.disable(logging.WARNING)
        try:
            yield
        finally:
            logging.disable(disabled)


def _refusal(graph: PolicyGraph, reason: str) -> ConfigurationError:
    return ConfigurationError(
        f"--ckpt_path: {type(graph.network).__name__} cannot be exported to ONNX ({reason}): let its forward compute "
        "with tensors alone (torch.where for if, obs.shape[0] for len(obs))."
    )


def _reason(error: BaseException) -> str:
    """The first line of what went wrong at the bottom; above it the exporter tells of its own steps."""
    while error.__cause__ is not None:
        error = error.__cause__
    lines = [line for line in str(error).splitlines() if line.strip()]
    return f"{type(error).__name__}: {lines[0].strip().rstrip('.') if lines else 'no reason given'}"


def _rename_inner_values(graph: Any) -> None:
    """The exporter names values after operations: a Dict key ``cat``, or the output ``mean``, may be one of them."""
    public = [*graph.inputs, *graph.outputs]
    names = {value.name for value in public}
    for node in graph:
        for value in node.outputs:
            if value.name in names and not any(value is other for other in public):
                value.name = f"/{value.name}"


def _serialized(proto: Any, metadata: dict[str, str]) -> bytes:
    """With the metadata, without the exporter's own: traces of this machine's source files, longer than the rest."""
    for part in (*proto.graph.node, *proto.graph.input, *proto.graph.output, *proto.graph.value_info, proto.graph):
        del part.metadata_props[:]
    del proto.metadata_props[:]
    for key, value in metadata.items():
        proto.metadata_props.add(key=key, value=value)
    serialized: bytes = proto.SerializeToString()
    return serialized


def _metadata(checkpoint: dict[str, Any], graph: PolicyGraph) -> dict[str, str]:
    """What the file is of, as JSON where it is more than a word."""
    metadata = {
        "ppo_lightning_version": __version__,
        "observation_space": _json(space_to_dict(graph.observation_space)),
        "action_space": _json(space_to_dict(graph.action_space)),
    }
    counters = [part for part in checkpoint.values() if isinstance(part, dict) and "env_steps" in part]
    if counters:
        metadata["env_steps"] = str(counters[0]["env_steps"])
    if graph.state_names:
        begins = [state[0] for state in graph.initial_state(1)]
        one_number = [row.flatten()[0] if bool((row == row.flatten()[0]).all()) else row for row in begins]
        metadata["initial_state"] = _json({name: row.tolist() for name, row in zip(graph.state_names, one_number)})
    return metadata


def _json(content: Any) -> str:
    return json.dumps(_finite(content), allow_nan=False)


def _finite(content: Any) -> Any:
    """Infinite bounds as ``"inf"`` and ``"-inf"``, which JSON has no numbers for; numpy and float read them back."""
    if isinstance(content, dict):
        return {key: _finite(value) for key, value in content.items()}
    if isinstance(content, list):
        return [_finite(value) for value in content]
    return str(content) if isinstance(content, float) and not math.isfinite(content) else content


def _described(tensors: dict[str, Tensor]) -> dict[str, str]:
    """``float32 (B, 4)``."""
    return {
        name: f"{str(tensor.dtype).removeprefix('torch.')} ({', '.join(['B', *map(str, tensor.shape[1:])])})"
        for name, tensor in tensors.items()
    }
