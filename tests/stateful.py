"""What carries state, and what decides over ranks: one entry each.

The tests of resuming, of simulators and of ranks run through all of them.
"""

import functools
import importlib.util
from collections.abc import Callable
from dataclasses import dataclass

import gymnasium
import numpy as np
import pytest
from gymnasium import spaces, wrappers
from gymnasium.vector import AutoresetMode

from ppo_lightning.envs import AtariEnv, CoordinationEnv, EnvFactory, GymnasiumEnv, ProcgenEnv
from ppo_lightning.envs.state import CODECS
from ppo_lightning.envs.wrappers import ActionMaskWrapper, NoisyObservation, SelectObservation
from tests.commands import WALK
from tests.coordination import TINY, policy_of
from tests.runs import SmallGRU


@dataclass(frozen=True)
class Simulator:
    """A case: ``factory`` is what a run takes, ``make(seeds)`` the same unless another reset mode is to be tried."""

    name: str
    factory: EnvFactory
    make: Callable
    proves: tuple[str, ...]
    """The keys of CODECS that this case proves."""
    needs: tuple[str, ...] = ()
    """Packages without which it is skipped."""
    before: int = 37
    after: int = 150
    """Steps before the state is taken and after it is loaded."""
    num_envs: int = 3

    def missing(self):
        return [package for package in self.needs if importlib.util.find_spec(package) is None]


class Film(gymnasium.Env):
    """Pictures of noise, in episodes of 3 to 9 steps; saves and restores itself."""

    observation_space = spaces.Box(0, 255, (6, 5, 3), np.uint8)
    action_space = spaces.Discrete(2)
    metadata = {"render_modes": ["rgb_array"], "render_fps": 10}

    def __init__(self, render_mode=None):
        self.render_mode = render_mode

    def reset(self, *, seed=None, options=None):
        super().reset(seed=seed)
        self.rng = self.np_random  # another name for it
        self.left, self.total = int(self.rng.integers(3, 10)), np.float32(0)
        return self._draw(), {}

    def step(self, action):
        self.left, self.total = self.left - 1, self.total + np.float32(0.1) * action
        return self._draw(), float(self.total), self.left == 0, False, {}

    def _draw(self):
        self.picture = self.rng.integers(0, 256, (6, 5, 3), np.uint8)
        return self.picture.copy()

    def render(self):
        return self.picture[::-1]

    def state_dict(self):
        return {"left": self.left, "total": self.total, "picture": self.picture}

    def load_state_dict(self, state):
        self.left, self.total, self.picture = state["left"], state["total"], state["picture"]
        self.rng = self.np_random
        self.rng.normal()  # what it draws here doesn't count


class Doubled(gymnasium.RewardWrapper):
    """Pays more at every step of the whole run; saves and restores itself."""

    def __init__(self, env):
        super().__init__(env)
        self.factor = 1.0

    def reward(self, reward):
        self.factor *= 1.01
        return float(reward) * self.factor

    def state_dict(self):
        return {"factor": self.factor}

    def load_state_dict(self, state):
        self.factor = state["factor"]


gymnasium.register("Film-v0", "tests.stateful:Film")


def same(value):
    return value


def finite(obs):
    """The direction is infinite where the goal is straight above."""
    return {**obs, "goal_direction": np.clip(obs["goal_direction"], -9, 9)}


def wrap(name, /, *args, **kwargs):
    """One wrapper of Gymnasium's; None where this version has no such."""
    kind = getattr(wrappers, name, None)
    return kind and functools.partial(_wrap, kind, args, kwargs)


def _wrap(kind, args, kwargs, env):
    return kind(env, *args, **kwargs)


def wrap_minigrid(name, /, *args, **kwargs):
    """One wrapper of MiniGrid's, which is imported where it is used."""
    return functools.partial(_wrap_minigrid, name, args, kwargs)


def _wrap_minigrid(name, args, kwargs, env):
    return getattr(importlib.import_module("minigrid.wrappers"), name)(env, *args, **kwargs)


def limit(steps):
    return wrap("TimeLimit", steps)


def case(name, id, *wrapping, proves="", mode=None, vectorization="sync", kwargs=None, **more):
    """Nothing where this version of Gymnasium has no such wrapper."""
    if None in wrapping:
        return []
    factory = GymnasiumEnv(id, vectorization, kwargs, list(wrapping))
    make = factory.make if mode is None else functools.partial(_make_in_mode, factory, mode)
    return [Simulator(name, factory, make, tuple(_full(short) for short in proves.split()), **more)]


def noisy(env):
    return NoisyObservation(env, 0.3)


def select(env):
    return SelectObservation(env, [2, 0])


def _make_in_mode(factory, mode, seeds):
    return factory._adapt(seeds, lambda: factory._make_sync(len(seeds), {}, mode))


def _full(short):
    """``cartpole:CartPoleEnv`` for the one key of CODECS that ends so; such keys may be of other versions' classes."""
    (key,) = [key for key in CODECS if key.endswith(f".{short}")]
    return key


def newest(name):
    """The id of a name's newest version: Gymnasium's releases differ."""
    return max((id for id in gymnasium.registry if id.startswith(f"{name}-v")), key=lambda id: int(id.split("-v")[1]))


def minigrid(id, *wrapping, name="", proves="", **kwargs):
    """In episodes of at most twelve steps."""
    kwargs = {"max_steps": 12, **kwargs}
    sizes = {"before": 19, "after": 30, "num_envs": 2}
    return case(f"MiniGrid {name or id}", f"minigrid:MiniGrid-{id}", *wrapping, proves=proves, kwargs=kwargs,
                needs=("minigrid",), **sizes)  # fmt: skip


IMAGE, TEXTLESS = wrap_minigrid("ImgObsWrapper"), wrap("FilterObservation", ["image", "direction"])

MINIGRIDS = {
    "BlockedUnlockPickup-v0": "blockedunlockpickup:BlockedUnlockPickupEnv",
    "DistShift1-v0": "distshift:DistShiftEnv",
    "DoorKey-5x5-v0": "doorkey:DoorKeyEnv",
    "Dynamic-Obstacles-Random-6x6-v0": "dynamicobstacles:DynamicObstaclesEnv",
    "Empty-Random-5x5-v0": "empty:EmptyEnv",
    "Fetch-5x5-N2-v0": "fetch:FetchEnv",
    "FourRooms-v0": "fourrooms:FourRoomsEnv",
    "GoToDoor-5x5-v0": "gotodoor:GoToDoorEnv",
    "GoToObject-6x6-N2-v0": "gotoobject:GoToObjectEnv",
    "KeyCorridorS3R2-v0": "keycorridor:KeyCorridorEnv",
    "LavaCrossingS9N2-v0": "crossing:CrossingEnv",
    "LavaGapS5-v0": "lavagap:LavaGapEnv",
    "LockedRoom-v0": "lockedroom:LockedRoomEnv",
    "MemoryS13Random-v0": "memory:MemoryEnv",
    "MultiRoom-N2-S4-v0": "multiroom:MultiRoomEnv",
    "ObstructedMaze-1Dlhb-v0": "obstructedmaze:ObstructedMaze_1Dlhb",
    "ObstructedMaze-2Dlhb-v0": "obstructedmaze:ObstructedMaze_Full",
    "ObstructedMaze-2Dlhb-v1": "obstructedmaze_v1:ObstructedMaze_Full_V1",
    "Playground-v0": "playground:PlaygroundEnv",
    "PutNear-6x6-N2-v0": "putnear:PutNearEnv",
    "RedBlueDoors-6x6-v0": "redbluedoors:RedBlueDoorEnv",
    "SimpleCrossingS9N3-v0": "wrappers:ImgObsWrapper",
    "Unlock-v0": "unlock:UnlockEnv",
    "UnlockPickup-v0": "unlockpickup:UnlockPickupEnv",
}

MUJOCOS = {
    "Ant": "ant_v5:AntEnv",
    "HalfCheetah": "half_cheetah_v5:HalfCheetahEnv",
    "Hopper": "hopper_v5:HopperEnv",
    "Humanoid": "humanoid_v5:HumanoidEnv",
    "HumanoidStandup": "humanoidstandup_v5:HumanoidStandupEnv",
    "InvertedDoublePendulum": "inverted_double_pendulum_v5:InvertedDoublePendulumEnv",
    "InvertedPendulum": "inverted_pendulum_v5:InvertedPendulumEnv",
    "Pusher": "pusher_v5:PusherEnv",
    "Reacher": "reacher_v5:ReacherEnv",
    "Swimmer": "swimmer_v5:SwimmerEnv",
    "Walker2d": "walker2d_v5:Walker2dEnv",
}


def mujoco(name, *wrapping, title="", **settings):
    """In episodes of at most thirty steps."""
    sizes = {"before": 40, "after": 40, "num_envs": 2}
    return case(f"MuJoCo {name}{title}", f"{name}-v5", limit(30), *wrapping, needs=("mujoco",), **sizes, **settings)


def atari(game, title="", proves="", mode=None, **settings):
    """An Atari game of small pictures, whose start takes few frames."""
    factory = AtariEnv(f"ALE/{game}-v5", **{"screen_size": 20, "noop_max": 5} | settings)
    make = factory.make if mode is None else lambda seeds: _make_in_mode(factory._games(), mode, seeds)
    keys = tuple(_full(short) for short in proves.split())
    sizes = {"before": 60, "after": 70, "num_envs": 2}
    return [Simulator(f"Atari {game}{title}", factory, make, keys, ("ale_py", "cv2"), **sizes)]


CHECKS = "common:PassiveEnvChecker common:OrderEnforcing common:TimeLimit restart:Restarting"
BOX2D = {"needs": ("Box2D", "pygame"), "num_envs": 2}
OBS, ACT = "transform_observation", "transform_action"

CARTPOLE = gymnasium.spec("CartPole-v1").make()
CARTPOLE_AGENTS = [
    policy_of(network, 1, CARTPOLE.observation_space, CARTPOLE.action_space) for network in (SmallGRU, TINY)
]

SIMULATORS = [
    # environments
    *case("CartPole", "CartPole-v1", proves=f"{CHECKS} cartpole:CartPoleEnv"),
    *case("CartPole sutton", "CartPole-v1", limit(12), kwargs={"sutton_barto_reward": True}),
    *case("CartPole async", "CartPole-v1", vectorization="async", num_envs=2),
    *case("CartPole next step", "CartPole-v1", mode=AutoresetMode.NEXT_STEP),
    *case(
        "CartPole vector",
        "CartPole-v1",
        vectorization="vector_entry_point",
        kwargs={"max_episode_steps": 20},
        proves="cartpole:CartPoleVectorEnv",
    ),
    *case("MountainCar", "MountainCar-v0", limit(30), proves="mountain_car:MountainCarEnv"),
    *case(
        "MountainCarContinuous",
        "MountainCarContinuous-v0",
        limit(30),
        proves="continuous_mountain_car:Continuous_MountainCarEnv",
    ),
    *case("Acrobot", "Acrobot-v1", limit(30), proves="acrobot:AcrobotEnv"),
    *case("Pendulum", "Pendulum-v1", limit(30), proves="pendulum:PendulumEnv"),
    *case("Pendulum next step", "Pendulum-v1", limit(5), mode=AutoresetMode.NEXT_STEP),
    *case("FrozenLake", "FrozenLake-v1", proves="frozen_lake:FrozenLakeEnv"),
    *case(
        "CliffWalking",
        newest("CliffWalking"),
        limit(25),
        kwargs={"is_slippery": True},
        proves="cliffwalking:CliffWalkingEnv",
    ),
    *case("Taxi", newest("Taxi"), limit(25), proves="taxi:TaxiEnv"),
    *case("Taxi async", newest("Taxi"), limit(25), vectorization="async", num_envs=2),
    *case("Taxi masked", newest("Taxi"), limit(25), ActionMaskWrapper, proves="wrappers:ActionMaskWrapper"),
    *case("Taxi masked async", newest("Taxi"), ActionMaskWrapper, limit(25), vectorization="async", num_envs=2),
    *case(
        "Blackjack",
        "Blackjack-v1",
        wrap("FlattenObservation"),
        proves=f"blackjack:BlackjackEnv {OBS}:FlattenObservation",
    ),
    *case("Doors", "ppo_lightning.envs.toys:Doors-v0", kwargs={"hint": "first", "length": 5}, proves="toys:Doors"),
    *case("Chain", "ppo_lightning.envs.toys:Chain-v0", kwargs={"length": 5, "num_actions": 2}, proves="toys:Chain"),
    # wrappers
    *case(
        "FrameStackObservation",
        "CartPole-v1",
        wrap("FrameStackObservation", 4),
        proves="stateful_observation:FrameStackObservation",
    ),
    *case("FrameStackObservation zero", "Film-v0", wrap("FrameStackObservation", 3, padding_type="zero")),
    *case(
        "DelayObservation", "CartPole-v1", wrap("DelayObservation", 3), proves="stateful_observation:DelayObservation"
    ),
    *case(
        "TimeAwareObservation",
        "CartPole-v1",
        wrap("TimeAwareObservation"),
        proves="stateful_observation:TimeAwareObservation",
    ),
    *case(
        "FilterObservation",
        "CartPole-v1",
        wrap("TimeAwareObservation", flatten=False),
        wrap("FilterObservation", ["time"]),
        proves=f"{OBS}:FilterObservation",
    ),
    *case(
        "NormalizeObservation",
        "CartPole-v1",
        wrap("NormalizeObservation"),
        proves="stateful_observation:NormalizeObservation",
    ),
    *case(
        "MaxAndSkipObservation",
        "CartPole-v1",
        wrap("MaxAndSkipObservation", 3),
        proves="stateful_observation:MaxAndSkipObservation",
    ),
    *case(
        "NormalizeReward", "Pendulum-v1", limit(9), wrap("NormalizeReward"), proves="stateful_reward:NormalizeReward"
    ),
    *case("NoisyObservation", "Pendulum-v1", limit(9), noisy, proves="wrappers:NoisyObservation"),
    *case("SelectObservation", "CartPole-v1", limit(9), select, proves="wrappers:SelectObservation"),
    *case("NoisyObservation of LunarLander", "LunarLander-v3", noisy, before=100, after=250, **BOX2D),
    *case("StickyAction", "CartPole-v1", wrap("StickyAction", 0.5, (2, 4)), proves="stateful_action:StickyAction"),
    *case("RepeatAction", "CartPole-v1", wrap("RepeatAction", 2), proves="stateful_action:RepeatAction"),
    *case(
        "RecordEpisodeStatistics",
        "CartPole-v1",
        wrap("RecordEpisodeStatistics", buffer_length=3),
        proves="common:RecordEpisodeStatistics",
    ),
    *case("Autoreset", "CartPole-v1", wrap("Autoreset"), proves="common:Autoreset"),
    *case("RescaleAction", "Pendulum-v1", limit(9), wrap("RescaleAction", -1, 1), proves=f"{ACT}:RescaleAction"),
    *case("ClipAction", "Pendulum-v1", limit(9), wrap("ClipAction"), proves=f"{ACT}:ClipAction"),
    *case("DiscretizeAction", "Pendulum-v1", limit(9), wrap("DiscretizeAction", 3), proves=f"{ACT}:DiscretizeAction"),
    *case(
        "TransformAction",
        "CartPole-v1",
        wrap("TransformAction", same, spaces.Discrete(2)),
        proves=f"{ACT}:TransformAction",
    ),
    *case("ClipReward", "Pendulum-v1", limit(9), wrap("ClipReward", -1, 0), proves="transform_reward:ClipReward"),
    *case(
        "TransformReward", "CartPole-v1", wrap("TransformReward", np.float32), proves="transform_reward:TransformReward"
    ),
    *case(
        "TransformObservation",
        "Film-v0",
        wrap("TransformObservation", same, Film.observation_space),
        proves=f"{OBS}:TransformObservation",
    ),
    *case("GrayscaleObservation", "Film-v0", wrap("GrayscaleObservation"), proves=f"{OBS}:GrayscaleObservation"),
    *case(
        "ResizeObservation",
        "Film-v0",
        wrap("ResizeObservation", (4, 4)),
        proves=f"{OBS}:ResizeObservation",
        needs=("cv2",),
    ),
    *case("ReshapeObservation", "Film-v0", wrap("ReshapeObservation", (90,)), proves=f"{OBS}:ReshapeObservation"),
    *case(
        "RescaleObservation",
        "MountainCar-v0",
        limit(9),
        wrap("RescaleObservation", 0, 1),
        proves=f"{OBS}:RescaleObservation",
    ),
    *case("DtypeObservation", "Film-v0", wrap("DtypeObservation", np.float32), proves=f"{OBS}:DtypeObservation"),
    *case(
        "DiscretizeObservation",
        "MountainCar-v0",
        limit(9),
        wrap("DiscretizeObservation", 5),
        proves=f"{OBS}:DiscretizeObservation",
    ),
    *case(
        "AddRenderObservation",
        "Film-v0",
        wrap("AddRenderObservation"),
        kwargs={"render_mode": "rgb_array"},
        proves=f"{OBS}:AddRenderObservation",
    ),
    # a user's own
    *case("own methods", "Film-v0", Doubled),
    *case("own methods async", "Film-v0", Doubled, vectorization="async", num_envs=2),
    # several at once
    *case(
        "many wrappers",
        "CartPole-v1",
        wrap("StickyAction", 0.3),
        wrap("NormalizeObservation"),
        wrap("FrameStackObservation", 2),
        limit(11),
        wrap("RecordEpisodeStatistics"),
        wrap("NormalizeReward"),
        mode=AutoresetMode.NEXT_STEP,
    ),
    # agents that act in it
    *(
        Simulator(f"coordinated CartPole{name}", factory, factory.make, (), before=20, after=30)
        for name, settings in {"": {}, " at temperature 0": {"temperature": 0, "both_act": True}}.items()
        for factory in [CoordinationEnv("CartPole-v1", *CARTPOLE_AGENTS, 0.4, 0.2, 0.5, **settings)]
    ),
    # played again
    *case("LunarLander", "LunarLander-v3", proves="lunar_lander:LunarLander", before=190, after=400, **BOX2D),
    *case(
        "LunarLander windy",
        "LunarLander-v3",
        kwargs={"enable_wind": True, "continuous": True},
        before=190,
        after=400,
        **BOX2D,
    ),
    *case("LunarLander sticky", "LunarLander-v3", wrap("StickyAction", 0.3), before=190, after=300, **BOX2D),
    *case(
        "BipedalWalker sticky", "BipedalWalker-v3", wrap("StickyAction", 0.3), limit(90), before=100, after=200, **BOX2D
    ),
    *case("LunarLander async", "LunarLander-v3", vectorization="async", before=60, **BOX2D),
    *case("LunarLander next step", "LunarLander-v3", mode=AutoresetMode.NEXT_STEP, before=100, after=250, **BOX2D),
    *case(
        "BipedalWalker",
        "BipedalWalker-v3",
        limit(90),
        proves="bipedal_walker:BipedalWalker",
        before=200,
        after=400,
        **BOX2D,
    ),
    *case(
        "BipedalWalker hardcore",
        "BipedalWalker-v3",
        limit(90),
        kwargs={"hardcore": True},
        before=200,
        after=400,
        **BOX2D,
    ),
    *case(
        "CarRacing",
        "CarRacing-v3",
        limit(8),
        proves="car_racing:CarRacing",
        before=11,
        after=14,
        needs=("Box2D", "pygame"),
        num_envs=1,
    ),
    *(one for name, proves in MUJOCOS.items() for one in mujoco(name, proves=proves)),
    *mujoco("Humanoid", title=" async", vectorization="async"),
    *mujoco("Hopper", wrap("StickyAction", 0.3), title=" next step", mode=AutoresetMode.NEXT_STEP),
    *(one for id, proves in MINIGRIDS.items() for one in minigrid(id, IMAGE, proves=proves)),
    *minigrid(
        "Dynamic-Obstacles-8x8-v0",
        # these two draw from the environment's generator between its own draws
        wrap_minigrid("StochasticActionWrapper", prob=0.6),
        wrap("StickyAction", 0.5),
        wrap_minigrid("NoDeath", no_death_types=("ball",)),
        IMAGE,
        name="stochastic actions",
        proves="wrappers:StochasticActionWrapper wrappers:NoDeath",
    ),
    *minigrid(
        "Empty-Random-6x6-v0",
        wrap_minigrid("ReseedWrapper", seeds=(3, 4, 5)),
        wrap_minigrid("ActionBonus"),
        wrap_minigrid("PositionBonus", scale=0.5),
        wrap_minigrid("FlatObsWrapper"),
        name="bonuses",
        proves="wrappers:ReseedWrapper wrappers:ActionBonus wrappers:PositionBonus wrappers:FlatObsWrapper",
    ),
    *minigrid(
        "LavaCrossingS9N1-v0",
        wrap_minigrid("ViewSizeWrapper", agent_view_size=5),
        wrap_minigrid("OneHotPartialObsWrapper"),
        wrap_minigrid("DictObservationSpaceWrapper"),
        TEXTLESS,
        name="one-hot",
        proves="wrappers:ViewSizeWrapper wrappers:OneHotPartialObsWrapper wrappers:DictObservationSpaceWrapper",
    ),
    *minigrid(
        "FourRooms-v0",
        wrap_minigrid("FullyObsWrapper"),
        wrap_minigrid("DirectionObsWrapper"),
        wrap("FilterObservation", ["image", "goal_direction"]),
        wrap("TransformObservation", finite, None),
        name="goal's direction",
        proves="wrappers:FullyObsWrapper wrappers:DirectionObsWrapper",
    ),
    *minigrid(
        "DoorKey-5x5-v0",
        wrap_minigrid("SymbolicObsWrapper"),
        IMAGE,
        name="symbolic",
        proves="wrappers:SymbolicObsWrapper",
    ),
    *minigrid(
        "DoorKey-5x5-v0", wrap_minigrid("RGBImgObsWrapper"), IMAGE, name="picture", proves="wrappers:RGBImgObsWrapper"
    ),
    *minigrid(
        "DoorKey-5x5-v0",
        wrap_minigrid("RGBImgPartialObsWrapper"),
        IMAGE,
        name="picture of the view",
        proves="wrappers:RGBImgPartialObsWrapper",
    ),
    *atari(
        "Breakout",
        proves="env:AtariEnv atari_preprocessing:AtariPreprocessing wrappers:EpisodicLife wrappers:FireReset "
        "wrappers:ReportedReward",
    ),
    *atari("Breakout", " sticky async", repeat_action_probability=0.5, vectorization="async"),
    *atari("Breakout", " next step", mode=AutoresetMode.NEXT_STEP),
    *atari("Pong", " with a limit", max_num_frames=99, frame_skip=1, frame_stack=1),
    *atari(
        "Qbert",
        " of whole games",
        episodic_life=False,
        fire_reset=False,
        clip_rewards=False,
        noop_max=0,
        max_num_frames=199,
    ),
    *(
        Simulator(f"Procgen {game}", factory, factory.make, (), needs=("procgen",), before=90, after=300)
        for game in ("coinrun", "starpilot", "bigfish")
        for factory in [ProcgenEnv(game, "easy", num_levels=5, num_threads=1)]
    ),
]

_TINY = [
    "--data.num_envs=4",
    "--data.num_steps=12",
    "--data.num_minibatches=2",
    "--data.update_epochs=3",
    "--model.learning_rate=0.02",
]

_COORDINATOR = [
    "--data.env=tests.ranks.tasks.Coordinated",
    "--data.env.id=tests.coordination:Bonus-v0",
    "--model.network=CoordPPOModel",
    "--model.network.encoder=MLPEncoder",
    "--model.network.feature_type=obs_hidden_dist",
]

AGENTS = {
    # name: (the class that it is, flags of a run in float64 that exercises it)
    "PPO": ("PPO", ["--model.norm_adv=true", "--model.log_action_id=1"]),
    "PPO in chunks": (
        "PPO",
        [
            "--data.env=tests.ranks.tasks.NextStep",
            "--model.chunk_size=5",
            "--model.norm_adv=true",
            "--model.network.shared=true",
        ],
    ),
    "PPO of unequal ranks, stopped by KL": (
        "PPO",
        [
            "--data.env=tests.ranks.tasks.NextStep",
            "--data.env.id=tests.ranks.tasks:Hurry-v0",
            "--model.target_kl=4e-4",
            "--model.anneal_lr=true",
        ],
    ),
    "PPO with memory": (
        "PPO",
        [
            "--data.env=tests.ranks.tasks.NextStep",
            "--model.network=tests.runs.SmallGRU",
            "--model.norm_adv=true",
        ],
    ),
    "PPO with LSTMs and cut sequences": (
        "PPO",
        [
            "--data.env=tests.ranks.tasks.NextStep",
            "--data.sequence_length=4",
            "--model.network.core=LSTMCore",
            "--model.network.core.hidden_dim=6",
        ],
    ),
    "PPO of a coordinator with memory": (
        "PPO",
        [
            *_COORDINATOR,
            "--model.network.core=GRUCore",
            "--model.network.core.hidden_dim=6",
        ],
    ),
    "PPO with critic pretraining": (
        "PPO",
        ["--model.critic_pretrain_steps=300", "--trainer.accumulate_grad_batches=2", "--model.target_kl=1e-3"],
    ),
    "PPO of a coordinator": (
        "PPO",
        [
            *_COORDINATOR,
            "--model.log_action_id=1",
        ],
    ),
    "PPO of a Gaussian actor-critic": (
        "PPO",
        [
            "--data.env=tests.ranks.tasks.NextStep",
            "--data.env.id=tests.tasks:Reach-v0",
            "--model.network=PPOModel",
            "--model.network.encoder=MLPEncoder",
            "--model.network.encoder.in_keys=[noisy]",
            "--model.network.encoder.normalizer=ObservationNormalizer",
            "--model.network.critic_encoder=MLPEncoder",
            "--model.network.critic_encoder.normalizer=ObservationNormalizer",
            "--model.network.critic_encoder.normalizer.ema=0.7",
            "--model.network.rescale_actions=true",
            "--model.norm_adv=rollout",
            "--model.normalize_rewards=true",
            "--model.learning_rate=1e-3",
            "--model.critic_learning_rate=3e-3",
            "--model.critic_gradient_clip_val=0.1",
            "--model.adaptive_lr_kl=6e-5",
            "--model.max_clip_fraction=0.01",
            "--model.clip_coef=0.02",
            "--model.bounds_coef=10",
            "--model.l2c2_pairs={noisy: clean}",
        ],
    ),
    "PPO of a squashed Gaussian, with schedules and guard": (
        "PPO",
        [
            "--data.env.id=tests.tasks:Reach-v0",
            "--model.network=PPOModel",
            "--model.network.encoder=MLPEncoder",
            "--model.network.encoder.normalizer=ObservationNormalizer",
            "--model.network.std=state_dependent",
            "--model.network.squash=true",
            "--model.network.rescale_actions=true",
            "--model.norm_adv=ema",
            "--model.normalize_returns=true",
            "--model.norm_ema=0.5",
            "--model.final_clip_coef=0.1",
            "--model.final_ent_coef=0",
            "--model.gradient_guard=1.0",
            "--model.max_dropped_steps=60",
            "--trainer.accumulate_grad_batches=2",
        ],
    ),
    "PPO of continuous actions": (
        "PPO",
        ["--data.env.id=tests.tasks:Target-v0", "--model.norm_adv=false", "--model.clip_vloss=false"],
    ),
    "PPO of several discrete actions": (
        "PPO",
        ["--data.env.id=tests.tasks:Lock-v0", "--data.env.kwargs={actions: several}", "--model.target_kl=1e-2"],
    ),
    "PPO with memory and masks": (
        "PPO",
        [
            "--data.env=tests.ranks.tasks.NextStep",
            "--data.env.id=tests.tasks:Fork-v0",
            "--model.network=tests.agents.ForkGRU",
            "--data.max_env_restarts=0",
        ],
    ),
    "RND": (
        "RND",
        [
            "--model=RND",
            "--model.network=RNDModel",
            "--data.env=tests.ranks.tasks.NextStep",
            "--data.env.id=tests.ranks.tasks:Hurry-v0",
            "--model.novelty.hidden_sizes=[16]",
            "--model.novelty.output_dim=8",
            "--model.predictor_fraction=0.5",
            "--model.init_obs_steps=42",
            "--model.target_kl=1e-3",
            "--model.chunk_size=4",
        ],
    ),
    "RND with memory": (
        "RND",
        [
            "--model=RND",
            "--model.network=tests.agents.RewardingGRU",
            "--data.env=tests.ranks.tasks.NextStep",
            "--model.novelty.hidden_sizes=[16]",
            "--model.novelty.output_dim=8",
            "--model.returns=nstep",
            "--model.norm_adv=rollout",
        ],
    ),
    "RND with masks": (
        "RND",
        [
            "--model=RND",
            "--model.network=RNDModel",
            "--data.env=tests.ranks.tasks.NextStep",
            "--data.env.id=tests.tasks:Fork-v0",
            "--data.env.kwargs={actions: several}",
            "--data.max_env_restarts=0",
            "--model.novelty.hidden_sizes=[16]",
            "--model.novelty.output_dim=8",
            "--model.init_obs_steps=42",
        ],
    ),
    "DAAC": (
        "DAAC",
        [
            "--model=DAAC",
            "--model.network=DAACModel",
            "--data.env=tests.ranks.tasks.NextStep",
            "--data.env.id=tests.ranks.tasks:Hurry-v0",
            "--data.update_epochs=null",
            "--model.policy_epochs=2",
            "--model.value_epochs=3",
            "--model.chunk_size=4",
            "--model.critic_learning_rate=0.03",
            "--model.final_learning_rate=1e-3",
            "--model.lr_decay_steps=300",
            "--model.normalize_rewards=true",
            "--model.target_kl=1e-3",
            "--trainer.accumulate_grad_batches=2",
        ],
    ),
    "DAAC with memory": (
        "DAAC",
        [
            "--model=DAAC",
            "--model.network=DAACModel",
            "--model.network.core=GRUCore",
            "--model.network.core.hidden_dim=6",
            "--model.network.core.num_layers=2",
            "--data.env=tests.ranks.tasks.NextStep",
            "--data.update_epochs=null",
            "--data.sequence_length=6",
            "--model.value_epochs=2",
        ],
    ),
    "DAAC with masks by a method": (
        "DAAC",
        [
            "--model=DAAC",
            "--model.network=DAACModel",
            "--data.env.id=tests.tasks:Fork-v0",
            "--data.env.kwargs={actions: several, told: method}",
            "--data.env.wrappers=[{class_path: ppo_lightning.ActionMaskWrapper, init_args: {method: action_masks}}]",
            "--data.max_env_restarts=0",
            "--data.update_epochs=null",
        ],
    ),
    "PPO with LSTMs and masks": (
        "PPO",
        [
            "--data.env.id=ppo_lightning.envs.toys:Doors-v0",
            "--data.env.kwargs={hint: first, num_doors: 6, num_open: 2, length: 7}",
            "--data.sequence_length=6",
            "--model.network.core=LSTMCore",
            "--model.network.core.hidden_dim=6",
        ],
    ),
    "PPO of an Atari game": (
        "PPO",
        [
            "--data.env=AtariEnv",
            "--data.env.id=ALE/Breakout-v5",
            "--data.env.screen_size=36",
            "--data.env.noop_max=3",
            "--model.network.encoder=NatureCNN",
            "--model.network.encoder.hidden_dim=16",
            "--model.network.shared=true",
            "--evaluation.num_episodes=2",
            "--evaluation.max_num_steps=50",
        ],
    ),
    "PPO of binary actions": ("PPO", ["--data.env.id=tests.tasks:Lock-v0", "--data.env.kwargs={actions: binary}"]),
}
"""Every agent that the package exports, and every option of it that changes what ranks tell each other."""


def agent_flags(name):
    """A run of ten iterations on one rank with 4 environments, or on two with 2: add the two ranks' flags."""
    if "Atari" in name:
        pytest.importorskip("ale_py")
        pytest.importorskip("cv2")
    return [*WALK, *_TINY, "--data.total_timesteps=480", "--trainer.precision=64-true", *AGENTS[name][1]]
