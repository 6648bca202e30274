//! Exit codes, and how failures reach people.

use std::{fmt::Write as _, io, io::Write as _, process::ExitCode};

use crate::ops::{self, Class};

/// How a run ended.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[repr(u8)]
pub enum Exit {
    /// Done; nothing differs, nothing is wrong.
    Ok = 0,
    /// Done: the states differ, or a check failed.
    Differs = 1,
    /// The command line makes no sense.
    Usage = 2,
    /// There is no such object.
    NotFound = 3,
    /// A right is missing.
    Forbidden = 4,
    /// It did not happen in time.
    TimedOut = 5,
    /// Stored contents are damaged.
    Corrupt = 6,
    /// The API server, the store or Backstep itself cannot be reached or is not installed.
    Unavailable = 7,
    /// The API server or Backstep refused.
    Refused = 8,
    /// The operator tried and failed.
    Failed = 9,
    /// A bug, or a local file that cannot be written.
    Internal = 10,
    /// The reader of the output went away.
    Pipe = 141,
}

/// Every exit code with its meaning, for `--help` and the reference.
pub const TABLE: [(Exit, &str); 12] = [
    (
        Exit::Ok,
        "done; with diff: no difference, with verify and doctor: nothing wrong",
    ),
    (
        Exit::Differs,
        "diff: there are differences; doctor: a check failed; status: no operator runs",
    ),
    (Exit::Usage, "the command line makes no sense"),
    (
        Exit::NotFound,
        "there is no such snapshot, version, tag, request or object",
    ),
    (Exit::Forbidden, "you lack a right; the message names it"),
    (
        Exit::TimedOut,
        "it did not happen in time (--wait, --timeout, --request-timeout), or was not approved in time",
    ),
    (
        Exit::Corrupt,
        "stored contents are damaged; verify found damage, or what was asked for cannot be read",
    ),
    (
        Exit::Unavailable,
        "the API server, the store or Backstep cannot be reached, or is not installed",
    ),
    (
        Exit::Refused,
        "refused: it exists already, is not valid, is ambiguous, a policy denies it, it was rejected or cancelled, or a decision does not count",
    ),
    (
        Exit::Failed,
        "the operator tried and failed, or undid it; plan: the rollback would not be carried out; the message holds the reason",
    ),
    (Exit::Internal, "a local file cannot be read or written, or a bug"),
    (Exit::Pipe, "the reader of the output went away"),
];

impl From<Exit> for ExitCode {
    fn from(exit: Exit) -> Self {
        Self::from(exit as u8)
    }
}

/// The table as text for `--help`.
pub fn help() -> String {
    let mut text = String::from("Exit codes:\n");
    for (exit, meaning) in TABLE {
        let _ = writeln!(text, "  {:>3}  {meaning}", exit as u8);
    }
    text
}

/// Why a verb did not finish.
#[derive(Debug)]
pub enum Failure {
    /// The operation failed.
    Ops(ops::Error),
    /// Standard output was closed by its reader.
    Pipe,
    /// A local file or the terminal.
    Io(io::Error),
}

impl From<ops::Error> for Failure {
    fn from(error: ops::Error) -> Self {
        Self::Ops(error)
    }
}

impl From<io::Error> for Failure {
    fn from(error: io::Error) -> Self {
        if error.kind() == io::ErrorKind::BrokenPipe {
            Self::Pipe
        } else {
            Self::Io(error)
        }
    }
}

impl Failure {
    /// The exit code that tells it.
    pub fn exit(&self) -> Exit {
        match self {
            Self::Pipe => Exit::Pipe,
            Self::Io(_) => Exit::Internal,
            Self::Ops(error) => match error.class {
                Class::Usage => Exit::Usage,
                Class::NotFound => Exit::NotFound,
                Class::Forbidden => Exit::Forbidden,
                Class::TimedOut => Exit::TimedOut,
                Class::Corrupt => Exit::Corrupt,
                Class::Unavailable => Exit::Unavailable,
                Class::Refused => Exit::Refused,
                Class::Failed => Exit::Failed,
                Class::Internal => Exit::Internal,
            },
        }
    }
}

/// Tells a failure on standard error.
pub fn report(failure: &Failure) -> Exit {
    let text = match failure {
        Failure::Pipe => return Exit::Pipe,
        Failure::Io(error) => format!("error: {error}"),
        Failure::Ops(error) => format!("error: {error}"),
    };
    let _ = writeln!(io::stderr(), "{text}");
    failure.exit()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_exit_code_is_listed_once_and_in_order() {
        let codes: Vec<u8> = TABLE.iter().map(|(exit, _)| *exit as u8).collect();
        assert!(codes.is_sorted_by(|a, b| a < b), "{codes:?}");
        assert!(help().contains("  141  "));
    }

    #[test]
    fn a_closed_pipe_is_told_apart_from_other_io_errors() {
        assert_eq!(
            Failure::from(io::Error::from(io::ErrorKind::BrokenPipe)).exit(),
            Exit::Pipe
        );
        assert_eq!(Failure::from(io::Error::other("disk full")).exit(), Exit::Internal);
    }
}
