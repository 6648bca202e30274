//! The controller of Snapshots.

mod apply;
pub mod capture;
mod gather;
pub mod maintenance;
pub mod queue;
mod references;
mod status;

use std::{sync::Arc, time::Duration};

use futures::{StreamExt as _, TryStreamExt as _};
use kube::{
    Api, ResourceExt as _,
    runtime::{
        WatchStreamExt as _,
        controller::{Action, Config, Controller},
        reflector::{self, ObjectRef},
        watcher,
    },
};
use tokio::sync::{Mutex, mpsc::UnboundedReceiver};
use tokio_stream::wrappers::UnboundedReceiverStream;
use tokio_util::sync::CancellationToken;

use crate::{
    api::Snapshot,
    capture::Catalog,
    cluster::{self, Class},
    controller::context::Context,
    domain::lifecycle,
    telemetry::metrics::ReconcileError,
};

/// Snapshots reconciled at once.
const CONCURRENCY: u16 = 16;

/// Runs the controller and its captures until `stop`; captures under way are given the time to end.
pub async fn run(context: Arc<Context>, ended: UnboundedReceiver<(String, String)>, stop: CancellationToken) {
    let catalog = Arc::new(Mutex::new(Catalog::default()));
    let for_passes = Arc::clone(&context);
    let passes = tokio::spawn(context.captures.clone().run(stop.clone(), move |requests| {
        let (context, catalog) = (Arc::clone(&for_passes), Arc::clone(&catalog));
        async move { capture::pass(&context, &catalog, requests).await }
    }));

    let api: Api<Snapshot> = Api::all(context.client.clone());
    let (reader, writer) = reflector::store();
    let seen = Arc::clone(&context);
    let changes = watcher(api, watcher::Config::default().page_size(500).any_semantic())
        .default_backoff()
        .inspect_ok(move |event| match event {
            watcher::Event::Delete(snapshot) => apply::released(&seen, snapshot),
            watcher::Event::Apply(snapshot) | watcher::Event::InitApply(snapshot) => apply::expected(&seen, snapshot),
            watcher::Event::Init | watcher::Event::InitDone => {}
        })
        // Half of an object's size, and never read.
        .modify(|snapshot| {
            snapshot.managed_fields_mut().clear();
            snapshot.annotations_mut().clear();
        })
        .reflect(writer)
        .applied_objects();
    let ended = UnboundedReceiverStream::new(ended).map(|(namespace, name)| ObjectRef::new(&name).within(&namespace));
    Controller::for_stream(changes, reader)
        .with_config(Config::default().concurrency(CONCURRENCY))
        .reconcile_on(ended)
        .graceful_shutdown_on(stop.cancelled_owned())
        .run(reconcile, on_error, context)
        .for_each(|_| futures::future::ready(()))
        .await;
    // The pass under way ends; nothing new starts.
    if let Err(error) = passes.await {
        tracing::warn!(%error, "the captures stopped early");
    }
}

async fn reconcile(snapshot: Arc<Snapshot>, context: Arc<Context>) -> Result<Action, cluster::Error> {
    let outcome = step(&snapshot, &context).await;
    // Whatever came of it: a pass need not wait for this one any more.
    context.captures.expect_no_more(&snapshot.uid().unwrap_or_default());
    outcome
}

async fn step(snapshot: &Arc<Snapshot>, context: &Context) -> Result<Action, cluster::Error> {
    let observed = gather::observe(snapshot, context).await;
    let step = lifecycle::next(&observed.facts(snapshot, context));
    let outcome = apply::step(step, observed, snapshot, context).await?;
    status::publish(snapshot, outcome, context).await
}

#[allow(clippy::needless_pass_by_value)]
fn on_error(snapshot: Arc<Snapshot>, error: &cluster::Error, context: Arc<Context>) -> Action {
    let class = error.class();
    context
        .metrics
        .reconcile_errors
        .get_or_create(&ReconcileError {
            kind: "Snapshot",
            class: class.label(),
        })
        .inc();
    // A changed or vanished object comes back by itself.
    if !error.is_conflict() && !error.is_not_found() {
        tracing::warn!(namespace = snapshot.namespace(), name = snapshot.name_any(), class = class.label(), %error, "reconcile failed");
    }
    match class {
        Class::Transient => Action::requeue(jittered(Duration::from_millis(500))),
        Class::Waiting | Class::Invalid | Class::Forbidden | Class::Corrupt => {
            Action::requeue(jittered(Duration::from_secs(30)))
        }
    }
}

/// Up to half more, so that what failed together is not tried again together.
fn jittered(delay: Duration) -> Duration {
    delay.mul_f64(1.0 + rand::random::<f64>() / 2.0)
}
