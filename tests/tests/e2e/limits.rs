//! Files that declare excessive sizes: with a gigabyte of address space and a minute of time, each
//! gets its one clear error line and exit code 1.

use std::io::Write;
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};

use sha2::{Digest, Sha256};
use tests::{Device, fail, host, root, small_head, succeed, wrapped};

/// Address space in KiB: enough for good files, but not for the sizes that bad files declare.
const MEMORY: &str = "1048576";

/// Seconds: far more than any of these takes on a busy machine.
const TIME: &str = "60";

/// Returns a command with limits.
fn limited(command: &Command) -> Command {
    let mut limited = Command::new("bash");
    limited.args(["-c", "ulimit -v \"$0\" && exec timeout \"$@\"", MEMORY, TIME]);
    wrapped(limited, command)
}

/// Creates a directory with a valid image.
fn folder() -> (tempfile::TempDir, PathBuf) {
    (tempfile::tempdir().unwrap(), root().join("samples/surfaces/val/brick/000.jpg"))
}

/// Writes a file and returns its path.
fn file(folder: &Path, name: &str, bytes: &[u8]) -> PathBuf {
    let path = folder.join(name);
    std::fs::write(&path, bytes).unwrap();
    path
}

#[test]
fn good_files_are_read_within_the_limits() {
    let (_folder, picture) = folder();
    succeed(&mut limited(
        Device::Native.edge().args(["classify", "--head"]).arg(small_head()).arg(&picture),
    ));
    succeed(&mut limited(host().args(["classify", "--head"]).arg(small_head()).arg(&picture)));
}

#[test]
fn heads_that_declare_too_much() {
    let (folder, picture) = folder();
    let good = std::fs::read(small_head()).unwrap();
    let check = |path: &Path, words: &str| {
        for mut program in [host(), Device::Native.edge()] {
            fail(
                &mut limited(program.args(["classify", "--head"]).arg(path).arg(&picture)),
                1,
                words,
            );
        }
    };
    let mut length = good.clone();
    length[12..20].copy_from_slice(&(1u64 << 62).to_le_bytes());
    check(&file(folder.path(), "length", &length), "limit");
    // The length of the first layer's weights (512 x 16, after the mark of ReLU) becomes 2^62;
    // length and checksum of the file are right.
    let mark = [0x80, 0x04, 0x10, 0x01, 0x80, 0x40];
    let at = 4 + good.windows(6).position(|window| window == mark).expect("the first layer");
    let payload = [
        &good[20..at],
        &[0x80, 0x80, 0x80, 0x80, 0x80, 0x80, 0x80, 0x80, 0x40],
        &good[at + 2..good.len() - 32],
    ]
    .concat();
    let mut many = [&good[..12], &(payload.len() as u64).to_le_bytes(), &payload].concat();
    let checksum = Sha256::digest(&many);
    many.extend_from_slice(&checksum);
    check(&file(folder.path(), "many", &many), "many: ");
    check(Path::new("/dev/zero"), "limit");
}

/// Encodes a protocol buffer field of bytes.
fn field(number: u64, bytes: &[u8]) -> Vec<u8> {
    [varint(number << 3 | 2), varint(bytes.len() as u64), bytes.to_vec()].concat()
}

/// Encodes a protocol buffer field of a number.
fn number(number: u64, value: u64) -> Vec<u8> {
    [varint(number << 3), varint(value)].concat()
}

fn varint(mut value: u64) -> Vec<u8> {
    let mut bytes = Vec::new();
    while value > 0x7f {
        bytes.push(value as u8 | 0x80);
        value >>= 7;
    }
    bytes.push(value as u8);
    bytes
}

/// Encodes an ONNX model with these parts of a graph.
fn onnx(graph: &[u8]) -> Vec<u8> {
    [number(1, 8), field(7, graph), field(8, &number(2, 13))].concat()
}

fn onnx_node(op: &str, input: &[&str], output: &str, attributes: &[u8]) -> Vec<u8> {
    let inputs: Vec<u8> = input.iter().flat_map(|name| field(1, name.as_bytes())).collect();
    field(
        1,
        &[
            inputs,
            field(2, output.as_bytes()),
            field(3, op.as_bytes()),
            field(4, op.as_bytes()),
            attributes.to_vec(),
        ]
        .concat(),
    )
}

fn onnx_tensor(name: &str, dims: &[u64], kind: u64, data: &[u8]) -> Vec<u8> {
    let dims: Vec<u8> = dims.iter().flat_map(|&side| number(1, side)).collect();
    field(5, &[dims, number(2, kind), field(8, name.as_bytes()), field(9, data)].concat())
}

/// Encodes `x`, u8 `[1, 3, size, size]`, as input and the named tensor as output.
fn onnx_ends(size: u64, output: &str) -> Vec<u8> {
    let value = |name: &str, kind: u64| {
        let dims: Vec<u8> =
            [1, 3, size, size].iter().flat_map(|&side| field(1, &number(1, side))).collect();
        let tensor = field(1, &[number(1, kind), field(2, &dims)].concat());
        [field(1, name.as_bytes()), field(2, &tensor)].concat()
    };
    [field(11, &value("x", 2)), field(12, &value(output, 1))].concat()
}

#[test]
fn onnx_files_that_declare_too_much() {
    let (folder, _) = folder();
    let conv = |op: &str, inputs: &[&str]| onnx_node(op, inputs, "y", &[]);
    let float = [&conv("Conv", &["x", "w", "b"])[..], &onnx_ends(64, "y")].concat();
    let quantized = {
        let pads = field(5, &[field(1, b"pads"), number(8, 1).repeat(4), number(20, 7)].concat());
        let inputs = ["x", "s", "z", "w", "ws", "wz", "s", "z"];
        let scalars = [
            onnx_tensor("s", &[], 1, &1f32.to_le_bytes()),
            onnx_tensor("z", &[], 2, &[0]),
            onnx_tensor("ws", &[1], 1, &1f32.to_le_bytes()),
            onnx_tensor("wz", &[1], 3, &[0]),
        ];
        [onnx_node("QLinearConv", &inputs, "y", &pads), scalars.concat()].concat()
    };
    let endless = quantized.clone();
    let quantized = [quantized, onnx_ends(64, "y")].concat();
    let whole = onnx_tensor("w", &[1, 3, 3, 3], 3, &[0; 27]);
    let mut nested = Vec::new();
    for _ in 0..5_000 {
        let attribute = [field(1, b"body"), field(6, &nested), number(20, 5)].concat();
        nested = onnx_node("Loop", &["x"], "y", &field(5, &attribute));
    }
    let many: Vec<u8> = (0..300_000)
        .flat_map(|at| onnx_node("MaxPool", &[&format!("t{at}")], &format!("t{}", at + 1), &[]))
        .collect();
    let large = 1 << 31;
    for (name, graph) in [
        ("sides.f32", [&float[..], &onnx_tensor("w", &[large, large, 3, 3], 1, &[0; 36])].concat()),
        ("empty.f32", [&float[..], &onnx_tensor("w", &[large, 3, 3, 3], 1, &[])].concat()),
        (
            "sides.int8",
            [&quantized[..], &onnx_tensor("w", &[large, large, 3, 3], 3, &[0; 36])].concat(),
        ),
        (
            "product.int8",
            [&quantized[..], &onnx_tensor("w", &[1 << 40, 1 << 40, 3, 3], 3, &[0; 36])].concat(),
        ),
        ("empty.int8", [&quantized[..], &onnx_tensor("w", &[large, 3, 3, 3], 3, &[])].concat()),
        (
            "negative.int8",
            [&quantized[..], &onnx_tensor("w", &[u64::MAX, 3, 3, 3], 3, &[0; 27])].concat(),
        ),
        (
            "input.int8",
            [
                &quantized[..],
                &onnx_ends(1 << 40, "y"),
                &onnx_tensor("w", &[1, 3, 3, 3], 3, &[0; 27]),
            ]
            .concat(),
        ),
        ("string.int8", [&quantized[..], &onnx_tensor("w", &[1, 3, 3, 3], 8, &[0; 27])].concat()),
        ("unmade.int8", [&endless[..], &whole, &onnx_ends(64, "nobody makes it")].concat()),
        ("nested", [nested, onnx_ends(64, "y")].concat()),
        ("many", [many, onnx_ends(64, "y")].concat()),
    ] {
        let path = file(folder.path(), name, &onnx(&graph));
        fail(&mut limited(Device::Native.edge().args(["info", "--base"]).arg(&path)), 1, name);
        let out = folder.path().join("out.onnx");
        fail(&mut limited(host().args(["base", "import"]).arg(&path).arg("-o").arg(&out)), 1, name);
        assert!(!out.exists());
    }
}

#[test]
fn weights_that_declare_too_much() {
    let (folder, _) = folder();
    let corpus = |name: &str| {
        std::fs::read(root().join("tests/fuzz-targets/corpus/import").join(name)).unwrap()
    };
    let patched = |bytes: &[u8], from: &[u8], to: &[u8]| {
        let at = bytes
            .windows(from.len())
            .position(|window| window == from)
            .expect("the place is there");
        [&bytes[..at], to, &bytes[at + from.len()..]].concat()
    };
    let torch = corpus("torch.safetensors");
    let keras = corpus("keras.h5");
    // The shape of an HDF5 kernel, 3 x 3 x 3 x 4, in 64-bit numbers.
    let sides = |sides: [u64; 4]| sides.map(u64::to_le_bytes).concat();
    for (name, bytes) in [
        ("header.safetensors", [&(1u64 << 40).to_le_bytes(), &torch[8..]].concat()),
        ("shape.safetensors", patched(&torch, b"[4,3,3,3]", b"[9999999]")),
        ("sides.h5", patched(&keras, &sides([3, 3, 3, 4]), &sides([3, 3, 1 << 40, 1 << 40]))),
        ("large.h5", patched(&keras, &sides([3, 3, 3, 4]), &sides([3, 3, 1 << 15, 1 << 15]))),
        ("cut.h5", keras[..keras.len() / 2].to_vec()),
    ] {
        let path = file(folder.path(), name, &bytes);
        let out = folder.path().join("out.onnx");
        fail(&mut limited(host().args(["base", "import"]).arg(&path).arg("-o").arg(&out)), 1, name);
    }
    let endless = Path::new("/dev/zero");
    let out = folder.path().join("out.onnx");
    fail(
        &mut limited(host().args(["base", "import"]).arg(endless).arg("-o").arg(out)),
        1,
        "/dev/zero",
    );
}

#[test]
fn images_that_declare_too_much() {
    let (folder, _) = folder();
    let png = |width: u32, height: u32, depth: u8, color: u8| {
        let mut header =
            [&b"IHDR"[..], &width.to_be_bytes(), &height.to_be_bytes(), &[depth, color, 0, 0, 0]]
                .concat();
        let checksum = crc(&header);
        header.extend_from_slice(&checksum.to_be_bytes());
        let mut data = b"IDAT\x78\x9c\x63\x60".to_vec();
        let checksum = crc(&data);
        data.extend_from_slice(&checksum.to_be_bytes());
        [&b"\x89PNG\r\n\x1a\n\0\0\0\x0d"[..], &header, &[0, 0, 0, 4], &data].concat()
    };
    let jpeg = |name: &str, frame: u8, height: u16, width: u16| {
        let mut bytes = std::fs::read(root().join("tests/fixtures/jpeg").join(name)).unwrap();
        let at = bytes.windows(2).position(|pair| pair == [0xff, frame]).expect("a frame");
        bytes[at + 5..at + 7].copy_from_slice(&height.to_be_bytes());
        bytes[at + 7..at + 9].copy_from_slice(&width.to_be_bytes());
        bytes
    };
    let bmp = |width: i32, height: i32| {
        let sizes = [width.to_le_bytes(), height.to_le_bytes()].concat();
        [&b"BM\0\0\0\0\0\0\0\0\x36\0\0\0\x28\0\0\0"[..], &sizes, &[1, 0, 24, 0], &[0; 24], &[0; 30]]
            .concat()
    };
    let webp = |width: u32, height: u32| {
        let canvas = [&(width - 1).to_le_bytes()[..3], &(height - 1).to_le_bytes()[..3]].concat();
        [&b"RIFF\x16\0\0\0WEBPVP8X\x0a\0\0\0\0\0\0\0"[..], &canvas].concat()
    };
    let mut scans = jpeg("progressive-420.jpg", 0xc2, 32_767, 4_096);
    scans.extend_from_slice(&vec![0; 400_000]);
    for (name, bytes, words) in [
        ("65535.png", png(65_535, 65_535, 8, 2), "too large"),
        ("max.png", png(u32::MAX >> 1, u32::MAX >> 1, 16, 6), ""),
        ("deep.png", png(32_768, 4_096, 16, 6), "MB to decode"),
        ("65535.jpg", jpeg("baseline-420.jpg", 0xc0, 65_535, 65_535), "too large"),
        ("few.jpg", jpeg("baseline-420.jpg", 0xc0, 4_096, 32_767), "cannot hold"),
        ("progressive.jpg", scans, "MB to decode"),
        ("max.bmp", bmp(i32::MAX, i32::MAX), ""),
        ("side.bmp", bmp(60_000, 60_000), "too large"),
        ("within.bmp", bmp(10_000, 10_000), ""),
        ("max.pgm", b"P5 4294967295 4294967295 65535\n".to_vec(), ""),
        ("within.ppm", b"P6 32768 4096 255\n".to_vec(), ""),
        ("within.pbm", b"P1 32768 4096\n".to_vec(), ""),
        (
            "max.pam",
            b"P7\nWIDTH 4294967295\nHEIGHT 4294967295\nDEPTH 4\nMAXVAL 65535\nTUPLTYPE RGB_ALPHA\n\
                ENDHDR\n"
                .to_vec(),
            "",
        ),
        ("max.webp", webp(1 << 24, 1 << 8), ""),
        ("within.webp", webp(10_000, 10_000), ""),
    ] {
        let path = file(folder.path(), name, &bytes);
        let errors = fail(
            &mut limited(
                Device::Native.edge().args(["classify", "--head"]).arg(small_head()).arg(&path),
            ),
            1,
            words,
        );
        assert!(errors.contains(name), "{errors}");
    }
}

/// Computes CRC-32 (ISO 3309), as in PNG.
fn crc(bytes: &[u8]) -> u32 {
    !bytes.iter().fold(u32::MAX, |crc, &byte| {
        (0..8).fold(crc ^ u32::from(byte), |crc, _| {
            crc >> 1 ^ if crc & 1 == 1 { 0xedb8_8320 } else { 0 }
        })
    })
}

#[test]
fn streams_and_settings_that_do_not_end() {
    let (folder, _) = folder();
    let run_on = |source: &Path| {
        let mut edge = Device::Native.edge();
        edge.args(["run", "--head"]).arg(small_head()).arg("--source").arg(source);
        edge
    };
    for (name, header, words) in [
        ("within.y4m", "YUV4MPEG2 W32768 H4096 F1:1 C444\nFRAME\n", "ends within frame 0"),
        ("beyond.y4m", "YUV4MPEG2 W65535 H65535 F1:1 C420\nFRAME\n", ""),
        ("max.y4m", "YUV4MPEG2 W4294967295 H4294967295 F1:1 C420\nFRAME\n", ""),
        ("overflow.y4m", "YUV4MPEG2 W99999999999999999999 H1 F1:1 C420\nFRAME\n", ""),
    ] {
        let path = file(folder.path(), name, header.as_bytes());
        let errors = fail(&mut limited(&run_on(&path)), 1, words);
        assert!(errors.contains(name), "{errors}");
    }
    let header = [&b"YUV4MPEG2 "[..], &vec![b'X'; 1 << 20]].concat();
    fail(&mut limited(&run_on(&file(folder.path(), "header.y4m", &header))), 1, "header.y4m");

    // A single JPEG that never ends.
    let mut edge = run_on(Path::new("-"));
    let mut child = limited(edge.args(["--raw", "mjpeg"]))
        .stdin(Stdio::piped())
        .stderr(Stdio::piped())
        .spawn()
        .unwrap();
    let mut stdin = child.stdin.take().unwrap();
    let feeder = std::thread::spawn(move || {
        let _ = stdin.write_all(&[0xff, 0xd8, 0xff, 0xda, 0, 2]);
        // Until it is closed.
        while stdin.write_all(&[7; 1 << 16]).is_ok() {}
    });
    let output = child.wait_with_output().unwrap();
    feeder.join().unwrap();
    let errors = String::from_utf8_lossy(&output.stderr);
    assert_eq!(output.status.code(), Some(1), "{errors}");
    assert!(errors.contains("a JPEG of over"), "{errors}");

    let config = |path: &Path, code, words: &str| {
        let errors = fail(
            &mut limited(Device::Native.edge().args(["run", "--config"]).arg(path)),
            code,
            words,
        );
        assert!(errors.len() < 1000, "{} bytes of messages", errors.len());
    };
    config(Path::new("/dev/zero"), 1, "over the limit");
    config(
        &file(folder.path(), "nested.toml", &[&b"head = "[..], &vec![b'['; 500_000]].concat()),
        2,
        "nested.toml",
    );
    config(
        &file(folder.path(), "tables.toml", format!("{}x = 1\n", "a.".repeat(200_000)).as_bytes()),
        2,
        "tables.toml",
    );
}
