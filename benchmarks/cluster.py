#!/usr/bin/env python3
"""What features of many pictures cost on a cluster: time, core-hours, storage, network, for some numbers of parts. A simulation, on measured figures.

    python3 benchmarks/cluster.py --pictures 10000000 --cores 256 --rate 9.7 --feature-bytes 25088

Each part is a task: it starts, lists the data folder, and extracts. Tasks run on slots (--threads cores each) of nodes whose speeds differ; some tasks are slow
for reasons of their own (--stragglers); tasks are killed at random (--failures an hour of a slot) and begin anew after --requeue seconds. The storage gives all
tasks together no more than --network bytes and --listing names a second. Sizes of parts are those of a hash: a picture's part is drawn. Then one task merges, which reads
and writes all features once. Figures are means of --runs with different random numbers, and the worst of them.
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
parser.add_argument("--threads", type=int, default=4, help="cores of a task")
parser.add_argument("--rate", type=float, required=True, help="pictures a second a core, measured")
parser.add_argument(
    "--picture-bytes", type=float, default=100e3, help="mean size of a picture file"
)
parser.add_argument(
    "--feature-bytes", type=float, default=2048, help="of a row: (size / 32)^2 * 512"
)
parser.add_argument("--entry-bytes", type=float, default=64, help="of a picture's record in a part")
parser.add_argument(
    "--start",
    type=float,
    default=2,
    help="seconds before a task does anything, and to load the base",
)
parser.add_argument(
    "--names", type=float, default=200_000, help="names a second that a task lists, at best"
)
parser.add_argument(
    "--listing",
    type=float,
    default=2e6,
    help="names a second that the storage gives all tasks together",
)
parser.add_argument(
    "--network",
    type=float,
    default=1e9,
    help="bytes a second that the storage gives all tasks together",
)
parser.add_argument(
    "--disk", type=float, default=300e6, help="bytes a second that the merge reads and writes"
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
    help="share of tasks that run at a third of their speed",
)
parser.add_argument(
    "--failures", type=float, default=0.02, help="times that a task is killed, an hour"
)
parser.add_argument(
    "--requeue", type=float, default=120, help="seconds until a killed task may start again"
)
parser.add_argument("--runs", type=int, default=20)
parser.add_argument("--seed", type=int, default=0)


def simulate(args, parts, choice):
    """One run: seconds until the last part is there, seconds of all slots, pictures computed in vain, tasks killed."""
    slots = max(1, args.cores // args.threads)
    speeds = [choice.lognormvariate(0, args.spread) for _ in range(slots)]
    busy = min(slots, parts)
    # What is shared is shared by all slots that have work.
    rate = min(args.rate * args.threads, args.network / args.picture_bytes / busy)
    listing = args.pictures / min(args.names, args.listing / busy)
    mean = args.pictures / parts
    deviation = math.sqrt(mean * (1 - 1 / parts))
    # A task may start from its time on; a slot is free from its time on.
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
        f"{args.pictures:,} pictures, {args.cores} cores at {args.rate} pictures a second, tasks of {args.threads}"
    )
    print(
        f"features: {features / 1e9:.1f} GB, {1e6 * (args.feature_bytes + args.entry_bytes) / 1e9:.2f} GB a million pictures"
    )
    print(
        f"at best {ideal / 3600:.2f} h, {args.pictures / args.rate / 3600:.0f} core-hours; "
        f"the storage is read at {args.rate * args.cores * args.picture_bytes / 1e6:.0f} MB/s then"
    )
    # Parts are written once and read once, the whole is written once, and read once to be trained on.
    print(
        f"over the network: {args.pictures * args.picture_bytes / 1e9:.0f} GB of pictures, {4 * features / 1e9:.0f} GB of features "
        f"(parts written and read, the whole written and read); the merge takes {2 * features / args.disk:.0f} s"
    )
    print(
        f"{'parts':>6} {'a part':>9} {'hours':>6} {'worst':>6} {'core-hours':>10} {'of ideal':>8} {'killed':>7} {'in vain':>8} {'listing':>8}"
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
            f"{parts:6} {args.pictures // parts:9,} {mean[0] / 3600:6.2f} {max(run[0] for run in runs) / 3600:6.2f} {core_hours:10.0f} "
            f"{ideal / mean[0]:8.0%} {mean[3]:7.1f} {mean[2] / args.pictures:8.2%} {listing * parts * args.threads / 3600 / core_hours:8.1%}"
        )


if __name__ == "__main__":
    main()
