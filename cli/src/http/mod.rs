//! HTTP/1.1 for the pages of both programs: limits, connections, tokens, headers, events.
//!
//! A program implements [`Service`], which turns a request into a [`Response`]; [`serve`] accepts
//! connections for it. Everything that a client can hold on to is bounded: connections, the time
//! to send the head of a request, its size, and the time to take a part of a response. Routes and
//! access rules are the program's own; [`origin`] and [`token`] have the checks that they share.

mod connection;
pub mod events;
pub mod origin;
mod response;
mod server;
pub mod token;

pub use connection::{Connection, StreamGuard};
pub use response::{Body, Response, content, insert_security_headers, text};
pub use server::{Limits, Service, SocketBuffers, WhenFull};
pub use server::{READ_TIMEOUT, serve, serve_stream};
