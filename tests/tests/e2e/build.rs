//! The build: dependencies of the device program, licenses, code paths of the decoder, program
//! size, `unsafe`.

use std::collections::BTreeMap;
use std::path::{Path, PathBuf};

use tests::{Device, cargo, root, succeed};

fn tree(args: &[&str]) -> String {
    succeed(cargo().args(["tree", "--locked", "--prefix", "none"]).args(args))
}

#[test]
fn the_device_carries_no_training_framework() {
    for target in
        ["x86_64-unknown-linux-gnu", "aarch64-unknown-linux-musl", "armv7-unknown-linux-gnueabihf"]
    {
        let crates = tree(&["-p", "edge", "-e", "normal", "--target", target]);
        assert!(crates.contains("tract-onnx"));
        for unwanted in ["burn", "gemm", "indicatif", "npyz", "reqwest", "hdf5"] {
            let found = crates.lines().find(|line| line.starts_with(unwanted));
            assert_eq!(found, None, "edge depends on {unwanted}");
        }
    }
}

#[test]
fn one_scalar_code_path_decodes_jpeg() {
    let features = tree(&["--workspace", "-e", "features", "-i", "zune-jpeg", "--target", "all"]);
    assert!(features.contains("zune-jpeg feature \"std\""), "{features}");
    for unwanted in
        ["zune-jpeg feature \"x86\"", "zune-jpeg feature \"neon\"", "zune-jpeg feature \"default\""]
    {
        assert!(!features.contains(unwanted), "{unwanted} is on: bits would depend on the CPU");
    }
}

#[test]
fn the_program_for_the_pi_is_small_and_static() {
    for device in [Device::Aarch64, Device::Armv7] {
        let path = device.edge_path();
        let bytes = std::fs::read(&path).unwrap();
        assert!(bytes.len() <= 12 << 20, "{}: {} bytes", path.display(), bytes.len());
        // A dynamic program names its interpreter in a program header; a static one has none.
        assert!(
            !bytes.windows(7).any(|window| window == b"/lib/ld"),
            "{} is not static",
            path.display()
        );
    }
}

/// Checks what `cargo deny check licenses sources` checks (`deny.toml`), without that program,
/// which takes longer to build than this workspace.
#[test]
fn licenses_and_sources_are_those_of_deny_toml() {
    let rules = std::fs::read_to_string(root().join("deny.toml")).unwrap();
    let allowed = rules
        .split("\nallow = [")
        .nth(1)
        .and_then(|rest| rest.split(']').next())
        .expect("a list of licenses");
    let allowed: Vec<&str> = allowed.split('"').skip(1).step_by(2).collect();
    assert!(allowed.contains(&"MIT") && !allowed.contains(&"GPL-3.0"));
    // An SPDX expression, without nested brackets.
    let is_free = |expression: &str| {
        let known = |license: &str| allowed.contains(&license.trim());
        let one_of = |part: &str| {
            part.trim_matches(['(', ')']).replace('/', " OR ").split(" OR ").any(known)
        };
        expression.split(" AND ").all(one_of)
    };
    assert!(
        is_free("(MIT OR GPL-3.0) AND ISC")
            && is_free("GPL-3.0/MIT")
            && !is_free("MIT AND GPL-3.0")
    );
    for target in
        ["x86_64-unknown-linux-gnu", "aarch64-unknown-linux-musl", "armv7-unknown-linux-gnueabihf"]
    {
        let crates = tree(&[
            "-p",
            "edge",
            "-p",
            "host",
            "-e",
            "normal,build",
            "--target",
            target,
            "-f",
            "{l}|{p}",
        ]);
        let mut seen = 0;
        for line in crates.lines().filter(|line| !line.is_empty()) {
            let (license, package) = line.split_once('|').expect("a license and a package");
            assert!(is_free(license), "{package}: {license:?} is not in deny.toml");
            // A registry crate has nothing after its version; git and path crates have a location.
            let place = package.split_once('(').map_or("", |(_, place)| place);
            let ours = place.starts_with(root().to_str().unwrap())
                || place.starts_with("proc-macro")
                || place.starts_with('*');
            assert!(place.is_empty() || ours, "{package} is not of crates.io");
            seen += 1;
        }
        assert!(seen > 100, "{seen} crates");
    }
}

/// Collects the Rust files, without the build directory.
fn sources(folder: &Path, found: &mut Vec<PathBuf>) {
    for entry in std::fs::read_dir(folder).unwrap() {
        let path = entry.unwrap().path();
        let name = path.file_name().unwrap().to_string_lossy().into_owned();
        if path.is_dir() && name != "target" && !name.starts_with('.') {
            sources(&path, found);
        } else if name.ends_with(".rs") {
            found.push(path);
        }
    }
}

/// Every `unsafe` is listed in docs/testing.md, which has a count and a reason for each file.
#[test]
fn unsafe_code_is_listed() {
    let text = std::fs::read_to_string(root().join("docs/testing.md")).unwrap();
    let mut listed = BTreeMap::new();
    for row in text.lines().filter(|line| line.starts_with("| `") && line.contains(".rs` |")) {
        let cells: Vec<&str> = row.split('|').map(str::trim).collect();
        listed.insert(cells[1].trim_matches('`').to_owned(), cells[2].parse::<usize>().unwrap());
    }
    let mut files = Vec::new();
    sources(root(), &mut files);
    let mut found = BTreeMap::new();
    for file in files {
        let source = std::fs::read_to_string(&file).unwrap();
        let code = source.lines().map(|line| line.split("//").next().unwrap());
        let words = code.flat_map(|line| line.split(|c: char| !c.is_alphanumeric() && c != '_'));
        // In two parts, so that this line does not match itself.
        let count = words.filter(|word| *word == concat!("un", "safe")).count();
        if count > 0 {
            found.insert(file.strip_prefix(root()).unwrap().to_str().unwrap().to_owned(), count);
        }
    }
    assert_eq!(found, listed, "as it is in the code, and in docs/testing.md");
    assert!(found.len() > 3);
}
