"""``ppo-lightning plot``: what is drawn, from the Axes."""

from pathlib import Path

import numpy as np
import pytest

from ppo_lightning import plot_runs
from tests.commands import WALK, rows, run
from tests.curves.files import config, returns, write_run

BAND = "± one standard deviation over seeds"


def lines(axis):
    """``{label: (x, y)}``."""
    return {line.get_label(): (line.get_xdata().tolist(), line.get_ydata().tolist()) for line in axis.get_lines()}


def bands(axis):
    """``[{x: (low, high)}]``."""
    found = []
    for collection in axis.collections:
        edges = {}
        for x, y in collection.get_paths()[0].vertices.tolist():
            edges.setdefault(x, []).append(y)
        found.append({x: (min(ys), max(ys)) for x, ys in edges.items()})
    return found


def legend(figure):
    return [text.get_text() for text in figure.legends[0].get_texts()]


def plot(*runs, **kwargs):
    return plot_runs(runs, **{"smooth": 0.0, **kwargs})


def test_two_trained_runs_become_a_picture():
    for seed in (1, 2):
        run("fit", *WALK, f"--seed_everything={seed}", "--evaluation.every_n_iterations=1")
    run("plot", "lightning_logs", "--out=curves.png")
    assert Path("curves.png").read_bytes().startswith(b"\x89PNG")
    (axis,) = plot("lightning_logs").axes
    assert axis.get_title() == "Walk-v0, 2 seeds"
    assert (axis.get_xlabel(), axis.get_ylabel()) == ("environment steps", "return")
    drawn = lines(axis)
    assert set(drawn) == {"rollout/return_mean", "eval/return_mean"}
    for name, (steps, mean) in drawn.items():
        seeds = [rows(Path(f"lightning_logs/version_{seed}"), name) for seed in (0, 1)]
        assert steps == [64, 128]
        assert mean == pytest.approx([(a + b) / 2 for (_, a), (_, b) in zip(*seeds)])


def test_mean_and_band_over_seeds():
    for seed, values in enumerate([(0, 10, 20), (2, 10, 40)]):
        write_run(f"logs/version_{seed}", returns(*values), config(seed=seed))
    figure = plot("logs")
    assert lines(figure.axes[0]) == {"rollout/return_mean": ([10, 20, 30], [1, 10, 30])}
    (band,) = bands(figure.axes[0])
    assert band[10] == pytest.approx((1 - 2**0.5, 1 + 2**0.5))
    assert band[20] == (10, 10)
    assert band[30] == pytest.approx((30 - 200**0.5, 30 + 200**0.5))
    assert legend(figure) == ["training", BAND]


def test_one_seed_has_no_band():
    figure = plot(write_run("run"))
    assert bands(figure.axes[0]) == []
    assert legend(figure) == ["training", "evaluation"]
    assert figure.axes[0].get_title() == "Walk-v0, 1 seed"


def test_smoothing_is_over_a_share_of_the_run_and_of_training_only():
    write_run("run", [{**row, "eval/return_mean": row["rollout/return_mean"]} for row in returns(0, 4, 8, 0)])
    figure = plot("run", smooth=0.5)
    drawn = lines(figure.axes[0])
    assert drawn["rollout/return_mean"] == ([10, 20, 30, 40], [0, 2, 6, 4])
    assert drawn["eval/return_mean"] == ([10, 20, 30, 40], [0, 4, 8, 0])
    assert legend(figure)[0] == "training (moving mean over 50 % of the run)"
    assert legend(plot_runs("run"))[0] == "training (moving mean over 2.5 % of the run)"
    assert legend(plot("run"))[0] == "training"


@pytest.mark.filterwarnings("ignore:.*a mean over seeds ends with the shortest")
def test_the_smoothing_window_is_the_same_for_all_seeds_of_a_curve():
    write_run("logs/version_0", returns(0, 4, 8, 12), config(seed=1))
    write_run("logs/version_1", returns(0, 8), config(seed=2))
    assert lines(plot("logs", smooth=0.5).axes[0])["rollout/return_mean"] == ([10, 20], [0, 3])  # (2 + 4) / 2


def test_environments_have_panels_and_configurations_colours():
    for number, settings in enumerate(
        [config(), config(learning_rate=0.1), config("Other-v0"), config("Other-v0", learning_rate=0.1)]
    ):
        write_run(f"logs/version_{number}", settings=settings)
    figure = plot("logs")
    first, second = figure.axes
    assert [axis.get_title() for axis in figure.axes] == ["Walk-v0, 1 seed", "Other-v0, 1 seed"]
    assert list(lines(first))[::2] == [f"learning_rate={rate}, rollout/return_mean" for rate in (0.001, 0.1)]
    colors = [[line.get_color() for line in axis.get_lines()] for axis in (first, second)]
    assert colors[0] == colors[1]
    assert colors[0][0] == colors[0][1] != colors[0][2] == colors[0][3]
    assert legend(figure) == ["learning_rate=0.001", "learning_rate=0.1", "training", "evaluation"]


def test_groups_of_other_sizes_say_theirs_in_the_legend():
    for number, settings in enumerate([config(seed=1), config(seed=2), config(gamma=0.5)]):
        write_run(f"logs/version_{number}", settings=settings)
    figure = plot("logs")
    assert figure.axes[0].get_title() == "Walk-v0"
    assert legend(figure)[:2] == ["gamma=0.99 (2 seeds)", "gamma=0.5 (1 seed)"]


def test_a_label_names_its_curve():
    write_run("a/version_0", returns(1, 1), config(gamma=0.5))
    write_run("a/version_1", returns(3, 3), config(gamma=0.6, seed=2))
    write_run("b", returns(7, 7))
    drawn = lines(plot("ours=a", "theirs=b").axes[0])
    assert drawn == {
        "ours (2 seeds), rollout/return_mean": ([10, 20], [2, 2]),
        "theirs (1 seed), rollout/return_mean": ([10, 20], [7, 7]),
    }


def test_a_fifth_environment_goes_below():
    for number in range(5):
        write_run(f"logs/version_{number}", settings=config(f"Env-v{number}"))
    figure = plot("logs")
    assert [axis.get_title() for axis in figure.axes] == [f"Env-v{number}, 1 seed" for number in range(5)]
    places = [axis.get_subplotspec() for axis in figure.axes]
    assert [(place.rowspan.start, place.colspan.start) for place in places] == [(0, 0), (0, 1), (0, 2), (0, 3), (1, 0)]


def test_each_metric_is_a_row_of_panels():
    for number, env in enumerate(["A-v0", "B-v0"]):
        write_run(f"logs/version_{number}", returns(1, 2, train_entropy=(5 + number, 6)), config(env))
    figure = plot("logs", metrics=["train/entropy", "rollout/return_mean"])
    assert [axis.get_ylabel() for axis in figure.axes] == ["train/entropy", "", "rollout/return_mean", ""]
    assert lines(figure.axes[1]) == {"train/entropy": ([10, 20], [6, 6])}
    assert lines(figure.axes[2]) == {"rollout/return_mean": ([10, 20], [1, 2])}


@pytest.mark.filterwarnings("ignore:.*is of 1 of 2 runs only")
def test_evaluation_splits_have_their_own_signs():
    write_run("run", [*returns(1, 2, eval_return_mean=(1, 1)), {"step": 20, "eval/unseen/return_mean": 4}])
    write_run("other", [*returns(1, 2), {"step": 20, "eval/seen/return_mean": 5}], config(seed=2))
    figure = plot("run", "other")
    assert legend(figure) == ["training", "evaluation", "evaluation (seen)", "evaluation (unseen)", BAND]
    evaluations = figure.axes[0].get_lines()[1:]
    assert [line.get_label() for line in evaluations] == [
        f"eval/{part}return_mean" for part in ("", "seen/", "unseen/")
    ]
    assert len({line.get_marker() for line in evaluations}) == 3
    assert len({line.get_linestyle() for line in figure.axes[0].get_lines()}) >= 2
    assert lines(figure.axes[0])["eval/unseen/return_mean"] == ([20], [4])


@pytest.mark.parametrize(
    ("seconds", "x", "label"),
    [
        ((10, 20, 40), [10, 20, 40, 30], "wall time (seconds)"),
        ((60, 120, 240), [1, 2, 4, 3], "wall time (minutes)"),
        ((3600, 7200, 14400), [1, 2, 4, 3], "wall time (hours)"),
    ],
)
def test_wall_time_of_an_evaluation_lies_between_iterations(seconds, x, label):
    write_run("run", [*returns(1, 2, 3, time_seconds=seconds), {"step": 25, "eval/return_mean": 9}])
    (axis,) = plot("run", x="time").axes
    assert lines(axis) == {"rollout/return_mean": (x[:3], [1, 2, 3]), "eval/return_mean": (x[3:], [9])}
    assert axis.get_xlabel() == label


def test_seeds_are_averaged_at_equal_wall_times():
    write_run("logs/version_0", returns(0, 10, 20, time_seconds=(10, 20, 30)), config(seed=1))
    write_run("logs/version_1", returns(0, 10, 20, time_seconds=(20, 40, 60)), config(seed=2))
    (axis,) = plot("logs", x="time").axes
    assert lines(axis)["rollout/return_mean"] == ([20, 30], [5, 12.5])


def test_a_mean_ends_with_its_shortest_run_and_a_warning_says_so():
    write_run("logs/version_0", returns(0, 10, 20, 30), config(seed=1))
    write_run("logs/version_1", returns(0, 20), config(seed=2))
    with pytest.warns(UserWarning, match=r"logs/version_1 ends at 20 .* logs/version_0, .* at 40: .* the shortest"):
        (axis,) = plot("logs").axes
    assert lines(axis)["rollout/return_mean"] == ([10, 20], [0, 15])


def test_a_metric_that_seeds_have_nowhere_together_is_left_out_with_a_warning():
    for seed, step in enumerate((10, 30)):
        write_run(f"logs/version_{seed}", [*returns(1, 2, 3), {"step": step, "eval/return_mean": 9}], config(seed=seed))
    with pytest.warns(UserWarning, match="eval/return_mean of logs/version_0 and 1 more is not drawn"):
        assert list(lines(plot("logs").axes[0])) == ["rollout/return_mean"]


def test_a_curve_that_is_of_fewer_seeds_than_the_others_says_so():
    write_run("logs/version_0", returns(1, 2, eval_return_mean=(4, 6)), config(seed=1))
    write_run("logs/version_1", returns(3, 4), config(seed=2))
    with pytest.warns(UserWarning, match="eval/return_mean is of 1 of 2 runs only: logs/version_1 has no value"):
        drawn = lines(plot("logs").axes[0])
    assert drawn == {"rollout/return_mean": ([10, 20], [2, 3]), "eval/return_mean": ([10, 20], [4, 6])}


def test_many_groups_have_many_colours():
    for number in range(12):
        write_run(f"logs/version_{number}", returns(1, 2), config(gamma=number / 12))
    assert len({line.get_color() for line in plot("logs").axes[0].get_lines()}) == 12


def test_steps_are_in_engineering_notation():
    write_run("run", returns(1, 2, spacing=500_000))
    figure = plot("run", out="curves.png")
    assert {"600k", "1M"} <= {tick.get_text() for tick in figure.axes[0].get_xticklabels()}


def test_the_legend_is_below_the_panels():
    write_run("run")
    figure = plot("run", out="curves.png")
    box = figure.legends[0].get_window_extent()
    assert box.y1 <= figure.axes[0].xaxis.label.get_window_extent().y0


@pytest.mark.parametrize("ending", ["png", "svg", "pdf"])
def test_the_same_runs_give_the_same_bytes_whatever_the_users_style(ending):
    write_run("run")
    plot("run", out=f"first.{ending}")
    import matplotlib

    with matplotlib.rc_context({"font.size": 30, "savefig.facecolor": "red"}):
        plot("run", out=f"folder/second.{ending}")
    assert Path(f"first.{ending}").read_bytes() == Path(f"folder/second.{ending}").read_bytes()


def test_help_names_every_option():
    out = run("plot", "--help").out
    assert all(word in out for word in ["RUNS", "LABEL=FOLDER", "--out", "--metric", "--x", "time", "--smooth"])
    assert len(out.splitlines()) < 40
    assert "plot (Draw learning curves of runs)" in " ".join(run("--help").out.split())


def test_options_of_the_command_line_reach_the_picture(monkeypatch):
    write_run("run", returns(*np.arange(10.0), time_seconds=range(10), train_entropy=range(10)))
    given = {}
    monkeypatch.setattr("ppo_lightning.commands.plot.plot_runs", lambda *args: given.update(enumerate(args)))
    run("plot", "run", "best=run", "--out=a.svg", "--metric", "train/entropy", "time/sps", "--x=time", "--smooth=0.5")
    assert given == {0: ["run", "best=run"], 1: "a.svg", 2: ["train/entropy", "time/sps"], 3: "time", 4: 0.5}


def test_a_single_iteration_is_seen():
    write_run("run", returns(3))
    assert plot("run").axes[0].get_lines()[0].get_marker() == "."
