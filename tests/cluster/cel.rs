//! The rules of the kinds and the admission policies, tried file by file on a real API server as real users.
//!
//! `tests/cel/<kind>/accepted/*.yaml` must be admitted, `refused/*.yaml` must be refused with the text after `# expect:`.
//! `# as:` names the user (the default is who writes that kind), and a pair `x.before.yaml`, `x.after.yaml` is an update:
//! of the object, or, with `# via:`, of its `status`, by server-side `apply`, by a `merge` or `json` patch, or a `delete`.

use std::{
    collections::BTreeSet,
    fs,
    path::{Path, PathBuf},
    time::Duration,
};

use anyhow::{Context as _, Result, bail, ensure};
use kube::{
    Api, Client,
    api::{DeleteParams, DynamicObject, ListParams, Patch, PatchParams, PostParams},
    config::{AuthInfo, KubeConfigOptions, Kubeconfig},
    core::{ApiResource, GroupVersionKind},
};
use serde_json::{Value, json};
use testbed::{Cluster, ClusterOptions, User, wait_until};

pub const NAMESPACE: &str = "cel";
const OPERATOR_NAMESPACE: &str = "backstep-system";
const PATIENCE: Duration = Duration::from_secs(60);

/// Who is who; the rights are those that the chart and the guide speak of.
const RIGHTS: &str = r#"
apiVersion: v1
kind: Namespace
metadata: {name: cel}
---
apiVersion: v1
kind: Namespace
metadata: {name: ci}
---
apiVersion: v1
kind: ServiceAccount
metadata: {name: gitops, namespace: ci}
---
apiVersion: v1
kind: ServiceAccount
metadata: {name: robot, namespace: ci}
---
apiVersion: v1
kind: ServiceAccount
metadata: {name: helper, namespace: ci}
---
apiVersion: rbac.authorization.k8s.io/v1
kind: RoleBinding
metadata: {name: requesters, namespace: cel}
roleRef: {apiGroup: rbac.authorization.k8s.io, kind: ClusterRole, name: backstep-requester}
subjects:
  - {apiGroup: rbac.authorization.k8s.io, kind: User, name: alice}
  - {apiGroup: rbac.authorization.k8s.io, kind: User, name: carol}
  - {kind: ServiceAccount, namespace: ci, name: gitops}
---
apiVersion: rbac.authorization.k8s.io/v1
kind: RoleBinding
metadata: {name: approvers, namespace: cel}
roleRef: {apiGroup: rbac.authorization.k8s.io, kind: ClusterRole, name: backstep-approver}
subjects:
  - {apiGroup: rbac.authorization.k8s.io, kind: User, name: bob}
  - {apiGroup: rbac.authorization.k8s.io, kind: User, name: carol}
  - {apiGroup: rbac.authorization.k8s.io, kind: User, name: "system:anonymous"}
  - {kind: ServiceAccount, namespace: ci, name: robot}
  - {kind: ServiceAccount, namespace: ci, name: helper}
---
# What somebody who owns the namespace may grant to itself.
apiVersion: rbac.authorization.k8s.io/v1
kind: Role
metadata: {name: self-granted, namespace: cel}
rules:
  - {apiGroups: [backstep.dev], resources: [approvalstages], resourceNames: ["prod:sre"], verbs: [approve, approve-automated, review]}
  - {apiGroups: [backstep.dev], resources: [approvalscopes], resourceNames: [cel], verbs: [break-glass, purge]}
---
apiVersion: rbac.authorization.k8s.io/v1
kind: RoleBinding
metadata: {name: self-granted, namespace: cel}
roleRef: {apiGroup: rbac.authorization.k8s.io, kind: Role, name: self-granted}
subjects: [{apiGroup: rbac.authorization.k8s.io, kind: User, name: squire}]
---
apiVersion: rbac.authorization.k8s.io/v1
kind: Role
metadata: {name: everything, namespace: cel}
rules:
  - {apiGroups: ["*"], resources: ["*"], verbs: ["*"]}
---
apiVersion: rbac.authorization.k8s.io/v1
kind: RoleBinding
metadata: {name: owners, namespace: cel}
roleRef: {apiGroup: rbac.authorization.k8s.io, kind: Role, name: everything}
subjects:
  - {apiGroup: rbac.authorization.k8s.io, kind: User, name: owner}
  - {apiGroup: rbac.authorization.k8s.io, kind: User, name: oncall}
  - {apiGroup: rbac.authorization.k8s.io, kind: User, name: squire}
  - {apiGroup: rbac.authorization.k8s.io, kind: User, name: eraser}
---
apiVersion: rbac.authorization.k8s.io/v1
kind: ClusterRole
metadata: {name: approve-prod-sre}
rules:
  - {apiGroups: [backstep.dev], resources: [approvalstages], resourceNames: ["prod:sre"], verbs: [approve, review]}
---
apiVersion: rbac.authorization.k8s.io/v1
kind: ClusterRoleBinding
metadata: {name: approve-prod-sre}
roleRef: {apiGroup: rbac.authorization.k8s.io, kind: ClusterRole, name: approve-prod-sre}
subjects:
  - {apiGroup: rbac.authorization.k8s.io, kind: Group, name: sre-leads}
  - {apiGroup: rbac.authorization.k8s.io, kind: User, name: eraser}
  - {apiGroup: rbac.authorization.k8s.io, kind: User, name: "system:anonymous"}
  # The verb of people, which is nothing to a robot.
  - {kind: ServiceAccount, namespace: ci, name: helper}
---
apiVersion: rbac.authorization.k8s.io/v1
kind: ClusterRole
metadata: {name: robots-approve-prod-sre}
rules:
  - {apiGroups: [backstep.dev], resources: [approvalstages], resourceNames: ["prod:sre"], verbs: [approve-automated]}
---
apiVersion: rbac.authorization.k8s.io/v1
kind: ClusterRoleBinding
metadata: {name: robots-approve-prod-sre}
roleRef: {apiGroup: rbac.authorization.k8s.io, kind: ClusterRole, name: robots-approve-prod-sre}
subjects: [{kind: ServiceAccount, namespace: ci, name: robot}]
---
# Runs the cluster: everything that there is, but no power that has to be granted by its name.
apiVersion: rbac.authorization.k8s.io/v1
kind: ClusterRole
metadata: {name: stewards}
rules:
  - apiGroups: [backstep.dev]
    resources: [approvaldecisions, approvalrequests, approvalrequests/status, rollbackplans, rollbackrequests, snapshots]
    verbs: ["*"]
---
apiVersion: rbac.authorization.k8s.io/v1
kind: ClusterRoleBinding
metadata: {name: stewards}
roleRef: {apiGroup: rbac.authorization.k8s.io, kind: ClusterRole, name: stewards}
subjects: [{apiGroup: rbac.authorization.k8s.io, kind: User, name: steward}]
---
apiVersion: rbac.authorization.k8s.io/v1
kind: ClusterRole
metadata: {name: emergencies-in-cel}
rules:
  - {apiGroups: [backstep.dev], resources: [approvalscopes], resourceNames: [cel], verbs: [break-glass, purge]}
---
apiVersion: rbac.authorization.k8s.io/v1
kind: ClusterRoleBinding
metadata: {name: emergencies-in-cel}
roleRef: {apiGroup: rbac.authorization.k8s.io, kind: ClusterRole, name: emergencies-in-cel}
subjects: [{apiGroup: rbac.authorization.k8s.io, kind: User, name: oncall}]
"#;

/// One file.
struct Case {
    path: PathBuf,
    expect: Option<String>,
    user: Option<String>,
    via: Via,
    object: Value,
}

#[derive(Clone, Copy, PartialEq, Eq)]
enum Via {
    Object,
    Status,
    Apply,
    Merge,
    Json,
    Delete(Deletion),
}

#[derive(Clone, Copy, PartialEq, Eq)]
enum Deletion {
    Plain,
    Collection,
    Foreground,
    Force,
    DryRun,
}

impl Case {
    fn read(path: &Path) -> Result<Self> {
        let text = fs::read_to_string(path)?;
        let header = |key: &str| {
            text.lines()
                .find_map(|l| l.strip_prefix("# ")?.strip_prefix(key)?.strip_prefix(": "))
                .map(ToOwned::to_owned)
        };
        let via = match header("via").as_deref() {
            None => Via::Object,
            Some("status") => Via::Status,
            Some("apply") => Via::Apply,
            Some("merge") => Via::Merge,
            Some("json") => Via::Json,
            Some("delete") => Via::Delete(Deletion::Plain),
            Some("delete collection") => Via::Delete(Deletion::Collection),
            Some("delete foreground") => Via::Delete(Deletion::Foreground),
            Some("delete force") => Via::Delete(Deletion::Force),
            Some("delete dry run") => Via::Delete(Deletion::DryRun),
            Some(other) => bail!("{}: unknown way {other}", path.display()),
        };
        let object = serde_saphyr::from_str(&text).with_context(|| path.display().to_string())?;
        Ok(Self {
            path: path.to_owned(),
            expect: header("expect"),
            user: header("as"),
            via,
            object,
        })
    }

    fn kind(&self) -> &str {
        self.object["kind"].as_str().unwrap_or_default()
    }

    fn name(&self) -> &str {
        self.object["metadata"]["name"].as_str().unwrap_or_default()
    }

    /// Who writes this kind when nobody is named.
    fn user(&self) -> &str {
        match (&self.user, self.via, self.kind()) {
            (Some(user), ..) => user,
            (_, Via::Status, _) | (_, _, "RollbackPlan" | "ApprovalRequest") => "operator",
            (_, _, "ApprovalDecision") => "bob",
            (_, _, "ApprovalPolicy") => "admin",
            _ => "alice",
        }
    }
}

/// What the server said.
pub type Answer = Result<(), (u16, String)>;

/// A cluster with the chart's admission policies, people with rights, and no operator.
pub struct Server {
    pub cluster: Cluster,
}

impl Server {
    pub async fn start(name: &str) -> Result<Self> {
        let options = ClusterOptions {
            with_scheduler: false,
            with_fake_kubelet: false,
            ..ClusterOptions::named(name)
        };
        let cluster = Cluster::start(options).await?;
        let admin = User::admin();
        let chart = concat!(env!("CARGO_MANIFEST_DIR"), "/charts/backstep");
        let install = [
            "install",
            "backstep",
            chart,
            "-n",
            OPERATOR_NAMESPACE,
            "--create-namespace",
            "--set",
            "replicas=0",
        ];
        cluster.helm(&admin, &install, None).await?.success()?;
        cluster
            .kubectl(&admin, &["apply", "-f", "-"], Some(RIGHTS))
            .await?
            .success()?;
        let server = Self { cluster };
        server.wait_for_the_guard().await?;
        Ok(server)
    }

    /// Stamped kinds answer 503 for some seconds after their CRD appears, and a new policy or right takes a moment to count.
    async fn wait_for_the_guard(&self) -> Result<()> {
        let canary = |kind: &str, spec: Value| json!({"apiVersion": "backstep.dev/v1alpha1", "kind": kind, "metadata": {"name": "canary"}, "spec": spec});
        let digest = format!("sha256:{}", "a".repeat(64));
        let decision = json!({
            "requestRef": {"name": "x", "uid": "y"}, "planDigest": digest, "policyName": "prod", "stage": "sre",
            "decision": "Approve",
        });
        let plan = json!({
            "requestRef": {"name": "x", "uid": "y"}, "digest": digest, "risk": {"level": "Low", "score": 1}, "summary": {},
            "target": {"snapshot": "x", "version": 1, "digest": digest},
        });
        let target = json!({"target": {"snapshot": "x"}});
        let other = json!({"target": {"snapshot": "x"}, "requestedBy": {"username": "nobody"}});
        let both = [
            ("alice", canary("Snapshot", json!({})), true),
            ("carol", canary("RollbackRequest", target), true),
            ("bob", canary("ApprovalDecision", decision.clone()), true),
            ("operator", canary("RollbackPlan", plan.clone()), true),
            ("admin", canary("RollbackPlan", plan), false),
            ("alice", canary("RollbackRequest", other), false),
            ("carol", canary("ApprovalDecision", decision), false),
        ];
        wait_until(PATIENCE, "the guard to admit and to refuse", async || {
            for (user, object, admitted) in &both {
                let answer = self.create(user, object, true).await?;
                ensure!(
                    answer.is_ok() == *admitted,
                    "{user} writes {}: {answer:?}",
                    object["kind"]
                );
            }
            anyhow::Ok(Some(()))
        })
        .await
    }

    /// A client that acts as `user`: a person, `operator`, `admin`, a service account `<namespace>/<name>`.
    pub async fn client(&self, user: &str) -> Result<Client> {
        let groups: &[&str] = match user {
            "operator" => {
                return self
                    .cluster
                    .service_account_client(OPERATOR_NAMESPACE, "backstep")
                    .await;
            }
            "admin" => return self.cluster.admin().await,
            "system:anonymous" => return self.anonymous().await,
            "alice" => &["shop-team"],
            "bob" => &["sre-leads"],
            _ => &[],
        };
        if let Some((namespace, account)) = user.split_once('/') {
            return self.cluster.service_account_client(namespace, account).await;
        }
        self.cluster.client_as(&User::new(user, groups.iter().copied())).await
    }

    /// Without any credential.
    async fn anonymous(&self) -> Result<Client> {
        let mut known = Kubeconfig::read_from(self.cluster.kubeconfig(&User::admin())?)?;
        for user in &mut known.auth_infos {
            user.auth_info = Some(AuthInfo::default());
        }
        let config = kube::Config::from_custom_kubeconfig(known, &KubeConfigOptions::default()).await?;
        Ok(Client::try_from(config)?)
    }

    /// The kind of `object` in its namespace, as `user`.
    pub async fn api(&self, user: &str, object: &Value) -> Result<Api<DynamicObject>> {
        let kind = object["kind"].as_str().unwrap_or_default();
        let resource = ApiResource::from_gvk(&GroupVersionKind::gvk("backstep.dev", "v1alpha1", kind));
        let client = self.client(user).await?;
        Ok(if kind == "ApprovalPolicy" {
            Api::all_with(client, &resource)
        } else {
            let namespace = object["metadata"]["namespace"].as_str().unwrap_or(NAMESPACE);
            Api::namespaced_with(client, namespace, &resource)
        })
    }

    /// Creates `object` as `user`.
    pub async fn create(&self, user: &str, object: &Value, dry_run: bool) -> Result<Answer> {
        let api = self.api(user, object).await?;
        let params = PostParams {
            dry_run,
            ..PostParams::default()
        };
        answer(
            api.create(&params, &serde_json::from_value(object.clone())?)
                .await
                .map(drop),
        )
    }

    /// The second half of a pair: what `case` says, done to the object that is there.
    async fn change(&self, case: &Case) -> Result<Answer> {
        let api = self.api(case.user(), &case.object).await?;
        if let Via::Delete(deletion) = case.via {
            return delete(&api, case.name(), deletion).await;
        }
        let patch = match case.via {
            Via::Apply => Some((PatchParams::apply("corpus").force(), Patch::Apply(&case.object))),
            Via::Merge => Some((PatchParams::default(), Patch::Merge(&case.object))),
            _ => None,
        };
        if let Some((params, patch)) = patch {
            return answer(api.patch(case.name(), &params, &patch).await.map(drop));
        }
        if case.via == Via::Json {
            let operations = json!([{"op": "replace", "path": "/spec", "value": case.object["spec"]}]);
            let patch: Patch<()> = Patch::Json(serde_json::from_value(operations)?);
            return answer(api.patch(case.name(), &PatchParams::default(), &patch).await.map(drop));
        }
        let live = self.api("admin", &case.object).await?.get(case.name()).await?;
        let mut object = case.object.clone();
        object["metadata"]["resourceVersion"] = json!(live.metadata.resource_version);
        let params = PostParams::default();
        match case.via {
            Via::Status => answer(
                api.replace_status(case.name(), &params, &serde_json::from_value(object)?)
                    .await
                    .map(drop),
            ),
            _ => answer(
                api.replace(case.name(), &params, &serde_json::from_value(object)?)
                    .await
                    .map(drop),
            ),
        }
    }

    /// Makes the first half of a pair real, its status too.
    async fn prepare(&self, before: &Case) -> Result<()> {
        let created = self.create(before.user(), &before.object, false).await?;
        ensure!(created.is_ok(), "{}: {created:?}", before.path.display());
        if before.object["status"].is_object() {
            let status = Case {
                path: before.path.clone(),
                expect: None,
                user: Some("operator".into()),
                via: Via::Status,
                object: before.object.clone(),
            };
            let written = self.change(&status).await?;
            ensure!(written.is_ok(), "{}: {written:?}", before.path.display());
        }
        Ok(())
    }

    async fn run(&self, path: &Path) -> Result<(Case, Answer)> {
        let case = Case::read(path)?;
        let before = path.to_string_lossy().replace(".after.yaml", ".before.yaml");
        let answer = if before == path.to_string_lossy() {
            self.create(case.user(), &case.object, true).await?
        } else {
            self.prepare(&Case::read(Path::new(&before))?).await?;
            self.change(&case).await?
        };
        Ok((case, answer))
    }
}

async fn delete(api: &Api<DynamicObject>, name: &str, deletion: Deletion) -> Result<Answer> {
    let params = match deletion {
        Deletion::Plain | Deletion::Collection => DeleteParams::default(),
        Deletion::Foreground => DeleteParams::foreground(),
        Deletion::Force => DeleteParams::default().grace_period(0),
        Deletion::DryRun => DeleteParams {
            dry_run: true,
            ..DeleteParams::default()
        },
    };
    answer(if deletion == Deletion::Collection {
        let only = ListParams::default().fields(&format!("metadata.name={name}"));
        api.delete_collection(&params, &only).await.map(drop)
    } else {
        api.delete(name, &params).await.map(drop)
    })
}

/// What the server said; an error where it said nothing.
pub fn answer(result: Result<(), kube::Error>) -> Result<Answer> {
    match result {
        Ok(()) => Ok(Ok(())),
        Err(kube::Error::Api(status)) => Ok(Err((status.code, status.message))),
        Err(error) => Err(error.into()),
    }
}

/// Files that say what must happen, in `which` of every kind.
fn files(which: &str) -> Result<Vec<PathBuf>> {
    let root = Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/cel");
    let mut files = Vec::new();
    for kind in fs::read_dir(&root)? {
        for file in fs::read_dir(kind?.path().join(which))? {
            let file = file?.path();
            if !file.to_string_lossy().ends_with(".before.yaml") {
                files.push(file);
            }
        }
    }
    files.sort();
    ensure!(
        files.len() > 30,
        "only {} files in {}/*/{which}",
        files.len(),
        root.display()
    );
    Ok(files)
}

#[tokio::test(flavor = "multi_thread")]
async fn every_file_of_the_corpus_is_accepted_or_refused_as_it_says() -> Result<()> {
    let server = Server::start("cel").await?;
    let mut wrong = Vec::new();
    for path in files("accepted")? {
        let (case, answer) = server.run(&path).await.with_context(|| path.display().to_string())?;
        if let Err((code, message)) = answer {
            wrong.push(format!(
                "{} as {}: refused with {code}: {message}",
                path.display(),
                case.user()
            ));
        }
    }
    let mut refused = BTreeSet::new();
    for path in files("refused")? {
        let (case, answer) = server.run(&path).await.with_context(|| path.display().to_string())?;
        let expect = case
            .expect
            .clone()
            .with_context(|| format!("{} does not say `# expect:`", path.display()))?;
        match answer {
            Ok(()) => wrong.push(format!("{} as {}: admitted", path.display(), case.user())),
            Err((code, message)) => {
                if !message.contains(&expect) {
                    wrong.push(format!("{} as {}: {code}: {message}", path.display(), case.user()));
                }
                // 403 is the admission policies' answer, 422 the schema's.
                if code == 422 {
                    refused.insert((case.kind().to_owned(), message));
                }
            }
        }
    }
    for crd in backstep::api::crd::all()? {
        let kind = crd["spec"]["names"]["kind"].as_str().unwrap_or_default();
        for (at, rule) in backstep::generate::rules(&crd) {
            if !refused
                .iter()
                .any(|(of, message)| of == kind && message.contains(&rule))
            {
                wrong.push(format!("no refused file of {kind} meets the rule at {at}: {rule}"));
            }
        }
    }
    ensure!(wrong.is_empty(), "{} wrong:\n{}", wrong.len(), wrong.join("\n"));
    impersonators(&server).await?;
    foreign_service_accounts(&server).await?;
    server.cluster.stop().await
}

/// Where the chart is told to, a decision needs a credential of its author's own.
async fn impersonators(server: &Server) -> Result<()> {
    let decision = json!({
        "apiVersion": "backstep.dev/v1alpha1", "kind": "ApprovalDecision", "metadata": {"name": "as", "namespace": NAMESPACE},
        "spec": {
            "requestRef": {"name": "x", "uid": "y"}, "planDigest": format!("sha256:{}", "a".repeat(64)),
            "policyName": "prod", "stage": "sre", "decision": "Approve",
        },
    });
    let create = ["create", "--dry-run=server", "-f", "-"];
    let as_bob = [&create[..], &["--as=bob", "--as-group=sre-leads"]].concat();
    let (admin, bob) = (User::admin(), User::new("bob", ["sre-leads"]));
    let manifest = decision.to_string();
    let decide = async |user: &User, how: &[&str]| server.cluster.kubectl(user, how, Some(&manifest)).await;
    decide(&admin, &as_bob).await?.success()?;
    let chart = concat!(env!("CARGO_MANIFEST_DIR"), "/charts/backstep");
    let upgrade = [
        "upgrade",
        "backstep",
        chart,
        "-n",
        OPERATOR_NAMESPACE,
        "--set",
        "replicas=0,guard.requireCredentialID=true",
    ];
    server.cluster.helm(&admin, &upgrade, None).await?.success()?;
    wait_until(PATIENCE, "an impersonator to be refused", async || {
        let ran = decide(&admin, &as_bob).await?;
        let expected = "this cluster accepts decisions only from directly authenticated credentials";
        ensure!(!ran.status.success() && ran.stderr.contains(expected), "{ran}");
        Ok(Some(()))
    })
    .await?;
    decide(&bob, &create).await?.success().map(drop)
}

/// The kinds refuse every `ServiceAccount` so far; the admission policy refuses a foreign one once they do not.
async fn foreign_service_accounts(server: &Server) -> Result<()> {
    let rule = "/spec/versions/0/schema/openAPIV3Schema/properties/spec/properties/serviceAccountName/x-kubernetes-validations";
    let patch = json!([{"op": "remove", "path": rule}]).to_string();
    for (plural, kind, mut spec) in [
        (
            "rollbackrequests",
            "RollbackRequest",
            json!({"target": {"snapshot": "x"}}),
        ),
        ("snapshots", "Snapshot", json!({})),
    ] {
        let crd = format!("{plural}.backstep.dev");
        let without = ["patch", "crd", &crd, "--type=json", "-p", &patch];
        server
            .cluster
            .kubectl(&User::admin(), &without, None)
            .await?
            .success()?;
        spec["serviceAccountName"] = json!("deployer");
        let object = json!({
            "apiVersion": "backstep.dev/v1alpha1", "kind": kind, "metadata": {"name": "as"}, "spec": spec,
        });
        let expected =
            "spec.serviceAccountName: you may not act as deployer (verb impersonate on that service account)";
        wait_until(PATIENCE, "a foreign service account to be refused", async || {
            // Who owns the namespace may act as its service accounts.
            let (alice, owner) = (
                server.create("alice", &object, true).await?,
                server.create("owner", &object, true).await?,
            );
            ensure!(
                matches!(&alice, Err((403, message)) if message.contains(expected)) && owner.is_ok(),
                "{kind}: {alice:?} {owner:?}"
            );
            Ok(Some(()))
        })
        .await?;
    }
    Ok(())
}

#[tokio::test(flavor = "multi_thread")]
async fn every_example_is_admitted_and_no_field_of_it_is_unknown() -> Result<()> {
    let server = Server::start("examples").await?;
    let examples = Path::new(env!("CARGO_MANIFEST_DIR")).join("examples");
    let mut seen = 0;
    for file in fs::read_dir(&examples)? {
        let path = file?.path();
        // A folder is a story, applied in its order by a test of its own.
        if path.is_dir() {
            continue;
        }
        let case = Case::read(&path)?;
        let mut object = case.object.clone();
        // Some examples carry a version as their name in the guide; several may be tried in one namespace.
        object["metadata"]["namespace"] = if case.kind() == "ApprovalPolicy" {
            Value::Null
        } else {
            json!(NAMESPACE)
        };
        let manifest = object.to_string();
        let user = match case.user() {
            "admin" => User::admin(),
            "bob" => User::new("bob", ["sre-leads"]),
            other => User::new(other, ["shop-team"]),
        };
        let create = ["create", "--dry-run=server", "--validate=strict", "-f", "-"];
        let ran = server.cluster.kubectl(&user, &create, Some(&manifest)).await?;
        // To break the glass takes a right that no example has.
        if object["kind"] == "RollbackRequest" && object["spec"]["emergency"].is_object() {
            ensure!(
                ran.stderr
                    .contains("spec.emergency needs the verb break-glass on approvalscopes.backstep.dev"),
                "{ran}"
            );
            let strict = ["create", "--dry-run=client", "--validate=strict", "-f", "-"];
            server
                .cluster
                .kubectl(&user, &strict, Some(&manifest))
                .await?
                .success()?;
        } else {
            ran.success().with_context(|| path.display().to_string())?;
        }
        seen += 1;
    }
    ensure!(seen >= 5, "only {seen} examples");
    server.cluster.stop().await
}
