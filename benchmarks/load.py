#!/usr/bin/env python3
"""Measures the effect of 200 slow clients and of wrk on the classifier.

    benchmarks/load.py HEAD [--clients 200] [--rounds 6] [--seconds 10] [--edge PROGRAM] [--json]

edge classifies a synthetic video as fast as it can, with one thread. Windows without and with load
alternate (ABBA), so that other activity of the machine affects both. Under load, clients send
requests byte by byte, open event streams and read 64 bytes per second from them, request a hundred
images without reading any, or open connections and send nothing; a fifth send malformed requests
once per second. Disconnected clients return after a second. One more client requests the page,
metrics and the image twice per second, each time in a new connection, and must get a response.

Then wrk (4 connections, one thread) requests the page and the metrics as fast as it can, in windows
of the same kind. All traffic stays on 127.0.0.1.

Exits with code 1 if the slow clients cost 5 % or more of the rate, if a good request got no
response, or if there were more descriptors than 64 connections need.
"""

import argparse
import asyncio
import json
import multiprocessing
import os
import random
import re
import statistics
import subprocess
import sys
import tempfile
import time
import urllib.request

HOST = "127.0.0.1"
GET = "GET {} HTTP/1.1\r\nHost: localhost\r\n\r\n"
MALFORMED = [
    b"\x16\x03\x01\x02\x00\x01\x00\x01\xfc\x03\x03",
    b"\0\0\0\0\r\n\r\n",
    b"GET / HTTP/9.9\r\nHost: localhost\r\n\r\n",
    b"GET / HTTP/1.1\r\nHost localhost\r\n\r\n",
    b"GET /" + b"a" * 50_000 + b" HTTP/1.1\r\n\r\n",
    b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n",
    b"GET / HTTP/1.1\r\nHost: localhost\r\nContent-Length: 1\r\nContent-Length: 2\r\n\r\n",
    b"GET / HTTP/1.1\r\n" + b"A: b\r\n" * 200 + b"\r\n",
]


async def slow_client(kind, port, end):
    """One client, again and again."""
    while time.monotonic() < end:
        try:
            # A small limit, so that unread data stays in the sockets.
            reader, writer = await asyncio.open_connection(HOST, port, limit=256)
        except OSError:
            await asyncio.sleep(1)
            continue
        try:
            if kind == "malformed":
                writer.write(random.choice(MALFORMED))
            elif kind == "greedy":
                writer.write(GET.format("/frame.jpg").encode() * 100)
                writer.transport.pause_reading()
            elif kind == "events":
                writer.write(GET.format("/events").encode())
            while time.monotonic() < end and kind != "malformed":
                await asyncio.sleep(1)
                if kind == "loris":
                    writer.write(b"G" if random.random() < 0.5 else b"\r")
                    await writer.drain()
                if kind == "events" and not await reader.read(64):
                    break
                if writer.transport.is_closing() or (
                    kind in ("loris", "silent") and reader.at_eof()
                ):
                    break
        except OSError:
            pass
        writer.transport.abort()
        await asyncio.sleep(1)


def slow_clients(count, port, seconds):
    async def run():
        end = time.monotonic() + seconds
        kinds = ["loris", "events", "greedy", "silent", "malformed"]
        await asyncio.gather(
            *(slow_client(kinds[number % len(kinds)], port, end) for number in range(count))
        )

    asyncio.run(run())


def video(path, width=64, height=64, frames=50):
    """Noise that changes slowly: YUV4MPEG2, 4:2:0."""
    random.seed(1)
    with open(path, "wb") as out:
        out.write(f"YUV4MPEG2 W{width} H{height} F25:1 C420jpeg\n".encode())
        for _ in range(frames):
            out.write(b"FRAME\n" + random.randbytes(width * height * 3 // 2))


class Edge:
    def __init__(self, args, folder):
        source = os.path.join(folder, "noise.y4m")
        video(source)
        self.process = subprocess.Popen(
            [
                args.edge,
                "run",
                "--head",
                args.head,
                "--source",
                source,
                "--loop",
                "--events",
                "--threads",
                "1",
                "--http",
                f"{HOST}:0",
            ],
            stdout=subprocess.DEVNULL,
            stderr=subprocess.PIPE,
            text=True,
        )
        self.words = []
        for line in self.process.stderr:
            self.words.append(line.strip())
            if found := re.search(r"page at http://127\.0\.0\.1:(\d+)/", line):
                self.port = int(found[1])
                return
        sys.exit("edge did not start: " + " ".join(self.words))

    def get(self, path):
        with urllib.request.urlopen(f"http://{HOST}:{self.port}{path}", timeout=10) as answer:
            return answer.read().decode(errors="replace")

    def classified(self):
        return float(
            re.search(r'frames_total\{outcome="classified"\} (\S+)', self.get("/metrics"))[1]
        )

    def usage(self):
        with open(f"/proc/{self.process.pid}/status") as status:
            resident = int(re.search(r"VmRSS:\s+(\d+)", status.read())[1])
        return len(os.listdir(f"/proc/{self.process.pid}/fd")), resident

    def window(self, seconds, probe=None):
        """Frames a second; `probe` is called twice a second."""
        before, start = self.classified(), time.monotonic()
        while (left := start + seconds - time.monotonic()) > 0:
            if probe:
                probe()
            time.sleep(min(0.5, left))
        count, took = self.classified() - before, time.monotonic() - start
        return count / took


def main():
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("head")
    parser.add_argument("--clients", type=int, default=200)
    parser.add_argument("--rounds", type=int, default=6)
    parser.add_argument("--seconds", type=float, default=10)
    parser.add_argument("--edge", default="target/release/edge")
    parser.add_argument("--json", action="store_true")
    args = parser.parse_args()
    folder = tempfile.TemporaryDirectory()
    edge = Edge(args, folder.name)
    good, bad, most = [], [], [0, 0]

    def probe():
        for path in ("/", "/metrics", "/frame.jpg"):
            start = time.monotonic()
            try:
                edge.get(path)
                good.append(1e3 * (time.monotonic() - start))
            except OSError as e:
                bad.append(f"{path}: {e}")
        most[:] = map(max, most, edge.usage())

    def with_slow_clients():
        process = multiprocessing.Process(
            target=slow_clients, args=(args.clients, edge.port, args.seconds + 4)
        )
        process.start()
        time.sleep(2)
        rate = edge.window(args.seconds, probe)
        process.join()
        return rate

    def with_wrk(path):
        command = [
            "wrk",
            "-t1",
            "-c4",
            f"-d{args.seconds + 2:.0f}s",
            "--latency",
            f"http://{HOST}:{edge.port}{path}",
        ]
        wrk = subprocess.Popen(command, stdout=subprocess.PIPE, text=True)
        time.sleep(1)
        rate = edge.window(args.seconds - 1)
        text = wrk.communicate()[0]
        requests = float(re.search(r"Requests/sec:\s+(\S+)", text)[1])
        slowest = re.search(r"99%\s+(\S+)", text)[1]
        return rate, requests, slowest

    edge.window(3)
    idle = edge.usage()
    pairs = []
    for turn in range(args.rounds):
        pair = {}
        for loaded in (False, True) if turn % 2 == 0 else (True, False):
            pair[loaded] = with_slow_clients() if loaded else edge.window(args.seconds)
            time.sleep(1)
        pairs.append((pair[False], pair[True]))
        print(
            f"round {turn + 1}: {pair[False]:.1f} frames/s, {pair[True]:.1f} under {args.clients} "
            f"slow clients",
            file=sys.stderr,
        )
    wrk = {}
    for path in ("/", "/metrics"):
        quiet = edge.window(args.seconds)
        rate, requests, slowest = with_wrk(path)
        wrk[path] = {
            "requests_per_s": requests,
            "p99": slowest,
            "quiet_fps": round(quiet, 1),
            "fps": round(rate, 1),
        }
    end = time.monotonic() + 30
    while edge.usage()[0] > idle[0] and time.monotonic() < end:
        time.sleep(0.2)
    left = edge.usage()
    edge.process.terminate()
    edge.process.wait()

    fall = 1 - statistics.median(loaded / quiet for quiet, loaded in pairs)
    good.sort()
    result = {
        "clients": args.clients,
        "sandbox": next(
            (line.split("sandbox ")[1] for line in edge.words if "sandbox " in line), None
        ),
        "fps": round(statistics.median(quiet for quiet, _ in pairs), 1),
        "fps_loaded": round(statistics.median(loaded for _, loaded in pairs), 1),
        "fall_percent": round(100 * fall, 2),
        "good_requests": len(good),
        "unanswered": bad,
        "good_ms": {
            "p50": round(good[len(good) // 2], 1),
            "p99": round(good[len(good) * 99 // 100], 1),
            "max": round(good[-1], 1),
        },
        "descriptors": {"idle": idle[0], "most": most[0], "after": left[0]},
        "resident_kib": {"idle": idle[1], "most": most[1], "after": left[1]},
        "wrk": wrk,
    }
    if args.json:
        print(json.dumps(result))
    else:
        for name, value in result.items():
            print(f"{name}: {value}")
    # The connections, and one that replaces another.
    sys.exit(fall >= 0.05 or bool(bad) or most[0] > idle[0] + 65 or left[0] > idle[0])


if __name__ == "__main__":
    main()
