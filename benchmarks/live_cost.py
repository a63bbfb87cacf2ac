#!/usr/bin/env python3
"""Measures the cost of a camera frame in addition to the base.

    benchmarks/live_cost.py HEAD [--size 640x480] [--frames 500] [--rounds 5] [--edge PROGRAM]

Compares the processor time of `edge run` on raw frames with `edge bench`, interleaved. Frames
arrive through a pipe as packed YUYV, so the measured time includes the copy from the kernel,
conversion, crop, resize, quantization, head and the line of output, in all threads; no step depends
on the content of the image. The base uses one thread.
"""

import argparse
import json
import os
import resource
import subprocess
import tempfile
import time


def processor(command, **kwargs):
    """Runs a command; its processor time in seconds, and what it printed."""
    before = resource.getrusage(resource.RUSAGE_CHILDREN)
    output = subprocess.run(
        command, check=True, stdout=subprocess.PIPE, stderr=subprocess.PIPE, **kwargs
    ).stdout
    after = resource.getrusage(resource.RUSAGE_CHILDREN)
    return after.ru_utime + after.ru_stime - before.ru_utime - before.ru_stime, output


parser = argparse.ArgumentParser(
    description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
)
parser.add_argument("head")
parser.add_argument("--size", default="640x480")
parser.add_argument("--frames", type=int, default=500)
parser.add_argument("--rounds", type=int, default=5)
parser.add_argument("--edge", default="target/release/edge")
args = parser.parse_args()
width, height = map(int, args.size.split("x"))

with tempfile.TemporaryFile() as film:
    film.write(os.urandom(2 * width * height) * args.frames)
    size = str(
        json.loads(subprocess.check_output([args.edge, "info", "--json", "--head", args.head]))[
            "head"
        ]["size"]
    )
    run = [
        args.edge,
        "run",
        "--head",
        args.head,
        "--source",
        "-",
        "--raw",
        f"yuyv:{args.size}",
        "--every-frame",
        "--json",
        "--threads",
        "1",
    ]
    bench = [args.edge, "bench", "--json", "--threads", "1", "--size", size, "--runs", "30"]
    least = None
    for _ in range(args.rounds):
        seconds = []
        for frames in (1, args.frames):  # start-up is in both
            film.seek(0)
            seconds.append(processor(run + ["--frames", str(frames)], stdin=film)[0])
        base = json.loads(processor(bench)[1])["ms_min"]
        frame = (seconds[1] - seconds[0]) / (args.frames - 1) * 1e3
        print(
            f"a frame {frame:.2f} ms, the base {base:.2f} ms, in addition {frame - base:.2f} ms, "
            f"{100 * (frame - base) / frame:.1f} %",
            flush=True,
        )
        least = min(least or (frame, base), (frame, base))
        time.sleep(1)
