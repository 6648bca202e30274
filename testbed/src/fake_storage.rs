//! A stand-in for a storage driver: claims of its classes are bound to volumes that hold nothing, so that workloads
//! with claims finish their rollouts. It takes no snapshots and restores none: a claim with a data source stays pending.
//!
//! With the real controller-manager, which does the binding. The class [`CLASS`] is the default one and binds at once;
//! [`LATE_CLASS`] binds when the first Pod is scheduled.

use std::sync::Arc;
use std::time::Duration;

use anyhow::{Context as _, Result};
use futures::StreamExt as _;
use k8s_openapi::api::core::v1::{PersistentVolume, PersistentVolumeClaim};
use k8s_openapi::api::storage::v1::{CSIDriver, StorageClass};
use kube::api::{DeleteParams, Patch, PatchParams, PostParams};
use kube::runtime::controller::Action;
use kube::runtime::{Controller, watcher};
use kube::{Api, Client, ResourceExt as _};
use serde_json::json;
use tracing::debug;

use crate::User;

/// The provisioner of the classes below, and the CSI driver of their volumes.
pub const DRIVER: &str = "testbed.backstep.dev";
/// The default class; its claims are bound at once.
pub const CLASS: &str = "standard";
/// The class whose claims are bound when a Pod that uses them is scheduled.
pub const LATE_CLASS: &str = "standard-late";

const FIELD_MANAGER: &str = "testbed-provisioner";
const SELECTED_NODE: &str = "volume.kubernetes.io/selected-node";
const RETRY: Duration = Duration::from_millis(500);

/// Who the stand-in is to the API server.
pub(crate) fn user() -> User {
    User::new("system:testbed-provisioner", ["system:masters"])
}

/// Makes the driver and its classes known.
pub(crate) async fn register(client: &Client) -> Result<()> {
    let applying = PatchParams::apply(FIELD_MANAGER).force();
    let drivers: Api<CSIDriver> = Api::all(client.clone());
    let driver = json!({
        "apiVersion": "storage.k8s.io/v1", "kind": "CSIDriver", "metadata": {"name": DRIVER},
        "spec": {"attachRequired": false, "podInfoOnMount": false},
    });
    drivers
        .patch(DRIVER, &applying, &Patch::Apply(driver))
        .await
        .context("the fake storage driver is refused")?;
    let classes: Api<StorageClass> = Api::all(client.clone());
    for (name, mode) in [(CLASS, "Immediate"), (LATE_CLASS, "WaitForFirstConsumer")] {
        let default = if name == CLASS { "true" } else { "false" };
        let class = json!({
            "apiVersion": "storage.k8s.io/v1", "kind": "StorageClass",
            "metadata": {"name": name, "annotations": {"storageclass.kubernetes.io/is-default-class": default}},
            "provisioner": DRIVER, "volumeBindingMode": mode, "reclaimPolicy": "Delete",
        });
        classes
            .patch(name, &applying, &Patch::Apply(class))
            .await
            .context("a fake storage class is refused")?;
    }
    Ok(())
}

/// Provides and reclaims volumes; ends only when it is dropped.
pub(crate) async fn run(client: Client) {
    let client = Arc::new(client);
    let claims = Api::<PersistentVolumeClaim>::all((*client).clone());
    let volumes = Api::<PersistentVolume>::all((*client).clone());
    let providing = Controller::new(claims, watcher::Config::default())
        .run(provide, |_, _, _| Action::requeue(RETRY), Arc::clone(&client))
        .for_each(|outcome| async move {
            if let Err(error) = outcome {
                debug!("fake storage, claim: {error}");
            }
        });
    let reclaiming = Controller::new(volumes, watcher::Config::default())
        .run(reclaim, |_, _, _| Action::requeue(RETRY), Arc::clone(&client))
        .for_each(|outcome| async move {
            if let Err(error) = outcome {
                debug!("fake storage, volume: {error}");
            }
        });
    tokio::join!(providing, reclaiming);
}

/// Makes a volume for a claim that waits for one.
async fn provide(claim: Arc<PersistentVolumeClaim>, client: Arc<Client>) -> Result<Action, kube::Error> {
    let done = Action::await_change();
    let Some(spec) = &claim.spec else { return Ok(done) };
    let Some(class_name) = spec.storage_class_name.as_deref().filter(|name| !name.is_empty()) else {
        return Ok(done);
    };
    let settled = spec.volume_name.is_some() || claim.metadata.deletion_timestamp.is_some();
    if settled || spec.data_source.is_some() || spec.data_source_ref.is_some() {
        return Ok(done);
    }
    let classes: Api<StorageClass> = Api::all((*client).clone());
    let Some(class) = classes
        .get_opt(class_name)
        .await?
        .filter(|class| class.provisioner == DRIVER)
    else {
        return Ok(done);
    };
    let late = class.volume_binding_mode.as_deref() == Some("WaitForFirstConsumer");
    if late && !claim.annotations().contains_key(SELECTED_NODE) {
        return Ok(done);
    }
    let uid = claim.uid().unwrap_or_default();
    let size = spec
        .resources
        .as_ref()
        .and_then(|resources| resources.requests.as_ref()?.get("storage"));
    let volume = json!({
        "apiVersion": "v1", "kind": "PersistentVolume",
        "metadata": {"name": format!("pvc-{uid}"), "annotations": {"pv.kubernetes.io/provisioned-by": DRIVER}},
        "spec": {
            "capacity": {"storage": size},
            "accessModes": spec.access_modes,
            "volumeMode": spec.volume_mode,
            "persistentVolumeReclaimPolicy": class.reclaim_policy,
            "storageClassName": class_name,
            "claimRef": {
                "apiVersion": "v1", "kind": "PersistentVolumeClaim",
                "namespace": claim.namespace(), "name": claim.name_any(), "uid": uid,
            },
            "csi": {"driver": DRIVER, "volumeHandle": uid},
        },
    });
    let volumes: Api<PersistentVolume> = Api::all((*client).clone());
    let volume = serde_json::from_value(volume).map_err(kube::Error::SerdeError)?;
    let posting = PostParams {
        field_manager: Some(FIELD_MANAGER.to_owned()),
        ..PostParams::default()
    };
    match volumes.create(&posting, &volume).await {
        Ok(_) => Ok(done),
        Err(kube::Error::Api(status)) if status.is_already_exists() => Ok(done),
        Err(error) => Err(error),
    }
}

/// Removes a volume whose claim is gone, where its policy is to delete it.
async fn reclaim(volume: Arc<PersistentVolume>, client: Arc<Client>) -> Result<Action, kube::Error> {
    let spec = volume.spec.clone().unwrap_or_default();
    let ours = spec.csi.is_some_and(|source| source.driver == DRIVER);
    let phase = volume.status.as_ref().and_then(|status| status.phase.as_deref());
    let unwanted = phase == Some("Released") && spec.persistent_volume_reclaim_policy.as_deref() == Some("Delete");
    if ours && unwanted && volume.metadata.deletion_timestamp.is_none() {
        let volumes: Api<PersistentVolume> = Api::all((*client).clone());
        match volumes.delete(&volume.name_any(), &DeleteParams::default()).await {
            Ok(_) => {}
            Err(kube::Error::Api(status)) if status.is_not_found() => {}
            Err(error) => return Err(error),
        }
    }
    Ok(Action::await_change())
}
