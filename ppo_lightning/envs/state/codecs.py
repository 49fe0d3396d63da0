"""The table of what can be saved and restored.

A class is in it by its full name, so that nothing is imported for its sake, and exactly: a subclass may hold more.
Every entry has a case in ``tests/stateful.py``, which proves it.
"""

from __future__ import annotations

from ppo_lightning.envs.state.atari import AtariGame
from ppo_lightning.envs.state.fields import Codec, Fields
from ppo_lightning.envs.state.minigrid import MiniGridWorld
from ppo_lightning.envs.state.mujoco import MujocoWorld
from ppo_lightning.envs.state.replay import Replay, renew_car_racing_world, renew_walker_world

_RANDOM = ("_np_random", "_np_random_seed")

_PYGAME = frozenset({"screen", "clock", "surf", "isopen", "screen_width", "screen_height", "screen_dim"})


def _env(saved: str, fixed: str, optional: str = "") -> Fields:
    return Fields(
        saved=(*saved.split(), *_RANDOM), optional=tuple(optional.split()), fixed=_PYGAME | frozenset(fixed.split())
    )


def _wrapper(saved: str = "", fixed: str = "", parts: tuple[tuple[str, Fields], ...] = ()) -> Fields:
    return Fields(saved=tuple(saved.split()), fixed=frozenset(fixed.split()), parts=parts)


_CART_POLE = (
    "_sutton_barto_reward gravity masscart masspole total_mass length polemass_length force_mag tau "
    "kinematics_integrator theta_threshold_radians x_threshold"
)
_STATISTICS = Fields(saved=("mean", "var", "count"))

_CLASSIC_CONTROL = {
    "cartpole:CartPoleEnv": _env("state steps_beyond_terminated", _CART_POLE),
    "cartpole:CartPoleVectorEnv": _env(
        "state steps prev_done steps_beyond_terminated low high",
        f"{_CART_POLE} max_episode_steps num_envs single_action_space single_observation_space screens",
    ),
    "mountain_car:MountainCarEnv": _env(
        "state", "min_position max_position max_speed goal_position goal_velocity force gravity low high"
    ),
    "continuous_mountain_car:Continuous_MountainCarEnv": _env(
        "state",
        "min_action max_action min_position max_position max_speed goal_position goal_velocity power low_state "
        "high_state",
    ),
    "acrobot:AcrobotEnv": _env("state", ""),
    "pendulum:PendulumEnv": _env("state last_u", "max_speed max_torque dt g m l"),
}

_TOY_TEXT = {
    "frozen_lake:FrozenLakeEnv": _env(
        "s lastaction",
        "desc nrow ncol reward_range initial_state_distrib P window_size cell_size window_surface hole_img "
        "cracked_hole_img ice_img ice_crack_imgs elf_images agent_img goal_img goal_flag_img start_img letter_s_img "
        "letter_g_img",
    ),
    "cliffwalking:CliffWalkingEnv": _env(
        "s lastaction",
        "shape start_state_index nS nA is_slippery _cliff P initial_state_distrib cell_size window_size window_surface "
        "elf_images agent_img start_img goal_img goal_flag_img cliff_img cliff_imgs mountain_bg_img near_cliff_img "
        "tree_img ground_img",
    ),
    "taxi:TaxiEnv": _env(
        "s lastaction taxi_orientation",
        "desc locs locs_colors max_row max_col initial_state_distrib P fickle_passenger fickle_probability "
        "rainy_probability _rainy_lateral_probability cell_size window taxi_imgs taxi_full_imgs passenger_img "
        "destination_img house_img median_horiz median_vert background_img",
        optional="fickle_step",
    ),
    "blackjack:BlackjackEnv": _env(
        "dealer player dealer_top_card_suit dealer_top_card_value_str", "natural sab"
    ),
}  # fmt: skip

# their worlds can't be read out: the running episode is played again instead
_BOX2D = {
    "lunar_lander:LunarLander": Replay(),
    "bipedal_walker:BipedalWalker": Replay(renew_walker_world),
    "car_racing:CarRacing": Replay(renew_car_racing_world),
}

_MUJOCO = dict.fromkeys((
    "ant_v5:AntEnv", "half_cheetah_v5:HalfCheetahEnv", "hopper_v5:HopperEnv", "humanoid_v5:HumanoidEnv",
    "humanoidstandup_v5:HumanoidStandupEnv", "inverted_double_pendulum_v5:InvertedDoublePendulumEnv",
    "inverted_pendulum_v5:InvertedPendulumEnv", "pusher_v5:PusherEnv", "reacher_v5:ReacherEnv",
    "swimmer_v5:SwimmerEnv", "walker2d_v5:Walker2dEnv",
), MujocoWorld())  # fmt: skip

_MINIGRID = dict.fromkeys((
    "blockedunlockpickup:BlockedUnlockPickupEnv", "crossing:CrossingEnv", "distshift:DistShiftEnv",
    "doorkey:DoorKeyEnv", "dynamicobstacles:DynamicObstaclesEnv", "empty:EmptyEnv", "fetch:FetchEnv",
    "fourrooms:FourRoomsEnv", "gotodoor:GoToDoorEnv", "gotoobject:GoToObjectEnv", "keycorridor:KeyCorridorEnv",
    "lavagap:LavaGapEnv", "lockedroom:LockedRoomEnv", "memory:MemoryEnv", "multiroom:MultiRoomEnv",
    "obstructedmaze:ObstructedMaze_1Dlhb", "obstructedmaze:ObstructedMaze_Full",
    "obstructedmaze_v1:ObstructedMaze_Full_V1", "playground:PlaygroundEnv", "putnear:PutNearEnv",
    "redbluedoors:RedBlueDoorEnv", "unlock:UnlockEnv", "unlockpickup:UnlockPickupEnv",
), MiniGridWorld())  # fmt: skip

_MINIGRID_WRAPPERS = {
    "ImgObsWrapper": _wrapper(),
    "FullyObsWrapper": _wrapper(),
    "SymbolicObsWrapper": _wrapper(),
    "OneHotPartialObsWrapper": _wrapper("", "tile_size"),
    "RGBImgObsWrapper": _wrapper("", "tile_size"),
    "RGBImgPartialObsWrapper": _wrapper("", "tile_size"),
    "ViewSizeWrapper": _wrapper("", "agent_view_size"),
    "DictObservationSpaceWrapper": _wrapper("", "max_words_in_mission word_dict"),
    # the mission's letters are worked out anew where the mission is another than the cached one
    "FlatObsWrapper": _wrapper("", "maxStrLen numCharCodes cachedStr cachedArray"),
    "DirectionObsWrapper": _wrapper("goal_position", "type"),
    "ReseedWrapper": _wrapper("seed_idx", "seeds"),
    "ActionBonus": _wrapper("counts"),
    "PositionBonus": _wrapper("counts", "scale"),
    "NoDeath": _wrapper("", "death_cost no_death_types"),
    "StochasticActionWrapper": _wrapper("", "prob random_action"),
}

_OWN_WRAPPERS = {
    "NoisyObservation": _wrapper("", "std"),
    "SelectObservation": _wrapper("", "indices"),
    "ActionMaskWrapper": _wrapper("", "info_key method sizes"),
    "EpisodicLife": _wrapper("_lives _goes_on", "first_action"),
    "FireReset": _wrapper("", "action"),
    "ReportedReward": _wrapper(),
}

_WRAPPERS = {
    # lives and game_over are of the last step, the second buffer may be of an older one
    "atari_preprocessing:AtariPreprocessing": _wrapper(
        "obs_buffer lives game_over",
        "noop_max frame_skip screen_size terminal_on_life_loss grayscale_obs grayscale_newaxis scale_obs",
    ),
    # checks only, which a fresh one makes anew
    "common:PassiveEnvChecker": _wrapper(
        "", "checked_reset checked_step checked_render close_called checked_data_reuse _previous_data"
    ),
    "common:OrderEnforcing": _wrapper("_has_reset", "_disable_render_order_enforcing"),
    "common:TimeLimit": _wrapper("_elapsed_steps", "_max_episode_steps"),
    "common:Autoreset": _wrapper("autoreset"),
    # episode_start_time is on a clock of the process that ended: the running episode's time counts from the restore
    "common:RecordEpisodeStatistics": _wrapper(
        "episode_count episode_returns episode_lengths time_queue return_queue length_queue",
        "_stats_key episode_start_time",
    ),
    "stateful_observation:DelayObservation": _wrapper("observation_queue", "delay"),
    "stateful_observation:TimeAwareObservation": _wrapper(
        "timesteps",
        "flatten normalize_time max_timesteps _time_preprocess_func _append_data_func _obs_postprocess_func",
    ),
    # stacked_obs is written over as a whole before it is read
    "stateful_observation:FrameStackObservation": _wrapper(
        "obs_queue padding_value", "stack_size padding_type stacked_obs"
    ),
    "stateful_observation:NormalizeObservation": _wrapper(
        "_update_running_mean", "epsilon", parts=(("obs_rms", _STATISTICS),)
    ),
    # an episode that ends before the last two frames leaves the last one's in the buffer
    "stateful_observation:MaxAndSkipObservation": _wrapper("_obs_buffer", "_skip"),
    "stateful_reward:NormalizeReward": _wrapper(
        "_update_running_mean discounted_reward", "gamma epsilon", parts=(("return_rms", _STATISTICS),)
    ),
    "stateful_action:StickyAction": _wrapper(
        "last_action is_sticky_actions num_repeats repeats_taken",
        "repeat_action_probability repeat_action_duration_range",
    ),
    "stateful_action:RepeatAction": _wrapper("", "num_repeats"),
    # a function given by the user is taken to hold no state
    "transform_action:TransformAction": _wrapper("", "func"),
    "transform_action:ClipAction": _wrapper("", "func"),
    "transform_action:RescaleAction": _wrapper("", "func"),
    "transform_action:DiscretizeAction": _wrapper("", "low high n_dims multidiscrete bins bin_centers"),
    "transform_reward:TransformReward": _wrapper("", "func"),
    "transform_reward:ClipReward": _wrapper("", "func"),
    "transform_observation:TransformObservation": _wrapper("", "func"),
    "transform_observation:FilterObservation": _wrapper("", "func filter_keys"),
    "transform_observation:FlattenObservation": _wrapper("", "func"),
    "transform_observation:GrayscaleObservation": _wrapper("", "func keep_dim"),
    "transform_observation:ResizeObservation": _wrapper("", "func shape cv2_shape"),
    "transform_observation:ReshapeObservation": _wrapper("", "func shape"),
    "transform_observation:RescaleObservation": _wrapper("", "func"),
    "transform_observation:DtypeObservation": _wrapper("", "func dtype"),
    "transform_observation:AddRenderObservation": _wrapper("", "func"),
    "transform_observation:DiscretizeObservation": _wrapper("", "low high n_dims multidiscrete bins bin_edges"),
}

CODECS: dict[str, Codec] = {
    **{f"gymnasium.envs.classic_control.{name}": codec for name, codec in _CLASSIC_CONTROL.items()},
    **{f"gymnasium.envs.toy_text.{name}": codec for name, codec in _TOY_TEXT.items()},
    **{f"gymnasium.envs.box2d.{name}": codec for name, codec in _BOX2D.items()},
    **{f"gymnasium.envs.mujoco.{name}": codec for name, codec in _MUJOCO.items()},
    **{f"gymnasium.wrappers.{name}": codec for name, codec in _WRAPPERS.items()},
    **{f"minigrid.envs.{name}": codec for name, codec in _MINIGRID.items()},
    **{f"minigrid.wrappers:{name}": codec for name, codec in _MINIGRID_WRAPPERS.items()},
    **{f"ppo_lightning.envs.wrappers:{name}": codec for name, codec in _OWN_WRAPPERS.items()},
    "ale_py.env:AtariEnv": AtariGame(),
    "ppo_lightning.envs.toys:Doors": _env("kind room is_open", "num_doors num_open length hint"),
    "ppo_lightning.envs.toys:Chain": _env("place", "length leads_on"),
    # the limit is told again, and whether it is open is its own
    "ppo_lightning.envs.restart:Restarting": _wrapper("first_seed restarts", "_make _is_open _limit"),
}
