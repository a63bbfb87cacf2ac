"""Shared code of the comparisons with Keras: weights, seeds in pieces, and a log of runs."""

import json
import os
import statistics
import subprocess
import sys


def options(parser, seeds):
    """The options of both scripts."""
    parser.add_argument("data", help="directory with train/ and validation/")
    parser.add_argument("--host", default="target/release/host")
    parser.add_argument("--base", required=True, help="the f32 base as ONNX, for Keras's weights")
    parser.add_argument("--size", type=int, default=64)
    parser.add_argument(
        "--first-seed",
        type=int,
        default=0,
        metavar="N",
        help="first seed, to run seeds in pieces; see --log",
    )
    parser.add_argument("--seeds", type=int, default=seeds, help="number of seeds")
    parser.add_argument("--only", choices=["host", "keras"])
    parser.add_argument(
        "--log",
        metavar="FILE",
        help="append a JSON line per run; summarize all runs in it with these settings",
    )
    parser.add_argument("--keras-seed", type=int, help="(internal: seed of a Keras process)")


def seeds(arguments):
    return range(arguments.first_seed, arguments.first_seed + arguments.seeds)


def load_weights(model, base):
    """The f32 base's kernels, in the order of its graph, into Keras's VGG16."""
    import onnx
    from onnx import numpy_helper

    graph = onnx.load(base).graph
    tensors = {tensor.name: numpy_helper.to_array(tensor) for tensor in graph.initializer}
    convolutions = [node for node in graph.node if node.op_type == "Conv"]
    layers = [layer for layer in model.layers if "conv" in layer.name]
    assert len(convolutions) == len(layers) == 13
    for node, layer in zip(convolutions, layers):
        layer.set_weights([tensors[node.input[1]].transpose(2, 3, 1, 0), tensors[node.input[2]]])


def keras_process(seed):
    """This script once more, for one seed of Keras: its last line as JSON."""
    command = [sys.executable, sys.argv[0], *sys.argv[1:], "--keras-seed", str(seed)]
    child = subprocess.run(command, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True)
    if child.returncode:
        raise SystemExit(f"{' '.join(command)} failed: {child.stderr[-4000:]}")
    return json.loads(child.stdout.splitlines()[-1])


class Log:
    """Runs of both programs: printed as they end, and kept in a file if one is named."""

    def __init__(self, path, settings):
        self.path, self.settings, self.runs = path, settings, []
        if path and os.path.exists(path):
            with open(path) as file:
                # A line truncated by a kill is not a run.
                found = [json.loads(line) for line in file if line.endswith("\n")]
            self.runs = [run for run in found if run["settings"] == settings]

    def add(self, program, seed, figures):
        run = {"settings": self.settings, "program": program, "seed": seed, **figures}
        line = json.dumps(run)
        print(line, flush=True)
        if self.path:
            with open(self.path, "a") as file:
                file.write(line + "\n")
        self.runs = [
            old for old in self.runs if (old["program"], old["seed"]) != (program, seed)
        ] + [run]

    def of(self, program, figure):
        """A figure of each run, by seed."""
        return {run["seed"]: run[figure] for run in self.runs if run["program"] == program}

    def ratio(self, figure, other=None):
        """Returns the ratio of Keras to `host` for each seed that both have run."""
        ours, theirs = self.of("host", figure), self.of("keras", other or figure)
        return [theirs[seed] / ours[seed] for seed in sorted(ours.keys() & theirs.keys())]


def spread(values, digits):
    """Mean, median and range."""
    values = list(values)
    mean, median = statistics.mean(values), statistics.median(values)
    extent = f"{min(values):.{digits}f} to {max(values):.{digits}f}"
    return f"mean {mean:.{digits}f}, median {median:.{digits}f} ({extent})"
