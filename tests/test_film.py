"""docs/film.py: videos side by side."""

import imageio.v3 as imageio
import numpy as np
import pytest
from PIL import Image


@pytest.fixture(scope="module")
def film(program_of):
    return program_of("docs/film.py")


def test_a_shorter_video_stands_still_and_grey(film):
    short = np.full((2, 1, 1, 3), (30, 60, 90), np.uint8)
    long = np.arange(4, dtype=np.uint8).repeat(3).reshape(4, 1, 1, 3)
    frames = film.side_by_side([short, long])
    assert frames.shape == (4, 1, 2, 3)
    assert frames[:, 0, 0].tolist() == [[30, 60, 90]] * 2 + [[60, 60, 60]] * 2
    assert frames[:, 0, 1, 0].tolist() == [0, 1, 2, 3]


def test_a_gif_of_two_files_plays_at_their_speed(film, tmp_path):
    for name, count in (("one", 6), ("other", 12)):
        moving = np.random.default_rng(0).integers(0, 255, (count, 32, 32, 3), np.uint8)
        imageio.imwrite(tmp_path / f"{name}.mp4", moving, fps=10)
    videos = [f"{name}={tmp_path / name}.mp4" for name in ("one", "other")]
    film.main([str(tmp_path / "both.gif"), *videos, "--width", "64", "--every", "2"])
    with Image.open(tmp_path / "both.gif") as gif:
        assert (gif.size, gif.n_frames, gif.info["duration"]) == ((64, 32), 6, 200)


def test_a_missing_video_is_named(film, capsys):
    with pytest.raises(SystemExit):
        film.main(["a.gif", "one=nowhere.mp4"])
    assert (
        "'one=nowhere.mp4' is not name=VIDEO, or there is no such file" in capsys.readouterr().err
    )
