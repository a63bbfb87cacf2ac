//! `hostile::y4m` under libFuzzer.
#![no_main]

libfuzzer_sys::fuzz_target!(|bytes: &[u8]| hostile::y4m(bytes));
