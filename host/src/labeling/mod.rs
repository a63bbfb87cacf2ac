//! A page for sorting images into class directories by keyboard.
//!
//! The page refers to images by number and to classes from a list. [`directory`] moves files,
//! [`session`] has the state, [`server`] serves the page.

mod directory;
mod server;
mod session;

pub use server::serve;
pub use session::{LabelSession, check_class};
