//! `fuzz_targets::mjpg` under libFuzzer.
#![no_main]

libfuzzer_sys::fuzz_target!(|bytes: &[u8]| fuzz_targets::mjpg(bytes));
