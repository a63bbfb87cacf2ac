//! `host base`: weights of other programs to a base that both programs run.

use std::io::{BufRead, BufReader, Read, Write};
use std::net::TcpListener;
use std::path::{Path, PathBuf};
use std::process::Command;
use std::sync::mpsc;

use image::{DynamicImage, ImageFormat};
use sha2::{Digest, Sha256};
use tests::{
    Device, base, data_folder, encode, fail, host, ndjson, picture, python, root, succeed, weights,
};

#[test]
fn foreign_weights_become_a_base_that_both_programs_run() {
    let folder = tempfile::tempdir().unwrap();
    let at = |name: &str| folder.path().join(name);
    weights(&at("vgg16.safetensors"));
    let out = succeed(
        host()
            .args(["base", "import", "--json"])
            .arg(at("vgg16.safetensors"))
            .arg("-o")
            .arg(at("f32.onnx")),
    );
    let report = &ndjson(&out)[0];
    assert_eq!(
        (report["parameters"].as_u64(), report["canonical"].as_bool()),
        (Some(14_714_688), Some(false))
    );
    assert_eq!(report["channel_order"], "RGB");

    let data = at("data");
    data_folder(&data, &[("red", 6), ("green", 6)]);
    let quantize = |output: &Path, threads: &str| {
        let mut command = host();
        command.args([
            "base",
            "quantize",
            "--rounding",
            "nearest",
            "--size",
            "32",
            "--pictures",
            "5",
            "--threads",
            threads,
        ]);
        succeed(
            command
                .arg(at("f32.onnx"))
                .arg("--calibrate")
                .arg(&data)
                .arg("-o")
                .arg(output)
                .arg("--json"),
        )
    };
    let report = ndjson(&quantize(&at("one.onnx"), "1"));
    quantize(&at("two.onnx"), "2");
    assert!(std::fs::read(at("one.onnx")).unwrap() == std::fs::read(at("two.onnx")).unwrap());
    assert_eq!(report[0]["pictures"], 5);
    for layer in report[0]["layers"].as_array().unwrap() {
        assert!(layer["accumulator"][1].as_i64().unwrap() < 1 << 31, "{layer}");
    }

    // f32 is refused where int8 is wanted, and the other way round.
    fail(
        host().args(["train", "-o"]).arg(at("head")).arg(&data).arg("--base").arg(at("f32.onnx")),
        1,
        "host base quantize",
    );
    let words = fail(
        host().args(["base", "import"]).arg(at("one.onnx")).arg("-o").arg(at("again.onnx")),
        1,
        "quantized already",
    );
    assert!(!at("again.onnx").exists(), "{words}");

    let mut compare = host();
    compare.args([
        "base",
        "compare",
        "--size",
        "32",
        "--pictures",
        "4",
        "--seeds",
        "1",
        "--json",
        "--html",
    ]);
    let out =
        succeed(compare.arg(at("page.html")).arg(at("f32.onnx")).arg(at("one.onnx")).arg(&data));
    let report = &ndjson(&out)[0];
    let last = &report["layers"][12];
    assert_eq!(last["name"], "block5_conv3");
    let error = last["relative_error"].as_f64().unwrap();
    assert!(error > 0.0 && error < 0.2, "{last}");
    assert_eq!(report["heads"]["differences"].as_array().unwrap().len(), 1);
    let page = std::fs::read_to_string(at("page.html")).unwrap();
    assert!(page.contains("block5_conv3") && page.contains("</svg>") && !page.contains("http"));
    fail(
        host().args(["base", "compare"]).arg(at("f32.onnx")).arg(base()).arg(&data),
        1,
        "preprocess images differently",
    );

    let head = at("head.postcard");
    succeed(
        host()
            .args(["train", "--size", "32", "--epochs", "2", "-o"])
            .arg(&head)
            .arg(&data)
            .arg("--base")
            .arg(at("one.onnx")),
    );
    let mut edge = Device::Native.edge();
    edge.args(["classify", "--json", "--head"]).arg(&head).arg("--base").arg(at("one.onnx"));
    let file = root().join("tests/fixtures/jpeg").read_dir().unwrap().map(|e| e.unwrap().path());
    let file = file.filter(|f| f.extension().is_some_and(|e| e == "jpg")).min().unwrap();
    assert_eq!(ndjson(&succeed(edge.arg(file))).len(), 1);
}

#[test]
fn the_shipped_base_equals_onnx_runtime() {
    let folder = tempfile::tempdir().unwrap();
    let mut files: Vec<PathBuf> = Vec::new();
    // Pictures of the input's size in a format without loss: nothing is resized, so inputs can be
    // made here from the contract.
    let (scale, zero, mean) = (274.741f32 / 255.0, 115.0f32, [103.939f32, 116.779, 123.68]);
    let mut inputs = Vec::new();
    for index in 0..40 {
        let pixels = picture(64, 64, index);
        for (channel, mean) in mean.into_iter().enumerate() {
            for pixel in pixels.pixels() {
                let real = f32::from(pixel.0[2 - channel]) - mean;
                inputs.push(((real / scale).round_ties_even() + zero).clamp(0.0, 255.0) as u8);
            }
        }
        let path = folder.path().join(format!("{index:02}.png"));
        std::fs::write(&path, encode(&DynamicImage::ImageRgb8(pixels), ImageFormat::Png)).unwrap();
        files.push(path);
    }
    check_against_onnx_runtime(folder.path(), &files, &inputs);
}

/// Our features by `host extract` against ONNX Runtime on the same inputs.
fn check_against_onnx_runtime(folder: &Path, files: &[PathBuf], inputs: &[u8]) {
    let data = folder.join("data");
    for class in ["a", "b"] {
        std::fs::create_dir_all(data.join(class)).unwrap();
    }
    // In two classes, since a data set has at least two; sorted by class and name they keep their
    // order.
    for (index, file) in files.iter().enumerate() {
        let class = if index < files.len() / 2 { "a" } else { "b" };
        std::fs::rename(file, data.join(class).join(file.file_name().unwrap())).unwrap();
    }
    let archive = folder.join("features.npz");
    succeed(host().args(["extract", "--quantized", "--size", "64", "-o"]).arg(&archive).arg(&data));
    let (raw_inputs, raw_features) = (folder.join("inputs"), folder.join("features"));
    std::fs::write(&raw_inputs, inputs).unwrap();
    let unpack = "import numpy,sys; numpy.load(sys.argv[1])['features'].tofile(sys.argv[2])";
    succeed(Command::new(python()).args(["-c", unpack]).arg(&archive).arg(&raw_features));
    let mut check = Command::new(python());
    check
        .arg(root().join("tests/ort_check.py"))
        .arg(base())
        .arg(raw_inputs)
        .arg(raw_features)
        .arg("64");
    let words = succeed(&mut check);
    assert!(words.starts_with(&format!("{0} of {0} pictures equal", files.len())), "{words}");
    println!("{words}");
}

/// One answer of the server.
#[derive(Clone, Copy)]
enum Answer {
    /// All that was asked for.
    Whole,
    /// The connection ends after that many bytes.
    Cut(usize),
    /// All, from the start, whatever was asked for.
    NoRanges,
    /// That status.
    Status(u16),
}

/// A server that gives one answer a connection, and tells the `Range` of each request.
fn serve(content: Vec<u8>, answers: Vec<Answer>) -> (String, mpsc::Receiver<Option<usize>>) {
    let listener = TcpListener::bind("127.0.0.1:0").unwrap();
    let address = format!("http://{}/weights.h5", listener.local_addr().unwrap());
    let (sender, receiver) = mpsc::channel();
    std::thread::spawn(move || {
        for answer in answers {
            let (mut stream, _) = listener.accept().unwrap();
            let mut start = None;
            for line in BufReader::new(&stream)
                .lines()
                .map_while(Result::ok)
                .take_while(|line| !line.is_empty())
            {
                if let Some(range) = line.to_ascii_lowercase().strip_prefix("range: bytes=") {
                    start = range.trim_end_matches('-').parse::<usize>().ok();
                }
            }
            sender.send(start).unwrap();
            let from = match answer {
                Answer::NoRanges => 0,
                _ => start.unwrap_or(0),
            };
            let head = match answer {
                Answer::Status(code) => format!("HTTP/1.1 {code} Trouble\r\nContent-Length: 0\r\n"),
                _ if from >= content.len() => {
                    "HTTP/1.1 416 Range Not Satisfiable\r\nContent-Length: 0\r\n".into()
                }
                _ if from > 0 => format!(
                    "HTTP/1.1 206 Partial Content\r\nContent-Range: bytes {from}-{}/{}\r\nContent-Length: {}\r\n",
                    content.len() - 1,
                    content.len(),
                    content.len() - from
                ),
                _ => format!("HTTP/1.1 200 OK\r\nContent-Length: {}\r\n", content.len()),
            };
            let body = match answer {
                Answer::Status(_) => &[],
                Answer::Cut(length) => &content[from..(from + length).min(content.len())],
                _ => &content[from.min(content.len())..],
            };
            let _ = stream.write_all(format!("{head}Connection: close\r\n\r\n").as_bytes());
            let _ = stream.write_all(body);
            let _ = stream.shutdown(std::net::Shutdown::Write);
            let _ = stream.read(&mut [0]);
        }
    });
    (address, receiver)
}

fn fetch(url: &str, sha256: &str, output: &Path) -> Command {
    let mut command = host();
    // A proxy of the environment does not lead to this machine.
    for name in ["http_proxy", "https_proxy", "all_proxy", "HTTP_PROXY", "HTTPS_PROXY", "ALL_PROXY"]
    {
        command.env_remove(name);
    }
    command
        .args(["base", "fetch", "--tries", "2", "--url", url, "--sha256", sha256, "-o"])
        .arg(output);
    command
}

#[test]
fn fetching_survives_cut_connections_and_resumes() {
    let folder = tempfile::tempdir().unwrap();
    let content: Vec<u8> =
        (0..400_000u32).map(|i| (i.wrapping_mul(2_654_435_761) >> 24) as u8).collect();
    let hash: String = Sha256::digest(&content).iter().map(|b| format!("{b:02x}")).collect();
    let output = folder.path().join("w.h5");
    let part = folder.path().join("w.h5.part");

    // Cut twice, busy once; each request goes on where the last one ended.
    let answers =
        vec![Answer::Cut(100_000), Answer::Status(503), Answer::Cut(50_000), Answer::Whole];
    let (url, asked) = serve(content.clone(), answers);
    succeed(&mut fetch(&url, &hash, &output));
    assert!(std::fs::read(&output).unwrap() == content && !part.exists());
    assert_eq!(
        asked.iter().take(4).collect::<Vec<_>>(),
        [None, Some(100_000), Some(100_000), Some(150_000)]
    );
    // What is there and right is not fetched again; what is there and wrong is not touched.
    let (url, _asked) = serve(content.clone(), vec![]);
    succeed(&mut fetch(&url, &hash, &output));
    let words = fail(&mut fetch(&url, &"0".repeat(64), &output), 1, "move it away first");
    assert!(output.exists(), "{words}");

    // A run that failed leaves its part to the next one.
    std::fs::remove_file(&output).unwrap();
    let (url, _asked) =
        serve(content.clone(), vec![Answer::Cut(7_000), Answer::Status(500), Answer::Status(500)]);
    let words = fail(&mut fetch(&url, &hash, &output), 1, "By hand");
    assert!(words.contains("7000 bytes are kept"), "{words}");
    let (url, asked) = serve(content.clone(), vec![Answer::Whole]);
    succeed(&mut fetch(&url, &hash, &output));
    assert_eq!(asked.recv().unwrap(), Some(7_000));

    // A server that does not resume, and a part that is whole already.
    std::fs::rename(&output, &part).unwrap();
    let (url, _asked) = serve(content.clone(), vec![Answer::Whole]);
    succeed(&mut fetch(&url, &hash, &output));
    std::fs::remove_file(&output).unwrap();
    std::fs::write(&part, &content[..1000]).unwrap();
    let (url, _asked) = serve(content.clone(), vec![Answer::NoRanges]);
    succeed(&mut fetch(&url, &hash, &output));
    assert!(std::fs::read(&output).unwrap() == content);

    // What a power loss has torn is downloaded again.
    std::fs::remove_file(&output).unwrap();
    std::fs::write(&part, vec![0; 5_000]).unwrap();
    let (url, asked) = serve(content.clone(), vec![Answer::Whole, Answer::Whole]);
    succeed(&mut fetch(&url, &hash, &output));
    assert!(std::fs::read(&output).unwrap() == content && !part.exists());
    assert_eq!((asked.recv().unwrap(), asked.recv().unwrap()), (Some(5_000), None));

    // Another file than was promised is thrown away.
    std::fs::remove_file(&output).unwrap();
    let (url, _asked) = serve(content[1..].to_vec(), vec![Answer::Whole]);
    let words = fail(&mut fetch(&url, &hash, &output), 1, "not the expected file");
    assert!(!output.exists() && !part.exists(), "{words}");
    // A page that is not there, and no server at all.
    let (url, _asked) = serve(content, vec![Answer::Status(404)]);
    fail(&mut fetch(&url, &hash, &output), 1, "status 404");
    let port = TcpListener::bind("127.0.0.1:0").unwrap().local_addr().unwrap();
    let words =
        fail(&mut fetch(&format!("http://{port}/w.h5"), &hash, &output), 1, "cannot download");
    assert!(words.contains("By hand"), "{words}");
    fail(&mut fetch(&url, "abc", &output), 2, "64 hexadecimal digits");
}

#[test]
fn bad_calibration_is_one_line_and_writes_nothing() {
    let folder = tempfile::tempdir().unwrap();
    let at = |name: &str| folder.path().join(name);
    weights(&at("w.safetensors"));
    std::fs::create_dir(at("empty")).unwrap();
    std::fs::create_dir(at("black")).unwrap();
    let black = DynamicImage::ImageRgb8(image::RgbImage::new(64, 64));
    std::fs::write(at("black/1.png"), encode(&black, ImageFormat::Png)).unwrap();
    let run = |calibrate: &Path, more: &[&str]| {
        let mut command = host();
        command.args(["base", "quantize", "--size", "32"]).arg(at("w.safetensors"));
        command.arg("--calibrate").arg(calibrate).arg("-o").arg(at("out.onnx")).args(more);
        command
    };
    fail(&mut run(&at("empty"), &[]), 1, "no images");
    fail(&mut run(&at("missing"), &[]), 1, "missing");
    fail(&mut run(&at("black"), &[]), 1, "of a single color");
    let some = root().join("tests/fixtures/jpeg");
    fail(&mut run(&some, &["--method", "percentile", "--percentile", "0"]), 2, "--percentile");
    fail(&mut run(&some, &["--equalize", "0.5"]), 2, "--equalize");
    fail(&mut run(&some, &["--preprocess", "keras"]), 2, "caffe, torchvision, tutorial");
    let mut odd = host();
    odd.args(["base", "quantize", "--size", "33"]).arg(at("w.safetensors"));
    fail(odd.arg("--calibrate").arg(&some).arg("-o").arg(at("out.onnx")), 1, "multiple of 32");
    assert!(!at("out.onnx").exists());
}
