#!/usr/bin/env python3
"""Runs a day's worth of live frames with page, metrics and collection.

    benchmarks/soak.py HEAD [--frames 110000] [--fps 100] [--size 320x240] [--reload SECONDS]
        [--edge PROGRAM] [--json FILE]
    # A million frames: 67 minutes.
    benchmarks/soak.py HEAD --frames 1000000 --fps 250 --size 64x64 --reload 600

No frame may be lost without being counted, and neither memory nor descriptors may grow. Raw frames
(YUYV, each different) arrive through a pipe at a rate above that of the base, so some are dropped.
Meanwhile two pages are open (/events), one client requests images and metrics each second, and one
connects and never reads. The number of frames sent must equal classified plus dropped, by the
printed results, by the last line of edge and by its metrics; resident memory and descriptors are
printed each minute. With --reload, settings and head are reloaded (SIGHUP) at that interval.
Intermediate results go to the file of --json each minute. Ctrl-C stops early and prints the
results.

Exits with code 1 if a frame is missing or edge failed, or if after the first tenth of the run
memory grew by more than 2 MiB or descriptors by more than the clients here can open.
"""

import argparse
import json
import os
import random
import re
import signal
import socket
import subprocess
import sys
import tempfile
import threading
import time
import urllib.request

parser = argparse.ArgumentParser(
    description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
)
parser.add_argument("head")
parser.add_argument("--frames", type=int, default=110_000)
parser.add_argument("--fps", type=float, default=100)
parser.add_argument("--size", default="320x240")
parser.add_argument("--reload", type=float, metavar="SECONDS")
parser.add_argument("--edge", default="target/release/edge")
parser.add_argument("--json", metavar="FILE")
args = parser.parse_args()
width, height = map(int, args.size.split("x"))
# Two pages, one client that never reads, one that polls: each may be connected or not, and one
# more may be closing.
CLIENTS = 5

folder = tempfile.TemporaryDirectory()
collected = os.path.join(folder.name, "collected")
with socket.socket() as probe:
    probe.bind(("127.0.0.1", 0))
    address = "127.0.0.1:%d" % probe.getsockname()[1]
edge = subprocess.Popen(
    [
        args.edge,
        "run",
        "--head",
        args.head,
        "--source",
        "-",
        "--raw",
        f"yuyv:{width}x{height}",
        "--json",
        "--http",
        address,
        "--smooth",
        "0.5",
        "--threshold",
        "0.6",
        "--collect",
        collected,
        "--collect-max",
        "200",
        "--collect-megabytes",
        "2",
        "--collect-every",
        "0",
        "--threads",
        "1",
    ],
    stdin=subprocess.PIPE,
    stdout=subprocess.PIPE,
    stderr=subprocess.PIPE,
)

classified = reloads = 0
metrics = ""
done = threading.Event()


def read_results():
    global classified, reloads
    for line in edge.stdout:
        line = json.loads(line)
        classified += "frame" in line
        reloads += line.get("event") == "reload" and line["ok"]


def keep_page_open():
    """Opens /events like a browser, again every half minute."""
    while not done.is_set():
        try:
            with urllib.request.urlopen(f"http://{address}/events", timeout=5) as stream:
                until = time.time() + 30
                while time.time() < until and not done.is_set() and stream.readline():
                    pass
        except OSError:
            time.sleep(0.2)


def look():
    """Requests metrics, health and the image each second, in a new connection."""
    global metrics
    while not done.wait(1):
        for path in ("metrics", "healthz", "frame.jpg", ""):
            try:
                with urllib.request.urlopen(f"http://{address}/{path}", timeout=5) as answer:
                    text = answer.read()
                    metrics = text.decode() if path == "metrics" else metrics
            except OSError:
                pass


def never_read():
    host, port = address.split(":")
    while not done.is_set():
        try:
            with socket.create_connection((host, int(port)), 5) as dead:
                dead.sendall(f"GET /events HTTP/1.1\r\nHost: {address}\r\n\r\n".encode())
                done.wait(60)
        except OSError:
            done.wait(1)


def usage():
    with open(f"/proc/{edge.pid}/status") as status:
        resident = int(re.search(r"VmRSS:\s+(\d+)", status.read())[1])
    return resident, len(os.listdir(f"/proc/{edge.pid}/fd"))


words = []
threads = [
    threading.Thread(target=target, daemon=True)
    for target in (read_results, look, never_read, keep_page_open, keep_page_open)
]
threads.append(threading.Thread(target=lambda: words.extend(edge.stderr), daemon=True))
for thread in threads:
    thread.start()


def tell(**more):
    """Writes the intermediate results."""
    if args.json:
        state = {
            "seconds": round(time.time() - start),
            "fed": fed,
            "classified": classified,
            "reloads": reloads,
            "samples": samples,
            **more,
        }
        with open(args.json + ".new", "w") as out:
            json.dump(state, out)
        os.replace(args.json + ".new", args.json)


random.seed(1)
scenes = [os.urandom(2 * width * height) for _ in range(4)] + [
    bytes([level, 128] * (width * height)) for level in (16, 90, 170, 235)
]
start, told, samples, fed = time.time(), 0.0, [], 0
reload_at = start + args.reload if args.reload else float("inf")
try:
    for frame in range(args.frames):
        scene = bytearray(scenes[frame // 40 % len(scenes)])
        scene[random.randrange(len(scene))] ^= 1
        edge.stdin.write(scene)
        edge.stdin.flush()
        fed += 1
        now = time.time()
        if now > reload_at:
            reload_at = now + args.reload
            edge.send_signal(signal.SIGHUP)
        if now - told > 60:
            told = now
            samples.append(usage())
            print(
                f"{told - start:6.0f} s, {fed} frames fed, {classified} classified, "
                f"{samples[-1][0]} KiB, {samples[-1][1]} descriptors",
                flush=True,
            )
            tell()
        ahead = start + fed / args.fps - now
        if ahead > 0:
            time.sleep(ahead)
except KeyboardInterrupt:
    print("ended early", flush=True)
except BrokenPipeError:
    print("edge has ended by itself", flush=True)
if edge.poll() is None:
    samples.append(usage())
    # The last metrics come after the last frame but one.
    time.sleep(2)
edge.stdin.close()
code = edge.wait()
done.set()
for thread in threads[:1] + threads[-1:]:
    thread.join(10)
last = b"".join(words).decode()
frames, dropped = (int(re.search(rf"(\d+) {what}", last)[1]) for what in ("frames", "dropped"))
counted = {
    name: int(float(value))
    for name, value in re.findall(r'frames_total\{outcome="(\w+)"\} (\S+)', metrics)
}
files = os.listdir(collected)
size = sum(os.path.getsize(os.path.join(collected, name)) for name in files)
print(
    f"exit {code}; fed {fed}, classified {classified}, dropped {dropped}; "
    f"{time.time() - start:.0f} s"
)
print(
    f"metrics at the end: {counted}; reloads {reloads}; "
    f"{next((line for line in last.splitlines() if 'sandbox' in line), 'no sandbox')}"
)
print(
    f"collected {len(files) - 1} images, {size / 1e6:.2f} MB; last line: "
    f"{last.strip().splitlines()[-1]}"
)
first = samples[len(samples) // 10 + 1 if len(samples) > 2 else 0]
growth, opened = (end - begin for begin, end in zip(first, samples[-1]))
print(
    f"resident {samples[-1][0]} KiB at the end, {growth:+} KiB since the first tenth; descriptors "
    f"{samples[-1][1]}, {opened:+}"
)
# The newest frame may still be in work when the metrics are read.
missing = fed - classified - dropped, fed - counted.get("classified", 0) - counted.get("dropped", 0)
failed = (
    code != 0
    or frames != classified
    or missing[0] != 0
    or not 0 <= missing[1] <= 1
    or growth > 2048
    or opened > CLIENTS
)
tell(
    dropped=dropped,
    missing=missing,
    growth_kib=growth,
    descriptors_grown=opened,
    exit=code,
    failed=failed,
    metrics=counted,
)
sys.exit(failed)
