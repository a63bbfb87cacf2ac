"""The format of what the record_*.py scripts write: JSON, a list of numbers on each line."""

import json

import keras
import numpy as np

METRICS = ["loss", "accuracy", "val_loss", "val_accuracy"]


def floats(array):
    """The shortest decimals that read back as the same float32."""
    return [float(str(v)) for v in np.asarray(array, dtype=np.float32).ravel()]


def integers(array):
    return [int(v) for v in np.asarray(array).ravel()]


def doubles(values):
    return [float(v) for v in values]


def encode(value, indent=""):
    inner = indent + " "
    if isinstance(value, dict) and any(isinstance(v, (dict, list)) for v in value.values()):
        items = [f"{json.dumps(key)}: {encode(v, inner)}" for key, v in value.items()]
        return "{\n" + ",\n".join(inner + item for item in items) + f"\n{indent}}}"
    if isinstance(value, list) and any(isinstance(v, (dict, list)) for v in value):
        return "[\n" + ",\n".join(inner + encode(v, inner) for v in value) + f"\n{indent}]"
    return json.dumps(value)


def write(path, **content):
    source = f"Keras {keras.__version__} on {keras.backend.backend()}"
    path.write_text(encode(dict(recorded_from=source, **content)) + "\n")


def rms_prop(lr, rho=0.9, epsilon=1e-7, momentum=0.0):
    return {"RmsProp": dict(lr=lr, rho=rho, epsilon=epsilon, momentum=momentum)}


def adam(lr):
    return {"Adam": dict(lr=lr, beta1=0.9, beta2=0.999, epsilon=1e-7)}


def sgd(lr, momentum=0.0):
    return {"Sgd": dict(lr=lr, momentum=momentum)}
