"""The film: what was put in comes out again, at its own times, in a form that players take."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest

av = pytest.importorskip("av")

from fulgurite.viewer.film import Mp4  # noqa: E402

WIDTH, HEIGHT = 96, 64


def _picture(*color: int) -> np.ndarray:
    return np.full((HEIGHT, WIDTH, 3), color, np.uint8)


def _film(path: Path, stamps: list[float], end_s: float, *, fps: float = 24.0) -> Path:
    """Each picture darker than the one before it."""
    film = Mp4(path, WIDTH, HEIGHT, fps=fps)
    for number, at_s in enumerate(stamps):
        film.add(_picture(*[240 - 20 * number] * 3), at_s)
    film.close(end_s)
    return path


def _decoded(path: Path) -> list[tuple[float, np.ndarray]]:
    with av.open(str(path)) as container:
        return [(float(frame.time), frame.to_ndarray(format="rgb24")) for frame in container.decode(video=0)]


def test_every_picture_is_seen_from_its_own_time_on(tmp_path: Path) -> None:
    stamps = [0.0, 0.04, 0.3, 0.317, 1.5]
    seen = _decoded(_film(tmp_path / "film.mp4", stamps, 2.0))
    assert [at_s for at_s, _ in seen] == pytest.approx(stamps, abs=0.0011)
    assert [int(image.mean()) for _, image in seen] == pytest.approx([240, 220, 200, 180, 160], abs=3)


def test_the_film_is_as_long_as_it_took(tmp_path: Path) -> None:
    path = _film(tmp_path / "film.mp4", [0.0, 0.5], 3.25)
    with av.open(str(path)) as container:
        stream = container.streams.video[0]
        assert float(stream.duration * stream.time_base) == pytest.approx(3.25, abs=0.01)


def test_it_is_h264_that_every_player_takes(tmp_path: Path) -> None:
    path = _film(tmp_path / "film.mp4", [0.0, 0.1], 0.2)
    with av.open(str(path)) as container:
        stream = container.streams.video[0]
        assert (stream.codec_context.name, stream.pix_fmt) == ("h264", "yuv420p")
        assert (stream.width, stream.height) == (WIDTH, HEIGHT)
    head = path.read_bytes()
    assert head.index(b"moov") < head.index(b"mdat")  # a page plays it before it has all of it


@pytest.mark.parametrize("color", [(86, 180, 233), (213, 94, 0), (0, 158, 115), (2, 2, 5), (255, 255, 255)])
def test_colors_come_back_as_they_were(tmp_path: Path, color: tuple[int, int, int]) -> None:
    film = Mp4(tmp_path / "film.mp4", WIDTH, HEIGHT, fps=24.0)
    film.add(_picture(*color), 0.0)
    film.close(0.5)
    [(_, image)] = _decoded(tmp_path / "film.mp4")
    assert np.abs(image.reshape(-1, 3).mean(axis=0) - color).max() < 4.0


def test_one_picture_alone_is_a_film(tmp_path: Path) -> None:
    assert len(_decoded(_film(tmp_path / "film.mp4", [0.0], 1.0))) == 1


def test_a_film_cut_short_before_its_first_picture_is_closed_in_peace(tmp_path: Path) -> None:
    Mp4(tmp_path / "film.mp4", WIDTH, HEIGHT, fps=24.0).close(0.0)


def test_of_odd_sides_the_last_row_and_column_are_left_out(tmp_path: Path) -> None:
    film = Mp4(tmp_path / "film.mp4", 97, 65, fps=24.0)
    film.add(np.full((65, 97, 3), 128, np.uint8), 0.0)
    film.close(0.5)
    [(_, image)] = _decoded(tmp_path / "film.mp4")
    assert image.shape == (64, 96, 3)


def test_two_pictures_in_one_millisecond_are_one_the_later(tmp_path: Path) -> None:
    seen = _decoded(_film(tmp_path / "film.mp4", [0.0, 0.5, 0.5001], 1.0))
    assert [int(image.mean()) for _, image in seen] == pytest.approx([240, 200], abs=3)


def test_a_picture_of_another_size_is_refused(tmp_path: Path) -> None:
    film = Mp4(tmp_path / "film.mp4", WIDTH, HEIGHT, fps=24.0)
    with pytest.raises(ValueError, match=r"\(10, 10, 3\) in a film of \(64, 96, 3\)"):
        film.add(np.zeros((10, 10, 3), np.uint8), 0.0)
    film.close(0.0)


def test_time_does_not_run_back(tmp_path: Path) -> None:
    film = Mp4(tmp_path / "film.mp4", WIDTH, HEIGHT, fps=24.0)
    film.add(_picture(9, 9, 9), 1.0)
    with pytest.raises(ValueError, match=r"at 0\.5 s comes after one at 1 s"):
        film.add(_picture(9, 9, 9), 0.5)
    film.close(1.0)


def test_a_file_that_cannot_be_written_is_an_os_error(tmp_path: Path) -> None:
    with pytest.raises(OSError, match="No such file or directory"):
        Mp4(tmp_path / "absent" / "film.mp4", WIDTH, HEIGHT, fps=24.0)
