//! Captured contents: content-addressed, deduplicated, verified end to end.
