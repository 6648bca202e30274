//! `doctor`: what is wrong, and how to mend it.

use clap::Args;
use serde_json::json;

use super::{
    Context, Exit, Failure,
    output::{Format, Tone},
};
use crate::ops::doctor::{self, Outcome};

#[derive(Args)]
pub struct Options {
    /// How to write it
    #[arg(short, long, value_enum, default_value = "table")]
    output: Format,
}

pub async fn run(options: &Options, context: &mut Context) -> Result<Exit, Failure> {
    let session = context.session().await?;
    let spinner = context.out.spinner("looking");
    let checks = Box::pin(doctor::doctor(&session, context.store.as_ref())).await;
    spinner.finish_and_clear();
    let checks = checks?;
    let out = &mut context.out;
    match options.output {
        Format::Json | Format::Yaml => out.structured(options.output, &json!({"checks": checks}))?,
        Format::Table | Format::Wide | Format::Name => {
            for check in &checks {
                let (word, tone) = match check.outcome {
                    Outcome::Ok => ("OK  ", Tone::Good),
                    Outcome::Skip => ("SKIP", Tone::Quiet),
                    Outcome::Warn => ("WARN", Tone::Notice),
                    Outcome::Fail => ("FAIL", Tone::Bad),
                };
                let word = out.tone(tone, word);
                out.line(format_args!("{word}  {}: {}", check.name, check.detail))?;
                if let Some(fix) = &check.fix {
                    out.line(format_args!("      fix: {fix}"))?;
                }
            }
        }
    }
    Ok(if doctor::worst(&checks) == Outcome::Fail {
        Exit::Differs
    } else {
        Exit::Ok
    })
}
