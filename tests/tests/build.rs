//! What is built: the dependency tree of the device, the code paths of the decoder, the size of the program.

use std::process::Command;

use tests::{Device, root, succeed};

fn tree(args: &[&str]) -> String {
    succeed(Command::new(env!("CARGO")).current_dir(root()).args(["tree", "--locked", "--prefix", "none"]).args(args))
}

#[test]
fn the_device_carries_no_training_framework() {
    for target in ["x86_64-unknown-linux-gnu", "aarch64-unknown-linux-musl", "armv7-unknown-linux-gnueabihf"] {
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
    for unwanted in ["zune-jpeg feature \"x86\"", "zune-jpeg feature \"neon\"", "zune-jpeg feature \"default\""] {
        assert!(!features.contains(unwanted), "{unwanted} is on: bits would depend on the CPU");
    }
}

#[test]
fn the_program_for_the_pi_is_small_and_static() {
    for device in [Device::Aarch64, Device::Armv7] {
        let path = device.edge_path();
        let bytes = std::fs::read(&path).unwrap();
        assert!(bytes.len() <= 12 << 20, "{}: {} bytes", path.display(), bytes.len());
        // An interpreter would be named in a program header; a static program has none.
        assert!(!bytes.windows(7).any(|window| window == b"/lib/ld"), "{} is not static", path.display());
    }
}
