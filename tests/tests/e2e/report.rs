//! The reports of `host train` and `host evaluate`: files, content, and the page in Chromium.

use std::path::Path;

use tests::browser::browse;
use tests::{base, data_folder, encode, fail, host, ndjson, picture, run, succeed, weights};

/// Opens the page in phone and desktop sizes, light and dark; a step `screenshot` fails if the page
/// is wider than the window.
fn looks_well(page: &Path, name: &str, then: &[&str]) -> Vec<String> {
    let mut steps = Vec::new();
    for scheme in ["light", "dark"] {
        for (window, size) in [("phone", "390 844"), ("desktop", "1280 900")] {
            steps.push(format!("scheme {scheme}"));
            steps.push(format!("size {size}"));
            steps.push(
                "eval document.querySelectorAll('details').forEach(d => d.open = true)".to_owned(),
            );
            steps.push(format!("screenshot target/screenshots/{name}-{window}-{scheme}.png"));
        }
    }
    let before = steps.len();
    steps.extend(then.iter().map(ToString::to_string));
    steps.push("calm".to_owned());
    browse(&format!("file://{}", page.display()), &steps)[before..].to_vec()
}

#[test]
fn training_report_has_page_charts_and_history() {
    let folder = tempfile::tempdir().unwrap();
    let (head, report) = (folder.path().join("head.postcard"), folder.path().join("made/by/train"));
    let out = succeed(
        host()
            .args(["train", "--json", "samples/surfaces", "-o"])
            .arg(&head)
            .arg("--report")
            .arg(&report),
    );
    let lines = ndjson(&out);
    let (result, epochs) = lines.split_last().unwrap();

    // The history equals the printed lines.
    let csv = std::fs::read_to_string(report.join("history.csv")).unwrap();
    let mut rows = csv.lines();
    assert_eq!(rows.next(), Some("epoch,loss,accuracy,val_loss,val_accuracy"));
    let rows: Vec<Vec<f64>> =
        rows.map(|row| row.split(',').map(|v| v.parse().unwrap()).collect()).collect();
    assert_eq!(rows.len(), epochs.len());
    for (row, epoch) in rows.iter().zip(epochs) {
        for (value, field) in
            row.iter().zip(["epoch", "loss", "accuracy", "val_loss", "val_accuracy"])
        {
            // serde_json parses numbers to within one unit in the last place.
            let printed = epoch[field].as_f64().unwrap();
            assert!(
                (value - printed).abs() <= 1e-15 * printed.abs(),
                "{field}: {value} is not {printed}"
            );
        }
    }

    for name in ["loss", "accuracy", "confusion", "reliability"] {
        let png = image::open(report.join(format!("{name}.png"))).unwrap().into_rgb8();
        assert!(png.width() >= 600 && png.height() >= 500, "{name}");
        let ink = png.pixels().filter(|pixel| pixel.0.iter().all(|&v| v < 0x70)).count();
        assert!(ink > 1000, "{name} has only {ink} pixels of text and lines");
    }
    let mut names: Vec<_> =
        std::fs::read_dir(&report).unwrap().map(|entry| entry.unwrap().file_name()).collect();
    names.sort();
    assert_eq!(
        names,
        [
            "accuracy.png",
            "confusion.png",
            "history.csv",
            "loss.png",
            "reliability.png",
            "report.html"
        ]
    );

    let page = report.join("report.html");
    let html = std::fs::read_to_string(&page).unwrap();
    let accuracy = format!("{:.1} %", 100.0 * result["val_accuracy"].as_f64().unwrap());
    let inspected = succeed(host().args(["inspect", "--json"]).arg(&head));
    let inspected: serde_json::Value = serde_json::from_str(&inspected).unwrap();
    for words in [
        &accuracy,
        "2023-11-14",
        inspected["base"].as_str().unwrap(),
        &sha256(&head),
        "brick",
        "--float FILE",
    ] {
        assert!(html.contains(words), "{words} is not in the page");
    }
    let found = looks_well(
        &page,
        "report",
        &[
            "eval document.querySelectorAll('svg[role=img]').length",
            "eval document.querySelectorAll('script, link, [style]').length",
            "eval performance.getEntriesByType('resource').filter(r => \
                !r.name.startsWith('data:')).length",
            "eval getComputedStyle(document.querySelector('nav')).display",
        ],
    );
    assert_eq!(found[..4], ["4", "0", "0", "\"flex\""], "charts, scripts, resources, style sheet");

    // Evaluation of the same images: no history, the same metrics.
    let report = folder.path().join("evaluated");
    succeed(
        host()
            .args(["evaluate", "samples/surfaces", "--head"])
            .arg(&head)
            .arg("--report")
            .arg(&report),
    );
    assert!(!report.join("history.csv").exists() && !report.join("loss.png").exists());
    let html = std::fs::read_to_string(report.join("report.html")).unwrap();
    assert!(html.contains("Evaluation report") && html.contains(&accuracy));
    assert!(report.join("confusion.png").exists() && report.join("reliability.png").exists());
}

fn sha256(file: &Path) -> String {
    use sha2::Digest;
    sha2::Sha256::digest(std::fs::read(file).unwrap())
        .iter()
        .map(|byte| format!("{byte:02x}"))
        .collect()
}

#[test]
fn report_escapes_names_and_lists_unusual_data() {
    let folder = tempfile::tempdir().unwrap();
    let (data, report) = (folder.path().join("data"), folder.path().join("report"));
    // A label that contains markup, and one that reverses the text direction.
    let classes = ["<img src=x onerror=alert(1)>", "b\u{202e}\" onclick='alert(2)", "plain"];
    let bmp = |seed| {
        encode(&image::DynamicImage::ImageRgb8(picture(40, 30, seed)), image::ImageFormat::Bmp)
    };
    for part in ["train", "val"] {
        for (index, class) in classes.iter().enumerate() {
            let class = data.join(part).join(class);
            std::fs::create_dir_all(&class).unwrap();
            for number in 0..6 {
                // Noise: nothing can be learnt, so some images are misclassified.
                let seed = 1000 * u32::from(part == "val") + 100 * index as u32 + number;
                std::fs::write(
                    class.join(format!("{number}<script>alert(3)<%2Fscript>.bmp")),
                    bmp(seed),
                )
                .unwrap();
            }
        }
    }
    let twin = bmp(5000);
    std::fs::write(data.join("train").join(classes[0]).join("twin.bmp"), &twin).unwrap();
    std::fs::write(data.join("val").join(classes[2]).join("twin & other.bmp"), &twin).unwrap();
    std::fs::write(data.join("train/plain/broken&.jpg"), b"\xff\xd8 not a picture").unwrap();

    let train = |report: &Path| {
        let mut host = host();
        host.args(["train", "--size", "32", "--epochs", "4", "--threshold", "0.4", "-o"])
            .arg(folder.path().join("head"));
        host.arg(&data).arg("--report").arg(report);
        host
    };
    succeed(&mut train(&report));
    let page = report.join("report.html");
    let html = std::fs::read_to_string(&page).unwrap();
    assert!(
        !html.contains("<script") && !html.contains("<img src=x") && !html.contains('\u{202e}')
    );
    let found = looks_well(
        &page,
        "report-hostile",
        &[
            "eval document.querySelectorAll('.cards img').length > 0 && \
                [...document.images].every(i => i.naturalWidth === 160)",
            "eval document.querySelectorAll('script, [onclick], [onerror]').length",
            "eval document.body.textContent.includes('<img src=x onerror=alert(1)>')",
            "eval document.querySelector('.duplicates').textContent",
            "eval document.querySelector('.notice').textContent",
            "eval document.querySelector('#unreadable + div').textContent",
        ],
    );
    assert_eq!(found[..3], ["true", "0", "true"], "thumbnails, markup, names");
    for words in ["label conflict", "in training and validation", "twin & other.bmp", "twin.bmp"] {
        assert!(found[3].contains(words), "{words}: {}", found[3]);
    }
    assert!(
        found[4].contains("more than one label") && found[4].contains("1 file could not be read"),
        "{}",
        found[4]
    );
    assert!(found[5].contains("train/plain/broken&.jpg"), "{}", found[5]);

    // An output directory that is not writable is reported before the work.
    let file = folder.path().join("file");
    std::fs::write(&file, b"mine").unwrap();
    let errors = fail(&mut train(&file.join("report")), 1, "file/report");
    assert!(!errors.contains("images in"), "{errors}");
    std::fs::create_dir_all(folder.path().join("odd/report.html")).unwrap();
    let errors = fail(&mut train(&folder.path().join("odd")), 1, "it is a directory");
    assert!(!errors.contains("images in"), "{errors}");
    fail(host().args(["train", "x", "-o", "y", "--float", "z"]), 2, "--report");
}

#[test]
fn report_compares_int8_with_f32_weights() {
    let folder = tempfile::tempdir().unwrap();
    let at = |name: &str| folder.path().join(name);
    weights(&at("vgg16.safetensors"));
    data_folder(&at("data"), &[("red", 10), ("green", 10)]);
    let mut quantize = host();
    quantize.args([
        "base",
        "quantize",
        "--rounding",
        "nearest",
        "--size",
        "32",
        "--pictures",
        "4",
        "--calibrate",
    ]);
    succeed(quantize.arg(at("data")).arg("-o").arg(at("int8.onnx")).arg(at("vgg16.safetensors")));
    let train = |base: &Path| {
        let mut host = host();
        host.args(["train", "--size", "32", "--epochs", "2", "--json", "-o"])
            .arg(at("head"))
            .arg(at("data"));
        host.arg("--base")
            .arg(base)
            .arg("--report")
            .arg(at("report"))
            .arg("--float")
            .arg(at("vgg16.safetensors"));
        host
    };
    // Weights of another base are refused before the work.
    let errors = fail(&mut train(&base()), 1, "preprocess images differently");
    assert!(!errors.contains("images in"), "{errors}");

    let result = ndjson(&succeed(&mut train(&at("int8.onnx")))).pop().unwrap();
    let html = std::fs::read_to_string(at("report").join("report.html")).unwrap();
    let row = |name: &str| -> u64 {
        let (_, rest) = html
            .split_once(&format!("{name}</th><td>"))
            .unwrap_or_else(|| panic!("{name} is not there"));
        rest.split_once('<').unwrap().0.parse().unwrap()
    };
    let (int8, f32, differ) = (
        row("accuracy on int8 features"),
        row("accuracy on f32 features"),
        row("predictions that differ"),
    );
    let (lost, won) = (row("of these, correct on f32 only"), row("of these, correct on int8 only"));
    assert_eq!(
        int8 as f64 / result["val"].as_f64().unwrap(),
        result["val_accuracy"].as_f64().unwrap()
    );
    assert_eq!(f32 + won, int8 + lost);
    // Two classes: if int8 and f32 differ, one of them is right.
    assert_eq!(differ, lost + won);
    assert!(!html.contains("--float FILE"));

    // These are not the weights of the fine-tuned base.
    let mut tune = train(&at("int8.onnx"));
    let output = run(tune.args(["--fine-tune", "block5_conv3", "--fine-tune-epochs", "1"]));
    let words = String::from_utf8(output.stderr).unwrap();
    assert!(
        output.status.success() && words.contains("--float belongs to the frozen backbone"),
        "{words}"
    );
}
