//! The laboratory's worker, and how an application of your own looks: its jobs, and Windlass' command line.
//!
//! `cargo lab run --config config/reports.toml`, `cargo lab dlq list ..`, and every other verb.

use std::process::ExitCode;

use windlass_lab::Lab;

fn main() -> ExitCode {
    // What `cargo demo` leaves behind, unless it is said.
    let demo = concat!(env!("CARGO_MANIFEST_DIR"), "/../target/demo");
    let folder = std::env::var_os("LAB_FOLDER").unwrap_or_else(|| demo.into());
    windlass::cli::main(windlass_lab::registry(Lab::at(folder)))
}
