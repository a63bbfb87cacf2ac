//! A page to sort pictures into class folders by keyboard.
//!
//! The page names pictures by number only, and classes out of a list; [`folder`] moves files, [`desk`] knows what is where, [`server`] answers.

mod desk;
mod folder;
mod server;

pub use desk::{Desk, check_class};
pub use server::serve;
