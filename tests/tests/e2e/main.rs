//! All end-to-end tests in one program: it is linked once, shared fixtures are made once, and tests
//! run while others wait.
//!
//! `cargo test --workspace --test e2e MODULE` runs the tests of one module.

#![allow(
    clippy::unwrap_used,
    clippy::expect_used,
    reason = "a test fails by panicking, and this crate serves tests only"
)]

mod augment;
mod bad_input;
mod base;
mod build;
mod camera;
mod exactness;
mod fine_tune;
mod golden;
mod heads;
mod label;
mod limits;
mod live;
mod main_job;
mod package;
mod page;
mod power;
mod report;
mod scale;
mod shards;
mod trust;
