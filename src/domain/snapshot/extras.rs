//! What a manifest says besides its entries.

use std::collections::{BTreeMap, BTreeSet};

use serde::{Deserialize, Serialize};

use crate::api::snapshot::{Capture, ComponentCount, ImageStatus, SkipCount};

/// Kept with the manifest; only the image digests are part of the snapshot's digest.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct Extras {
    /// What was selected, so that live can be read the same way.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub capture: Option<Capture>,
    /// Items by component.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub components: Vec<ComponentCount>,
    /// Everything that was left out.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub skipped: Vec<SkipCount>,
    /// The contents outlive the Snapshot (`deletionPolicy: Retain`).
    #[serde(default, skip_serializing_if = "std::ops::Not::not")]
    pub retain: bool,
    /// Every image, by workload and container.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub images: Vec<ImageStatus>,
    /// Jobs that had not finished, by name: all other Jobs had. Absent in manifests of earlier releases: not known.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub unfinished_jobs: Option<BTreeSet<String>>,
    /// How each kind was read, by `<Kind>.<group>`: the next capture need not read again what did not change.
    #[serde(default, skip_serializing_if = "BTreeMap::is_empty")]
    pub read: BTreeMap<String, KindRead>,
}

/// How a kind was read.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct KindRead {
    /// Objects captured.
    pub objects: u64,
    /// What their content depends on besides the stored object; equal rules and an equal resourceVersion give equal content.
    pub rules: String,
}

impl Extras {
    /// Whether the Job `name` had finished when it was captured; `None` is not known.
    pub fn job_had_finished(&self, name: &str) -> Option<bool> {
        self.unfinished_jobs.as_ref().map(|names| !names.contains(name))
    }

    /// What of this belongs to the snapshot's digest: workload, container and digest of each image, in order.
    ///
    /// Images of jobs are left out: their Pods come and go although nobody changed anything.
    pub fn digest_bytes(&self) -> Vec<u8> {
        let mut rows: Vec<_> = self
            .images
            .iter()
            .filter(|image| !image.workload.starts_with("Job/") && !image.workload.starts_with("CronJob/"))
            .filter_map(|image| Some((&image.workload, &image.container, image.digest.as_ref()?)))
            .collect();
        rows.sort_unstable();
        let mut bytes = Vec::new();
        for (workload, container, digest) in rows {
            for text in [workload, container, digest] {
                bytes.extend_from_slice(&u64::try_from(text.len()).unwrap_or(u64::MAX).to_be_bytes());
                bytes.extend_from_slice(text.as_bytes());
            }
        }
        bytes
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn image(workload: &str, digest: Option<&str>) -> ImageStatus {
        ImageStatus {
            workload: workload.into(),
            container: "app".into(),
            digest: digest.map(Into::into),
            ..ImageStatus::default()
        }
    }

    #[test]
    fn a_manifest_of_an_earlier_release_does_not_know_which_jobs_had_finished() {
        let old: Extras = serde_json::from_str("{}").unwrap();
        assert_eq!(old.job_had_finished("migrate"), None);
        let new: Extras = serde_json::from_str(r#"{"unfinishedJobs":["migrate"]}"#).unwrap();
        assert_eq!(new.job_had_finished("migrate"), Some(false));
        assert_eq!(new.job_had_finished("other"), Some(true));
        let none: Extras = serde_json::from_str(r#"{"unfinishedJobs":[]}"#).unwrap();
        assert_eq!(none.job_had_finished("migrate"), Some(true));
    }

    #[test]
    fn the_order_of_images_and_the_pods_of_jobs_do_not_move_the_digest() {
        let (a, b) = (
            image("Deployment/a", Some("sha256:1")),
            image("Deployment/b", Some("sha256:2")),
        );
        let one = Extras {
            images: vec![a.clone(), b.clone()],
            ..Extras::default()
        };
        let other = Extras {
            images: vec![b, image("CronJob/c", Some("sha256:3")), a],
            ..Extras::default()
        };
        assert_eq!(one.digest_bytes(), other.digest_bytes());
        assert!(!one.digest_bytes().is_empty());
    }
}
