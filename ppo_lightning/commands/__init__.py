"""Commands that need no Trainer. Each is a module with ``main(args)``, imported only when it is asked for."""

COMMANDS: dict[str, str] = {
    "export": "Write the policy of --ckpt_path to an ONNX file.",
    "plot": "Draw learning curves of runs.",
}
"""What ``ppo-lightning --help`` says of each; the module has the command's name."""
