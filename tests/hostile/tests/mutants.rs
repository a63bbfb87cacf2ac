//! Every target over its corpus and over a fixed number of damaged copies of it. `RELIABILITY.md` has the runs at length, under libFuzzer.

use hostile::{Mutator, TARGETS, corpus};

/// Runs a target over `cases` damaged copies, after the corpus itself. A panic names what it takes to see it again.
fn run(name: &str, cases: usize) {
    let (_, target) = TARGETS.iter().find(|(known, _)| *known == name).unwrap();
    let files = corpus(name);
    let attempt = |bytes: Vec<u8>, what: &str| {
        if std::panic::catch_unwind(|| target(&bytes)).is_err() {
            let path = std::env::temp_dir().join(format!("hostile-{name}-{}", shared::Fingerprint::of(&bytes).short()));
            std::fs::write(&path, &bytes).unwrap();
            panic!("{name}: {what}; the bytes are in {}", path.display());
        }
    };
    for (path, bytes) in &files {
        attempt(bytes.clone(), &path.display().to_string());
    }
    let factor = std::env::var("VGG_EDGE_HOSTILE_FACTOR").map_or(1, |factor| factor.parse::<usize>().unwrap());
    for case in 0..cases * factor {
        let mut mutator = Mutator::new(case as u64);
        let (one, other) = (mutator.below(files.len()), mutator.below(files.len()));
        attempt(mutator.damaged(&files[one].1, &files[other].1), &format!("case {case}"));
    }
}

macro_rules! targets {
    ($($name:ident: $cases:literal),+ $(,)?) => {
        $(#[test] fn $name() { run(stringify!($name), $cases); })+

        #[test]
        fn each_target_is_run() {
            assert_eq!(TARGETS.map(|(name, _)| name), [$(stringify!($name)),+]);
        }
    };
}

targets! {
    base: 1_000, config: 500, head: 4_000, http: 3_000, image: 2_000, import: 1_500, mjpg: 1_000, pixels: 4_000, y4m: 1_000,
}
