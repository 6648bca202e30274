//! Who may undo, and how we know.
