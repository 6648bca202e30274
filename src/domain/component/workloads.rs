//! `Workloads`: what runs, and what scales and protects it.

/// Whether the kind belongs to `Workloads`.
pub fn holds(group: &str, kind: &str) -> bool {
    runs_images(group, kind)
        || matches!(
            (group, kind),
            ("autoscaling", "HorizontalPodAutoscaler") | ("policy", "PodDisruptionBudget")
        )
}

/// Whether the kind has containers.
pub fn runs_images(group: &str, kind: &str) -> bool {
    matches!(
        (group, kind),
        ("apps", "Deployment" | "StatefulSet" | "DaemonSet" | "ReplicaSet")
            | ("batch", "Job" | "CronJob")
            | ("", "Pod")
    )
}
