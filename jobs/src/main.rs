//! The laboratory's worker, and how an application of your own looks: its jobs, and Windlass' command line.
//!
//! `cargo lab run --config config/reports.toml`, `cargo lab dlq list ..`, and every other verb.

use std::process::ExitCode;

use windlass_lab::Lab;

fn main() -> ExitCode {
    // What `cargo demo` leaves behind, unless it is said. Mail goes to a folder there, or to the server LAB_SMTP.
    let demo = concat!(env!("CARGO_MANIFEST_DIR"), "/../target/demo");
    let folder = std::env::var_os("LAB_FOLDER").unwrap_or_else(|| demo.into());
    let lab = match std::env::var("LAB_SMTP") {
        Ok(url) => Lab::at(folder).with_smtp(&url),
        Err(_) => Ok(Lab::at(folder)),
    };
    match lab {
        Ok(lab) => windlass::cli::main(windlass_lab::registry(lab)),
        Err(error) => {
            eprintln!("error: LAB_SMTP: {}", error.message());
            ExitCode::from(78)
        }
    }
}
