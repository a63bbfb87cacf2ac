#!/usr/bin/env python3
"""Augmented training: `host train --augment` beside the Keras tutorial's recipe B (ImageDataGenerator, frozen VGG16, a dense head).

    pip install keras==3.15.1 tensorflow-cpu scipy==1.17.1 onnx pillow
    cargo build --release --locked --workspace --bins
    host base import WEIGHTS -o f32.onnx                    # the f32 base, of the same weights as the shipped int8 one
    benchmarks/augment.py ../shared/data/cats_dogs --base f32.onnx --epochs 10 --seeds 3

Both train on fresh variants in each epoch with the tutorial's values (rotation 40, shifts, shear and zoom 0.2, horizontal flip; batches of 20, 256 units,
dropout 0.5, RMSprop at 2e-5) and validate on the whole validation folder. Keras subtracts the mean of the weights rather than dividing by 255, as the base does
(--rescale: as the tutorial). Time of an epoch: median from the second epoch on, validation within; `host` runs the base over the validation pictures once,
before the first epoch, so that time is told apart. --limit takes the first pictures of each class, to try the script.
"""

import argparse
import json
import os
import statistics
import subprocess
import tempfile
import time

os.environ.setdefault("TF_CPP_MIN_LOG_LEVEL", "3")
os.environ.setdefault("KERAS_BACKEND", "tensorflow")

parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
parser.add_argument("data", help="folder with train/ and validation/")
parser.add_argument("--host", default="target/release/host")
parser.add_argument("--base", required=True, help="the f32 base as ONNX, for Keras's weights")
parser.add_argument("--size", type=int, default=64)
parser.add_argument("--epochs", type=int, default=10)
parser.add_argument("--seeds", type=int, default=3)
parser.add_argument("--batch-size", type=int, default=20)
parser.add_argument("--lr", type=float, default=2e-5)
parser.add_argument("--limit", type=int)
parser.add_argument("--rescale", action="store_true")
parser.add_argument("--skip-keras", action="store_true")
arguments = parser.parse_args()


def limited(folder):
    """A folder of links to the first pictures of each class."""
    for part in ("train", "validation"):
        for name in sorted(os.listdir(os.path.join(arguments.data, part))):
            os.makedirs(os.path.join(folder, part, name))
            source = os.path.join(arguments.data, part, name)
            for file in sorted(os.listdir(source))[:arguments.limit]:
                os.symlink(os.path.abspath(os.path.join(source, file)), os.path.join(folder, part, name, file))
    return folder


def ours(data, seed, folder):
    command = [arguments.host, "train", data, "-o", os.path.join(folder, "head.postcard"), "--json", "--augment", "--recipe", "seed",
               "--size", str(arguments.size), "--epochs", str(arguments.epochs), "--batch-size", str(arguments.batch_size),
               "--lr", str(arguments.lr), "--seed", str(seed)]
    start = time.time()
    process = subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.DEVNULL, text=True)
    ends, lines = [], []
    for line in process.stdout:
        ends.append(time.time())
        lines.append(json.loads(line))
    if process.wait():
        raise SystemExit(f"{' '.join(command)} failed")
    epochs = [line for line in lines if "epoch" in line]
    ends = ends[:len(epochs)]
    seconds = [b - a for a, b in zip(ends, ends[1:])]
    return seconds, ends[0] - start, [epoch["val_accuracy"] for epoch in epochs]


def load_weights(model):
    """The f32 base's kernels, in the order of its graph."""
    import onnx
    from onnx import numpy_helper

    graph = onnx.load(arguments.base).graph
    tensors = {tensor.name: numpy_helper.to_array(tensor) for tensor in graph.initializer}
    convolutions = [node for node in graph.node if node.op_type == "Conv"]
    layers = [layer for layer in model.layers if "conv" in layer.name]
    assert len(convolutions) == len(layers) == 13
    for node, layer in zip(convolutions, layers):
        layer.set_weights([tensors[node.input[1]].transpose(2, 3, 1, 0), tensors[node.input[2]]])


def keras_recipe(data, seed):
    import keras
    from keras.src.legacy.preprocessing.image import ImageDataGenerator

    keras.utils.set_random_seed(seed)
    side = arguments.size
    base = keras.applications.VGG16(weights=None, include_top=False, input_shape=(side, side, 3))
    load_weights(base)
    base.trainable = False
    model = keras.Sequential([
        base, keras.layers.Flatten(), keras.layers.Dense(256, activation="relu"), keras.layers.Dropout(0.5),
        keras.layers.Dense(1, activation="sigmoid"),
    ])
    model.compile(optimizer=keras.optimizers.RMSprop(learning_rate=arguments.lr), loss="binary_crossentropy", metrics=["accuracy"])
    pixels = dict(rescale=1 / 255) if arguments.rescale else dict(preprocessing_function=keras.applications.vgg16.preprocess_input)
    augmented = ImageDataGenerator(rotation_range=40, width_shift_range=0.2, height_shift_range=0.2, shear_range=0.2, zoom_range=0.2,
                                   horizontal_flip=True, fill_mode="nearest", **pixels)
    flow = dict(target_size=(side, side), batch_size=arguments.batch_size, class_mode="binary", interpolation="bilinear")
    train = augmented.flow_from_directory(os.path.join(data, "train"), seed=seed, **flow)
    validation = ImageDataGenerator(**pixels).flow_from_directory(os.path.join(data, "validation"), shuffle=False, **flow)
    seconds = []

    class Clock(keras.callbacks.Callback):
        def on_epoch_begin(self, epoch, logs=None):
            self.start = time.time()

        def on_epoch_end(self, epoch, logs=None):
            seconds.append(time.time() - self.start)

    history = model.fit(train, epochs=arguments.epochs, validation_data=validation, verbose=0, callbacks=[Clock()]).history
    return seconds[1:], seconds[0], [float(value) for value in history["val_accuracy"]]


def report(name, runs):
    seconds = [second for run in runs for second in run[0]]
    last, best = [run[2][-1] for run in runs], [max(run[2]) for run in runs]
    print(f"{name}: {statistics.median(seconds):.2f} s an epoch (the first, with what goes before: {statistics.median(r[1] for r in runs):.2f} s); "
          f"val_accuracy after {arguments.epochs} epochs {statistics.mean(last):.4f} (from {min(last):.4f} to {max(last):.4f}), "
          f"of the best epoch {statistics.mean(best):.4f}; {len(runs)} seeds", flush=True)


with tempfile.TemporaryDirectory() as scratch:
    data = limited(os.path.join(scratch, "data")) if arguments.limit else arguments.data
    report("host", [ours(data, seed, scratch) for seed in range(arguments.seeds)])
    if not arguments.skip_keras:
        report("keras", [keras_recipe(data, seed) for seed in range(arguments.seeds)])
