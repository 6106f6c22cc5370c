//! The crate's floors: imports point down only, and what is dangerous stays in its place.

use std::fs;
use std::path::{Path, PathBuf};

/// Modules at the top of the crate, and the floor each is on.
const FLOORS: [(&str, u8); 14] = [
    ("domain", 0),
    ("config", 0),
    ("metrics", 0),
    ("sys", 1),
    ("store", 2),
    ("lifecycle", 3),
    ("acme", 4),
    ("api", 4),
    ("proxy", 4),
    ("egress", 4),
    ("exec", 4),
    ("daemon", 4),
    ("cli", 4),
    ("telemetry", 4),
];

/// Words, and the only places below `src/` that may have them.
const CONFINED: [(&str, &[&str]); 9] = [
    ("libcontainer::container", &["sys/runtime/helper"]),
    ("libcontainer::syscall", &["sys/runtime/helper"]),
    ("libcontainer::workload", &["sys/runtime/helper"]),
    ("axum::", &["api"]),
    ("hyper::", &["api", "proxy", "egress/dial"]),
    ("anyhow::", &["cli", "main.rs"]),
    // A script's worker is a client of the API like any other, by its socket.
    ("reqwest::", &["cli", "api", "exec/worker"]),
    ("rquickjs::", &["exec/worker"]),
    ("allow(unsafe_code)", &["sys"]),
];

fn sources(folder: &Path, found: &mut Vec<PathBuf>) {
    for entry in fs::read_dir(folder).unwrap() {
        let path = entry.unwrap().path();
        if path.is_dir() {
            sources(&path, found);
        } else if path.extension().is_some_and(|end| end == "rs") {
            found.push(path);
        }
    }
}

/// Every source file: its path below `src/` and its text.
fn crate_sources() -> Vec<(String, String)> {
    let root = Path::new(env!("CARGO_MANIFEST_DIR")).join("src");
    let mut found = Vec::new();
    sources(&root, &mut found);
    let read = |path: PathBuf| {
        let below = path.strip_prefix(&root).unwrap().display().to_string();
        (below, fs::read_to_string(&path).unwrap())
    };
    found.into_iter().map(read).collect()
}

fn floor_of(path: &str) -> Option<u8> {
    let module = path.split('/').next().unwrap().trim_end_matches(".rs");
    FLOORS.iter().find(|(name, _)| *name == module).map(|(_, floor)| *floor)
}

#[test]
fn imports_point_down_only() {
    let mut wrong = Vec::new();
    for (path, text) in crate_sources() {
        let Some(floor) = floor_of(&path) else { continue };
        for line in text.lines().filter(|line| !line.trim_start().starts_with("//")) {
            for (at, _) in line.match_indices("crate::") {
                let module: String =
                    line[at + "crate::".len()..].chars().take_while(|c| c.is_alphanumeric() || *c == '_').collect();
                if floor_of(&module).is_some_and(|other| other > floor) {
                    wrong.push(format!("{path}: {}", line.trim()));
                }
            }
        }
    }
    assert!(wrong.is_empty(), "{wrong:#?}");
}

#[test]
fn every_module_at_the_top_has_a_floor() {
    let lib = fs::read_to_string(Path::new(env!("CARGO_MANIFEST_DIR")).join("src/lib.rs")).unwrap();
    let modules = lib.lines().filter_map(|line| line.strip_prefix("pub mod ")?.strip_suffix(';'));
    for module in modules {
        assert!(floor_of(module).is_some(), "`{module}` has no floor");
    }
}

#[test]
fn what_is_confined_is_nowhere_else() {
    let mut wrong = Vec::new();
    for (path, text) in crate_sources() {
        for (word, places) in CONFINED {
            if !places.iter().any(|place| path.starts_with(place)) && text.contains(word) {
                wrong.push(format!("{path}: {word}"));
            }
        }
    }
    assert!(wrong.is_empty(), "{wrong:#?}");
}
