"""``python -m ppo_lightning``: the command line."""

from ppo_lightning.cli import main

if __name__ == "__main__":
    main()
