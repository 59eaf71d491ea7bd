#![no_main]

libfuzzer_sys::fuzz_target!(|bytes: &[u8]| divider_fuzz::fuzz("urls", bytes));
