#!/usr/bin/env python3
"""Lists the dependencies in Cargo manifests that no source file uses, and fails if there are any.

    scripts/check-dependencies.py

A dependency counts as used if its crate name occurs in code of its package. Dependencies for tests
may be used anywhere in the package, all others in `src` or the build script.
"""

import json
import pathlib
import re
import subprocess
import sys
import tomllib

ROOT = pathlib.Path(__file__).resolve().parent.parent
# Workspaces of their own.
EXCLUDED = ("fuzz", "benchmarks/tract")


def metadata(directory, *options):
    command = ["cargo", "metadata", "--format-version", "1", "--locked", *options]
    output = subprocess.run(command, cwd=ROOT / directory, check=True, stdout=subprocess.PIPE)
    return json.loads(output.stdout)


def crate_names(data):
    """Returns the crate name of each package that has a library: `md5` for `md-5`."""
    names = {}
    for package in data["packages"]:
        for target in package["targets"]:
            if {"lib", "rlib", "proc-macro"} & set(target["kind"]):
                names[package["name"]] = target["name"].replace("-", "_")
    return names


def code(directory, nested):
    """Returns the code below a directory without line comments, and without nested packages."""
    files = [path for path in directory.rglob("*.rs") if "target" not in path.parts]
    files = [path for path in files if not any(path.is_relative_to(other) for other in nested)]
    return "\n".join(re.sub(r"//.*", "", path.read_text(encoding="utf-8")) for path in files)


def unused(package, names, directories):
    """Yields the dependencies of a package that its code does not use."""
    directory = pathlib.Path(package["manifest_path"]).parent
    nested = [d for d in directories if d != directory and d.is_relative_to(directory)]
    everything = code(directory, nested)
    # Binaries may lie outside `src`, as those of cargo-fuzz do.
    program = "".join(
        pathlib.Path(target["src_path"]).read_text(encoding="utf-8")
        for target in package["targets"]
        if {"bin", "custom-build"} & set(target["kind"])
    )
    program += code(directory / "src", nested)
    for dependency in package["dependencies"]:
        name = dependency["name"]
        crate = (dependency["rename"] or names.get(name, name)).replace("-", "_")
        text = everything if dependency["kind"] == "dev" else program
        if not re.search(rf"\b{crate}\b(::|;| as\b|!)", text):
            manifest = pathlib.Path(package["manifest_path"]).relative_to(ROOT)
            yield f"{manifest}: {name} is not used"


def main():
    workspace = metadata(".")
    members = set(workspace["workspace_members"])
    packages = [package for package in workspace["packages"] if package["id"] in members]
    for directory in EXCLUDED:
        packages += metadata(directory, "--no-deps")["packages"]
    names = crate_names(workspace)
    directories = [pathlib.Path(package["manifest_path"]).parent for package in packages]
    found = [line for package in packages for line in unused(package, names, directories)]

    manifest = tomllib.loads((ROOT / "Cargo.toml").read_text(encoding="utf-8"))
    declared = {
        dependency["name"] for package in packages for dependency in package["dependencies"]
    }
    for name, dependency in manifest["workspace"]["dependencies"].items():
        real = dependency.get("package", name) if isinstance(dependency, dict) else name
        if real not in declared:
            found.append(f"Cargo.toml: {name} of workspace.dependencies is not used by any package")
    print("\n".join(found), end="\n" if found else "")
    sys.exit(bool(found))


if __name__ == "__main__":
    main()
