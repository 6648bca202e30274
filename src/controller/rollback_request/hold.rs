//! An execution keeps its request from going before it is over: deleting the request cancels it, and what it did is recorded.

use k8s_openapi::api::core::v1::Namespace;
use kube::{
    Api, ResourceExt as _,
    api::{Patch, PatchParams},
};
use serde_json::json;

use crate::{
    api::{ApprovalRequest, RollbackRequest, names},
    cluster::{self, call},
    controller::context::Context,
};

/// Tries until a finalizer is set or taken beside others who change the object.
const TRIES: usize = 8;

/// What came of it.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Taken {
    /// The request stays until it is released.
    Held,
    /// It is being deleted, or gone: nothing may begin.
    Leaving,
}

/// Whether an execution holds `request`.
pub(super) fn is_held(request: &RollbackRequest) -> bool {
    request.finalizers().iter().any(|one| one == names::EXECUTION_FINALIZER)
}

/// Holds the request.
///
/// # Errors
/// Those of the API server.
pub(super) async fn take(context: &Context, request: &RollbackRequest) -> cluster::Result<Taken> {
    for _ in 0..TRIES {
        let Some(live) = read(context, request).await? else {
            return Ok(Taken::Leaving);
        };
        if live.metadata.deletion_timestamp.is_some() {
            return Ok(Taken::Leaving);
        }
        if is_held(&live) {
            return Ok(Taken::Held);
        }
        let mut finalizers = live.finalizers().to_vec();
        finalizers.push(names::EXECUTION_FINALIZER.to_owned());
        if write(context, &live, &finalizers).await? {
            return Ok(Taken::Held);
        }
    }
    Err(contended(request))
}

/// Lets the request go, where it is held.
///
/// # Errors
/// Those of the API server.
pub(super) async fn release(context: &Context, request: &RollbackRequest) -> cluster::Result<()> {
    if !is_held(request) {
        return Ok(());
    }
    for _ in 0..TRIES {
        let Some(live) = read(context, request).await?.filter(is_held) else {
            return Ok(());
        };
        let mut finalizers = live.finalizers().to_vec();
        finalizers.retain(|one| one != names::EXECUTION_FINALIZER);
        if write(context, &live, &finalizers).await? {
            return Ok(());
        }
    }
    Err(contended(request))
}

/// Why nothing of what was written can be taken back, although the request may want it: it leaves together with what that would need.
///
/// # Errors
/// Those of the API server.
pub(super) async fn leaves_with_all(context: &Context, request: &RollbackRequest) -> cluster::Result<Option<String>> {
    let name = request.namespace().unwrap_or_default();
    let namespaces: Api<Namespace> = Api::all(context.client.clone());
    let what = format!("get namespace {name}");
    let namespace = call::repeat(&what, call::DEADLINE, || namespaces.get_opt(&name)).await?;
    if namespace.is_none_or(|namespace| namespace.metadata.deletion_timestamp.is_some()) {
        return Ok(Some(format!("the namespace {name} is being deleted")));
    }
    let Some(asked) = request.status.as_ref().and_then(|status| status.approval.as_ref()) else {
        return Ok(None);
    };
    let approvals: Api<ApprovalRequest> = Api::namespaced(context.client.clone(), &name);
    let what = format!("get approvalrequest {name}/{}", asked.request);
    let found = call::repeat(&what, call::DEADLINE, || approvals.get_opt(&asked.request)).await?;
    Ok(found
        .is_none()
        .then(|| format!("its approval, the ApprovalRequest {}, was deleted", asked.request)))
}

fn api(context: &Context, request: &RollbackRequest) -> Api<RollbackRequest> {
    Api::namespaced(context.client.clone(), &request.namespace().unwrap_or_default())
}

/// The same request as it is now.
async fn read(context: &Context, request: &RollbackRequest) -> cluster::Result<Option<RollbackRequest>> {
    let (api, name) = (api(context, request), request.name_any());
    let what = format!("get rollbackrequest {name}");
    let live = call::repeat(&what, call::DEADLINE, || api.get_opt(&name)).await?;
    Ok(live.filter(|live| live.uid() == request.uid()))
}

/// Whether they were written; not where somebody changed the object in between.
async fn write(context: &Context, live: &RollbackRequest, finalizers: &[String]) -> cluster::Result<bool> {
    let (api, name) = (api(context, live), live.name_any());
    let patch = Patch::Merge(json!({"metadata": {
        "uid": live.uid(), "resourceVersion": live.resource_version(), "finalizers": finalizers,
    }}));
    let params = PatchParams {
        field_manager: Some(names::FIELD_MANAGER.into()),
        ..PatchParams::default()
    };
    let what = format!("set the finalizers of rollbackrequest {name}");
    match call::repeat(&what, call::DEADLINE, || api.patch(&name, &params, &patch)).await {
        Ok(_) => Ok(true),
        // Changed, gone, or deleted in between: the next look tells.
        Err(error) if error.is_conflict() || error.is_not_found() => Ok(false),
        Err(error) if error.code() == Some(422) => {
            let now = read(context, live).await?;
            if now.is_none_or(|now| now.metadata.deletion_timestamp.is_some()) {
                return Ok(false);
            }
            Err(error)
        }
        Err(error) => Err(error),
    }
}

fn contended(request: &RollbackRequest) -> cluster::Error {
    let name = request.name_any();
    cluster::Error::Config(format!(
        "rollbackrequest {name} is changed by others all the time; trying again"
    ))
}
