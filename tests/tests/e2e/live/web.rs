//! The web server of `edge run`.

use std::collections::BTreeSet;
use std::io::{Read, Write};
use std::net::{Shutdown, TcpStream};
use std::time::{Duration, Instant};

use tests::{fail, run};

use super::{EVENTS, Live, PATIENCE, edge_run, results, two_scenes};

#[test]
fn web_server_answers_despite_stalled_clients() {
    let folder = tempfile::tempdir().unwrap();
    two_scenes(folder.path());
    let live =
        Live::start(edge_run().args(["--loop", "--fps", "50", "--source"]).arg(folder.path()));
    live.until("/healthz", |status, _| status == 200);
    let (status, page) = live.get("/", "");
    assert!(status == 200 && page.contains("<!doctype html>") || page.contains("<!DOCTYPE html>"));
    assert!(page.to_lowercase().contains("content-security-policy: default-src 'none'"), "{page}");
    for (path, kind) in
        [("/page.css", "text/css"), ("/page.js", "text/javascript"), ("/metrics", "text/plain")]
    {
        let (status, text) = live.get(path, "");
        assert!(status == 200 && text.contains(kind), "{path}: {text}");
    }
    let picture = live.until("/frame.jpg", |status, _| status == 200);
    assert!(picture.contains("image/jpeg"));
    assert_eq!(live.get("/nothing", "").0, 404);
    // Another site whose name resolves to this machine (DNS rebinding).
    let text = live.ask("GET / HTTP/1.1\r\nHost: evil.example\r\nConnection: close\r\n\r\n");
    assert!(text.starts_with("HTTP/1.1 403"), "{text}");
    let text = live.ask(
        "POST / HTTP/1.1\r\nHost: localhost\r\nConnection: close\r\nContent-Length: 0\r\n\r\n",
    );
    assert!(text.starts_with("HTTP/1.1 405"), "{text}");

    // Clients that open streams without reading, and clients that never finish a request: frames
    // are still classified.
    let held: Vec<TcpStream> = (0..40)
        .map(|number| live.send(if number < 10 { EVENTS } else { "GET / HTTP/1.1\r\nHo" }))
        .collect();
    let before = live.metric("vgg_edge_frames_total{outcome=\"classified\"}");
    live.until("/metrics", |_, text| {
        let line =
            text.lines().find(|line| line.contains("outcome=\"classified\"")).unwrap_or_default();
        line.rsplit(' ')
            .next()
            .and_then(|v| v.parse::<f64>().ok())
            .is_some_and(|count| count >= before + 20.0)
    });
    drop(held);
    // An event stream, as a browser reads it.
    let mut seen = BTreeSet::new();
    for line in live.events() {
        if let Some(name) = line.strip_prefix("event: ") {
            seen.insert(name.to_owned());
        }
        if seen.len() == 3 {
            break;
        }
    }
    assert_eq!(seen.into_iter().collect::<Vec<_>>(), ["hello", "log", "state"]);
    let words = live.stop();
    assert!(words.contains("frames, 0 unreadable"), "{words}");
}

#[test]
fn http_token_is_required() {
    let folder = tempfile::tempdir().unwrap();
    two_scenes(folder.path());
    let token = "0123456789abcdef-X";
    let file = folder.path().join("token");
    std::fs::write(&file, format!("{token}\n")).unwrap();
    let mut edge = edge_run();
    edge.args(["--loop", "--fps", "20", "--source"])
        .arg(folder.path())
        .arg("--http-token-file")
        .arg(&file);
    let live = Live::start(&mut edge);
    for path in ["/", "/events", "/frame.jpg", "/metrics", "/healthz", "/?token=wrong", "/nothing"]
    {
        assert_eq!(live.get(path, "").0, 401, "{path}");
    }
    assert_eq!(live.get("/metrics", &format!("Authorization: Bearer {token}\r\n")).0, 200);
    assert_eq!(live.get(&format!("/metrics?token={token}"), "").0, 200);
    let (status, text) = live.get(&format!("/?token={token}"), "");
    let cookie = text.lines().find_map(|line| {
        line.to_lowercase().starts_with("set-cookie: ").then(|| line[12..].to_owned())
    });
    let cookie = cookie.unwrap();
    assert!(
        status == 303 && cookie.contains("HttpOnly") && cookie.contains("SameSite=Strict"),
        "{text}"
    );
    let pair = cookie.split(';').next().unwrap();
    assert_eq!(live.get("/", &format!("Cookie: {pair}\r\n")).0, 200);
    live.stop();
}

/// After a reload, a token changed in its file is valid and the old one is not; a missing file
/// changes nothing.
#[test]
fn http_token_is_reloaded() {
    let folder = tempfile::tempdir().unwrap();
    two_scenes(folder.path());
    let file = folder.path().join("token");
    let (old, new) = ("0123456789abcdef", "fedcba9876543210");
    let mut edge = edge_run();
    edge.args(["--loop", "--fps", "20", "--source"])
        .arg(folder.path())
        .arg("--http-token-file")
        .arg(&file);
    std::fs::write(&file, old).unwrap();
    let mut live = Live::start(&mut edge);
    let status = |live: &Live, token: &str| {
        live.get("/metrics", &format!("Authorization: Bearer {token}\r\n")).0
    };
    assert_eq!((status(&live, old), status(&live, new)), (200, 401));
    std::fs::remove_file(&file).unwrap();
    live.signal("-HUP");
    while !live.words.recv_timeout(PATIENCE).unwrap().contains("keeping the old settings") {}
    assert_eq!((status(&live, old), status(&live, new)), (200, 401));
    std::fs::write(&file, new).unwrap();
    live.signal("-HUP");
    live.find_page();
    assert_eq!((status(&live, old), status(&live, new)), (401, 200));
    live.stop();
}

/// Frames are classified even if the address of the page is not available yet.
#[test]
fn frames_are_classified_while_the_page_has_no_address() {
    let folder = tempfile::tempdir().unwrap();
    two_scenes(folder.path());
    let mut edge = edge_run();
    // Reserved for documentation, so no machine has it (RFC 5737).
    edge.args(["--json", "--http", "192.0.2.1:0", "--http-token", "0123456789abcdef", "--source"])
        .arg(folder.path());
    let output = run(&mut edge);
    let words = String::from_utf8(output.stderr).unwrap();
    assert!(
        output.status.success() && words.contains("page: not available, trying again"),
        "{words}"
    );
    assert_eq!(results(&String::from_utf8(output.stdout).unwrap()).len(), 8);
    // Permanent failures are still errors.
    let taken = std::net::TcpListener::bind("127.0.0.1:0").unwrap();
    let address = taken.local_addr().unwrap().to_string();
    fail(edge_run().args(["--http", &address, "--source"]).arg(folder.path()), 1, "cannot listen");
}

/// Malformed requests, each in a different way.
const MALFORMED: [&[u8]; 12] = [
    b"\x16\x03\x01\x02\x00\x01\x00\x01\xfc\x03\x03",
    b"\0\0\0\0\r\n\r\n",
    b"GET\r\n\r\n",
    b"GET / HTTP/9.9\r\nHost: localhost\r\n\r\n",
    b"GET  /  HTTP/1.1\r\nHost: localhost\r\n\r\n",
    b"G\xc3\xa9T / HTTP/1.1\r\nHost: localhost\r\n\r\n",
    b"GET / HTTP/1.1\r\nHost localhost\r\n\r\n",
    b"GET / HTTP/1.1\r\nHost: localhost\r\nContent-Length: 1\r\nContent-Length: 2\r\n\r\n",
    b"GET / HTTP/1.1\r\nHost: localhost\r\nContent-Length: -1\r\n\r\n",
    b"GET / HTTP/1.1\r\nHost: evil.example\r\nConnection: close\r\n\r\n",
    b"GET /../../etc/passwd HTTP/1.1\r\nHost: localhost\r\nConnection: close\r\n\r\n",
    b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n",
];

#[test]
fn malformed_requests_get_an_error_or_nothing() {
    let folder = tempfile::tempdir().unwrap();
    two_scenes(folder.path());
    let live =
        Live::start(edge_run().args(["--loop", "--fps", "50", "--source"]).arg(folder.path()));
    let long = |part: &str, times: usize| {
        format!("GET / HTTP/1.1\r\nHost: localhost\r\n{}\r\n", part.repeat(times))
    };
    let long = [
        long("A: b\r\n", 100).into_bytes(),
        long(&format!("A: {}\r\n", "b".repeat(1000)), 40).into_bytes(),
        format!("GET /{} HTTP/1.1\r\nHost: localhost\r\n\r\n", "a".repeat(100_000)).into_bytes(),
    ];
    for request in MALFORMED.into_iter().chain(long.iter().map(Vec::as_slice)) {
        let mut stream = TcpStream::connect(&live.address).unwrap();
        stream.set_read_timeout(Some(Duration::from_secs(60))).unwrap();
        // A request that is refused early may not be read completely.
        let _ = stream.write_all(request);
        let _ = stream.shutdown(Shutdown::Write);
        let mut answer = Vec::new();
        let _ = stream.read_to_end(&mut answer);
        let answer = String::from_utf8_lossy(&answer);
        assert!(
            answer.is_empty() || answer.starts_with("HTTP/1.1 4"),
            "{}: {answer}",
            request.escape_ascii()
        );
    }
    // The first frame may arrive after all of that.
    live.until("/healthz", |status, _| status == 200);
    live.stop();
}

/// Slow clients of every kind do not block others, delay no frame, and leak nothing.
#[test]
fn two_hundred_slow_clients_keep_nobody_out() {
    let folder = tempfile::tempdir().unwrap();
    two_scenes(folder.path());
    let live =
        Live::start(edge_run().args(["--loop", "--fps", "50", "--source"]).arg(folder.path()));
    live.until("/frame.jpg", |status, _| status == 200);
    let before = live.descriptors();
    // Images are requested but not read.
    let greedy = "GET /frame.jpg HTTP/1.1\r\nHost: localhost\r\n\r\n".repeat(100);
    let slow: [&[u8]; 6] = [
        b"",
        b"G",
        b"GET / HTTP/1.1\r\nHo",
        EVENTS.as_bytes(),
        greedy.as_bytes(),
        b"POST / HTTP/1.1\r\nHost: localhost\r\nContent-Length: 99999999\r\n\r\n",
    ];
    let requests: Vec<&[u8]> = slow.into_iter().chain(MALFORMED).collect();
    let mut held = Vec::new();
    for round in 0..3 {
        for number in 0..200 {
            let mut stream = TcpStream::connect(&live.address).unwrap();
            // The connection may already be closed to make room for the next.
            let _ = stream.write_all(requests[(number + round) % requests.len()]);
            held.push(stream);
        }
        let classified = live.metric("vgg_edge_frames_total{outcome=\"classified\"}");
        for path in ["/", "/page.js", "/metrics", "/frame.jpg", "/healthz"] {
            assert_eq!(live.get(path, "").0, 200, "{path}");
        }
        // 64 connections, and one that replaces another.
        let now = live.descriptors();
        assert!(now <= before + 65, "{now} descriptors, {before} before");
        live.until("/metrics", |_, _| {
            live.metric("vgg_edge_frames_total{outcome=\"classified\"}") >= classified + 20.0
        });
    }
    drop(held);
    let end = Instant::now() + Duration::from_secs(60);
    while live.descriptors() > before {
        assert!(Instant::now() < end, "{} descriptors, {before} before", live.descriptors());
        std::thread::sleep(Duration::from_millis(20));
    }
    // A page opened now receives events.
    live.until("/frame.jpg", |status, _| status == 200);
    live.stop();
}
