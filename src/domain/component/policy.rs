//! `Policy`: what restricts or grants within the namespace.

/// Whether the kind belongs to `Policy`.
pub fn holds(group: &str, kind: &str) -> bool {
    matches!(
        (group, kind),
        ("rbac.authorization.k8s.io", "Role" | "RoleBinding")
            | ("networking.k8s.io", "NetworkPolicy")
            | ("", "ResourceQuota" | "LimitRange")
    )
}
