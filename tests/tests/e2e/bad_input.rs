//! Bad input gets one clear line and the right exit code, and nothing is lost or half written.

use std::fs;
use std::os::unix::fs::PermissionsExt;
use std::path::Path;

use image::{DynamicImage, ImageFormat};
use tests::{
    Device, base, data_folder, encode, fail, host, names, ndjson, picture, root, run, small_head,
    succeed,
};

/// A training command on `data` that is quick.
fn train(data: &Path, head: &Path) -> std::process::Command {
    let mut command = host();
    command
        .args(["train", "--size", "32", "--units", "8", "--epochs", "2"])
        .arg(data)
        .arg("-o")
        .arg(head);
    command
}

#[test]
fn folders_that_are_no_data_set() {
    let dir = tempfile::tempdir().unwrap();
    let (data, head) = (dir.path().join("data"), dir.path().join("head"));
    fail(&mut train(&data, &head), 1, "cannot list");
    fs::create_dir(&data).unwrap();
    fail(&mut train(&data, &head), 1, "no class folders");
    data_folder(&data, &[("a", 2)]);
    fail(&mut train(&data, &head), 1, "only one class (a)");
    fs::create_dir(data.join("b")).unwrap();
    fail(&mut train(&data, &head), 1, "b: no pictures");
    assert_eq!(names(dir.path()), ["data"]);
}

#[test]
fn damaged_pictures_are_left_out_and_counted_or_fatal_when_strict() {
    let dir = tempfile::tempdir().unwrap();
    let (data, head) = (dir.path().join("data"), dir.path().join("head"));
    data_folder(&data, &[("a", 4), ("b", 4)]);
    fs::write(data.join("a/text.jpg"), "I am a text file").unwrap();
    let whole = fs::read(root().join("tests/fixtures/jpeg/baseline-420.jpg")).unwrap();
    fs::write(data.join("a/truncated.jpg"), &whole[..whole.len() / 2]).unwrap();
    let progressive = fs::read(root().join("tests/fixtures/jpeg/progressive-420.jpg")).unwrap();
    fs::write(data.join("b/truncated.jpeg"), &progressive[..progressive.len() * 2 / 3]).unwrap();
    fs::write(data.join("b/empty.png"), "").unwrap();
    let strict = fail(train(&data, &head).arg("--strict"), 1, "(--strict)");
    assert!(strict.contains("data/"), "{strict}");
    assert!(!head.exists());

    let output = run(train(&data, &head).arg("--json"));
    let errors = String::from_utf8(output.stderr).unwrap();
    assert!(output.status.success(), "{errors}");
    for (name, words) in [
        ("text.jpg", "none of JPEG"),
        ("truncated.jpg", "ends early"),
        ("truncated.jpeg", "ends early"),
        ("empty.png", "empty"),
    ] {
        let line = errors
            .lines()
            .find(|line| line.contains(name))
            .unwrap_or_else(|| panic!("{name}: {errors}"));
        assert!(line.contains("left out") && line.contains(words), "{line}");
    }
    let out = String::from_utf8(output.stdout).unwrap();
    assert_eq!(ndjson(&out).last().unwrap()["skipped"], 4);
    assert!(succeed(host().arg("inspect").arg(&head)).contains("4 left out"));
}

#[test]
fn a_class_of_which_nothing_can_be_read() {
    let dir = tempfile::tempdir().unwrap();
    let (data, head) = (dir.path().join("data"), dir.path().join("head"));
    data_folder(&data, &[("a", 3), ("b", 3)]);
    fs::create_dir(data.join("c")).unwrap();
    fs::write(data.join("c/1.png"), "junk").unwrap();
    fail(&mut train(&data, &head), 1, "no picture of class c could be read");
    assert!(!head.exists());
}

#[test]
fn the_smallest_and_a_huge_picture_are_classified() {
    let dir = tempfile::tempdir().unwrap();
    let small = dir.path().join("1x1.png");
    fs::write(&small, encode(&DynamicImage::ImageRgb8(picture(1, 1, 1)), ImageFormat::Png))
        .unwrap();
    let huge = dir.path().join("huge.png");
    let grey = DynamicImage::ImageLuma8(image::GrayImage::from_fn(10_000, 10_000, |x, y| {
        image::Luma([(x / 40 + y / 40) as u8])
    }));
    fs::write(&huge, encode(&grey, ImageFormat::Png)).unwrap();
    let out = succeed(
        Device::Native
            .edge()
            .args(["classify", "--json", "--head"])
            .arg(small_head())
            .args([&small, &huge]),
    );
    assert_eq!(ndjson(&out).len(), 2);
    // Larger than any camera: refused by its header.
    let bomb = dir.path().join("bomb.pgm");
    fs::write(&bomb, "P5 60000 60000 255\n").unwrap();
    fail(
        Device::Native.edge().args(["classify", "--head"]).arg(small_head()).arg(&bomb),
        1,
        "too large",
    );
}

#[test]
fn one_bad_file_does_not_stop_the_others() {
    let good = root().join("samples/surfaces/val/brick/000.jpg");
    for mut program in [host(), Device::Native.edge()] {
        let output = run(program
            .args(["classify", "--head"])
            .arg(small_head())
            .args(["/nonexistent.jpg", "Cargo.toml"])
            .arg(&good));
        assert_eq!(output.status.code(), Some(1));
        assert_eq!(String::from_utf8(output.stdout).unwrap().lines().count(), 1);
        let errors = String::from_utf8(output.stderr).unwrap();
        assert!(
            errors.contains("/nonexistent.jpg: cannot read") && errors.contains("2 of 3 files"),
            "{errors}"
        );
    }
}

#[test]
fn unreadable_files_are_told() {
    let dir = tempfile::tempdir().unwrap();
    let (data, head) = (dir.path().join("data"), dir.path().join("head"));
    data_folder(&data, &[("a", 3), ("b", 3)]);
    // A dangling link is unreadable for root too, whom modes do not stop.
    std::os::unix::fs::symlink("/nowhere", data.join("a/link.png")).unwrap();
    fs::set_permissions(data.join("b/0.bmp"), fs::Permissions::from_mode(0o000)).unwrap();
    let output = run(&mut train(&data, &head));
    let errors = String::from_utf8(output.stderr).unwrap();
    assert!(output.status.success() && errors.contains("link.png: cannot read"), "{errors}");
}

#[test]
fn bases_that_are_missing_wrong_or_damaged() {
    let dir = tempfile::tempdir().unwrap();
    let picture = root().join("samples/surfaces/val/brick/000.jpg");
    let classify = |base: &Path| {
        let mut edge = Device::Native.edge();
        edge.args(["classify", "--head"]).arg(small_head()).arg("--base").arg(base).arg(&picture);
        edge
    };
    fail(&mut classify(&dir.path().join("none.onnx")), 1, "none.onnx: cannot read");
    let mut bytes = fs::read(base()).unwrap();
    let path = dir.path().join("base.onnx");
    fs::write(&path, &bytes[..bytes.len() / 2]).unwrap();
    fail(&mut classify(&path), 1, "not a usable base");
    fs::write(&path, "not ONNX at all").unwrap();
    fail(&mut classify(&path), 1, "not a usable base");
    fs::write(&path, "").unwrap();
    fail(&mut classify(&path), 1, "not a usable base");
    // One weight changed: a base, but not the one of the head.
    let middle = bytes.len() / 2;
    bytes[middle] ^= 1;
    fs::write(&path, &bytes).unwrap();
    fail(&mut classify(&path), 1, "head was trained on base");
}

#[test]
fn heads_that_are_missing_or_damaged() {
    let dir = tempfile::tempdir().unwrap();
    let picture = root().join("samples/surfaces/val/brick/000.jpg");
    let good = fs::read(small_head()).unwrap();
    let path = dir.path().join("head.postcard");
    let check = |bytes: &[u8], words: &str| {
        fs::write(&path, bytes).unwrap();
        for mut program in [host(), Device::Native.edge()] {
            fail(program.args(["classify", "--head"]).arg(&path).arg(&picture), 1, words);
        }
        fail(host().arg("inspect").arg(&path), 1, words);
    };
    check(b"", "not a head file");
    check(b"PNG or so", "not a head file");
    check(&good[..good.len() - 9], "is cut");
    let mut flipped = good.clone();
    flipped[good.len() / 3] ^= 0x10;
    check(&flipped, "checksum");
    let mut old = good.clone();
    old[8] = 99;
    check(&old, "format 99");
    let missing = dir.path().join("none");
    fail(
        Device::Native.edge().args(["classify", "--head"]).arg(missing).arg(&picture),
        1,
        "none: cannot read",
    );
}

#[test]
fn a_full_disk_leaves_the_old_head() {
    let dir = tempfile::tempdir().unwrap();
    let (data, head) = (dir.path().join("data"), dir.path().join("head.postcard"));
    data_folder(&data, &[("a", 3), ("b", 3)]);
    fs::write(&head, "old").unwrap();
    // A file size limit of 8 KiB stands in for the full disk: the same write fails, with another
    // number.
    let host_path = host().get_program().to_owned();
    let mut limited = std::process::Command::new("bash");
    limited
        .current_dir(root())
        .args(["-c", "trap '' XFSZ; ulimit -f 8; exec \"$@\"", "bash"])
        .arg(&host_path);
    limited
        .args(["train", "--size", "32", "--units", "64", "--epochs", "1"])
        .arg(&data)
        .arg("-o")
        .arg(&head);
    fail(&mut limited, 1, "head.postcard: cannot write");
    assert_eq!(fs::read(&head).unwrap(), b"old");
    assert_eq!(names(dir.path()), ["data", "head.postcard"]);
    // A device or a pipe is not replaced by a file.
    let socket = dir.path().join("socket");
    let _listener = std::os::unix::net::UnixListener::bind(&socket).unwrap();
    fail(
        host().args(["extract", "--size", "32"]).arg(&data).arg("-o").arg(&socket),
        1,
        "not a regular file",
    );
    fail(&mut train(&data, &socket), 1, "not a regular file");
    fail(&mut train(&data, Path::new("/nonexistent/head")), 1, "cannot write");
    fail(&mut train(&data, dir.path()), 1, "it is a folder");
}

#[test]
fn sizes_and_kernels_that_do_not_exist() {
    let samples = root().join("samples/surfaces");
    fail(
        host().args(["train", "--size", "50", "-o", "/tmp/never"]).arg(&samples),
        1,
        "multiple of 32",
    );
    fail(Device::Native.edge().args(["bench", "--kernel", "magic"]), 1, "no kernel is called");
    fail(Device::Native.edge().args(["bench", "--kernel", "neon"]), 1, "cannot run the kernel");
    fail(Device::Native.edge().arg("info").env("VGG_EDGE_KERNEL", "magic"), 1, "VGG_EDGE_KERNEL");
}

#[test]
fn sources_that_give_nothing() {
    let dir = tempfile::tempdir().unwrap();
    let run_on = |source: &Path| {
        let mut edge = Device::Native.edge();
        edge.args(["run", "--head"]).arg(small_head()).arg("--source").arg(source);
        edge
    };
    fail(&mut run_on(dir.path()), 1, "no images in this directory");
    fail(&mut run_on(&dir.path().join("none")), 1, "cannot read");
    fs::write(dir.path().join("a.png"), "junk").unwrap();
    fail(&mut run_on(dir.path()), 1, "no frame could be read");
    let video = fs::read(root().join("samples/surfaces.y4m")).unwrap();
    let cut = dir.path().join("cut.y4m");
    fs::write(&cut, &video[..video.len() - 100]).unwrap();
    let errors = fail(&mut run_on(&cut), 1, "ends within frame 44");
    assert!(errors.contains("cut.y4m"));
    fail(run_on(Path::new("-")).arg("--loop"), 2, "--loop");
}
