//! Tests of the session.

use std::fs;

use proptest::prelude::*;

use std::collections::BTreeMap;

use serde_json::{Value, json};

use super::class_name::ClassNameError;
use super::class_name::MAX_BYTES;
use super::*;

/// Reads all files below a directory, without the log.
pub fn tree(root: &Path) -> BTreeMap<String, Vec<u8>> {
    let mut found = BTreeMap::new();
    let mut directories = vec![root.to_owned()];
    while let Some(directory) = directories.pop() {
        for entry in fs::read_dir(directory).unwrap() {
            let path = entry.unwrap().path();
            if path.is_dir() {
                directories.push(path);
            } else if path.file_name().unwrap() != LABELS {
                let name = path.strip_prefix(root).unwrap().to_str().unwrap().to_owned();
                found.insert(name, fs::read(path).unwrap());
            }
        }
    }
    found
}

fn write(root: &Path, files: &[(&str, &str)]) {
    for (name, content) in files {
        let path = root.join(name);
        fs::create_dir_all(path.parent().unwrap()).unwrap();
        fs::write(path, content).unwrap();
    }
}

fn open(root: &Path) -> LabelSession {
    LabelSession::open(&root.join("in"), Some(&root.join("data")), Some(&["a".into(), "b".into()]))
        .unwrap()
}

#[test]
fn least_certain_images_come_first_and_labels_become_classes() {
    let root = tempfile::tempdir().unwrap();
    write(
        root.path(),
        &[("1.jpg", ""), ("2.jpg", ""), ("3.jpg", ""), ("note.txt", ""), (".4.jpg", "")],
    );
    let line = |file: &str, label: &str, x: f64| {
        json!({ "file": file, "label": label, "scores": { "x": x, "y": 1.0 - x, "../up": 0.0 } })
            .to_string()
    };
    let lines = [
        line("2.jpg", "x", 0.9),
        line("3.jpg", "unknown", 0.4),
        line("../up.jpg", "x", 0.5),
        "{".into(),
    ];
    fs::write(root.path().join(FRAMES), lines.join("\n")).unwrap();
    std::os::unix::fs::symlink("/etc/passwd", root.path().join("5.jpg")).unwrap();
    let mut session = LabelSession::open(root.path(), None, None).unwrap();
    assert_eq!((session.total(), session.bad_lines), (3, 1));
    let (state, trouble) = session.state();
    assert_eq!(
        (&state["item"]["file"], &state["item"]["suggestion"]),
        (&json!("3.jpg"), &json!("y"))
    );
    assert_eq!(state["classes"], json!([{ "name": "x", "count": 0 }, { "name": "y", "count": 0 }]));
    assert!(trouble.is_none());
    session.decide(0, Choice::Class("y".into())).unwrap();
    assert_eq!(session.state().0["item"]["file"], "2.jpg");
    session.decide(1, Choice::Skip).unwrap();
    assert_eq!(session.state().0["item"]["file"], "1.jpg");
    // An image that has vanished is reported once.
    fs::remove_file(root.path().join("1.jpg")).unwrap();
    assert!(matches!(session.decide(2, Choice::Reject), Err(UserError::Gone { .. })));
    let (state, vanished) = session.state();
    assert!(vanished.is_none());
    assert_eq!((&state["item"], &state["gone"]), (&Value::Null, &json!(1)));
    let log = fs::read_to_string(root.path().join(LABELS)).unwrap();
    let log: Value = serde_json::from_str(&log).unwrap();
    let wanted = json!({ "time": log["time"], "action": "sorted", "file": "3.jpg", "from": "3.jpg",
        "to": "sorted/y/3.jpg", "class": "y", "suggestion": "y" });
    assert_eq!(log, wanted);
}

#[test]
fn class_names_that_are_refused() {
    let long = "x".repeat(MAX_BYTES + 1);
    for bad in ["train", "", " ", " a", "a/b", "..", ".a", "a\\b", "a\nb", "\0", &long] {
        assert!(check_class(bad).is_err(), "{bad:?}");
    }
    for good in ["a", "brown bear", "Fußgänger", "_x", "&<b>", &long[1..]] {
        assert!(check_class(good).is_ok(), "{good:?}");
    }
    let root = tempfile::tempdir().unwrap();
    write(root.path(), &[("in/1.png", "")]);
    let mut session = open(root.path());
    assert!(matches!(
        session.add_class("train"),
        Err(UserError::ClassName(ClassNameError::Split(_)))
    ));
    assert!(session.add_class("A").is_err());
    session.add_class("a").unwrap();
    session.add_class("c").unwrap();
    assert_eq!(session.classes.len(), 3);
    assert!(matches!(
        session.decide(0, Choice::Class("d".into())),
        Err(UserError::UnknownClass(_))
    ));
    session.decide(0, Choice::Class("c".into())).unwrap();
    assert!(root.path().join("data/c").is_dir());
    session.undo().unwrap();
    assert!(
        !root.path().join("data/c").exists(),
        "an empty class directory would stop the training"
    );
    assert!(session.undo().is_err());
}

#[test]
fn log_that_cannot_be_written_leaves_the_image_where_it_was() {
    let root = tempfile::tempdir().unwrap();
    write(root.path(), &[("in/1.png", "1")]);
    fs::create_dir(root.path().join("in").join(LABELS)).unwrap();
    let mut session = open(root.path());
    for choice in [Choice::Class("a".into()), Choice::Reject] {
        let message = session.decide(0, choice).unwrap_err().to_string();
        assert!(message.contains(LABELS) && message.contains("stays where it was"), "{message}");
    }
    assert_eq!(tree(root.path()).into_keys().collect::<Vec<_>>(), ["in/1.png"]);
    // As does a class directory that is none.
    write(root.path(), &[("data/b", "")]);
    let message = session.decide(0, Choice::Class("b".into())).unwrap_err().to_string();
    assert!(message.contains("stays where it was") && message.contains("data/b"), "{message}");
    assert_eq!(session.state().0["open"], 1);
}

#[test]
fn directories_that_training_would_mix_up_are_refused() {
    let root = tempfile::tempdir().unwrap();
    write(
        root.path(),
        &[("in/1.png", "1"), ("split/train/a/1.png", "1"), ("split/val/a/1.png", "1")],
    );
    for data in ["in", "."] {
        let refused =
            LabelSession::open(&root.path().join("in"), Some(&root.path().join(data)), None)
                .err()
                .unwrap();
        assert!(matches!(refused, UserError::InsideData { .. }), "{refused}");
    }
    let mut session =
        LabelSession::open(&root.path().join("in"), Some(&root.path().join("split")), None)
            .unwrap();
    assert!(session.data().ends_with("split/train"));
    assert_eq!(session.state().0["classes"], json!([{ "name": "a", "count": 1 }]));
    // A link in the place of the default directory is not followed.
    std::os::unix::fs::symlink(root.path().join("split"), root.path().join("in/sorted")).unwrap();
    assert!(LabelSession::open(&root.path().join("in"), None, None).is_err());
}

#[derive(Clone, Debug)]
enum Act {
    Decide(usize, Choice),
    Undo,
    Unskip,
}

fn act() -> impl Strategy<Value = Act> {
    let choice = prop_oneof![
        4 => prop::sample::select(vec!["a", "b"]).prop_map(|class| Choice::Class(class.to_owned())),
        2 => Just(Choice::Reject),
        1 => Just(Choice::Skip),
    ];
    prop_oneof![
        6 => (0usize..5, choice).prop_map(|(item, choice)| Act::Decide(item, choice)),
        3 => Just(Act::Undo),
        1 => Just(Act::Unskip),
    ]
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(96))]

    /// The model keeps a copy of the whole tree for each step, and knows files by content alone.
    #[test]
    fn any_order_of_steps_ends_as_in_a_naive_model(
        inbox in prop::collection::vec(0u8..3, 5),
        there in prop::collection::vec(prop::option::of(0u8..3), 10),
        acts in prop::collection::vec(act(), 0..24),
    ) {
        let root = tempfile::tempdir().unwrap();
        let content = |c: u8| ["zero", "one!", "two!"][usize::from(c)];
        let name = |i: usize| format!("{i}.png");
        for (i, &c) in inbox.iter().enumerate() {
            write(root.path(), &[(&format!("in/{}", name(i)), content(c))]);
        }
        // Names that are taken already, by the same content or by another.
        for (i, c) in there.iter().enumerate().filter_map(|(i, c)| Some((i, (*c)?))) {
            let path = format!("data/{}/{}", ["a", "b"][i / 5], name(i % 5));
            write(root.path(), &[(&path, content(c))]);
        }
        let mut session = open(root.path());
        let mut disk = tree(root.path());
        let mut past = Vec::new();
        for act in acts {
            match act {
                Act::Decide(id, choice) => {
                    let from = format!("in/{}", name(id));
                    let Some(bytes) = disk.get(&from).cloned() else {
                        prop_assert!(session.decide(id, choice).is_err());
                        continue;
                    };
                    past.push(disk.clone());
                    session.decide(id, choice.clone()).unwrap();
                    let directory = match &choice {
                        Choice::Skip => continue,
                        Choice::Reject => format!("in/{REJECTED}"),
                        Choice::Class(class) => format!("data/{class}"),
                    };
                    let hash = vgg_edge::Fingerprint::of(&bytes).short();
                    let wanted = [name(id), format!("{id}-{hash}.png")]
                        .map(|name| format!("{directory}/{name}"));
                    let free = wanted
                        .into_iter()
                        .find(|to| disk.get(to).is_none_or(|there| *there == bytes));
                    disk.remove(&from);
                    disk.insert(free.unwrap(), bytes);
                }
                Act::Undo => match past.pop() {
                    Some(before) => {
                        session.undo().unwrap();
                        disk = before;
                    }
                    None => prop_assert!(session.undo().is_err()),
                },
                Act::Unskip => session.unskip(),
            }
            prop_assert_eq!(&tree(root.path()), &disk);
            let (state, vanished) = session.state();
            prop_assert!(vanished.is_none());
            let is_left = |name: &&String| name.starts_with("in/") && !name.contains(REJECTED);
            let left = disk.keys().filter(is_left).count();
            let count = |key: &str| state[key].as_u64().unwrap();
            prop_assert_eq!(count("open") + count("skipped"), left as u64);
        }
        while let Some(before) = past.pop() {
            session.undo().unwrap();
            disk = before;
            prop_assert_eq!(&tree(root.path()), &disk);
        }
    }
}
