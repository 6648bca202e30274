//! Writes of a rollback on a real server: the former owners apply again as if nothing had happened, and what is not as planned is
//! not written.

use std::{
    collections::{BTreeMap, BTreeSet},
    sync::Arc,
};

use anyhow::{Context as _, Result, bail, ensure};
use backstep::{
    api::{rollback_request::Prune, snapshot::Component},
    cluster::write::{Place, WriteError, Written, perform},
    domain::{
        component,
        object::{Beside, Digest, KindInfo, ListShape, ObjectId, SecretValues, normalise},
        plan::{
            Action, Captured, Content, Drafted, Facts, Inputs, Item, Live, Options, Plan, build,
            facts::Images,
            immutable::immutable_changes,
            write::{Around, Call, RESTORING, calls, is_unfinished, state},
        },
    },
};
use kube::Client;
use serde_json::{Value, json};
use testbed::{Cluster, ClusterOptions, Ran, User, wait_until};

use crate::{
    plans::{asked, plan, said},
    support::{Installed, OPERATOR_NAMESPACE, PATIENCE, Store},
};

const NAMESPACE: &str = "shop";
const KINDS: &[(&str, &str, &str, &str)] = &[
    ("", "v1", "configmaps", "ConfigMap"),
    ("", "v1", "secrets", "Secret"),
    ("", "v1", "services", "Service"),
    ("apps", "v1", "deployments", "Deployment"),
    ("example.org", "v1", "widgets", "Widget"),
];
const WIDGETS: &str = r"
apiVersion: apiextensions.k8s.io/v1
kind: CustomResourceDefinition
metadata: {name: widgets.example.org}
spec:
  group: example.org
  scope: Namespaced
  names: {plural: widgets, singular: widget, kind: Widget, listKind: WidgetList}
  versions:
    - name: v1
      served: true
      storage: true
      subresources: {status: {}}
      schema:
        openAPIV3Schema:
          type: object
          properties:
            spec:
              type: object
              properties:
                size: {type: integer, default: 3}
                parts:
                  type: array
                  x-kubernetes-list-type: map
                  x-kubernetes-list-map-keys: [name]
                  items: {type: object, required: [name], properties: {name: {type: string}, color: {type: string}}}
            status: {type: object, x-kubernetes-preserve-unknown-fields: true}
";

/// A cluster with a namespace, and what there is in it.
struct Shop {
    cluster: Cluster,
    client: Client,
}

/// One object as it was read.
#[derive(Clone)]
struct Taken {
    id: ObjectId,
    component: Component,
    digest: Digest,
    content: Content,
    beside: Option<Arc<Beside>>,
    raw: Value,
}

type State = BTreeMap<ObjectId, Taken>;

fn api_version(group: &str, version: &str) -> String {
    if group.is_empty() {
        version.to_owned()
    } else {
        format!("{group}/{version}")
    }
}

fn version_of(object: &Value) -> &str {
    object["metadata"]["resourceVersion"].as_str().unwrap_or_default()
}

fn place(id: &ObjectId) -> Place {
    let (group, version, plural, _) = KINDS
        .iter()
        .find(|(group, _, _, kind)| *group == id.group && *kind == id.kind)
        .expect("a kind of the table");
    Place {
        group: (*group).into(),
        version: (*version).into(),
        plural: (*plural).into(),
        namespace: Some(NAMESPACE.into()),
        name: id.name.clone(),
    }
}

impl Shop {
    async fn start(options: ClusterOptions) -> Result<Self> {
        let cluster = Cluster::start(options).await?;
        let client = cluster.admin().await?;
        let shop = Self { cluster, client };
        shop.given(&["create", "namespace", NAMESPACE], None).await?;
        shop.given(&["apply", "-f", "-"], Some(WIDGETS)).await?;
        wait_until(PATIENCE, "Widgets to be served", async || {
            let ran = shop.kubectl(&["get", "widgets"], None).await?;
            ran.success().map(|_| Some(()))
        })
        .await?;
        Ok(shop)
    }

    async fn kubectl(&self, arguments: &[&str], stdin: Option<&str>) -> Result<Ran> {
        let mut all = vec!["--namespace", NAMESPACE];
        all.extend(arguments);
        self.cluster.kubectl(&User::admin(), &all, stdin).await
    }

    async fn given(&self, arguments: &[&str], stdin: Option<&str>) -> Result<()> {
        self.kubectl(arguments, stdin).await?.success().map(drop)
    }

    async fn get(&self, path: &str) -> Result<Value> {
        let request = http::Request::get(path).body(Vec::new())?;
        Ok(self.client.request(request).await?)
    }

    async fn read(&self) -> Result<State> {
        let mut state = State::new();
        for (group, version, plural, kind) in KINDS {
            let root = if group.is_empty() { "/api" } else { "/apis" };
            let path = format!("{root}/{}/namespaces/{NAMESPACE}/{plural}", api_version(group, version));
            let list = self.get(&path).await?;
            for raw in list["items"].as_array().context("items")? {
                let id = ObjectId::new(*group, *kind, raw["metadata"]["name"].as_str().context("a name")?);
                if id.name == "kube-root-ca.crt" {
                    continue;
                }
                let shape = ListShape::builtin(group, kind).unwrap_or_else(ListShape::atomic);
                let normal = normalise(
                    raw.clone(),
                    &KindInfo::new(*group, *version, *kind),
                    &shape,
                    SecretValues::Keep,
                )?;
                let taken = Taken {
                    component: component::of(group, kind),
                    digest: normal.digest(),
                    content: serde_json::from_slice::<Value>(&normal.content)?.into(),
                    beside: normal
                        .beside
                        .as_deref()
                        .map(serde_json::from_slice)
                        .transpose()?
                        .map(Arc::new),
                    raw: raw.clone(),
                    id: id.clone(),
                };
                state.insert(id, taken);
            }
        }
        Ok(state)
    }

    /// What a rollback from `now` to `then` would do.
    fn plan(now: &State, then: &State) -> Result<Plan<Drafted>> {
        let captured: Vec<Captured<'_>> = then
            .values()
            .map(|taken| Captured {
                id: taken.id.clone(),
                component: taken.component,
                digest: taken.digest,
                content: Some(&taken.content),
                beside: taken.beside.as_ref(),
                fingerprints_only: false,
                finished: Some(false),
            })
            .collect();
        let text = |raw: &Value, field: &str| raw["metadata"][field].as_str().unwrap_or_default().to_owned();
        let live: Vec<Live<'_>> = now
            .values()
            .map(|taken| Live {
                id: taken.id.clone(),
                component: taken.component,
                uid: text(&taken.raw, "uid"),
                resource_version: text(&taken.raw, "resourceVersion"),
                digest: taken.digest,
                content: &taken.content,
                raw: &taken.raw,
                in_capture: true,
            })
            .collect();
        let facts = Facts {
            snapshot_started: Some("2020-01-01T00:00:00Z".parse()?),
            captured_kinds: KINDS.iter().map(|(g, _, _, k)| ((*g).into(), (*k).into())).collect(),
            ..Facts::default()
        };
        let options = Options {
            prune: Prune::Created,
            images: Images::AsCaptured,
            components: BTreeSet::from([Component::Policy, Component::Infrastructure]),
            ..Options::default()
        };
        Ok(build(&Inputs {
            captured: &captured,
            live: &live,
            options: &options,
            facts: &facts,
        })?)
    }

    async fn write(&self, item: &Item) -> Result<Result<Written, WriteError>> {
        let made = made(item)?;
        Ok(perform(&self.client, &place(&item.id), &made, false).await)
    }

    /// Everything back to `then`; what was done to each object.
    async fn back(&self, then: &State) -> Result<BTreeMap<ObjectId, Vec<Call>>> {
        let mut done = BTreeMap::new();
        for item in Self::plan(&self.read().await?, then)?.writes() {
            ensure!(item.refusal.is_none(), "{}: {:?}", item.id, item.refusal);
            self.write(item)
                .await?
                .with_context(|| format!("{} {:?}", item.id, item.action))?;
            done.insert(item.id.clone(), made(item)?);
        }
        Ok(done)
    }
}

fn made(item: &Item) -> Result<Vec<Call>> {
    let around = Around {
        owners: &BTreeMap::new(),
        restarted_at: "2026-05-06T07:08:09Z".parse()?,
    };
    Ok(calls(item, &around)?)
}

/// Who owns which field, without times and status.
fn owners(raw: &Value) -> Vec<Value> {
    let mut entries: Vec<Value> = raw["metadata"]["managedFields"]
        .as_array()
        .into_iter()
        .flatten()
        .filter(|entry| entry["subresource"] != "status")
        .cloned()
        .collect();
    for entry in entries.iter_mut().filter_map(Value::as_object_mut) {
        entry.remove("time");
    }
    entries.sort_by_key(ToString::to_string);
    entries
}

/// Four kinds of objects called `name`.
fn manifest(name: &str, generation: u32) -> String {
    let extra = if generation > 1 { "  extra: added" } else { "" };
    let environment = if generation > 1 {
        ", env: [{name: EXTRA, value: added}], livenessProbe: {httpGet: {path: /, port: 80}}"
    } else {
        ""
    };
    format!(
        r#"
apiVersion: v1
kind: ConfigMap
metadata: {{name: {name}, labels: {{generation: g{generation}}}}}
data:
  mode: v{generation}
{extra}
---
apiVersion: v1
kind: Secret
metadata: {{name: {name}}}
stringData: {{password: secret-{generation}}}
---
apiVersion: v1
kind: Service
metadata: {{name: {name}}}
spec:
  selector: {{app: {name}}}
  ports: [{{name: http{generation}, port: {generation}80, targetPort: 80}}]
---
apiVersion: apps/v1
kind: Deployment
metadata: {{name: {name}}}
spec:
  replicas: {generation}
  selector: {{matchLabels: {{app: {name}}}}}
  template:
    metadata: {{labels: {{app: {name}}}}}
    spec:
      containers: [{{name: app, image: "registry.example/app:{generation}", ports: [{{containerPort: 80}}]{environment}}}]
---
apiVersion: example.org/v1
kind: Widget
metadata: {{name: {name}}}
spec: {{parts: [{{name: a, color: c{generation}}}]}}
"#
    )
}

/// How somebody applies.
const WAYS: &[(&str, &[&str])] = &[
    ("ssa", &["apply", "--server-side", "--field-manager=team", "-f", "-"]),
    ("csa", &["apply", "-f", "-"]),
];

/// What happens to an object after the snapshot.
const FATES: &[&str] = &["gone", "changed", "touched", "forced"];

async fn spoil(shop: &Shop, apply: &[&str], name: &str, fate: &str) -> Result<()> {
    match fate {
        "gone" => {
            let all = format!("configmap/{name} secret/{name} service/{name} deployment/{name} widget/{name}");
            let mut arguments = vec!["delete"];
            arguments.extend(all.split(' '));
            shop.given(&arguments, None).await
        }
        "changed" => shop.given(apply, Some(&manifest(name, 2))).await,
        // Somebody adds and changes fields by hand.
        "touched" => {
            for (kind, patch) in [
                ("configmap", json!({"data": {"mode": "by-hand", "note": "by-hand"}})),
                (
                    "secret",
                    json!({"stringData": {"token": "by-hand"}, "metadata": {"labels": {"by": "hand"}}}),
                ),
                ("service", json!({"spec": {"sessionAffinity": "ClientIP"}})),
                (
                    "deployment",
                    json!({"spec": {"minReadySeconds": 1, "template": {"spec": {"nodeSelector": {"by": "hand"}}}}}),
                ),
                (
                    "widget",
                    json!({"spec": {"size": 9, "parts": [{"name": "a", "color": "x"}, {"name": "b"}]}}),
                ),
            ] {
                let patch = patch.to_string();
                let arguments = [
                    "patch",
                    kind,
                    name,
                    "--type=merge",
                    "--field-manager=kubectl-edit",
                    "-p",
                    &patch,
                ];
                shop.given(&arguments, None).await?;
            }
            Ok(())
        }
        // Another applier takes everything over.
        "forced" => {
            let arguments = [
                "apply",
                "--server-side",
                "--field-manager=other",
                "--force-conflicts",
                "-f",
                "-",
            ];
            shop.given(&arguments, Some(&manifest(name, 2))).await
        }
        other => bail!("{other} is no fate"),
    }
}

fn compare(before: &State, after: &State) -> Result<()> {
    ensure!(before.keys().eq(after.keys()), "{:?} {:?}", before.keys(), after.keys());
    for (id, then) in before {
        let now = &after[id];
        ensure!(
            then.digest == now.digest,
            "{id}: {:#}\n{:#}",
            *then.content,
            *now.content
        );
        ensure!(
            owners(&then.raw) == owners(&now.raw),
            "owners of {id}: {:#?}\nnow {:#?}",
            owners(&then.raw),
            owners(&now.raw)
        );
    }
    Ok(())
}

#[tokio::test(flavor = "multi_thread")]
async fn former_owners_apply_again_without_a_conflict_and_without_a_difference() -> Result<()> {
    let shop = Shop::start(ClusterOptions::named("writes")).await?;
    for (way, apply) in WAYS {
        for fate in FATES {
            shop.given(apply, Some(&manifest(&format!("{way}-{fate}"), 1))).await?;
        }
    }
    // Two appliers of one object, one of them only of a label and a key.
    let half = |generation: u32| {
        json!({"apiVersion": "v1", "kind": "ConfigMap", "metadata": {"name": "shared", "labels": {"b": format!("{generation}")}},
            "data": {"b": format!("{generation}")}})
        .to_string()
    };
    let other_half = |generation: u32| {
        json!({"apiVersion": "v1", "kind": "ConfigMap", "metadata": {"name": "shared"}, "data": {"a": format!("{generation}")}})
            .to_string()
    };
    let (team_a, team_b) = (
        ["apply", "--server-side", "--field-manager=team-a", "-f", "-"],
        ["apply", "--server-side", "--field-manager=team-b", "-f", "-"],
    );
    shop.given(&team_a, Some(&other_half(1))).await?;
    shop.given(&team_b, Some(&half(1))).await?;
    // A workload that something else scales, and one that was made by hand.
    shop.given(WAYS[0].1, Some(&manifest("scaled", 1).replace("  replicas: 1\n", "")))
        .await?;
    shop.given(&["scale", "deployment/scaled", "--replicas=2"], None)
        .await?;
    shop.given(&["create", "configmap", "made", "--from-literal=a=1"], None)
        .await?;
    for (way, _) in WAYS {
        for fate in FATES {
            let rollout = format!("deployment/{way}-{fate}");
            shop.given(&["rollout", "status", &rollout, "--timeout=60s"], None)
                .await?;
        }
    }

    let before = shop.read().await?;
    for (way, apply) in WAYS {
        for fate in FATES {
            spoil(&shop, apply, &format!("{way}-{fate}"), fate).await?;
        }
    }
    shop.given(&team_a, Some(&other_half(2))).await?;
    shop.given(&team_b, Some(&half(2))).await?;
    shop.given(
        &[
            "patch",
            "configmap",
            "shared",
            "--type=merge",
            "-p",
            r#"{"data":{"c":"3"}}"#,
        ],
        None,
    )
    .await?;
    shop.given(&["scale", "deployment/scaled", "--replicas=3"], None)
        .await?;
    shop.given(&["delete", "configmap", "made"], None).await?;
    shop.given(&["create", "configmap", "new", "--from-literal=a=1"], None)
        .await?;

    let done = shop.back(&before).await?;
    let made = shop.read().await?;
    compare(&before, &made)?;
    // One call where one is enough.
    let kind_of = |kind: &str, group: &str, name: &str| done[&ObjectId::new(group, kind, name)].clone();
    for (object, expected) in [
        (("ConfigMap", "", "ssa-gone"), "Apply"),
        (("ConfigMap", "", "ssa-changed"), "Apply"),
        (("Deployment", "apps", "ssa-changed"), "Apply"),
        (("ConfigMap", "", "ssa-touched"), "Put Fields"),
        (("ConfigMap", "", "csa-gone"), "Post"),
        (("Secret", "", "csa-changed"), "Put"),
        (("ConfigMap", "", "shared"), "Put Fields"),
        (("ConfigMap", "", "new"), "Delete"),
    ] {
        let calls = kind_of(object.0, object.1, object.2);
        let names: Vec<String> = calls
            .iter()
            .map(|call| {
                format!("{call:?}")
                    .split([' ', '{'])
                    .next()
                    .unwrap_or_default()
                    .to_owned()
            })
            .collect();
        ensure!(names.join(" ") == expected, "{object:?}: {names:?}");
    }
    ensure!(
        Shop::plan(&made, &before)?.is_empty(),
        "{:?}",
        Shop::plan(&made, &before)?.summary()
    );

    // Everybody applies again: no conflict, no write, no difference.
    for (way, apply) in WAYS {
        for fate in FATES {
            let name = format!("{way}-{fate}");
            let mut diff = vec!["diff", "-f", "-"];
            if *way == "ssa" {
                diff.extend(["--server-side", "--field-manager=team"]);
            }
            let ran = shop.kubectl(&diff, Some(&manifest(&name, 1))).await?;
            ensure!(ran.status.code() == Some(0), "{name} differs: {ran}");
            shop.given(apply, Some(&manifest(&name, 1))).await?;
        }
    }
    shop.given(&team_a, Some(&other_half(1))).await?;
    shop.given(&team_b, Some(&half(1))).await?;
    shop.given(WAYS[0].1, Some(&manifest("scaled", 1).replace("  replicas: 1\n", "")))
        .await?;
    let again = shop.read().await?;
    for (id, now) in &again {
        // Controllers go on writing status.
        let same = id.kind == "Deployment" || version_of(&now.raw) == version_of(&made[id].raw);
        ensure!(same, "{id} was written: {:#}\n{:#}", made[id].raw, now.raw);
        ensure!(
            now.raw["metadata"]["generation"] == made[id].raw["metadata"]["generation"],
            "{id} was changed"
        );
    }
    compare(&before, &again)?;
    ensure!(again[&ObjectId::new("apps", "Deployment", "scaled")].raw["spec"]["replicas"] == 2);
    shop.cluster.stop().await
}

#[tokio::test(flavor = "multi_thread")]
async fn helm_upgrades_again_after_a_rollback_however_it_writes() -> Result<()> {
    let shop = Shop::start(ClusterOptions::named("helm-writes")).await?;
    let charts = tempfile::tempdir()?;
    let chart = |generation: u32| -> Result<String> {
        let directory = charts.path().join(format!("g{generation}"));
        std::fs::create_dir_all(directory.join("templates"))?;
        std::fs::write(
            directory.join("Chart.yaml"),
            format!("apiVersion: v2\nname: shop\nversion: 0.{generation}.0\n"),
        )?;
        let body = manifest("{{ .Release.Name }}", generation).replace("{{ .Release.Name }}}", "{{ .Release.Name }} }");
        std::fs::write(directory.join("templates/all.yaml"), body)?;
        Ok(directory.display().to_string())
    };
    let (first, second) = (chart(1)?, chart(2)?);
    let helm = async |release: &str, chart: &str, mode: &str| -> Result<()> {
        let mode = format!("--server-side={mode}");
        let arguments = ["upgrade", "--install", release, chart, "--namespace", NAMESPACE, &mode];
        shop.cluster
            .helm(&User::admin(), &arguments, None)
            .await?
            .success()
            .map(drop)
    };
    for mode in ["true", "false"] {
        helm(&format!("release-{mode}"), &first, mode).await?;
    }
    let before = shop.read().await?;
    for mode in ["true", "false"] {
        let release = format!("release-{mode}");
        helm(&release, &second, mode).await?;
        shop.given(&["delete", "secret", &release], None).await?;
        shop.given(
            &[
                "patch",
                "service",
                &release,
                "--type=merge",
                "-p",
                r#"{"spec":{"sessionAffinity":"ClientIP"}}"#,
            ],
            None,
        )
        .await?;
    }
    shop.back(&before).await?;
    let made = shop.read().await?;
    for (id, then) in before.iter().filter(|(id, _)| !id.name.starts_with("sh.helm.release")) {
        let now = made.get(id).with_context(|| format!("{id} is absent"))?;
        ensure!(
            then.digest == now.digest,
            "{id}: {:#}\n{:#}",
            *then.content,
            *now.content
        );
        ensure!(owners(&then.raw) == owners(&now.raw), "owners of {id}");
    }
    for mode in ["true", "false"] {
        helm(&format!("release-{mode}"), &first, mode).await?;
    }
    let again = shop.read().await?;
    for (id, now) in again.iter().filter(|(id, _)| !id.name.starts_with("sh.helm.release")) {
        ensure!(now.digest == made[id].digest, "{id} differs after helm");
        ensure!(
            owners(&now.raw) == owners(&made[id].raw),
            "owners of {id} differ after helm"
        );
    }
    shop.cluster.stop().await
}

fn a_map(name: &str, data: &Value) -> String {
    json!({"apiVersion": "v1", "kind": "ConfigMap", "metadata": {"name": name}, "data": data}).to_string()
}

#[tokio::test(flavor = "multi_thread")]
async fn what_changed_went_or_appeared_since_the_plan_is_drift_and_is_not_written() -> Result<()> {
    let shop = Shop::start(ClusterOptions::api_server_only("drift")).await?;
    let many = ["one", "two"];
    for owner in ["apply", "update", "both"] {
        for name in ["changed", "gone", "again", "appeared"] {
            let name = format!("{owner}-{name}");
            for manager in if owner == "both" { &many[..] } else { &many[..1] } {
                let body = json!({"apiVersion": "v1", "kind": "ConfigMap", "metadata": {"name": name},
                    "data": {"mode": "1", (*manager): "x"}});
                let flag = format!("--field-manager={manager}");
                let arguments: Vec<&str> = if owner == "update" {
                    vec!["create", &flag, "-f", "-"]
                } else {
                    vec!["apply", "--server-side", &flag, "-f", "-"]
                };
                shop.given(&arguments, Some(&body.to_string())).await?;
            }
        }
    }
    let then = shop.read().await?;
    for id in then.keys() {
        if id.name.ends_with("appeared") {
            shop.given(&["delete", "configmap", &id.name], None).await?;
        } else {
            let arguments = [
                "patch",
                "configmap",
                &id.name,
                "--type=merge",
                "-p",
                r#"{"data":{"mode":"2"}}"#,
            ];
            shop.given(&arguments, None).await?;
        }
    }
    for name in ["pruned-changed", "pruned-again"] {
        shop.given(&["create", "-f", "-"], Some(&a_map(name, &json!({"a": "1"}))))
            .await?;
    }
    let plan = Shop::plan(&shop.read().await?, &then)?;

    // The world moves on.
    for id in then.keys() {
        if id.name.ends_with("changed") {
            let arguments = [
                "patch",
                "configmap",
                &id.name,
                "--type=merge",
                "-p",
                r#"{"data":{"mode":"3"}}"#,
            ];
            shop.given(&arguments, None).await?;
        } else if id.name.ends_with("gone") {
            shop.given(&["delete", "configmap", &id.name], None).await?;
        } else if id.name.ends_with("again") {
            let now = shop
                .kubectl(&["get", "configmap", &id.name, "-o", "json"], None)
                .await?
                .json()?;
            shop.given(&["delete", "configmap", &id.name], None).await?;
            shop.given(&["create", "-f", "-"], Some(&a_map(&id.name, &now["data"])))
                .await?;
        } else if id.name.ends_with("appeared") {
            shop.given(&["create", "-f", "-"], Some(&a_map(&id.name, &json!({"foreign": "1"}))))
                .await?;
        }
    }
    shop.given(
        &[
            "patch",
            "configmap",
            "pruned-changed",
            "--type=merge",
            "-p",
            r#"{"data":{"a":"2"}}"#,
        ],
        None,
    )
    .await?;
    shop.given(&["delete", "configmap", "pruned-again"], None).await?;
    shop.given(&["create", "-f", "-"], Some(&a_map("pruned-again", &json!({"a": "1"}))))
        .await?;

    let before = shop.read().await?;
    let mut seen = 0;
    for item in plan.writes() {
        match shop.write(item).await? {
            Err(WriteError::Drift(message)) => ensure!(message.contains(&item.id.name), "{message}"),
            other => bail!("{} {:?}: {other:?}", item.id, item.action),
        }
        seen += 1;
    }
    ensure!(seen == 14, "{seen} items");
    let after = shop.read().await?;
    ensure!(before.keys().eq(after.keys()));
    for (id, then) in &before {
        ensure!(version_of(&then.raw) == version_of(&after[id].raw), "{id} was written");
    }
    shop.cluster.stop().await
}

#[tokio::test(flavor = "multi_thread")]
async fn an_object_whose_status_alone_moved_is_written_and_an_interrupted_one_is_finished() -> Result<()> {
    let shop = Shop::start(ClusterOptions::api_server_only("status")).await?;
    for (way, apply) in WAYS {
        shop.given(apply, Some(&manifest(way, 1))).await?;
    }
    shop.given(
        &["apply", "--server-side", "--field-manager=second", "-f", "-"],
        Some(r#"{"apiVersion":"apps/v1","kind":"Deployment","metadata":{"name":"ssa","labels":{"second":"1"}}}"#),
    )
    .await?;
    let then = shop.read().await?;
    for (way, apply) in WAYS {
        shop.given(apply, Some(&manifest(way, 2))).await?;
    }
    let plan = Shop::plan(&shop.read().await?, &then)?;
    let status = r#"{"metadata":{"annotations":{"deployment.kubernetes.io/revision":"7"}},"status":{"replicas":3}}"#;
    for (way, _) in WAYS {
        let arguments = [
            "patch",
            "deployment",
            way,
            "--type=merge",
            "--subresource=status",
            "-p",
            status,
        ];
        shop.given(&arguments, None).await?;
    }
    for item in plan.writes() {
        let calls = made(item)?;
        let id = &item.id;
        let interrupted = id.kind == "Deployment" && calls.len() == 2;
        let part = if interrupted { &calls[..1] } else { &calls[..] };
        perform(&shop.client, &place(id), part, false)
            .await
            .with_context(|| id.to_string())?;
        if interrupted {
            let now = shop.read().await?;
            ensure!(now[id].digest == then[id].digest && owners(&now[id].raw) != owners(&then[id].raw));
            ensure!(now[id].raw["metadata"]["managedFields"].to_string().contains(RESTORING));
            // The resume sees it although nothing differs.
            let resumed = Shop::plan(&now, &then)?;
            let item = resumed
                .writes()
                .find(|item| item.id == *id)
                .context("an unfinished object")?;
            ensure!(item.action == Action::Update, "{:?}", item.action);
            shop.write(item).await??;
        }
    }
    let now = shop.read().await?;
    compare(&then, &now)?;
    for (way, _) in WAYS {
        let raw = &now[&ObjectId::new("apps", "Deployment", *way)].raw;
        ensure!(raw["status"]["replicas"] == 3, "{:#}", raw["status"]);
        ensure!(raw["metadata"]["annotations"]["deployment.kubernetes.io/revision"] == "7");
        let entries = raw["metadata"]["managedFields"].as_array().context("entries")?;
        ensure!(entries.iter().any(|entry| entry["subresource"] == "status") && !is_unfinished(entries));
    }
    shop.cluster.stop().await
}

#[tokio::test(flavor = "multi_thread")]
async fn a_restart_is_what_kubectl_does_and_survives_the_owners_next_apply() -> Result<()> {
    let shop = Shop::start(ClusterOptions::api_server_only("restart")).await?;
    for name in ["ours", "theirs"] {
        shop.given(WAYS[0].1, Some(&manifest(name, 1))).await?;
    }
    shop.given(&["rollout", "restart", "deployment/theirs"], None).await?;
    let state = shop.read().await?;
    let ours = &state[&ObjectId::new("apps", "Deployment", "ours")];
    let call = |uid: &str| {
        vec![Call::Merge {
            manager: "kubectl-rollout".into(),
            body: json!({"metadata": {"uid": uid}, "spec": {"template": {"metadata": {"annotations":
                {"kubectl.kubernetes.io/restartedAt": "2026-05-06T07:08:09Z"}}}}})
            .into(),
        }]
    };
    let stale = perform(&shop.client, &place(&ours.id), &call("another"), false).await;
    ensure!(matches!(stale, Err(WriteError::Drift(_))), "{stale:?}");
    let uid = ours.raw["metadata"]["uid"].as_str().context("uid")?;
    let first = perform(&shop.client, &place(&ours.id), &call(uid), false).await?;
    let second = perform(&shop.client, &place(&ours.id), &call(uid), false).await?;
    ensure!(
        first.resource_version == second.resource_version,
        "a repeated restart wrote"
    );
    let theirs = &state[&ObjectId::new("apps", "Deployment", "theirs")];
    let text = |raw: &Value| Value::from(owners(raw)).to_string();
    ensure!(
        text(&first.object) == text(&theirs.raw).replace("theirs", "ours"),
        "{}\n{}",
        text(&first.object),
        text(&theirs.raw)
    );
    shop.given(WAYS[0].1, Some(&manifest("ours", 1))).await?;
    let after = shop.read().await?;
    ensure!(
        version_of(&after[&ours.id].raw) == second.resource_version,
        "the apply wrote"
    );
    shop.cluster.stop().await
}

#[tokio::test(flavor = "multi_thread")]
async fn a_dry_run_says_what_the_server_says_and_writes_nothing() -> Result<()> {
    let shop = Shop::start(ClusterOptions::api_server_only("dry")).await?;
    for (way, apply) in WAYS {
        shop.given(apply, Some(&manifest(way, 1))).await?;
    }
    let then = shop.read().await?;
    shop.given(WAYS[0].1, Some(&manifest("ssa", 2))).await?;
    shop.given(&["delete", "configmap,secret,service,deployment,widget", "csa"], None)
        .await?;
    shop.given(&["create", "configmap", "new"], None).await?;
    let before = shop.read().await?;
    for item in Shop::plan(&before, &then)?.writes() {
        let written = perform(&shop.client, &place(&item.id), &made(item)?, true).await?;
        ensure!(item.action == Action::Delete || written.object["metadata"]["name"] == item.id.name.as_str());
    }
    let after = shop.read().await?;
    ensure!(before.keys().eq(after.keys()));
    for (id, then) in &before {
        ensure!(version_of(&then.raw) == version_of(&after[id].raw), "{id} was written");
        ensure!(state(&then.raw) == state(&after[id].raw), "{id} was changed");
    }
    shop.cluster.stop().await
}

/// RFC 7386, as the server does it.
fn merged(mut object: Value, patch: &Value) -> Value {
    if let (Some(map), Some(patch)) = (object.as_object_mut(), patch.as_object()) {
        for (key, value) in patch {
            if value.is_null() {
                map.remove(key);
            } else {
                let old = map.remove(key).unwrap_or_default();
                map.insert(key.clone(), merged(old, value));
            }
        }
        return object;
    }
    patch.clone()
}

#[tokio::test(flavor = "multi_thread")]
async fn what_counts_as_immutable_is_what_the_server_refuses_to_change() -> Result<()> {
    let shop = Shop::start(ClusterOptions::api_server_only("immutable")).await?;
    shop.given(&["create", "serviceaccount", "default"], None).await?;
    let template =
        json!({"metadata": {"labels": {"app": "x"}}, "spec": {"containers": [{"name": "a", "image": "a:1"}]}});
    let selector = json!({"matchLabels": {"app": "x"}});
    let claim = json!([{"metadata": {"name": "data"}, "spec": {"accessModes": ["ReadWriteOnce"],
        "resources": {"requests": {"storage": "1Gi"}}}}]);
    let objects = json!([
        {"apiVersion": "v1", "kind": "ConfigMap", "metadata": {"name": "frozen"}, "immutable": true, "data": {"a": "1"}},
        {"apiVersion": "v1", "kind": "Secret", "metadata": {"name": "x"}, "type": "Opaque"},
        {"apiVersion": "v1", "kind": "Service", "metadata": {"name": "x"}, "spec": {"ports": [{"port": 80}]}},
        {"apiVersion": "v1", "kind": "PersistentVolumeClaim", "metadata": {"name": "x"}, "spec": {"storageClassName": "a",
            "accessModes": ["ReadWriteOnce"], "resources": {"requests": {"storage": "1Gi"}}}},
        {"apiVersion": "v1", "kind": "Pod", "metadata": {"name": "x"}, "spec": {"automountServiceAccountToken": false, "containers": [{"name": "a", "image": "a:1"}]}},
        {"apiVersion": "v1", "kind": "ResourceQuota", "metadata": {"name": "x"}, "spec": {"hard": {"pods": "5"}, "scopes": ["BestEffort"]}},
        {"apiVersion": "apps/v1", "kind": "Deployment", "metadata": {"name": "x"}, "spec": {"selector": selector, "template": template}},
        {"apiVersion": "apps/v1", "kind": "DaemonSet", "metadata": {"name": "x"}, "spec": {"selector": selector, "template": template}},
        {"apiVersion": "apps/v1", "kind": "StatefulSet", "metadata": {"name": "x"}, "spec": {"serviceName": "x",
            "selector": selector, "template": template, "volumeClaimTemplates": claim}},
        {"apiVersion": "batch/v1", "kind": "Job", "metadata": {"name": "x"}, "spec": {"completions": 2, "completionMode": "NonIndexed",
            "template": {"spec": {"restartPolicy": "Never", "containers": [{"name": "a", "image": "a:1"}]}}}},
        {"apiVersion": "batch/v1", "kind": "CronJob", "metadata": {"name": "x"}, "spec": {"schedule": "0 0 * * *",
            "jobTemplate": {"spec": {"template": {"spec": {"restartPolicy": "Never", "containers": [{"name": "a", "image": "a:1"}]}}}}}},
        {"apiVersion": "rbac.authorization.k8s.io/v1", "kind": "RoleBinding", "metadata": {"name": "x"},
            "roleRef": {"apiGroup": "rbac.authorization.k8s.io", "kind": "Role", "name": "a"}},
    ]);
    for object in objects.as_array().context("a list")? {
        shop.given(&["create", "-f", "-"], Some(&object.to_string())).await?;
    }
    let other = json!({"app": "y"});
    let pod = |field: &str, value: Value| {
        let mut container = json!({"name": "a", "image": "a:1"});
        container[field] = value;
        json!({"spec": {"containers": [container]}})
    };
    for (kind, name, patch, refused) in [
        ("ConfigMap", "frozen", json!({"data": {"a": "2"}}), true),
        ("ConfigMap", "frozen", json!({"immutable": false}), true),
        (
            "ConfigMap",
            "frozen",
            json!({"metadata": {"labels": {"a": "b"}}}),
            false,
        ),
        ("Secret", "x", json!({"type": "example.org/x"}), true),
        ("Secret", "x", json!({"data": {"a": "Yg=="}}), false),
        (
            "Service",
            "x",
            json!({"spec": {"clusterIP": "None", "clusterIPs": ["None"]}}),
            true,
        ),
        ("Service", "x", json!({"spec": {"type": "NodePort"}}), false),
        ("Service", "x", json!({"spec": {"selector": other}}), false),
        (
            "PersistentVolumeClaim",
            "x",
            json!({"spec": {"storageClassName": "b"}}),
            true,
        ),
        (
            "PersistentVolumeClaim",
            "x",
            json!({"spec": {"accessModes": ["ReadWriteMany"]}}),
            true,
        ),
        (
            "PersistentVolumeClaim",
            "x",
            json!({"metadata": {"labels": {"a": "b"}}}),
            false,
        ),
        ("Pod", "x", pod("image", json!("a:2")), false),
        ("Pod", "x", pod("command", json!(["x"])), true),
        ("Pod", "x", json!({"spec": {"hostNetwork": true}}), true),
        ("Pod", "x", json!({"spec": {"terminationGracePeriodSeconds": 7}}), true),
        ("Pod", "x", json!({"spec": {"activeDeadlineSeconds": 7}}), false),
        (
            "ResourceQuota",
            "x",
            json!({"spec": {"scopes": ["NotBestEffort"]}}),
            true,
        ),
        ("ResourceQuota", "x", json!({"spec": {"hard": {"pods": "6"}}}), false),
        (
            "Deployment",
            "x",
            json!({"spec": {"selector": {"matchLabels": other}, "template": {"metadata": {"labels": other}}}}),
            true,
        ),
        (
            "Deployment",
            "x",
            json!({"spec": {"strategy": {"type": "Recreate", "rollingUpdate": null}, "replicas": 3}}),
            false,
        ),
        (
            "DaemonSet",
            "x",
            json!({"spec": {"selector": {"matchLabels": other}, "template": {"metadata": {"labels": other}}}}),
            true,
        ),
        ("StatefulSet", "x", json!({"spec": {"serviceName": "y"}}), true),
        (
            "StatefulSet",
            "x",
            json!({"spec": {"podManagementPolicy": "Parallel"}}),
            true,
        ),
        (
            "StatefulSet",
            "x",
            json!({"spec": {"volumeClaimTemplates": null}}),
            true,
        ),
        (
            "StatefulSet",
            "x",
            json!({"spec": {"replicas": 3, "minReadySeconds": 5, "revisionHistoryLimit": 3,
            "updateStrategy": {"type": "OnDelete", "rollingUpdate": null}}}),
            false,
        ),
        ("Job", "x", json!({"spec": {"completions": 3}}), true),
        (
            "Job",
            "x",
            json!({"spec": {"template": {"spec": {"restartPolicy": "OnFailure"}}}}),
            true,
        ),
        (
            "Job",
            "x",
            json!({"spec": {"parallelism": 3, "backoffLimit": 2, "suspend": true}}),
            false,
        ),
        (
            "CronJob",
            "x",
            json!({"spec": {"schedule": "1 0 * * *", "suspend": true}}),
            false,
        ),
        (
            "RoleBinding",
            "x",
            json!({"roleRef": {"apiGroup": "rbac.authorization.k8s.io", "kind": "Role", "name": "b"}}),
            true,
        ),
        (
            "RoleBinding",
            "x",
            json!({"subjects": [{"kind": "ServiceAccount", "name": "x", "namespace": "shop"}]}),
            false,
        ),
    ] {
        let live = shop.kubectl(&["get", kind, name, "-o", "json"], None).await?.json()?;
        let text = patch.to_string();
        let arguments = ["patch", kind, name, "--type=merge", "--dry-run=server", "-p", &text];
        let ran = shop.kubectl(&arguments, None).await?;
        ensure!(ran.status.success() != refused, "{kind} {patch}: {ran}");
        let group = live["apiVersion"]
            .as_str()
            .and_then(|v| v.split_once('/'))
            .map_or("", |(group, _)| group);
        let mut wanted = merged(live.clone(), &patch);
        if kind == "Pod" && patch["spec"]["containers"].is_array() {
            // A list is replaced whole; the server fills in what it chose before.
            let mut container = live["spec"]["containers"][0].clone();
            for (field, value) in patch["spec"]["containers"][0].as_object().into_iter().flatten() {
                container[field.as_str()] = value.clone();
            }
            wanted["spec"]["containers"] = json!([container]);
        }
        let found = immutable_changes(&ObjectId::new(group, kind, name), &live, &wanted);
        ensure!(
            found.is_empty() != refused,
            "{kind} {patch}: {found:?}, and the server: {ran}"
        );
    }
    shop.cluster.stop().await
}

fn check(plan: &Value, name: &str) -> (String, String) {
    let checks = plan["spec"]["preflight"].as_array().cloned().unwrap_or_default();
    let found = checks
        .into_iter()
        .find(|check| check["check"] == name)
        .unwrap_or_default();
    let text = |field: &str| found[field].as_str().unwrap_or_default().to_owned();
    (text("result"), text("detail"))
}

#[tokio::test(flavor = "multi_thread")]
async fn all_that_the_server_would_refuse_is_told_at_once_and_before_a_write() -> Result<()> {
    let installed = Installed::start("preflight", Store::Directory).await?;
    let kubectl =
        async |arguments: &[&str]| -> Result<Ran> { installed.cluster.kubectl(&User::admin(), arguments, None).await };
    let given = r#"
apiVersion: v1
kind: Namespace
metadata: {name: shop}
---
apiVersion: rbac.authorization.k8s.io/v1
kind: RoleBinding
metadata: {name: team, namespace: shop}
roleRef: {apiGroup: rbac.authorization.k8s.io, kind: ClusterRole, name: admin}
subjects: [{kind: User, apiGroup: rbac.authorization.k8s.io, name: alice}]
---
apiVersion: v1
kind: ConfigMap
metadata: {name: fine, namespace: shop}
data: {a: "1"}
---
apiVersion: v1
kind: ConfigMap
metadata: {name: forbidden, namespace: shop}
data: {a: "1"}
---
apiVersion: v1
kind: Service
metadata: {name: web, namespace: shop}
spec: {ports: [{port: 80}]}
"#;
    installed.given(given).await?;
    installed.snapshot("shop", "good", &json!({"lineage": "shop"})).await?;
    for object in ["configmap/fine", "configmap/forbidden", "service/web"] {
        kubectl(&["delete", object, "-n", "shop"]).await?.success()?;
    }
    let alice = User::new("alice", ["shop-team"]);
    let spec = json!({"dryRun": true, "target": {"snapshot": "good"}});
    let fine = asked(&installed, &alice, "fine", &spec).await?;
    ensure!(fine["phase"] == "Planned", "{}", said(&fine));
    let made = plan(&installed, &fine).await?;
    for name in ["OperatorRights", "NamespaceActive", "QuotaSum", "DryRuns"] {
        ensure!(check(&made, name).0 == "Passed", "{name}: {:?}", check(&made, name));
    }

    installed
        .given(
            r#"
apiVersion: v1
kind: ResourceQuota
metadata: {name: small, namespace: shop}
spec: {hard: {configmaps: "2", count/services: "0"}}
---
apiVersion: admissionregistration.k8s.io/v1
kind: ValidatingAdmissionPolicy
metadata: {name: no-forbidden}
spec:
  matchConstraints: {resourceRules: [{apiGroups: [""], apiVersions: [v1], operations: [CREATE], resources: [configmaps]}]}
  validations: [{expression: "object.metadata.name != 'forbidden'", message: "nothing is called forbidden"}]
---
apiVersion: admissionregistration.k8s.io/v1
kind: ValidatingAdmissionPolicyBinding
metadata: {name: no-forbidden}
spec: {policyName: no-forbidden, validationActions: [Deny]}
"#,
        )
        .await?;
    wait_until(PATIENCE, "the policy and the quota to take hold", async || {
        let ran = kubectl(&["create", "configmap", "forbidden", "-n", "shop", "--dry-run=server"]).await?;
        let quota = kubectl(&["get", "resourcequota", "small", "-n", "shop", "-o", "json"])
            .await?
            .json()?;
        let ready = ran.stderr.contains("nothing is called forbidden") && quota["status"]["used"].is_object();
        if ready {
            Ok(Some(()))
        } else {
            Err(anyhow::anyhow!("{ran} {quota}"))
        }
    })
    .await?;
    let refused = asked(&installed, &alice, "refused", &spec).await?;
    ensure!(said(&refused).starts_with("PreflightFailed"), "{}", said(&refused));
    let made = plan(&installed, &refused).await?;
    let (result, detail) = check(&made, "DryRuns");
    ensure!(
        result == "Failed" && detail.contains("nothing is called forbidden"),
        "{result} {detail}"
    );
    let (result, detail) = check(&made, "QuotaSum");
    // One map is there already, and each of the two alone would fit.
    ensure!(
        result == "Failed"
            && detail.contains("configmaps 1 of 2 used, 2 more needed")
            && detail.contains("count/services"),
        "{result} {detail}"
    );
    let left = kubectl(&["get", "configmaps,services", "-n", "shop", "-o", "name"])
        .await?
        .success()?;
    ensure!(!left.stdout.contains("fine") && !left.stdout.contains("web"), "{left}");

    // Without its own rights the operator says which it lacks.
    let chart = concat!(env!("CARGO_MANIFEST_DIR"), "/charts/backstep");
    let upgrade = [
        "upgrade",
        "backstep",
        chart,
        "-n",
        OPERATOR_NAMESPACE,
        "--set",
        "replicas=0,rbac.write=false",
    ];
    installed
        .cluster
        .helm(&User::admin(), &upgrade, None)
        .await?
        .success()?;
    let powerless = asked(&installed, &alice, "powerless", &spec).await?;
    let made = plan(&installed, &powerless).await?;
    let (result, detail) = check(&made, "OperatorRights");
    ensure!(
        result == "Failed" && detail.contains("create configmaps in shop") && detail.contains("rbac.write"),
        "{result} {detail}"
    );
    installed.cluster.stop().await
}
