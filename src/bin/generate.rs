//! Writes every generated file of the repository; with `--check` only says which differ.

use std::{path::PathBuf, process::ExitCode};

use clap::Parser;

/// Writes CRDs, the chart's copies of them and the reference pages
#[derive(Parser)]
struct Options {
    /// Write nothing; fail and list the files that differ
    #[arg(long)]
    check: bool,
    /// Root of the repository
    #[arg(long, default_value = ".")]
    root: PathBuf,
}

fn main() -> ExitCode {
    let options = Options::parse();
    let done = if options.check {
        backstep::generate::differing(&options.root).map(|d| d.into_iter().map(|d| d.path).collect())
    } else {
        backstep::generate::write(&options.root)
    };
    match done {
        Ok(paths) => {
            for path in &paths {
                println!("{path}");
            }
            if options.check && !paths.is_empty() {
                eprintln!(
                    "{} generated files differ; run `cargo run --bin generate` and commit them",
                    paths.len()
                );
                return ExitCode::FAILURE;
            }
            ExitCode::SUCCESS
        }
        Err(error) => {
            eprintln!("generate: {error}");
            ExitCode::FAILURE
        }
    }
}
