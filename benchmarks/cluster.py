#!/usr/bin/env python3
"""Simulates the cost of feature extraction on a cluster, from measured values.

    python3 benchmarks/cluster.py --pictures 10000000 --cores 256 --rate 9.7 --feature-bytes 25088

Prints time, core-hours, storage and network traffic for several numbers of parts. Each part is a
task: it starts, lists the data directory, and extracts. Tasks run in slots (--threads cores each)
of nodes with different speeds; some tasks are slow for other reasons (--stragglers); tasks are
killed at random (--failures per hour and slot) and start again after --requeue seconds. The storage
provides all tasks together at most --network bytes and --listing names per second. Images are
assigned to parts at random, as by the hash. Then one task merges, which reads and writes all
features once. Results are means of --runs with different random numbers, and the worst of them.
"""

import argparse
import heapq
import math
import random

parser = argparse.ArgumentParser(
    description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
)
parser.add_argument("--pictures", type=int, default=10_000_000)
parser.add_argument("--parts", type=int, nargs="+", default=[64, 256, 1000, 4000, 10_000])
parser.add_argument("--cores", type=int, default=256)
parser.add_argument("--threads", type=int, default=4, help="cores per task")
parser.add_argument("--rate", type=float, required=True, help="measured images per second and core")
parser.add_argument("--picture-bytes", type=float, default=100e3, help="mean size of an image file")
parser.add_argument(
    "--feature-bytes", type=float, default=2048, help="bytes per row: (size / 32)^2 * 512"
)
parser.add_argument(
    "--entry-bytes", type=float, default=64, help="bytes of an image's record in a part"
)
parser.add_argument(
    "--start",
    type=float,
    default=2,
    help="seconds to start a task and load the base",
)
parser.add_argument(
    "--names", type=float, default=200_000, help="maximum names per second that a task lists"
)
parser.add_argument(
    "--listing",
    type=float,
    default=2e6,
    help="names per second that the storage lists for all tasks together",
)
parser.add_argument(
    "--network",
    type=float,
    default=1e9,
    help="bytes per second that the storage provides to all tasks together",
)
parser.add_argument(
    "--disk", type=float, default=300e6, help="bytes per second that the merge reads and writes"
)
parser.add_argument(
    "--spread",
    type=float,
    default=0.1,
    help="standard deviation of the logarithm of a node's speed",
)
parser.add_argument(
    "--stragglers",
    type=float,
    default=0.02,
    help="fraction of tasks that run at a third of their speed",
)
parser.add_argument("--failures", type=float, default=0.02, help="kills of a task per hour")
parser.add_argument(
    "--requeue", type=float, default=120, help="seconds until a killed task may restart"
)
parser.add_argument("--runs", type=int, default=20)
parser.add_argument("--seed", type=int, default=0)


def simulate(args, parts, choice):
    """Simulates a run: time until the last part, slot seconds, wasted images, killed tasks."""
    slots = max(1, args.cores // args.threads)
    speeds = [choice.lognormvariate(0, args.spread) for _ in range(slots)]
    busy = min(slots, parts)
    # Shared resources are divided among all busy slots.
    rate = min(args.rate * args.threads, args.network / args.picture_bytes / busy)
    listing = args.pictures / min(args.names, args.listing / busy)
    mean = args.pictures / parts
    deviation = math.sqrt(mean * (1 - 1 / parts))
    # A task may start at its time; a slot is free at its time.
    tasks = [(0.0, index, max(0.0, choice.gauss(mean, deviation))) for index in range(parts)]
    free = [(0.0, slot) for slot in range(slots)]
    heapq.heapify(tasks)
    heapq.heapify(free)
    last = used = lost = 0.0
    killed = 0
    while tasks:
        (ready, index, pictures), (since, slot) = heapq.heappop(tasks), heapq.heappop(free)
        start = max(ready, since)
        speed = speeds[slot] / (3 if choice.random() < args.stragglers else 1)
        before = args.start + listing
        needed = before + pictures / (rate * speed)
        dies = choice.expovariate(args.failures / 3600) if args.failures else math.inf
        if dies < needed:
            killed += 1
            lost += max(0.0, dies - before) * rate * speed
            heapq.heappush(tasks, (start + dies + args.requeue, index, pictures))
        end = start + min(dies, needed)
        used += end - start
        last = max(last, end)
        heapq.heappush(free, (end, slot))
    return last, used, lost, killed


def main():
    args = parser.parse_args()
    features = args.pictures * (args.feature_bytes + args.entry_bytes)
    ideal = args.pictures / (args.rate * args.cores)
    print(
        f"{args.pictures:,} images, {args.cores} cores at {args.rate} images per second, tasks "
        f"of {args.threads}"
    )
    print(
        f"features: {features / 1e9:.1f} GB, "
        f"{1e6 * (args.feature_bytes + args.entry_bytes) / 1e9:.2f} GB per million images"
    )
    print(
        f"at best {ideal / 3600:.2f} h, {args.pictures / args.rate / 3600:.0f} core-hours; "
        f"the storage is read at {args.rate * args.cores * args.picture_bytes / 1e6:.0f} MB/s then"
    )
    # Parts are written and read once, the merged file is written once and read once for training.
    print(
        f"over the network: {args.pictures * args.picture_bytes / 1e9:.0f} GB of images, "
        f"{4 * features / 1e9:.0f} GB of features "
        f"(parts written and read, the whole written and read); the merge takes "
        f"{2 * features / args.disk:.0f} s"
    )
    print(
        f"{'parts':>6} {'a part':>9} {'hours':>6} {'worst':>6} {'core-hours':>10} {'of ideal':>8} "
        f"{'killed':>7} {'in vain':>8} {'listing':>8}"
    )
    for parts in args.parts:
        choice = random.Random(args.seed)
        runs = [simulate(args, parts, choice) for _ in range(args.runs)]
        mean = [sum(run[field] for run in runs) / len(runs) for field in range(4)]
        core_hours = mean[1] * args.threads / 3600
        listing = args.pictures / min(
            args.names, args.listing / min(parts, max(1, args.cores // args.threads))
        )
        print(
            f"{parts:6} {args.pictures // parts:9,} {mean[0] / 3600:6.2f} "
            f"{max(run[0] for run in runs) / 3600:6.2f} {core_hours:10.0f} "
            f"{ideal / mean[0]:8.0%} {mean[3]:7.1f} {mean[2] / args.pictures:8.2%} "
            f"{listing * parts * args.threads / 3600 / core_hours:8.1%}"
        )


if __name__ == "__main__":
    main()
