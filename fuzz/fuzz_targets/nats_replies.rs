//! See `windlass::fuzz`.
#![no_main]

libfuzzer_sys::fuzz_target!(|input: &[u8]| windlass::fuzz::look("nats_replies", input));
