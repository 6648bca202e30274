//! The command line of the test bed: clusters that keep running for a demo, and the build of their programs.

use std::path::Path;
use std::process::ExitCode;

use anyhow::{Context, Result, ensure};
use clap::{Parser, Subcommand};
use testbed::named::{self, Named};
use testbed::{Access, Audit, ClusterOptions, User, binaries};

/// A real Kubernetes on this machine, for the demo and for tests by hand.
#[derive(Parser)]
#[command(name = "testbed", version)]
struct Cli {
    #[command(subcommand)]
    command: Verb,
}

#[derive(Subcommand)]
enum Verb {
    /// Build the programs that are missing, and tell where they are.
    Build,
    /// Start a cluster that keeps running in the background.
    Up {
        #[command(flatten)]
        cluster: Which,
        #[command(flatten)]
        shape: Shape,
    },
    /// End a cluster and remove everything it left.
    Down {
        #[command(flatten)]
        cluster: Which,
        /// End every cluster.
        #[arg(long, conflicts_with = "name")]
        all: bool,
    },
    /// Tell which clusters run.
    List,
    /// Print what a shell needs to use a cluster: eval "$(testbed env --user alice --groups shop-team)".
    Env {
        #[command(flatten)]
        cluster: Which,
        #[command(flatten)]
        who: Who,
    },
    /// Print the path of a kubeconfig file.
    Kubeconfig {
        #[command(flatten)]
        cluster: Which,
        #[command(flatten)]
        who: Who,
        /// A service account that exists, as NAMESPACE/NAME.
        #[arg(long, conflicts_with = "user")]
        service_account: Option<String>,
    },
    /// Let Pods that start with an image from now on run another digest, as if its tag had been pushed again.
    MoveTag {
        #[command(flatten)]
        cluster: Which,
        /// Such as registry.example/web:1.8.
        reference: String,
        /// sha256: and 64 hexadecimal digits.
        digest: String,
    },
    /// Run a cluster until SIGTERM; `up` starts this in the background.
    #[command(hide = true)]
    Supervise {
        #[command(flatten)]
        cluster: Which,
        #[command(flatten)]
        shape: Shape,
    },
}

#[derive(clap::Args)]
struct Which {
    /// The cluster's name.
    #[arg(long, default_value = "default")]
    name: String,
}

#[derive(clap::Args)]
struct Shape {
    /// Write an audit log (audit.jsonl in the cluster's directory).
    #[arg(long)]
    audit: bool,
}

#[derive(clap::Args)]
struct Who {
    /// The user to be; anybody new has no rights until RBAC gives some.
    #[arg(long)]
    user: Option<String>,
    /// The groups of a new user.
    #[arg(long, value_delimiter = ',', requires = "user")]
    groups: Vec<String>,
}

impl Who {
    /// The user with the groups that were given, else the one of this name that the cluster knows, else a new one.
    fn user(&self, access: &Access) -> Result<Option<User>> {
        let Some(name) = &self.user else { return Ok(None) };
        if self.groups.is_empty()
            && let Some(known) = access.users()?.into_iter().find(|user| user.name == *name)
        {
            return Ok(Some(known));
        }
        if *name == User::admin().name && self.groups.is_empty() {
            return Ok(Some(User::admin()));
        }
        Ok(Some(User::new(name, self.groups.clone())))
    }
}

fn main() -> ExitCode {
    match run(Cli::parse().command) {
        Ok(()) => ExitCode::SUCCESS,
        Err(error) => {
            eprintln!("testbed: {error:#}");
            ExitCode::FAILURE
        }
    }
}

fn run(verb: Verb) -> Result<()> {
    match verb {
        Verb::Build => build(),
        Verb::Up { cluster, shape } => up(&cluster.name, &shape),
        Verb::Down { cluster, all } => down(&cluster.name, all),
        Verb::List => list(),
        Verb::Env { cluster, who } => env(&cluster.name, &who),
        Verb::Kubeconfig {
            cluster,
            who,
            service_account,
        } => kubeconfig(&cluster.name, &who, service_account.as_deref()),
        Verb::MoveTag {
            cluster,
            reference,
            digest,
        } => Named::new(&cluster.name)?.open()?.move_tag(&reference, &digest),
        Verb::Supervise { cluster, shape } => {
            let audit = if shape.audit { Audit::Metadata } else { Audit::Off };
            let options = ClusterOptions {
                audit,
                ..ClusterOptions::named(&cluster.name)
            };
            runtime()?.block_on(Named::new(&cluster.name)?.supervise(options))
        }
    }
}

fn runtime() -> Result<tokio::runtime::Runtime> {
    tokio::runtime::Builder::new_multi_thread()
        .enable_all()
        .build()
        .context("cannot start the runtime")
}

fn build() -> Result<()> {
    for (component, path) in binaries::build_all()? {
        match path {
            Ok(path) => println!("{}", path.display()),
            Err(skipped) => println!("{}: {skipped}", component.name()),
        }
    }
    Ok(())
}

fn up(name: &str, shape: &Shape) -> Result<()> {
    let named = Named::new(name)?;
    // Here, where its progress is seen.
    for (_, path) in binaries::build_all()? {
        if let Err(skipped) = path {
            eprintln!("{skipped}");
        }
    }
    let program = std::env::current_exe().context("cannot tell where this program is")?;
    let mut arguments = vec!["supervise", "--name", name];
    arguments.extend(shape.audit.then_some("--audit"));
    let access = named.up(&program, &arguments)?;
    println!("cluster {name:?} runs at {}", access.server());
    println!("use it:  eval \"$({} env --name {name})\"", program.display());
    println!("end it:  {} down --name {name}", program.display());
    Ok(())
}

fn down(name: &str, all: bool) -> Result<()> {
    let wanted = if all { named::list()? } else { vec![Named::new(name)?] };
    for named in &wanted {
        let ran = named.down()?;
        println!(
            "cluster {:?} {}",
            named.name(),
            if ran { "is down" } else { "does not run" }
        );
    }
    if wanted.is_empty() {
        println!("no cluster runs");
    }
    Ok(())
}

fn list() -> Result<()> {
    for named in named::list()? {
        match named.open() {
            Ok(access) => println!(
                "{}\t{}\t{}",
                named.name(),
                access.server(),
                access.directory().display()
            ),
            Err(error) => println!("{}\t{error}", named.name()),
        }
    }
    Ok(())
}

fn env(name: &str, who: &Who) -> Result<()> {
    let access = Named::new(name)?.open()?;
    let chosen = who.user(&access)?;
    let user = chosen.clone().unwrap_or_else(User::admin);
    println!("export KUBECONFIG={}", quoted(&access.kubeconfig(&user)?));
    if chosen.is_none() {
        for user in access.users()? {
            let variable: String = user
                .name
                .chars()
                .map(|c| {
                    if c.is_ascii_alphanumeric() {
                        c.to_ascii_uppercase()
                    } else {
                        '_'
                    }
                })
                .collect();
            println!("export KUBECONFIG_{variable}={}", quoted(&access.kubeconfig(&user)?));
        }
    }
    for tool in ["kubectl", "helm"] {
        match binaries::binary(tool) {
            Ok(path) => {
                let directory = path.parent().context("a program is in a directory")?;
                println!("export PATH={}:\"$PATH\"", quoted(directory));
            }
            Err(error) => eprintln!("{error:#}"),
        }
    }
    Ok(())
}

fn kubeconfig(name: &str, who: &Who, service_account: Option<&str>) -> Result<()> {
    let access = Named::new(name)?.open()?;
    let path = if let Some(account) = service_account {
        let (namespace, account) = account
            .split_once('/')
            .context("--service-account takes NAMESPACE/NAME, such as shop/deployer")?;
        ensure!(
            !namespace.is_empty() && !account.is_empty(),
            "--service-account takes NAMESPACE/NAME"
        );
        runtime()?.block_on(access.service_account_kubeconfig(namespace, account))?
    } else {
        access.kubeconfig(&who.user(&access)?.unwrap_or_else(User::admin))?
    };
    println!("{}", path.display());
    Ok(())
}

/// A path as one word of a shell.
fn quoted(path: &Path) -> String {
    format!("'{}'", path.display().to_string().replace('\'', r"'\''"))
}
