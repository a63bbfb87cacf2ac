#!/usr/bin/env python3
"""Compares the feature error of ONNX Runtime's quantizer with that of `host base quantize`.

    venv: numpy==2.4.6 onnx==1.23.2 onnxruntime==1.32.0 pillow==13.0.0
    benchmarks/quantisers.py F32.onnx INT8.onnx CALIBRATION_DIRECTORY PHOTO_DIRECTORY

Both use the same weights, calibration images and photographs. F32.onnx comes from `host base
import`, INT8.onnx from `host base quantize`. Prints the L2 error of block5_pool at 64 px relative
to f32, pooled over all photographs, for ONNX Runtime's quantizer run by ONNX Runtime on this CPU
(as users get it), the same with reduced range, and INT8.onnx run by ONNX Runtime with u8 weights
(exact, see tests/ort_check.py). With HOST=target/release/host it counts the photographs for which
`host extract` gives the same features, byte for byte.
"""

import os
import subprocess
import sys
import tempfile

import numpy as np
import onnx
import onnxruntime as ort
from onnxruntime.quantization import (
    CalibrationDataReader,
    CalibrationMethod,
    QuantFormat,
    QuantType,
    quantize_static,
)
from PIL import Image

sys.path.insert(0, os.path.join(os.path.dirname(os.path.abspath(__file__)), "../tests"))
from ort_check import with_u8_weights  # noqa: E402

F32 = np.float32
MEAN = np.array((103.939, 116.779, 123.68), F32)
SCALE, ZERO = F32(F32(274.741) / F32(255)), 115


def pictures(folder, size):
    names = sorted(os.path.join(folder, n) for n in os.listdir(folder))
    out = []
    for name in names:
        with Image.open(name) as file:
            rgb = file.convert("RGB")
            # Across first, as we do; Pillow 13 goes down first where that is less work.
            out.append(
                np.asarray(
                    rgb.resize((size, rgb.height), Image.BILINEAR).resize(
                        (size, size), Image.BILINEAR
                    )
                )
            )
    stacked = np.stack(out)
    return np.ascontiguousarray((stacked[..., ::-1].astype(F32) - MEAN).transpose(0, 3, 1, 2))


def session(model, plain=False):
    options = ort.SessionOptions()
    options.log_severity_level = 3
    if plain:
        options.graph_optimization_level = ort.GraphOptimizationLevel.ORT_DISABLE_ALL
    model = model if isinstance(model, str) else model.SerializeToString()
    return ort.InferenceSession(model, options, providers=["CPUExecutionProvider"])


def run(session, x, batch=8):
    return np.concatenate(
        [session.run(None, {"x": x[i : i + batch]})[0] for i in range(0, len(x), batch)]
    )


class Reader(CalibrationDataReader):
    def __init__(self, arrays):
        self.rows = iter([{"x": a[None]} for array in arrays for a in array])

    def get_next(self):
        return next(self.rows, None)


def main():
    f32, int8, calibration, photos = sys.argv[1:5]
    x = pictures(photos, 64)
    wanted = run(session(f32), x).astype(np.float64)

    def report(name, found):
        error = np.sqrt(((found - wanted) ** 2).sum() / (wanted**2).sum())
        print(f"{name:60} {error:.4f}", flush=True)

    q = np.clip(np.rint(x / SCALE) + F32(ZERO), 0, 255).astype(np.uint8)
    ours = run(session(with_u8_weights(onnx.load(int8)), plain=True), q)
    report("ours (u8 weights, exact)", ours)
    report("our file as it is in ONNX Runtime (i8 weights)", run(session(int8), q))

    if os.environ.get("HOST"):
        with tempfile.TemporaryDirectory() as folder:
            names = sorted(os.listdir(photos))
            for index, name in enumerate(names):
                place = os.path.join(folder, "data", "ab"[2 * index >= len(names)])
                os.makedirs(place, exist_ok=True)
                # As PNG: JPEG decoders differ in their last bits.
                with Image.open(os.path.join(photos, name)) as file:
                    file.convert("RGB").save(os.path.join(place, name + ".png"))
            archive = os.path.join(folder, "f.npz")
            subprocess.run(
                [
                    os.environ["HOST"],
                    "extract",
                    os.path.join(folder, "data"),
                    "-o",
                    archive,
                    "--base",
                    int8,
                ],
                check=True,
            )
            mine = np.load(archive)["features"].transpose(0, 3, 1, 2)
            same = sum(np.array_equal(a, b) for a, b in zip(mine, ours, strict=True))
            print(
                f"{same} of {len(names)} photographs equal host extract byte for byte", flush=True
            )

    crops = [pictures(calibration, size) for size in (64, 128)]
    # Every fourth crop: ONNX Runtime keeps all activations of all pictures in memory.
    few = [c[::4] for c in crops]
    with tempfile.TemporaryDirectory() as folder:
        for reduced in (False, True):
            out = os.path.join(folder, "q.onnx")
            quantize_static(
                f32,
                out,
                Reader(few),
                quant_format=QuantFormat.QOperator,
                per_channel=True,
                reduce_range=reduced,
                activation_type=QuantType.QUInt8,
                weight_type=QuantType.QInt8,
                calibrate_method=CalibrationMethod.MinMax,
                extra_options={"ActivationSymmetric": False},
            )
            name = f"ONNX Runtime {ort.__version__}, MinMax, QOperator, i8 weights" + (
                ", reduced range" if reduced else ""
            )
            report(name, run(session(out), x))
            if not reduced:
                report(name + ", graph optimization off", run(session(out, plain=True), x))


if __name__ == "__main__":
    main()
