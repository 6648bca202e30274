//! The operator's program.

use std::process::ExitCode;

use backstep::{config::RunOptions, controller::operator};
use clap::Parser;

#[global_allocator]
static ALLOCATOR: mimalloc::MiMalloc = mimalloc::MiMalloc;

/// Backstep: the undo button of a Kubernetes namespace
#[derive(Parser)]
#[command(version)]
enum Command {
    /// Run the operator
    Run(Box<RunOptions>),
}

fn main() -> ExitCode {
    let Command::Run(options) = Command::parse();
    operator::main(*options)
}
