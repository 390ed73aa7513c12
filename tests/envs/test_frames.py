"""Images on disk are compressed, and what is read of them is what was written."""

import h5py
import numpy as np
import pytest
from gymnasium import spaces

from decision_s4.envs.batches import PackedBatches
from decision_s4.envs.errors import UserError
from decision_s4.envs.frames import Frames, GrowingFrames, compress_hdf5, holds_frames
from decision_s4.envs.trajectories import DatasetInfo, Episode
from decision_s4.envs.trajectory_cache import open_trajectories, write_trajectories

IMAGE = spaces.Box(0, 255, (16, 16, 3), np.uint8)


def pictures(count: int) -> np.ndarray:
    return np.random.default_rng(0).integers(0, 256, (count, *IMAGE.shape), np.uint8)


@pytest.fixture
def written(tmp_path):
    """(images, Frames of them), written in two parts."""
    images, path = pictures(7), tmp_path / "a.0.npy"
    growing = GrowingFrames(path)
    growing.append(images[:3])
    growing.append(images[3:])
    growing.close()
    return images, Frames(path, IMAGE.shape)


@pytest.mark.parametrize(
    "rows",
    [2, -1, slice(1, 5), slice(None, None, 3), np.array([4, 0, 4]), np.array([[1, 2], [3, 0]])],
    ids=str,
)
def test_rows_are_those_of_the_array(written, rows):
    images, frames = written
    assert (len(frames), frames.shape, frames.dtype) == (7, images.shape, images.dtype)
    np.testing.assert_array_equal(frames[rows], images[rows])
    frames[rows][...] = 0  # its own memory
    np.testing.assert_array_equal(frames[rows], images[rows])


def test_a_mask_and_nothing(written):
    images, frames = written
    np.testing.assert_array_equal(frames[images[:, 0, 0, 0] > 99], images[images[:, 0, 0, 0] > 99])
    assert frames[5:5].shape == (0, *IMAGE.shape)
    with pytest.raises(IndexError):
        frames[7]


def test_damage_is_seen(written, tmp_path):
    (tmp_path / "a.0.frames").write_bytes(b"less")
    with pytest.raises(ValueError, match="does not belong"):
        Frames(tmp_path / "a.0.npy", IMAGE.shape)


def test_a_damaged_image_is_named(written, tmp_path):
    path = tmp_path / "a.0.frames"
    content = bytearray(path.read_bytes())
    content[written[1].offsets[3]] ^= 255
    path.write_bytes(content)
    frames = Frames(tmp_path / "a.0.npy", IMAGE.shape)
    np.testing.assert_array_equal(frames[2], written[0][2])
    with pytest.raises(UserError, match=r"a\.0\.frames: image 3 is damaged"):
        frames[3]


def test_what_is_worth_it():
    assert holds_frames(IMAGE)
    assert not holds_frames(spaces.Box(0, 255, (7, 7, 3), np.uint8))  # MiniGrid's
    assert not holds_frames(spaces.Box(0, 1, (16, 16, 3), np.float32))


def test_batches_of_a_dataset_of_images(tmp_path):
    """In a Dict beside numbers: a batch holds what the episodes did."""
    space = spaces.Dict(picture=IMAGE, place=spaces.Box(-1, 1, (2,)))
    info = DatasetInfo(name="pictures", observation_space=space, action_space=spaces.Discrete(2))
    images = pictures(9)
    places = np.linspace(-1, 1, 18, dtype=np.float32).reshape(9, 2)
    episodes = [
        Episode(
            {"picture": images[first : last + 1], "place": places[first : last + 1]},
            np.zeros(last - first, np.int64),
            np.ones(last - first),
            np.arange(first + 1, last + 1) == last,
            np.zeros(last - first, bool),
        )
        for first, last in ((0, 4), (5, 8))
    ]
    write_trajectories(tmp_path / "set", info, iter(episodes))
    data = open_trajectories(tmp_path / "set", "pictures")
    assert isinstance(data.observations["picture"], Frames)
    np.testing.assert_array_equal(data.episode(1).observations["picture"], images[5:])
    batch = next(PackedBatches(data, 100, seed=0))
    place = batch.observation["place"][0].numpy()
    rows = [int(np.abs(places - each).sum(1).argmin()) for each in place]
    np.testing.assert_array_equal(batch.observation["picture"][0], images[rows])
    assert sorted(rows) == [0, 1, 2, 3, 5, 6, 7]


def test_a_rewritten_hdf5_file_reads_as_before(tmp_path):
    path, images = tmp_path / "main_data.hdf5", np.zeros((50, *IMAGE.shape), np.uint8)
    images[::7] = 9
    with h5py.File(path, "w") as file:
        group = file.create_group("episode_0")
        group.attrs["seed"] = 5
        group.create_dataset("observations", data=images, maxshape=(None, *IMAGE.shape))
        group.create_dataset("rewards", data=np.arange(50.0))
    before = path.stat().st_size
    compress_hdf5(path)
    with h5py.File(path) as file:
        assert file["episode_0"].attrs["seed"] == 5
        np.testing.assert_array_equal(file["episode_0/observations"][()], images)
        assert file["episode_0/observations"].maxshape == (None, *IMAGE.shape)
        np.testing.assert_array_equal(file["episode_0/rewards"][()], np.arange(50.0))
    assert path.stat().st_size < before / 4
    assert [entry.name for entry in tmp_path.iterdir()] == ["main_data.hdf5"]
