"""Pictures to mp4 files, and to animations small enough for TensorBoard. Needs the video extra."""

from __future__ import annotations

import io
from fractions import Fraction
from pathlib import Path
from typing import Any

import numpy as np

from ppo_lightning.core.errors import ConfigurationError

Picture = np.ndarray[Any, Any]
"""``(H, W, 3)`` uint8."""

_SMALLEST_SIDE = 128  # pixels; smaller pictures are shown in whole multiples
_ANIMATION_PICTURES = 128
_ANIMATION_SIDE = 256  # pixels


def check_video_packages() -> None:
    """Raise :class:`ConfigurationError` where the video extra is not installed."""
    try:
        import av  # noqa: F401
        import PIL  # noqa: F401
    except ImportError as error:
        raise ConfigurationError(
            f"Videos need packages that cannot be imported here ({error}): pip install 'ppo-lightning[video]'."
        ) from error


class Mp4File:
    """An H.264 video that grows by a picture at a time; under its name only when it is whole.

    Args:
        path: of the file.
        fps: pictures a second.
    """

    def __init__(self, path: Path, fps: int) -> None:
        self.path = path
        self._fps = fps
        self._part = path.with_name(path.name + ".part")
        self._container: Any = None
        self._stream: Any = None

    def add(self, picture: Picture) -> None:
        """Append a picture; all have the size of the first."""
        import av

        picture = _even(_enlarged(picture))
        if self._container is None:
            self._container = av.open(str(self._part), "w", format="mp4")
            self._stream = self._container.add_stream("libx264", rate=Fraction(self._fps), options={"crf": "23"})
            self._stream.height, self._stream.width = picture.shape[:2]
            self._stream.pix_fmt = "yuv420p"  # what browsers play
        frame = av.VideoFrame.from_ndarray(np.ascontiguousarray(picture), format="rgb24")
        self._container.mux(self._stream.encode(frame))

    def close(self) -> None:
        """Write what is left, and give the file its name."""
        if self._container is not None:
            self._container.mux(self._stream.encode())
            self._container.close()
            self._container = None
            self._part.replace(self.path)

    def discard(self) -> None:
        """Leave no file."""
        if self._container is not None:
            self._container.close()
            self._container = None
            self._part.unlink(missing_ok=True)


class Animation:
    """A GIF of at most 128 pictures: every second one is dropped when there are more."""

    def __init__(self, fps: int) -> None:
        self._fps = fps
        self._pictures: list[Any] = []
        self._stride = 1
        self._count = 0

    def add(self, picture: Picture) -> None:
        """Append a picture."""
        from PIL import Image

        if self._count % self._stride == 0:
            image = Image.fromarray(_enlarged(picture))
            image.thumbnail((_ANIMATION_SIDE, _ANIMATION_SIDE))
            self._pictures.append(image)
            if len(self._pictures) == _ANIMATION_PICTURES:
                self._pictures, self._stride = self._pictures[::2], 2 * self._stride
        self._count += 1

    @property
    def size(self) -> tuple[int, int]:
        """Width and height."""
        width, height = self._pictures[0].size
        return int(width), int(height)

    def encode(self) -> bytes:
        """The GIF file."""
        file = io.BytesIO()
        first, *others = self._pictures
        milliseconds = 1000 * self._stride / self._fps
        first.save(file, format="GIF", save_all=True, append_images=others, duration=milliseconds, loop=0)
        return file.getvalue()


def _enlarged(picture: Picture) -> Picture:
    factor = -(-_SMALLEST_SIDE // min(picture.shape[:2]))
    return picture if factor <= 1 else picture.repeat(factor, axis=0).repeat(factor, axis=1)


def _even(picture: Picture) -> Picture:
    """Sides that are even, as the codec needs them."""
    height, width = picture.shape[:2]
    return np.pad(picture, ((0, height % 2), (0, width % 2), (0, 0)), mode="edge")
