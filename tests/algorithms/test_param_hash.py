import pytest
import torch
from torch import nn

from ppo_lightning.algorithms.ranks import parameter_hash
from tests.runs import Recorder, fit, make_data, make_ppo, make_trainer


def net():
    torch.manual_seed(0)
    network = nn.Sequential(nn.Linear(3, 2), nn.BatchNorm1d(2), nn.Linear(2, 1))
    network.register_parameter("scalar", nn.Parameter(torch.tensor(1.0)))
    return network


@pytest.mark.parametrize("name", list(net().state_dict()))
def test_one_bit_of_any_parameter_or_buffer_changes_the_hash(name):
    one, other, trainer = net(), net(), make_trainer()
    assert parameter_hash(trainer, one, 0) == parameter_hash(trainer, other, 0)
    tensor = other.state_dict()[name].view(-1)
    tensor[-1:].view(torch.uint8)[0] ^= 1
    assert parameter_hash(trainer, one, 0) != parameter_hash(trainer, other, 0)


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float64])
def test_any_dtype_has_a_hash_that_float32_holds_exactly(dtype):
    number = parameter_hash(make_trainer(), net().to(dtype), 0)
    assert 0 <= number < 2**24
    assert int(torch.tensor(float(number), dtype=torch.float32)) == number


def test_it_is_logged_on_request():
    recorder = Recorder()
    fit(make_ppo(log_param_hash=True), make_data(iterations=3), callbacks=[recorder])
    assert len({metrics["debug/param_hash"] for metrics in recorder.metrics}) == 3
    silent = Recorder()
    fit(callbacks=[silent])
    assert "debug/param_hash" not in silent.metrics[0]
