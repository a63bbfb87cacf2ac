#!/usr/bin/env python3
"""Writes the calibration images of the shipped base.

    python3 models/calibration_pictures.py GCOMPRIS_DEB DIRECTORY

The images are crops of photographs in the wheels of scikit-image and scikit-learn, and the
photographs and paintings in Debian's package gcompris-qt-data, whole and their center. models/make
calls this program. The same versions of the packages give the same files.
"""

import hashlib
import io
import os
import random
import sys
import tarfile

import numpy as np
import skimage
import sklearn
from PIL import Image

SKIMAGE = os.path.join(os.path.dirname(skimage.__file__), "data")
SKLEARN = os.path.join(os.path.dirname(sklearn.__file__), "datasets", "images")
PHOTOS = [
    (os.path.join(SKIMAGE, name), 40)
    for name in ("astronaut.png", "chelsea.png", "coffee.png", "motorcycle_left.png", "rocket.jpg")
]
PHOTOS += [(os.path.join(SKLEARN, name), 40) for name in ("china.jpg", "flower.jpg")]
# Textures, grayscale and scientific images.
PHOTOS += [
    (os.path.join(SKIMAGE, name), 8)
    for name in (
        "brick.png",
        "camera.png",
        "clock_motion.png",
        "coins.png",
        "grass.png",
        "gravel.png",
        "hubble_deep_field.jpg",
        "ihc.png",
        "moon.png",
        "retina.jpg",
    )
]
SIDE = 128
# Smaller images of gcompris are icons.
SMALLEST = 96


def crops(folder):
    """Writes random crops of PHOTOS."""
    chance = random.Random(1)
    for path, count in PHOTOS:
        with Image.open(path) as file:
            picture = file.convert("RGB")
        width, height = picture.size
        name = os.path.splitext(os.path.basename(path))[0]
        for index in range(count):
            # Crops of half to all of the shorter side, if there are enough pixels.
            shorter = min(width, height)
            side = int(shorter * 0.5 ** chance.random())
            side = max(side, min(SIDE, shorter))
            left, top = (int(chance.random() * (full - side + 1)) for full in (width, height))
            crop = picture.crop((left, top, left + side, top + side)).resize(
                (SIDE, SIDE), Image.BILINEAR
            )
            crop.save(os.path.join(folder, f"{name}-{index:02}.png"))


def members(deb):
    """Yields name and content of the resource files in a Debian package.

    The package is an ar archive whose last member is data.tar.xz.
    """
    with open(deb, "rb") as file:
        content = file.read()
    at = content.index(b"data.tar.xz")
    size = int(content[at + 48 : at + 58])
    with tarfile.open(
        fileobj=io.BytesIO(content[at + 60 : at + 60 + size]), mode="r:xz"
    ) as archive:
        for member in sorted(archive.getmembers(), key=lambda member: member.name):
            if member.name.endswith(".rcc"):
                yield os.path.basename(member.name)[:-4], archive.extractfile(member).read()


def gcompris(deb, folder):
    """Writes the opaque WebP images, which Qt's resource files contain uncompressed."""
    seen = set()
    for name, content in members(deb):
        at = content.find(b"RIFF")
        while at >= 0:
            if content[at + 8 : at + 12] == b"WEBP":
                webp = content[at : at + 8 + int.from_bytes(content[at + 4 : at + 8], "little")]
                digest = hashlib.sha256(webp).digest()
                picture = Image.open(io.BytesIO(webp))
                if picture.mode == "RGB" and min(picture.size) >= SMALLEST and digest not in seen:
                    seen.add(digest)
                    width, height = picture.size
                    middle = picture.crop(
                        (width // 5, height // 5, width - width // 5, height - height // 5)
                    )
                    picture.save(os.path.join(folder, f"gw_{name}-{at:08}.png"))
                    middle.save(os.path.join(folder, f"gc_{name}-{at:08}.png"))
            at = content.find(b"RIFF", at + 4)


def main():
    if len(sys.argv) != 3:
        sys.exit(__doc__)
    os.makedirs(sys.argv[2], exist_ok=True)
    crops(sys.argv[2])
    gcompris(sys.argv[1], sys.argv[2])


if __name__ == "__main__":
    main()
