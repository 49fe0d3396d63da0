import functools
import io
import json
import sys
import warnings
from pathlib import Path

import av
import gymnasium
import numpy as np
import pytest
from gymnasium import spaces
from lightning.pytorch.callbacks import EarlyStopping
from PIL import Image, ImageSequence
from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

from ppo_lightning import ConfigurationError, Evaluation, ProcgenEnv, VideoRecorder, run_loggers
from ppo_lightning.models import ActorCritic, NatureCNN
from ppo_lightning.video import Animation, Mp4File
from tests.commands import LAST, WALK, command, run, sentence_of
from tests.runs import equal, fit, make_data, make_ppo, make_trainer, weights
from tests.tasks import Walk

ID = "tests.callbacks.test_video:Pictured-v0"
DRAWN = [ID if arg.endswith("Walk-v0") else arg for arg in WALK]
DRAWN[1] = f"--data.env.id={ID}"


class Pictured(Walk):
    """A walk whose pictures are as bright as its steps are many."""

    metadata = {"render_modes": ["rgb_array"], "render_fps": 7}

    def __init__(self, render_mode=None, side=130, breaks=False, level=0):
        self.render_mode, self.side, self.breaks, self.level = render_mode, side, breaks, level

    def render(self):
        if self.breaks and self.steps == 2:
            raise RuntimeError("the screen is cracked")
        if self.breaks == "at once":
            raise RuntimeError("there is no screen")
        return np.full((self.side, self.side, 3), 20 * self.steps, np.uint8)


class Blind(Walk):
    """Renders nothing."""


class PicturedImages(Pictured):
    """Has other spaces in another level."""

    @property
    def observation_space(self):
        return spaces.Box(-np.inf, np.inf, (4 + self.level,), np.float32)


for entry_point in (Pictured, Blind, PicturedImages):
    gymnasium.register(f"{entry_point.__name__}-v0", f"tests.callbacks.test_video:{entry_point.__name__}")


def brightness(path):
    """The mean colour of each picture of a video."""
    with av.open(str(path)) as container:
        return [frame.to_ndarray(format="rgb24").mean() for frame in container.decode(video=0)]


def steps_shown(path):
    return [round(value / 20) for value in brightness(path)]


def record(tmp_path, *callbacks, env=ID, iterations=2, ppo=None, **settings):
    recorder = VideoRecorder(**({"folder": str(tmp_path / "videos")} | settings))
    fit(ppo or make_ppo(), make_data(env, iterations=iterations), callbacks=[*callbacks, recorder])
    return recorder


def test_a_video_shows_every_step_from_the_reset_to_the_last(tmp_path):
    recorder = record(tmp_path, num_episodes=3)
    assert len(recorder.recordings) == 3
    for recording in recorder.recordings:
        assert 3 <= recording.length <= 9
        assert steps_shown(recording.path) == list(range(recording.length + 1))


def test_the_episodes_are_the_first_of_the_evaluation(tmp_path):
    evaluation = Evaluation(num_episodes=10, num_envs=5, temperature=1)
    recorder = record(tmp_path, evaluation, num_episodes=5)
    result = evaluation.results[""]
    first = dict(reversed(list(zip(result.rows, result.episodes))))
    assert [(recording.episode_return, recording.length) for recording in recorder.recordings] == [
        (first[row].episode_return, first[row].length) for row in range(5)
    ]


def test_its_own_temperature_wins(tmp_path):
    evaluation = Evaluation(num_episodes=4, temperature=1)
    returns = [
        [recording.episode_return for recording in record(tmp_path, evaluation, num_episodes=4, **settings).recordings]
        for settings in ({}, {"temperature": 1}, {"temperature": 0})
    ]
    assert returns[0] == returns[1] != returns[2]


@pytest.mark.parametrize(
    ("cadence", "steps"),
    [({}, [128]), ({"every_n_iterations": 2}, [64, 128]), ({"every_n_env_steps": 50}, [64, 128, 96 + 32])],
)
def test_at_the_chosen_moments_and_at_the_end(tmp_path, cadence, steps):
    record(tmp_path, iterations=4, **cadence)
    assert {path.name for path in (tmp_path / "videos").iterdir()} == {f"step_{step}_episode_0.mp4" for step in steps}


def test_the_end_that_a_later_callback_brings_is_recorded_once(tmp_path):
    stopping = EarlyStopping("train/loss", patience=1, min_delta=1e9)  # Lightning calls it last
    record(tmp_path, stopping, iterations=9)
    assert [path.name for path in (tmp_path / "videos").iterdir()] == ["step_64_episode_0.mp4"]


def test_training_goes_on_exactly_as_without(tmp_path):
    alone = fit(make_ppo(), make_data(ID, iterations=3))
    watched = make_ppo()
    record(tmp_path, iterations=3, ppo=watched, every_n_iterations=1, temperature=1)
    assert equal(weights(alone), weights(watched))
    assert watched.training


def test_long_episodes_are_cut(tmp_path):
    recorder = record(tmp_path, max_num_steps=2, num_episodes=2)
    assert [steps_shown(recording.path) for recording in recorder.recordings] == [[0, 1, 2]] * 2


def frames_a_second(path):
    with av.open(str(path)) as container:
        return container.streams.video[0].average_rate


def test_the_environment_says_how_fast_unless_told(tmp_path):
    assert frames_a_second(record(tmp_path).recordings[0].path) == 7
    assert frames_a_second(record(tmp_path, fps=11).recordings[0].path) == 11


@pytest.mark.parametrize(("side", "shown"), [(130, 130), (131, 132), (9, 135 + 1), (3, 129 + 1)])
def test_pictures_of_any_size(tmp_path, side, shown):
    path = tmp_path / "video.mp4"
    file = Mp4File(path, 10)
    for value in (0, 100, 200):
        file.add(np.full((side, side + 2, 3), value, np.uint8))
    assert not path.exists()
    file.close()
    with av.open(str(path)) as container:
        frames = [frame.to_ndarray(format="rgb24") for frame in container.decode(video=0)]
    assert frames[0].shape[0] == shown
    assert [frame.mean() for frame in frames] == pytest.approx([0, 100, 200], abs=2)
    assert [path.name for path in tmp_path.iterdir()] == ["video.mp4"]


def test_an_animation_drops_pictures_but_not_time():
    animation = Animation(fps=20)
    for number in range(300):
        animation.add(np.full((400, 600, 3), number % 256, np.uint8))
    image = Image.open(io.BytesIO(animation.encode()))
    durations = [frame.info["duration"] for frame in ImageSequence.Iterator(image)]
    assert max(image.size) == 256
    assert len(durations) < 128
    assert sum(durations) == pytest.approx(1000 * 300 / 20, rel=0.02)


def test_a_gif_beside_each_file(tmp_path):
    for recording in record(tmp_path, num_episodes=2, gif=True).recordings:
        image = Image.open(recording.path.with_suffix(".gif"))
        assert image.n_frames == recording.length + 1
        assert image.info["duration"] == 140  # in hundredths of a second; 1/7 is 142.9


def test_tensorboard_gets_it_at_the_environment_step(tmp_path):
    fit(
        make_ppo(),
        make_data(ID),
        logger=run_loggers(tmp_path, version=0),
        callbacks=[Evaluation(num_episodes=2), VideoRecorder(num_episodes=2)],
    )
    run_folder = tmp_path / "lightning_logs/version_0"
    events = EventAccumulator(str(run_folder)).Reload()
    assert events.Tags()["images"] == ["eval/episode_0", "eval/episode_1"]
    (image,) = events.Images("eval/episode_1")
    assert image.step == 64
    assert image.encoded_image_string.startswith(b"GIF8")
    assert len(list((run_folder / "videos").iterdir())) == 2


def test_each_split_is_recorded(tmp_path):
    splits = {"small": {"kwargs": {"side": 150}}, "large": {"kwargs": {"side": 170}}, "other": None}
    recorder = record(tmp_path, Evaluation(splits=splits), splits=["small", "large"])
    for recording, side in zip(recorder.recordings, (150, 170)):
        assert recording.path.name == f"step_64_{recording.split}_episode_0.mp4"
        with av.open(str(recording.path)) as container:
            assert container.streams.video[0].width == side


def test_procgen_in_high_resolution(tmp_path):
    network = functools.partial(ActorCritic, encoder=NatureCNN, shared=True)
    data = make_data(ProcgenEnv("coinrun", num_levels=3, num_threads=1), iterations=1, num_envs=2, num_steps=4)
    recorder = VideoRecorder(num_episodes=2, max_num_steps=12, folder=str(tmp_path), temperature=1)
    fit(make_ppo(network=network), data, callbacks=[recorder])
    for recording in recorder.recordings:
        with av.open(str(recording.path)) as container:
            frames = [frame.to_ndarray(format="rgb24") for frame in container.decode(video=0)]
            assert container.streams.video[0].average_rate == 15
        # the simulator resets in the step that ends an episode: its last picture is not there
        assert len(frames) == recording.length + (recording.length == 12)
        assert frames[0].shape == (512, 512, 3)
        assert frames[0].std() > 10


# -- bad input


@pytest.mark.parametrize("env", ["tests.callbacks.test_video:Blind-v0", "tests.tasks:Walk-v0"])
def test_an_environment_that_cannot_render_is_refused_before_any_work(tmp_path, env):
    ppo = make_ppo()
    with pytest.raises(ConfigurationError, match="cannot render pictures: its render modes are none"):
        record(tmp_path, env=env, ppo=ppo)
    assert ppo.trainer.datamodule.env_steps == 0


def test_a_rendering_that_fails_is_found_before_any_work(tmp_path):
    data = make_data(ID)
    data.env.kwargs = {"breaks": "at once"}
    with pytest.raises(ConfigurationError, match="RuntimeError: there is no screen"):
        fit(make_ppo(), data, callbacks=[VideoRecorder(folder=str(tmp_path))])
    assert data.env_steps == 0


def test_a_rendering_that_fails_later_leaves_no_half_a_file_and_ends_no_training(tmp_path):
    data, evaluation = make_data(ID), Evaluation(num_episodes=2)
    data.env.kwargs = {"breaks": True}
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        make_trainer(callbacks=[VideoRecorder(folder=str(tmp_path)), evaluation]).fit(make_ppo(), data)
    assert [message for message in map(str, (warning.message for warning in caught)) if "screen is cracked" in message]
    assert list(tmp_path.iterdir()) == []
    assert data.env_steps == 64
    assert evaluation.metrics["eval/episodes"] == 2


@pytest.mark.parametrize("picture", [np.zeros((9, 9)), np.zeros((9, 9, 3)), np.zeros((9, 9, 4), np.uint8)])
def test_pictures_of_another_kind_are_refused(tmp_path, picture, monkeypatch):
    monkeypatch.setattr(Pictured, "render", lambda self: picture)
    with pytest.raises(ConfigurationError, match="not uint8"):
        record(tmp_path)


def test_validate_and_test_leave_recording_to_the_command():
    run("fit", *DRAWN, "--trainer.callbacks+=VideoRecorder")
    before = sorted(Path().rglob("*"))
    for name in ("validate", "test"):
        run(name, f"--ckpt_path={LAST}")
    assert sorted(Path().rglob("*")) == before


def test_an_unknown_split_is_refused(tmp_path):
    with pytest.raises(ConfigurationError, match=r"vall is no split .* which has val\. Did you mean val\?"):
        record(tmp_path, Evaluation(splits={"val": None}), splits=["vall"])


def test_a_split_is_refused_where_there_are_none(tmp_path):
    with pytest.raises(ConfigurationError, match=r"--evaluation\.splits is not given"):
        record(tmp_path, splits=["val"])


def test_a_folder_that_cannot_be_written_is_refused(tmp_path):
    (tmp_path / "file").write_text("")
    with pytest.raises(ConfigurationError, match="cannot be written"):
        record(tmp_path, folder=str(tmp_path / "file/videos"))


def test_a_missing_package_is_named(tmp_path, monkeypatch):
    monkeypatch.setitem(sys.modules, "av", None)
    with pytest.raises(ConfigurationError, match=r"pip install 'ppo-lightning\[video\]'"):
        record(tmp_path)


@pytest.mark.parametrize(
    "settings",
    [
        {"num_episodes": 0},
        {"max_num_steps": 0},
        {"fps": 0},
        {"temperature": -1},
        {"every_n_iterations": 0},
        {"every_n_iterations": 1, "every_n_env_steps": 1},
    ],
)
def test_bad_settings_are_refused(settings):
    with pytest.raises(ConfigurationError, match=next(iter(settings))):
        VideoRecorder(**settings)


# -- the command


def test_the_command_records_a_checkpoint_beside_its_run():
    run("fit", *DRAWN)
    outcome = run("video", f"--ckpt_path={LAST}", "--num_episodes=2")
    lines = [line for line in outcome.out.splitlines() if ".mp4: return " in line]
    paths = sorted(LAST.parent.parent.glob("videos/*"))
    assert [path.name for path in paths] == ["step_128_episode_0.mp4", "step_128_episode_1.mp4"]
    assert [line.partition(":")[0] for line in lines] == [str(path) for path in paths]
    assert all(steps_shown(path) == list(range(len(brightness(path)))) for path in paths)


def test_the_command_plays_what_validate_plays():
    run("fit", *DRAWN)
    flags = f"--ckpt_path={LAST}", "--evaluation.temperature=1", "--json"
    metrics = json.loads(run("validate", *flags, "--evaluation.num_episodes=3").out)["metrics"]
    videos = json.loads(run("video", *flags, "--num_episodes=3", "--out=elsewhere").out)["videos"]
    assert np.mean([video["episode_return"] for video in videos]) == pytest.approx(metrics["eval/return_mean"])
    assert all(video["path"].startswith("elsewhere") for video in videos)


def test_the_command_and_the_callback_by_flags():
    run("fit", *DRAWN, "--trainer.callbacks+=VideoRecorder", "--trainer.callbacks.every_n_env_steps=64")
    names = {path.name for path in LAST.parent.parent.glob("videos/*")}
    assert names == {"step_64_episode_0.mp4", "step_128_episode_0.mp4"}


def test_the_command_needs_a_checkpoint_and_a_folder():
    assert "name the checkpoint to record" in sentence_of(command("video"))
    run("fit", *DRAWN)
    assert "cannot be written" in sentence_of(command("video", f"--ckpt_path={LAST}", "--out=/proc/videos"))
    assert "VideoRecorder.num_episodes" in sentence_of(command("video", f"--ckpt_path={LAST}", "--num_episodes=0"))


def test_a_run_that_cannot_be_recorded_is_refused_by_the_command():
    run("fit", *WALK)
    assert "cannot render pictures" in sentence_of(command("video", f"--ckpt_path={LAST}"))


def test_validate_by_trainer_records_too(tmp_path):
    ppo = fit(make_ppo(), make_data(ID))
    recorder = VideoRecorder(folder=str(tmp_path))
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        make_trainer(callbacks=[recorder]).validate(ppo, make_data(ID), verbose=False)
    assert len(recorder.recordings) == 1


class Transparent(Pictured):
    """Draws a fourth channel."""

    def render(self):
        return np.zeros((130, 130, 4), np.uint8)


gymnasium.register("Transparent-v0", Transparent)


def test_pictures_of_another_shape_are_refused_before_training(tmp_path):
    data = make_data(env="Transparent-v0")
    with pytest.raises(ConfigurationError, match=r"\(130, 130, 4\)"):
        fit(data=data, callbacks=[VideoRecorder()], default_root_dir=tmp_path)
    assert not data.env_steps


def test_a_fast_development_run_of_validate_records_nothing(tmp_path):
    trainer = make_trainer(tmp_path, callbacks=[VideoRecorder()], fast_dev_run=True)
    trainer.validate(make_ppo(), make_data(env=ID), verbose=False)
    assert not list(tmp_path.iterdir())
