use std::cell::Cell;
use std::fs;

use proptest::prelude::*;
use vgg_edge::Fingerprint;
use vgg_edge::image::resize::Filter;
use vgg_edge::preprocess::{ChannelOrder, Fit, InputSpec, Preprocess};
use vgg_edge_cli::terminal::CancelToken;

use super::*;
use crate::dataset::Item;
use crate::features::parts::file::Writer;
use crate::features::parts::{Entry, ListBuilder, Outcome};

const CHANNELS: u32 = 4;

/// Images in the order of their list: class, path, and a row if they can be read.
type Images = Vec<(u32, String, Option<[u8; CHANNELS as usize]>)>;

fn run(images: &Images) -> Run {
    let base = InputSpec {
        channel_order: ChannelOrder::Bgr,
        mean: [0.0; 3],
        std: [1.0; 3],
        scale: 1.0,
        zero_point: 0,
        resize: Filter::Bilinear,
        channels: CHANNELS,
        stride: 32,
        size_multiple: 32,
        size_min: 32,
        size_max: 64,
    };
    let mut list = ListBuilder::default();
    images.iter().for_each(|(class, name, _)| list.add(*class as usize, name.as_bytes()));
    Run {
        program: "host 0".into(),
        arithmetic: ARITHMETIC,
        base: Fingerprint::of(b"base"),
        preprocess: Preprocess::new(base, 32, Fit::Stretch, Filter::Bilinear).unwrap(),
        scales: vec![1.0; CHANNELS as usize],
        data: list.finish(vec!["a".into(), "b".into()], Some(1)),
    }
}

/// Writes a part with the images that `of` selects, in the simplest way.
fn write(path: &Path, run: &Run, images: &Images, shard: Shard, of: impl Fn(&str) -> bool) {
    let (mut index, mut rows, mut entries) = (Vec::new(), Vec::new(), 0);
    for (item, (class, name, row)) in images.iter().enumerate().filter(|(_, (_, name, _))| of(name))
    {
        let outcome = match row {
            Some(row) => Outcome::Row(Fingerprint::of(row)),
            None => Outcome::Unreadable("no picture".into()),
        };
        Entry { item: item as u64, class: *class, name: name.as_bytes().to_vec(), outcome }
            .append(&mut index)
            .unwrap();
        rows.extend(row.iter().flatten());
        entries += 1;
    }
    let (index_len, count) = (index.len() as u64, rows.len() as u64 / u64::from(CHANNELS));
    let manifest = Manifest { run: run.clone(), shard, entries, index_len, rows: count };
    let mut file = Vec::new();
    let mut writer = Writer::new(&mut file, path, &manifest).unwrap();
    for bytes in [index, rows] {
        writer.bytes(&bytes).unwrap();
        writer.seal().unwrap();
    }
    fs::write(path, file).unwrap();
}

fn write_all(directory: &Path, run: &Run, images: &Images, count: u32) {
    for index in 0..count {
        let shard = Shard { index, count };
        write(&directory.join(shard.file_name()), run, images, shard, |name| {
            Shard::of(name.as_bytes(), count) == index
        });
    }
}

fn merged(directory: &Path) -> Result<Vec<u8>, PartSetError> {
    let output = directory.join("merged");
    PartSet::open(directory)?.merge(&output, &CancelToken::default())?;
    Ok(fs::read(output).unwrap())
}

fn some(count: u32) -> Images {
    (0..count).map(|n| (n % 2, format!("{n}.png"), (n % 5 > 0).then_some([n as u8; 4]))).collect()
}

fn images() -> impl Strategy<Value = Images> {
    prop::collection::btree_map(
        "[a-c]{1,2}(/[a-c]{1,2})?",
        (0u32..2, prop::option::of(any::<[u8; 4]>())),
        0..40,
    )
    .prop_map(|map| map.into_iter().map(|(name, (class, row))| (class, name, row)).collect())
}

proptest! {
    #[test]
    fn parts_are_the_whole(images in images(), count in 1u32..50) {
        let directory = tempfile::tempdir().unwrap();
        let run = run(&images);
        write_all(directory.path(), &run, &images, count);
        let whole = directory.path().join("whole");
        write(&whole, &run, &images, Shard::WHOLE, |_| true);
        prop_assert_eq!(merged(directory.path()).unwrap(), fs::read(&whole).unwrap());
        // Read as parts and as a whole, they are the images that were written.
        for path in [directory.path(), &whole] {
            let set = PartSet::open(path).unwrap();
            let cancel = CancelToken::default();
            let (pool, features) = set.features(Path::new("data"), true, &cancel).unwrap();
            let item = |(class, name, _): &(u32, String, _)| {
                Item { path: Path::new("data").join(name), class: *class as usize }
            };
            let expected: Vec<Item> = images.iter().map(item).collect();
            prop_assert_eq!(&pool.classes, &run.data.classes);
            prop_assert_eq!((&pool.items, pool.train), (&expected, Some(1)));
            let readable: Vec<usize> =
                (0..images.len()).filter(|&item| images[item].2.is_some()).collect();
            prop_assert_eq!(&features.items, &readable);
            prop_assert_eq!(features.skipped.len(), images.len() - readable.len());
            for (row, &item) in readable.iter().enumerate() {
                let wanted = images[item].2.unwrap();
                prop_assert_eq!(&*features.row(row).unwrap(), &wanted);
                prop_assert_eq!(features.hashes[row], Fingerprint::of(&wanted));
            }
        }
    }

    #[test]
    fn every_changed_byte_of_a_part_is_detected(
        part in 0u32..4, at: prop::sample::Index, change in 1u8.., cut: bool,
    ) {
        let directory = tempfile::tempdir().unwrap();
        let images = some(24);
        write_all(directory.path(), &run(&images), &images, 4);
        let path = directory.path().join(Shard { index: part, count: 4 }.file_name());
        let mut bytes = fs::read(&path).unwrap();
        let at = at.index(bytes.len());
        if cut { bytes.truncate(at) } else { bytes[at] ^= change }
        fs::write(&path, bytes).unwrap();
        let error = merged(directory.path()).unwrap_err().to_string();
        // Reported as damaged; if the manifest was changed, perhaps as one of another run, or of
        // another name.
        let name = format!("part-0000{part}-of");
        let named = [
            format!("part {part} "), name, "parts do not belong".into(), format!("missing: {part}"),
        ];
        prop_assert!(named.iter().any(|text| error.contains(text)), "{}", error);
        prop_assert!(!directory.path().join("merged").exists());
        let cancel = CancelToken::default();
        let read = PartSet::open(directory.path())
            .and_then(|set| set.features(Path::new(""), false, &cancel));
        prop_assert!(read.is_err());
    }
}

#[test]
fn all_missing_and_damaged_parts_are_named_at_once() {
    let directory = tempfile::tempdir().unwrap();
    let images = some(60);
    write_all(directory.path(), &run(&images), &images, 12);
    let file = |index| directory.path().join(Shard { index, count: 12 }.file_name());
    // The last byte is of the checksum of the rows.
    let hurt = |index| {
        let mut bytes = fs::read(file(index)).unwrap();
        *bytes.last_mut().unwrap() ^= 1;
        fs::write(file(index), bytes).unwrap();
    };
    [4, 9].into_iter().for_each(hurt);
    let error = merged(directory.path()).unwrap_err().to_string();
    assert!(
        error.contains("part 4 is damaged (its checksum does not match); part 9 is damaged"),
        "{error}"
    );
    assert!(error.contains("--array=4,9"), "{error}");
    let read = PartSet::open(directory.path())
        .unwrap()
        .features(Path::new(""), false, &CancelToken::default())
        .err()
        .unwrap()
        .to_string();
    assert_eq!(read, error);
    for index in [0, 6, 7, 8] {
        fs::remove_file(file(index)).unwrap();
    }
    fs::write(file(3), b"VGGEROWS").unwrap();
    let error = merged(directory.path()).unwrap_err().to_string();
    assert!(
        error.contains("of 12 parts 4 missing: 0, 6-8; part 3 is damaged (it is truncated)"),
        "{error}"
    );
    assert!(error.contains("--array=0,3,6-8"), "{error}");
    assert!(!directory.path().join("merged").exists());
}

#[test]
fn parts_of_different_runs_are_named() {
    let directory = tempfile::tempdir().unwrap();
    assert!(matches!(PartSet::open(directory.path()), Err(PartSetError::Empty(_))));
    let images = some(30);
    let ours = run(&images);
    let file = |index| directory.path().join(Shard { index, count: 4 }.file_name());
    let other = |run: &Run, index: u32| {
        let shard = Shard { index, count: 4 };
        write(&file(index), run, &images, shard, |name| Shard::of(name.as_bytes(), 4) == index);
    };
    let fails = |change: &dyn Fn(&mut Run), words: &str| {
        write_all(directory.path(), &ours, &images, 4);
        let mut theirs = ours.clone();
        change(&mut theirs);
        [0, 2].into_iter().for_each(|index| other(&theirs, index));
        // With as many of each, the first run counts as the right one.
        let error = merged(directory.path()).unwrap_err().to_string();
        assert!(
            error.contains(words)
                && error.contains("parts 1, 3 ")
                && error.contains("do not belong"),
            "{error}"
        );
        other(&ours, 2);
        let error = merged(directory.path()).unwrap_err().to_string();
        assert!(error.contains("part 0 "), "{error}");
    };
    fails(
        &|run| run.program = "host 1".into(),
        "made by host 0 (arithmetic 1), not by host 1 (arithmetic 1)",
    );
    fails(&|run| run.arithmetic = 7, "(arithmetic 7)");
    fails(&|run| run.base = Fingerprint::of(b"other"), "of base ");
    fails(&|run| run.preprocess.fit = Fit::Cover, "stretch, bilinear");
    fails(&|run| run.data.classes[1] = "c".into(), "of classes a, b, not of a, c");
    fails(&|run| run.data.list = Fingerprint::of(b"other"), "of 30 images (list ");

    write_all(directory.path(), &ours, &images, 4);
    write_all(directory.path(), &ours, &images, 2);
    let error = merged(directory.path()).unwrap_err().to_string();
    assert!(error.contains("parts of different runs: 2 of 2 (0, 1); 4 of 4 (0-3)"), "{error}");
    for index in 0..2 {
        fs::remove_file(directory.path().join(Shard { index, count: 2 }.file_name())).unwrap();
    }
    fs::copy(file(1), file(3)).unwrap();
    let error = merged(directory.path()).unwrap_err().to_string();
    assert!(
        error.contains(
            "part-00003-of-00004.features: its name does not match its content, part 1 of 4"
        ),
        "{error}"
    );
    let alone = PartSet::open(&file(1)).err().unwrap().to_string();
    assert!(alone.contains("part 1 of 4; name the directory"), "{alone}");
}

#[test]
fn images_in_no_part_or_in_two_are_errors() {
    let directory = tempfile::tempdir().unwrap();
    let images = some(30);
    let run = run(&images);
    let part = |index, of: &dyn Fn(&str) -> bool| {
        let shard = Shard { index, count: 2 };
        write(&directory.path().join(shard.file_name()), &run, &images, shard, of);
    };
    let first = |name: &str| Shard::of(name.as_bytes(), 2) == 0;
    part(1, &|name| !first(name));
    let lost = images.iter().map(|(_, name, _)| name).find(|name| first(name)).unwrap();
    part(0, &|name| first(name) && name != lost);
    let error = merged(directory.path()).unwrap_err().to_string();
    assert!(error.contains("comes next"), "{error}");
    part(0, &|_| true);
    assert!(merged(directory.path()).unwrap_err().to_string().contains("belongs to another part"));
    part(0, &first);
    part(1, &|_| true);
    let error = merged(directory.path()).unwrap_err().to_string();
    assert!(error.contains("comes next") || error.contains("belongs to another part"), "{error}");
    part(1, &|name| !first(name));
    merged(directory.path()).unwrap();
}

/// Returns the same bytes with correct lengths and checksums, so that damage passes them; `None`
/// without a manifest.
fn sealed(bytes: &[u8]) -> Option<Vec<u8>> {
    let (header, rest) = bytes.split_at_checked(20)?;
    let len = u64::from_le_bytes(*header.last_chunk()?);
    let (manifest, rest) = rest.split_at_checked(usize::try_from(len).ok()?)?;
    let mut manifest: Manifest = postcard::from_bytes(manifest).ok()?;
    let rows = usize::try_from(manifest.rows).ok()?.checked_mul(CHANNELS as usize)?;
    let index = rest.len().checked_sub(rows)?.checked_sub(64)?;
    manifest.index_len = index as u64;
    let mut file = Vec::new();
    let mut writer = Writer::new(&mut file, Path::new("sealed"), &manifest).unwrap();
    for bytes in [&rest[..index], &rest[index + 32..][..rows]] {
        writer.bytes(bytes).unwrap();
        writer.seal().unwrap();
    }
    Some(file)
}

#[test]
fn forged_feature_files_are_read_or_refused() {
    let directory = tempfile::tempdir().unwrap();
    let path = directory.path().join("features");
    let good = [1, 7, 40].map(|count| {
        let images = some(count);
        write(&path, &run(&images), &images, Shard::WHOLE, |_| true);
        assert_eq!(sealed(&fs::read(&path).unwrap()), Some(fs::read(&path).unwrap()));
        (format!("{count} images").into(), fs::read(&path).unwrap())
    });
    let cancel = CancelToken::default();
    let read = |bytes: &[u8]| {
        fs::write(&path, bytes).unwrap();
        let Ok((pool, features)) =
            PartSet::open(&path).and_then(|set| set.features(Path::new("data"), true, &cancel))
        else {
            return false;
        };
        assert!(
            pool.items
                .iter()
                .all(|item| item.path.starts_with("data") && item.class < pool.classes.len())
        );
        assert_eq!(pool.items.len(), features.items.len() + features.skipped.len());
        (0..features.items.len())
            .for_each(|row| assert_eq!(features.row(row).unwrap().len(), features.dim));
        true
    };
    let (taken, seen) = (Cell::new(0), Cell::new(0));
    fuzz_targets::attack("features", &good, 1_000, |bytes| {
        let as_it_is = read(bytes);
        assert!(!as_it_is || good.iter().any(|(_, good)| good == bytes), "damage is not seen");
        if let Some(bytes) = sealed(bytes) {
            seen.set(seen.get() + 1);
            taken.set(taken.get() + u32::from(read(&bytes)));
        }
    });
    // Most pass the checksums, and some could have been made by `host extract`.
    assert!(seen.get() > 300 && taken.get() > 30, "{seen:?} {taken:?}");
}

#[test]
fn names_outside_of_the_data_directory_are_refused() {
    let directory = tempfile::tempdir().unwrap();
    let path = directory.path().join("features");
    for name in ["/etc/passwd", "../a.png", "a/../../b.png"] {
        let images = vec![(0, name.to_owned(), Some([1; 4]))];
        write(&path, &run(&images), &images, Shard::WHOLE, |_| true);
        let error = PartSet::open(&path)
            .unwrap()
            .features(Path::new("data"), true, &CancelToken::default())
            .err()
            .unwrap()
            .to_string();
        assert!(error.contains("not a path within the data directory"), "{error}");
    }
}
