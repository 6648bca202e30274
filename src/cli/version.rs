//! `version`: of this command and of the API server.

use clap::Args;
use serde_json::json;

use super::{Context, Exit, Failure, output::Format};
use crate::{api::names, ops::facts};

#[derive(Args)]
#[command(after_long_help = "Examples:
  kubectl backstep version")]
pub struct Options {
    /// Only the version of this command; makes no call
    #[arg(long)]
    client: bool,
    /// How to write it
    #[arg(short, long, value_enum, default_value = "table")]
    output: Format,
}

pub async fn run(options: &Options, context: &mut Context) -> Result<Exit, Failure> {
    let client = env!("CARGO_PKG_VERSION");
    let server = if options.client {
        None
    } else {
        Some(facts::server(&context.session().await?).await?.version)
    };
    match options.output {
        Format::Json | Format::Yaml => {
            let api = format!("{}/{}", names::GROUP, names::VERSION);
            context
                .out
                .structured(options.output, &json!({"client": client, "api": api, "server": server}))?;
        }
        Format::Table | Format::Wide | Format::Name => {
            context
                .out
                .line(format_args!("Client: v{client} ({}/{})", names::GROUP, names::VERSION))?;
            if let Some(server) = server {
                context.out.line(format_args!("Server: {server}"))?;
            }
        }
    }
    Ok(Exit::Ok)
}
