//! `kubectl backstep`: one file a verb, each parses, calls `ops` and prints.

use std::{ffi::OsString, path::PathBuf, process::ExitCode};

use clap::{Args, CommandFactory as _, FromArgMatches as _, Parser, Subcommand};

use crate::api::approval_request::Decision;
use crate::ops::{self, ConnectOptions, Session, duration, store::Location};

mod approvals;
mod args;
mod completion;
mod decide;
mod doctor;
pub mod exit;
mod history;
mod output;
mod plan;
mod rollback;
mod scope;
mod shown;
mod snapshot;
mod status;
mod timeline;
mod undo;
mod version;
mod watch;

pub use exit::Exit;
use exit::Failure;
use output::Out;

const ABOUT: &str = "Backstep is the undo button of a Kubernetes namespace.

A snapshot holds what a team runs: configuration, workloads and the image digests that really ran. Take one before a change, see what \
differs, and read or export any captured object.

Everything is a custom resource, so kubectl, GitOps and Helm work as well; this command makes it pleasant.";

#[derive(Parser)]
#[command(
    name = "kubectl-backstep",
    bin_name = "kubectl backstep",
    version,
    about = "The undo button of a Kubernetes namespace",
    long_about = ABOUT,
    after_long_help = exit::help(),
    max_term_width = 120,
    disable_help_subcommand = true,
    subcommand_required = true,
    arg_required_else_help = true
)]
struct Cli {
    #[command(flatten)]
    global: Global,
    #[command(subcommand)]
    verb: Verb,
}

/// Flags of every verb, as kubectl has them.
#[derive(Args)]
#[command(next_help_heading = "Global options")]
struct Global {
    /// Path of the kubeconfig file; without it $KUBECONFIG, then ~/.kube/config
    #[arg(long, global = true, value_name = "FILE")]
    kubeconfig: Option<PathBuf>,
    /// Context of the kubeconfig to use
    #[arg(long, global = true, value_name = "NAME")]
    context: Option<String>,
    /// Namespace to work in; without it that of the context
    #[arg(short, long, global = true, value_name = "NAME", value_parser = namespace)]
    namespace: Option<String>,
    /// User to act as (impersonation)
    #[arg(long = "as", global = true, value_name = "USER")]
    impersonate: Option<String>,
    /// Group to act as; may be given several times
    #[arg(long = "as-group", global = true, value_name = "GROUP")]
    impersonate_groups: Vec<String>,
    /// UID to act as
    #[arg(long = "as-uid", global = true, value_name = "UID")]
    impersonate_uid: Option<String>,
    /// Deadline of one call to the API server, for example 30s; 0 is the default: 20s, 60s for a page of a list
    #[arg(long, global = true, value_name = "DURATION", value_parser = request_timeout)]
    request_timeout: Option<Timeout>,
    /// Namespace of the operator
    #[arg(long, global = true, value_name = "NAME", value_parser = namespace, default_value = crate::api::names::DEFAULT_NAMESPACE)]
    operator_namespace: String,
    /// Where contents live: `secrets`, `secrets:NAMESPACE` or `file:///path`; without it what the operator has published
    #[arg(long, global = true, value_name = "STORE", value_parser = store)]
    store: Option<Location>,
    /// Never colour the output; so does a non-empty `$NO_COLOR`
    #[arg(long, global = true, env = "NO_COLOR", hide_env = true, action = clap::ArgAction::SetTrue, value_parser = not_empty)]
    no_color: bool,
    /// Log verbosity on standard error, 0 to 9: 4 tells what is tried again, 6 each request
    #[arg(short = 'v', long = "v", global = true, value_name = "LEVEL", default_value_t = 0, value_parser = clap::value_parser!(u8).range(0..=9))]
    verbosity: u8,
}

#[derive(Subcommand)]
enum Verb {
    /// Take, list, compare and keep snapshots
    #[command(visible_aliases = ["snapshots", "snap"], subcommand_required = true, arg_required_else_help = true)]
    Snapshot {
        #[command(subcommand)]
        verb: Box<snapshot::Verb>,
    },
    /// Show what a rollback would do, object by object, and what stands in its way
    Plan(Box<plan::Options>),
    /// Ask for a rollback: it is planned, approved, executed, verified and recorded
    Rollback(Box<rollback::Options>),
    /// Undo a rollback: go back to how it was right before it
    Undo(Box<undo::Options>),
    /// Follow a rollback until it is over
    Watch(watch::Options),
    /// Approve a rollback
    Approve(decide::Options),
    /// Reject a rollback
    Reject(decide::Options),
    /// Take an approval back
    Revoke(decide::Options),
    /// List what waits for approval, and what was decided
    Approvals(approvals::Options),
    /// List finished rollbacks, newest first
    History(history::Options),
    /// Draw the versions of a namespace as the tree that they are
    Timeline(timeline::Options),
    /// Tell how Backstep is doing, as far as you may see it
    Status(status::Options),
    /// Check everything that Backstep needs, and say how to mend what is wrong
    Doctor(doctor::Options),
    /// Print a completion script for a shell
    Completion(completion::Options),
    /// Print the versions of this command and of the API server
    Version(version::Options),
}

/// `--request-timeout 0` asks for the default.
#[derive(Clone, Copy)]
struct Timeout(Option<std::time::Duration>);

fn request_timeout(text: &str) -> Result<Timeout, ops::Error> {
    // kubectl reads a bare number as seconds.
    let duration = match text.parse::<u64>() {
        Ok(seconds) => std::time::Duration::from_secs(seconds),
        Err(_) => duration::parse(text)?,
    };
    Ok(Timeout((!duration.is_zero()).then_some(duration)))
}

fn namespace(text: &str) -> Result<String, String> {
    let ok = !text.is_empty()
        && text.len() <= 63
        && text
            .chars()
            .all(|c| c.is_ascii_lowercase() || c.is_ascii_digit() || c == '-')
        && !text.starts_with('-')
        && !text.ends_with('-');
    ok.then(|| text.to_owned())
        .ok_or_else(|| "a namespace is at most 63 lower-case letters, digits and `-`".to_owned())
}

fn store(text: &str) -> Result<Location, ops::Error> {
    text.parse()
}

// The convention at no-color.org: set and not empty, whatever the value.
#[allow(clippy::unnecessary_wraps)]
fn not_empty(text: &str) -> Result<bool, String> {
    Ok(!text.is_empty() && text != "false")
}

/// What a verb works with.
struct Context {
    connect: ConnectOptions,
    store: Option<Location>,
    out: Out,
}

impl Context {
    async fn session(&self) -> Result<Session, Failure> {
        Ok(Session::connect(&self.connect).await?)
    }
}

impl Global {
    fn context(self) -> Context {
        Context {
            connect: ConnectOptions {
                kubeconfig: self.kubeconfig,
                context: self.context,
                namespace: self.namespace,
                impersonate: self.impersonate,
                impersonate_groups: self.impersonate_groups,
                impersonate_uid: self.impersonate_uid,
                request_timeout: self.request_timeout.and_then(|t| t.0),
                operator_namespace: Some(self.operator_namespace),
            },
            store: self.store,
            out: Out::new(self.no_color),
        }
    }
}

/// The whole command line, for the reference and for completions.
pub fn command() -> clap::Command {
    Cli::command()
}

/// Runs the command line; the only place that turns failures into exit codes.
pub fn run(args: impl IntoIterator<Item = impl Into<OsString> + Clone>) -> ExitCode {
    let cli = match Cli::command()
        .try_get_matches_from(args)
        .and_then(|matches| Cli::from_arg_matches(&matches))
    {
        Ok(cli) => cli,
        Err(error) => {
            // Help and version go to standard output and are no failure; a closed pipe is not worth a word.
            let _ = error.print();
            return if error.use_stderr() { Exit::Usage } else { Exit::Ok }.into();
        }
    };
    start_logs(cli.global.verbosity);
    let mut context = cli.global.context();
    let runtime = match tokio::runtime::Builder::new_multi_thread()
        .worker_threads(2)
        .enable_all()
        .build()
    {
        Ok(runtime) => runtime,
        Err(error) => return exit::report(&Failure::Io(error)).into(),
    };
    let outcome = runtime.block_on(dispatch(cli.verb, &mut context));
    let outcome = outcome.and_then(|exit| context.out.finish().map(|()| exit));
    // Background reads (a prefetched page) must not hold up the end.
    runtime.shutdown_background();
    match outcome {
        Ok(exit) => exit,
        Err(failure) => {
            // What was printed before the failure belongs before it.
            let _ = context.out.finish();
            exit::report(&failure)
        }
    }
    .into()
}

async fn dispatch(verb: Verb, context: &mut Context) -> Result<Exit, Failure> {
    match verb {
        Verb::Snapshot { verb } => Box::pin(snapshot::run(*verb, context)).await,
        Verb::Plan(options) => Box::pin(plan::run(&options, context)).await,
        Verb::Rollback(options) => Box::pin(rollback::run(&options, context)).await,
        Verb::Undo(options) => Box::pin(undo::run(&options, context)).await,
        Verb::Watch(options) => Box::pin(watch::run(&options, context)).await,
        Verb::Approve(options) => Box::pin(decide::run(Decision::Approve, &options, context)).await,
        Verb::Reject(options) => Box::pin(decide::run(Decision::Reject, &options, context)).await,
        Verb::Revoke(options) => Box::pin(decide::run(Decision::Revoke, &options, context)).await,
        Verb::Approvals(options) => Box::pin(approvals::run(&options, context)).await,
        Verb::History(options) => history::run(&options, context).await,
        Verb::Timeline(options) => timeline::run(&options, context).await,
        Verb::Status(options) => Box::pin(status::run(&options, context)).await,
        Verb::Doctor(options) => Box::pin(doctor::run(&options, context)).await,
        Verb::Completion(options) => completion::run(&options, context),
        Verb::Version(options) => version::run(&options, context).await,
    }
}

/// Only Backstep's own lines and the client's requests: request bodies are logged by nothing that is let through.
fn start_logs(verbosity: u8) {
    let filter = match verbosity {
        0 => return,
        1..=3 => "backstep=info",
        4..=5 => "backstep=debug",
        _ => "backstep=debug,kube_client::client::builder=debug",
    };
    let filter = tracing_subscriber::EnvFilter::new(filter);
    let _ = tracing_subscriber::fmt()
        .with_env_filter(filter)
        .with_writer(std::io::stderr)
        .with_ansi(false)
        .try_init();
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_command_line_is_consistent() {
        command().debug_assert();
    }

    #[test]
    fn every_verb_and_every_flag_says_what_it_does() {
        fn check(command: &clap::Command) {
            assert!(command.get_about().is_some(), "{} says nothing", command.get_name());
            for arg in command.get_arguments() {
                let built_in = matches!(arg.get_id().as_str(), "help" | "version");
                assert!(
                    built_in || arg.get_help().is_some(),
                    "{} {} says nothing",
                    command.get_name(),
                    arg.get_id()
                );
            }
            command.get_subcommands().for_each(check);
        }
        check(&command());
    }

    #[test]
    fn request_timeouts_are_durations_or_seconds() {
        assert_eq!(
            request_timeout("30").unwrap().0,
            Some(std::time::Duration::from_secs(30))
        );
        assert_eq!(
            request_timeout("1m").unwrap().0,
            Some(std::time::Duration::from_secs(60))
        );
        assert_eq!(request_timeout("0").unwrap().0, None);
        assert!(request_timeout("soon").is_err());
    }

    #[test]
    fn the_standard_flags_may_stand_behind_the_verb() {
        let parsed = Cli::try_parse_from([
            "kubectl-backstep",
            "snapshot",
            "list",
            "-n",
            "shop",
            "--as",
            "ada",
            "--as-group",
            "a",
            "--as-group",
            "b",
        ]);
        let global = parsed.map_or_else(|e| panic!("{e}"), |cli| cli.global);
        assert_eq!(global.namespace.as_deref(), Some("shop"));
        assert_eq!(global.impersonate_groups, ["a", "b"]);
    }
}
