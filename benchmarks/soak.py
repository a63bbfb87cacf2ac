#!/usr/bin/env python3
"""A day's worth of live frames with page, metrics and collection on: nothing lost without being counted, nothing that grows.

    benchmarks/soak.py HEAD [--frames 110000] [--fps 100] [--edge PROGRAM]

Raw frames (YUYV, 320x240, each different) come through a pipe at a rate above what the base does, so that some are dropped. Meanwhile two pages are
open (/events), one client takes pictures and metrics each second, and one connects and never reads. Fed frames must equal classified plus dropped;
resident memory and descriptors are printed each minute. Exit code 1 if a frame is missing, or memory grew by more than 2 MiB after the first tenth.
"""
import argparse
import json
import os
import random
import re
import socket
import subprocess
import sys
import tempfile
import threading
import time
import urllib.request

parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
parser.add_argument("head")
parser.add_argument("--frames", type=int, default=110_000)
parser.add_argument("--fps", type=float, default=100)
parser.add_argument("--edge", default="target/release/edge")
args = parser.parse_args()
width, height = 320, 240

folder = tempfile.TemporaryDirectory()
collected = os.path.join(folder.name, "collected")
with socket.socket() as probe:
    probe.bind(("127.0.0.1", 0))
    address = "127.0.0.1:%d" % probe.getsockname()[1]
edge = subprocess.Popen(
    [args.edge, "run", "--head", args.head, "--source", "-", "--raw", f"yuyv:{width}x{height}", "--json", "--http", address,
     "--smooth", "0.5", "--threshold", "0.6", "--collect", collected, "--collect-max", "200", "--collect-megabytes", "2", "--collect-every", "0", "--threads", "1"],
    stdin=subprocess.PIPE, stdout=subprocess.PIPE, stderr=subprocess.PIPE)

classified = 0
done = threading.Event()


def read_results():
    global classified
    for line in edge.stdout:
        classified += "frame" in json.loads(line)


def keep_page_open():
    """A browser's /events, opened again every half minute."""
    while not done.is_set():
        try:
            with urllib.request.urlopen(f"http://{address}/events", timeout=5) as stream:
                until = time.time() + 30
                while time.time() < until and not done.is_set() and stream.readline():
                    pass
        except OSError:
            time.sleep(0.2)


def look():
    """Metrics, health and the picture, each second, in a new connection."""
    while not done.wait(1):
        for path in ("metrics", "healthz", "frame.jpg", ""):
            try:
                urllib.request.urlopen(f"http://{address}/{path}", timeout=5).read()
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
threads = [threading.Thread(target=target, daemon=True) for target in (read_results, look, never_read, keep_page_open, keep_page_open)]
threads.append(threading.Thread(target=lambda: words.extend(edge.stderr), daemon=True))
for thread in threads:
    thread.start()

random.seed(1)
scenes = [os.urandom(2 * width * height) for _ in range(4)] + [bytes([level, 128] * width * height) for level in (16, 90, 170, 235)]
start, told, samples = time.time(), 0.0, []
for frame in range(args.frames):
    scene = bytearray(scenes[frame // 40 % len(scenes)])
    scene[random.randrange(len(scene))] ^= 1
    edge.stdin.write(scene)
    ahead = start + (frame + 1) / args.fps - time.time()
    if ahead > 0:
        time.sleep(ahead)
    if time.time() - told > 60:
        told = time.time()
        samples.append(usage())
        print(f"{told - start:6.0f} s, {frame + 1} frames fed, {classified} classified, {samples[-1][0]} KiB, {samples[-1][1]} descriptors", flush=True)
samples.append(usage())
edge.stdin.close()
code = edge.wait()
done.set()
for thread in threads[:1] + threads[-1:]:
    thread.join(10)
last = b"".join(words).decode()
dropped = int(re.search(r"(\d+) dropped", last)[1])
files = os.listdir(collected)
size = sum(os.path.getsize(os.path.join(collected, name)) for name in files)
print(f"exit {code}; fed {args.frames}, classified {classified}, dropped {dropped}; {time.time() - start:.0f} s")
print(f"collected {len(files) - 1} pictures, {size / 1e6:.2f} MB; last words: {last.strip().splitlines()[-1]}")
growth = samples[-1][0] - samples[len(samples) // 10 + 1 if len(samples) > 2 else 0][0]
print(f"resident {samples[-1][0]} KiB at the end, {growth:+} KiB since the first tenth; descriptors {samples[-1][1]}")
sys.exit(code != 0 or classified + dropped != args.frames or growth > 2048)
