#!/usr/bin/env python3
"""Compares a base with ONNX Runtime, byte for byte.

    ort_check.py BASE INPUTS FEATURES SIZE

INPUTS contains quantized inputs, u8 [n, 3, SIZE, SIZE]; FEATURES the feature maps of `host`, u8 [n,
SIZE/32, SIZE/32, 512]. ONNX Runtime's u8 x i8 convolution saturates on AVX2 (vpmaddubsw); its u8 x
u8 convolution does not. So the weights are shifted by 128 together with their zero point, which
gives the same sum in exact arithmetic, and graph optimization is off. Prints the number of images
that are equal, then how many differ with the file as it is. Exits with 1 if one differs.
"""

import sys

import numpy as np
import onnx
import onnxruntime as ort
from onnx import TensorProto, helper, numpy_helper


def session(model):
    options = ort.SessionOptions()
    options.graph_optimization_level = ort.GraphOptimizationLevel.ORT_DISABLE_ALL
    options.log_severity_level = 3
    return ort.InferenceSession(
        model.SerializeToString(), options, providers=["CPUExecutionProvider"]
    )


def with_u8_weights(model):
    """The same model with u8 weights, shifted by 128 with their zero point."""
    shifted = onnx.ModelProto()
    shifted.CopyFrom(model)
    for tensor in shifted.graph.initializer:
        if tensor.name.endswith((".w", ".w_zero_point")):
            moved = (numpy_helper.to_array(tensor).astype(np.int16) + 128).astype(np.uint8)
            tensor.CopyFrom(numpy_helper.from_array(moved, tensor.name))
    return shifted


def main():
    base, inputs, features, size = sys.argv[1], sys.argv[2], sys.argv[3], int(sys.argv[4])
    x = np.fromfile(inputs, np.uint8).reshape(-1, 3, size, size)
    wanted = np.fromfile(features, np.uint8).reshape(len(x), size // 32, size // 32, 512)

    model = onnx.load(base)
    onnx.checker.check_model(model, full_check=True)
    symbols = [d.dim_param for d in model.graph.input[0].type.tensor_type.shape.dim]
    assert symbols[0] and symbols[2] and symbols[3], f"sizes are fixed: {symbols}"

    # The output before it is dequantized.
    last = model.graph.node[-1]
    assert last.op_type == "DequantizeLinear"
    plain = onnx.ModelProto()
    plain.CopyFrom(model)
    del plain.graph.node[-1]
    del plain.graph.output[:]
    plain.graph.output.append(helper.make_tensor_value_info(last.input[0], TensorProto.UINT8, None))

    def equal(model):
        run = session(model)
        found = [run.run(None, {"x": one[None]})[0][0].transpose(1, 2, 0) for one in x]
        return sum(np.array_equal(a, b) for a, b in zip(found, wanted, strict=True))

    same = equal(with_u8_weights(plain))
    print(
        f"{same} of {len(x)} images equal ONNX Runtime {ort.__version__} byte for byte (u8 "
        f"weights, no saturation); "
        f"{len(x) - equal(plain)} differ with i8 weights, where it may saturate"
    )
    sys.exit(same != len(x))


if __name__ == "__main__":
    main()
