"""Finding and reading runs, and every way that these can be wrong."""

from pathlib import Path

import pytest

from ppo_lightning import ConfigurationError
from ppo_lightning.curves.metrics_file import read_metrics
from ppo_lightning.curves.runs import find_runs, split_label
from tests.curves.files import write_run


def pairs(series):
    return list(zip(series.x.tolist(), series.y.tolist()))


def read(text):
    Path("metrics.csv").write_bytes(text if isinstance(text, bytes) else text.encode())
    return read_metrics(Path("metrics.csv"))


def test_empty_cells_and_what_is_not_finite_are_left_out():
    metrics = read("a,step,b,c\n1,10,,\n,10,2.5,\nnan,20,3,\n4,30,inf,\n")
    assert pairs(metrics["a"]) == [(10, 1), (30, 4)]
    assert pairs(metrics["b"]) == [(10, 2.5), (20, 3)]
    assert set(metrics) == {"a", "b"}


def test_steps_increase_and_the_later_row_of_a_step_counts():
    assert pairs(read("step,a\n20,2\n10,1\n20,3\n10000000001,4\n")["a"]) == [(10, 1), (20, 3), (10000000001, 4)]


@pytest.mark.parametrize(
    ("text", "words"),
    [
        ("", ["metrics.csv", "no column step"]),
        ("time,a\n1,2\n", ["metrics.csv", "no column step"]),
        ("step,a\n1,2\n2,x\n", ["metrics.csv, row 3", "'x' as a", "mend"]),
        ("step,a\nten,2\n", ["metrics.csv, row 2", "'ten' as step"]),
        ("step,a\n,2\n", ["metrics.csv, row 2", "no step"]),
        ("step,a\n1,2\n2\n", ["metrics.csv, row 3", "1 cells", "2"]),
        ("step,a\n1,2,3\n", ["metrics.csv, row 2", "3 cells"]),
        (b"step,a\n1,\xff\xfe\n", ["metrics.csv", "not a table", "utf-8"]),
        ('step,a\n1,"2\n', ["metrics.csv", "not a table"]),
    ],
)
def test_a_damaged_file_is_named_with_its_row(text, words):
    with pytest.raises(ConfigurationError) as error:
        read(text)
    for word in words:
        assert word in str(error.value)


def test_runs_are_found_below_a_folder_in_the_order_of_their_numbers():
    for version in (10, 2, 0):
        write_run(f"logs/cart/lightning_logs/version_{version}")
    found = find_runs(["logs"])
    assert [run.folder.name for run in found] == ["version_0", "version_2", "version_10"]
    assert [run.label for run in found] == ["", "", ""]
    assert pairs(found[0].metrics["rollout/return_mean"]) == [(10, 1), (20, 2), (30, 3)]


def test_the_first_configuration_identifies_a_continued_run():
    folder = write_run("run", settings={"first": 1})
    (folder / "config_1.yaml").write_text("first: 2")
    assert find_runs(["run"])[0].config == {"first": 1}


def test_a_run_from_python_has_no_configuration():
    write_run("run", settings=False)
    assert find_runs(["run"])[0].config is None


def test_a_run_given_twice_is_there_once():
    write_run("logs/version_0"), write_run("logs/version_1")
    Path("link").symlink_to("logs")
    found = find_runs(["logs/version_1", "logs", "best=logs/version_0", "link"])
    assert [(str(run.folder), run.label) for run in found] == [("logs/version_1", ""), ("logs/version_0", "best")]


@pytest.mark.parametrize(
    ("given", "expected"),
    [
        ("runs/a", ("", "runs/a")),
        ("small=runs/a", ("small", "runs/a")),
        ("lr=0.1=runs/a", ("lr=0.1", "runs/a")),
        ("runs/lr=0.1", ("", "runs/lr=0.1")),
        ("b=runs/lr=0.1", ("b", "runs/lr=0.1")),
        ("a=b=nowhere", ("a", "b=nowhere")),
        (" two words =runs/a", ("two words", "runs/a")),
    ],
)
def test_labels(given, expected):
    for folder in ("runs/a", "runs/lr=0.1"):
        Path(folder).mkdir(parents=True)
    label, folder = split_label(given)
    assert (label, str(folder)) == expected


@pytest.mark.parametrize(
    ("given", "words"),
    [
        ([], ["No runs were given", "lightning_logs"]),
        (["logz"], ["folder logz does not exist", "Did you mean logs?"]),
        (["logs/vershion_0/deeper"], ["folder logs/vershion_0 does not exist", "Did you mean version_0?"]),
        (["nothing"], ["folder nothing does not exist"]),
        (["empty"], ["empty holds no run", "metrics.csv", "lightning_logs/version_0"]),
        (["logs/version_0/metrics.csv"], ["metrics.csv is a file", "logs/version_0"]),
        (["=logs"], ["=logs has an empty label", "LABEL=logs"]),
        (["  =logs"], ["has an empty label"]),
        (["best="], ["best= names no folder", "best=FOLDER"]),
        (["a=logs", "b=logs/version_0"], ["logs/version_0 belongs to a and to b", "one label"]),
        (["broken"], ["broken/config.yaml is damaged", "mend it"]),
    ],
)
def test_mistakes(given, words):
    write_run("logs/version_0"), write_run("broken")
    Path("broken/config.yaml").write_text("a: [")
    Path("empty").mkdir()
    with pytest.raises(ConfigurationError) as error:
        find_runs(given)
    for word in words:
        assert word in str(error.value)
    assert str(error.value).endswith((".", "?"))
