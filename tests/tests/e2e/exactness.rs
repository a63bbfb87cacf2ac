//! The same file gives the same bits on host and device, on every architecture and with every
//! kernel.

use std::path::{Path, PathBuf};
use std::process::Command;

use image::{DynamicImage, ImageFormat};
use tests::{Device, cargo, encode, host, ndjson, picture, root, small_head, succeed};

/// Images of many sizes and formats: PNG in four color types, BMP, PNM, WebP, and every kind of
/// JPEG in `fixtures/`.
fn pictures(folder: &Path) -> Vec<PathBuf> {
    let mut files = Vec::new();
    let mut add = |name: String, bytes: Vec<u8>| {
        let path = folder.join(name);
        std::fs::write(&path, bytes).unwrap();
        files.push(path);
    };
    for (index, (width, height)) in
        [(1, 1), (2, 3), (31, 33), (32, 32), (64, 64), (97, 61), (200, 50), (50, 201), (320, 240)]
            .into_iter()
            .enumerate()
    {
        let rgb = DynamicImage::ImageRgb8(picture(width, height, index as u32));
        add(format!("{index}-rgb.png"), encode(&rgb, ImageFormat::Png));
        add(
            format!("{index}-grey.png"),
            encode(&DynamicImage::ImageLuma8(rgb.to_luma8()), ImageFormat::Png),
        );
        add(format!("{index}.bmp"), encode(&rgb, ImageFormat::Bmp));
        if index % 2 == 0 {
            add(
                format!("{index}-alpha.png"),
                encode(&DynamicImage::ImageRgba8(rgb.to_rgba8()), ImageFormat::Png),
            );
            add(
                format!("{index}-16.png"),
                encode(&DynamicImage::ImageRgb16(rgb.to_rgb16()), ImageFormat::Png),
            );
            add(format!("{index}.ppm"), encode(&rgb, ImageFormat::Pnm));
            add(format!("{index}.webp"), encode(&rgb, ImageFormat::WebP));
        }
    }
    let fixtures = root().join("tests/fixtures/jpeg");
    let mut jpegs: Vec<PathBuf> =
        std::fs::read_dir(&fixtures).unwrap().map(|entry| entry.unwrap().path()).collect();
    jpegs.retain(|path| path.extension().is_some_and(|e| e == "jpg"));
    assert!(jpegs.len() >= 20, "{} contains {} images", fixtures.display(), jpegs.len());
    jpegs.sort();
    files.extend(jpegs);
    assert!(files.len() >= 50);
    files
}

/// The results that must not differ: feature digest, label, and all digits of the scores.
fn answers(command: &mut Command, options: &[&str], files: &[PathBuf]) -> Vec<String> {
    let out = succeed(
        command
            .args(["classify", "--json", "--digest", "--head"])
            .arg(small_head())
            .args(options)
            .args(files),
    );
    let lines: Vec<String> = ndjson(&out)
        .into_iter()
        .map(|line| {
            assert_eq!(line["features_sha256"].as_str().unwrap().len(), 64);
            format!(
                "{} {} {} {}",
                line["source"], line["features_sha256"], line["label"], line["scores"]
            )
        })
        .collect();
    assert_eq!(lines.len(), files.len());
    lines
}

#[test]
fn host_and_every_device_agree_to_the_bit() {
    let folder = tempfile::tempdir().unwrap();
    let files = pictures(folder.path());
    let expected = answers(&mut host(), &[], &files);
    // The digests differ between images, so that equality is meaningful.
    let mut distinct: Vec<&str> =
        expected.iter().map(|line| line.split(' ').nth(1).unwrap()).collect();
    distinct.sort_unstable();
    distinct.dedup();
    assert!(distinct.len() * 4 > files.len(), "only {} different feature maps", distinct.len());
    for device in Device::ALL {
        let found = answers(&mut device.edge(), &[], &files);
        for (found, expected) in found.iter().zip(&expected) {
            assert_eq!(found, expected, "{device:?}");
        }
    }
}

#[test]
fn every_kernel_and_thread_count_agrees() {
    let folder = tempfile::tempdir().unwrap();
    let files = pictures(folder.path());
    let few: Vec<PathBuf> = files.into_iter().step_by(7).collect();
    let expected = answers(&mut host(), &[], &few);
    let info = succeed(Device::Native.edge().args(["info", "--json"]));
    let kernels = ndjson(&info)[0]["kernels"].as_array().unwrap().clone();
    for kernel in kernels {
        for threads in ["1", "3"] {
            let mut edge = Device::Native.edge();
            edge.env("VGG_EDGE_KERNEL", kernel.as_str().unwrap());
            assert_eq!(
                answers(&mut edge, &["--threads", threads], &few),
                expected,
                "{kernel} on {threads} threads"
            );
        }
    }
    // The emulated CPUs support every instruction set extension.
    for (device, kernel, first, last) in [
        (Device::Aarch64, "portable", "direct", "winograd"),
        (Device::Aarch64, "neon", "direct", "winograd"),
        (Device::Aarch64, "sdot", "dot", "dot"),
        (Device::Armv7, "portable", "direct", "winograd"),
        (Device::Armv7, "neon", "direct", "winograd"),
    ] {
        let mut edge = device.edge();
        edge.env("VGG_EDGE_KERNEL", kernel);
        assert_eq!(answers(&mut edge, &[], &few[..3]), expected[..3], "{device:?} {kernel}");
        let mut edge = device.edge();
        let info = ndjson(&succeed(edge.env("VGG_EDGE_KERNEL", kernel).args(["info", "--json"])));
        assert_eq!(info[0]["algorithms"]["block1_conv1"], first);
        assert_eq!(info[0]["algorithms"]["block5_conv3"], last);
    }
}

/// The unit tests of the library, with every kernel's suite, and of `edge` also pass on ARM.
#[test]
fn unit_tests_pass_on_arm() {
    for (target, emulator) in [
        ("aarch64-unknown-linux-musl", "qemu-aarch64-static"),
        ("armv7-unknown-linux-gnueabihf", "qemu-arm-static"),
    ] {
        let runner = format!("CARGO_TARGET_{}_RUNNER", target.to_uppercase().replace('-', "_"));
        let out = succeed(
            cargo()
                .args([
                    "test",
                    "--quiet",
                    "--locked",
                    "--release",
                    "--lib",
                    "-p",
                    "vgg-edge",
                    "-p",
                    "edge",
                    "--target",
                    target,
                ])
                .env(runner, emulator)
                .env("PROPTEST_CASES", "32"),
        );
        let passed = out.lines().filter(|line| line.starts_with("test result: ok")).count();
        assert!(passed >= 2, "{out}");
    }
}
