#!/usr/bin/env python3
"""Compares `host train` with Keras: the tutorial's recipe A, and fine-tuning of block 5.

    pip install keras==3.15.1 tensorflow-cpu onnx pillow
    benchmarks/recipes.py a ../shared/data/cats_dogs --base f32.onnx --seeds 5
    benchmarks/recipes.py a ../shared/data/cats_dogs --base f32.onnx --first-seed 2 --seeds 1 \\
        --log runs.ndjson
    benchmarks/recipes.py fine-tune ../shared/data/clothing --base f32.onnx --size 128 --epochs 6 \\
        --seeds 1

a: features of the frozen base, then Dense 256 + Dropout 0.5 + sigmoid with RMSprop at 2e-5, 100
epochs, batches of 100. The time is that of the whole run from files (read the weights, decode,
extract, train); each program runs in its own process, alternating with one seed each. `seconds` is
the time of the whole process; `seconds_after_imports` excludes, for Keras, the start of Python, the
import of Keras and TensorFlow, and the shutdown; for `host`, which imports nothing, it equals
`seconds`. Which is the fair comparison depends on whether a user starts Python for each training,
so both ratios are printed.

fine-tune: a head as `host train` makes it (Dense 256, dropout 0.5, Adam at 0.001, the best epoch of
60 with patience 10), then block 5 and the head with RMSprop at 1e-5, batches of 32, from the
features of block 4, which is equivalent to training the whole model with the rest frozen and in
inference mode. `seconds` of `host` include the new quantization of the block, and benefit from
features of the frozen part in the cache of an earlier seed; only `epoch_s` is comparable.

Both use the same weights. Keras resizes images with Pillow's bilinear filter, as `host` does, and
subtracts the means of the weights. The seeds of the two programs are unrelated.
"""

import argparse
import json
import os
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
parser.add_argument("recipe", choices=["a", "fine-tune"])
options(parser, seeds=5)
parser.add_argument("--epochs", type=int, default=6, help="of fine-tuning")
arguments = parser.parse_args()


def folder(part):
    return os.path.join(arguments.data, part)


def pictures(part):
    import numpy as np
    from keras.applications.vgg16 import preprocess_input
    from PIL import Image

    names = sorted(os.listdir(folder(part)))
    files = [
        (os.path.join(folder(part), name, file), label)
        for label, name in enumerate(names)
        for file in sorted(os.listdir(os.path.join(folder(part), name)))
    ]
    side = (arguments.size, arguments.size)
    pixels = np.stack(
        [
            np.asarray(Image.open(path).convert("RGB").resize(side, Image.BILINEAR), np.float32)
            for path, _ in files
        ]
    )
    return preprocess_input(pixels), np.array([label for _, label in files]), len(names)


def vgg16():
    import keras

    base = keras.applications.VGG16(
        weights=None, include_top=False, input_shape=(arguments.size, arguments.size, 3)
    )
    load_weights(base, arguments.base)
    return base


def dense(shape, classes):
    import keras

    last = (
        keras.layers.Dense(1, activation="sigmoid")
        if classes == 2
        else keras.layers.Dense(classes, activation="softmax")
    )
    return keras.Sequential(
        [
            keras.Input(shape),
            keras.layers.Flatten(),
            keras.layers.Dense(256, activation="relu"),
            keras.layers.Dropout(0.5),
            last,
        ]
    )


def keras_a(seed):
    import keras

    keras.utils.set_random_seed(seed)
    base = vgg16()
    (x, y, classes), (vx, vy, _) = pictures("train"), pictures("validation")
    features, val_features = (
        base.predict(x, batch_size=32, verbose=0),
        base.predict(vx, batch_size=32, verbose=0),
    )
    model = dense(features.shape[1:], classes)
    model.compile(
        optimizer=keras.optimizers.RMSprop(2e-5), loss="binary_crossentropy", metrics=["accuracy"]
    )
    history = model.fit(
        features, y, epochs=100, batch_size=100, validation_data=(val_features, vy), verbose=0
    ).history
    return {"last": history["val_accuracy"][-1], "best": max(history["val_accuracy"])}


def keras_fine_tune(seed):
    import keras

    keras.utils.set_random_seed(seed)
    base = vgg16()
    (x, y, classes), (vx, vy, _) = pictures("train"), pictures("validation")
    frozen = keras.Model(base.input, base.get_layer("block4_pool").output)
    x, vx = (
        frozen.predict(x, batch_size=32, verbose=0),
        frozen.predict(vx, batch_size=32, verbose=0),
    )
    block = keras.Sequential(
        [keras.Input(x.shape[1:])]
        + [layer for layer in base.layers if layer.name.startswith("block5")]
    )
    features, val_features = (
        block.predict(x, batch_size=32, verbose=0),
        block.predict(vx, batch_size=32, verbose=0),
    )
    head = dense(features.shape[1:], classes)
    loss = "binary_crossentropy" if classes == 2 else "sparse_categorical_crossentropy"
    head.compile(optimizer=keras.optimizers.Adam(1e-3), loss=loss, metrics=["accuracy"])
    stop = keras.callbacks.EarlyStopping("val_accuracy", patience=10, restore_best_weights=True)
    head.fit(
        features,
        y,
        epochs=60,
        batch_size=32,
        validation_data=(val_features, vy),
        verbose=0,
        callbacks=[stop],
    )
    before = head.evaluate(val_features, vy, verbose=0)[1]
    model = keras.Sequential([block, head])
    model.compile(optimizer=keras.optimizers.RMSprop(1e-5), loss=loss, metrics=["accuracy"])
    start = time.time()
    history = model.fit(
        x, y, epochs=arguments.epochs, batch_size=32, validation_data=(vx, vy), verbose=0
    ).history
    return {
        "frozen": before,
        "best": max([before] + history["val_accuracy"]),
        "last": history["val_accuracy"][-1],
        "epoch_s": (time.time() - start) / arguments.epochs,
        "val_accuracy": history["val_accuracy"],
    }


def keras_run(seed):
    """A run of Keras in this process, timed from after the imports."""
    import keras  # noqa: F401  with TensorFlow, which takes seconds
    import numpy  # noqa: F401
    import onnx  # noqa: F401
    from PIL import Image  # noqa: F401

    start = time.time()
    figures = keras_a(seed) if arguments.recipe == "a" else keras_fine_tune(seed)
    return {**figures, "seconds_after_imports": time.time() - start}


def ours(seed, scratch):
    head = os.path.join(scratch, "head.postcard")
    command = [
        arguments.host,
        "train",
        arguments.data,
        "-o",
        head,
        "--json",
        "--size",
        str(arguments.size),
        "--seed",
        str(seed),
    ]
    if arguments.recipe == "a":
        command += ["--recipe", "seed"]
    else:
        command += [
            "--fine-tune",
            "block5",
            "--fine-tune-epochs",
            str(arguments.epochs),
            "--fine-tune-patience",
            "0",
            "--cache",
            os.path.join(scratch, "cache"),
        ]
    process = subprocess.Popen(
        command, stdout=subprocess.PIPE, stderr=subprocess.DEVNULL, text=True
    )
    lines, ends = [], []
    for line in process.stdout:
        lines.append(json.loads(line))
        ends.append(time.time())
    if process.wait():
        raise SystemExit(f"{' '.join(command)} failed")
    results = [line for line in lines if "head" in line]
    if arguments.recipe == "a":
        epochs = [line["val_accuracy"] for line in lines if "epoch" in line]
        return {"last": epochs[-1], "best": results[-1]["val_accuracy"]}
    tuning = [(line, end) for line, end in zip(lines, ends) if line.get("fine_tune")]
    return {
        "frozen": results[0]["val_accuracy"],
        "best": results[-1]["val_accuracy"],
        "f32": max(line["val_accuracy"] for line, _ in tuning),
        "last": tuning[-1][0]["val_accuracy"],
        "epoch_s": (tuning[-1][1] - tuning[0][1]) / max(len(tuning) - 1, 1),
        "val_accuracy": [line["val_accuracy"] for line, _ in tuning],
    }


def main():
    settings = {
        "script": "recipes",
        "recipe": arguments.recipe,
        "data": os.path.basename(os.path.normpath(arguments.data)),
        "size": arguments.size,
    }
    if arguments.recipe == "fine-tune":
        settings["epochs"] = arguments.epochs
    log = Log(arguments.log, settings)
    with tempfile.TemporaryDirectory() as scratch:
        for seed in seeds(arguments):
            for program in ("host", "keras"):
                if arguments.only not in (None, program):
                    continue
                start = time.time()
                figures = ours(seed, scratch) if program == "host" else keras_process(seed)
                figures["seconds"] = time.time() - start
                if program == "host":
                    figures["seconds_after_imports"] = figures["seconds"]
                log.add(program, seed, figures)
    for program in ("host", "keras"):
        runs = [run for run in log.runs if run["program"] == program]
        if runs:
            print(f"{program}, {len(runs)} seeds")
            for figure in [name for name, value in runs[0].items() if isinstance(value, float)]:
                print(f"  {figure}: {spread([run[figure] for run in runs], 4)}")
    for figure in ["seconds", "seconds_after_imports"] if arguments.recipe == "a" else ["epoch_s"]:
        if ratios := log.ratio(figure):
            print(f"keras over host, {figure}: {spread(ratios, 2)}; {len(ratios)} seeds")


if arguments.keras_seed is not None:
    print(json.dumps(keras_run(arguments.keras_seed)))
    sys.exit()
main()
