//! Rollbacks as a user sees them: from the creation of a `RollbackRequest` until it has ended.

use std::time::{Duration, Instant};

use anyhow::{Context as _, Result, bail};
use backstep::api::approval_decision::{Approver, Decision};
use backstep::api::approval_request::ApprovalPhase;
use backstep::api::reference::UidReference;
use backstep::api::rollback_request::{RollbackPhase, StepState};
use backstep::api::{ApprovalDecision, ApprovalDecisionSpec, ApprovalRequest, RollbackRequest};
use futures::{StreamExt as _, TryStreamExt as _};
use k8s_openapi::api::apps::v1::Deployment;
use kube::api::PostParams;
use kube::runtime::{WatchStreamExt as _, watcher};
use kube::{Api, Client, ResourceExt as _};
use serde_json::{Value, json};
use testbed::{Access, ApiRequest, ApiRequests, User, wait_until};

use super::operator;

/// How long an API server may take until it lets people do what they were just granted.
const PATIENCE: Duration = Duration::from_secs(60);
const APPROVER: &str = "bob";
/// Groups of requests that are not about the target: Backstep's own objects, its Leases and Events.
const NOT_THE_TARGET: [&str; 3] = [backstep::api::names::GROUP, "coordination.k8s.io", "events.k8s.io"];

/// Who asks for rollbacks, and who approves them.
pub struct People {
    alice: Client,
    bob: Client,
}

impl People {
    /// Grants alice everything in `namespaces`, and bob to approve.
    ///
    /// # Errors
    /// The API server's; or when it does not let them after a minute.
    pub async fn given(access: &Access, namespaces: &[String]) -> Result<Self> {
        let (rbac, all) = ("rbac.authorization.k8s.io/v1", "rbac.authorization.k8s.io");
        let bound = |kind: &str, name: &str, namespace: Option<&str>, role: &str, user: &str| {
            json!({
                "apiVersion": rbac, "kind": kind, "metadata": {"name": name, "namespace": namespace},
                "roleRef": {"apiGroup": all, "kind": "ClusterRole", "name": role},
                "subjects": [{"apiGroup": all, "kind": "User", "name": user}],
            })
        };
        let mut objects = vec![
            json!({
                "apiVersion": rbac, "kind": "ClusterRole", "metadata": {"name": "approves"},
                "rules": [{
                    "apiGroups": [backstep::api::names::GROUP], "resources": ["approvalstages"],
                    "resourceNames": ["default:approval"], "verbs": ["approve"],
                }],
            }),
            bound("ClusterRoleBinding", "approves", None, "approves", APPROVER),
            bound("ClusterRoleBinding", "decides", None, "backstep-approver", APPROVER),
        ];
        // Owners of namespaces: the roles that are put together of others are empty where no controller does it.
        for namespace in namespaces {
            objects.push(bound("RoleBinding", "team", Some(namespace), "cluster-admin", "alice"));
        }
        let manifest = json!({"apiVersion": "v1", "kind": "List", "items": objects}).to_string();
        let ran = access
            .kubectl(&User::admin(), &["apply", "-f", "-"], Some(&manifest))
            .await?;
        ran.success()?;
        Ok(Self {
            alice: access.client_as(&User::new("alice", ["team"])).await?,
            bob: access.client_as(&User::new(APPROVER, ["sre"])).await?,
        })
    }

    async fn decide(&self, approval: &ApprovalRequest) -> Result<()> {
        let namespace = approval.namespace().unwrap_or_default();
        let stage = approval.spec.stages.first().context("an approval without a stage")?;
        let decision = ApprovalDecision::new(
            &format!("{}-bob", approval.name_any()),
            ApprovalDecisionSpec {
                request_ref: UidReference {
                    name: approval.name_any(),
                    uid: approval.uid().unwrap_or_default(),
                },
                plan_digest: approval.spec.plan_digest.clone(),
                policy_name: approval.spec.policy.name.clone(),
                stage: stage.name.clone(),
                decision: Decision::Approve,
                comment: None,
                approver: Some(Approver {
                    username: Some(APPROVER.to_owned()),
                    groups: Some(vec!["sre".to_owned(), "system:authenticated".to_owned()]),
                    ..Approver::default()
                }),
                evidence: None,
            },
        );
        let decisions: Api<ApprovalDecision> = Api::namespaced(self.bob.clone(), &namespace);
        decisions.create(&PostParams::default(), &decision).await?;
        Ok(())
    }
}

/// What a rollback took.
pub struct RolledBack {
    /// From the creation to the end, as a watch shows it, without `decision`.
    pub wall: Duration,
    /// How long the approver took: from the sight of the `ApprovalRequest` until the decision was written.
    pub decision: Duration,
    /// When each phase and step was seen first, from the creation on.
    pub course: Vec<(String, Duration)>,
    /// What the API server counted meanwhile.
    pub requests: ApiRequests,
    /// The request at its end.
    pub request: RollbackRequest,
}

impl RolledBack {
    /// The course in one line.
    pub fn in_short(&self) -> String {
        let shown = |(what, at): &(String, Duration)| format!("{what} {:.2}", at.as_secs_f64());
        self.course.iter().map(shown).collect::<Vec<_>>().join(", ")
    }

    /// `done` of its items.
    pub fn done(&self) -> i64 {
        let status = self.request.status.as_ref();
        status
            .and_then(|status| status.items.as_ref())
            .map_or(0, |items| items.done)
    }
}

/// Creates a request called `name` with `spec` and waits until it is Completed; where it is asked for, it is approved at once.
///
/// # Errors
/// A request that ends otherwise, or not before `deadline`, with its conditions.
pub async fn roll_back(
    access: &Access,
    people: &People,
    (namespace, name): (&str, &str),
    spec: &Value,
    deadline: Duration,
) -> Result<RolledBack> {
    let requests: Api<RollbackRequest> = Api::namespaced(access.admin().await?, namespace);
    let approvals: Api<ApprovalRequest> = Api::namespaced(people.bob.clone(), namespace);
    let object: RollbackRequest = serde_json::from_value(json!({
        "apiVersion": "backstep.dev/v1alpha1", "kind": "RollbackRequest",
        "metadata": {"name": name, "namespace": namespace}, "spec": spec,
    }))?;
    let by_name = watcher::Config::default().fields(&format!("metadata.name={name}"));
    let by_request = watcher::Config::default().fields(&format!("spec.requestRef.name={name}"));
    // Both watches are open before the creation, so that no time is lost or won by it.
    let mut seen = watcher(requests, by_name).default_backoff().boxed();
    let mut asked = watcher(approvals, by_request).default_backoff().boxed();
    let opened = async {
        futures::try_join!(open(&mut seen), open(&mut asked))?;
        Ok::<_, anyhow::Error>(())
    };
    tokio::time::timeout(deadline, opened)
        .await
        .context("the watches did not open")??;
    let before = access.api_requests().await?;
    let created: Api<RollbackRequest> = Api::namespaced(people.alice.clone(), namespace);
    let started = Instant::now();
    created.create(&PostParams::default(), &object).await?;
    let mut course = Vec::new();
    let mut decision = Duration::ZERO;
    let mut last = None;
    let end = tokio::time::Instant::now() + deadline;
    let request = loop {
        let event = tokio::time::timeout_at(end, async {
            tokio::select! {
                event = seen.try_next() => event.map(|event| event.map(|event| Seen::Request(Box::new(event)))),
                event = asked.try_next() => event.map(|event| event.map(|event| Seen::Approval(Box::new(event)))),
            }
        });
        let Ok(event) = event.await else {
            bail!(
                "{namespace}/{name} has not ended after {} s: {}",
                deadline.as_secs(),
                described(last.as_ref())
            );
        };
        match event?.context("a watch ended")? {
            Seen::Approval(event) => {
                let Some(approval) = there(*event) else { continue };
                let phase = approval.status.as_ref().and_then(|status| status.phase);
                let wanted = approval.spec.stages.iter().any(|stage| stage.required > 0);
                if wanted && matches!(phase, None | Some(ApprovalPhase::Pending)) && decision.is_zero() {
                    let sight = Instant::now();
                    people.decide(&approval).await?;
                    decision = sight.elapsed();
                }
            }
            Seen::Request(event) => {
                let Some(request) = there(*event) else { continue };
                let now = stage(&request);
                if course.last().is_none_or(|(last, _)| *last != now) {
                    course.push((now, started.elapsed()));
                }
                if request.status.as_ref().is_some_and(|s| s.completed_at.is_some()) {
                    break request;
                }
                last = Some(request);
            }
        }
    };
    let wall = started.elapsed().saturating_sub(decision);
    if request.status.as_ref().and_then(|status| status.phase) != Some(RollbackPhase::Completed) {
        bail!("{namespace}/{name} did not complete: {}", described(Some(&request)));
    }
    let requests = settled(access).await?.since(&before);
    Ok(RolledBack {
        wall,
        decision,
        course,
        requests,
        request,
    })
}

enum Seen {
    Request(Box<watcher::Event<RollbackRequest>>),
    Approval(Box<watcher::Event<ApprovalRequest>>),
}

/// The object of an event that shows one.
fn there<K>(event: watcher::Event<K>) -> Option<K> {
    match event {
        watcher::Event::Apply(object) | watcher::Event::InitApply(object) => Some(object),
        watcher::Event::Init | watcher::Event::InitDone | watcher::Event::Delete(_) => None,
    }
}

async fn open<K, S>(events: &mut S) -> Result<()>
where
    S: futures::Stream<Item = watcher::Result<watcher::Event<K>>> + Unpin,
{
    while let Some(event) = events.try_next().await? {
        if matches!(event, watcher::Event::InitDone) {
            return Ok(());
        }
    }
    bail!("a watch ended")
}

/// The counters, once they do not grow by writes any more: what was answered is counted a moment later.
async fn settled(access: &Access) -> Result<ApiRequests> {
    let mut last: Option<ApiRequests> = None;
    wait_until(
        PATIENCE,
        "the API server's counters of writes to stand still",
        async || {
            let now = access.api_requests().await?;
            let before = last.replace(now.clone());
            match before.map(|before| now.since(&before).count(is_write)) {
                Some(0) => Ok(Some(now)),
                more => bail!("{more:?} more"),
            }
        },
    )
    .await
}

fn stage(request: &RollbackRequest) -> String {
    let status = request.status.clone().unwrap_or_default();
    let phase = format!("{:?}", status.phase.unwrap_or_default());
    let running = status.steps.into_iter().find(|step| step.state == StepState::Running);
    running.map_or(phase, |step| step.name)
}

fn described(request: Option<&RollbackRequest>) -> String {
    request.map_or_else(
        || "it was never seen".to_owned(),
        |request| format!("{:#?}", request.status),
    )
}

/// Whether it changes something.
pub fn is_write(request: &ApiRequest) -> bool {
    let changes = ["POST", "PUT", "PATCH", "APPLY", "DELETE", "DELETECOLLECTION"];
    changes.contains(&request.verb.as_str())
}

/// Whether it is a call about one object that a plan may hold.
fn of_target(request: &ApiRequest) -> bool {
    // Reviews of access are no objects.
    let reviews = ["authorization.k8s.io", "authentication.k8s.io"];
    !request.resource.is_empty()
        && request.resource != "namespaces"
        && request.resource != "events"
        && !NOT_THE_TARGET.contains(&request.group.as_str())
        && !reviews.contains(&request.group.as_str())
        && request.group != "apiextensions.k8s.io"
        && request.group != "admissionregistration.k8s.io"
}

/// Writes to objects of the target that the API server stored.
pub fn writes(requests: &ApiRequests) -> u64 {
    requests
        .count(|request| is_write(request) && of_target(request) && request.subresource.is_empty() && !request.dry_run)
}

/// Writes to objects of the target that were only tried.
pub fn dry_runs(requests: &ApiRequests) -> u64 {
    requests.count(|request| is_write(request) && of_target(request) && request.dry_run)
}

/// Every call about a single object of the target: reads, dry runs and writes.
pub fn calls(requests: &ApiRequests) -> u64 {
    writes(requests)
        + dry_runs(requests)
        + requests.count(|request| request.verb == "GET" && request.scope == "resource" && of_target(request))
}

/// Waits until rollbacks are planned and approved: a rollback of nothing passes.
///
/// # Errors
/// The last rollback's.
pub async fn ready(access: &Access, people: &People, namespace: &str, snapshot: &str) -> Result<()> {
    let spec = json!({"target": {"snapshot": snapshot}, "gitops": "Ignore", "resultSnapshot": false});
    roll_back(access, people, (namespace, "ready"), &spec, PATIENCE)
        .await
        .map(drop)
        .with_context(|| format!("the operator in {} does not roll back", operator::NAMESPACE))
}

/// Statuses that are written at once, so that none waits for another one.
const ROLLOUTS: usize = 16;

/// Stands in for the controllers of Deployments where there are none: says of each at once that it is rolled out.
pub struct Rollouts(tokio::task::JoinHandle<()>);

impl Drop for Rollouts {
    fn drop(&mut self) {
        self.0.abort();
    }
}

impl Rollouts {
    /// Watches the Deployments of `namespace` until dropped.
    pub fn start(client: Client, namespace: &str) -> Self {
        let deployments: Api<Deployment> = Api::namespaced(client.clone(), namespace);
        let namespace = namespace.to_owned();
        Self(tokio::spawn(async move {
            let watch = watcher(deployments, watcher::Config::default()).default_backoff();
            watch
                .applied_objects()
                .for_each_concurrent(ROLLOUTS, |seen| {
                    let (client, namespace) = (client.clone(), namespace.clone());
                    async move {
                        let Ok(deployment) = seen else { return };
                        if !is_rolled_out(&deployment) {
                            let path = format!(
                                "/apis/apps/v1/namespaces/{namespace}/deployments/{}/status?fieldManager=kube-controller-manager",
                                deployment.name_any()
                            );
                            let body = rolled_out(&deployment);
                            let merge = "application/merge-patch+json";
                            // One that is deleted meanwhile needs no status.
                            drop(super::load::call(&client, http::Method::PATCH, &path, merge, &body).await);
                        }
                    }
                })
                .await;
        }))
    }
}

fn is_rolled_out(deployment: &Deployment) -> bool {
    let replicas = deployment.spec.as_ref().and_then(|spec| spec.replicas);
    let status = deployment.status.clone().unwrap_or_default();
    let counts = [
        status.replicas,
        status.updated_replicas,
        status.ready_replicas,
        status.available_replicas,
    ];
    status.observed_generation == deployment.metadata.generation && counts.iter().all(|count| *count == replicas)
}

fn rolled_out(deployment: &Deployment) -> Value {
    let replicas = deployment.spec.as_ref().and_then(|spec| spec.replicas).unwrap_or(1);
    let condition =
        |type_: &str, reason: &str| json!({"type": type_, "status": "True", "reason": reason, "message": ""});
    json!({"status": {
        "observedGeneration": deployment.metadata.generation,
        "replicas": replicas, "updatedReplicas": replicas, "readyReplicas": replicas, "availableReplicas": replicas,
        "conditions": [
            condition("Available", "MinimumReplicasAvailable"),
            condition("Progressing", "NewReplicaSetAvailable"),
        ],
    }})
}
