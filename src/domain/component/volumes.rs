//! `Volumes`: claims; their data is captured by other means than lists.

/// Whether the kind belongs to `Volumes`.
pub fn holds(group: &str, kind: &str) -> bool {
    group.is_empty() && kind == "PersistentVolumeClaim"
}
