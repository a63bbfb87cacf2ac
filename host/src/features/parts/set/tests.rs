use std::cell::Cell;
use std::fs;

use proptest::prelude::*;
use vgg_edge::image::resize::Filter;
use vgg_edge::preprocess::{ChannelOrder, Fit, InputSpec, Preprocess};

use super::*;

const CHANNELS: u32 = 4;

/// Pictures in the order of their list: class, path, and a row if they can be read.
type Pictures = Vec<(u32, String, Option<[u8; CHANNELS as usize]>)>;

fn run(pictures: &Pictures) -> Run {
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
    pictures.iter().for_each(|(class, name, _)| list.add(*class as usize, name.as_bytes()));
    Run {
        program: "host 0".into(),
        arithmetic: ARITHMETIC,
        base: Fingerprint::of(b"base"),
        preprocess: Preprocess::new(base, 32, Fit::Stretch, Filter::Bilinear).unwrap(),
        scales: vec![1.0; CHANNELS as usize],
        data: list.finish(vec!["a".into(), "b".into()], Some(1)),
    }
}

/// Writes those pictures that `of` says are in the part, in the plainest way.
fn write(path: &Path, run: &Run, pictures: &Pictures, shard: Shard, of: impl Fn(&str) -> bool) {
    let (mut index, mut rows, mut entries) = (Vec::new(), Vec::new(), 0);
    for (item, (class, name, row)) in
        pictures.iter().enumerate().filter(|(_, (_, name, _))| of(name))
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

fn write_all(folder: &Path, run: &Run, pictures: &Pictures, count: u32) {
    for index in 0..count {
        let shard = Shard { index, count };
        write(&folder.join(shard.file_name()), run, pictures, shard, |name| {
            Shard::of(name.as_bytes(), count) == index
        });
    }
}

fn merged(folder: &Path) -> Result<Vec<u8>, PartSetError> {
    let output = folder.join("merged");
    PartSet::open(folder)?.merge(&output)?;
    Ok(fs::read(output).unwrap())
}

fn some(count: u32) -> Pictures {
    (0..count).map(|n| (n % 2, format!("{n}.png"), (n % 5 > 0).then_some([n as u8; 4]))).collect()
}

fn pictures() -> impl Strategy<Value = Pictures> {
    prop::collection::btree_map(
        "[a-c]{1,2}(/[a-c]{1,2})?",
        (0u32..2, prop::option::of(any::<[u8; 4]>())),
        0..40,
    )
    .prop_map(|map| map.into_iter().map(|(name, (class, row))| (class, name, row)).collect())
}

proptest! {
    #[test]
    fn parts_are_the_whole(pictures in pictures(), count in 1u32..50) {
        let folder = tempfile::tempdir().unwrap();
        let run = run(&pictures);
        write_all(folder.path(), &run, &pictures, count);
        let whole = folder.path().join("whole");
        write(&whole, &run, &pictures, Shard::WHOLE, |_| true);
        prop_assert_eq!(merged(folder.path()).unwrap(), fs::read(&whole).unwrap());
        // Read as parts and as a whole, they are what was put in.
        for path in [folder.path(), &whole] {
            let (pool, features) = PartSet::open(path).unwrap().features(Path::new("data"), true).unwrap();
            let expected: Vec<Item> = pictures.iter().map(|(class, name, _)| Item { path: Path::new("data").join(name), class: *class as usize }).collect();
            prop_assert_eq!((&pool.classes, &pool.items, pool.train), (&run.data.classes, &expected, Some(1)));
            let readable: Vec<usize> = (0..pictures.len()).filter(|&item| pictures[item].2.is_some()).collect();
            prop_assert_eq!(&features.items, &readable);
            prop_assert_eq!(features.skipped.len(), pictures.len() - readable.len());
            for (row, &item) in readable.iter().enumerate() {
                let wanted = pictures[item].2.unwrap();
                prop_assert_eq!(&*features.row(row).unwrap(), &wanted);
                prop_assert_eq!(features.hashes[row], Fingerprint::of(&wanted));
            }
        }
    }

    #[test]
    fn no_changed_byte_goes_unseen(part in 0u32..4, at: prop::sample::Index, change in 1u8.., cut: bool) {
        let folder = tempfile::tempdir().unwrap();
        let pictures = some(24);
        write_all(folder.path(), &run(&pictures), &pictures, 4);
        let path = folder.path().join(Shard { index: part, count: 4 }.file_name());
        let mut bytes = fs::read(&path).unwrap();
        let at = at.index(bytes.len());
        if cut { bytes.truncate(at) } else { bytes[at] ^= change }
        fs::write(&path, bytes).unwrap();
        let error = merged(folder.path()).unwrap_err().to_string();
        // Named as damaged; if the manifest was hit, perhaps as one of another run, or of
        // another name.
        let name = format!("part-0000{part}-of");
        prop_assert!(error.contains(&format!("part {part} ")) || error.contains(&name) || (error.contains("parts do not belong") || error.contains(&format!("missing: {part}"))), "{}", error);
        prop_assert!(!folder.path().join("merged").exists());
        prop_assert!(PartSet::open(folder.path()).and_then(|set| set.features(Path::new(""), false)).is_err());
    }
}

#[test]
fn what_is_missing_or_damaged_is_named_all_at_once() {
    let folder = tempfile::tempdir().unwrap();
    let pictures = some(60);
    write_all(folder.path(), &run(&pictures), &pictures, 12);
    let file = |index| folder.path().join(Shard { index, count: 12 }.file_name());
    // The last byte is of the checksum of the rows.
    let hurt = |index| {
        let mut bytes = fs::read(file(index)).unwrap();
        *bytes.last_mut().unwrap() ^= 1;
        fs::write(file(index), bytes).unwrap();
    };
    [4, 9].into_iter().for_each(hurt);
    let error = merged(folder.path()).unwrap_err().to_string();
    assert!(
        error.contains("part 4 is damaged (its checksum does not match); part 9 is damaged"),
        "{error}"
    );
    assert!(error.contains("--array=4,9"), "{error}");
    let read = PartSet::open(folder.path())
        .unwrap()
        .features(Path::new(""), false)
        .err()
        .unwrap()
        .to_string();
    assert_eq!(read, error);
    for index in [0, 6, 7, 8] {
        fs::remove_file(file(index)).unwrap();
    }
    fs::write(file(3), b"VGGEROWS").unwrap();
    let error = merged(folder.path()).unwrap_err().to_string();
    assert!(
        error.contains("of 12 parts 4 missing: 0, 6-8; part 3 is damaged (it is cut)"),
        "{error}"
    );
    assert!(error.contains("--array=0,3,6-8"), "{error}");
    assert!(!folder.path().join("merged").exists());
}

#[test]
fn what_does_not_belong_together_is_named() {
    let folder = tempfile::tempdir().unwrap();
    assert!(matches!(PartSet::open(folder.path()), Err(PartSetError::Empty(_))));
    let pictures = some(30);
    let ours = run(&pictures);
    let file = |index| folder.path().join(Shard { index, count: 4 }.file_name());
    let other = |run: &Run, index: u32| {
        let shard = Shard { index, count: 4 };
        write(&file(index), run, &pictures, shard, |name| Shard::of(name.as_bytes(), 4) == index);
    };
    let fails = |change: &dyn Fn(&mut Run), words: &str| {
        write_all(folder.path(), &ours, &pictures, 4);
        let mut theirs = ours.clone();
        change(&mut theirs);
        [0, 2].into_iter().for_each(|index| other(&theirs, index));
        // With as many of each, the first run is held to be the right one.
        let error = merged(folder.path()).unwrap_err().to_string();
        assert!(
            error.contains(words)
                && error.contains("parts 1, 3 ")
                && error.contains("do not belong"),
            "{error}"
        );
        other(&ours, 2);
        let error = merged(folder.path()).unwrap_err().to_string();
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
    fails(&|run| run.data.list = Fingerprint::of(b"other"), "of 30 pictures (list ");

    write_all(folder.path(), &ours, &pictures, 4);
    write_all(folder.path(), &ours, &pictures, 2);
    let error = merged(folder.path()).unwrap_err().to_string();
    assert!(error.contains("parts of different runs: 2 of 2 (0, 1); 4 of 4 (0-3)"), "{error}");
    for index in 0..2 {
        fs::remove_file(folder.path().join(Shard { index, count: 2 }.file_name())).unwrap();
    }
    fs::copy(file(1), file(3)).unwrap();
    let error = merged(folder.path()).unwrap_err().to_string();
    assert!(
        error.contains(
            "part-00003-of-00004.features: its name is not that of what it is, part 1 of 4"
        ),
        "{error}"
    );
    let alone = PartSet::open(&file(1)).err().unwrap().to_string();
    assert!(alone.contains("part 1 of 4; name the folder"), "{alone}");
}

#[test]
fn pictures_that_are_in_no_part_or_in_two_are_told() {
    let folder = tempfile::tempdir().unwrap();
    let pictures = some(30);
    let run = run(&pictures);
    let part = |index, of: &dyn Fn(&str) -> bool| {
        let shard = Shard { index, count: 2 };
        write(&folder.path().join(shard.file_name()), &run, &pictures, shard, of);
    };
    let first = |name: &str| Shard::of(name.as_bytes(), 2) == 0;
    part(1, &|name| !first(name));
    let lost = pictures.iter().map(|(_, name, _)| name).find(|name| first(name)).unwrap();
    part(0, &|name| first(name) && name != lost);
    let error = merged(folder.path()).unwrap_err().to_string();
    assert!(error.contains("comes next"), "{error}");
    part(0, &|_| true);
    assert!(merged(folder.path()).unwrap_err().to_string().contains("belongs to another part"));
    part(0, &first);
    part(1, &|_| true);
    let error = merged(folder.path()).unwrap_err().to_string();
    assert!(error.contains("comes next") || error.contains("belongs to another part"), "{error}");
    part(1, &|name| !first(name));
    merged(folder.path()).unwrap();
}

/// The same bytes with lengths and checksums that hold, which lets damage through to what is
/// behind them; `None` without a manifest.
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
fn files_that_somebody_made() {
    let folder = tempfile::tempdir().unwrap();
    let path = folder.path().join("features");
    let good = [1, 7, 40].map(|count| {
        let pictures = some(count);
        write(&path, &run(&pictures), &pictures, Shard::WHOLE, |_| true);
        assert_eq!(sealed(&fs::read(&path).unwrap()), Some(fs::read(&path).unwrap()));
        (format!("{count} pictures").into(), fs::read(&path).unwrap())
    });
    let read = |bytes: &[u8]| {
        fs::write(&path, bytes).unwrap();
        let Ok((pool, features)) =
            PartSet::open(&path).and_then(|set| set.features(Path::new("data"), true))
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
    // Most reach what is behind the checksums, and some are as good as what `host extract`
    // could have made.
    assert!(seen.get() > 300 && taken.get() > 30, "{seen:?} {taken:?}");
}

#[test]
fn names_that_lead_out_of_the_data_folder_are_refused() {
    let folder = tempfile::tempdir().unwrap();
    let path = folder.path().join("features");
    for name in ["/etc/passwd", "../a.png", "a/../../b.png"] {
        let pictures = vec![(0, name.to_owned(), Some([1; 4]))];
        write(&path, &run(&pictures), &pictures, Shard::WHOLE, |_| true);
        let error = PartSet::open(&path)
            .unwrap()
            .features(Path::new("data"), true)
            .err()
            .unwrap()
            .to_string();
        assert!(error.contains("no path within the data folder"), "{error}");
    }
}
