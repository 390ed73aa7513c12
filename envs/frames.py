"""Images on disk, each compressed by itself: read by row as an array is, decoded when asked for.

FILE.frames holds one zlib stream after another, FILE.npy where each begins: losslessly, and what is
read is all that is ever in memory.
"""

import math
import zlib
from pathlib import Path
from typing import Any

import h5py
import numpy as np
from gymnasium import spaces

from decision_s4.envs.errors import UserError

SMALLEST = 256  # bytes of an image below which it stays as it is
SUFFIX = ".frames"


def holds_frames(space: spaces.Space) -> bool:
    """Whether values of a leaf space are images worth compressing."""
    if not isinstance(space, spaces.Box) or space.dtype != np.uint8:
        return False
    return len(space.shape) > 1 and math.prod(space.shape) >= SMALLEST


class Frames:
    """(N, …) uint8 of a file that GrowingFrames wrote; `frames[rows]` decodes those alone.

    Raises OSError or ValueError where the files are missing or of other lengths, UserError where an
    image cannot be decoded.
    """

    def __init__(self, path: Path, row_shape: tuple[int, ...]):
        self.offsets = np.load(path, mmap_mode="r", allow_pickle=False)
        self.streams = np.memmap(path.with_suffix(SUFFIX), np.uint8, "r")
        if self.offsets[-1] != len(self.streams):
            raise ValueError(f"{path} does not belong to the frames beside it")
        self.shape, self.dtype = (len(self.offsets) - 1, *row_shape), np.dtype(np.uint8)

    def __len__(self) -> int:
        return self.shape[0]

    def __getitem__(self, rows: Any) -> np.ndarray:
        numbers = np.arange(len(self))[rows]
        frames = np.empty((numbers.size, *self.shape[1:]), self.dtype)
        for place, number in enumerate(numbers.flat):
            frames[place] = self._frame(number)
        return frames.reshape(*numbers.shape, *self.shape[1:])

    def _frame(self, number: int) -> np.ndarray:
        first, last = self.offsets[number : number + 2]
        try:
            stream = zlib.decompress(self.streams[first:last].data)
            return np.frombuffer(stream, self.dtype).reshape(self.shape[1:])
        except (zlib.error, ValueError) as error:
            raise UserError(
                f"{self.streams.filename}: image {number} is damaged ({error}); remove its folder, "
                "which is made anew from the dataset"
            ) from error


class GrowingFrames:
    """Those files, appended to image by image."""

    def __init__(self, path: Path):
        self.path, self.offsets = path, [0]
        self.file = path.with_suffix(SUFFIX).open("wb")

    def append(self, values: np.ndarray) -> None:
        """Images (n, …)."""
        for frame in np.ascontiguousarray(values, np.uint8):
            self.offsets.append(self.offsets[-1] + self.file.write(zlib.compress(frame.tobytes())))

    def close(self) -> None:
        """Write where each begins."""
        self.file.close()
        np.save(self.path, np.array(self.offsets, np.int64), allow_pickle=False)


def compress_hdf5(path: Path) -> None:
    """Rewrite a Minari file with its images compressed, which any reader of HDF5 undoes."""
    new = path.with_suffix(".partial")
    with h5py.File(path) as source, h5py.File(new, "w") as target:
        target.attrs.update(source.attrs)
        source.visititems(lambda name, item: _copy(name, item, target))
    new.replace(path)


def _copy(name: str, item: h5py.Group | h5py.Dataset, target: h5py.File) -> None:
    if isinstance(item, h5py.Group):
        target.create_group(name).attrs.update(item.attrs)
    elif item.dtype == np.uint8 and item.ndim > 2 and np.prod(item.shape[1:]) >= SMALLEST:
        form = {"maxshape": item.maxshape, "compression": "gzip", "chunks": True}
        target.create_dataset(name, data=item[()], **form).attrs.update(item.attrs)
    else:
        item.file.copy(item, target, name)
