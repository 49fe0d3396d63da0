"""``ppo-lightning export``: a checkpoint's policy as an ONNX file."""

from __future__ import annotations

from collections.abc import Sequence

from ppo_lightning.commands.parser import PROGRAM, PPOArgumentParser
from ppo_lightning.policies.export import INSTALL, TOLERANCE, OnnxFile, export_onnx

_DESCRIPTION = (
    "Write the policy of a checkpoint to one ONNX file. Its inputs are observations as the simulator gives them, its "
    "outputs the greedy action as the environment takes it, the action's distribution (logits, or mean and std) and "
    "the value; a network with memory also has state and next_state. The file is checked in onnxruntime."
)


def main(args: Sequence[str]) -> None:
    """Export, and say what was written and how far it is from the network."""
    parser = PPOArgumentParser(prog=f"{PROGRAM} export", description=_DESCRIPTION, allow_abbrev=False)
    parser.add_argument("--ckpt_path", type=str, required=True, help="A checkpoint of a run.")
    parser.add_argument("--out", type=str, required=True, help="The file to write, ending in .onnx.")
    given = parser.parse_args(list(args))
    written = export_onnx(given.ckpt_path, given.out)
    print(f"Wrote {written.path}: {_listed(written.inputs)} → {_listed(written.outputs)}.")
    print(_verdict(written))


def _listed(tensors: dict[str, str]) -> str:
    return ", ".join(f"{name} {description}" for name, description in tensors.items())


def _verdict(written: OnnxFile) -> str:
    if written.difference is None:
        return f"Not checked, since onnxruntime cannot be imported here: {INSTALL}."
    limit = f"the limit {TOLERANCE:g}" if written.difference <= TOLERANCE else "within the network's own rounding"
    return (
        "Checked in onnxruntime on random observations: the largest difference to PyTorch is "
        f"{written.difference:.1e}, {limit}."
    )
