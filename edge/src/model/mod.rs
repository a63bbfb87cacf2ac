//! The model that runs, a backbone and its head: loading, replacement while running, stored copies.

pub mod loader;
pub mod manager;
pub mod store;
