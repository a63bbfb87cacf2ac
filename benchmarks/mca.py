#!/usr/bin/env python3
"""Predicts the cycles of the aarch64 program's inner loops on Cortex-A53, A72 and A76.

    benchmarks/mca.py target/aarch64-unknown-linux-musl/release/edge

Needs aarch64-linux-gnu-objdump and llvm-mca (Debian: binutils-aarch64-linux-gnu, llvm). Takes the
loops with at least 32 smlal or sdot from the disassembly, and prints for each the number of these
instructions, the predicted cycles per iteration, and their ratio. Each core can start at most one
smlal per cycle, so a ratio of 1 is the peak; A76 can start two sdot (A53 and A72 have none).
"""

import re
import subprocess
import sys
import tempfile

CORES = ("cortex-a53", "cortex-a72", "cortex-a76")


def main():
    if len(sys.argv) != 2:
        sys.exit(__doc__)
    listing = subprocess.run(
        ["aarch64-linux-gnu-objdump", "-d", "--no-show-raw-insn", sys.argv[1]],
        capture_output=True,
        text=True,
        check=True,
    ).stdout
    code = {}
    for line in listing.splitlines():
        match = re.match(r"\s*([0-9a-f]+):\t(\S+)\s*([^/<]*)", line)
        if match:
            code[int(match[1], 16)] = (match[2], match[3].strip())
    addresses = list(code)
    places = {address: index for index, address in enumerate(addresses)}
    for end, address in enumerate(addresses):
        name, operands = code[address]
        if not re.fullmatch(r"b\.\w+|[ct]bn?z|b", name):
            continue
        target = operands.split()[-1].removeprefix("0x").rstrip(",")
        if not re.fullmatch(r"[0-9a-f]+", target):
            continue
        start = places.get(int(target, 16))
        if start is None or not 0 <= end - start < 400:
            continue
        body = [code[a] for a in addresses[start:end]]
        kind = "sdot" if any(n == "sdot" for n, _ in body) else "smlal"
        products = sum(n.startswith(kind) for n, _ in body)
        if products < 32 or any(n.startswith("b") for n, _ in body):
            continue
        with tempfile.NamedTemporaryFile("w", suffix=".s") as file:
            file.write("".join(f"\t{n}\t{o}\n" for n, o in body))
            file.flush()
            cycles = {}
            for core in CORES:
                report = subprocess.run(
                    [
                        "llvm-mca",
                        "-mtriple=aarch64",
                        f"-mcpu={core}",
                        "-mattr=+dotprod",
                        "-iterations=200",
                        file.name,
                    ],
                    capture_output=True,
                    text=True,
                    check=True,
                ).stdout
                cycles[core] = int(re.search(r"Total Cycles:\s+(\d+)", report)[1]) / 200
        ratios = "  ".join(
            f"{core} {value:6.1f} ({products / value:.2f})" for core, value in cycles.items()
        )
        print(f"{addresses[start]:x}: {len(body) + 1} instructions, {products} {kind}: {ratios}")


if __name__ == "__main__":
    main()
