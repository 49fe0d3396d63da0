"""Commands that need no Trainer. Each is a module with ``main(args)``, imported only when it is asked for."""

COMMANDS: dict[str, str] = {
    "plot": "Draw learning curves of runs.",
}
"""What ``ppo-lightning --help`` says of each; the module has the command's name."""
