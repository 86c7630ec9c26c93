"""An MP4 film, H.264, of pictures that come when they come: each is seen from its own time on.

Stamps are real times in milliseconds, not multiples of a picture period, so a film that was drawn slower than
hoped is neither faster nor slower than life. The pictures are 4:2:0 with the colours of BT.709, which every
browser and player decodes. One picture is held back: how long it is seen is known when the next comes.

The only file that imports PyAV.
"""

from __future__ import annotations

from fractions import Fraction
from pathlib import Path
from typing import TYPE_CHECKING

import av
import numpy as np
from av.error import FFmpegError
from av.video.reformatter import ColorRange, Colorspace
from av.video.stream import VideoStream

if TYPE_CHECKING:
    from av.container import OutputContainer
    from numpy.typing import NDArray

CODEC = "libx264"
TICKS_PER_S = 1000
QUALITY = {"crf": "18", "preset": "veryfast"}
MUXING = {"movflags": "+faststart"}
KEY_EVERY_S = 2.0  # how far a player seeks at most to show a picture
_BT709 = 1


class Mp4:
    """A film that grows picture by picture; it is complete after `close`.

    Parameters
    ----------
    path : Path
        Where it is written; what was there is overwritten.
    width, height : int
        Of the pictures, in pixels. 4:2:0 wants even sides: of an odd one the last row or column is left out.
    fps : float
        Most pictures per second that will come; decides how far apart key pictures are, not how fast it runs.

    Raises
    ------
    OSError
        Where the file cannot be written, or PyAV has no H.264 encoder.
    """

    def __init__(self, path: Path, width: int, height: int, *, fps: float) -> None:
        self._size = (height, width)
        self._container: OutputContainer = av.open(str(path), "w", format="mp4", options=MUXING)
        try:
            self._stream = _stream(self._container, width // 2 * 2, height // 2 * 2, fps)
            self._container.start_encoding()  # opens the file: what is wrong with it is said now
        except OSError:
            raise
        except (FFmpegError, ValueError) as error:
            raise OSError(f"this PyAV cannot encode H.264 ({CODEC}): {error}") from error
        self._held: tuple[NDArray[np.uint8], int] | None = None
        self._lengths: dict[int, int] = {}

    def add(self, image: NDArray[np.uint8], at_s: float) -> None:
        """The picture that is seen from `at_s` on.

        Parameters
        ----------
        image : ndarray of uint8, shape (height, width, 3)
            RGB, the first row on top.
        at_s : float
            Seconds from the film's begin. A picture less than a millisecond after another takes its place.

        Raises
        ------
        ValueError
            Where the picture has another size, or comes before the one before it.
        """
        if image.shape != (*self._size, 3):
            raise ValueError(f"a picture of shape {image.shape} in a film of {(*self._size, 3)}")
        at = round(at_s * TICKS_PER_S)
        if self._held is not None:
            if at < self._held[1]:
                raise ValueError(
                    f"a picture at {at_s:g} s comes after one at {self._held[1] / TICKS_PER_S:g} s"
                )
            if at > self._held[1]:
                self._encode(until=at)
        self._held = (image, at)

    def close(self, end_s: float) -> None:
        """The last picture is seen until `end_s`; the file is complete."""
        if self._held is not None:
            self._encode(until=max(self._held[1] + 1, round(end_s * TICKS_PER_S)))
        try:
            self._write(None)
        finally:
            self._container.close()

    def _encode(self, until: int) -> None:
        """The picture that was held back, now that its end is known."""
        assert self._held is not None
        image, at = self._held
        even = image[: self._stream.height, : self._stream.width]
        frame = av.VideoFrame.from_ndarray(np.ascontiguousarray(even), format="rgb24")
        frame = frame.reformat(
            format="yuv420p", dst_colorspace=Colorspace.ITU709, dst_color_range=ColorRange.MPEG
        )
        frame.pts, frame.time_base = at, Fraction(1, TICKS_PER_S)
        self._lengths[at] = until - at
        self._held = None
        self._write(frame)

    def _write(self, frame: av.VideoFrame | None) -> None:
        for packet in self._stream.encode(frame):
            if packet.pts is not None:
                packet.duration = self._lengths.pop(packet.pts)
            self._container.mux(packet)


def _stream(container: OutputContainer, width: int, height: int, fps: float) -> VideoStream:
    stream = container.add_stream(CODEC, rate=Fraction(fps).limit_denominator(1000), options=QUALITY)
    assert isinstance(stream, VideoStream)
    stream.width, stream.height, stream.pix_fmt = width, height, "yuv420p"
    stream.time_base = stream.codec_context.time_base = Fraction(1, TICKS_PER_S)
    context = stream.codec_context
    context.gop_size = max(1, round(KEY_EVERY_S * fps))
    context.max_b_frames = 0  # packets come in the order of pictures, so each gets the length of its own
    context.color_range, context.colorspace = ColorRange.MPEG, _BT709
    context.color_primaries = context.color_trc = _BT709
    return stream


__all__ = ["Mp4"]
