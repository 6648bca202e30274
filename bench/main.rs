//! The yardstick: how fast, how small and how quiet captures and rollbacks are, beside a bare client on the same server.
//!
//! `cargo bench --bench yardstick` measures the goals of `docs/performance.md` that a release can be held to; `-- --quick`
//! takes a small data set and few pairs.

mod capture;
mod data;
mod generated;
mod load;
mod memory;
mod objects;
mod operator;
mod random;
mod raw;
mod reads;
mod report;
mod restore;
mod rollback;
mod rows;
mod series;
mod words;

use std::path::PathBuf;
use std::process::ExitCode;

use anyhow::{Result, bail};
use clap::Parser;

use data::DataSet;
use report::Report;
use rows::Plan;

/// Measures captures and rollbacks against a bare client
#[derive(Parser)]
#[expect(clippy::struct_excessive_bools, reason = "they are flags")]
struct Options {
    /// A small data set and three pairs
    #[arg(long)]
    quick: bool,
    /// Data sets: `s<objects>` in one namespace, `l<namespaces>` of 50 objects, `v<secrets>`; default s5000, l2000 and v5000
    #[arg(long, value_delimiter = ',')]
    data: Vec<String>,
    /// Interleaved pairs; default 5
    #[arg(long)]
    pairs: Option<usize>,
    /// Only the measurements of these rows, such as 1,3; default all
    #[arg(long, value_delimiter = ',')]
    rows: Vec<u8>,
    /// Captures with 1 % changed each (row 10); default 30, and none in a quick run
    #[arg(long)]
    generations: Option<usize>,
    /// Leave memory (row 3) out
    #[arg(long)]
    no_memory: bool,
    /// Only write the data and time RAW's lists of it: what the machine can do
    #[arg(long)]
    raw: bool,
    /// The operator's program
    #[arg(long, default_value = env!("CARGO_BIN_EXE_backstep"))]
    program: PathBuf,
    /// Given by cargo
    #[arg(long, hide = true)]
    bench: bool,
}

fn data_set(name: &str) -> Result<DataSet> {
    let (letter, count) = name.split_at(name.len().min(1));
    match (letter, count.parse()) {
        ("s", Ok(count)) if count > 0 => Ok(DataSet::s(count)),
        ("l", Ok(count)) if count > 0 => Ok(DataSet::l(count)),
        ("v", Ok(count)) if count > 0 => Ok(DataSet::v(count)),
        _ => bail!(
            "there is no data set `{name}`: write s5000 for 5,000 objects in one namespace, l2000 for 2,000 namespaces, v31000 for \
             31,000 Secrets"
        ),
    }
}

async fn run(options: Options) -> Result<Report> {
    let names = match (options.data.is_empty(), options.quick) {
        (false, _) => options.data,
        (true, true) => ["s1000", "l100", "v500"].map(str::to_owned).to_vec(),
        (true, false) => ["s5000", "l2000", "v5000"].map(str::to_owned).to_vec(),
    };
    let sets = names.iter().map(|name| data_set(name)).collect::<Result<Vec<_>>>()?;
    let plan = Plan {
        program: options.program,
        pairs: options.pairs.unwrap_or(if options.quick { 3 } else { 5 }),
        generations: options.generations.unwrap_or(if options.quick { 0 } else { 30 }),
    };
    let mut report = Report::default();
    if options.raw {
        for set in &sets {
            rows::orientation(&plan, set, &mut report).await?;
        }
        return Ok(report);
    }
    // What is measured, by the numbers of the rows; another row is another line.
    let wants = |rows: &[u8]| options.rows.is_empty() || rows.iter().any(|row| options.rows.contains(row));
    if wants(&[3]) && !options.no_memory {
        rows::memory(&plan, 10_000, 100_000, &mut report).await?;
    }
    for set in &sets {
        // V holds what restores are measured on, S what the rest is; L is many namespaces.
        let is = |letter: char| set.name.starts_with(letter);
        if wants(&[1, 2, 9, 10]) && !is('v') {
            rows::captures(&plan, set, &mut report).await?;
        }
        if wants(&[5]) && is('v') {
            Box::pin(rows::restores(&plan, set, &mut report)).await?;
        }
        if wants(&[6, 7]) && is('s') {
            Box::pin(rows::rollbacks(&plan, set, &mut report)).await?;
        }
    }
    if wants(&[8]) {
        Box::pin(rows::single(&plan, &mut report)).await?;
    }
    Ok(report)
}

fn main() -> ExitCode {
    let options = Options::parse();
    let runtime = match tokio::runtime::Runtime::new() {
        Ok(runtime) => runtime,
        Err(error) => {
            eprintln!("yardstick: {error}");
            return ExitCode::FAILURE;
        }
    };
    match runtime.block_on(run(options)) {
        Ok(report) => {
            println!("{report}");
            let (exact, times) = report.missed();
            println!("{exact} rows with exact figures and {times} with times miss what must be");
            if exact == 0 {
                ExitCode::SUCCESS
            } else {
                ExitCode::FAILURE
            }
        }
        Err(error) => {
            eprintln!("yardstick: {error:#}");
            ExitCode::FAILURE
        }
    }
}
