//! What a rollback goes back to, and how much of it comes back: the flags that `plan` and `rollback` share.

use clap::{Args, ValueEnum};
use jiff::Timestamp;
use k8s_openapi::apimachinery::pkg::apis::meta::v1::Time;
use kube::ResourceExt as _;

use super::args;
use crate::{
    api::{
        RollbackRequestSpec,
        reference::ObjectFilter,
        rollback_request::{
            Conflict, Gitops, Images, Preflight, Prune, RollbackReason, SecretsHandling, Selection, Strategy, Target,
        },
        snapshot::Component,
    },
    cluster::clock,
    ops::{self, Error, Reference, Session, create, resolve, rollback},
};

#[derive(Args)]
pub struct Scope {
    /// The version to go back to: NAME, LINEAGE@VERSION or tag:NAME; or name it by the flags below
    #[arg(value_name = "SNAPSHOT", value_parser = reference, conflicts_with_all = ["version", "tag", "previous", "as_of"])]
    snapshot: Option<Reference>,
    /// Lineage in which --version, --tag, --previous and --as-of look [default: default]
    #[arg(long, value_name = "NAME", value_parser = args::lineage, conflicts_with = "snapshot")]
    lineage: Option<String>,
    /// This version of the lineage
    #[arg(long = "version", id = "version", value_name = "NUMBER", value_parser = clap::value_parser!(i64).range(1..), conflicts_with_all = ["tag", "previous", "as_of"])]
    version: Option<i64>,
    /// The one version of the lineage that carries this tag
    #[arg(long, value_name = "TAG", value_parser = args::tag, conflicts_with_all = ["previous", "as_of"])]
    tag: Option<String>,
    /// The version before what is live
    #[arg(long, conflicts_with = "as_of")]
    previous: bool,
    /// The newest version begun at or before this time: 2026-11-21T10:00:00Z, or how long ago: 2h
    #[arg(long, value_name = "TIME", value_parser = moment)]
    as_of: Option<Timestamp>,
    /// Only this layer comes back; may be given several times [default: all but Policy]
    #[arg(short, long = "component", value_name = "COMPONENT", value_parser = args::component, value_delimiter = ',', ignore_case = true)]
    components: Vec<Component>,
    /// Only these objects come back: Kind, Kind/NAME or group/Kind/NAME, with * and ? in NAME
    #[arg(long, value_name = "OBJECT", value_parser = args::filter, conflicts_with = "components")]
    include: Vec<ObjectFilter>,
    /// These objects stay as they are
    #[arg(long, value_name = "OBJECT", value_parser = args::filter, conflicts_with = "components")]
    exclude: Vec<ObjectFilter>,
    /// Only what has these labels comes back: a=b,c!=d,e in (f,g),!h
    #[arg(short = 'l', long, value_name = "SELECTOR", conflicts_with = "components")]
    selector: Option<String>,
    /// What happens to objects created since
    #[arg(long, value_enum, value_name = "WHAT", ignore_case = true)]
    prune: Option<PruneFlag>,
    /// What happens when an object changes after the approval [default: overwrite]
    #[arg(long, value_enum, value_name = "WHAT")]
    conflict: Option<ConflictFlag>,
    /// How images come back [default: auto]
    #[arg(long, value_enum, value_name = "HOW")]
    images: Option<ImagesFlag>,
    /// What happens to Secrets changed since the snapshot [default: restore]
    #[arg(long, value_enum, value_name = "WHAT")]
    secrets: Option<SecretsFlag>,
    /// What happens when Flux or Argo CD owns the target [default: block]
    #[arg(long, value_enum, value_name = "WHAT")]
    gitops: Option<GitopsFlag>,
    /// Do not restart the consumers of what comes back
    #[arg(long)]
    no_cascade: bool,
    /// Dry-run every item beforehand, not only those that may be refused
    #[arg(long)]
    check_everything: bool,
}

#[derive(Clone, Copy, PartialEq, Eq, ValueEnum)]
enum PruneFlag {
    /// They stay
    None,
    /// Those of captured kinds and selector are deleted
    Created,
}

#[derive(Clone, Copy, PartialEq, Eq, ValueEnum)]
enum ConflictFlag {
    /// Plan again, and ask again
    Overwrite,
    /// The rollback fails
    FailOnDrift,
    /// That object stays as it is
    KeepLive,
}

#[derive(Clone, Copy, PartialEq, Eq, ValueEnum)]
enum ImagesFlag {
    /// As captured; pinned by digest where the tag has moved since
    Auto,
    /// As captured; a moved tag is only reported
    AsCaptured,
    /// Pinned by digest at once
    Pin,
}

#[derive(Clone, Copy, PartialEq, Eq, ValueEnum)]
enum SecretsFlag {
    /// They come back
    Restore,
    /// They stay; absent ones come back
    KeepLive,
}

#[derive(Clone, Copy, PartialEq, Eq, ValueEnum)]
enum GitopsFlag {
    /// The rollback fails and names the owner
    Block,
    /// It goes on, and the owner may put its own state back
    Ignore,
}

fn reference(text: &str) -> Result<Reference, Error> {
    text.parse()
}

fn moment(text: &str) -> Result<Timestamp, Error> {
    if let Ok(ago) = ops::duration::parse(text) {
        let past = jiff::SignedDuration::try_from(ago)
            .ok()
            .and_then(|ago| clock::now().checked_sub(ago).ok());
        return past.ok_or_else(|| Error::usage(format!("`{text}` is too long ago")));
    }
    text.parse().map_err(|_| {
        Error::usage(format!("`{text}` is no moment"))
            .fix("write a time with its zone, such as 2026-11-21T10:00:00Z, or how long ago, such as 2h")
    })
}

impl Scope {
    /// The target as the flags name it; a tag without a lineage is looked up here, because a target needs one.
    async fn target(&self, session: &Session) -> Result<Target, Error> {
        let in_lineage = |target: Target| Target {
            lineage: self.lineage.clone(),
            ..target
        };
        Ok(
            match (&self.snapshot, self.version, &self.tag, self.previous, self.as_of) {
                (Some(Reference::Name(name)), ..) => Target {
                    snapshot: Some(name.clone()),
                    ..Target::default()
                },
                (Some(Reference::Version { lineage, version }), ..) => Target {
                    lineage: Some(lineage.clone()),
                    version: Some(*version),
                    ..Target::default()
                },
                (Some(tag @ Reference::Tag(_)), ..) => Target {
                    snapshot: Some(resolve(session, tag).await?.name_any()),
                    ..Target::default()
                },
                (None, Some(version), ..) => in_lineage(Target {
                    version: Some(version),
                    ..Target::default()
                }),
                (None, None, Some(tag), ..) => in_lineage(Target {
                    tag: Some(tag.clone()),
                    ..Target::default()
                }),
                (None, None, None, true, _) => in_lineage(Target {
                    previous: Some(true),
                    ..Target::default()
                }),
                (None, None, None, false, Some(at)) => in_lineage(Target {
                    as_of: Some(Time(at)),
                    ..Target::default()
                }),
                (None, None, None, false, None) => {
                    return Err(Error::usage("it is not said what to go back to").fix(
                    "name a snapshot (NAME, LINEAGE@VERSION or tag:NAME), or pass --version, --tag, --previous or --as-of; \
                     `kubectl backstep timeline` shows what there is",
                ));
                }
            },
        )
    }

    /// The spec of a request with these flags.
    pub async fn spec(&self, session: &Session) -> Result<RollbackRequestSpec, Error> {
        let mut spec = rollback::spec(&self.target(session).await?)?;
        self.narrow(&mut spec)?;
        Ok(spec)
    }

    fn narrow(&self, spec: &mut RollbackRequestSpec) -> Result<(), Error> {
        let selection = Selection {
            include: self.include.clone(),
            exclude: self.exclude.clone(),
            selector: self.selector.as_deref().map(create::selector).transpose()?,
        };
        if !self.components.is_empty() {
            spec.strategy = Strategy::Partial;
            spec.components.clone_from(&self.components);
        } else if selection != Selection::default() {
            spec.strategy = Strategy::Selective;
            spec.objects = Some(selection);
        }
        if let Some(prune) = self.prune {
            spec.prune = match prune {
                PruneFlag::None => Prune::None,
                PruneFlag::Created => Prune::Created,
            };
        }
        if let Some(conflict) = self.conflict {
            spec.conflict = match conflict {
                ConflictFlag::Overwrite => Conflict::Overwrite,
                ConflictFlag::FailOnDrift => Conflict::FailOnDrift,
                ConflictFlag::KeepLive => Conflict::KeepLive,
            };
        }
        if let Some(images) = self.images {
            spec.images = match images {
                ImagesFlag::Auto => Images::Auto,
                ImagesFlag::AsCaptured => Images::AsCaptured,
                ImagesFlag::Pin => Images::Pin,
            };
        }
        if let Some(secrets) = self.secrets {
            spec.secrets = match secrets {
                SecretsFlag::Restore => SecretsHandling::Restore,
                SecretsFlag::KeepLive => SecretsHandling::KeepLive,
            };
        }
        if let Some(gitops) = self.gitops {
            spec.gitops = match gitops {
                GitopsFlag::Block => Gitops::Block,
                GitopsFlag::Ignore => Gitops::Ignore,
            };
        }
        spec.cascade = !self.no_cascade;
        if self.check_everything {
            spec.preflight = Preflight::Always;
        }
        Ok(())
    }
}

/// `--reason` as the spec holds it; absent where nothing was said.
pub fn reason(message: Option<&String>, ticket: Option<&String>) -> Option<RollbackReason> {
    (message.is_some() || ticket.is_some()).then(|| RollbackReason {
        message: message.cloned(),
        metadata: ticket.map(|t| ("ticket".to_owned(), t.clone())).into_iter().collect(),
        ..RollbackReason::default()
    })
}

#[cfg(test)]
mod tests {
    use super::*;
    use clap::Parser;

    #[derive(Parser)]
    struct Alone {
        #[command(flatten)]
        scope: Scope,
    }

    fn read(args: &str) -> Result<Scope, String> {
        let args = std::iter::once("plan").chain(args.split(' ').filter(|a| !a.is_empty()));
        Alone::try_parse_from(args).map(|a| a.scope).map_err(|e| e.to_string())
    }

    fn narrowed(args: &str) -> RollbackRequestSpec {
        let mut spec = rollback::spec(&Target::default()).unwrap();
        read(args).unwrap().narrow(&mut spec).unwrap();
        spec
    }

    #[test]
    fn the_strategy_follows_from_what_is_named() {
        assert_eq!(narrowed("good").strategy, Strategy::Full);
        let partial = narrowed("good -c configuration,Images");
        assert_eq!(partial.strategy, Strategy::Partial);
        assert_eq!(partial.components, [Component::Configuration, Component::Images]);
        let selective = narrowed("good --include ConfigMap/web --exclude Secret");
        assert_eq!(selective.strategy, Strategy::Selective);
        assert_eq!(selective.objects.unwrap().include[0].names, ["web"]);
        assert!(read("good -c Images --include ConfigMap").is_err());
    }

    #[test]
    fn one_way_to_name_the_target_excludes_the_others() {
        for args in [
            "good --previous",
            "good --version 3",
            "--version 3 --tag a",
            "--tag a --previous",
            "--previous --as-of 2h",
            "good --lineage shop",
            "--version 0",
        ] {
            assert!(read(args).is_err(), "{args}");
        }
        assert!(read("--lineage shop --version 3").is_ok());
    }

    #[test]
    fn flags_reach_the_spec() {
        let spec = narrowed(
            "good --prune Created --conflict keep-live --images pin --secrets keep-live --gitops ignore --no-cascade --check-everything",
        );
        assert_eq!(
            (
                spec.prune,
                spec.conflict,
                spec.images,
                spec.secrets,
                spec.gitops,
                spec.cascade,
                spec.preflight
            ),
            (
                Prune::Created,
                Conflict::KeepLive,
                Images::Pin,
                SecretsHandling::KeepLive,
                Gitops::Ignore,
                false,
                Preflight::Always
            )
        );
    }

    #[test]
    fn a_moment_is_a_time_with_its_zone_or_how_long_ago() {
        assert_eq!(moment("2026-11-21T10:00:00Z").unwrap().as_second(), 1_795_255_200);
        assert!(moment("2h").unwrap() < clock::now());
        for text in ["2026-11-21T10:00:00", "yesterday", "9999999999999d", ""] {
            assert_eq!(moment(text).unwrap_err().class, ops::Class::Usage, "{text}");
        }
    }
}
