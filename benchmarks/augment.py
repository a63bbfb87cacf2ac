#!/usr/bin/env python3
"""Compares `host train --augment` with recipe B of the Keras tutorial.

    pip install keras==3.15.1 tensorflow-cpu scipy==1.17.1 onnx pillow
    cargo build --release --locked --workspace --bins
    # The f32 base, with the same weights as the shipped int8 base.
    host base import WEIGHTS -o f32.onnx
    benchmarks/augment.py ../shared/data/cats_dogs --base f32.onnx --epochs 10 --seeds 3
    # In pieces.
    benchmarks/augment.py ../shared/data/cats_dogs --base f32.onnx --first-seed 1 --seeds 1 \\
        --log runs.ndjson

Recipe B is ImageDataGenerator, a frozen VGG16 and a dense head. Both programs train on new variants
in each epoch with the tutorial's values (rotation 40, shifts, shear and zoom 0.2, horizontal flip;
batches of 20, 256 units, dropout 0.5, RMSprop at 2e-5) and validate on the whole validation
directory. Keras subtracts the mean of the weights, as the base does, rather than dividing by 255
(--rescale: as the tutorial). Each program runs in its own process, alternating with one seed each.

The time of an epoch is the median from the second epoch on, including validation. `host` runs the
base on the validation images once, before the first epoch, so `first_s`, the time of the first
epoch with everything before it, is reported separately (for Keras without its imports). --limit
uses only the first images of each class, to try the script.
"""

import argparse
import json
import os
import statistics
import subprocess
import sys
import tempfile
import time

from comparison import Log, keras_process, load_weights, options, seeds, spread

os.environ.setdefault("TF_CPP_MIN_LOG_LEVEL", "3")
os.environ.setdefault("KERAS_BACKEND", "tensorflow")

parser = argparse.ArgumentParser(
    description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
)
options(parser, seeds=3)
parser.add_argument("--epochs", type=int, default=10)
parser.add_argument("--batch-size", type=int, default=20)
parser.add_argument("--lr", type=float, default=2e-5)
parser.add_argument("--limit", type=int)
parser.add_argument("--rescale", action="store_true")
arguments = parser.parse_args()


def limited(folder):
    """Makes a directory of links to the first images of each class."""
    for part in ("train", "validation"):
        for name in sorted(os.listdir(os.path.join(arguments.data, part))):
            os.makedirs(os.path.join(folder, part, name))
            source = os.path.join(arguments.data, part, name)
            for file in sorted(os.listdir(source))[: arguments.limit]:
                os.symlink(
                    os.path.abspath(os.path.join(source, file)),
                    os.path.join(folder, part, name, file),
                )
    return folder


def figures(seconds, first, val_accuracy):
    """Returns the logged values of a run: `seconds` are those of epochs from the second on."""
    return {
        "epoch_s": statistics.median(seconds),
        "first_s": first,
        "last": val_accuracy[-1],
        "best": max(val_accuracy),
        "epochs_s": seconds,
        "val_accuracy": val_accuracy,
    }


def ours(data, seed, folder):
    command = [
        arguments.host,
        "train",
        data,
        "-o",
        os.path.join(folder, "head.postcard"),
        "--json",
        "--augment",
        "--recipe",
        "seed",
        "--size",
        str(arguments.size),
        "--epochs",
        str(arguments.epochs),
        "--batch-size",
        str(arguments.batch_size),
        "--lr",
        str(arguments.lr),
        "--seed",
        str(seed),
    ]
    start = time.time()
    process = subprocess.Popen(
        command, stdout=subprocess.PIPE, stderr=subprocess.DEVNULL, text=True
    )
    ends, lines = [], []
    for line in process.stdout:
        ends.append(time.time())
        lines.append(json.loads(line))
    if process.wait():
        raise SystemExit(f"{' '.join(command)} failed")
    epochs = [line for line in lines if "epoch" in line]
    ends = ends[: len(epochs)]
    return figures(
        [b - a for a, b in zip(ends, ends[1:])],
        ends[0] - start,
        [epoch["val_accuracy"] for epoch in epochs],
    )


def keras_recipe(data, seed):
    import keras
    from keras.src.legacy.preprocessing.image import ImageDataGenerator

    begin = time.time()
    keras.utils.set_random_seed(seed)
    side = arguments.size
    base = keras.applications.VGG16(weights=None, include_top=False, input_shape=(side, side, 3))
    load_weights(base, arguments.base)
    base.trainable = False
    model = keras.Sequential(
        [
            base,
            keras.layers.Flatten(),
            keras.layers.Dense(256, activation="relu"),
            keras.layers.Dropout(0.5),
            keras.layers.Dense(1, activation="sigmoid"),
        ]
    )
    model.compile(
        optimizer=keras.optimizers.RMSprop(learning_rate=arguments.lr),
        loss="binary_crossentropy",
        metrics=["accuracy"],
    )
    pixels = (
        dict(rescale=1 / 255)
        if arguments.rescale
        else dict(preprocessing_function=keras.applications.vgg16.preprocess_input)
    )
    augmented = ImageDataGenerator(
        rotation_range=40,
        width_shift_range=0.2,
        height_shift_range=0.2,
        shear_range=0.2,
        zoom_range=0.2,
        horizontal_flip=True,
        fill_mode="nearest",
        **pixels,
    )
    flow = dict(
        target_size=(side, side),
        batch_size=arguments.batch_size,
        class_mode="binary",
        interpolation="bilinear",
    )
    train = augmented.flow_from_directory(os.path.join(data, "train"), seed=seed, **flow)
    validation = ImageDataGenerator(**pixels).flow_from_directory(
        os.path.join(data, "validation"), shuffle=False, **flow
    )
    ends = []

    class Clock(keras.callbacks.Callback):
        def on_epoch_end(self, epoch, logs=None):
            ends.append(time.time())

    history = model.fit(
        train, epochs=arguments.epochs, validation_data=validation, verbose=0, callbacks=[Clock()]
    ).history
    return figures(
        [b - a for a, b in zip(ends, ends[1:])],
        ends[0] - begin,
        [float(value) for value in history["val_accuracy"]],
    )


def main(scratch):
    data = limited(os.path.join(scratch, "data")) if arguments.limit else arguments.data
    settings = {
        "script": "augment",
        "data": os.path.basename(os.path.normpath(arguments.data)),
        "size": arguments.size,
        "epochs": arguments.epochs,
        "batch_size": arguments.batch_size,
        "lr": arguments.lr,
        "limit": arguments.limit,
        "rescale": arguments.rescale,
    }
    log = Log(arguments.log, settings)
    for seed in seeds(arguments):
        for program in ("host", "keras"):
            if arguments.only in (None, program):
                log.add(
                    program,
                    seed,
                    ours(data, seed, scratch) if program == "host" else keras_process(seed),
                )
    for program in ("host", "keras"):
        runs = [run for run in log.runs if run["program"] == program]
        if runs:
            seconds = [second for run in runs for second in run["epochs_s"]]
            print(f"{program}, {len(runs)} seeds\n  seconds of an epoch: {spread(seconds, 2)}")
            for figure in ("first_s", "last", "best"):
                print(f"  {figure}: {spread([run[figure] for run in runs], 4)}")
    if ratios := log.ratio("epoch_s"):
        print(
            f"keras over host, median seconds of an epoch: {spread(ratios, 2)}; {len(ratios)} seeds"
        )


with tempfile.TemporaryDirectory() as scratch:
    if arguments.keras_seed is not None:
        data = limited(os.path.join(scratch, "data")) if arguments.limit else arguments.data
        print(json.dumps(keras_recipe(data, arguments.keras_seed)))
        sys.exit()
    main(scratch)
