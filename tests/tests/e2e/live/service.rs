//! `edge run` at a terminal and under a service manager.

use std::io::{BufRead, BufReader, Read};
use std::os::linux::net::SocketAddrExt;
use std::os::unix::net::{SocketAddr, UnixDatagram};
use std::process::{Child, Command, Stdio};
use std::sync::mpsc::channel;
use std::time::Duration;

use tests::{root, succeed};

use super::{Live, PATIENCE, edge_run, ended, two_scenes};

/// Runs a command in a terminal. The shell first prints its process id.
fn at_a_terminal(edge: &Command) -> (Child, BufReader<std::process::ChildStdout>) {
    let words = std::iter::once(edge.get_program()).chain(edge.get_args());
    let words: Vec<String> = words.map(|word| format!("'{}'", word.to_str().unwrap())).collect();
    let mut script = Command::new("script");
    script.args(["-q", "-e", "-c", &format!("echo $$; exec {}", words.join(" ")), "/dev/null"]);
    script.current_dir(root()).stdin(Stdio::null()).stdout(Stdio::piped());
    let mut child = script.spawn().expect("script (bsdutils)");
    let output = BufReader::new(child.stdout.take().unwrap());
    (child, output)
}

#[test]
fn terminal_has_a_status_line_and_stops_on_hangup() {
    let folder = tempfile::tempdir().unwrap();
    two_scenes(folder.path());
    let mut edge = edge_run();
    edge.args(["--loop", "--fps", "50", "--source"]).arg(folder.path());
    let (mut child, mut output) = at_a_terminal(&edge);
    let mut id = String::new();
    output.read_line(&mut id).unwrap();
    let mut seen = Vec::new();
    while !String::from_utf8_lossy(&seen).contains(" dropped") {
        assert!(
            output.read_until(b'd', &mut seen).unwrap() > 0,
            "{}",
            String::from_utf8_lossy(&seen)
        );
    }
    assert!(String::from_utf8_lossy(&seen).contains("\r\x1b[K"), "a line that is overwritten");
    succeed(Command::new("kill").args(["-HUP", id.trim()]));
    let mut rest = String::new();
    output.read_to_string(&mut rest).unwrap();
    assert!(ended(&mut child).success(), "{rest}");
    assert!(rest.contains("frames, 0 unreadable") && !rest.contains("reloaded"), "{rest}");

    // Without a terminal, one line per frame.
    let text = succeed(edge_run().arg("--source").arg(folder.path().join("0.bmp")));
    let parts: Vec<&str> = text.trim_end().split('\t').collect();
    let score: f32 = parts[2].parse().unwrap();
    assert!(
        parts.len() == 3 && parts[0].ends_with("0.bmp") && (0.0..=1.0).contains(&score),
        "{text:?}"
    );
}

/// Messages to a service manager, in the right order.
#[test]
fn service_manager_is_notified() {
    let folder = tempfile::tempdir().unwrap();
    two_scenes(folder.path());
    let path = folder.path().join("notify");
    let socket = UnixDatagram::bind(&path).unwrap();
    socket.set_read_timeout(Some(PATIENCE)).unwrap();
    let mut edge = edge_run();
    edge.args(["--loop", "--fps", "20", "--source"]).arg(folder.path());
    let live = Live::start(edge.env("NOTIFY_SOCKET", &path).env("WATCHDOG_USEC", "400000"));
    let hear = |wanted: &str| {
        let mut heard = Vec::new();
        loop {
            let mut bytes = [0; 4096];
            let length = socket
                .recv(&mut bytes)
                .unwrap_or_else(|e| panic!("no {wanted} but {heard:?}: {e}"));
            let message = String::from_utf8_lossy(&bytes[..length]).into_owned();
            if message.lines().any(|line| line.starts_with(wanted)) {
                return message;
            }
            heard.push(message);
        }
    };
    hear("READY=1");
    hear("STATUS=");
    (0..3).for_each(|_| _ = hear("WATCHDOG=1"));
    live.signal("-HUP");
    assert!(hear("RELOADING=1").contains("MONOTONIC_USEC="));
    hear("READY=1");
    hear("WATCHDOG=1");
    live.stop();
    hear("STOPPING=1");
}

/// A missing camera is reported, and `edge` still stops at once while it waits for it.
#[test]
fn missing_camera_is_reported_and_does_not_delay_stopping() {
    let live = Live::start(edge_run().args(["--device", "/dev/no-such-camera"]));
    live.log("cannot open");
    let health = live.until("/healthz", |status, _| status == 503);
    assert!(health.contains("lost"), "{health}");
    live.stop();
}

/// systemd is notified from inside the sandbox, at a socket with a path and at an abstract one.
#[test]
fn service_manager_is_notified_from_inside_the_sandbox() {
    let folder = tempfile::tempdir().unwrap();
    two_scenes(folder.path());
    let path = folder.path().join("notify");
    let name = format!("vgg-edge-test-{}", std::process::id());
    let sockets = [
        (path.to_str().unwrap().to_owned(), UnixDatagram::bind(&path).unwrap()),
        (
            format!("@{name}"),
            UnixDatagram::bind_addr(&SocketAddr::from_abstract_name(&name).unwrap()).unwrap(),
        ),
    ];
    for (address, socket) in sockets {
        // Read at once, as systemd does: a sender blocks on a full socket.
        let (sender, told) = channel();
        std::thread::spawn(move || {
            let mut buffer = [0; 512];
            while let Ok(length) = socket.recv(&mut buffer) {
                if sender.send(String::from_utf8_lossy(&buffer[..length]).into_owned()).is_err() {
                    break;
                }
            }
        });
        let mut edge = edge_run();
        edge.args(["--loop", "--fps", "20", "--source"]).arg(folder.path());
        edge.env("NOTIFY_SOCKET", &address).env("WATCHDOG_USEC", "400000");
        let live = Live::start(&mut edge);
        let hear = |wanted: &str| {
            let next = || {
                told.recv_timeout(Duration::from_secs(60))
                    .unwrap_or_else(|e| panic!("{wanted}: {e}"))
            };
            while !next().contains(wanted) {}
        };
        for wanted in ["READY=1", "WATCHDOG=1"] {
            hear(wanted);
        }
        live.signal("-HUP");
        for wanted in ["RELOADING=1", "READY=1"] {
            hear(wanted);
        }
        live.stop();
        hear("STOPPING=1");
    }
}
