//! `fuzz_targets::y4m` under libFuzzer.
#![no_main]

libfuzzer_sys::fuzz_target!(|bytes: &[u8]| fuzz_targets::y4m(bytes));
