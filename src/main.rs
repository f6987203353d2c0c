//! The `windlass` binary with the built-in jobs and jobs over HTTP. An application of your own looks the same, with
//! `Registry::new().job("name", function)`.

use std::process::ExitCode;

fn main() -> ExitCode {
    windlass::cli::main(windlass::Registry::new())
}
