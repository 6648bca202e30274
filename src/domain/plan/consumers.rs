//! Who reads a ConfigMap or Secret in a way that does not notice a change, so that a restart is needed.

use std::collections::BTreeSet;

use serde_json::{Map, Value};

use super::{json, workload};
use crate::domain::object::ObjectId;

/// A ConfigMap or Secret that a rollback changes.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct ChangedConfig {
    /// Which one.
    pub id: ObjectId,
    /// Keys whose value changes.
    pub keys: BTreeSet<String>,
    /// Whether it is immutable before or afterwards: a kubelet does not watch such ones at all.
    pub immutable: bool,
}

impl ChangedConfig {
    /// The change from `live` to `wanted`; `None` where the object holds no configuration or no key changes.
    pub fn between(id: &ObjectId, live: Option<&Value>, wanted: Option<&Value>) -> Option<Self> {
        if !id.group.is_empty() || !matches!(id.kind.as_str(), "ConfigMap" | "Secret") {
            return None;
        }
        let mut keys = BTreeSet::new();
        for part in ["data", "binaryData", "stringData"] {
            let (before, after) = (entries(live, part), entries(wanted, part));
            let both = before.into_iter().chain(after).flat_map(Map::keys);
            let differs = |key: &&String| {
                before.and_then(|entries| entries.get(*key)) != after.and_then(|entries| entries.get(*key))
            };
            keys.extend(both.filter(differs).cloned());
        }
        let immutable = [live, wanted]
            .into_iter()
            .flatten()
            .any(|object| json::is_true(object, &["immutable"]));
        (!keys.is_empty()).then(|| Self {
            id: id.clone(),
            keys,
            immutable,
        })
    }
}

fn entries<'a>(object: Option<&'a Value>, part: &str) -> Option<&'a Map<String, Value>> {
    object?.get(part)?.as_object()
}

/// Whether the Pods of `workload` (canonical content) must be restarted to see `changed`.
///
/// They must where a container reads it by `env`, `envFrom` or `subPath`, where an init container mounts it (it read the old
/// files and does not run again), and on any mount of an immutable one. A plain volume mount follows by itself.
pub fn must_restart(id: &ObjectId, workload: &Value, changed: &ChangedConfig) -> bool {
    let Some(spec) = workload::pod_spec(id, workload) else {
        return false;
    };
    let init = json::list(spec, &["initContainers"]).map(|container| {
        // A sidecar keeps running and sees its files change.
        (container, json::text(container, &["restartPolicy"]) != Some("Always"))
    });
    json::list(spec, &["containers"])
        .map(|container| (container, false))
        .chain(init)
        .any(|(container, runs_once)| {
            reads_environment(container, changed) || mounts(spec, container, changed, runs_once || changed.immutable)
        })
}

fn reads_environment(container: &Value, changed: &ChangedConfig) -> bool {
    let (from, key_ref) = match changed.id.kind.as_str() {
        "Secret" => ("secretRef", "secretKeyRef"),
        _ => ("configMapRef", "configMapKeyRef"),
    };
    let named = |reference: &Value| json::text(reference, &["name"]) == Some(changed.id.name.as_str());
    json::list(container, &["envFrom"]).any(|source| source.get(from).is_some_and(named))
        || json::list(container, &["env"]).any(|variable| {
            json::at(variable, &["valueFrom", key_ref]).is_some_and(|reference| {
                named(reference) && json::text(reference, &["key"]).is_some_and(|key| changed.keys.contains(key))
            })
        })
}

fn mounts(spec: &Value, container: &Value, changed: &ChangedConfig, even_plain: bool) -> bool {
    json::list(container, &["volumeMounts"]).any(|mount| {
        let single_file = ["subPath", "subPathExpr"]
            .iter()
            .any(|field| json::text(mount, &[field]).is_some_and(|path| !path.is_empty()));
        (single_file || even_plain)
            && json::text(mount, &["name"]).is_some_and(|volume| is_in_volume(spec, volume, changed))
    })
}

fn is_in_volume(spec: &Value, name: &str, changed: &ChangedConfig) -> bool {
    let is_it = |source: &Value, in_projection: bool| match changed.id.kind.as_str() {
        // A Secret is named `secretName` as a volume and `name` inside a projected one.
        "Secret" => {
            json::text(source, &["secret", if in_projection { "name" } else { "secretName" }])
                == Some(changed.id.name.as_str())
        }
        _ => json::text(source, &["configMap", "name"]) == Some(changed.id.name.as_str()),
    };
    json::list(spec, &["volumes"])
        .filter(|volume| json::text(volume, &["name"]) == Some(name))
        .any(|volume| {
            is_it(volume, false) || json::list(volume, &["projected", "sources"]).any(|source| is_it(source, true))
        })
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;

    fn web() -> ObjectId {
        ObjectId::new("apps", "Deployment", "web")
    }

    fn changed(kind: &str, key: &str, immutable: bool) -> ChangedConfig {
        ChangedConfig {
            id: ObjectId::new("", kind, "cfg"),
            keys: BTreeSet::from([key.to_owned()]),
            immutable,
        }
    }

    fn pods(spec: &Value) -> Value {
        json!({"spec": {"template": {"spec": spec}}})
    }

    #[test]
    fn consumers_by_environment_and_sub_path_must_restart() {
        let by_env = pods(
            &json!({"containers": [{"env": [{"name": "A", "valueFrom": {"configMapKeyRef": {"name": "cfg", "key": "mode"}}}]}]}),
        );
        assert!(must_restart(&web(), &by_env, &changed("ConfigMap", "mode", false)));
        let by_env_from = pods(&json!({"containers": [{"envFrom": [{"secretRef": {"name": "cfg"}}]}]}));
        assert!(must_restart(&web(), &by_env_from, &changed("Secret", "mode", false)));
        let by_sub_path = pods(
            &json!({"containers": [{"volumeMounts": [{"name": "v", "subPath": "mode"}]}],
            "volumes": [{"name": "v", "secret": {"secretName": "cfg"}}]}),
        );
        assert!(must_restart(&web(), &by_sub_path, &changed("Secret", "mode", false)));
    }

    #[test]
    fn a_plain_volume_mount_follows_by_itself() {
        let plain = pods(&json!({"containers": [{"volumeMounts": [{"name": "v"}]}],
            "volumes": [{"name": "v", "projected": {"sources": [{"configMap": {"name": "cfg"}}]}}]}));
        assert!(!must_restart(&web(), &plain, &changed("ConfigMap", "mode", false)));
        assert!(
            must_restart(&web(), &plain, &changed("ConfigMap", "mode", true)),
            "immutable ones are not watched"
        );
    }

    #[test]
    fn an_init_container_has_read_its_files_already() {
        let init = |policy: Value| {
            pods(
                &json!({"containers": [], "initContainers": [{"restartPolicy": policy, "volumeMounts": [{"name": "v"}]}],
            "volumes": [{"name": "v", "configMap": {"name": "cfg"}}]}),
            )
        };
        assert!(must_restart(
            &web(),
            &init(Value::Null),
            &changed("ConfigMap", "mode", false)
        ));
        assert!(!must_restart(
            &web(),
            &init(json!("Always")),
            &changed("ConfigMap", "mode", false)
        ));
    }

    #[test]
    fn another_key_another_name_and_another_kind_restart_nobody() {
        let by_env = pods(
            &json!({"containers": [{"env": [{"name": "A", "valueFrom": {"configMapKeyRef": {"name": "cfg", "key": "mode"}}}]}]}),
        );
        assert!(!must_restart(&web(), &by_env, &changed("ConfigMap", "other", false)));
        assert!(!must_restart(&web(), &by_env, &changed("Secret", "mode", false)));
        let mut elsewhere = changed("ConfigMap", "mode", false);
        elsewhere.id.name = "else".to_owned();
        assert!(!must_restart(&web(), &by_env, &elsewhere));
    }

    #[test]
    fn a_change_of_labels_alone_changes_no_key() {
        let map = |label: &str, data: &str| json!({"metadata": {"labels": {"a": label}}, "data": {"k": data}});
        let id = ObjectId::new("", "ConfigMap", "cfg");
        assert_eq!(
            ChangedConfig::between(&id, Some(&map("a", "1")), Some(&map("b", "1"))),
            None
        );
        let change = ChangedConfig::between(&id, Some(&map("a", "1")), Some(&map("a", "2"))).unwrap();
        assert_eq!(change.keys, BTreeSet::from(["k".to_owned()]));
        assert!(ChangedConfig::between(&id, None, Some(&map("a", "2"))).is_some());
        assert_eq!(ChangedConfig::between(&web(), None, Some(&map("a", "2"))), None);
    }
}
