//! How arguments are read that several verbs take.

use std::{
    io::{self, BufRead as _, IsTerminal as _, Write as _},
    time::Duration,
};

use crate::{
    api::{reference::ObjectFilter, snapshot::Component},
    ops::{self, create, duration},
};

use super::Failure;

/// Where a dry run is made.
#[derive(Clone, Copy, PartialEq, Eq, clap::ValueEnum)]
pub enum DryRun {
    /// Makes no call
    Client,
    /// The API server checks it
    Server,
}

/// A time longer than nothing.
pub fn time(text: &str) -> Result<Duration, ops::Error> {
    let duration = duration::parse(text)?;
    if duration.is_zero() {
        Err(ops::Error::usage("the time must be longer than nothing"))
    } else {
        Ok(duration)
    }
}

/// `Kind`, `Kind/NAME` or `group/Kind/NAME`.
pub fn filter(text: &str) -> Result<ObjectFilter, ops::Error> {
    create::filter(text)
}

/// The name of a tag.
pub fn tag(text: &str) -> Result<String, String> {
    ops::reference::is_tag(text).then(|| text.to_owned()).ok_or_else(|| {
        "a tag is at most 63 letters, digits, `-`, `_` and `.`, and begins and ends with a letter or digit".to_owned()
    })
}

/// A component, in any case.
pub fn component(text: &str) -> Result<Component, String> {
    const ALL: [Component; 8] = [
        Component::Configuration,
        Component::Workloads,
        Component::Images,
        Component::Volumes,
        Component::Databases,
        Component::Git,
        Component::Policy,
        Component::Infrastructure,
    ];
    ALL.into_iter()
        .find(|c| format!("{c:?}").eq_ignore_ascii_case(text))
        .ok_or_else(|| {
            let names: Vec<String> = ALL.iter().map(|c| format!("{c:?}")).collect();
            format!("the components are {}", names.join(", "))
        })
}

/// The name of a lineage.
pub fn lineage(text: &str) -> Result<String, String> {
    super::namespace(text).map_err(|_| "a lineage is at most 63 lower-case letters, digits and `-`".to_owned())
}

/// Asks on the terminal; `about` is what cannot be done without an answer. Only `y` and `yes` are a yes.
pub fn confirmed(about: &str, question: &str) -> Result<bool, Failure> {
    if !io::stdin().is_terminal() {
        return Err(
            ops::Error::usage(format!("{about} asks first, and there is no terminal to ask on"))
                .fix("pass --yes")
                .into(),
        );
    }
    let mut stderr = io::stderr();
    write!(stderr, "{question} [y/N] ")?;
    stderr.flush()?;
    let mut answer = String::new();
    io::stdin().lock().read_line(&mut answer)?;
    Ok(matches!(answer.trim().to_ascii_lowercase().as_str(), "y" | "yes"))
}
