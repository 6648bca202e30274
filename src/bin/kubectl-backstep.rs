//! `kubectl backstep`.

use std::process::ExitCode;

fn main() -> ExitCode {
    backstep::cli::run(std::env::args_os())
}
