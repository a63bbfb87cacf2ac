#!/usr/bin/env python3
"""Measures seconds and peak memory of `host` on 1,000 to 100,000 images.

    cargo build --release --locked --workspace --bins
    venv/bin/pip install pillow==13.0.0
    venv/bin/python benchmarks/scale.py /var/tmp/scale --photos ../shared/data/clothing/train \\
        --size 64

The time must be linear, and memory must not grow with the number of images. The images are crops of
the photos, mirrored, brighter or darker, JPEG of 64 to 96 pixels; image i is the same on every run,
and each set contains the smaller ones. The images and the finished rows (results.ndjson in the
directory) are kept, so an interrupted run continues where it was; --again repeats the measurements.
For each count: `host train` with an empty cache, the same with the filled cache, `host evaluate`
and `host extract --quantized` with the filled cache. 100,000 images take about 500 MB, their
features at 64 px another 210 MB.
"""

import argparse
import json
import math
import multiprocessing
import os
import random
import shutil
import subprocess
import sys
import time

from PIL import Image, ImageEnhance, ImageOps

parser = argparse.ArgumentParser(
    description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
)
parser.add_argument("folder", help="directory for images, caches and results")
parser.add_argument(
    "--photos",
    default="../shared/data/clothing/train",
    help="directory with a subdirectory of photos per class",
)
parser.add_argument("--counts", type=int, nargs="+", default=[1000, 3000, 10_000, 30_000, 100_000])
parser.add_argument("--size", type=int, default=64)
parser.add_argument("--host", default="target/release/host")
parser.add_argument(
    "--in-memory",
    type=int,
    help="limit for features in memory, in bytes (VGG_EDGE_FEATURES_IN_MEMORY)",
)
parser.add_argument(
    "--again", action="store_true", help="repeat the measurements in results.ndjson"
)
parser.add_argument(
    "--train", nargs=argparse.REMAINDER, default=[], help="more options for host train"
)


def variants(job):
    """Makes the missing images of one photo."""
    photo, jobs = job
    jobs = [(index, path) for index, path in jobs if not os.path.exists(path)]
    if not jobs:
        return
    with Image.open(photo) as image:
        # The decoder may downscale: three times the size of the crop is enough.
        image.draft("RGB", (256, 256))
        image = image.convert("RGB")
    for index, path in jobs:
        choice = random.Random(index)
        share = choice.uniform(0.6, 1.0)
        width, height = (max(1, int(side * share)) for side in image.size)
        left, top = choice.randint(0, image.width - width), choice.randint(0, image.height - height)
        size = (choice.randint(64, 96), choice.randint(64, 96))
        picture = image.resize(size, Image.BILINEAR, (left, top, left + width, top + height))
        if choice.random() < 0.5:
            picture = ImageOps.mirror(picture)
        picture = ImageEnhance.Brightness(picture).enhance(choice.uniform(0.7, 1.3))
        # A partial file of a killed run would pass for an image.
        picture.save(path + ".tmp", "JPEG", quality=85)
        os.rename(path + ".tmp", path)


def generate(folder, photos, count):
    """Makes the first `count` images; returns a directory of links to them."""
    sources = []
    for name in sorted(os.listdir(photos)):
        if os.path.isdir(os.path.join(photos, name)):
            os.makedirs(os.path.join(folder, "all", name), exist_ok=True)
            sources += [
                (name, os.path.join(photos, name, file))
                for file in sorted(os.listdir(os.path.join(photos, name)))
            ]
    if not sources:
        sys.exit(f"{photos}: no class folders with photos; name some with --photos")
    jobs = [(photo, []) for _, photo in sources]
    picture = lambda index: os.path.join(
        folder, "all", sources[index % len(sources)][0], f"{index:06}.jpg"
    )
    # Spread over the photos, so that small sets contain all classes.
    step = next(
        step
        for step in range(len(sources) * 5 // 8, 2 * len(sources))
        if math.gcd(step, len(sources)) == 1
    )
    order = [
        index // len(sources) * len(sources) + index * step % len(sources) for index in range(count)
    ]
    for index in order:
        jobs[index % len(sources)][1].append((index, picture(index)))
    with multiprocessing.Pool() as pool:
        for _ in pool.imap_unordered(variants, [job for job in jobs if job[1]], chunksize=8):
            pass
    data = os.path.join(folder, f"data-{count}")
    for index in order:
        source = picture(index)
        link = os.path.join(data, os.path.relpath(source, os.path.join(folder, "all")))
        os.makedirs(os.path.dirname(link), exist_ok=True)
        if not os.path.exists(link):
            os.link(source, link)
    return data


def measure(command, environment):
    """Runs a command; returns seconds, peak memory in MiB, and the last line as JSON."""
    start = time.monotonic()
    child = subprocess.Popen(
        command, stdout=subprocess.PIPE, stderr=subprocess.PIPE, env=environment
    )
    # The output of two epochs fits into the pipes.
    _, status, usage = os.wait4(child.pid, 0)
    seconds = time.monotonic() - start
    output, errors = child.stdout.read().decode(), child.stderr.read().decode()
    if status:
        sys.exit(f"{' '.join(command)} ended with {os.waitstatus_to_exitcode(status)}: {errors}")
    return seconds, usage.ru_maxrss / 1024, json.loads(output.splitlines()[-1])


def main():
    args = parser.parse_args()
    os.makedirs(args.folder, exist_ok=True)
    results = os.path.join(args.folder, "results.ndjson")
    done = []
    if os.path.exists(results):
        with open(results) as file:
            done = [json.loads(line) for line in file if line.endswith("\n")]
    environment = dict(os.environ)
    if args.in_memory is not None:
        environment["VGG_EDGE_FEATURES_IN_MEMORY"] = str(args.in_memory)
    settings = {
        "size": args.size,
        "in_memory": args.in_memory,
        "host": args.host,
        "train": args.train,
    }
    print(
        f"{'pictures':>8}  {'step':18} {'seconds':>8} {'ms each':>8} {'peak MiB':>9} {'cached':>7}"
    )
    for count in args.counts:
        data = generate(args.folder, args.photos, count)
        cache, head, npz = (
            os.path.join(args.folder, name)
            for name in (f"cache-{count}", f"head-{count}", "features.npz")
        )
        train = [
            args.host,
            "train",
            data,
            "-o",
            head,
            "--size",
            str(args.size),
            "--epochs",
            "2",
            "--json",
            *args.train,
        ]
        common = ["--cache", cache, "--json"]
        steps = [
            ("train", [*train, "--cache", cache]),
            ("train, cached", [*train, "--cache", cache]),
            ("evaluate, cached", [args.host, "evaluate", data, "--head", head, *common]),
            (
                "extract, cached",
                [
                    args.host,
                    "extract",
                    data,
                    "-o",
                    npz,
                    "--size",
                    str(args.size),
                    "--quantized",
                    *common,
                ],
            ),
        ]
        for step, command in steps:
            key = {**settings, "pictures": count, "step": step}
            row = next((row for row in done if row["key"] == key), None)
            if row is None or args.again:
                if step == "train":
                    shutil.rmtree(cache, ignore_errors=True)
                seconds, peak, result = measure(command, environment)
                row = {
                    "key": key,
                    "seconds": seconds,
                    "peak_mib": peak,
                    "cached": result.get("cached"),
                }
                with open(results, "a") as file:
                    file.write(json.dumps(row) + "\n")
            cached = "" if row["cached"] is None else row["cached"]
            each = 1000 * row["seconds"] / count
            print(
                f"{count:8}  {step:18} {row['seconds']:8.1f} {each:8.2f} {row['peak_mib']:9.0f} "
                f"{cached:>7}",
                flush=True,
            )
        if os.path.exists(npz):
            os.remove(npz)


if __name__ == "__main__":
    main()
