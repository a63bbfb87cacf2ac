//! Models that are replaced, rolled back and kept while `edge run` runs.

use std::collections::BTreeMap;
use std::io::{Read, Write};
use std::net::TcpStream;
use std::path::Path;
use std::process::{Command, Stdio};
use std::time::Duration;

use serde_json::Value;
use tests::{Device, base, fail, host, ndjson, root, run, succeed};
use vgg_edge::Head;

use super::{Edge, Place, bytes, digest, labels, moved, other_base, scene};

/// Every frame is classified, in order, by exactly the head that was announced before it.
#[test]
fn heads_change_between_two_frames() {
    let place = Place::new();
    let scene = scene();
    // The scores of each head for each image.
    let expected: Vec<BTreeMap<String, Value>> = scene
        .heads
        .iter()
        .map(|head| {
            let mut host = host();
            host.args(["classify", "--json", "--head"]).arg(head);
            let lines = succeed(
                host.args((0..4).map(|number| scene.pictures.join(format!("{number}.bmp")))),
            );
            ndjson(&lines)
                .into_iter()
                .map(|line| (line["source"].to_string(), line["scores"].clone()))
                .collect()
        })
        .collect();
    let contents = scene.heads.each_ref().map(|head| bytes(head));
    place.put("head", &contents[0]);
    let mut edge = Edge::start(&mut place.edge(&["--watch"]));
    let (mut runs, mut number) = (0, 0);
    let check = |line: &Value, runs: usize, number: &mut u64| {
        assert_eq!(line["frame"], *number, "{line}");
        *number += 1;
        assert_eq!(
            expected[runs][&line["source"].to_string()],
            line["scores"],
            "head {runs}: {line}"
        );
    };
    check(&edge.line(), 0, &mut number);
    for round in 1..=6 {
        place.put("head", &contents[round % 2]);
        loop {
            let line = edge.line();
            if line["event"] == "model" {
                assert_eq!(line["state"], "swapped", "{line}");
                assert_eq!(line["head"], digest(&scene.heads[round % 2]));
                runs = round % 2;
                break;
            }
            check(&line, runs, &mut number);
        }
        for _ in 0..8 {
            check(&edge.line(), runs, &mut number);
        }
    }
    edge.stop();
}

/// With `--events`, a label that changes because of a new head is reported.
#[test]
fn label_change_due_to_a_new_head_is_reported() {
    let place = Place::new();
    let [first, other] = &scene().heads;
    place.put("head", &bytes(first));
    let one = scene().pictures.join("0.bmp");
    let mut edge = Device::Native.edge();
    edge.args(["run", "--json", "--events", "--loop", "--watch", "--source"])
        .arg(&one)
        .arg("--head");
    let mut edge =
        Edge::start(edge.arg(place.path("head")).arg("--state").arg(place.path("state")));
    // Written once the first head runs; the next one is checked twice, half a second apart, before
    // it does.
    while !place.path("state/state.json").exists() {
        std::thread::sleep(Duration::from_millis(10));
    }
    place.put("head", &bytes(other));
    let swapped = edge.line();
    assert_eq!(
        (&swapped["event"], &swapped["state"]),
        (&"model".into(), &"swapped".into()),
        "{swapped}"
    );
    let change = edge.line();
    assert_eq!(change["event"], "label", "{change}");
    let labels = |head: &Path| Head::open(head).unwrap().labels;
    assert!(labels(first).iter().any(|label| change["from"] == **label), "{change}");
    assert!(labels(other).iter().any(|label| change["to"] == **label), "{change}");
    edge.stop();
}

#[test]
fn damaged_head_is_reported_once_and_changes_nothing() {
    let place = Place::new();
    let scene = scene();
    place.put("head", &bytes(&scene.heads[0]));
    let mut edge = Edge::start(&mut place.edge(&["--watch"]));
    edge.frame();
    let good = bytes(&scene.heads[1]);
    place.put("head", &good[..good.len() / 2]);
    edge.expect("refused", "is truncated");
    // The same damage is not reported again; the next event is that of another damage.
    place.put("head", &good[..good.len() / 2]);
    place.put("head", b"#!/bin/sh");
    edge.expect("refused", "not a head file");
    std::fs::remove_file(place.path("head")).unwrap();
    edge.expect("refused", "cannot read");
    // A head whose numbers are each valid, but overflow together.
    let mut huge = Head::open(&scene.heads[1]).unwrap();
    let last = huge.layers.last_mut().unwrap();
    last.kernel.fill(f32::MAX);
    last.bias.fill(f32::MAX);
    huge.layers[0].bias.fill(1e6);
    huge.save(&place.path("huge")).unwrap();
    place.put("head", &bytes(&place.path("huge")));
    edge.expect("refused", "do not add up to 1");
    assert_eq!(labels(&edge.frame()), ["green", "red"]);
    // The running head is put back.
    place.put("head", &bytes(&scene.heads[0]));
    edge.expect("settled", "");
    place.put("head", &good);
    edge.expect("swapped", &digest(&scene.heads[1]));
    let words = edge.stop();
    assert_eq!(words.matches("refused, the running model stays").count(), 4, "{words}");
}

#[test]
fn base_and_head_are_replaced_together() {
    let place = Place::new();
    let scene = scene();
    place.put("base", &bytes(&base()));
    place.put("head", &bytes(&scene.heads[0]));
    other_base(&place.path("base2"));
    moved(&scene.heads[0], &place.path("base2"), "new ", &place.path("head2"));
    let base_flag = place.path("base");
    let flags = ["--watch", "--base", base_flag.to_str().unwrap()];
    let mut edge = Edge::start(&mut place.edge(&flags));
    edge.frame();
    // The base first, as recommended.
    place.put("base", &bytes(&place.path("base2")));
    edge.expect("waiting", "was trained on base");
    assert_eq!(labels(&edge.frame()), ["green", "red"]);
    place.put("head", &bytes(&place.path("head2")));
    let event = edge.expect("swapped", &digest(&place.path("head2")));
    assert_eq!(event["base"], digest(&place.path("base2")));
    assert_eq!(labels(&edge.frame()), ["new green", "new red"]);
    // Back again, the head first.
    place.put("head", &bytes(&scene.heads[0]));
    edge.expect("waiting", "was trained on base");
    assert_eq!(labels(&edge.frame()), ["new green", "new red"]);
    place.put("base", &bytes(&base()));
    edge.expect("swapped", &digest(&base()));
    assert_eq!(labels(&edge.frame()), ["green", "red"]);
    // The power fails while only one of them is replaced.
    place.put("base", &bytes(&place.path("base2")));
    edge.kill();
    let mut edge = Edge::start(&mut place.edge(&flags));
    edge.expect("last-good", "was trained on base");
    assert_eq!(labels(&edge.frame()), ["green", "red"]);
    place.put("head", &bytes(&place.path("head2")));
    edge.expect("swapped", &digest(&place.path("base2")));
    assert_eq!(labels(&edge.frame()), ["new green", "new red"]);
    edge.stop();
    let kept = std::fs::read_dir(place.path("state/kept")).unwrap().count();
    assert_eq!(kept, 4, "two pairs, and nothing of what was before");
}

/// Returns the response to a request.
fn get(address: &str, path: &str) -> String {
    let mut stream = TcpStream::connect(address).unwrap();
    write!(stream, "GET {path} HTTP/1.1\r\nHost: localhost\r\nConnection: close\r\n\r\n").unwrap();
    let mut text = String::new();
    stream.read_to_string(&mut text).unwrap();
    text
}

#[test]
fn rollback_persists_until_another_head_is_installed() {
    let place = Place::new();
    let scene = scene();
    let rollback = || {
        let mut edge = Device::Native.edge();
        edge.args(["rollback", "--json", "--state"]).arg(place.path("state"));
        edge
    };
    fail(&mut rollback(), 1, "no such state directory");
    place.put("head", &bytes(&scene.heads[0]));
    // A free port; if another program takes it meanwhile, the test fails with a clear message.
    let address =
        std::net::TcpListener::bind("127.0.0.1:0").unwrap().local_addr().unwrap().to_string();
    let flags = ["--watch", "--http", &address];
    let mut edge = Edge::start(&mut place.edge(&flags));
    edge.frame();
    fail(&mut rollback(), 1, "no earlier model to roll back to");
    place.put("head", &bytes(&scene.heads[1]));
    edge.expect("swapped", "");
    let answer = &ndjson(&succeed(&mut rollback()))[0];
    assert_eq!(
        (&answer["head"], &answer["running"]),
        (&digest(&scene.heads[0]).into(), &true.into())
    );
    edge.expect("rolled-back", "was rolled back from");
    assert_eq!(labels(&edge.frame()), ["green", "red"]);
    let metrics = get(&address, "/metrics");
    for line in ["vgg_edge_last_good 1", "vgg_edge_swaps_total{outcome=\"done\"} 2"] {
        assert!(metrics.lines().any(|found| found == line), "{line} is not in {metrics}");
    }
    // A rollback persists across restarts, after a kill too, and across reloads.
    edge.kill();
    let mut edge = Edge::start(&mut place.edge(&flags));
    edge.expect("rolled-back", "was rolled back from");
    assert_eq!(labels(&edge.frame()), ["green", "red"]);
    succeed(Command::new("kill").args(["-HUP", &edge.child.id().to_string()]));
    edge.expect("rolled-back", "");
    assert_eq!(labels(&edge.frame()), ["green", "red"]);
    // Forward and back.
    succeed(&mut rollback());
    edge.expect("swapped", &digest(&scene.heads[1]));
    assert_eq!(labels(&edge.frame()), ["cat", "dog", "fox"]);
    assert!(get(&address, "/metrics").contains("vgg_edge_last_good 0"));
    succeed(&mut rollback());
    edge.expect("rolled-back", "");
    edge.stop();
    // If `edge run` is not running, the next start rolls back.
    let answer = &ndjson(&succeed(&mut rollback()))[0];
    assert_eq!(
        (&answer["head"], &answer["running"]),
        (&digest(&scene.heads[1]).into(), &false.into())
    );
    succeed(&mut rollback());
    // A third head ends the rollback.
    moved(&scene.heads[0], &base(), "third ", &place.path("third"));
    place.put("head", &bytes(&place.path("third")));
    let mut edge = Edge::start(&mut place.edge(&flags));
    assert_eq!(labels(&edge.frame()), ["third green", "third red"]);
    // A state directory serves only one run at a time.
    fail(&mut place.edge(&["--frames", "1"]), 1, "another edge run");
    let info = succeed(Device::Native.edge().args(["info", "--state"]).arg(place.path("state")));
    assert!(info.contains("kept ") && !info.contains("rejected"), "{info}");
    edge.stop();
}

/// The process is killed at random moments of a swap, many times (`VGG_EDGE_KILLS`); the next start
/// runs a complete model.
#[test]
fn killed_at_any_moment_it_starts_with_a_complete_model() {
    let kills: u32 = std::env::var("VGG_EDGE_KILLS").map_or(10, |text| text.parse().unwrap());
    let place = Place::new();
    let scene = scene();
    place.put("base1", &bytes(&base()));
    other_base(&place.path("base2"));
    let base_path = place.path("base");
    let flags = ["--watch", "--base", base_path.to_str().unwrap()];
    // Two models that share neither base nor labels.
    std::fs::copy(&scene.heads[0], place.path("head1")).unwrap();
    moved(&scene.heads[1], &place.path("base2"), "2 ", &place.path("head2"));
    let known = [vec!["green", "red"], vec!["2 cat", "2 dog", "2 fox"]];
    place.put("base", &bytes(&place.path("base1")));
    place.put("head", &bytes(&place.path("head1")));
    let mut random = fastrand::Rng::with_seed(1);
    let mut seen = [0, 0];
    for round in 0..kills {
        let mut edge = Edge::start(&mut place.edge(&flags));
        edge.frame();
        let which = 1 + (round + 1) % 2;
        place.put("base", &bytes(&place.path(&format!("base{which}"))));
        let head = bytes(&place.path(&format!("head{which}")));
        if random.u8(..4) == 0 {
            // Overwritten rather than renamed, and truncated by a power failure.
            std::fs::write(place.path("head"), &head[..head.len() / 3]).unwrap();
        } else {
            place.put("head", &head);
        }
        // Within the time in which `edge` notices, loads, tests, keeps and swaps.
        std::thread::sleep(Duration::from_millis(random.u64(..2500)));
        edge.kill();
        let output = run(&mut place.edge(&[&flags[..], &["--frames", "1"]].concat()));
        let words = String::from_utf8(output.stderr).unwrap();
        assert!(output.status.success() && !words.contains("panicked"), "round {round}: {words}");
        let lines = ndjson(&String::from_utf8(output.stdout).unwrap());
        let frame = lines.iter().find(|line| line.get("scores").is_some()).expect("a frame");
        let pair =
            known.iter().position(|known| *known == labels(frame)).expect("a head that was there");
        seen[pair] += 1;
    }
    println!(
        "{kills} kills: started with the first pair {} times, with the second {}",
        seen[0], seen[1]
    );
    assert_eq!(seen[0] + seen[1], kills);
    // No partially written file remains.
    let names = std::fs::read_dir(place.path("state/kept"))
        .unwrap()
        .map(|entry| entry.unwrap().file_name());
    assert!(names.into_iter().all(|name| !name.to_string_lossy().ends_with(".tmp")));
}

/// On a full disk, a new head runs without keys, but is reported as lost after a power failure;
/// with keys, no new model is accepted.
#[test]
fn full_disk_is_reported_when_a_new_head_is_installed() {
    let place = Place::new();
    let scene = scene();
    place.put("head", &bytes(&scene.heads[0]));
    let mut edge = Edge::start(&mut place.edge(&["--watch"]));
    edge.frame();
    edge.stop();
    let limited = |flags: &[&str]| {
        let mut limited = Command::new("bash");
        limited
            .args(["-c", "trap '' XFSZ; ulimit -f 0; exec \"$@\"", "bash"])
            .arg(Device::Native.edge_path());
        limited.args(place.edge(flags).get_args()).current_dir(root()).stdin(Stdio::null());
        limited
    };
    let mut edge = Edge::start(&mut limited(&["--watch"]));
    place.put("head", &bytes(&scene.heads[1]));
    let event = edge.expect("swapped", "cannot write");
    assert!(event["unkept"].is_string(), "{event}");
    assert_eq!(labels(&edge.frame()), ["cat", "dog", "fox"]);
    edge.stop();

    place.keygen("key");
    let base = place.signed_base("key", 1);
    let one = place.sign(&scene.heads[0], "one", "key", 1);
    let two = place.sign(&scene.heads[1], "two", "key", 2);
    let public = place.path("key.pub");
    let flags = ["--watch", "--trust", public.to_str().unwrap(), "--base", base.to_str().unwrap()];
    place.put_signed("head", &one);
    let mut edge = Edge::start(&mut place.edge(&flags));
    edge.frame();
    edge.stop();
    // A model accepted before needs no write.
    let mut edge = Edge::start(&mut limited(&flags));
    edge.frame();
    place.put_signed("head", &two);
    let mut event = edge.model();
    if event.to_string().contains("does not match") {
        event = edge.model();
    }
    assert!(
        event["state"] == "refused"
            && event.to_string().contains("cannot record it in the state directory"),
        "{event}"
    );
    assert_eq!(labels(&edge.frame()), ["green", "red"]);
    edge.stop();
}
