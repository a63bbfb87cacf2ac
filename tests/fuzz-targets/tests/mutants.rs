//! Runs every target on its corpus and on a fixed number of mutated copies, or on
//! `VGG_EDGE_HOSTILE_CASES`. `docs/testing.md` lists the long runs, and those under libFuzzer.

#![allow(
    clippy::unwrap_used,
    clippy::expect_used,
    reason = "a test fails by panicking, and this program serves tests only"
)]

use std::path::Path;

use fuzz_targets::{TARGETS, TOKEN, attack, corpus};
use vgg_edge::signature::TrustedKeys;

/// Runs a target on its corpus and on `cases` mutated copies.
fn run(name: &str, cases: usize) {
    let (_, target) = TARGETS.iter().find(|(known, _)| *known == name).unwrap();
    attack(name, &corpus(name), cases, target);
}

macro_rules! targets {
    ($($name:ident: $cases:literal),+ $(,)?) => {
        $(#[test] fn $name() { run(stringify!($name), $cases); })+

        #[test]
        fn each_target_is_run() {
            assert_eq!(TARGETS.map(|(name, _)| name), [$(stringify!($name)),+]);
        }
    };
}

targets! {
    base: 1_000, config: 500, head: 4_000, http: 3_000, image: 2_000, import: 1_500, mjpg: 1_000,
    pixels: 4_000, signature: 2_000, y4m: 1_000,
}

/// Mutations are only useful if the original files are valid: those of the corpora are, except the
/// named ones.
#[test]
fn corpora_are_valid() {
    let check = |target: &str, bad: &[&str], read: &dyn Fn(&[u8]) -> Result<(), String>| {
        for (path, bytes) in corpus(target) {
            let name = path.file_name().unwrap().to_str().unwrap();
            if !name.starts_with("found-") {
                let result = read(&bytes);
                assert_eq!(result.is_err(), bad.contains(&name), "{}: {result:?}", path.display());
            }
        }
    };
    let said = |e: &dyn std::fmt::Display| e.to_string();
    check("head", &[], &|bytes| vgg_edge::Head::from_bytes(bytes).map(drop).map_err(|e| said(&e)));
    let base = |bytes: &[u8]| {
        vgg_edge::Backbone::from_bytes(
            Path::new("corpus"),
            bytes,
            vgg_edge::kernels::Kernel::PORTABLE,
        )
    };
    check("base", &["f32"], &|bytes| base(bytes).map(drop).map_err(|e| said(&e)));
    check("image", &[], &|bytes| {
        vgg_edge::image::decode::decode(bytes).map(drop).map_err(|e| said(&e))
    });
    check("config", &["tables"], &|bytes| {
        edge::fuzzing::config(std::str::from_utf8(bytes).unwrap())
    });
    check("y4m", &["deep"], &|bytes| edge::fuzzing::stream(bytes.to_vec(), &mut |_| ()));
    let verify = |bytes: &[u8]| {
        let (key, file) = fuzz_targets::signed(bytes).unwrap();
        let keys = TrustedKeys::parse(Path::new("key"), key).map_err(|e| said(&e))?;
        keys.verify(&file).map(drop).map_err(|e| said(&e))
    };
    check("signature", &["legacy"], &verify);
    check("mjpg", &["cut"], &|bytes| edge::fuzzing::jpegs(&bytes[1..], 9, &mut |_, _| ()));
}

#[test]
fn page_requires_the_token_or_a_loopback_host() {
    let ask = |headers: &str, token| {
        let request = format!("GET /metrics HTTP/1.1\r\n{headers}\r\n\r\n");
        String::from_utf8(edge::fuzzing::http(request.as_bytes(), token).unwrap()).unwrap()
    };
    assert!(ask("Host: localhost", None).starts_with("HTTP/1.1 200"));
    assert!(ask("Host: example.com", None).starts_with("HTTP/1.1 403"));
    assert!(
        ask(&format!("Host: a\r\nAuthorization: Bearer {TOKEN}"), Some(TOKEN))
            .starts_with("HTTP/1.1 200")
    );
    assert!(ask("Host: a\r\nAuthorization: Bearer no", Some(TOKEN)).starts_with("HTTP/1.1 401"));
}
