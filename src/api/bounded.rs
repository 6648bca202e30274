//! Lists in a status are bounded: what does not fit is counted, the whole list is in the manifest or report.

use serde::Serialize;

use super::snapshot::{ImageStatus, SkipCount, SnapshotStatus};

/// Most rows of any list in a status.
pub const MAX_ROWS: usize = 16;
/// Most bytes of JSON that `images` of a Snapshot takes: the whole status stays under 2 KiB at the median.
pub const IMAGE_BYTES: usize = 640;
/// Most bytes of JSON that `skipped` of a Snapshot takes.
pub const SKIPPED_BYTES: usize = 384;

/// The first rows that fit into [`MAX_ROWS`] and `bytes` of JSON, at least one, and how many were left out.
pub fn bounded<T: Serialize>(rows: impl IntoIterator<Item = T>, bytes: usize) -> (Vec<T>, Option<i32>) {
    let mut kept = Vec::new();
    let (mut used, mut omitted) = (0_usize, 0_i32);
    for row in rows {
        let size = serde_json::to_string(&row).map_or(usize::MAX, |text| text.len() + 1);
        let fits = kept.is_empty() || (kept.len() < MAX_ROWS && used.saturating_add(size) <= bytes);
        if omitted == 0 && fits {
            used = used.saturating_add(size);
            kept.push(row);
        } else {
            omitted = omitted.saturating_add(1);
        }
    }
    (kept, (omitted > 0).then_some(omitted))
}

impl SnapshotStatus {
    /// Sets `images` and `imagesOmitted`, cut to what a status holds.
    pub fn set_images(&mut self, images: impl IntoIterator<Item = ImageStatus>) {
        (self.images, self.images_omitted) = bounded(images, IMAGE_BYTES);
    }

    /// Sets `skipped` and `skippedOmitted`, cut to what a status holds; the largest counts come first.
    pub fn set_skipped(&mut self, skipped: impl IntoIterator<Item = SkipCount>) {
        let mut rows: Vec<_> = skipped.into_iter().collect();
        rows.sort_by(|a, b| {
            b.count
                .cmp(&a.count)
                .then_with(|| a.kind.cmp(&b.kind))
                .then_with(|| a.reason.cmp(&b.reason))
        });
        (self.skipped, self.skipped_omitted) = bounded(rows, SKIPPED_BYTES);
    }
}

#[cfg(test)]
mod tests {
    use k8s_openapi::apimachinery::pkg::apis::meta::v1::Time;

    use super::*;
    use crate::api::{
        conditions::{self, NewCondition},
        reasons,
        snapshot::{Component, ComponentCount, ObjectCounts, ParentVersion, SnapshotPhase, SnapshotSize},
    };

    fn status_of(workloads: usize) -> SnapshotStatus {
        let mut status = SnapshotStatus {
            observed_generation: Some(1),
            phase: Some(SnapshotPhase::Ready),
            version: Some(12),
            parent: Some(ParentVersion {
                name: "shop-before-1-8".into(),
                version: 11,
            }),
            digest: Some(format!("sha256:{}", "a".repeat(64))),
            objects: Some(ObjectCounts {
                captured: 412,
                unchanged: 400,
                skipped: 260,
                failed: 0,
            }),
            size: Some(SnapshotSize {
                logical_bytes: 1_810_220,
                stored_bytes: 31_200,
            }),
            components: [
                Component::Configuration,
                Component::Workloads,
                Component::Images,
                Component::Policy,
            ]
            .map(|name| ComponentCount { name, items: 50 })
            .to_vec(),
            format_version: Some(1),
            ..SnapshotStatus::default()
        };
        status.set_images((0..workloads).map(|n| ImageStatus {
            workload: format!("Deployment/service-{n}"),
            container: "app".into(),
            image: format!("registry.example/team/service-{n}:1.8.{n}"),
            digest: Some(format!("sha256:{}", "b".repeat(64))),
            reason: None,
        }));
        status.set_skipped((0..workloads).map(|n| SkipCount {
            kind: format!("Kind{n}.example.com"),
            reason: reasons::CONTROLLED.into(),
            count: 3,
        }));
        for type_ in [conditions::READY, conditions::VERIFIED] {
            let new = NewCondition {
                type_,
                status: Some(true),
                reason: reasons::CAPTURED.into(),
                message: "412 objects captured as version 12 of lineage shop".into(),
            };
            conditions::set(
                &mut status.conditions,
                &new,
                Some(1),
                &Time(jiff::Timestamp::UNIX_EPOCH),
            );
        }
        status
    }

    #[test]
    fn the_status_of_fifty_workloads_stays_under_two_kibibytes() {
        let status = status_of(50);
        let size = serde_json::to_string(&status).unwrap().len();
        assert!(size <= 2048, "{size} bytes");
        assert_eq!(
            status.images.len() + usize::try_from(status.images_omitted.unwrap()).unwrap(),
            50
        );
        assert_eq!(
            status.skipped.len() + usize::try_from(status.skipped_omitted.unwrap()).unwrap(),
            50
        );
    }

    #[test]
    fn a_short_list_is_kept_whole_and_nothing_is_counted_as_left_out() {
        let status = status_of(2);
        assert_eq!((status.images.len(), status.images_omitted), (2, None));
    }

    #[test]
    fn one_row_is_shown_however_long_it_is() {
        let (rows, omitted) = bounded(["x".repeat(5000), "y".into()], 100);
        assert_eq!((rows.len(), omitted), (1, Some(1)));
    }

    #[test]
    fn no_list_is_longer_than_the_schema_allows() {
        let (rows, omitted) = bounded(vec![1_u8; 40], 100_000);
        assert_eq!((rows.len(), omitted), (MAX_ROWS, Some(24)));
    }
}
