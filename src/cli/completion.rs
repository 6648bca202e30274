//! `completion`: shell completions.

use clap::Args;
use clap_complete::Shell;

use super::{Context, Exit, Failure};

#[derive(Args)]
#[command(after_long_help = "Examples:
  source <(kubectl backstep completion bash)
  kubectl backstep completion fish > ~/.config/fish/completions/kubectl-backstep.fish")]
pub struct Options {
    /// The shell
    #[arg(value_parser = clap::builder::EnumValueParser::<Shell>::new())]
    shell: Shell,
}

pub fn run(options: &Options, context: &mut Context) -> Result<Exit, Failure> {
    let mut script = Vec::new();
    clap_complete::generate(options.shell, &mut super::command(), "kubectl-backstep", &mut script);
    context.out.raw(&script)?;
    Ok(Exit::Ok)
}
