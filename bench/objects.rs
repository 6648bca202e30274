//! One made-up object of each kind, with the fields that such objects have in real clusters.

use std::collections::BTreeMap;
use std::fmt::Write as _;

use serde_json::{Value, json};

use super::data::{Kind, Object, Touch};
use super::random::{ALPHANUMERIC, HEXADECIMAL, Random};
use super::words::{MANAGERS, ROLES, SETTINGS, TEAMS, TOPICS, VARIABLES};

/// What the objects of one application share.
struct Frame<'a> {
    namespace: &'a str,
    name: String,
    app: String,
    team: &'static str,
    manager: &'static str,
    version: String,
}

/// A namespace: one team, mostly one tool that writes, and some applications.
pub struct Place {
    namespace: String,
    team: &'static str,
    manager: (&'static str, bool),
    /// Name and version.
    apps: Vec<(String, String)>,
}

impl Place {
    /// The place `namespace` for `objects` objects, some eight to an application.
    pub fn new(namespace: &str, objects: usize, random: &mut Random) -> Self {
        let apps = (0..objects.div_ceil(8))
            .map(|_| {
                let version = format!("{}.{}.{}", random.between(0, 4), random.below(30), random.below(12));
                (format!("{}-{}", random.pick(TOPICS), random.pick(ROLES)), version)
            })
            .collect();
        Self {
            namespace: namespace.to_owned(),
            team: random.pick(TEAMS),
            manager: MANAGERS[random.below(MANAGERS.len())],
            apps,
        }
    }

    /// How many applications it has.
    pub fn apps(&self) -> usize {
        self.apps.len()
    }
}

/// The object of `kind` with the given `number` in its namespace, of the application at the index `app`; `bulk` as in [`super::data::DataSet`].
pub fn build(kind: Kind, place: &Place, (app, number): (usize, usize), bulk: usize, random: &mut Random) -> Object {
    let namespace = place.namespace.as_str();
    let (manager, applied) = if random.chance(90) {
        place.manager
    } else {
        MANAGERS[random.below(MANAGERS.len())]
    };
    let (app, version) = place.apps[app % place.apps.len()].clone();
    let suffix = random.pick(&["", "-config", "-v2", "-eu"]);
    let frame = Frame {
        namespace,
        name: format!("{app}{suffix}-{number}"),
        app,
        team: place.team,
        manager,
        version,
    };
    let mut body = match kind {
        Kind::ConfigMap => config_map(&frame, bulk, random),
        Kind::Secret => secret(&frame, number, bulk, random),
        Kind::Deployment => workload(&frame, random, "Deployment"),
        Kind::StatefulSet => workload(&frame, random, "StatefulSet"),
        Kind::CronJob => cron_job(&frame, random),
        Kind::Service => service(&frame, random),
        Kind::ServiceAccount => {
            json!({"automountServiceAccountToken": false, "imagePullSecrets": [{"name": "registry"}]})
        }
        Kind::Ingress => ingress(&frame),
        Kind::NetworkPolicy => network_policy(&frame, random),
        Kind::HorizontalPodAutoscaler => autoscaler(&frame, random),
        Kind::PodDisruptionBudget => {
            json!({"spec": {"maxUnavailable": 1, "selector": {"matchLabels": selector(&frame)}}})
        }
        Kind::Role => json!({"rules": [
            {"apiGroups": [""], "resources": ["configmaps", "secrets"], "verbs": ["get", "list", "watch"]},
            {"apiGroups": ["coordination.k8s.io"], "resources": ["leases"], "verbs": ["get", "create", "update"]},
        ]}),
        Kind::RoleBinding => json!({
            "roleRef": {"apiGroup": "rbac.authorization.k8s.io", "kind": "Role", "name": frame.app},
            "subjects": [{"kind": "ServiceAccount", "name": frame.app, "namespace": namespace}],
        }),
        Kind::PersistentVolumeClaim => json!({"spec": {
            "accessModes": ["ReadWriteOnce"],
            "storageClassName": random.pick(&["standard", "fast"]),
            "resources": {"requests": {"storage": format!("{}Gi", random.between(1, 200))}},
        }}),
    };
    body["apiVersion"] = kind.api_version().into();
    body["kind"] = format!("{kind:?}").into();
    body["metadata"] = metadata(&frame, random);
    Object {
        kind,
        namespace: namespace.to_owned(),
        name: frame.name.clone(),
        touch: touch(kind, &frame, random),
        body,
        manager,
        applied,
    }
}

fn selector(frame: &Frame<'_>) -> Value {
    json!({"app.kubernetes.io/name": frame.app, "app.kubernetes.io/instance": frame.name})
}

fn metadata(frame: &Frame<'_>, random: &mut Random) -> Value {
    let mut labels = selector(frame);
    labels["app.kubernetes.io/version"] = frame.version.as_str().into();
    labels["team"] = frame.team.into();
    let mut annotations = BTreeMap::new();
    match frame.manager {
        "helm" => {
            labels["app.kubernetes.io/managed-by"] = "Helm".into();
            labels["helm.sh/chart"] = format!("{}-{}", frame.app, frame.version).into();
            annotations.insert("meta.helm.sh/release-name".to_owned(), frame.app.clone());
            annotations.insert("meta.helm.sh/release-namespace".to_owned(), frame.namespace.to_owned());
        }
        "kustomize-controller" => {
            labels["kustomize.toolkit.fluxcd.io/name"] = frame.app.as_str().into();
            labels["kustomize.toolkit.fluxcd.io/namespace"] = "flux-system".into();
        }
        "argocd-controller" => {
            annotations.insert(
                "argocd.argoproj.io/tracking-id".to_owned(),
                format!("{}:{}/{}", frame.app, frame.namespace, frame.name),
            );
        }
        _ => {}
    }
    if random.chance(20) {
        annotations.insert("checksum/config".to_owned(), random.text(HEXADECIMAL, 64));
    }
    json!({"name": frame.name, "namespace": frame.namespace, "labels": labels, "annotations": annotations})
}

fn touch(kind: Kind, frame: &Frame<'_>, random: &mut Random) -> Option<Touch> {
    let replicas = random.between(1, 6);
    let (percent, manager, subresource, patch) = match kind {
        Kind::Deployment => (
            80,
            "kube-controller-manager",
            "/status",
            json!({"status": {
                "observedGeneration": 1, "replicas": replicas, "readyReplicas": replicas, "updatedReplicas": replicas,
                "availableReplicas": replicas,
                "conditions": [
                    {"type": "Available", "status": "True", "reason": "MinimumReplicasAvailable",
                     "message": "Deployment has minimum availability.", "lastUpdateTime": "2026-03-01T10:00:00Z",
                     "lastTransitionTime": "2026-03-01T10:00:00Z"},
                    {"type": "Progressing", "status": "True", "reason": "NewReplicaSetAvailable",
                     "message": format!("ReplicaSet \"{}\" has successfully progressed.", frame.name),
                     "lastUpdateTime": "2026-03-01T10:00:00Z", "lastTransitionTime": "2026-03-01T10:00:00Z"},
                ],
            }}),
        ),
        Kind::ConfigMap | Kind::Secret | Kind::Service => (
            15,
            "kubectl-annotate",
            "",
            json!({"metadata": {"annotations": {"example.com/owner": format!("{}@example.com", frame.team)}}}),
        ),
        _ => (0, "", "", Value::Null),
    };
    random.chance(percent).then_some(Touch {
        manager,
        subresource,
        patch,
    })
}

fn value(random: &mut Random) -> String {
    match random.below(6) {
        0 => random.between(1, 9_999).to_string(),
        1 => format!("{}s", random.between(1, 600)),
        2 => random
            .pick(&[
                "true",
                "false",
                "info",
                "debug",
                "json",
                "eu-central-1",
                "1.2",
                "EUR",
                "de_DE",
            ])
            .to_owned(),
        3 => format!(
            "https://{}.{}.example.com/{}",
            random.pick(ROLES),
            random.pick(TEAMS),
            random.pick(TOPICS)
        ),
        4 => format!("{}-{}", random.pick(TOPICS), random.pick(TEAMS)),
        _ => format!("{}Mi", 1 << random.between(3, 11)),
    }
}

/// The lines of one application's settings: the same in each of its objects, but for one in ten.
struct Lines<'a> {
    common: Random,
    own: &'a mut Random,
}

impl<'a> Lines<'a> {
    fn new(app: &str, own: &'a mut Random) -> Self {
        let seed = app
            .bytes()
            .fold(0_u64, |seed, byte| seed.wrapping_mul(31).wrapping_add(u64::from(byte)));
        Self {
            common: Random::new(seed, 0),
            own,
        }
    }

    fn next(&mut self) -> &mut Random {
        if self.own.chance(10) {
            self.own
        } else {
            &mut self.common
        }
    }
}

fn properties(mut source: Lines<'_>, lines: usize) -> String {
    let mut text = String::new();
    for _ in 0..lines {
        let random = source.next();
        let _ = writeln!(
            text,
            "{}.{}={}",
            random.pick(TOPICS),
            random.pick(SETTINGS),
            value(random)
        );
    }
    text
}

fn yaml(mut source: Lines<'_>, lines: usize) -> String {
    let random = source.next();
    let (topic, port) = (random.pick(TOPICS), random.between(8000, 9999));
    let mut text = format!("# settings of {topic}\nserver:\n  port: {port}\n");
    for _ in 0..lines / 3 {
        let random = source.next();
        let (name, first, second) = (random.pick(ROLES), random.pick(TOPICS), random.pick(TOPICS));
        let (setting, value) = (random.pick(SETTINGS), value(random));
        let _ = write!(
            text,
            "  - name: {name}\n    route: /{first}/{second}\n    {setting}: {value}\n"
        );
    }
    text
}

fn config_map(frame: &Frame<'_>, bulk: usize, random: &mut Random) -> Value {
    let mut data = serde_json::Map::new();
    for _ in 0..random.between(1, 6) {
        data.insert(random.pick(SETTINGS).to_owned(), value(random).into());
    }
    let lines = random.between(2, 22) * bulk;
    let text = if random.chance(50) {
        (
            "application.properties",
            properties(Lines::new(&frame.app, random), lines),
        )
    } else {
        ("config.yaml", yaml(Lines::new(&frame.app, random), lines))
    };
    data.insert(text.0.to_owned(), text.1.into());
    data.insert("app".to_owned(), frame.app.as_str().into());
    json!({"data": data})
}

/// One in fifty is a certificate with its key, a few are pull secrets, the rest passwords and tokens.
fn secret(frame: &Frame<'_>, number: usize, bulk: usize, random: &mut Random) -> Value {
    if number == 0 && random.chance(40) || random.chance(1) {
        let pem = |what: &str, lines: usize, random: &mut Random| {
            let mut text = format!("-----BEGIN {what}-----\n");
            for _ in 0..lines {
                let _ = writeln!(text, "{}", random.text(ALPHANUMERIC, 64));
            }
            let _ = writeln!(text, "-----END {what}-----");
            text
        };
        let (certificate, key) = (pem("CERTIFICATE", 20, random), pem("EC PRIVATE KEY", 3, random));
        return json!({"type": "kubernetes.io/tls", "stringData": {"tls.crt": certificate, "tls.key": key}});
    }
    let mut data = serde_json::Map::new();
    data.insert(
        "username".to_owned(),
        format!("{}-{}", frame.app, random.pick(TEAMS)).into(),
    );
    let length = random.between(12, 32);
    data.insert("password".to_owned(), random.text(ALPHANUMERIC, length).into());
    data.insert(
        "url".to_owned(),
        format!(
            "postgres://{}.{}.svc:5432/{}?sslmode=require",
            frame.app,
            frame.namespace,
            random.pick(TOPICS)
        )
        .into(),
    );
    if bulk > 1 {
        data.insert(
            "application.properties".to_owned(),
            properties(Lines::new(&frame.app, random), 15 * bulk).into(),
        );
    }
    if random.chance(20) {
        data.insert("token".to_owned(), random.text(ALPHANUMERIC, 40).into());
    }
    json!({"type": "Opaque", "stringData": data})
}

fn container(frame: &Frame<'_>, name: &str, random: &mut Random) -> Value {
    let port = random.between(8000, 8999);
    let probe = |path: &str, period: usize| json!({"httpGet": {"path": path, "port": "http"}, "periodSeconds": period, "timeoutSeconds": 2, "failureThreshold": 3});
    let mut variables = BTreeMap::new();
    for _ in 0..random.between(1, 6) {
        let name = random.pick(VARIABLES);
        let variable = if random.chance(20) {
            json!({"name": name, "valueFrom": {"secretKeyRef": {"name": frame.app, "key": "password"}}})
        } else {
            json!({"name": name, "value": value(random)})
        };
        variables.insert(name, variable);
    }
    json!({
        "name": name,
        "image": format!("registry.example.com/{}/{name}:{}", frame.team, frame.version),
        "imagePullPolicy": "IfNotPresent",
        "ports": [{"name": "http", "containerPort": port, "protocol": "TCP"}],
        "env": variables.into_values().collect::<Vec<_>>(),
        "envFrom": [{"configMapRef": {"name": frame.app}}],
        "resources": {
            "requests": {"cpu": format!("{}m", 50 * random.between(1, 10)), "memory": format!("{}Mi", 64 << random.below(4))},
            "limits": {"memory": format!("{}Mi", 512 << random.below(3))},
        },
        "readinessProbe": probe("/ready", 5),
        "livenessProbe": probe("/live", 15),
        "securityContext": {"allowPrivilegeEscalation": false, "runAsNonRoot": true, "capabilities": {"drop": ["ALL"]}},
        "volumeMounts": [{"name": "config", "mountPath": "/etc/app", "readOnly": true}, {"name": "tmp", "mountPath": "/tmp"}],
    })
}

fn pod_template(frame: &Frame<'_>, random: &mut Random) -> Value {
    let mut containers = vec![container(frame, "app", random)];
    if random.chance(40) {
        containers.push(container(
            frame,
            random.pick(&["proxy", "log-shipper", "metrics-exporter"]),
            random,
        ));
    }
    let mut spec = json!({
        "serviceAccountName": frame.app,
        "terminationGracePeriodSeconds": 30,
        "containers": containers,
        "volumes": [{"name": "config", "configMap": {"name": frame.app}}, {"name": "tmp", "emptyDir": {}}],
    });
    if random.chance(25) {
        spec["initContainers"] = json!([{
            "name": "migrate", "image": format!("registry.example.com/{}/app:{}", frame.team, frame.version),
            "command": ["/app/migrate", "--wait"],
        }]);
    }
    json!({"metadata": {"labels": selector(frame)}, "spec": spec})
}

fn workload(frame: &Frame<'_>, random: &mut Random, kind: &str) -> Value {
    let mut spec = json!({
        "replicas": random.between(1, 6),
        "selector": {"matchLabels": selector(frame)},
        "template": pod_template(frame, random),
    });
    if kind == "StatefulSet" {
        spec["serviceName"] = frame.app.as_str().into();
    }
    json!({"spec": spec})
}

fn cron_job(frame: &Frame<'_>, random: &mut Random) -> Value {
    let mut template = pod_template(frame, random);
    template["spec"]["restartPolicy"] = "OnFailure".into();
    json!({"spec": {
        "schedule": format!("{} {} * * *", random.below(60), random.below(24)),
        "concurrencyPolicy": "Forbid",
        "jobTemplate": {"spec": {"backoffLimit": 3, "template": template}},
    }})
}

/// Mostly headless: the range of cluster addresses is smaller than the number of Services in L.
fn service(frame: &Frame<'_>, random: &mut Random) -> Value {
    let mut spec = json!({
        "selector": selector(frame),
        "ports": [{"name": "http", "port": 80, "targetPort": "http"}, {"name": "metrics", "port": 9090, "targetPort": 9090}],
    });
    if random.chance(70) {
        spec["clusterIP"] = "None".into();
    }
    json!({"spec": spec})
}

fn ingress(frame: &Frame<'_>) -> Value {
    let host = format!("{}.{}.example.com", frame.app, frame.team);
    json!({"spec": {
        "ingressClassName": "nginx",
        "tls": [{"hosts": [host], "secretName": format!("{}-tls", frame.app)}],
        "rules": [{"host": host, "http": {"paths": [{
            "path": "/", "pathType": "Prefix",
            "backend": {"service": {"name": frame.app, "port": {"name": "http"}}},
        }]}}],
    }})
}

fn network_policy(frame: &Frame<'_>, random: &mut Random) -> Value {
    json!({"spec": {
        "podSelector": {"matchLabels": selector(frame)},
        "policyTypes": ["Ingress"],
        "ingress": [{
            "from": [{"namespaceSelector": {"matchLabels": {"kubernetes.io/metadata.name": random.pick(TEAMS)}}}],
            "ports": [{"port": random.between(8000, 8999), "protocol": "TCP"}],
        }],
    }})
}

fn autoscaler(frame: &Frame<'_>, random: &mut Random) -> Value {
    json!({"spec": {
        "minReplicas": random.between(1, 3),
        "maxReplicas": random.between(4, 20),
        "scaleTargetRef": {"apiVersion": "apps/v1", "kind": "Deployment", "name": frame.name},
        "metrics": [{"type": "Resource", "resource": {
            "name": "cpu", "target": {"type": "Utilization", "averageUtilization": random.between(50, 90)},
        }}],
    }})
}
