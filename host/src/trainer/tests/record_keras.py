"""Records what Keras 3 does in its first training steps, for `keras_fixture.rs`.

    pip install keras jax          # any backend does; jax is the quickest to install
    KERAS_BACKEND=jax python record_keras.py > keras_fixture.rs

The committed fixture was recorded with keras 3.15.1 on jax 0.10.2 and numpy 2.4.6 (float32, CPU).
Everything random here is drawn by numpy with a fixed seed, so another run gives the same inputs.
"""

import os

os.environ.setdefault("KERAS_BACKEND", "jax")

import keras
import numpy as np

FEATURES, UNITS, BATCH, STEPS = 12, 5, 7, 5
FIT_ROWS, VAL_ROWS, FIT_EPOCHS = 17, 9, 3  # 17 rows in batches of 7: the last one has 3

rng = np.random.default_rng(20240607)


def floats(array):
    # The shortest decimals that read back as the same float32.
    return "&[" + ", ".join(str(v) for v in np.asarray(array, dtype=np.float32).ravel()) + "]"


def integers(array):
    return "&[" + ", ".join(str(int(v)) for v in np.asarray(array).ravel()) + "]"


def build(units, classes, optimizer):
    outputs = 1 if classes == 2 else classes
    layers = [keras.Input((FEATURES,))]
    if units:
        layers.append(keras.layers.Dense(units, activation="relu"))
        layers.append(keras.layers.Dropout(0.0))
    layers.append(keras.layers.Dense(outputs, activation="sigmoid" if classes == 2 else "softmax"))
    model = keras.Sequential(layers)
    weights = []
    for shape in [w.shape for w in model.weights]:
        scale = 0.6 if len(shape) == 2 else 0.1
        weights.append(rng.normal(0.0, scale, shape).astype(np.float32))
    model.set_weights(weights)
    loss = "binary_crossentropy" if classes == 2 else "categorical_crossentropy"
    model.compile(optimizer=optimizer, loss=loss, metrics=["accuracy"])
    return model, weights


def targets(labels, classes):
    if classes == 2:
        return np.asarray(labels, dtype=np.float32)[:, None]
    return np.eye(classes, dtype=np.float32)[labels]


def data(rows, classes):
    # Features as VGG16 gives them: not negative, many zeros.
    x = np.maximum(rng.normal(0.2, 1.0, (rows, FEATURES)), 0.0).astype(np.float32)
    return x, rng.integers(0, classes, rows)


OPTIMIZERS = {
    "rmsprop": (
        lambda: keras.optimizers.RMSprop(learning_rate=0.01),
        "Optimizer::RmsProp { lr: 0.01, rho: 0.9, epsilon: 1e-7, momentum: 0.0 }",
    ),
    "rmsprop_momentum": (
        lambda: keras.optimizers.RMSprop(learning_rate=0.003, rho=0.8, momentum=0.5, epsilon=1e-5),
        "Optimizer::RmsProp { lr: 0.003, rho: 0.8, epsilon: 1e-5, momentum: 0.5 }",
    ),
    "adam": (
        lambda: keras.optimizers.Adam(learning_rate=0.01),
        "Optimizer::Adam { lr: 0.01, beta1: 0.9, beta2: 0.999, epsilon: 1e-7 }",
    ),
    "sgd": (
        lambda: keras.optimizers.SGD(learning_rate=0.5),
        "Optimizer::Sgd { lr: 0.5, momentum: 0.0 }",
    ),
    "sgd_momentum": (
        lambda: keras.optimizers.SGD(learning_rate=0.1, momentum=0.9),
        "Optimizer::Sgd { lr: 0.1, momentum: 0.9 }",
    ),
}

STEP_CASES = [
    ("rmsprop", 2, UNITS),
    ("rmsprop_momentum", 2, UNITS),
    ("adam", 2, UNITS),
    ("sgd", 2, UNITS),
    ("sgd_momentum", 2, UNITS),
    ("rmsprop", 2, 0),
    ("rmsprop", 3, UNITS),
    ("adam", 3, UNITS),
    ("sgd_momentum", 3, UNITS),
]

FIT_CASES = [("rmsprop", 2, UNITS), ("adam", 3, UNITS)]

print("// Recorded by record_keras.py with Keras", keras.__version__, "on", keras.backend.backend() + ".")
print("// Do not edit: run the script again.\n")
print("use super::Optimizer;")
print("use super::keras::{Batch, FitCase, Step, StepCase};\n")
print(f"pub(super) const FEATURES: usize = {FEATURES};")
print(f"pub(super) const BATCH: usize = {BATCH};\n")

# The same batches for every case: (features, labels in 0..2, labels in 0..3).
batches = [data(BATCH, 2) + (rng.integers(0, 3, BATCH),) for _ in range(STEPS)]
print("#[rustfmt::skip]\npub(super) const BATCHES: &[Batch] = &[")
for x, two, three in batches:
    print("    Batch {")
    print(f"        features: {floats(x)},")
    print(f"        two_classes: {integers(two)},")
    print(f"        three_classes: {integers(three)},")
    print("    },")
print("];\n")

print("#[rustfmt::skip]\npub(super) const STEPS: &[StepCase] = &[")
for name, classes, units in STEP_CASES:
    make, rust = OPTIMIZERS[name]
    model, start = build(units, classes, make())
    print("    StepCase {")
    print(f'        name: "{name}, {classes} classes, {units} units",')
    print(f"        optimizer: {rust},")
    print(f"        classes: {classes},")
    print("        start: &[" + ", ".join(floats(w) for w in start) + "],")
    print("        steps: &[")
    for x, two, three in batches:
        labels = two if classes == 2 else three
        model.reset_metrics()
        logs = model.train_on_batch(x, targets(labels, classes), return_dict=True)
        print("            Step {")
        print(f"                loss: {float(logs['loss'])!r},")
        print(f"                accuracy: {float(logs['accuracy'])!r},")
        print("                weights: &[" + ", ".join(floats(w) for w in model.get_weights()) + "],")
        print("            },")
    print("        ],")
    print("    },")
print("];\n")

print("#[rustfmt::skip]\npub(super) const FITS: &[FitCase] = &[")
for name, classes, units in FIT_CASES:
    make, rust = OPTIMIZERS[name]
    model, start = build(units, classes, make())
    x, labels = data(FIT_ROWS, classes)
    val_x, val_labels = data(VAL_ROWS, classes)
    history = model.fit(
        x,
        targets(labels, classes),
        batch_size=BATCH,
        epochs=FIT_EPOCHS,
        shuffle=False,
        validation_data=(val_x, targets(val_labels, classes)),
        verbose=0,
    ).history
    print("    FitCase {")
    print(f'        name: "{name}, {classes} classes",')
    print(f"        optimizer: {rust},")
    print(f"        classes: {classes},")
    print(f"        units: {units},")
    print("        start: &[" + ", ".join(floats(w) for w in start) + "],")
    print(f"        features: {floats(x)},")
    print(f"        labels: {integers(labels)},")
    print(f"        val_features: {floats(val_x)},")
    print(f"        val_labels: {integers(val_labels)},")
    for key in ["loss", "accuracy", "val_loss", "val_accuracy"]:
        print(f"        {key}: &[" + ", ".join(repr(float(v)) for v in history[key]) + "],")
    print("    },")
print("];")
