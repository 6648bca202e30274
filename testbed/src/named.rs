//! Clusters that keep running by name.
