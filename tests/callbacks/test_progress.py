import pytest

from ppo_lightning import EnvStepProgressBar
from tests.runs import fit, make_data, make_ppo


def printed(capsys, **kwargs):
    fit(make_ppo(), make_data(**kwargs), callbacks=[EnvStepProgressBar()], enable_progress_bar=True)
    return capsys.readouterr().out


def test_the_line_ends_at_the_total_with_speed_return_and_time(capsys):
    last = printed(capsys, iterations=3).replace("\n", "\r").rstrip("\r").split("\r")[-1]
    assert "100%" in last
    assert "96.0/96.0 steps" in last
    assert "steps/s" in last
    assert "return " in last
    assert last.endswith("left")


def test_it_is_one_line(capsys):
    assert printed(capsys, iterations=3).strip("\n").count("\n") == 0


def test_a_rest_that_is_no_whole_rollout_is_not_played(capsys):
    assert "64.0/80.0 steps" in printed(capsys, total_timesteps=80)


def test_other_ranks_show_nothing(capsys):
    bar = EnvStepProgressBar()
    bar.disable()
    fit(callbacks=[bar], enable_progress_bar=True)
    assert "steps" not in capsys.readouterr().out


def test_an_exception_closes_the_line(capsys):
    bar = EnvStepProgressBar()
    data = make_data("tests.tasks:Broken-v0", max_env_restarts=0)
    data.env.kwargs = {"what": "crash", "after": 10}
    with pytest.raises(RuntimeError, match="crashed"):
        fit(data=data, callbacks=[bar], enable_progress_bar=True)
    assert bar._bar is None


def test_messages_are_printed_above_the_line(capsys):
    bar = EnvStepProgressBar()
    bar.print("a", 1)
    assert capsys.readouterr().out == "a 1\n"
