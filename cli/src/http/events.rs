//! Server-sent events (HTML Living Standard, 9.2).

use std::convert::Infallible;
use std::pin::Pin;
use std::task::{Context, Poll};
use std::time::Duration;

use http_body_util::Either;
use hyper::body::{Bytes, Frame};
use hyper::header::{CONTENT_TYPE, HeaderValue};
use tokio::sync::mpsc;

use super::response::Response;

/// Content type of a stream of events.
pub const EVENT_STREAM: &str = "text/event-stream";

/// Time in which a client must take a message; the stream of one that does not is closed, which
/// makes room for others.
const SEND_TIMEOUT: Duration = Duration::from_secs(5);

/// The body of a stream of events.
pub struct EventBody(mpsc::Receiver<Bytes>);

impl hyper::body::Body for EventBody {
    type Data = Bytes;
    type Error = Infallible;

    fn poll_frame(
        mut self: Pin<&mut Self>,
        context: &mut Context<'_>,
    ) -> Poll<Option<Result<Frame<Bytes>, Infallible>>> {
        self.0.poll_recv(context).map(|bytes| bytes.map(|bytes| Ok(Frame::data(bytes))))
    }
}

/// The sending end of a stream of events.
pub struct EventSender(mpsc::Sender<Bytes>);

impl EventSender {
    /// Sends a message; returns false if the client is gone or takes too long.
    pub async fn send(&self, message: String) -> bool {
        let sent = tokio::time::timeout(SEND_TIMEOUT, self.0.send(message.into())).await;
        matches!(sent, Ok(Ok(())))
    }
}

/// Returns a response of events and the sender that fills it.
///
/// One message waits: a slow client receives the newest state when it takes the next message, not
/// everything that it missed.
pub fn event_stream() -> (EventSender, Response) {
    let (sender, receiver) = mpsc::channel(1);
    let mut response = Response::new(Either::Right(EventBody(receiver)));
    response.headers_mut().insert(CONTENT_TYPE, HeaderValue::from_static(EVENT_STREAM));
    (EventSender(sender), response)
}

/// Appends an event to a message; `data` is one line.
pub fn push_event(message: &mut String, name: &str, data: impl std::fmt::Display) {
    use std::fmt::Write;
    // Writing to a string cannot fail.
    let _ = write!(message, "event: {name}\ndata: {data}\n\n");
}
