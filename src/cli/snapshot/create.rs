//! `snapshot create`.

use std::time::Duration;

use clap::{Args, ValueEnum};
use kube::ResourceExt as _;

use super::{
    super::{
        args::{self, DryRun},
        output::Format,
    },
    Context, Exit, Failure, reference,
};
use crate::{
    api::{
        SnapshotSpec,
        reference::ObjectFilter,
        snapshot::{Capture, Component, SecretsMode},
    },
    ops::{self, create, duration, wait},
};

#[derive(Args)]
#[command(after_long_help = "Examples:
  kubectl backstep snapshot create before-1-9 -n shop --wait
  kubectl backstep snapshot create --lineage shop --tag release-1.8 --description 'before the migration' --wait=5m
  kubectl backstep snapshot create --component Configuration --component Workloads --exclude 'Secret/*-tls' --ttl 30d
  kubectl backstep snapshot create nightly --selector app.kubernetes.io/part-of=shop --dry-run=client -o yaml")]
pub struct Options {
    /// Name of the Snapshot; without it one is made from the lineage
    name: Option<String>,
    /// Line of versions it belongs to: one application is one lineage [default: default]
    #[arg(long, value_name = "NAME")]
    lineage: Option<String>,
    /// Why it was taken, for people
    #[arg(short, long, value_name = "TEXT")]
    description: Option<String>,
    /// Tag to find it by; may be given several times
    #[arg(short, long = "tag", value_name = "TAG", value_parser = args::tag)]
    tags: Vec<String>,
    /// Layer to capture; may be given several times [default: all that can be captured]
    #[arg(short, long = "component", value_name = "COMPONENT", value_parser = args::component, value_delimiter = ',', ignore_case = true)]
    components: Vec<Component>,
    /// Capture only what has these labels, and what it refers to: a=b,c!=d,e in (f,g),!h
    #[arg(short = 'l', long, value_name = "SELECTOR")]
    selector: Option<String>,
    /// Capture only these objects, and what they refer to: Kind, Kind/NAME or group/Kind/NAME, with * and ? in NAME
    #[arg(long, value_name = "OBJECT", value_parser = args::filter)]
    include: Vec<ObjectFilter>,
    /// Leave these objects out; wins over everything else
    #[arg(long, value_name = "OBJECT", value_parser = args::filter)]
    exclude: Vec<ObjectFilter>,
    /// Do not capture what captured workloads refer to
    #[arg(long)]
    no_references: bool,
    /// What happens to the values of Secrets [default: include]
    #[arg(long, value_enum, value_name = "MODE")]
    secrets: Option<Secrets>,
    /// Delete it by itself after this time, for example 30d
    #[arg(long, value_name = "DURATION", value_parser = args::time)]
    ttl: Option<Duration>,
    /// Keep it for ever, whatever the ttl
    #[arg(long)]
    pin: bool,
    /// Wait until it is Ready; for 10m, or as long as given
    #[arg(short, long, value_name = "TIMEOUT", num_args = 0..=1, require_equals = true, default_missing_value = "10m", value_parser = args::time)]
    wait: Option<Duration>,
    /// client: print what would be sent; server: let the API server check it and keep nothing
    #[arg(long, value_enum, value_name = "WHERE", conflicts_with = "wait")]
    dry_run: Option<DryRun>,
    /// How to write the result
    #[arg(short, long, value_enum, value_name = "FORMAT")]
    output: Option<Format>,
}

#[derive(Clone, Copy, PartialEq, Eq, ValueEnum)]
enum Secrets {
    /// Values are kept and can be restored
    Include,
    /// Only a keyed fingerprint is kept: rotation is seen, values are never stored
    Fingerprint,
    /// Secrets are left out
    Exclude,
}

fn request(options: &Options) -> Result<create::Request, ops::Error> {
    let capture = Capture {
        components: (!options.components.is_empty()).then(|| options.components.clone()),
        selector: options.selector.as_deref().map(create::selector).transpose()?,
        include: options.include.clone(),
        exclude: options.exclude.clone(),
        follow_references: options.no_references.then_some(false),
        secrets: options.secrets.map(|mode| match mode {
            Secrets::Include => SecretsMode::Include,
            Secrets::Fingerprint => SecretsMode::Fingerprint,
            Secrets::Exclude => SecretsMode::Exclude,
        }),
    };
    Ok(create::Request {
        name: options.name.clone(),
        pin: options.pin,
        spec: SnapshotSpec {
            lineage: options.lineage.clone(),
            description: options.description.clone(),
            tags: options.tags.clone(),
            capture: (capture != Capture::default()).then_some(capture),
            ttl: options.ttl.map(duration::kubernetes),
            ..SnapshotSpec::default()
        },
    })
}

pub async fn run(options: Options, context: &mut Context) -> Result<Exit, Failure> {
    let request = request(&options)?;
    let session = context.session().await?;
    let snapshot = match options.dry_run {
        Some(DryRun::Client) => request.object(&session.namespace),
        Some(DryRun::Server) => create::create(&session, &request, true).await?,
        None => create::create(&session, &request, false).await?,
    };
    let name = snapshot.name_any();
    let remark = match options.dry_run {
        Some(DryRun::Client) => " (dry run)",
        Some(DryRun::Server) => " (server dry run)",
        None => "",
    };
    let Some(deadline) = options.wait else {
        return print(&options, context, &snapshot, &format!("created{remark}"));
    };
    if options.output.is_none() {
        context.out.line(format_args!("snapshot.backstep.dev/{name} created"))?;
        context.out.finish()?;
    }
    let spinner = context.out.spinner(format!("waiting for snapshot {name}"));
    let ready = wait::ready(&session, &name, deadline, |state| {
        let doing = wait::progress(state).unwrap_or_else(|| "no operator has looked at it yet".to_owned());
        spinner.set_message(format!("snapshot {name} is {:?}: {doing}", reference::phase(state)));
    })
    .await;
    spinner.finish_and_clear();
    let ready = ready?;
    let objects = ready
        .status
        .as_ref()
        .and_then(|s| s.objects.clone())
        .unwrap_or_default();
    let version = reference::versioned(&ready).unwrap_or_default();
    print(
        &options,
        context,
        &ready,
        &format!(
            "is ready: {version}, {} objects, {} unchanged",
            objects.captured, objects.unchanged
        ),
    )
}

fn print(
    options: &Options,
    context: &mut Context,
    snapshot: &crate::api::Snapshot,
    what: &str,
) -> Result<Exit, Failure> {
    let name = snapshot
        .metadata
        .name
        .clone()
        .or_else(|| snapshot.metadata.generate_name.clone().map(|p| format!("{p}*")));
    let name = format!("snapshot.backstep.dev/{}", name.unwrap_or_default());
    match options.output {
        None => context.out.line(format_args!("{name} {what}"))?,
        Some(Format::Name) => context.out.line(name)?,
        Some(format @ (Format::Json | Format::Yaml)) => {
            context.out.objects(format, std::slice::from_ref(snapshot), false)?;
        }
        Some(format @ (Format::Table | Format::Wide)) => {
            let wide = format == Format::Wide;
            context
                .out
                .table(&super::header(false, wide), [super::row(snapshot, false, wide)])?;
        }
    }
    Ok(Exit::Ok)
}

#[cfg(test)]
mod tests {
    use super::*;
    use clap::Parser;

    #[derive(Parser)]
    struct Alone {
        #[command(flatten)]
        options: Options,
    }

    fn read(args: &[&str]) -> Result<create::Request, String> {
        let args = std::iter::once("create").chain(args.iter().copied());
        let parsed = Alone::try_parse_from(args).map_err(|e| e.to_string())?;
        request(&parsed.options).map_err(|e| e.to_string())
    }

    #[test]
    fn without_flags_the_spec_is_empty_so_that_the_defaults_are_the_clusters() {
        let request = read(&["before"]).unwrap();
        assert_eq!(request.spec, SnapshotSpec::default());
        assert_eq!(request.name.as_deref(), Some("before"));
    }

    #[test]
    fn flags_reach_the_spec() {
        let args = "--lineage shop --tag a --tag b --component workloads,Images --selector x=y --exclude Secret/*-tls --secrets fingerprint --ttl 30d --pin --no-references";
        let request = read(&args.split(' ').collect::<Vec<_>>()).unwrap();
        let capture = request.spec.capture.unwrap();
        assert_eq!(capture.components, Some(vec![Component::Workloads, Component::Images]));
        assert_eq!(capture.exclude[0].names, ["*-tls"]);
        assert_eq!(capture.secrets, Some(SecretsMode::Fingerprint));
        assert_eq!(capture.follow_references, Some(false));
        assert_eq!((request.spec.ttl.as_deref(), request.pin), (Some("720h"), true));
        assert_eq!(request.spec.tags, ["a", "b"]);
    }

    #[test]
    fn wait_takes_an_optional_time_that_never_eats_the_name() {
        let parsed = Alone::try_parse_from(["create", "--wait", "web"]).unwrap_or_else(|e| panic!("{e}"));
        assert_eq!(
            (parsed.options.wait, parsed.options.name.as_deref()),
            (Some(Duration::from_secs(600)), Some("web"))
        );
        let parsed = Alone::try_parse_from(["create", "--wait=5m"]).unwrap_or_else(|e| panic!("{e}"));
        assert_eq!(parsed.options.wait, Some(Duration::from_secs(300)));
    }

    #[test]
    fn what_makes_no_sense_is_refused_before_any_call() {
        for args in [
            vec!["--ttl", "0s"],
            vec!["--ttl", "1w"],
            vec!["--component", "Everything"],
            vec!["--include", "*"],
            vec!["--tag", "a b"],
            vec!["--wait", "--dry-run=client"],
        ] {
            assert!(read(&args).is_err(), "{args:?}");
        }
    }
}
