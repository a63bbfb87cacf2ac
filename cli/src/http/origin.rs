//! Where a request comes from: the host that it names, and the site of the page that sent it.

use std::net::IpAddr;

use hyper::header::{HOST, ORIGIN};
use hyper::{Method, Request};

/// Returns a header as text: empty if it is missing or not ASCII.
pub fn header<'a, B>(request: &'a Request<B>, name: &str) -> &'a str {
    request.headers().get(name).and_then(|value| value.to_str().ok()).unwrap_or_default()
}

/// Whether a request names a loopback host, so that a web site cannot reach the server under a
/// name of its own that it resolves to this machine (DNS rebinding).
pub fn names_loopback<B>(request: &Request<B>) -> bool {
    is_loopback_host(header(request, HOST.as_str()))
}

/// Whether a page of another site sent the request, by `Sec-Fetch-Site` and `Origin`. A link on
/// another site may lead to `/`, which does nothing by being opened.
pub fn is_cross_origin<B>(request: &Request<B>) -> bool {
    // A header that is not ASCII is from nobody's browser, and matches nothing.
    let header =
        |name: &str| request.headers().get(name).map(|value| value.to_str().unwrap_or("?"));
    let is_get = request.method() == Method::GET;
    // `none`: typed or opened from a bookmark.
    let from_elsewhere = match header("sec-fetch-site") {
        Some("none") => !is_get,
        site => site.is_some_and(|site| site != "same-origin"),
    };
    let opened = request.uri().path() == "/" && header("sec-fetch-mode") == Some("navigate");
    if from_elsewhere && !(opened && is_get) {
        return true;
    }
    let host = header(HOST.as_str()).unwrap_or_default();
    header(ORIGIN.as_str()).is_some_and(|origin| origin != format!("http://{host}"))
}

fn is_loopback_host(host: &str) -> bool {
    let name = match host.rsplit_once(':') {
        Some((name, port)) if port.bytes().all(|b| b.is_ascii_digit()) => name,
        _ => host,
    };
    let address = name.trim_start_matches('[').trim_end_matches(']').parse::<IpAddr>();
    name.eq_ignore_ascii_case("localhost") || address.is_ok_and(|address| address.is_loopback())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn loopback_hosts() {
        for host in ["localhost", "localhost:8080", "127.0.0.1:80", "[::1]:8080", "127.8.8.8"] {
            assert!(is_loopback_host(host), "{host}");
        }
        for host in [
            "",
            "example.com",
            "example.com:8080",
            "localhost.example.com",
            "192.168.1.4:80",
            "127.0.0.1.example.com",
        ] {
            assert!(!is_loopback_host(host), "{host}");
        }
    }

    #[test]
    fn cross_origin_requests() {
        let request = |method, path: &str, headers: &[(&str, &str)]| {
            let mut request = Request::builder().method(method).uri(path).header(HOST, "localhost");
            for (name, value) in headers {
                request = request.header(*name, *value);
            }
            is_cross_origin(&request.body(()).unwrap())
        };
        let site = "sec-fetch-site";
        assert!(!request(Method::GET, "/", &[]));
        assert!(!request(Method::GET, "/state", &[(site, "same-origin")]));
        assert!(!request(Method::GET, "/state", &[(site, "none")]));
        assert!(request(Method::POST, "/do", &[(site, "none")]));
        assert!(request(Method::GET, "/state", &[(site, "cross-site")]));
        let navigates = [(site, "cross-site"), ("sec-fetch-mode", "navigate")];
        assert!(!request(Method::GET, "/", &navigates));
        assert!(request(Method::GET, "/state", &navigates));
        assert!(request(Method::POST, "/", &navigates));
        assert!(!request(Method::POST, "/do", &[("origin", "http://localhost")]));
        assert!(request(Method::POST, "/do", &[("origin", "http://example.com")]));
        assert!(request(Method::POST, "/do", &[("origin", "null")]));
    }
}
