"""Records what Keras 3's `ImageDataGenerator` does to small images, for the tests of `warp.rs`.

    pip install keras==3.15.1 jax numpy==2.4.6 scipy==1.17.1 pillow   # any backend works
    python record_keras.py                       # writes fixture.json and fixture.f32 beside itself

`fixture.json` holds the images (u8, height x width x 3) and the parameters, `fixture.f32` the
outputs of `apply_transform` one after the other, little-endian f32. All random numbers are drawn by
NumPy with a fixed seed, so that another run produces the same files. Parameters are drawn rather
than round, so that no coordinate lies within rounding of an edge, where `constant` and `wrap` jump;
integer shifts hit the edges, but exactly.
"""

import json
import os

os.environ.setdefault("KERAS_BACKEND", "jax")

import numpy as np
from keras.src.legacy.preprocessing.image import ImageDataGenerator

here = os.path.dirname(os.path.abspath(__file__))
rng = np.random.default_rng(20240607)
pictures = [rng.integers(0, 256, (9, 12, 3)), rng.integers(0, 256, (16, 16, 3))]
IDENTITY = dict(
    theta=0.0, tx=0.0, ty=0.0, shear=0.0, zx=1.0, zy=1.0,
    flip_horizontal=False, flip_vertical=False, brightness=None,
)


def draw():
    return dict(
        theta=rng.uniform(-40, 40),
        tx=rng.uniform(-4, 4),
        ty=rng.uniform(-4, 4),
        shear=rng.uniform(-30, 30),
        zx=rng.uniform(0.6, 1.5),
        zy=rng.uniform(0.6, 1.5),
        flip_horizontal=bool(rng.random() < 0.5),
        flip_vertical=bool(rng.random() < 0.5),
        brightness=None,
    )


cases = []
for fill in ["nearest", "reflect", "wrap", "constant"]:
    for number in range(6):
        cases.append((fill, number % 2, draw()))
    # Each part alone, large shifts that wrap around more than once, and integer shifts.
    for single in [
        dict(theta=33.3), dict(tx=2.0, ty=-3.0), dict(tx=-37.3, ty=41.7), dict(shear=-21.0),
        dict(zx=1.37, zy=0.71),
    ]:
        cases.append((fill, len(cases) % 2, IDENTITY | single))
for brightness in [0.37, 1.0, 1.8]:
    cases.append(("reflect", 1, draw() | dict(brightness=brightness)))
cases.append(("nearest", 0, IDENTITY | dict(flip_horizontal=True)))

outputs, listed = [], []
for fill, picture, parameters in cases:
    generator = ImageDataGenerator(
        fill_mode=fill, cval=77.0, data_format="channels_last", dtype="float32"
    )
    out = generator.apply_transform(pictures[picture].astype(np.float32), parameters)
    outputs.append(np.asarray(out, np.float32))
    listed.append(dict(fill=fill, picture=picture) | parameters)
with open(os.path.join(here, "fixture.json"), "w") as file:
    shapes = [
        dict(height=p.shape[0], width=p.shape[1], rgb=p.ravel().tolist()) for p in pictures
    ]
    file.write(json.dumps(dict(fill_value=77.0, pictures=shapes, cases=listed)) + "\n")
with open(os.path.join(here, "fixture.f32"), "wb") as file:
    for out in outputs:
        file.write(out.astype("<f4").tobytes())
print(len(cases), "cases")
