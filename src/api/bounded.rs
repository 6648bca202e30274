//! Lists in a status are bounded: what does not fit is counted, the whole list is in the manifest or report.

use serde::Serialize;

use super::snapshot::{ImageStatus, SkipCount, SnapshotStatus};

/// Most rows of any list in a status.
pub const MAX_ROWS: usize = 16;
/// Most bytes of JSON that `images` of a Snapshot takes: the whole status stays under 2 KiB at the median.
pub const IMAGE_BYTES: usize = 768;
/// Most bytes of JSON that `skipped` of a Snapshot takes.
pub const SKIPPED_BYTES: usize = 512;

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
        rows.sort_by(|a, b| b.count.cmp(&a.count).then_with(|| a.kind.cmp(&b.kind)).then_with(|| a.reason.cmp(&b.reason)));
        (self.skipped, self.skipped_omitted) = bounded(rows, SKIPPED_BYTES);
    }
}
