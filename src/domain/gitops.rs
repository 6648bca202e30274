//! Who in Git owns an object.

use serde_json::Value;

/// The owner that labels and annotations name, e.g. `Kustomization flux-system/shop`; `None` where nobody does.
///
/// Helm's own labels are no owner: nothing puts the object back by itself.
pub fn owner(object: &Value) -> Option<String> {
    let metadata = &object["metadata"];
    let label = |key: &str| metadata["labels"][key].as_str();
    for (kind, group) in [
        ("Kustomization", "kustomize.toolkit.fluxcd.io"),
        ("HelmRelease", "helm.toolkit.fluxcd.io"),
    ] {
        if let Some(name) = label(&format!("{group}/name")) {
            let namespace = label(&format!("{group}/namespace")).unwrap_or_default();
            return Some(format!("{kind} {namespace}/{name}"));
        }
    }
    if let Some(id) = metadata["annotations"]["argocd.argoproj.io/tracking-id"].as_str() {
        // `<application>:<group>/<kind>:<namespace>/<name>`
        return Some(format!("Application {}", id.split(':').next().unwrap_or(id)));
    }
    label("argocd.argoproj.io/instance").map(|name| format!("Application {name}"))
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;

    #[test]
    fn flux_and_argo_are_named_and_helm_is_not() {
        let flux = json!({"metadata": {"labels": {"kustomize.toolkit.fluxcd.io/name": "shop", "kustomize.toolkit.fluxcd.io/namespace": "flux-system"}}});
        assert_eq!(owner(&flux).as_deref(), Some("Kustomization flux-system/shop"));
        let argo =
            json!({"metadata": {"annotations": {"argocd.argoproj.io/tracking-id": "shop:apps/Deployment:shop/web"}}});
        assert_eq!(owner(&argo).as_deref(), Some("Application shop"));
        let helm = json!({"metadata": {"labels": {"app.kubernetes.io/managed-by": "Helm"}}});
        assert_eq!(owner(&helm), None);
    }
}
