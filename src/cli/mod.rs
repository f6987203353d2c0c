//! The command line: one file a verb group.

use std::process::ExitCode;

use crate::handler::Registry;

/// Runs the command line of a binary with these jobs: `windlass::cli::main(Registry::new().job("invoice", invoice))`.
pub fn main(_registry: Registry) -> ExitCode {
    ExitCode::from(2)
}
