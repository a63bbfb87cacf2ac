#!/usr/bin/env python3
"""Writes the calibration pictures of the shipped base: crops of photographs in the wheels of scikit-image and scikit-learn.

    python3 models/calibration_pictures.py FOLDER

models/make calls it. The same versions of the packages give the same files.
"""

import os
import random
import sys

import numpy as np
import skimage
import sklearn
from PIL import Image

SKIMAGE = os.path.join(os.path.dirname(skimage.__file__), "data")
SKLEARN = os.path.join(os.path.dirname(sklearn.__file__), "datasets", "images")
PHOTOS = [(os.path.join(SKIMAGE, name), 40) for name in
          ("astronaut.png", "chelsea.png", "coffee.png", "motorcycle_left.png", "rocket.jpg")]
PHOTOS += [(os.path.join(SKLEARN, name), 40) for name in ("china.jpg", "flower.jpg")]
# Textures, grey pictures, and pictures of science.
PHOTOS += [(os.path.join(SKIMAGE, name), 8) for name in
           ("brick.png", "camera.png", "clock_motion.png", "coins.png", "grass.png", "gravel.png",
            "hubble_deep_field.jpg", "ihc.png", "moon.png", "retina.jpg")]
SIDE = 128


def main():
    if len(sys.argv) != 2:
        sys.exit(__doc__)
    os.makedirs(sys.argv[1], exist_ok=True)
    chance = random.Random(1)
    for path, count in PHOTOS:
        with Image.open(path) as file:
            picture = file.convert("RGB")
        width, height = picture.size
        name = os.path.splitext(os.path.basename(path))[0]
        for index in range(count):
            # Crops from a half of the shorter side, where there are pixels enough, to all of it.
            shorter = min(width, height)
            side = int(shorter * 0.5 ** chance.random())
            side = max(side, min(SIDE, shorter))
            left, top = (int(chance.random() * (full - side + 1)) for full in (width, height))
            crop = picture.crop((left, top, left + side, top + side)).resize((SIDE, SIDE), Image.BILINEAR)
            crop.save(os.path.join(sys.argv[1], f"{name}-{index:02}.png"))


if __name__ == "__main__":
    main()
