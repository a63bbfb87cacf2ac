use std::fs;

use super::*;

fn touch(root: &Path, files: &[&str]) {
    for file in files {
        let path = root.join(file);
        fs::create_dir_all(path.parent().unwrap()).unwrap();
        fs::write(path, b"").unwrap();
    }
}

#[test]
fn classes_are_sorted_and_nested_images_are_found() {
    let dir = tempfile::tempdir().unwrap();
    touch(
        dir.path(),
        &[
            "b/2.png",
            "b/1.JPG",
            "b/deep/3.bmp",
            "a/x.jpeg",
            "a/notes.txt",
            "a/.hidden.png",
            ".git/c.png",
            "top.png",
        ],
    );
    let splits = open(dir.path()).unwrap();
    assert_eq!(splits.train.classes, ["a", "b"]);
    let names: Vec<_> = splits
        .train
        .items
        .iter()
        .map(|i| i.path.strip_prefix(dir.path()).unwrap().to_str().unwrap())
        .collect();
    assert_eq!(names, ["a/x.jpeg", "b/1.JPG", "b/2.png", "b/deep/3.bmp"]);
    assert_eq!(splits.train.ignored, 1);
    assert!(splits.val.is_none());
}

/// Result of a walk, as a pool.
fn walked(path: &Path) -> Pool {
    let mut items = Vec::new();
    let Walked { classes, train, .. } = walk(path, &mut |item| items.push(item)).unwrap();
    Pool { classes, items, train }
}

#[test]
fn walk_visits_the_images_in_the_order_of_the_pool() {
    let dir = tempfile::tempdir().unwrap();
    touch(
        dir.path(),
        &[
            "b.c/1.png",
            "b/2.png",
            "b/d/3.png",
            "b/d.e/4.png",
            "b/d!/5.png",
            "B/6.png",
            "b/notes.txt",
        ],
    );
    std::os::unix::fs::symlink(dir.path().join("B"), dir.path().join("b/z")).unwrap();
    std::os::unix::fs::symlink("nowhere", dir.path().join("b/dangling.png")).unwrap();
    let same = || {
        let (pool, walked) = (open(dir.path()).unwrap().pool(), walked(dir.path()));
        assert_eq!(
            (&pool.classes, &pool.items, pool.train),
            (&walked.classes, &walked.items, walked.train)
        );
        pool
    };
    let pool = same();
    assert_eq!((pool.classes.len(), pool.items.len(), pool.train), (3, 8, None));
    touch(dir.path(), &["train/a/1.png", "train/b/1.png", "train/c/1.png"]);
    for ambiguous in [open(dir.path()).map(drop), walk(dir.path(), &mut |_| {}).map(drop)] {
        assert!(matches!(
            ambiguous.unwrap_err(),
            DataError::Ambiguous { name, class, .. } if name == "train" && class == "B"
        ));
    }
    for class in ["b", "b.c", "B"] {
        fs::remove_dir_all(dir.path().join(class)).unwrap();
    }
    // A directory without images is not a class.
    touch(dir.path(), &["notes/readme.txt", "notes/deep/1.png"]);
    assert_eq!((same().items.len(), same().train), (3, None));
    touch(dir.path(), &["test/c/1.png", "test/b/7.png"]);
    assert_eq!((same().items.len(), same().train), (5, Some(3)));
}

#[test]
fn validation_may_lack_a_class_but_not_add_one() {
    let dir = tempfile::tempdir().unwrap();
    touch(dir.path(), &["train/a/1.png", "train/b/1.png", "validation/b/1.png"]);
    let val = open(dir.path()).unwrap().val.unwrap().1;
    assert_eq!((val.classes.len(), val.items[0].class), (2, 1));
    touch(dir.path(), &["validation/c/1.png"]);
    assert!(matches!(open(dir.path()), Err(DataError::UnknownClass { .. })));
}

#[test]
fn directories_that_are_not_a_data_set_are_errors() {
    let dir = tempfile::tempdir().unwrap();
    assert!(matches!(open(dir.path()), Err(DataError::NoClasses(_))));
    assert!(matches!(open(&dir.path().join("none")), Err(DataError::Io { .. })));
    touch(dir.path(), &["a/1.png"]);
    assert!(matches!(open(dir.path()), Err(DataError::OneClass { .. })));
    touch(dir.path(), &["b/readme.md"]);
    assert!(matches!(open(dir.path()), Err(DataError::EmptyClass(_))));
}

#[test]
fn a_class_may_be_named_like_a_split() {
    let dir = tempfile::tempdir().unwrap();
    touch(dir.path(), &["valid/1.png", "invalid/1.png", "test/1.png"]);
    let classes = open(dir.path()).unwrap().train.classes;
    assert_eq!(classes, ["invalid", "test", "valid"]);
    let (directory, listed) = open_for_evaluation(dir.path(), None, &classes).unwrap();
    assert_eq!((directory.as_path(), listed.items.len()), (dir.path(), 3));
    let classes = ["a", "b"].map(str::to_owned);
    touch(dir.path(), &["val/a/1.png"]);
    assert!(open_for_evaluation(dir.path(), None, &classes).unwrap().0.ends_with("val"));
}
