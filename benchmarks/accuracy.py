#!/usr/bin/env python3
"""Compares the accuracy of `host train` with scikit-learn on the same features.

    venv/bin/pip install numpy==2.4.6 scikit-learn==1.9.1
    cargo build --release --locked --workspace --bins
    venv/bin/python benchmarks/accuracy.py ../shared/data/clothing ../shared/data/cats_dogs \\
        --size 64 --seeds 5

Each data directory has train/ and validation/. Features are extracted once (--cache); all metrics
are on the validation images.
"""

import argparse
import json
import os
import statistics
import subprocess
import tempfile
import time

import numpy as np
from sklearn.linear_model import LogisticRegression
from sklearn.pipeline import make_pipeline
from sklearn.preprocessing import MaxAbsScaler

parser = argparse.ArgumentParser(
    description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
)
parser.add_argument("data", nargs="+")
parser.add_argument("--host", default="target/release/host")
parser.add_argument("--size", type=int, default=64)
parser.add_argument("--seeds", type=int, default=5)
parser.add_argument("--cache", default=os.path.join(tempfile.gettempdir(), "vgg-edge-cache"))
parser.add_argument(
    "--train", nargs=argparse.REMAINDER, default=[], help="more options for host train"
)
arguments = parser.parse_args()


def host(*options):
    done = subprocess.run(
        [arguments.host, *options, "--cache", arguments.cache],
        stdout=subprocess.PIPE,
        stderr=subprocess.DEVNULL,
        text=True,
        check=True,
    )
    return done.stdout


for data in arguments.data:
    with tempfile.TemporaryDirectory() as folder:
        sets = {}
        for part in ("train", "validation"):
            file = os.path.join(folder, part + ".npz")
            host("extract", os.path.join(data, part), "-o", file, "--size", str(arguments.size))
            archive = np.load(file)
            sets[part] = archive["features"].reshape(len(archive["labels"]), -1), archive["labels"]
        best = max(
            (
                make_pipeline(MaxAbsScaler(), LogisticRegression(C=c, max_iter=1000))
                .fit(*sets["train"])
                .score(*sets["validation"]),
                c,
            )
            for c in (0.01, 0.1, 1.0)
        )
        results, seconds = [], []
        for seed in range(arguments.seeds):
            head = os.path.join(folder, "head.postcard")
            start = time.time()
            out = host(
                "train",
                data,
                "-o",
                head,
                "--json",
                "--size",
                str(arguments.size),
                "--seed",
                str(seed),
                *arguments.train,
            )
            seconds.append(time.time() - start)
            results.append(json.loads(out.splitlines()[-1])["val_accuracy"])
        print(
            f"{os.path.basename(data)} at {arguments.size} px: host train "
            f"{statistics.mean(results):.4f} "
            f"(from {min(results):.4f} to {max(results):.4f}, {arguments.seeds} seeds, "
            f"{statistics.median(seconds):.1f} s each from cached features); "
            f"logistic regression {best[0]:.4f} (C = {best[1]})",
            flush=True,
        )
