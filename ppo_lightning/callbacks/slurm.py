"""Asking SLURM for another run of a job that it is about to end."""

from __future__ import annotations

import os
import subprocess
from collections.abc import Mapping

_TIMEOUT = 20.0


def requeue(environment: Mapping[str, str] = os.environ) -> tuple[bool, str]:
    """Put this job back into SLURM's queue: whether that worked, and a sentence that says so."""
    job = environment.get("SLURM_JOB_ID", "")
    if "SLURM_ARRAY_JOB_ID" in environment:
        job = f"{environment['SLURM_ARRAY_JOB_ID']}_{environment['SLURM_ARRAY_TASK_ID']}"
    try:
        result = subprocess.run(["scontrol", "requeue", job], capture_output=True, text=True, timeout=_TIMEOUT)
    except (OSError, subprocess.TimeoutExpired) as error:
        return False, f"SLURM job {job} could not be queued again ({error})."
    if result.returncode:
        reason = " ".join(f"{result.stdout} {result.stderr}".split())
        return False, f"SLURM job {job} could not be queued again (exit code {result.returncode}: {reason})."
    return True, f"SLURM job {job} is queued again."
