"""What an agent normalises by is a part of it: saved, loaded, and not to be swapped in a resumed run."""

import pytest
import torch

from ppo_lightning import PPO, ConfigurationError
from tests.runs import fit, make_data, make_ppo

TARGET = "tests.tasks:Target-v0"
FLAGS = {
    "normalize_rewards": ({"normalize_rewards": True}, r"--model\.normalize_rewards"),
    "normalize_returns": ({"normalize_returns": True}, r"--model\.normalize_returns"),
    "norm_adv": ({"norm_adv": "ema"}, r"--model\.norm_adv=ema"),
}


@pytest.fixture(params=FLAGS)
def case(request):
    return FLAGS[request.param]


def saved(**flags):
    ppo = fit(make_ppo(**flags), make_data(TARGET, iterations=2))
    ppo.trainer.save_checkpoint("a.ckpt")
    return {name: tensor.clone() for name, tensor in ppo.state_dict().items() if "_normalizer." in name}


def resume(**flags):
    return fit(make_ppo(**flags), make_data(TARGET, iterations=3), ckpt_path="a.ckpt")


def test_statistics_are_saved_and_loaded(case):
    flags, _ = case
    statistics = saved(**flags)
    assert len(statistics) >= 2
    assert all(tensor.isfinite() and tensor != 0 for tensor in statistics.values())
    loaded = PPO.load_from_checkpoint("a.ckpt").state_dict()
    assert all(torch.equal(loaded[name], tensor) for name, tensor in statistics.items())
    resumed = resume(**flags).state_dict()
    assert not any(torch.equal(resumed[name], tensor) for name, tensor in statistics.items())  # and learned on


def test_a_resumed_run_can_neither_begin_nor_end_to_normalise(case):
    flags, name = case
    sentence = rf"^{name} is set here or was set in the run of --ckpt_path, but not both, .*--init_from\.$"
    for before, after in (({}, flags), (flags, {})):
        saved(**before)
        with pytest.raises(ConfigurationError, match=sentence):
            resume(**after)


def test_what_has_no_statistics_may_change():
    saved(norm_adv="rollout")
    resume(norm_adv=False, bounds_coef=1.0, final_ent_coef=0.0)
