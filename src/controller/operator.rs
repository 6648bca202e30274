//! The operator process: waits for what must be in place, leads, works, and stops in order.

use std::{pin::pin, process::ExitCode, sync::Arc, time::Duration};

use futures::{FutureExt as _, StreamExt as _};
use kube::runtime::events::{Recorder, Reporter};
use tokio::signal::unix::{SignalKind, signal};
use tokio_util::sync::CancellationToken;

use super::{
    approval_policy, approval_request,
    context::{Context, Guard},
    rollback_request,
    snapshot::{self, queue::Captures},
    store::{Location, Store},
};
use crate::{
    api::names,
    cluster::{
        client,
        guard::{self, published::Published},
        lease::{Election, LeaseOptions},
    },
    config::RunOptions,
    telemetry::{
        admin::{self, AdminState, Readiness},
        logs,
        metrics::Telemetry,
    },
};

/// How often the guard is looked at.
const GUARD_EVERY: Duration = Duration::from_secs(30);
const GUARD_EVERY_WHILE_MISSING: Duration = Duration::from_secs(1);
/// How long changes of the guard are gathered.
const GUARD_BURST: Duration = Duration::from_millis(200);
/// How long a capture under way may still take at shutdown.
const SHUTDOWN_GRACE: Duration = Duration::from_secs(20);
const LEASE_DURATION: Duration = Duration::from_secs(15);
const LEASE_RENEW: Duration = Duration::from_secs(3);

/// Runs the operator until it is told to stop. The exit code is 0 after a signal, 1 after an error or a lost Lease, 2 for bad options.
pub fn main(options: RunOptions) -> ExitCode {
    if let Err(error) = logs::start(options.log_format, &options.log_level) {
        eprintln!("backstep: {error:#}");
        return ExitCode::from(2);
    }
    let runtime = match tokio::runtime::Builder::new_multi_thread().enable_all().build() {
        Ok(runtime) => runtime,
        Err(error) => {
            tracing::error!(%error, "cannot start");
            return ExitCode::FAILURE;
        }
    };
    let code = match runtime.block_on(run(options)) {
        Ok(code) => code,
        Err(error) => {
            tracing::error!(error = format!("{error:#}"), "the operator stops");
            ExitCode::FAILURE
        }
    };
    // What still runs has had its grace.
    runtime.shutdown_timeout(Duration::from_secs(1));
    code
}

async fn run(options: RunOptions) -> anyhow::Result<ExitCode> {
    let location: Location = options.store.parse().map_err(anyhow::Error::msg)?;
    let config = client::config(options.kubeconfig.as_deref(), options.context.as_deref()).await?;
    let api = client::client(config)?;
    let telemetry = Arc::new(Telemetry::new());
    let readiness = Readiness::new();
    let stop = CancellationToken::new();
    let state = AdminState {
        telemetry: Arc::clone(&telemetry),
        readiness: readiness.clone(),
    };
    let (address, _admin) = admin::serve(options.admin_address, state, stop.clone().cancelled_owned()).await?;
    tracing::info!(%address, version = env!("CARGO_PKG_VERSION"), "the admin server listens");
    stop_on_signal(stop.clone())?;

    let identity = options
        .identity
        .clone()
        .unwrap_or_else(|| format!("backstep-{:08x}", rand::random::<u32>()));
    let recorder = Recorder::new(
        api.clone(),
        Reporter {
            controller: names::GROUP.into(),
            instance: Some(identity.clone()),
        },
    );
    let store = Store::new(api.clone(), location, &options);
    let (captures, ended) = Captures::new();
    let lease = LeaseOptions {
        namespace: options.namespace.clone(),
        name: names::OPERATOR.into(),
        identity,
        duration: LEASE_DURATION,
        renew_every: LEASE_RENEW,
    };
    let context = Arc::new(Context::new(
        api.clone(),
        options,
        telemetry.metrics.clone(),
        store,
        captures,
        recorder,
    ));

    let watch_guard = tokio::spawn(watch_guard(Arc::clone(&context), readiness));
    if !until(&stop, wait_for_guard(&context)).await {
        return Ok(ExitCode::SUCCESS);
    }
    let mut election = Election::new(api, lease);
    if !until(&stop, election.acquire()).await {
        return Ok(ExitCode::SUCCESS);
    }
    tracing::info!("this process leads");
    context.metrics.leader.set(1);

    let work = tokio::spawn(lead(Arc::clone(&context), ended, stop.clone()));
    let lost = tokio::select! {
        () = election.hold() => true,
        () = stop.cancelled() => false,
    };
    if lost {
        // Somebody else may already be working: nothing more may be written from here.
        anyhow::bail!("leadership was lost");
    }
    tracing::info!("stopping");
    let _ = tokio::time::timeout(SHUTDOWN_GRACE, work).await;
    watch_guard.abort();
    election.release().await;
    Ok(ExitCode::SUCCESS)
}

/// Everything that only the leader does; ends after `stop`.
async fn lead(
    context: Arc<Context>,
    ended: tokio::sync::mpsc::UnboundedReceiver<(String, String)>,
    stop: CancellationToken,
) {
    let opener = Arc::clone(&context);
    let open = async move {
        opener.store.open().await;
        if let Err(error) = opener.store.publish_location().await {
            tracing::warn!(%error, "administrators' tools will not find the store by themselves");
        }
    };
    let opening = tokio::spawn(open);
    let publishing = tokio::spawn(publish_guard(Arc::clone(&context)));
    let maintenance = tokio::spawn(snapshot::maintenance::run(Arc::clone(&context), stop.clone()));
    tokio::join!(
        snapshot::run(Arc::clone(&context), ended, stop.clone()),
        approval_policy::run(Arc::clone(&context), stop.clone()),
        approval_request::run(Arc::clone(&context), stop.clone()),
        rollback_request::run(context, stop)
    );
    opening.abort();
    publishing.abort();
    maintenance.abort();
}

async fn wait_for_guard(context: &Context) {
    let mut changes = context.guard.changes();
    let mut announced = Vec::new();
    loop {
        let missing = changes.borrow_and_update().missing.clone();
        if missing.is_empty() {
            return;
        }
        if missing != announced {
            tracing::warn!(
                missing = missing.join("; "),
                "waiting until Backstep is installed completely"
            );
            announced = missing;
        }
        // The context holds the other end.
        if changes.changed().await.is_err() {
            return;
        }
    }
}

/// Publishes what is seen of the guard, for `kubectl backstep doctor`.
async fn publish_guard(context: Arc<Context>) {
    let mut changes = context.guard.changes();
    loop {
        let Guard {
            missing,
            epoch,
            settled,
        } = changes.borrow_and_update().clone();
        let installation = context.options.installation();
        let published = Published {
            installation,
            missing,
            epoch,
            settled,
        };
        let again = match guard::published::publish(&context.client, &published).await {
            Ok(()) => None,
            Err(error) => {
                tracing::warn!(%error, "administrators' tools do not see the state of the guard");
                Some(GUARD_EVERY)
            }
        };
        tokio::select! {
            told = changes.changed() => if told.is_err() { return },
            () = tokio::time::sleep(again.unwrap_or_default()), if again.is_some() => {}
        }
    }
}

/// Keeps the guard's state and `/readyz` up to date: at intervals, and whenever something of the guard changes.
async fn watch_guard(context: Arc<Context>, readiness: Readiness) {
    let mut changes = pin!(guard::changes(&context.client));
    readiness.set(context.guard.missing());
    loop {
        let missing = context.survey_guard().await.missing;
        let every = if missing.is_empty() {
            GUARD_EVERY
        } else {
            GUARD_EVERY_WHILE_MISSING
        };
        readiness.set(missing);
        // A burst of changes is one.
        tokio::time::sleep(GUARD_BURST).await;
        if let Ok(None) = tokio::time::timeout(every, changes.next()).await {
            tokio::time::sleep(every).await;
        }
        while changes.next().now_or_never().flatten().is_some() {}
    }
}

/// Whether `work` ended before `stop`.
async fn until(stop: &CancellationToken, work: impl Future<Output = ()>) -> bool {
    tokio::select! {
        () = work => true,
        () = stop.cancelled() => false,
    }
}

fn stop_on_signal(stop: CancellationToken) -> anyhow::Result<()> {
    let mut terminate = signal(SignalKind::terminate())?;
    let mut interrupt = signal(SignalKind::interrupt())?;
    tokio::spawn(async move {
        tokio::select! {
            _ = terminate.recv() => {}
            _ = interrupt.recv() => {}
        }
        stop.cancel();
    });
    Ok(())
}
