//! What captured pod templates name: `ConfigMaps`, Secrets, claims and service accounts.

use std::collections::HashSet;

use serde_json::Value;

use crate::domain::object::KindInfo;

/// Names that were referred to; only kinds that `followReferences` covers.
#[derive(Clone, Debug, Default)]
pub struct References {
    config_maps: HashSet<String>,
    secrets: HashSet<String>,
    claims: HashSet<String>,
    /// `<template>-<set>-`: claims of a `StatefulSet` are numbered.
    numbered_claims: HashSet<String>,
    service_accounts: HashSet<String>,
}

impl References {
    /// Whether something captured refers to the object.
    pub fn contains(&self, group: &str, kind: &str, name: &str) -> bool {
        if !group.is_empty() {
            return false;
        }
        match kind {
            "ConfigMap" => self.config_maps.contains(name),
            "Secret" => self.secrets.contains(name),
            "ServiceAccount" => self.service_accounts.contains(name),
            "PersistentVolumeClaim" => self.claims.contains(name) || self.is_numbered_claim(name),
            _ => false,
        }
    }

    /// Notes what a captured object refers to.
    pub fn collect(&mut self, info: &KindInfo, object: &Value) {
        if info.group.is_empty() && info.kind == "ServiceAccount" {
            self.names(&object["imagePullSecrets"], |names| &mut names.secrets);
            self.names(&object["secrets"], |names| &mut names.secrets);
        } else if let Some(pod) = pod_spec(info, object) {
            self.pod(pod);
            if info.kind == "StatefulSet" {
                self.claim_templates(object);
            }
        }
    }

    fn is_numbered_claim(&self, name: &str) -> bool {
        name.rfind('-').is_some_and(|dash| {
            let (prefix, number) = name.split_at(dash + 1);
            !number.is_empty() && number.bytes().all(|b| b.is_ascii_digit()) && self.numbered_claims.contains(prefix)
        })
    }

    fn claim_templates(&mut self, set: &Value) {
        let Some(set_name) = set["metadata"]["name"].as_str() else {
            return;
        };
        for template in list(&set["spec"]["volumeClaimTemplates"]) {
            if let Some(name) = template["metadata"]["name"].as_str() {
                self.numbered_claims.insert(format!("{name}-{set_name}-"));
            }
        }
    }

    fn pod(&mut self, pod: &Value) {
        if let Some(account) = pod["serviceAccountName"].as_str() {
            self.service_accounts.insert(account.to_owned());
        }
        self.names(&pod["imagePullSecrets"], |names| &mut names.secrets);
        for volume in list(&pod["volumes"]) {
            self.volume(volume);
        }
        for field in ["containers", "initContainers", "ephemeralContainers"] {
            for container in list(&pod[field]) {
                for env in list(&container["env"]) {
                    let from = &env["valueFrom"];
                    insert(&mut self.config_maps, &from["configMapKeyRef"]["name"]);
                    insert(&mut self.secrets, &from["secretKeyRef"]["name"]);
                }
                for from in list(&container["envFrom"]) {
                    insert(&mut self.config_maps, &from["configMapRef"]["name"]);
                    insert(&mut self.secrets, &from["secretRef"]["name"]);
                }
            }
        }
    }

    fn volume(&mut self, volume: &Value) {
        insert(&mut self.config_maps, &volume["configMap"]["name"]);
        insert(&mut self.secrets, &volume["secret"]["secretName"]);
        insert(&mut self.claims, &volume["persistentVolumeClaim"]["claimName"]);
        insert(&mut self.secrets, &volume["azureFile"]["secretName"]);
        insert(&mut self.secrets, &volume["csi"]["nodePublishSecretRef"]["name"]);
        for source in list(&volume["projected"]["sources"]) {
            insert(&mut self.config_maps, &source["configMap"]["name"]);
            insert(&mut self.secrets, &source["secret"]["name"]);
        }
        for plugin in ["cephfs", "cinder", "flexVolume", "iscsi", "rbd", "scaleIO", "storageos"] {
            insert(&mut self.secrets, &volume[plugin]["secretRef"]["name"]);
        }
    }

    fn names(&mut self, items: &Value, set: impl Fn(&mut Self) -> &mut HashSet<String>) {
        for item in list(items) {
            insert(set(self), &item["name"]);
        }
    }
}

/// The pod spec of a workload or Pod.
pub(super) fn pod_spec<'a>(info: &KindInfo, object: &'a Value) -> Option<&'a Value> {
    let spec = match (info.group.as_str(), info.kind.as_str()) {
        ("", "Pod") => &object["spec"],
        ("batch", "CronJob") => &object["spec"]["jobTemplate"]["spec"]["template"]["spec"],
        ("apps", "Deployment" | "StatefulSet" | "DaemonSet" | "ReplicaSet") | ("batch", "Job") => {
            &object["spec"]["template"]["spec"]
        }
        _ => return None,
    };
    spec.is_object().then_some(spec)
}

/// The items of a list; nothing where there is none.
pub(super) fn list(value: &Value) -> impl Iterator<Item = &Value> {
    value.as_array().into_iter().flatten()
}

fn insert(set: &mut HashSet<String>, name: &Value) {
    if let Some(name) = name.as_str()
        && !set.contains(name)
    {
        set.insert(name.to_owned());
    }
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;

    #[test]
    fn a_pod_template_brings_its_configuration_claims_and_account_along() {
        let mut references = References::default();
        references.collect(
            &KindInfo::new("apps", "v1", "StatefulSet"),
            &json!({"metadata": {"name": "db"}, "spec": {
                "volumeClaimTemplates": [{"metadata": {"name": "data"}}],
                "template": {"spec": {
                    "serviceAccountName": "db", "imagePullSecrets": [{"name": "pull"}],
                    "volumes": [
                        {"configMap": {"name": "conf"}}, {"secret": {"secretName": "tls"}},
                        {"projected": {"sources": [{"secret": {"name": "mixed"}}]}},
                        {"persistentVolumeClaim": {"claimName": "scratch"}}
                    ],
                    "initContainers": [{"envFrom": [{"configMapRef": {"name": "init-env"}}]}],
                    "containers": [{"env": [{"valueFrom": {"secretKeyRef": {"name": "password"}}}]}]
                }}
            }}),
        );
        for (kind, name) in [
            ("ConfigMap", "conf"),
            ("ConfigMap", "init-env"),
            ("Secret", "tls"),
            ("Secret", "mixed"),
            ("Secret", "pull"),
            ("Secret", "password"),
            ("ServiceAccount", "db"),
            ("PersistentVolumeClaim", "scratch"),
            ("PersistentVolumeClaim", "data-db-0"),
            ("PersistentVolumeClaim", "data-db-12"),
        ] {
            assert!(references.contains("", kind, name), "{kind}/{name}");
        }
        assert!(!references.contains("", "PersistentVolumeClaim", "data-db-x"));
        assert!(!references.contains("", "PersistentVolumeClaim", "data-dbx-0"));
        assert!(!references.contains("", "ConfigMap", "tls"));
    }
}
