//! Who may look.
//!
//! On a loopback address, anyone on the machine; a request must name a loopback host, so that a web
//! site cannot reach the page under a name of its own that it points here (DNS rebinding).
//! Elsewhere, whoever has the token: in a header, a cookie, or once in the address.

use std::net::SocketAddr;

use hyper::body::Incoming;
use hyper::header::{AUTHORIZATION, COOKIE, HOST};
use hyper::{Request, StatusCode};
use vgg_edge::Fingerprint;

/// Fewest characters of a token.
const SHORTEST: usize = 16;

/// Name of the cookie.
const COOKIE_NAME: &str = "vgg_edge";

/// Where to listen, and what to ask for.
#[derive(Clone, PartialEq)]
pub struct Access {
    address: SocketAddr,
    /// Hash of the token: equal times for all guesses, and the token is not kept.
    token: Option<Fingerprint>,
}

/// What to do with a request.
pub enum Verdict {
    /// Answer it.
    Allowed,
    /// Say so.
    Refused(StatusCode, &'static str),
    /// Remember the token and go to the page.
    SetCookie(String),
}

/// A token that can stand in headers and addresses as it is.
///
/// # Errors
/// A sentence on what is wrong.
pub fn check_token(token: &str) -> Result<String, String> {
    let plain = token.bytes().all(|b| b.is_ascii_alphanumeric() || b"-_.~".contains(&b));
    if token.len() >= SHORTEST && plain {
        Ok(token.to_owned())
    } else {
        Err(format!(
            "at least {SHORTEST} of the letters a-z, A-Z, 0-9, -_.~ are wanted (try: openssl rand -hex 16)"
        ))
    }
}

impl Access {
    /// Joins both.
    ///
    /// # Errors
    /// An address that others can reach, without a token.
    pub fn new(address: SocketAddr, token: Option<&str>) -> Result<Self, String> {
        if token.is_none() && !address.ip().is_loopback() {
            return Err(format!(
                "--http {address} can be reached from other machines, so it wants a --http-token; or take 127.0.0.1"
            ));
        }
        Ok(Self { address, token: token.map(|token| Fingerprint::of(token.as_bytes())) })
    }

    /// Where to listen.
    pub fn address(&self) -> SocketAddr {
        self.address
    }

    /// Whether a request may be answered.
    pub fn check(&self, request: &Request<Incoming>) -> Verdict {
        let header = |name| {
            request.headers().get(name).and_then(|value| value.to_str().ok()).unwrap_or_default()
        };
        let Some(wanted) = self.token else {
            return if is_local(header(HOST)) {
                Verdict::Allowed
            } else {
                Verdict::Refused(StatusCode::FORBIDDEN, "this page is for localhost only\n")
            };
        };
        let right = |token: &str| Fingerprint::of(token.as_bytes()) == wanted;
        let bearer = header(AUTHORIZATION).strip_prefix("Bearer ").unwrap_or_default();
        let cookies = header(COOKIE).split(';').filter_map(|cookie| cookie.trim().split_once('='));
        let mut cookies = cookies.filter(|(name, _)| *name == COOKIE_NAME).map(|(_, value)| value);
        if right(bearer) || cookies.any(right) {
            return Verdict::Allowed;
        }
        let query = request.uri().query().unwrap_or_default();
        let token = query.split('&').find_map(|pair| pair.strip_prefix("token="));
        match token {
            // So that the token does not stay in the address line.
            Some(token) if right(token) && request.uri().path() == "/" => {
                Verdict::SetCookie(format!(
                    "{COOKIE_NAME}={token}; HttpOnly; SameSite=Strict; Path=/; Max-Age=31536000"
                ))
            }
            Some(token) if right(token) => Verdict::Allowed,
            Some(_) => Verdict::Refused(StatusCode::UNAUTHORIZED, "this is not the token\n"),
            None => Verdict::Refused(
                StatusCode::UNAUTHORIZED,
                "open this address with ?token= and the token that edge was started with (--http-token)\n",
            ),
        }
    }
}

fn is_local(host: &str) -> bool {
    let name = match host.rsplit_once(':') {
        Some((name, port)) if port.bytes().all(|b| b.is_ascii_digit()) => name,
        _ => host,
    };
    let address = name.trim_start_matches('[').trim_end_matches(']').parse::<std::net::IpAddr>();
    name.eq_ignore_ascii_case("localhost") || address.is_ok_and(|address| address.is_loopback())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn hosts() {
        for host in ["localhost", "localhost:8080", "127.0.0.1:80", "[::1]:8080", "127.8.8.8"] {
            assert!(is_local(host), "{host}");
        }
        for host in [
            "",
            "example.com",
            "example.com:8080",
            "localhost.example.com",
            "192.168.1.4:80",
            "127.0.0.1.example.com",
        ] {
            assert!(!is_local(host), "{host}");
        }
    }

    #[test]
    fn other_machines_need_a_token() {
        let open = "0.0.0.0:8080".parse().unwrap();
        assert!(Access::new(open, None).err().unwrap().contains("--http-token"));
        assert!(Access::new(open, Some("0123456789abcdef")).is_ok());
        assert!(check_token("short").is_err() && check_token("0123456789abcde;").is_err());
        assert!(check_token("0123456789abcdef").is_ok());
    }
}
