"""What is timed side by side: this package, its floor, and its peers; each in a process of its own.

python benchmarks/programs.py PROGRAM JOB        # prints the figures as JSON
"""

from __future__ import annotations

import contextlib
import json
import logging
import sys
import time
import warnings
from collections.abc import Callable
from typing import Any

import numpy as np
import torch
from jobs import JOBS, MAX_GRAD_NORM, Job
from stages import STAGES, Stages, watch
from torch import Tensor, nn
from training import Iterations, bare_trainer

CPU = torch.device("cpu")


class _Watched(Iterations):
    """Where the time between them went."""

    def __init__(self) -> None:
        super().__init__()
        self.stages = Stages()

    def on_train_start(self, trainer: Any, pl_module: Any) -> None:
        """Time the stages from now on."""
        watch(self.stages, trainer, pl_module, trainer.datamodule._collector)
        self.stages.enter("Lightning")

    def on_train_epoch_end(self, *_: Any) -> None:
        """Leave out the first iteration."""
        super().on_train_epoch_end()
        if len(self.ends) == 1:
            self.stages.start()

    def on_train_end(self, *_: Any) -> None:
        """Stop."""
        self.stages.leave()


def ours(job: Job, clock: Iterations | None = None) -> dict[str, Any]:
    """A run of this package without logger, checkpoints and evaluation."""
    from lightning.pytorch import seed_everything

    from ppo_lightning import PPO, RolloutDataModule, keep_freed_memory

    keep_freed_memory()  # as the command line does
    seed_everything(1, verbose=False)
    clock = clock or Iterations()
    data = RolloutDataModule(
        job.env(),
        num_envs=job.num_envs,
        num_steps=job.num_steps,
        num_minibatches=job.num_minibatches,
        update_epochs=job.update_epochs,
        total_timesteps=None,
    )
    trainer = bare_trainer(max_epochs=1 + job.iterations, precision=job.precision, callbacks=[clock])
    trainer.fit(PPO(network=job.network, **job.agent), data)
    return {"sps": job.iterations * job.batch_size / (clock.ends[-1] - clock.ends[0])}


def stages(job: Job) -> dict[str, Any]:
    """Milliseconds an iteration in each stage of such a run, which timing them slows down a little."""
    clock = _Watched()
    figures = ours(job, clock)
    own = {stage: 1e3 * clock.stages.seconds[stage] / job.iterations for stage in STAGES}
    return {**figures, "stages": own}


def floor(job: Job) -> dict[str, Any]:
    """The parts that no program can leave out, alone in a bare loop.

    They are the environment's steps, the network's forward pass in each, its forward and backward pass in each
    minibatch, clipping, and the optimiser.
    """
    from ppo_lightning import keep_freed_memory
    from ppo_lightning.models.outputs import run_network

    keep_freed_memory()
    torch.manual_seed(1)
    env = job.env().make(range(job.num_envs))
    network = job.network(env.observation_space, env.action_space)
    optimizer = torch.optim.Adam(network.parameters(), lr=1e-9, eps=1e-5, fused=True)
    rng = np.random.default_rng(1)
    obs = env.reset()
    step = getattr(getattr(env, "env", None), "step", None)  # Gymnasium's own, without the adapter around it
    draw = _random_actions(env.action_space, job.num_envs, rng)
    shape = env.observation_space.shape
    seen = torch.empty(job.num_steps, job.num_envs, *shape, dtype=torch.from_numpy(obs).dtype)
    minibatch = job.batch_size // job.num_minibatches
    for iteration in range(1 + job.iterations):
        if iteration == 1:
            started = time.perf_counter()
        with torch.no_grad(), _precision(job):
            for number in range(job.num_steps):
                seen[number] = torch.from_numpy(obs)
                run_network(network, seen[number])
                obs = step(draw())[0] if step else env.step(draw()).obs
        for _ in range(job.update_epochs):
            for rows in seen.flatten(0, 1).split(minibatch):
                with _precision(job):
                    output = run_network(network, rows)[0]
                    loss = output.value.float().square().mean() + _policy(output).float().square().mean()
                loss.backward()
                nn.utils.clip_grad_norm_(network.parameters(), MAX_GRAD_NORM)
                optimizer.step()
                optimizer.zero_grad()
    seconds = time.perf_counter() - started
    env.close()
    return {"sps": job.iterations * job.batch_size / seconds}


def _precision(job: Job) -> Any:
    return torch.autocast("cpu", torch.bfloat16, enabled=job.precision == "bf16-mixed")


def _policy(output: Any) -> Tensor:
    return output.logits if hasattr(output, "logits") else output.mean + output.logstd


def _random_actions(space: Any, num_envs: int, rng: np.random.Generator) -> Any:
    if hasattr(space, "n"):
        return lambda: rng.integers(space.n, size=num_envs)
    return lambda: rng.uniform(space.low, space.high, size=(num_envs, *space.shape)).astype(space.dtype)


def stable_baselines3(job: Job) -> dict[str, Any]:
    """Stable-Baselines3 with the same numbers."""
    from stable_baselines3 import PPO
    from stable_baselines3.common.callbacks import BaseCallback
    from stable_baselines3.common.env_util import make_atari_env, make_vec_env
    from stable_baselines3.common.vec_env import VecFrameStack

    class Clock(BaseCallback):
        def _on_rollout_start(self) -> None:
            begins.append(time.perf_counter())

        def _on_step(self) -> bool:
            return True

    assert job.sb3 is not None
    begins: list[float] = []
    of_env, of_agent = dict(job.sb3[0]), dict(job.sb3[1])
    if of_env.pop("atari", False):
        import ale_py
        import gymnasium

        gymnasium.register_envs(ale_py)
        env: Any = VecFrameStack(make_atari_env(n_envs=job.num_envs, seed=1, **of_env), n_stack=4)
    else:
        env = make_vec_env(n_envs=job.num_envs, seed=1, **of_env)
    model = PPO(
        env=env,
        n_steps=job.num_steps,
        batch_size=job.batch_size // job.num_minibatches,
        n_epochs=job.update_epochs,
        learning_rate=job.agent["learning_rate"],
        device="cpu",
        seed=1,
        **of_agent,
    )
    model.learn((1 + job.iterations) * job.batch_size, callback=Clock())
    return {"sps": job.iterations * job.batch_size / (time.perf_counter() - begins[1])}


PROGRAMS = {"ours": ours, "floor": floor, "stages": stages, "Stable-Baselines3": stable_baselines3}


def quietly(program: Callable[[Job], dict[str, Any]], job: Job) -> dict[str, Any]:
    """A program's figures, in as many threads as the job has; what libraries print goes to standard error."""
    warnings.filterwarnings("ignore")
    logging.getLogger("lightning.pytorch").setLevel(logging.ERROR)
    torch.set_num_threads(job.threads)
    with contextlib.redirect_stdout(sys.stderr):
        return program(job)


def main() -> None:
    """Run one and print its figures."""
    print(json.dumps(quietly(PROGRAMS[sys.argv[1]], JOBS[sys.argv[2]])))


if __name__ == "__main__":
    main()
