//! Responses: their bodies and the headers that all of them have.

use http_body_util::{Either, Full};
use hyper::StatusCode;
use hyper::body::Bytes;
use hyper::header::{
    CACHE_CONTROL, CONTENT_SECURITY_POLICY, CONTENT_TYPE, HeaderMap, HeaderValue, REFERRER_POLICY,
    X_CONTENT_TYPE_OPTIONS, X_FRAME_OPTIONS,
};

use super::events::EventBody;

/// The body of a response: bytes, or a stream of events.
pub type Body = Either<Full<Bytes>, EventBody>;

/// A response of either program.
pub type Response = hyper::Response<Body>;

/// Returns a response with a body of the given content type.
pub fn content(content_type: &'static str, body: impl Into<Bytes>) -> Response {
    let mut response = Response::new(Either::Left(Full::new(body.into())));
    response.headers_mut().insert(CONTENT_TYPE, HeaderValue::from_static(content_type));
    response
}

/// Returns a response of plain text.
pub fn text(status: StatusCode, message: impl Into<Bytes>) -> Response {
    let mut response = content("text/plain; charset=utf-8", message);
    *response.status_mut() = status;
    response
}

/// Adds the headers that keep pages from being cached, framed, sniffed or named to other sites,
/// with the page's Content-Security-Policy.
pub fn insert_security_headers(headers: &mut HeaderMap, policy: &'static str) {
    for (name, value) in [
        (CACHE_CONTROL, "no-store"),
        (X_CONTENT_TYPE_OPTIONS, "nosniff"),
        (X_FRAME_OPTIONS, "DENY"),
        (REFERRER_POLICY, "no-referrer"),
        (CONTENT_SECURITY_POLICY, policy),
    ] {
        headers.insert(name, HeaderValue::from_static(value));
    }
}
