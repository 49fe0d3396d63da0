"""The command line without what is fast by itself, to see that nothing is paid for it in what is learned.

    python benchmarks/plain.py fit --config configs/cartpole.yaml

Single precision, whole minibatches, one kernel for each operation: acting, losses and clipping are torch's.
"""

from __future__ import annotations

import sys

from ppo_lightning.algorithms import clipping, closed_form
from ppo_lightning.cli.program import main
from ppo_lightning.models import host, host_pass

if __name__ == "__main__":
    for module in (closed_form, clipping, host, host_pass):
        module.MOST = 0
    main([*sys.argv[1:], "--trainer.precision=32-true", "--model.chunk_size=null"])
