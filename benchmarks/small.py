#!/usr/bin/env python3
"""Measures seconds of `host train` on a small data set, without cached features.

    cargo build --release --locked --workspace --bins
    benchmarks/small.py        # ../shared/data/clothing/train, at 64 and 224 px, 5 rounds

The data set has 240 photographs of two classes; all options are defaults. The time is that of the
whole process: load the base, decode, extract, train, write the head. The sizes alternate. The files
were copied just before, so they come from the page cache; features do not.
"""

import argparse
import json
import os
import shutil
import statistics
import subprocess
import tempfile
import time

parser = argparse.ArgumentParser(
    description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
)
parser.add_argument(
    "--photos",
    default="../shared/data/clothing/train",
    help="directory with a subdirectory of photos per class",
)
parser.add_argument("--classes", nargs=2, default=["dress", "pants"])
parser.add_argument("--each", type=int, default=120, help="photos of each class")
parser.add_argument("--sizes", type=int, nargs="+", default=[64, 224])
parser.add_argument("--rounds", type=int, default=5)
parser.add_argument("--host", default="target/release/host")
arguments = parser.parse_args()

with tempfile.TemporaryDirectory() as scratch:
    data, bytes_copied = os.path.join(scratch, "photos"), 0
    for name in arguments.classes:
        source = os.path.join(arguments.photos, name)
        files = sorted(os.listdir(source))[: arguments.each]
        if len(files) < arguments.each:
            raise SystemExit(f"{source}: only {len(files)} files")
        os.makedirs(os.path.join(data, name))
        for file in files:
            bytes_copied += os.path.getsize(
                shutil.copy(os.path.join(source, file), os.path.join(data, name, file))
            )
    print(
        f"{2 * arguments.each} photos of {' and '.join(arguments.classes)}, "
        f"{bytes_copied / 1e6:.1f} MB",
        flush=True,
    )
    seconds = {size: [] for size in arguments.sizes}
    for round in range(arguments.rounds):
        for size in arguments.sizes:
            head = os.path.join(scratch, "head.postcard")
            command = [arguments.host, "train", data, "-o", head, "--size", str(size), "--json"]
            start = time.monotonic()
            child = subprocess.run(
                command, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True
            )
            took = time.monotonic() - start
            if child.returncode:
                raise SystemExit(f"{' '.join(command)} failed: {child.stderr}")
            result = json.loads(child.stdout.splitlines()[-1])
            os.remove(head)
            seconds[size].append(took)
            print(
                json.dumps(
                    {
                        "round": round,
                        "size": size,
                        "seconds": took,
                        "val_accuracy": result["val_accuracy"],
                    }
                ),
                flush=True,
            )
    for size, found in seconds.items():
        print(
            f"{size} px: median {statistics.median(found):.2f} s, {min(found):.2f} to "
            f"{max(found):.2f}, {len(found)} rounds"
        )
