"""Records the first training steps of Keras 3, in `keras.json`.

    pip install keras jax          # any backend does; jax is the quickest to install
    KERAS_BACKEND=jax python record_keras.py

The committed file was recorded with keras 3.15.1 on jax 0.10.2 and numpy 2.4.6 (float32, CPU).
Everything random here is drawn by numpy with a fixed seed, so another run gives the same inputs.
"""

import os
from pathlib import Path

os.environ.setdefault("KERAS_BACKEND", "jax")

import keras
import numpy as np

import recording
from recording import METRICS, adam, doubles, floats, integers, rms_prop, sgd

FEATURES, UNITS, BATCH, STEPS = 12, 5, 7, 5
FIT_ROWS, VAL_ROWS, FIT_EPOCHS = 17, 9, 3  # 17 rows in batches of 7: the last one has 3

rng = np.random.default_rng(20240607)


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
    "rmsprop": (lambda: keras.optimizers.RMSprop(learning_rate=0.01), rms_prop(0.01)),
    "rmsprop_momentum": (
        lambda: keras.optimizers.RMSprop(learning_rate=0.003, rho=0.8, momentum=0.5, epsilon=1e-5),
        rms_prop(0.003, rho=0.8, epsilon=1e-5, momentum=0.5),
    ),
    "adam": (lambda: keras.optimizers.Adam(learning_rate=0.01), adam(0.01)),
    "sgd": (lambda: keras.optimizers.SGD(learning_rate=0.5), sgd(0.5)),
    "sgd_momentum": (
        lambda: keras.optimizers.SGD(learning_rate=0.1, momentum=0.9),
        sgd(0.1, momentum=0.9),
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

# The same batches for every case: (features, labels in 0..2, labels in 0..3).
batches = [data(BATCH, 2) + (rng.integers(0, 3, BATCH),) for _ in range(STEPS)]

step_cases = []
for name, classes, units in STEP_CASES:
    make, optimizer = OPTIMIZERS[name]
    model, start = build(units, classes, make())
    steps = []
    for x, two, three in batches:
        labels = two if classes == 2 else three
        model.reset_metrics()
        logs = model.train_on_batch(x, targets(labels, classes), return_dict=True)
        steps.append(
            dict(
                loss=float(logs["loss"]),
                accuracy=float(logs["accuracy"]),
                weights=[floats(w) for w in model.get_weights()],
            )
        )
    step_cases.append(
        dict(
            name=f"{name}, {classes} classes, {units} units",
            optimizer=optimizer,
            classes=classes,
            start=[floats(w) for w in start],
            steps=steps,
        )
    )

fit_cases = []
for name, classes, units in FIT_CASES:
    make, optimizer = OPTIMIZERS[name]
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
    fit_cases.append(
        dict(
            name=f"{name}, {classes} classes",
            optimizer=optimizer,
            classes=classes,
            units=units,
            start=[floats(w) for w in start],
            features=floats(x),
            labels=integers(labels),
            val_features=floats(val_x),
            val_labels=integers(val_labels),
            **{key: doubles(history[key]) for key in METRICS},
        )
    )

recording.write(
    Path(__file__).with_name("keras.json"),
    features=FEATURES,
    batch=BATCH,
    batches=[
        dict(features=floats(x), two_classes=integers(two), three_classes=integers(three))
        for x, two, three in batches
    ],
    steps=step_cases,
    fits=fit_cases,
)
