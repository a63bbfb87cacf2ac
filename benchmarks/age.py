#!/usr/bin/env python3
"""Measures the age of the frames that a slow classifier takes from a live source.

    benchmarks/age.py HEAD [--fps 30] [--frames 60] [--kernel portable]
        [--source samples/surfaces.y4m] [--edge PROGRAM]

`edge run` plays a video at a camera's rate. `age_ms` is the time from a frame's arrival to its
result, `latency_ms` the time from the decoded frame to the result; the difference is the waiting
time. It should stay below one frame interval, since newer frames replace older ones.
"""

import argparse
import json
import statistics
import subprocess

parser = argparse.ArgumentParser(
    description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
)
parser.add_argument("head")
parser.add_argument("--fps", type=int, default=30)
parser.add_argument("--frames", type=int, default=60)
parser.add_argument("--kernel", default="portable")
parser.add_argument("--source", default="samples/surfaces.y4m")
parser.add_argument("--edge", default="target/release/edge")
args = parser.parse_args()

run = subprocess.run(
    [
        args.edge,
        "run",
        "--json",
        "--loop",
        "--fps",
        str(args.fps),
        "--frames",
        str(args.frames),
        "--kernel",
        args.kernel,
        "--threads",
        "1",
        "--head",
        args.head,
        "--source",
        args.source,
    ],
    check=True,
    stdout=subprocess.PIPE,
    stderr=subprocess.PIPE,
    text=True,
)
frames = [line for line in map(json.loads, run.stdout.splitlines()) if "age_ms" in line]
latency = [frame["latency_ms"] for frame in frames]
waited = [frame["age_ms"] - frame["latency_ms"] for frame in frames]
interval = 1000 / args.fps
print(
    f"{len(frames)} frames classified, {1000 / statistics.median(latency):.1f} a second; "
    f"{run.stderr.strip().splitlines()[-1]}"
)
print(f"inference: median {statistics.median(latency):.1f} ms, max {max(latency):.1f} ms")
print(
    f"age before it: median {statistics.median(waited):.1f} ms, max {max(waited):.1f} ms; an "
    f"interval is {interval:.1f} ms"
)
print(f"older than an interval: {sum(wait > interval for wait in waited)} of {len(frames)}")
