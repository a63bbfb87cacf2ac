"""Records Keras 3 with L2, class weights, label smoothing, batch normalization, several hidden
layers and schedules of the learning rate, in `keras_options.json`.

    pip install keras==3.15.1 jax          # any backend does; jax is the quickest to install
    KERAS_BACKEND=jax python record_keras_options.py

The committed file was recorded with keras 3.15.1 on jax (float32, CPU) and numpy 2.4.6. Everything
random here is drawn by numpy with a fixed seed, so another run gives the same inputs. Each case is
`model.fit` over a few epochs without shuffling, in batches of 7 of 17 rows (the last one has 3),
with a validation set.
"""

import os
from pathlib import Path

os.environ.setdefault("KERAS_BACKEND", "jax")

import keras
import numpy as np

import recording
from recording import METRICS, adam, doubles, floats, integers, rms_prop, sgd

FEATURES, BATCH, ROWS, VAL_ROWS = 12, 7, 17, 9
BATCHES = -(-ROWS // BATCH)

rng = np.random.default_rng(20261124)


def tensors(model):
    return [floats(w) for w in model.get_weights()]


# name: the optimizer of Keras, and the one that is recorded.
OPTIMIZERS = {
    "sgd": (keras.optimizers.SGD, dict(momentum=0.9), lambda lr: sgd(lr, momentum=0.9)),
    "rmsprop": (keras.optimizers.RMSprop, {}, rms_prop),
    "adam": (keras.optimizers.Adam, {}, adam),
}

DEFAULTS = dict(
    classes=3,
    units=[5],
    optimizer="sgd",
    lr=0.05,
    batch_norm=False,
    l2=0.0,
    class_weights=[],
    smoothing=0.0,
    schedule="Constant",
    epochs=3,
)

CASES = [
    dict(name="two hidden layers", units=[6, 4], optimizer="adam", lr=0.01),
    dict(name="L2", l2=0.01),
    dict(name="L2, two classes, RMSprop", classes=2, l2=0.003, optimizer="rmsprop", lr=0.01),
    dict(name="class weights", class_weights=[0.5, 2.0, 1.25]),
    dict(
        name="class weights, two classes",
        classes=2,
        class_weights=[0.25, 3.0],
        optimizer="adam",
        lr=0.01,
    ),
    dict(name="label smoothing", smoothing=0.1),
    dict(name="label smoothing, two classes", classes=2, smoothing=0.2),
    dict(name="batch normalization", batch_norm=True),
    dict(
        name="batch normalization, two layers, RMSprop",
        batch_norm=True,
        units=[6, 4],
        optimizer="rmsprop",
        lr=0.01,
    ),
    dict(
        name="batch normalization, Adam, two classes",
        batch_norm=True,
        classes=2,
        optimizer="adam",
        lr=0.01,
    ),
    dict(name="cosine", schedule="Cosine", optimizer="adam", lr=0.02, epochs=4),
    dict(name="step", schedule={"Step": dict(epochs=2)}, epochs=5),
    dict(name="plateau", schedule={"Plateau": dict(patience=2)}, epochs=9, lr=0.3),
    dict(
        name="everything",
        units=[6, 4],
        batch_norm=True,
        l2=0.002,
        class_weights=[0.5, 2.0, 1.25],
        smoothing=0.1,
        schedule="Cosine",
        optimizer="adam",
        lr=0.02,
    ),
]


class Rate(keras.callbacks.Callback):
    """Keeps the learning rate of the last step of each epoch."""

    def __init__(self):
        super().__init__()
        self.rates = []

    def on_train_batch_begin(self, batch, logs=None):
        # Read before the step: a schedule is a function of the steps done.
        self.rate = float(keras.ops.convert_to_numpy(self.model.optimizer.learning_rate))

    def on_epoch_end(self, epoch, logs=None):
        self.rates.append(self.rate)


cases = []
for case in CASES:
    case = DEFAULTS | case
    classes, steps = case["classes"], case["epochs"] * BATCHES
    rate = case["lr"]
    callbacks = [Rate()]
    if case["schedule"] == "Cosine":
        rate = keras.optimizers.schedules.CosineDecay(case["lr"], steps)
    elif "Step" in case["schedule"]:
        rate = keras.optimizers.schedules.ExponentialDecay(
            case["lr"], 2 * BATCHES, 0.1, staircase=True
        )
    elif "Plateau" in case["schedule"]:
        callbacks.append(keras.callbacks.ReduceLROnPlateau(factor=0.5, patience=2))
    make, options, recorded = OPTIMIZERS[case["optimizer"]]
    regularizer = keras.regularizers.L2(case["l2"]) if case["l2"] else None
    layers = [keras.Input((FEATURES,))]
    for units in case["units"]:
        norm = case["batch_norm"]
        layers.append(keras.layers.Dense(units, use_bias=not norm, kernel_regularizer=regularizer))
        if norm:
            layers.append(keras.layers.BatchNormalization())
        layers.append(keras.layers.ReLU())
    outputs = 1 if classes == 2 else classes
    activation = "sigmoid" if classes == 2 else "softmax"
    layers.append(
        keras.layers.Dense(outputs, activation=activation, kernel_regularizer=regularizer)
    )
    model = keras.Sequential(layers)
    start = []
    for weight in model.weights:
        shape = weight.shape
        if weight.name in ("gamma", "moving_variance"):
            start.append(rng.uniform(0.5, 1.5, shape).astype(np.float32))
        else:
            start.append(rng.normal(0.0, 0.5 if len(shape) == 2 else 0.1, shape).astype(np.float32))
    model.set_weights(start)
    loss = keras.losses.BinaryCrossentropy if classes == 2 else keras.losses.CategoricalCrossentropy
    model.compile(
        optimizer=make(learning_rate=rate, **options),
        loss=loss(label_smoothing=case["smoothing"]),
        metrics=["accuracy"],
    )

    def data(rows):
        # Features as VGG16 gives them: not negative, many zeros.
        x = np.maximum(rng.normal(0.2, 1.0, (rows, FEATURES)), 0.0).astype(np.float32)
        labels = rng.integers(0, classes, rows)
        one_hot = (
            labels.astype(np.float32)[:, None]
            if classes == 2
            else np.eye(classes, dtype=np.float32)[labels]
        )
        return x, labels, one_hot

    (x, labels, y), (val_x, val_labels, val_y) = data(ROWS), data(VAL_ROWS)
    weights = case["class_weights"]
    begin = tensors(model)
    history = model.fit(
        x,
        y,
        batch_size=BATCH,
        epochs=case["epochs"],
        shuffle=False,
        validation_data=(val_x, val_y),
        verbose=0,
        class_weight=dict(enumerate(weights)) if weights else None,
        callbacks=callbacks,
    ).history
    cases.append(
        dict(
            name=case["name"],
            optimizer=recorded(case["lr"]),
            classes=classes,
            units=case["units"],
            batch_norm=case["batch_norm"],
            l2=case["l2"],
            class_weights=doubles(weights),
            label_smoothing=case["smoothing"],
            schedule=case["schedule"],
            start=begin,
            features=floats(x),
            labels=integers(labels),
            val_features=floats(val_x),
            val_labels=integers(val_labels),
            **{key: doubles(history[key]) for key in METRICS},
            lr=doubles(callbacks[0].rates),
            end=tensors(model),
        )
    )

recording.write(
    Path(__file__).with_name("keras_options.json"), features=FEATURES, batch=BATCH, cases=cases
)
