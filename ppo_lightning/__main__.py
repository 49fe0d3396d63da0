"""``python -m ppo_lightning``: the command line."""

import sys

from ppo_lightning.cli import main

if __name__ == "__main__":
    sys.exit(main())
