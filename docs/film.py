"""Videos side by side as one small GIF, from MP4 files of `train.py` and `evaluate.py --video`.

    python docs/film.py docs/ds4_online.gif before=RUN/videos/NAME.mp4 after=FOLDER/videos/NAME.mp4

They begin together; one that has ended stands still and greyed until the last has.
"""

import argparse
from collections.abc import Sequence
from pathlib import Path

import imageio.v3 as imageio
import numpy as np
from PIL import Image, ImageDraw


def padded(frames: np.ndarray, count: int) -> np.ndarray:
    """(T, H, W, 3) -> (count, H, W, 3), the last frame repeated, greyed."""
    grey = frames[-1:].mean(-1, keepdims=True).astype(np.uint8).repeat(3, -1)
    return np.concatenate([frames, grey.repeat(max(0, count - len(frames)), 0)])[:count]


def side_by_side(videos: Sequence[np.ndarray]) -> np.ndarray:
    """Videos (T_i, H, W, 3) of one size as one (max T_i, H, ΣW, 3)."""
    longest = max(map(len, videos))
    return np.concatenate([padded(video, longest) for video in videos], 2)


def shrunk(frame: np.ndarray, width: int, names: Sequence[str]) -> Image.Image:
    """A frame at `width`, with the videos' names in it."""
    image = Image.fromarray(frame)
    image = image.resize((width, round(width * image.height / image.width)), Image.LANCZOS)
    for i, name in enumerate(names):
        place = (6 + i * width // len(names), 4)
        ImageDraw.Draw(image).text(place, name, "white", stroke_width=1, stroke_fill="black")
    return image


def write(
    path: Path, videos: dict[str, Path], width: int, every: int, colours: int
) -> Sequence[Image.Image]:
    """Write the GIF, of every `every`-th frame; returns its pictures."""
    fps = min(imageio.immeta(video)["fps"] for video in videos.values())
    frames = side_by_side([imageio.imread(video)[::every] for video in videos.values()])
    pictures = [shrunk(frame, width, list(videos)) for frame in frames]
    palette = pictures[0].quantize(
        colours, Image.Quantize.FASTOCTREE
    )  # one for all: unchanged pixels stay unchanged
    first, *others = (p.quantize(palette=palette, dither=Image.Dither.NONE) for p in pictures)
    milliseconds = round(1000 * every / fps)
    first.save(path, save_all=True, append_images=others, duration=milliseconds, loop=0)
    return pictures


def named(text: str) -> tuple[str, Path]:
    """`name=VIDEO`."""
    name, equals, video = text.partition("=")
    if not (name and equals and Path(video).is_file()):
        raise argparse.ArgumentTypeError(f"'{text}' is not name=VIDEO, or there is no such file")
    return name, Path(video)


def main(argv: Sequence[str] | None = None) -> None:
    """Entry point."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("gif", type=Path, help="file to write")
    parser.add_argument("videos", type=named, nargs="+", metavar="NAME=VIDEO")
    parser.add_argument("--width", type=int, default=400, help="pixels, of all together")
    parser.add_argument("--every", type=int, default=3, help="which frames to keep")
    parser.add_argument("--colours", type=int, default=24)
    args = parser.parse_args(argv)
    write(args.gif, dict(args.videos), args.width, args.every, args.colours)


if __name__ == "__main__":
    main()
