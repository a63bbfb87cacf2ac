//! A page to sort pictures into class folders by keyboard.
//!
//! The page names pictures by number only, and classes out of a list; [`directory`] moves files,
//! [`session`] knows what is where, [`server`] answers.

mod directory;
mod server;
mod session;

pub use server::serve;
pub use session::{Desk, check_class};
