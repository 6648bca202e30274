//! A cluster with people who ask and people who approve, and the operator's own way of asking them.

use anyhow::{Context as _, Result, ensure};
use backstep::{
    api::{
        ApprovalRequest, RollbackRequest,
        approval_request::{ApprovalPhase, RecordedDecision},
    },
    config::RunOptions,
    controller::{
        context::Context,
        snapshot::queue::Captures,
        store::{Location, Store as ContentStore},
    },
    telemetry::metrics::Telemetry,
};
use clap::Parser;
use kube::{
    Api, Client, ResourceExt as _,
    runtime::events::{Recorder, Reporter},
};
use serde_json::{Value, json};
use testbed::{ClusterOptions, Ran, User, wait_until};

use crate::support::{Installed, OPERATOR_NAMESPACE, PATIENCE, Store};

/// Namespace of the application.
pub const SHOP: &str = "shop";

/// Who is who. Everybody may try to ask and to decide in `shop`; what counts is the verb, the lists and who asked.
const PEOPLE: &str = r#"
apiVersion: v1
kind: Namespace
metadata: {name: shop, labels: {env: prod}}
---
apiVersion: v1
kind: Namespace
metadata: {name: ci}
---
apiVersion: v1
kind: ServiceAccount
metadata: {name: robot, namespace: shop}
---
apiVersion: v1
kind: ServiceAccount
metadata: {name: robot, namespace: ci}
---
apiVersion: rbac.authorization.k8s.io/v1
kind: RoleBinding
metadata: {name: ask, namespace: shop}
roleRef: {apiGroup: rbac.authorization.k8s.io, kind: ClusterRole, name: admin}
subjects:
  - {kind: Group, apiGroup: rbac.authorization.k8s.io, name: "system:authenticated"}
  - {kind: Group, apiGroup: rbac.authorization.k8s.io, name: sre-leads}
---
apiVersion: v1
kind: ConfigMap
metadata: {name: web, namespace: shop}
data: {mode: v1}
---
apiVersion: rbac.authorization.k8s.io/v1
kind: RoleBinding
metadata: {name: decide, namespace: shop}
roleRef: {apiGroup: rbac.authorization.k8s.io, kind: ClusterRole, name: backstep-approver}
subjects: [{kind: Group, apiGroup: rbac.authorization.k8s.io, name: "system:authenticated"}]
---
apiVersion: rbac.authorization.k8s.io/v1
kind: ClusterRole
metadata: {name: approve}
rules:
  - apiGroups: [backstep.dev]
    resources: [approvalstages]
    verbs: [approve, approve-automated, review]
---
apiVersion: rbac.authorization.k8s.io/v1
kind: ClusterRoleBinding
metadata: {name: approve}
roleRef: {apiGroup: rbac.authorization.k8s.io, kind: ClusterRole, name: approve}
subjects:
  - {kind: Group, apiGroup: rbac.authorization.k8s.io, name: sre-leads}
  - {kind: Group, apiGroup: rbac.authorization.k8s.io, name: owners}
  - {kind: User, apiGroup: rbac.authorization.k8s.io, name: eve}
  - {kind: ServiceAccount, namespace: shop, name: robot}
  - {kind: ServiceAccount, namespace: ci, name: robot}
---
apiVersion: rbac.authorization.k8s.io/v1
kind: ClusterRoleBinding
metadata: {name: approve-gil}
roleRef: {apiGroup: rbac.authorization.k8s.io, kind: ClusterRole, name: approve}
subjects: [{kind: User, apiGroup: rbac.authorization.k8s.io, name: gil}]
---
apiVersion: rbac.authorization.k8s.io/v1
kind: ClusterRole
metadata: {name: break-glass-in-shop}
rules:
  - {apiGroups: [backstep.dev], resources: [approvalscopes], resourceNames: [shop], verbs: [break-glass]}
---
apiVersion: rbac.authorization.k8s.io/v1
kind: ClusterRoleBinding
metadata: {name: break-glass-in-shop}
roleRef: {apiGroup: rbac.authorization.k8s.io, kind: ClusterRole, name: break-glass-in-shop}
subjects: [{kind: User, apiGroup: rbac.authorization.k8s.io, name: alice}]
"#;

/// The policy that applies where no other does: one of the leads.
pub fn prod() -> Value {
    json!({
        "priority": 10,
        "stages": [
            {"name": "sre", "required": 1,
             "approvers": {"groups": ["sre-leads"], "serviceAccounts": ["ci/robot", "shop/robot"], "users": ["gil"]}},
        ],
        "approvalTTL": "30m",
        "aliases": [{"name": "alice", "identities": ["alice", "oidc:alice"]}],
    })
}

/// Somebody of the leads.
pub fn lead(name: &str) -> User {
    User::new(name, ["sre-leads"])
}

/// Somebody of the owners.
pub fn owner(name: &str) -> User {
    User::new(name, ["owners"])
}

/// The one who asks; a lead too, so that nothing but the count keeps her from approving.
pub fn alice() -> User {
    lead("alice")
}

/// Everything a test of approval needs.
pub struct Court {
    /// The cluster.
    pub installed: Installed,
    /// What the operator's controllers are given, with the operator's own rights.
    pub context: Context,
}

#[derive(Parser)]
struct Flags {
    #[command(flatten)]
    options: RunOptions,
}

impl Court {
    /// A cluster with the people and the policy [`prod`].
    pub async fn open(name: &str, arguments: &[&str]) -> Result<Self> {
        let options = ClusterOptions {
            with_scheduler: false,
            with_fake_kubelet: false,
            ..ClusterOptions::named(name)
        };
        let installed = Installed::start_with(options, Store::Directory, arguments).await?;
        installed.given(PEOPLE).await?;
        let client = installed
            .cluster
            .service_account_client(OPERATOR_NAMESPACE, "backstep")
            .await?;
        let court = Self {
            context: Self::context(client, arguments)?,
            installed,
        };
        court.policy("prod", &prod()).await?;
        // What there is to go back to, and what is different since.
        court.installed.snapshot(SHOP, "before", &json!({})).await?;
        let change = [
            "patch",
            "configmap",
            "web",
            "-n",
            SHOP,
            "-p",
            r#"{"data":{"mode":"v2"}}"#,
        ];
        court
            .installed
            .cluster
            .kubectl(&User::admin(), &change, None)
            .await?
            .success()?;
        Ok(court)
    }

    /// A context with the operator's rights whose guard settles as good as at once.
    pub fn context(client: Client, arguments: &[&str]) -> Result<Context> {
        let base = ["backstep", "--guard-settle", "1ms"];
        let options = Flags::try_parse_from(base.iter().chain(arguments))?.options;
        let location: Location = options.store.parse().map_err(anyhow::Error::msg)?;
        let store = ContentStore::new(client.clone(), location, &options);
        let reporter = Reporter {
            controller: "backstep.dev".into(),
            instance: Some("test".into()),
        };
        let recorder = Recorder::new(client.clone(), reporter);
        let metrics = Telemetry::new().metrics;
        Ok(Context::new(
            client,
            options,
            metrics,
            store,
            Captures::new().0,
            recorder,
        ))
    }

    /// Writes a policy as the platform team.
    pub async fn policy(&self, name: &str, spec: &Value) -> Result<()> {
        let manifest = json!({
            "apiVersion": "backstep.dev/v1alpha1", "kind": "ApprovalPolicy", "metadata": {"name": name}, "spec": spec,
        });
        self.installed.given(&manifest.to_string()).await
    }

    /// A `RollbackRequest` that is planned and approved but not executed.
    pub fn rollback(name: &str, more: &Value) -> Value {
        let mut spec = json!({"target": {"snapshot": "before"}, "suspend": true});
        for (field, value) in more.as_object().into_iter().flatten() {
            spec[field] = value.clone();
        }
        json!({
            "apiVersion": "backstep.dev/v1alpha1", "kind": "RollbackRequest",
            "metadata": {"name": name, "namespace": SHOP}, "spec": spec,
        })
    }

    /// Asks as `user`.
    pub async fn request(&self, user: &User, name: &str, more: &Value) -> Result<()> {
        let manifest = Self::rollback(name, more).to_string();
        self.installed.apply(user, &manifest).await?.success().map(drop)
    }

    /// Waits until the operator has asked for approval, with another `ApprovalRequest` than `but`.
    pub async fn asked(&self, name: &str, but: Option<&ApprovalRequest>) -> Result<(RollbackRequest, ApprovalRequest)> {
        let admin = self.installed.admin().await?;
        let requests: Api<RollbackRequest> = Api::namespaced(admin.clone(), SHOP);
        let approvals: Api<ApprovalRequest> = Api::namespaced(admin, SHOP);
        let found = wait_until(PATIENCE, &format!("{name} to be asked for"), async || {
            let request = requests.get(name).await.map_err(|error| error.to_string())?;
            let status = request.status.clone().unwrap_or_default();
            let asked = status.approval.as_ref().map(|approval| approval.request.clone());
            match asked.filter(|asked| but.is_none_or(|but| but.name_any() != *asked)) {
                Some(asked) => match approvals.get(&asked).await {
                    Ok(approval) => Ok(Some((request, approval))),
                    Err(error) => Err(error.to_string()),
                },
                None => Err(serde_json::to_string_pretty(&status).unwrap_or_default()),
            }
        })
        .await;
        found.with_context(|| format!("operator log:\n{}", self.installed.log()))
    }

    /// A request by alice, asked for approval.
    pub async fn opened(&self, name: &str, more: &Value) -> Result<(RollbackRequest, ApprovalRequest)> {
        self.request(&alice(), name, more).await?;
        self.asked(name, None).await
    }

    /// Withdraws a request, as who asked.
    pub async fn cancel(&self, name: &str) -> Result<()> {
        let spec = r#"{"spec":{"cancel":true}}"#;
        let patch = ["patch", "rollbackrequest", name, "-n", SHOP, "--type=merge", "-p", spec];
        let ran = self.installed.cluster.kubectl(&alice(), &patch, None).await?;
        ran.success().map(drop)
    }

    /// What an `ApprovalDecision` says, with fields of one's own.
    pub fn decision(approval: &ApprovalRequest, stage: &str, decision: &str, more: &Value) -> Value {
        let mut spec = json!({
            "requestRef": {"name": approval.name_any(), "uid": approval.uid()},
            "planDigest": approval.spec.plan_digest, "policyName": approval.spec.policy.name,
            "stage": stage, "decision": decision, "comment": format!("{decision} it"),
        });
        for (field, value) in more.as_object().into_iter().flatten() {
            spec[field] = value.clone();
        }
        json!({
            "apiVersion": "backstep.dev/v1alpha1", "kind": "ApprovalDecision",
            "metadata": {"generateName": "d-", "namespace": SHOP}, "spec": spec,
        })
    }

    /// Decides as a person.
    pub async fn decide(
        &self,
        user: &User,
        approval: &ApprovalRequest,
        stage: &str,
        decision: &str,
        more: &Value,
    ) -> Result<Ran> {
        let manifest = Self::decision(approval, stage, decision, more).to_string();
        let create = ["create", "-f", "-"];
        self.installed
            .cluster
            .kubectl(user, &create, Some(&manifest))
            .await?
            .success()
    }

    /// Decides as a `ServiceAccount`.
    pub async fn decide_as_robot(&self, namespace: &str, approval: &ApprovalRequest, stage: &str) -> Result<()> {
        let kubeconfig = self
            .installed
            .cluster
            .service_account_kubeconfig(namespace, "robot")
            .await?;
        let manifest = Self::decision(approval, stage, "Approve", &json!({})).to_string();
        let kubectl = testbed::binary("kubectl")?;
        let create = ["create", "-f", "-"];
        let ran = self
            .installed
            .cluster
            .run(&kubectl, &kubeconfig, &create, Some(&manifest))
            .await?;
        ran.success().map(drop)
    }

    /// Waits until an `ApprovalRequest` is as it should be.
    pub async fn until(
        &self,
        name: &str,
        what: &str,
        is: impl Fn(&ApprovalRequest) -> bool,
    ) -> Result<ApprovalRequest> {
        let api: Api<ApprovalRequest> = Api::namespaced(self.installed.admin().await?, SHOP);
        let found = wait_until(PATIENCE, &format!("{name} to be {what}"), async || {
            let approval = api.get(name).await.map_err(|error| error.to_string())?;
            if is(&approval) {
                Ok(Some(approval))
            } else {
                Err(serde_json::to_string_pretty(&approval.status).unwrap_or_default())
            }
        })
        .await;
        found.with_context(|| format!("operator log:\n{}", self.installed.log()))
    }

    /// Waits for a phase.
    pub async fn phase(&self, approval: &ApprovalRequest, phase: ApprovalPhase) -> Result<ApprovalRequest> {
        self.until(&approval.name_any(), &format!("{phase:?}"), |now| {
            now.status.as_ref().and_then(|status| status.phase) == Some(phase)
        })
        .await
    }

    /// Waits until a number of decisions is recorded.
    pub async fn recorded(&self, approval: &ApprovalRequest, count: usize) -> Result<Vec<RecordedDecision>> {
        let found = self
            .until(&approval.name_any(), &format!("of {count} decisions"), |now| {
                decisions(now).len() == count
            })
            .await?;
        Ok(decisions(&found))
    }

    /// Events about an object, as `reason: note`.
    pub async fn events(&self, name: &str) -> Result<Vec<String>> {
        let selector = format!("involvedObject.name={name}");
        let get = ["get", "events", "-n", SHOP, "--field-selector", &selector, "-o", "json"];
        let list = self
            .installed
            .cluster
            .kubectl(&User::admin(), &get, None)
            .await?
            .json()?;
        let items = list["items"].as_array().cloned().unwrap_or_default();
        let text = |event: &Value| {
            format!(
                "{}: {}",
                event["reason"].as_str().unwrap_or_default(),
                event["message"].as_str().unwrap_or_default()
            )
        };
        Ok(items.iter().map(text).collect())
    }

    /// Waits for an event that contains `text`.
    pub async fn event(&self, name: &str, text: &str) -> Result<()> {
        wait_until(PATIENCE, &format!("an event about {name}: {text}"), async || {
            let events = self.events(name).await?;
            ensure!(events.iter().any(|event| event.contains(text)), "{events:#?}");
            Ok::<_, anyhow::Error>(Some(()))
        })
        .await
    }
}

/// The recorded decisions.
pub fn decisions(approval: &ApprovalRequest) -> Vec<RecordedDecision> {
    let status = approval.status.clone().unwrap_or_default();
    status.decisions.unwrap_or_default()
}

/// Status, reason and message of a condition.
pub fn condition(approval: &ApprovalRequest, type_: &str) -> (String, String, String) {
    let status = approval.status.clone().unwrap_or_default();
    status
        .conditions
        .into_iter()
        .find(|condition| condition.type_ == type_)
        .map_or_else(Default::default, |found| (found.status, found.reason, found.message))
}
