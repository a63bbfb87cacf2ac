//! Weights of every format, as bytes: must be read or refused, never panic, never take more memory than libFuzzer's limit.
#![no_main]

use std::path::Path;

libfuzzer_sys::fuzz_target!(|bytes: &[u8]| {
    let _ = quant::import::import_bytes(Path::new("fuzzed"), bytes.to_vec(), None);
});
