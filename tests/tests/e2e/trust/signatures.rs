//! Keys, signatures, and files that are refused.

use std::cell::RefCell;
use std::os::unix::fs::PermissionsExt;
use std::process::{Command, Stdio};

use tests::{Device, fail, host, ndjson, root, run, small_head, succeed};
use vgg_edge::Head;

use super::{Edge, Place, bytes, digest, labels, scene};

#[test]
fn keys_are_private_and_never_shown() {
    let place = Place::new();
    let head = place.path("head");
    std::fs::copy(small_head(), &head).unwrap();
    std::fs::write(place.path("password"), "correct horse\n").unwrap();
    let said = RefCell::new(String::new());
    let tell = |command: &mut Command, code: i32| {
        let output = run(command);
        let words =
            [output.stdout, output.stderr].map(|bytes| String::from_utf8(bytes).unwrap()).concat();
        assert_eq!(output.status.code(), Some(code), "{words}");
        said.borrow_mut().push_str(&words);
        words
    };
    tell(host().args(["keygen", "-o"]).arg(place.path("plain")), 0);
    let mut keygen = host();
    keygen
        .args(["keygen", "--json", "-o"])
        .arg(place.path("locked"))
        .arg("--password-file")
        .arg(place.path("password"));
    tell(&mut keygen, 0);
    for name in ["plain", "locked"] {
        let mode =
            std::fs::metadata(place.path(&format!("{name}.key"))).unwrap().permissions().mode();
        assert_eq!(mode & 0o777, 0o600, "{name}");
        let before = bytes(&place.path(&format!("{name}.key")));
        tell(host().args(["keygen", "-o"]).arg(place.path(name)), 1);
        assert_eq!(
            bytes(&place.path(&format!("{name}.key"))),
            before,
            "keys are never written over"
        );
        let mut sign = host();
        sign.args(["sign", "--key"]).arg(place.path(&format!("{name}.key"))).arg(&head);
        tell(sign.arg("--password-file").arg(place.path("password")), 0);
        tell(
            host().args(["verify", "--trust"]).arg(place.path(&format!("{name}.pub"))).arg(&head),
            0,
        );
    }
    let sign = |key: &str, password: &str| {
        let mut sign = host();
        sign.args(["sign", "--key"]).arg(place.path(key)).arg(&head);
        sign.arg("--password-file").arg(place.path(password));
        sign
    };
    let signature = bytes(&place.path("head.minisig"));
    std::fs::write(place.path("wrong"), "battery staple\n").unwrap();
    tell(&mut sign("locked.key", "wrong"), 1);
    // A public key, a head, a missing file.
    for wrong in ["plain.pub", "head", "none"] {
        tell(&mut sign(wrong, "password"), 1);
    }
    assert_eq!(
        bytes(&place.path("head.minisig")),
        signature,
        "a failed signing leaves what was there"
    );
    tell(host().arg("inspect").arg(&head), 0);
    let words = tell(Device::Native.edge().args(["info", "--head"]).arg(&head), 0);
    assert!(words.contains("not verified"), "{words}");
    // No output contains part of a secret key.
    for name in ["plain.key", "locked.key"] {
        let text = std::fs::read_to_string(place.path(name)).unwrap();
        let secret = text.lines().nth(1).unwrap();
        assert!(secret.len() > 150);
        for at in (60..secret.len() - 24).step_by(8) {
            assert!(!said.borrow().contains(&secret[at..at + 24]));
        }
    }
    std::fs::set_permissions(place.path("plain.key"), PermissionsExt::from_mode(0o644)).unwrap();
    assert!(tell(&mut sign("plain.key", "password"), 0).contains("other users can read this key"));
}

#[test]
fn minisign_signatures_are_interoperable() {
    let place = Place::new();
    place.keygen("ours");
    let minisign = |arguments: &[&str]| {
        let mut minisign = Command::new("minisign");
        minisign.args(arguments).current_dir(place.0.path()).stdin(Stdio::null());
        succeed(&mut minisign)
    };
    let head = place.sign(small_head(), "head", "ours", 7);
    let words = minisign(&["-Vm", "head", "-p", "ours.pub"]);
    assert!(words.contains("verified") && words.contains("version:7"), "{words}");
    // Keys and signatures made by minisign, whose version is the time.
    minisign(&["-G", "-W", "-p", "its.pub", "-s", "its.key"]);
    minisign(&["-S", "-s", "its.key", "-m", "head"]);
    let verified =
        succeed(host().args(["verify", "--json", "--trust"]).arg(place.path("its.pub")).arg(&head));
    let verified = &ndjson(&verified)[0];
    assert!(
        verified["version"].as_u64().unwrap() > 1_700_000_000 && verified["kind"] == "head",
        "{verified}"
    );
    // minisign's key with `host`, and the key of `host` with minisign.
    succeed(host().args(["sign", "--key"]).arg(place.path("its.key")).arg(&head));
    minisign(&["-Vm", "head", "-p", "its.pub"]);
    minisign(&["-S", "-s", "ours.key", "-m", "head"]);
    succeed(host().args(["verify", "--trust"]).arg(place.path("ours.pub")).arg(&head));
    // A file that is not a head is not signed, and a file signed with another key is not verified.
    std::fs::write(place.path("junk"), "junk").unwrap();
    fail(
        host().args(["sign", "--key"]).arg(place.path("ours.key")).arg(place.path("junk")),
        1,
        "junk",
    );
    fail(
        host().args(["verify", "--trust"]).arg(place.path("its.pub")).arg(&head),
        1,
        "files refused",
    );
}

/// Every kind of untrusted file is refused, by `edge classify` and at the start of `edge run`
/// alike.
#[test]
fn untrusted_signatures_are_refused() {
    let place = Place::new();
    let scene = scene();
    place.keygen("old");
    place.keygen("new");
    place.keygen("stranger");
    let base = place.signed_base("old", 10);
    let first = place.sign(&scene.heads[0], "first", "old", 10);
    let trust = |edge: &mut Command, keys: &[&str]| {
        for key in keys {
            edge.arg("--trust").arg(place.path(&format!("{key}.pub")));
        }
    };
    let state = place.path("state");
    let classify = |keys: &[&str]| {
        let mut edge = Device::Native.edge();
        edge.arg("classify")
            .arg(scene.pictures.join("0.bmp"))
            .arg("--head")
            .arg(place.path("head"));
        trust(edge.arg("--base").arg(&base), keys);
        edge.arg("--state").arg(&state);
        edge
    };
    let refused = |keys: &[&str], words: &str| {
        fail(&mut classify(keys), 1, words);
        let mut edge = Device::Native.edge();
        edge.args(["run", "--frames", "1", "--source"])
            .arg(&scene.pictures)
            .arg("--head")
            .arg(place.path("head"));
        trust(edge.arg("--base").arg(&base), keys);
        // No model was kept here, so there is no other model to run.
        let copy = place.path("state-of-run");
        std::fs::create_dir_all(&copy).unwrap();
        if state.join("state.json").exists() {
            std::fs::copy(state.join("state.json"), copy.join("state.json")).unwrap();
        }
        fail(edge.arg("--state").arg(&copy), 1, words);
    };
    place.put_signed("head", &first);
    succeed(&mut classify(&["old"]));
    succeed(&mut classify(&["stranger", "old"]));
    refused(&["stranger"], "signed by key");

    // Unsigned, modified, signed for another file.
    place.put_signed("head", &scene.heads[0]);
    refused(&["old"], "it is not signed");
    let mut altered = Head::open(&scene.heads[0]).unwrap();
    altered.labels[0] = "altered".into();
    altered.save(&place.path("altered")).unwrap();
    place.put_signed("head", &first);
    place.put("head", &bytes(&place.path("altered")));
    refused(&["old"], "does not match");
    place.put_signed("head", &first);
    let comment = String::from_utf8(bytes(&place.path("head.minisig")))
        .unwrap()
        .replace("version:10", "version:11");
    place.put("head.minisig", comment.as_bytes());
    refused(&["old"], "does not match");

    // An older version, and another file with the same version.
    let newer = place.sign(&scene.heads[1], "newer", "old", 11);
    place.put_signed("head", &newer);
    succeed(&mut classify(&["old"]));
    place.put_signed("head", &first);
    refused(&["old"], "version 10 is older than version 11");
    let twin = place.sign(&scene.heads[0], "twin", "old", 11);
    place.put_signed("head", &twin);
    refused(&["old"], "version 11 is that of another head");
    place.put_signed("head", &newer);
    succeed(&mut classify(&["old"]));

    // A new key: versions signed with the old key are older for both; once the old key is removed,
    // its versions no longer count.
    let base_bytes = bytes(&base);
    let renewed = place.sign(&scene.heads[0], "renewed", "new", 12);
    place.put_signed("head", &renewed);
    succeed(&mut classify(&["old", "new"]));
    place.put_signed("head", &newer);
    refused(&["old", "new"], "version 11 is older than version 12");
    place.put_signed("head", &renewed);
    refused(&["new"], "signed by key");
    place.sign(&tests::base(), "base", "new", 3);
    succeed(&mut classify(&["new"]));

    // The same for bases.
    std::fs::remove_file(place.path("base.minisig")).unwrap();
    refused(&["new"], "base: not trusted: it is not signed");
    place.sign(&tests::base(), "base", "new", 2);
    refused(&["new"], "version 2 is older than version 3");
    assert_eq!(bytes(&base), base_bytes);

    // Trust requires a state directory.
    let mut edge = Device::Native.edge();
    edge.arg("classify").arg(scene.pictures.join("0.bmp")).arg("--head").arg(place.path("head"));
    trust(&mut edge, &["new"]);
    fail(&mut edge, 2, "--state DIR");
    place.sign(&tests::base(), "base", "new", 4);
    let mut limited = Command::new("bash");
    limited
        .args(["-c", "trap '' XFSZ; ulimit -f 0; exec \"$@\"", "bash"])
        .arg(Device::Native.edge_path());
    limited.args(classify(&["new"]).get_args()).current_dir(root());
    fail(&mut limited, 1, "state.json");
    let record = bytes(&state.join("state.json"));
    std::fs::write(state.join("state.json"), &record[..record.len() / 2]).unwrap();
    refused(&["new"], "state.json: damaged");
    std::fs::write(state.join("state.json"), &record).unwrap();
    succeed(&mut classify(&["new"]));
    fail(classify(&[]).arg("--trust").arg(place.path("head.minisig")), 1, "not a public key");
}

/// A refused model stays refused after a restart, and the last good model runs.
#[test]
fn a_replayed_head_is_refused_after_a_restart_and_the_last_good_one_runs() {
    let place = Place::new();
    let scene = scene();
    place.keygen("key");
    let base = place.signed_base("key", 1);
    let old = place.sign(&scene.heads[0], "old", "key", 1);
    let new = place.sign(&scene.heads[1], "new", "key", 2);
    let (public, base) = (place.path("key.pub"), base.to_str().unwrap().to_owned());
    let flags = ["--watch", "--trust", public.to_str().unwrap(), "--base", &base];
    place.put_signed("head", &old);
    let mut edge = Edge::start(&mut place.edge(&flags));
    assert_eq!(labels(&edge.frame()), ["green", "red"]);
    place.put_signed("head", &new);
    // The signature may be replaced shortly after the head.
    let mut event = edge.model();
    if event["state"] == "refused" {
        event = edge.model();
    }
    assert_eq!((&event["state"], &event["version"]), (&"swapped".into(), &2.into()), "{event}");
    assert_eq!(labels(&edge.frame()), ["cat", "dog", "fox"]);
    let words = edge.stop();
    assert!(!words.contains("panicked"), "{words}");

    // The old head is put back while the device is off.
    place.put_signed("head", &old);
    let mut edge = Edge::start(&mut place.edge(&flags));
    edge.expect("last-good", "version 1 is older than version 2");
    assert_eq!(labels(&edge.frame()), ["cat", "dog", "fox"]);
    let words = edge.stop();
    assert!(
        words.contains("running the last good head")
            && words.contains("version 1 is older than version 2"),
        "{words}"
    );

    // A modified copy in the state directory is not accepted either.
    let kept = place.path("state/kept").join(format!("head-{}.postcard", digest(&new)));
    let mut forged = Head::open(&kept).unwrap();
    forged.labels[0] = "forged".into();
    forged.save(&kept).unwrap();
    let mut edge = Edge::start(&mut place.edge(&flags));
    edge.expect("last-good", "version 1 is older than version 2");
    // The previous model is the old one: it was accepted, and no other is left.
    assert_eq!(labels(&edge.frame()), ["green", "red"]);
    edge.stop();
}

#[test]
fn settings_name_keys_and_a_state_directory() {
    let place = Place::new();
    let scene = scene();
    place.keygen("a");
    place.keygen("b");
    let base = place.signed_base("b", 1);
    let head = place.sign(&scene.heads[0], "head", "a", 1);
    let config = place.path("edge.toml");
    let text = format!(
        "head = {head:?}\nbase = {base:?}\nsource = {:?}\njson = true\nframes = 2\nwatch = true\n\
            trust = [{:?}, {:?}]\nstate = {:?}\n",
        scene.pictures,
        place.path("a.pub"),
        place.path("b.pub"),
        place.path("state")
    );
    std::fs::write(&config, &text).unwrap();
    let edge = || {
        let mut edge = Device::Native.edge();
        edge.args(["run", "--config"]).arg(&config);
        edge
    };
    assert_eq!(ndjson(&succeed(&mut edge())).len(), 2);
    fail(
        Device::Native.edge().args(["rollback", "--config"]).arg(&config),
        1,
        "no earlier model to roll back to",
    );
    std::fs::write(&config, text.replace(&format!(", {:?}]", place.path("b.pub")), "]")).unwrap();
    // Neither the files in place nor the kept ones are signed with the remaining key.
    fail(&mut edge(), 1, "base: not trusted: it is signed by key");
    std::fs::write(&config, "head = \"h\"\n").unwrap();
    fail(
        Device::Native.edge().args(["rollback", "--config"]).arg(&config),
        1,
        "no state directory",
    );
    assert!(scene.folder.path().exists());
}
