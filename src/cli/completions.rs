//! `completions SHELL`

use std::process::ExitCode;

use clap::{Args, CommandFactory, ValueEnum};
use clap_complete::Shell;

use super::Done;
use super::session::Session;

/// Flags of `completions`.
#[derive(Args, Debug)]
#[command(after_help = "\
Examples:
  windlass completions bash > /etc/bash_completion.d/windlass
  windlass completions zsh > \"${fpath[1]}/_windlass\"
  windlass completions fish > ~/.config/fish/completions/windlass.fish")]
pub struct Arguments {
    /// The shell
    shell: Choice,
}

#[derive(Clone, Copy, Debug, ValueEnum)]
enum Choice {
    Bash,
    Zsh,
    Fish,
    Powershell,
}

/// Writes the script.
pub fn run(session: Session, arguments: Arguments) -> Done {
    let shell = match arguments.shell {
        Choice::Bash => Shell::Bash,
        Choice::Zsh => Shell::Zsh,
        Choice::Fish => Shell::Fish,
        Choice::Powershell => Shell::PowerShell,
    };
    let mut script = Vec::new();
    clap_complete::generate(shell, &mut super::args::Arguments::command(), "windlass", &mut script);
    let mut out = session.output();
    out.bytes(&script)?;
    out.flush()?;
    Ok(ExitCode::SUCCESS)
}
