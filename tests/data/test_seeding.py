import torch
from hypothesis import given
from hypothesis import strategies as st

from ppo_lightning.data.seeding import Streams


def draws(generators):
    return [tuple(torch.rand(3, generator=generator).tolist()) for generator in generators]


def everything(streams, iteration):
    return [
        *draws(streams.action_generators(iteration)),
        *draws([streams.shuffle_generator(iteration)]),
        *draws(streams.eval_generators()),
        *draws(torch.Generator().manual_seed(seed) for seed in streams.env_seeds(iteration)),
        *draws(torch.Generator().manual_seed(seed) for seed in streams.eval_env_seeds()),
    ]


@given(st.integers(0, 2**32 - 1), st.integers(0, 100), st.integers(1, 4), st.integers(0, 10**6))
def test_ranks_draw_the_slices_of_one_large_rank(seed, first_env, num_envs, iteration):
    large = Streams(seed, first_env, 2 * num_envs)
    for rank in (0, 1):
        own = Streams(seed, first_env + rank * num_envs, num_envs)
        rows = slice(rank * num_envs, (rank + 1) * num_envs)
        assert own.env_seeds(iteration) == large.env_seeds(iteration)[rows]
        assert own.eval_env_seeds() == large.eval_env_seeds()[rows]
        assert draws(own.action_generators(iteration)) == draws(large.action_generators(iteration))[rows]
        assert draws(own.eval_generators()) == draws(large.eval_generators())[rows]


def test_no_two_environments_or_purposes_share_a_stream():
    streams = everything(Streams(1, 0, 8), iteration=0)
    assert len(set(streams)) == len(streams) == 4 * 8 + 1


def test_ranks_shuffle_differently():
    assert draws([Streams(1, 0, 4).shuffle_generator(0)]) != draws([Streams(1, 4, 4).shuffle_generator(0)])


def test_each_iteration_has_its_own_streams():
    streams = Streams(1, 0, 2)
    by_iteration = [draws([*streams.action_generators(k), streams.shuffle_generator(k)]) for k in range(20)]
    flat = [draw for iteration in by_iteration for draw in iteration]
    assert len(set(flat)) == len(flat)
    assert len({seed for k in range(20) for seed in streams.env_seeds(k)}) == 40


def test_evaluation_is_the_same_at_every_time():
    streams = Streams(1, 0, 2)
    assert streams.eval_env_seeds() == streams.eval_env_seeds()
    assert draws(streams.eval_generators()) == draws(streams.eval_generators())


def test_each_seed_of_a_run_has_its_own_streams():
    assert not set(everything(Streams(1, 0, 4), 3)) & set(everything(Streams(2, 0, 4), 3))


def test_a_stream_is_the_same_however_often_it_is_asked_for():
    streams = Streams(7, 3, 2)
    assert everything(streams, 5) == everything(Streams(7, 3, 2), 5)


@given(st.integers(0, 2**32 - 1), st.integers(0, 10**6))
def test_environment_seeds_fit_in_a_simulators_int32(seed, iteration):
    streams = Streams(seed, 0, 3)
    assert all(0 <= key < 2**31 for key in streams.env_seeds(iteration) + streams.eval_env_seeds())
