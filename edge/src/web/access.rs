//! Access to the page.
//!
//! On a loopback address, everyone on the machine has access; a request must name a loopback host.
//! Elsewhere, whoever has the token: in a header, a cookie, or once in the address.

use std::net::SocketAddr;

use hyper::header::{AUTHORIZATION, COOKIE};
use hyper::{Request, StatusCode};
use vgg_edge_cli::http::origin::{header, names_loopback};
use vgg_edge_cli::http::token::AccessToken;

/// Name of the cookie.
const COOKIE_NAME: &str = "vgg_edge";

/// An address that others can reach, without a token.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
#[error(
    "--http {0} can be reached from other machines, so it needs an --http-token; \
     without one, listen at 127.0.0.1"
)]
pub struct TokenRequired(SocketAddr);

/// The address to listen at, and what a request must present.
#[derive(Clone, PartialEq)]
pub struct Access {
    address: SocketAddr,
    token: Option<AccessToken>,
}

/// The treatment of a request.
pub enum Verdict {
    /// Answer it.
    Allowed,
    /// Respond with this message.
    Refused(StatusCode, &'static str),
    /// Set this cookie and redirect to the page.
    SetCookie(String),
}

impl Access {
    /// Joins both.
    ///
    /// # Errors
    /// [`TokenRequired`] for an address that others can reach, without a token.
    pub fn new(address: SocketAddr, token: Option<&str>) -> Result<Self, TokenRequired> {
        if token.is_none() && !address.ip().is_loopback() {
            return Err(TokenRequired(address));
        }
        Ok(Self { address, token: token.map(AccessToken::new) })
    }

    /// The address to listen at.
    pub fn address(&self) -> SocketAddr {
        self.address
    }

    /// Decides on a request.
    pub fn check<B>(&self, request: &Request<B>) -> Verdict {
        let Some(token) = &self.token else {
            return if names_loopback(request) {
                Verdict::Allowed
            } else {
                Verdict::Refused(StatusCode::FORBIDDEN, "this page is for localhost only\n")
            };
        };
        let bearer = header(request, AUTHORIZATION.as_str());
        let bearer = bearer.strip_prefix("Bearer ").unwrap_or_default();
        let cookies = header(request, COOKIE.as_str()).split(';');
        let mut cookies = cookies
            .filter_map(|cookie| cookie.trim().split_once('='))
            .filter(|(name, _)| *name == COOKIE_NAME)
            .map(|(_, value)| value);
        if token.matches(bearer) || cookies.any(|cookie| token.matches(cookie)) {
            return Verdict::Allowed;
        }
        let query = request.uri().query().unwrap_or_default();
        let guess = query.split('&').find_map(|pair| pair.strip_prefix("token="));
        match guess {
            // So that the token does not stay in the address bar.
            Some(guess) if token.matches(guess) && request.uri().path() == "/" => {
                Verdict::SetCookie(format!(
                    "{COOKIE_NAME}={guess}; HttpOnly; SameSite=Strict; Path=/; Max-Age=31536000"
                ))
            }
            Some(guess) if token.matches(guess) => Verdict::Allowed,
            Some(_) => Verdict::Refused(StatusCode::UNAUTHORIZED, "wrong token\n"),
            None => Verdict::Refused(
                StatusCode::UNAUTHORIZED,
                "a token is required: add ?token= and the value of --http-token to this address\n",
            ),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const TOKEN: &str = "0123456789abcdef";

    #[test]
    fn other_machines_need_a_token() {
        let open = "0.0.0.0:8080".parse().unwrap();
        assert_eq!(Access::new(open, None).err(), Some(TokenRequired(open)));
        assert!(Access::new(open, Some(TOKEN)).is_ok());
    }

    #[test]
    fn the_token_is_taken_from_header_cookie_and_address() {
        let access = Access::new("0.0.0.0:8080".parse().unwrap(), Some(TOKEN)).unwrap();
        let check = |path: &str, name: &str, value: &str| {
            access.check(&Request::builder().uri(path).header(name, value).body(()).unwrap())
        };
        let cookie = format!("a=b; {COOKIE_NAME}={TOKEN}");
        assert!(matches!(check("/", "cookie", &cookie), Verdict::Allowed));
        let bearer = format!("Bearer {TOKEN}");
        assert!(matches!(check("/", "authorization", &bearer), Verdict::Allowed));
        let (page, events) = (format!("/?token={TOKEN}"), format!("/events?token={TOKEN}"));
        assert!(matches!(check(&page, "a", "b"), Verdict::SetCookie(_)));
        assert!(matches!(check(&events, "a", "b"), Verdict::Allowed));
        for path in ["/", "/?token=", "/?token=0123456789abcdeF"] {
            let refused = check(path, "authorization", TOKEN);
            assert!(matches!(refused, Verdict::Refused(StatusCode::UNAUTHORIZED, _)), "{path}");
        }
    }
}
