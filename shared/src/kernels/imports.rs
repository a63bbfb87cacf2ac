//! A check of the sources: no module of `kernels` uses a module that uses it.

use std::collections::{BTreeMap, BTreeSet};
use std::path::{Path, PathBuf};

/// Files that are part of the tests, which may use anything.
const TESTS: [&str; 2] = ["tests.rs", "imports.rs"];

/// Source files below `dir`.
fn sources(dir: &Path) -> Vec<PathBuf> {
    let entries = std::fs::read_dir(dir).unwrap().map(|entry| entry.unwrap().path());
    let (dirs, files): (Vec<_>, Vec<_>) = entries.partition(|path| path.is_dir());
    let nested = dirs.iter().flat_map(|dir| sources(dir));
    nested.chain(files).filter(|path| path.extension().is_some_and(|e| e == "rs")).collect()
}

/// The name of the module in a file: `algo::direct` for `algo/direct.rs`, `arch` for `arch/mod.rs`.
fn module_name(root: &Path, file: &Path) -> String {
    let path = file.strip_prefix(root).unwrap().with_extension("");
    let parts: Vec<_> = path.iter().map(|part| part.to_str().unwrap()).collect();
    parts.strip_suffix(&["mod"]).unwrap_or(&parts).join("::")
}

/// The paths that `text`, which follows `crate::kernels`, names: groups in braces are expanded.
fn expand(prefix: &str, text: &str) -> Vec<String> {
    let Some(rest) = text.strip_prefix("::") else { return vec![prefix.to_owned()] };
    if let Some(group) = rest.strip_prefix('{') {
        let (mut depth, mut items, mut start) = (0, Vec::new(), 0);
        for (at, c) in group.char_indices() {
            match c {
                '{' => depth += 1,
                ',' | '}' if depth == 0 => {
                    let item = group[start..at].trim();
                    items.extend(expand(prefix, &format!("::{item}")));
                    start = at + 1;
                    if c == '}' {
                        break;
                    }
                }
                '}' => depth -= 1,
                _ => (),
            }
        }
        return items;
    }
    let len = rest.find(|c: char| !c.is_alphanumeric() && c != '_').unwrap_or(rest.len());
    let prefix =
        if prefix.is_empty() { rest[..len].into() } else { format!("{prefix}::{}", &rest[..len]) };
    expand(&prefix, &rest[len..])
}

/// The modules that a file names, apart from its own submodules and its unit tests.
fn uses(text: &str, own: &str, modules: &BTreeSet<String>) -> BTreeSet<String> {
    let code = text.split("#[cfg(test)]\nmod tests {").next().unwrap();
    let code: String = code.lines().filter(|line| !line.trim_start().starts_with("//")).collect();
    let paths = code.split("crate::kernels").skip(1).flat_map(|rest| expand("", rest));
    let module_of = |mut path: &str| {
        while !modules.contains(path) {
            path = path.rsplit_once("::").map_or("", |(parent, _)| parent);
            if path.is_empty() {
                break;
            }
        }
        path.to_owned()
    };
    // `pub(in crate::kernels)` is not a use.
    let paths = paths.filter(|path| !path.is_empty());
    paths.map(|path| module_of(&path)).filter(|used| used != own).collect()
}

/// A cycle of the graph, if it has one.
fn cycle(graph: &BTreeMap<String, BTreeSet<String>>) -> Option<Vec<String>> {
    fn walk(
        graph: &BTreeMap<String, BTreeSet<String>>,
        path: &mut Vec<String>,
        done: &mut BTreeSet<String>,
    ) -> bool {
        let last = path.last().unwrap().clone();
        for next in graph.get(&last).into_iter().flatten() {
            let closes = path.contains(next);
            if closes || !done.contains(next) {
                path.push(next.clone());
                if closes || walk(graph, path, done) {
                    return true;
                }
                path.pop();
            }
        }
        done.insert(last);
        false
    }
    let mut done = BTreeSet::new();
    graph.keys().find_map(|module| {
        let mut path = vec![module.clone()];
        walk(graph, &mut path, &mut done).then_some(path)
    })
}

#[test]
fn imports_of_kernel_modules_have_no_cycle() {
    let root = Path::new(env!("CARGO_MANIFEST_DIR")).join("src/kernels");
    let files = sources(&root);
    let files = files.iter().filter(|file| !TESTS.iter().any(|name| file.ends_with(name)));
    let texts: BTreeMap<String, String> = files
        .map(|file| (module_name(&root, file), std::fs::read_to_string(file).unwrap()))
        .collect();
    let modules: BTreeSet<String> = texts.keys().cloned().collect();
    assert!(modules.contains("isa") && modules.contains("arch::x86_64::avx2"), "{modules:?}");
    let graph: BTreeMap<String, BTreeSet<String>> =
        texts.iter().map(|(name, text)| (name.clone(), uses(text, name, &modules))).collect();
    for (module, used) in &graph {
        println!("{module} -> {}", used.iter().map(String::as_str).collect::<Vec<_>>().join(", "));
        let text = &texts[module];
        let code = text.split("#[cfg(test)]").next().unwrap();
        assert!(!code.contains("use super::"), "{module}: imports name crate::kernels");
        // The root names its modules to export items; a module that names the root closes a cycle.
        assert!(!used.contains("") || module.is_empty(), "{module} uses the root of kernels");
    }
    assert_eq!(cycle(&graph), None);
    assert!(graph["layout"].is_empty());
    let knows =
        |module: &str, prefix: &str| graph[module].iter().any(|used| used.starts_with(prefix));
    assert!(!knows("isa", "arch") && !knows("isa", "algo"));
    for (module, used) in &graph {
        let implementer = used.iter().any(|used| used.starts_with("arch"));
        assert!(!implementer || module == "dispatch" || module.starts_with("arch"), "{module}");
    }
}

#[test]
fn cycles_and_groups_of_imports_are_found() {
    let names = ["a", "b", "b::c"].map(String::from);
    let modules = BTreeSet::from(names);
    let used = uses("use crate::kernels::{a::{X, Y}, b::c::Z};", "d", &modules);
    assert_eq!(used, BTreeSet::from(["a", "b::c"].map(String::from)));
    let graph = |edges: &[(&str, &str)]| {
        let mut graph = BTreeMap::<String, BTreeSet<String>>::new();
        for (from, to) in edges {
            graph.entry((*from).into()).or_default().insert((*to).into());
        }
        graph
    };
    assert_eq!(cycle(&graph(&[("a", "b"), ("b", "c"), ("a", "c")])), None);
    assert!(cycle(&graph(&[("a", "b"), ("b", "c"), ("c", "b")])).is_some());
}
