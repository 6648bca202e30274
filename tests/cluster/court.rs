//! A cluster with people who ask and people who approve, and the operator's own way of asking them.

use anyhow::{Context as _, Result, ensure};
use backstep::{
    api::{
        ApprovalRequest, RollbackPlan, RollbackRequest,
        approval_request::{ApprovalPhase, RecordedDecision},
        reference::{ResolvedSnapshot, RiskLevel},
    },
    config::RunOptions,
    controller::{
        approval_request::{self, Asked, Asking},
        context::Context,
        snapshot::queue::Captures,
        store::{Location, Store as ContentStore},
    },
    domain::{
        approval::{Chosen, NoRoute, policy::Traits},
        object::Digest,
    },
    telemetry::metrics::Telemetry,
};
use clap::Parser;
use kube::{
    Api, Client, ResourceExt as _,
    api::PostParams,
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
roleRef: {apiGroup: rbac.authorization.k8s.io, kind: ClusterRole, name: backstep-requester}
subjects: [{kind: Group, apiGroup: rbac.authorization.k8s.io, name: "system:authenticated"}]
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

/// The policy that applies where no other does: one of the leads, from High on two owners as well.
pub fn prod() -> Value {
    json!({
        "priority": 10,
        "stages": [
            {"name": "sre", "required": 1,
             "approvers": {"groups": ["sre-leads"], "serviceAccounts": ["ci/robot", "shop/robot"], "users": ["gil"]}},
            {"name": "owners", "minRisk": "High", "required": 2, "approvers": {"groups": ["owners"]}},
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

    /// Asks for a rollback that stays open without being executed: suspended, and a dry run.
    pub async fn request(&self, user: &User, name: &str, more: &Value) -> Result<RollbackRequest> {
        let mut spec = json!({"target": {"snapshot": "before"}, "dryRun": true, "suspend": true});
        for (field, value) in more.as_object().into_iter().flatten() {
            spec[field] = value.clone();
        }
        let manifest = json!({
            "apiVersion": "backstep.dev/v1alpha1", "kind": "RollbackRequest",
            "metadata": {"name": name, "namespace": SHOP}, "spec": spec,
        });
        self.installed.apply(user, &manifest.to_string()).await?.success()?;
        let api: Api<RollbackRequest> = Api::namespaced(self.installed.admin().await?, SHOP);
        Ok(api.get(name).await?)
    }

    /// Chooses the policy, as the operator does for a plan of this risk.
    pub async fn chosen(&self, request: &RollbackRequest, risk: RiskLevel) -> Result<Result<Chosen, NoRoute>> {
        let snapshot = ResolvedSnapshot {
            name: "before".into(),
            uid: "u".into(),
            ..ResolvedSnapshot::default()
        };
        let asking = Asking {
            risk,
            traits: Traits::default(),
            components: &[].into(),
            snapshot: &snapshot,
        };
        let chosen = approval_request::choose(&self.context, request, &asking).await;
        chosen.map_err(|failure| anyhow::anyhow!("{failure}"))
    }

    /// The plan of a request, as the operator writes it.
    pub async fn plan(&self, request: &RollbackRequest, risk: RiskLevel) -> Result<RollbackPlan> {
        let digest = Digest::of(request.name_any().as_bytes()).to_string();
        let plan: RollbackPlan = serde_json::from_value(json!({
            "apiVersion": "backstep.dev/v1alpha1", "kind": "RollbackPlan",
            "metadata": {"name": format!("{}-plan", request.name_any()), "namespace": SHOP},
            "spec": {
                "requestRef": {"name": request.name_any(), "uid": request.uid()},
                "target": {"snapshot": "before", "version": 1, "digest": digest}, "digest": digest,
                "risk": {"level": risk, "score": 10}, "summary": {},
            },
        }))?;
        let api: Api<RollbackPlan> = Api::namespaced(self.context.client.clone(), SHOP);
        match api.create(&PostParams::default(), &plan).await {
            Ok(plan) => Ok(plan),
            Err(kube::Error::Api(status)) if status.code == 409 => Ok(api.get(&plan.name_any()).await?),
            Err(error) => Err(error.into()),
        }
    }

    /// Chooses and asks, and gives back whatever came of it.
    pub async fn ask(&self, request: &RollbackRequest, risk: RiskLevel) -> Result<Asked> {
        let chosen = self.chosen(request, risk).await??;
        let plan = self.plan(request, risk).await?;
        wait_until(PATIENCE, "the guard to settle", async || {
            match approval_request::ask(&self.context, request, &plan, &chosen).await {
                Ok(Asked::Settling { until }) => Err(format!("it settles until {until}")),
                Ok(asked) => Ok(Some(asked)),
                Err(failure) => Err(failure.to_string()),
            }
        })
        .await
    }

    /// Chooses and asks, and gives back the `ApprovalRequest`.
    pub async fn asked(&self, request: &RollbackRequest, risk: RiskLevel) -> Result<ApprovalRequest> {
        match self.ask(request, risk).await? {
            Asked::There(approval) => Ok(*approval),
            other => anyhow::bail!("not asked: {other:?}"),
        }
    }

    /// A request by alice, asked for approval.
    pub async fn opened(
        &self,
        name: &str,
        risk: RiskLevel,
        more: &Value,
    ) -> Result<(RollbackRequest, ApprovalRequest)> {
        let request = self.request(&alice(), name, more).await?;
        let approval = self.asked(&request, risk).await?;
        Ok((request, approval))
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
