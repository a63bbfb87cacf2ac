#!/usr/bin/env python3
"""Make the sample data set and the sample video in this folder.

    python3 -m venv v && v/bin/pip install pillow==13.0.0 scikit-image==0.26.0
    v/bin/python samples/make_samples.py             # into this folder
    v/bin/python samples/make_samples.py --out DIR   # elsewhere, to compare

Made with (pinned):

    Python 3.11.7    Pillow 13.0.0    scikit-image 0.26.0

scikit-image is only used as the place where the source pictures are: its
wheel carries skimage/data/{brick,grass,gravel}.png, 512 x 512 grey pictures.
It is found but never imported, and the SHA-256 of each source picture is
checked, so another release that carries the same pictures would do. The bytes
of the JPEG files depend on the JPEG encoder inside Pillow's wheel; the bytes
of surfaces.y4m depend on nothing but the source pictures.

License of the sources: Creative Commons CC0, as said by the docstrings in
skimage/data/_fetchers.py (see README.md for the citations).

What is made:

    surfaces/{train,val}/{brick,grass,gravel}/NNN.jpg    96 x 96, quality 90
    surfaces.y4m                                160 x 120, 10 frames a second

Nothing random is left to chance: each picture has its own generator, seeded
with its own name, and only random.Random.random() is drawn from, whose
sequence Python promises to keep for a given seed.
"""

import argparse
import hashlib
import importlib.util
import io
import math
import pathlib
import platform
import random
import re
import sys

import PIL
from PIL import Image

PILLOW = "13.0.0"
PYTHON = "3.11"
SEED = "surfaces-1"

# The classes, in the order of the video, and the SHA-256 of their sources (the
# same as in skimage/data/_registry.py).
SOURCES = {
    "brick": "7966caf324f6ba843118d98f7a07746d22f6a343430add0233eca5f6eaaa8fcf",
    "grass": "b6b6022426b38936c43a4ac09635cd78af074e90f42ffa8227ac8b7452d39f89",
    "gravel": "c48615b451bf1e606fbd72c0aa9f8cc0f068ab7111ef7d93bb9b0f2586440c12",
}
SOURCE_SIZE = 512

# The columns each split may read, as [first, after the last), over the whole
# height. The 16 columns between them are never read by anything. Each area is
# cut out as a picture of its own before anything else happens to it, so no
# filter can reach across its edge.
AREAS = {"train": (0, 304), "val": (320, 512)}
COUNTS = {"train": 44, "val": 14}

# Pictures: a square window of the area, this many pixels wide (both ends
# included), scaled to SIDE x SIDE.
WINDOW = (96, 192)
SIDE = 96
QUALITY = 90
CONTRAST = (0.8, 1.15)  # a factor, about mid-grey
BRIGHTNESS = (-18.0, 18.0)  # added after the contrast

# Video: a window of the val area, not scaled, and where it is in frame k of
# each class, relative to the area.
VIDEO_SIZE = (160, 120)
VIDEO_FPS = 10
VIDEO_FRAMES = 15  # a class
VIDEO_STEP = (2, 28)  # right and down, in pixels a frame


def source_folder():
    """skimage/data in the installed wheel, without importing skimage."""
    spec = importlib.util.find_spec("skimage")
    if spec is None or spec.origin is None:
        sys.exit("scikit-image is not installed: pip install scikit-image==0.26.0")
    return pathlib.Path(spec.origin).parent / "data"


def load_areas():
    """{(split, class): the grey picture of that area}"""
    folder = source_folder()
    areas = {}
    for name, sha256 in SOURCES.items():
        data = (folder / f"{name}.png").read_bytes()
        if hashlib.sha256(data).hexdigest() != sha256:
            sys.exit(f"{folder / name}.png is not the picture that is meant")
        picture = Image.open(io.BytesIO(data))
        assert picture.mode == "L" and picture.size == (SOURCE_SIZE, SOURCE_SIZE)
        for split, (left, right) in AREAS.items():
            areas[split, name] = picture.crop((left, 0, right, SOURCE_SIZE))
    return areas


def between(rng, low, high):
    return low + (high - low) * rng.random()


def integer(rng, low, high):
    """A whole number from low to high, both included."""
    return low + int(rng.random() * (high - low + 1))


def make_picture(area, rng):
    """One SIDE x SIDE grey picture from a window of the area."""
    side = integer(rng, *WINDOW)
    left = integer(rng, 0, area.width - side)
    top = integer(rng, 0, area.height - side)
    window = area.crop((left, top, left + side, top + side))
    picture = window.resize((SIDE, SIDE), Image.Resampling.BICUBIC)
    if rng.random() < 0.5:
        picture = picture.transpose(Image.Transpose.FLIP_LEFT_RIGHT)
    if rng.random() < 0.5:
        picture = picture.transpose(Image.Transpose.FLIP_TOP_BOTTOM)
    contrast = between(rng, *CONTRAST)
    brightness = between(rng, *BRIGHTNESS)
    table = []
    for value in range(256):
        value = math.floor((value - 128) * contrast + 128 + brightness + 0.5)
        table.append(min(max(value, 0), 255))
    return picture.point(table)


def write_pictures(areas, out):
    for (split, name), area in areas.items():
        folder = out / "surfaces" / split / name
        folder.mkdir(parents=True, exist_ok=True)
        for old in folder.iterdir():  # only what an earlier run made
            if re.fullmatch(r"[0-9]{3}\.jpg", old.name):
                old.unlink()
        for index in range(COUNTS[split]):
            rng = random.Random(f"{SEED}/{split}/{name}/{index:03}")
            picture = make_picture(area, rng)
            # Even numbers are one-component (grey) JPEG files, odd ones are
            # three-component (YCbCr, 4:2:0) JPEG files of the same grey sort.
            options = {}
            if index % 2 == 1:
                picture = picture.convert("RGB")
                options["subsampling"] = "4:2:0"
            picture.save(
                folder / f"{index:03}.jpg",
                "JPEG",
                quality=QUALITY,
                optimize=True,  # better Huffman tables, still baseline
                progressive=False,
                **options,
            )


def write_video(areas, path):
    """YUV4MPEG2, by hand.

    In full-range BT.601 (as in JPEG) a grey R = G = B = v is Y = v and
    Cb = Cr = 128, so the luma plane is the grey picture as it is.
    """
    width, height = VIDEO_SIZE
    chroma = bytes([128]) * (2 * (width // 2) * (height // 2))
    parts = [
        f"YUV4MPEG2 W{width} H{height} F{VIDEO_FPS}:1 Ip A1:1 C420jpeg XCOLORRANGE=FULL\n".encode(
            "ascii"
        )
    ]
    for name in SOURCES:
        area = areas["val", name]
        for frame in range(VIDEO_FRAMES):
            left, top = frame * VIDEO_STEP[0], frame * VIDEO_STEP[1]
            assert left + width <= area.width and top + height <= area.height
            window = area.crop((left, top, left + width, top + height))
            parts += [b"FRAME\n", window.tobytes(), chroma]
    path.write_bytes(b"".join(parts))


def main():
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument(
        "--out",
        type=pathlib.Path,
        default=pathlib.Path(__file__).resolve().parent,
        help="where to write (default: the folder of this script)",
    )
    out = parser.parse_args().out

    if PIL.__version__ != PILLOW:
        print(
            f"note: Pillow {PIL.__version__}, not {PILLOW}: "
            "the JPEG bytes may differ from the ones kept",
            file=sys.stderr,
        )
    if not platform.python_version().startswith(PYTHON + "."):
        print(
            f"note: Python {platform.python_version()}, made with {PYTHON}",
            file=sys.stderr,
        )

    out.mkdir(parents=True, exist_ok=True)
    areas = load_areas()
    write_pictures(areas, out)
    write_video(areas, out / "surfaces.y4m")

    pictures = sorted((out / "surfaces").rglob("*.jpg"))
    together = hashlib.sha256()
    for path in pictures:
        together.update(path.relative_to(out).as_posix().encode() + b"\0")
        together.update(hashlib.sha256(path.read_bytes()).digest())
    video = (out / "surfaces.y4m").read_bytes()
    size = sum(path.stat().st_size for path in pictures)
    print(f"{len(pictures)} pictures, {size} bytes, sha256 {together.hexdigest()}")
    print(f"surfaces.y4m, {len(video)} bytes, sha256 {hashlib.sha256(video).hexdigest()}")


if __name__ == "__main__":
    main()
