//! Everything that needs a real API server.

mod cli;
