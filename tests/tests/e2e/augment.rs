//! Augmentation: `host train --augment` and its parts, `host augment`.

use std::path::Path;
use std::process::Stdio;

use tests::{data_folder, fail, host, ndjson, root, run, succeed};

const SAMPLES: &str = "samples/surfaces";

/// Trains on the samples at 32 px, for two epochs by default; returns the bytes of the head and the
/// printed lines.
fn train(folder: &Path, extra: &[&str]) -> (Vec<u8>, Vec<serde_json::Value>) {
    let (head, cache) = (folder.join("head.postcard"), folder.join("cache"));
    let mut command = host();
    command.args(["train", SAMPLES, "--json", "--size", "32", "--units", "16"]);
    if !extra.contains(&"--epochs") {
        command.args(["--epochs", "2"]);
    }
    let out = succeed(command.arg("--cache").arg(cache).arg("-o").arg(&head).args(extra));
    (std::fs::read(head).unwrap(), ndjson(&out))
}

#[test]
fn training_on_variants_is_reproducible() {
    let folder = tempfile::tempdir().unwrap();
    let (plain, _) = train(folder.path(), &[]);
    let (augmented, lines) = train(folder.path(), &["--augment", "--threads", "2"]);
    assert_eq!(
        train(folder.path(), &["--augment", "--threads", "1"]).0,
        augmented,
        "threads change the head"
    );
    assert_ne!(augmented, plain);
    assert_ne!(train(folder.path(), &["--augment", "--seed", "1"]).0, augmented);
    let result = lines.last().unwrap();
    let settings = result["settings"].as_str().unwrap();
    let words = "augmented (rotation 40, width shift 0.2, height shift 0.2, shear 0.2, zoom 0.2, \
        horizontal flip, fill nearest) anew in each epoch";
    assert!(settings.ends_with(words), "{settings}");
    // Validation images are not augmented: the cache contained all of them.
    assert_eq!(
        result["cached"].as_u64().unwrap(),
        result["train"].as_u64().unwrap() + result["val"].as_u64().unwrap()
    );

    // A flag in addition to the set changes only that augmentation.
    let (other, lines) = train(
        folder.path(),
        &["--augment", "--rotation", "0", "--horizontal-flip=false", "--fill", "wrap"],
    );
    assert_ne!(other, augmented);
    let settings = lines.last().unwrap()["settings"].as_str().unwrap();
    let words =
        "augmented (width shift 0.2, height shift 0.2, shear 0.2, zoom 0.2, fill wrap) anew";
    assert!(settings.contains(words), "{settings}");

    // An augmentation without effect changes only the training record.
    let (_, plain) = train(folder.path(), &[]);
    let (_, same) = train(folder.path(), &["--brightness", "1,1"]);
    assert_eq!(plain[..2], same[..2]);
}

#[test]
fn a_few_variants_take_turns() {
    let folder = tempfile::tempdir().unwrap();
    let five = ["--augment", "--variants", "2", "--epochs", "5", "--patience", "0"];
    let (head, lines) = train(folder.path(), &five);
    assert_eq!(train(folder.path(), &[&five[..], &["--threads", "1"]].concat()).0, head);
    assert!(lines.last().unwrap()["settings"].as_str().unwrap().ends_with("in 2 variants"));
    // The first epoch uses the originals.
    let (_, plain) = train(folder.path(), &[]);
    assert_eq!(plain[0], lines[0]);
    assert_ne!(plain[1], lines[1]);

    // Only the second and third epochs make variants.
    let mut command = host();
    command.args(["train", SAMPLES, "--size", "32", "--units", "16"]).args(five);
    let output = run(command
        .arg("--cache")
        .arg(folder.path().join("cache"))
        .arg("-o")
        .arg(folder.path().join("head")));
    let words = String::from_utf8(output.stderr).unwrap();
    let made: Vec<&str> = words.lines().filter(|line| line.contains(" variants in ")).collect();
    assert_eq!(made.len(), 2, "{words}");
    assert!(made[0].contains("epoch 2: ") && made[1].contains("epoch 3: "), "{words}");
}

#[test]
fn interrupted_training_continues_with_the_same_variants() {
    let folder = tempfile::tempdir().unwrap();
    let data = folder.path().join("data");
    data_folder(&data, &[("red", 30), ("green", 30)]);
    let command = |head: &Path, extra: &[&str]| {
        let mut command = host();
        command.args([
            "train",
            "--size",
            "32",
            "--units",
            "8",
            "--augment",
            "--epochs",
            "8",
            "--patience",
            "0",
            "--json",
        ]);
        command.arg(&data).arg("-o").arg(head).args(extra);
        command
    };
    let (whole, parts) = (folder.path().join("whole"), folder.path().join("parts"));
    let whole_lines = succeed(&mut command(&whole, &[]));
    let mut child =
        command(&parts, &[]).stdout(Stdio::piped()).stderr(Stdio::piped()).spawn().unwrap();
    // Ctrl-C while the second epoch's variants are made.
    let mut line = String::new();
    std::io::BufRead::read_line(
        &mut std::io::BufReader::new(child.stdout.as_mut().unwrap()),
        &mut line,
    )
    .unwrap();
    succeed(std::process::Command::new("kill").args(["-INT", &child.id().to_string()]));
    let output = child.wait_with_output().unwrap();
    let words = String::from_utf8(output.stderr).unwrap();
    assert_eq!(output.status.code(), Some(1), "{words}");
    assert!(words.contains("--resume continues from"), "{words}");
    let resumed = succeed(&mut command(&parts, &["--resume"]));
    assert_eq!(std::fs::read(&parts).unwrap(), std::fs::read(&whole).unwrap());
    // Each epoch is reported once.
    let (whole_lines, resumed) = (ndjson(&whole_lines), ndjson(&resumed));
    let first = resumed[0]["epoch"].as_u64().unwrap() as usize;
    assert!(first > 1);
    assert_eq!(whole_lines[first - 1..8], resumed[..resumed.len() - 1]);
}

#[test]
fn invalid_augmentations_are_refused() {
    for (flags, words) in [
        (&["--zoom", "-0.1"][..], "--zoom must be at least 0 and below 1, not -0.1"),
        (&["--zoom", "1"], "--zoom"),
        (&["--width-shift", "1"], "--width-shift must be at least 0 and below 1, not 1"),
        (&["--height-shift", "1.5"], "--height-shift"),
        (&["--rotation", "181"], "--rotation must be from 0 to 180, not 181"),
        (&["--rotation", "NaN"], "--rotation"),
        (&["--shear", "90"], "--shear"),
        (&["--brightness", "1.2,0.8"], "LOW,HIGH"),
        (&["--fill", "reflect"], "nothing is left to augment with"),
        (&["--augment", "--fill-value", "3"], "--fill constant"),
        (
            &["--augment", "--fill", "constant", "--fill-value", "256"],
            "--fill-value must be from 0 to 255",
        ),
        (&["--variants", "2"], "--variants"),
        (&["--augment", "--fine-tune", "block5"], "--fine-tune"),
    ] {
        fail(host().args(["train", SAMPLES, "-o", "x"]).args(flags), 2, words);
    }
    fail(
        host().args(["train", SAMPLES, "-o", "x", "--augment", "--variants", "0"]),
        2,
        "--variants",
    );
    fail(host().args(["augment", "none.jpg", "-o", "x.png"]), 1, "none.jpg");
    fail(host().args(["augment", "a.png", "-o", "a.png"]), 2, "replace the image");
    assert!(!root().join("x").exists() && !root().join("x.png").exists());
}

#[test]
fn sheet_shows_an_image_and_its_variants() {
    let folder = tempfile::tempdir().unwrap();
    let picture = root().join(SAMPLES).join("val/brick/003.jpg");
    let sheet = |name: &str, extra: &[&str]| {
        let path = folder.path().join(name);
        succeed(
            host()
                .arg("augment")
                .arg(&picture)
                .arg("-o")
                .arg(&path)
                .args(["--size", "32"])
                .args(extra),
        );
        image::open(path).unwrap().to_rgb8()
    };
    let drawn = sheet("a.png", &[]);
    assert_eq!(drawn.dimensions(), (148, 148));
    assert!(sheet("b.png", &["--augment"]) == drawn && sheet("c.png", &["--seed", "1"]) != drawn);
    let tile = |n: u32| {
        image::imageops::crop_imm(&drawn, 4 + n % 4 * 36, 4 + n / 4 * 36, 32, 32).to_image()
    };
    for a in 0..16 {
        assert!((0..a).all(|b| tile(a) != tile(b)), "{a}");
    }
}
