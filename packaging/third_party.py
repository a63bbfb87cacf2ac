#!/usr/bin/env python3
"""Prints the crates that are compiled into edge for a target, with their licenses.

    packaging/third_party.py aarch64-unknown-linux-musl

License texts are those that the crates contain; identical texts are printed once. The order depends
only on names, so that packages are reproducible.
"""

import json
import pathlib
import subprocess
import sys

WORDS = ("LICENSE", "LICENCE", "COPYING", "COPYRIGHT", "NOTICE", "UNLICENSE")


def cargo(*arguments):
    return subprocess.run(
        ["cargo", *arguments, "--locked"], check=True, stdout=subprocess.PIPE, text=True
    ).stdout


def texts(folder):
    """Yields the license texts of a crate; only that of MIT, which is short, if it is a choice."""
    files = sorted(
        path for path in folder.iterdir() if path.is_file() and path.name.upper().startswith(WORDS)
    )
    mit = [path for path in files if "MIT" in path.name.upper()]
    others = [path for path in files if path.name.upper().startswith(("NOTICE", "COPYRIGHT"))]
    for path in mit + [path for path in others if path not in mit] if mit else files:
        lines = path.read_text(encoding="utf-8", errors="replace").strip().splitlines()
        yield "\n".join(line.rstrip() for line in lines)


def main():
    target = sys.argv[1]
    tree = cargo(
        "tree", "--package", "edge", "--edges", "normal", "--prefix", "none", "--target", target
    )
    linked = {tuple(line.split()[:2]) for line in tree.splitlines() if line}
    metadata = json.loads(cargo("metadata", "--format-version", "1", "--filter-platform", target))
    crates = [
        package
        for package in metadata["packages"]
        if (package["name"], "v" + package["version"]) in linked and package["source"]
    ]
    crates.sort(key=lambda package: (package["name"], package["version"]))

    users = {}
    print("Rust crates compiled into /usr/bin/edge\n")
    for package in crates:
        name = f"{package['name']} {package['version']}"
        print(
            f"{name}: {package['license']}, "
            f"{package['repository'] or 'https://crates.io/crates/' + package['name']}"
        )
        found = list(texts(pathlib.Path(package["manifest_path"]).parent))
        if not found:
            authors = ", ".join(package["authors"]) or "its authors"
            found = [
                f"(The crate ships no text.) Copyright {authors}; license {package['license']}."
            ]
        for text in found:
            users.setdefault(text, []).append(name)
    for text, names in sorted(users.items(), key=lambda item: item[1]):
        print(f"\n{'=' * 78}\n{', '.join(names)}\n{'-' * 78}\n{text}")


if __name__ == "__main__":
    main()
