#!/usr/bin/env python3
"""Measures images per second of Keras, for comparison with `host extract`.

    pip install tensorflow-cpu pillow
    benchmarks/keras_extract.py DIRECTORY [LIMIT]

Decodes the files of a directory, resizes them to 64 px and calls `predict`. The weights do not
affect the speed, so none are downloaded. Prints the time of decoding and of `predict` with batches
of 32.
"""

import os
import sys
import time

os.environ["TF_CPP_MIN_LOG_LEVEL"] = "3"
import numpy as np  # noqa: E402
import tensorflow as tf  # noqa: E402
from PIL import Image  # noqa: E402

files = sorted(
    os.path.join(folder, name)
    for folder, _, names in os.walk(sys.argv[1])
    for name in names
    if name.lower().endswith((".jpg", ".jpeg", ".png"))
)[: int(sys.argv[2]) if len(sys.argv) > 2 else None]
model = tf.keras.applications.VGG16(weights=None, include_top=False, input_shape=(64, 64, 3))
model.predict(np.zeros((32, 64, 64, 3), np.float32), verbose=0)
start = time.time()
batch = np.stack(
    [
        np.asarray(Image.open(path).convert("RGB").resize((64, 64), Image.BILINEAR), np.float32)
        for path in files
    ]
)
decoded = time.time()
model.predict(tf.keras.applications.vgg16.preprocess_input(batch), batch_size=32, verbose=0)
end = time.time()
print(
    f"{len(files)} photographs: decode {decoded - start:.2f} s, predict {end - decoded:.2f} s, "
    f"{len(files) / (end - start):.1f} a second"
)
