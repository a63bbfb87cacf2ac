//! Writes `corpus/`, the files that fuzzing starts from, from the samples and fixtures of the
//! repository: `cargo run -p fuzz-targets --example corpus`. Inputs that fuzzing found are beside
//! them as `found-*` and are left alone.
#![allow(
    clippy::unwrap_used,
    clippy::expect_used,
    reason = "a developer's tool, whose failures are bugs to be seen with their place"
)]

use std::path::{Path, PathBuf};
use std::sync::Arc;

use image::{ColorType, ImageFormat};
use quant::quantize::{QuantBase, QuantLayer};
use quant::weights::{FloatBase, FloatLayer, Normalization};
use vgg_edge::head::{Activation, Decision, Dense, Head, Output, Pool, TrainingRecord};
use vgg_edge::image::resize::Filter;
use vgg_edge::kernels::ConvLayer;
use vgg_edge::pixel::PixelFormat;
use vgg_edge::preprocess::{Fit, Preprocess};
use vgg_edge::{Fingerprint, Image};

fn root() -> &'static Path {
    Path::new(concat!(env!("CARGO_MANIFEST_DIR"), "/../.."))
}

fn write(target: &str, name: &str, bytes: &[u8]) {
    let path: PathBuf =
        Path::new(env!("CARGO_MANIFEST_DIR")).join("corpus").join(target).join(name);
    std::fs::create_dir_all(path.parent().unwrap()).unwrap();
    std::fs::write(path, bytes).unwrap();
}

fn jpeg(name: &str) -> Vec<u8> {
    std::fs::read(root().join("tests/fixtures/jpeg").join(name)).unwrap()
}

fn scene(width: usize, height: usize) -> Image {
    let pixel = |at: usize| ((at / 3 % width) * 9 + at / (3 * width) * 5 + at % 3 * 60) as u8;
    Image::new(width, height, (0..3 * width * height).map(pixel).collect()).unwrap()
}

fn float_base() -> FloatBase {
    let layer = |name: &str, inputs: usize, outputs: usize, pool| FloatLayer {
        name: name.into(),
        inputs,
        outputs,
        kernel: (0..9 * inputs * outputs).map(|at| (at % 17) as f32 / 17.0 - 0.4).collect(),
        bias: (0..outputs).map(|at| at as f32 / 9.0).collect(),
        pool,
    };
    let layers = vec![layer("block1_conv1", 3, 4, true), layer("block2_conv1", 4, 5, false)];
    FloatBase { layers, normalization: Normalization::CAFFE, source: "a corpus".into() }
}

fn quant_base(pools: [bool; 2]) -> QuantBase {
    let float = float_base();
    let (input_scale, zero_point) = float.normalization.quantization();
    let mut scale = input_scale;
    let layer = |(layer, pool): (&FloatLayer, bool)| {
        let (x_scale, y_scale) = (scale, 0.5 * scale);
        scale = y_scale;
        QuantLayer {
            conv: ConvLayer {
                name: layer.name.clone(),
                inputs: layer.inputs,
                outputs: layer.outputs,
                weights: layer.kernel.iter().map(|w| (w * 99.0) as i8).collect::<Arc<[i8]>>(),
                bias: (0..layer.outputs as i32).map(|b| 700 * b).collect(),
                zero_point: if layer.inputs == 3 { zero_point } else { 0 },
                multipliers: vec![x_scale * 0.01 / y_scale; layer.outputs],
                pool,
            },
            input_scale: x_scale,
            weight_scales: vec![0.01; layer.outputs],
            output_scale: y_scale,
            largest: 1.0,
        }
    };
    let layers: Vec<QuantLayer> = float.layers.iter().zip(pools).map(layer).collect();
    QuantBase {
        feature_scales: vec![layers[1].output_scale; 5],
        layers,
        normalization: float.normalization,
        source: "a corpus".into(),
        weights_digest: float.digest(),
        how: "by hand".into(),
    }
}

fn head(labels: &[&str], pool: Pool) -> Head {
    let mut base = float_base().contract();
    (base.channels, base.stride, base.size_multiple, base.size_min) = (6, 32, 32, 32);
    let size = 64;
    let dense = |inputs: usize, outputs: usize, activation| Dense {
        inputs: inputs as u32,
        outputs: outputs as u32,
        activation,
        kernel: (0..inputs * outputs).map(|at| (at % 13) as f32 / 13.0 - 0.5).collect(),
        bias: vec![0.25; outputs],
    };
    let inputs = if pool == Pool::Flatten { 24 } else { 6 };
    let outputs = if labels.len() == 2 { 1 } else { labels.len() };
    Head {
        base: Fingerprint::of(b"base"),
        preprocess: Preprocess::new(base, size, Fit::Cover, Filter::Bilinear).unwrap(),
        feature_scales: vec![0.05; 6],
        labels: labels.iter().map(|&label| label.to_owned()).collect(),
        layers: vec![dense(inputs, 4, Activation::Relu), dense(4, outputs, Activation::Linear)],
        output: if labels.len() == 2 { Output::Sigmoid } else { Output::Softmax },
        decision: Decision::default(),
        training: TrainingRecord {
            date: "2026-11-25".into(),
            program: "corpus".into(),
            ..TrainingRecord::default()
        },
        pool,
        background: labels
            .iter()
            .position(|&label| label == "none")
            .into_iter()
            .map(|at| at as u32)
            .collect(),
    }
}

fn heads() {
    write("head", "sigmoid", &head(&["no", "yes"], Pool::Flatten).to_bytes().unwrap());
    write("head", "softmax-avg", &head(&["a", "b", "none"], Pool::Avg).to_bytes().unwrap());
    write("head", "softmax-max", &head(&["\u{e4}", "b", "c", "d"], Pool::Max).to_bytes().unwrap());
    // Format 2 with few weights: that of today, but for the payload's last two bytes, pooling and
    // background.
    let new = head(&["no", "yes"], Pool::Flatten).to_bytes().unwrap();
    let payload = &new[20..new.len() - 34];
    let mut old =
        [&new[..8], &2u32.to_le_bytes(), &(payload.len() as u64).to_le_bytes(), payload].concat();
    let checksum = Fingerprint::of(&old);
    old.extend_from_slice(&checksum.0);
    Head::from_bytes(&old).unwrap();
    write("head", "format-2", &old);
}

fn bases() {
    write("base", "pooled", &quant::onnx::int8_model(&quant_base([true, true])));
    write("base", "plain", &quant::onnx::int8_model(&quant_base([false, false])));
    write("base", "f32", &quant::onnx::float_model(&float_base()));
}

fn weights() {
    let base = float_base();
    write("import", "own.onnx", &quant::onnx::float_model(&base));
    let (mut header, mut data) = (String::from("{"), Vec::new());
    for (index, layer) in base.layers.iter().enumerate() {
        for (name, values, shape) in [
            ("weight", &layer.kernel, format!("[{},{},3,3]", layer.outputs, layer.inputs)),
            ("bias", &layer.bias, format!("[{}]", layer.outputs)),
        ] {
            let start = data.len();
            data.extend(values.iter().flat_map(|v| v.to_le_bytes()));
            let comma = if header.len() > 1 { "," } else { "" };
            header +=
                &format!(r#"{comma}"features.{index}.{name}":{{"dtype":"F32","shape":{shape},"#);
            header += &format!(r#""data_offsets":[{start},{}]}}"#, data.len());
        }
    }
    header.push('}');
    let torch = [&(header.len() as u64).to_le_bytes(), header.as_bytes(), &data].concat();
    write("import", "torch.safetensors", &torch);
    let mut builder = hdf5_writer::Hdf5Builder::new();
    for layer in &base.layers {
        let (inputs, outputs) = (layer.inputs as u64, layer.outputs as u64);
        let shape = vec![3, 3, inputs, outputs];
        let place = |what: &str| format!("{}/{}/{what}:0", layer.name, layer.name);
        let kernel =
            hdf5_writer::DatasetBuilder::typed_data(place("kernel"), shape, &layer.kernel).unwrap();
        let bias =
            hdf5_writer::DatasetBuilder::typed_data(place("bias"), vec![outputs], &layer.bias)
                .unwrap();
        builder = builder.dataset(kernel).dataset(bias);
    }
    let plan = builder.into_plan().unwrap();
    let writer = hdf5_writer::Hdf5Writer::new(
        std::io::Cursor::new(Vec::new()),
        hdf5_writer::WriteOptions::default(),
    );
    write("import", "keras.h5", &writer.finish(plan).unwrap().into_inner());
    write("import", "zip", b"PK\x03\x04 and so on");
}

fn pictures() {
    for name in [
        "baseline-420",
        "cmyk",
        "grey-progressive",
        "one-pixel",
        "orientation-6",
        "progressive-422",
        "restart",
    ] {
        write("image", &format!("{name}.jpg"), &jpeg(&format!("{name}.jpg")));
    }
    let frame = scene(13, 9);
    let of = |format: ImageFormat, colour: ColorType, bytes: &[u8]| {
        let mut out = std::io::Cursor::new(Vec::new());
        image::write_buffer_with_format(&mut out, bytes, 13, 9, colour, format).unwrap();
        out.into_inner()
    };
    for (name, format) in [
        ("rgb.png", ImageFormat::Png),
        ("rgb.bmp", ImageFormat::Bmp),
        ("rgb.ppm", ImageFormat::Pnm),
        ("rgb.webp", ImageFormat::WebP),
    ] {
        write("image", name, &of(format, ColorType::Rgb8, frame.rgb()));
    }
    let deep: Vec<u8> = (0..13 * 9 * 8).map(|at| (at * 7) as u8).collect();
    write("image", "rgba16.png", &of(ImageFormat::Png, ColorType::Rgba16, &deep));
    write("image", "grey.png", &of(ImageFormat::Png, ColorType::L8, &deep[..117]));
    write("image", "plain.pgm", b"P2 # a comment\n3 2 255\n0 1 2\n3 4 255\n");
    write("image", "plain.pbm", b"P1\n3 2\n101\n010\n");
    write("image", "bits.pbm", b"P4\n9 2\n\xaa\x80\x55\x00");
    write(
        "image",
        "any.pam",
        b"P7\nWIDTH 2\nHEIGHT 1\nDEPTH 3\nMAXVAL 255\nTUPLTYPE RGB\nENDHDR\n\
            \x01\x02\x03\x04\x05\x06",
    );
}

fn streams() {
    let bare = [0xff, 0xd8, 0xff, 0xda, 0, 3, 9, 0xff, 0xd9];
    let pair = [&[40][..], &jpeg("one-pixel.jpg"), &bare, &jpeg("grey.jpg")].concat();
    write("mjpg", "pair", &pair);
    write(
        "mjpg",
        "orientation",
        &[&[255][..], &jpeg("orientation-3.jpg"), &[0, 0xff], &jpeg("low-quality.jpg")].concat(),
    );
    write("mjpg", "cut", &pair[..pair.len() - 40]);
    for (name, colour, bytes) in [
        ("420", "C420jpeg", 12 + 8),
        ("422", "C422", 24),
        ("444", "C444", 36),
        ("mono", "Cmono", 12),
        ("deep", "C420p10", 36),
    ] {
        let mut video =
            format!("YUV4MPEG2 W4 H3 F30:1 Ip A1:1 {colour} XCOLORRANGE=FULL\n").into_bytes();
        for frame in 0..2u8 {
            video.extend_from_slice(b"FRAME\n");
            video.extend((0..bytes).map(|at: u8| at.wrapping_mul(9).wrapping_add(frame)));
        }
        write("y4m", name, &video);
    }
    write("y4m", "picture", b"P6 2 1 255\n\x01\x02\x03\x04\x05\x06");
    for (number, format) in PixelFormat::all().enumerate() {
        let samples: Vec<u8> = (0..60).map(|at: u8| at.wrapping_mul(37)).collect();
        write(
            "pixels",
            &format.name().to_lowercase(),
            &[&[number as u8, 7, 5, 3, number as u8, 2, 1, 3], &samples[..]].concat(),
        );
    }
}

fn texts() {
    let settings = std::fs::read_to_string(root().join("packaging/edge.toml")).unwrap();
    let set: Vec<&str> = settings
        .lines()
        .filter(|line| line.contains(" = ") && !line.contains("source = "))
        .collect();
    write(
        "config",
        "package",
        set.iter()
            .map(|line| line.trim_start_matches("# "))
            .collect::<Vec<_>>()
            .join("\n")
            .as_bytes(),
    );
    write(
        "config",
        "few",
        b"head = \"h\"\nsource = \"-\"\nraw = \"yuv420:640x480\"\ncrop = [1, \
        2, 3, 4]\non-motion = true\nsmooth = 0.5\n",
    );
    write(
        "config",
        "tables",
        b"[a]\nb = {c = [1, [2, {d = 1979-05-27T07:32:00Z}]]}\n'''x''' = 0x7f\n",
    );
    let token = fuzz_targets::TOKEN;
    for (name, request) in [
        (
            "page",
            "GET / HTTP/1.1\r\nHost: localhost:8080\r\n\r\nGET /metrics HTTP/1.1\r\nHost: \
            [::1]\r\n\r\n"
                .to_owned(),
        ),
        (
            "bearer",
            format!(
                "GET /events HTTP/1.1\r\nHost: a\r\nAuthorization: Bearer {token}\r\n\
            \r\n"
            ),
        ),
        ("cookie", format!("GET /healthz HTTP/1.0\r\nCookie: a=b; vgg_edge={token}\r\n\r\n")),
        ("query", format!("GET /?x=1&token={token} HTTP/1.1\r\nHost: 127.0.0.1\r\n\r\n")),
        (
            "absolute",
            "HEAD http://localhost/frame.jpg?token=x HTTP/1.1\r\nHost: example.com\r\n\
            Connection: close\r\n\r\n"
                .into(),
        ),
        (
            "body",
            "POST / HTTP/1.1\r\nHost: localhost\r\nTransfer-Encoding: chunked\r\nExpect: \
            100-continue\r\n\r\n5\r\nhello\r\n0\r\n\r\n"
                .into(),
        ),
        (
            "upgrade",
            "GET /page.js HTTP/1.1\r\nHost: localhost\r\nUpgrade: h2c\r\nConnection: \
            Upgrade\r\nRange: bytes=0-1\r\n\r\n"
                .into(),
        ),
    ] {
        write("http", name, request.as_bytes());
    }
}

fn main() {
    heads();
    bases();
    weights();
    pictures();
    streams();
    texts();
}
