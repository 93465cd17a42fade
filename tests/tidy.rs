//! The project's style, as tests: what a reader of any file may rely on.

use std::collections::{BTreeMap, BTreeSet};
use std::fs;
use std::path::{Path, PathBuf};

/// No source file is longer.
const LINES_MAX: usize = 900;

/// Where `unsafe` may stand. Each of these is small, and exists to be the safe face of something that isn't.
const UNSAFE_FILES: &[&str] = &[
    "benches/src/cpu_clock.rs",
    "benches/src/native.rs",
    "src/ray/wire/plasma/types.rs",
    "src/core_io.rs",
    "src/workers/process.rs",
    "transport/src/client/reactor.rs",
    "transport/src/client/segments.rs",
    "transport/src/ring/memory.rs",
    "transport/src/uring/buffers.rs",
    "transport/src/uring/files.rs",
    "src/spill/memory.rs",
    "transport/src/uring/mod.rs",
    "tuning/src/privatefs.rs",
    "tuning/src/sys.rs",
];

/// The libraries that the design rests on: each is a dependency and in use.
const DESIGN_CRATES: &[&str] = &[
    "glommio",
    "io-uring",
    "hwloc2",
    "tonic",
    "hyper",
    "tokio",
    "flume",
    "libc",
    "clap",
    "hdrhistogram",
    "rkyv",
    "memmap2",
];

/// Directories that are made, not written.
const MADE: &[&str] =
    &["target", ".git", ".venv", "corpus", "artifacts", "bench-results", "__pycache__", "shared", "node_modules"];

/// Endings of the files whose text is looked at.
const TEXTS: &[&str] = &["rs", "py", "toml", "md", "sh", "yml", "yaml", "ini", "service", "conf", "txt"];

struct File {
    /// Relative to the repository.
    name: String,
    text: String,
}

fn root() -> PathBuf {
    PathBuf::from(env!("CARGO_MANIFEST_DIR"))
}

fn files() -> Vec<File> {
    let mut found = Vec::new();
    let mut directories = vec![root()];
    while let Some(directory) = directories.pop() {
        for entry in fs::read_dir(directory).unwrap() {
            let entry = entry.unwrap();
            let (path, name) = (entry.path(), entry.file_name().into_string().unwrap());
            if entry.file_type().unwrap().is_dir() {
                if !MADE.contains(&name.as_str()) {
                    directories.push(path);
                }
            } else if TEXTS.iter().any(|t| name.ends_with(&format!(".{t}"))) || name == "Makefile" {
                let name = path.strip_prefix(root()).unwrap().display().to_string();
                found.push(File { name, text: fs::read_to_string(&path).unwrap() });
            }
        }
    }
    found.sort_by(|a, b| a.name.cmp(&b.name));
    assert!(found.len() > 50, "only {} files found in {}", found.len(), root().display());
    found
}

fn sources() -> Vec<File> {
    files().into_iter().filter(|f| f.name.ends_with(".rs")).collect()
}

/// Fails with all complaints at once.
fn expect_none(complaints: Vec<String>) {
    assert!(complaints.is_empty(), "{}:\n{}", complaints.len(), complaints.join("\n"));
}

/// A line without its strings and comments, roughly: enough to tell code from talk about code.
fn code(line: &str) -> String {
    let mut code = String::new();
    let mut rest = line.chars().peekable();
    let mut in_string = false;
    while let Some(c) = rest.next() {
        match c {
            '\\' if in_string => drop(rest.next()),
            '"' => in_string = !in_string,
            '/' if !in_string && rest.peek() == Some(&'/') => break,
            _ if !in_string => code.push(c),
            _ => {}
        }
    }
    code
}

fn has_word(text: &str, word: &str) -> bool {
    let is_part = |c: char| c.is_alphanumeric() || c == '_';
    text.match_indices(word)
        .any(|(at, _)| !text[..at].ends_with(is_part) && !text[at + word.len()..].starts_with(is_part))
}

/// The numbered lines of all sources that `is_bad` picks.
fn bad_lines(files: &[File], is_bad: impl Fn(&str) -> bool) -> Vec<String> {
    let lines = files.iter().flat_map(|f| f.text.lines().enumerate().map(move |(n, line)| (f, n, line)));
    lines
        .filter(|(_, _, line)| is_bad(line))
        .map(|(f, n, line)| format!("{}:{}: {}", f.name, n + 1, line.trim()))
        .collect()
}

#[test]
fn no_source_file_is_too_long() {
    let long = sources().into_iter().map(|f| (f.text.lines().count(), f.name)).filter(|(lines, _)| *lines > LINES_MAX);
    expect_none(
        long.map(|(lines, name)| format!("{name} has {lines} lines; {LINES_MAX} are allowed: split it")).collect(),
    );
}

#[test]
fn nothing_is_left_undone() {
    // Put together here, so that this file has none of them.
    let words = [concat!("TO", "DO"), concat!("FIX", "ME"), concat!("X", "XX")];
    let calls = [
        concat!("to", "do!("),
        concat!("unimple", "mented!("),
        concat!("#[ig", "nore"),
        concat!("allow(dead", "_code"),
        concat!("pytest.mark.", "skip"),
        concat!("pytest.mark.", "xfail"),
    ];
    expect_none(bad_lines(&files(), |line| {
        words.iter().any(|w| has_word(line, w)) || calls.iter().any(|c| line.contains(c))
    }));
}

#[test]
fn unsafe_code_is_rare_and_explained() {
    let word = concat!("un", "safe");
    let mut complaints = Vec::new();
    for file in sources() {
        let lines: Vec<&str> = file.text.lines().collect();
        for (n, line) in lines.iter().enumerate() {
            let code = code(line).replace("unsafe_op_in_unsafe_fn", "");
            if !has_word(&code, word) {
                continue;
            }
            let is_test =
                file.name.contains("/tests/") || file.name.starts_with("tests/") || file.name.contains("/examples/");
            if !is_test && !UNSAFE_FILES.contains(&file.name.as_str()) {
                complaints.push(format!("{}:{}: {word} outside of the files that may have it", file.name, n + 1));
            }
            // A function's own duty is to its caller; the blocks in it answer for what they do.
            let is_function = code.contains(&format!("{word} fn")) && !code.contains("pub ");
            if !is_function && !is_explained(&lines, n) {
                complaints.push(format!("{}:{}: no SAFETY comment above: {}", file.name, n + 1, line.trim()));
            }
        }
    }
    for name in UNSAFE_FILES {
        assert!(root().join(name).exists(), "{name} is gone; take it off the list");
    }
    expect_none(complaints);
}

/// Whether the comment above a line says why it is sound: `SAFETY:` for a block, a `# Safety` section for a function. The
/// comment may stand above the statement that the line belongs to.
fn is_explained(lines: &[&str], at: usize) -> bool {
    const STATEMENT_LINES_MAX: usize = 6;
    let says = |line: &str| line.contains("SAFETY:") || line.contains("# Safety");
    let mut above = lines[..at].iter().rev().map(|l| l.trim());
    if says(lines[at]) {
        return true;
    }
    let mut code_lines = 0;
    above.by_ref().take_while(|line| !line.is_empty()).any(|line| {
        let is_comment = line.starts_with("//") || line.starts_with("#[");
        let ends_statement = !is_comment && (line.ends_with(';') || line.ends_with('}'));
        code_lines += if ends_statement { STATEMENT_LINES_MAX } else { usize::from(!is_comment) };
        code_lines < STATEMENT_LINES_MAX && is_comment && says(line)
    })
}

#[test]
fn no_path_of_anybodys_machine() {
    let paths = ["root", "work", "home"].map(|d| format!("/{d}/"));
    let starts = |line: &str, path: &str| {
        line.match_indices(path)
            .any(|(at, _)| !line[..at].ends_with(|c: char| c.is_alphanumeric() || "._-/}".contains(c)))
    };
    expect_none(bad_lines(&files(), |line| paths.iter().any(|p| starts(line, p))));
}

#[test]
fn all_text_is_ours() {
    let marks = [concat!("Copy", "right "), concat!("SPDX-License", "-Identifier"), concat!("Licensed ", "under")];
    let files: Vec<File> = files().into_iter().filter(|f| !f.name.starts_with("LICENSE")).collect();
    expect_none(bad_lines(&files, |line| marks.iter().any(|m| line.contains(m))));
}

#[test]
fn every_source_file_says_what_it_is() {
    // Tests that lie beside their module, and crate roots of examples and fuzz targets, speak for themselves or must too.
    let is_beside = |name: &str| name.ends_with("tests.rs");
    let silent = sources()
        .into_iter()
        .filter(|f| !is_beside(&f.name) && !f.text.starts_with("//!") && !f.text.starts_with("#!["));
    expect_none(silent.map(|f| format!("{}: begins without `//!`", f.name)).collect());
}

/// The dependencies of a package by the name under which its code knows them, and all its code.
fn packages() -> BTreeMap<String, (BTreeSet<String>, String)> {
    let manifests = files().into_iter().filter(|f| f.name.ends_with("Cargo.toml"));
    let sources = sources();
    let packages: Vec<(String, toml::Table)> =
        manifests.map(|f| (f.name.trim_end_matches("Cargo.toml").to_owned(), f.text.parse().unwrap())).collect();
    let is_inside = |file: &File, package: &str| {
        let owner = packages.iter().map(|p| p.0.as_str()).filter(|p| file.name.starts_with(p)).max_by_key(|p| p.len());
        owner == Some(package)
    };
    let of = |(directory, manifest): &(String, toml::Table)| {
        let kinds = ["dependencies", "dev-dependencies", "build-dependencies"];
        let tables = kinds.iter().filter_map(|kind| manifest.get(*kind)?.as_table());
        let names = tables.flat_map(|t| t.keys().cloned()).collect();
        let code = sources.iter().filter(|f| is_inside(f, directory)).map(|f| f.text.as_str()).collect();
        (directory.clone(), (names, code))
    };
    packages.iter().map(of).collect()
}

fn is_used(code: &str, name: &str) -> bool {
    let name = name.replace('-', "_");
    has_word(code, &name)
        && [format!("{name}::"), format!("use {name}"), format!("{name}!")].iter().any(|u| code.contains(u))
}

#[test]
fn dependencies_are_used() {
    // The fuzz targets take modules of the library in by their path, and need what those use.
    let built = packages().into_iter().filter(|(directory, _)| directory != "fuzz/");
    let unused = built.flat_map(|(directory, (names, code))| {
        let unused: Vec<String> = names.into_iter().filter(|n| !is_used(&code, n)).collect();
        unused.into_iter().map(move |n| format!("{directory}Cargo.toml: {n} is not used"))
    });
    expect_none(unused.collect());
}

#[test]
fn the_design_stands_on_its_libraries() {
    let packages = packages();
    let has = |name: &str| packages.values().any(|(names, code)| names.contains(name) && is_used(code, name));
    let missing = DESIGN_CRATES.iter().filter(|name| !has(name));
    expect_none(missing.map(|name| format!("{name} is no dependency that is used")).collect());
}

#[test]
fn dependencies_between_our_crates_point_one_way() {
    let packages = packages();
    let may_use = [("shard/", vec![]), ("transport/", vec![]), ("tuning/", vec![])];
    for (directory, allowed) in may_use {
        let ours: Vec<&String> = packages[directory].0.iter().filter(|n| n.starts_with("raylet-")).collect();
        assert_eq!(ours, allowed as Vec<&String>, "{directory}Cargo.toml");
    }
    // What decides has no I/O, no clock, no threads and no async (DESIGN, rule 1).
    let forbidden =
        ["std::fs", "std::net", "std::thread", "std::process", "Instant::now", "SystemTime::now", "async fn", ".await"];
    let shard: Vec<File> = sources().into_iter().filter(|f| f.name.starts_with("shard/src/")).collect();
    let is_forbidden = |line: &str| forbidden.iter().any(|f| code(line).contains(f));
    let outside_binaries: Vec<File> = shard.into_iter().filter(|f| !f.name.contains("/bin/")).collect();
    expect_none(bad_lines(&outside_binaries, is_forbidden));
}

/// The words that follow `make` where a page shows a command.
fn make_targets_in(page: &str) -> BTreeSet<String> {
    let is_target = |word: &str| word.starts_with(|c: char| c.is_ascii_lowercase());
    let mut targets = BTreeSet::new();
    let mut in_block = false;
    for line in page.lines() {
        if line.trim_start().starts_with("```") {
            in_block = !in_block;
            continue;
        }
        let pieces: Vec<&str> = match in_block {
            true => vec![line.trim()],
            false => line.split('`').skip(1).step_by(2).collect(),
        };
        for piece in pieces {
            let mut words = piece.split_whitespace();
            if words.next() == Some("make") {
                targets.extend(words.take_while(|w| is_target(w)).map(str::to_owned));
            }
        }
    }
    targets
}

#[test]
fn the_readme_names_only_targets_that_exist() {
    let read = |name: &str| fs::read_to_string(root().join(name)).unwrap_or_else(|e| panic!("{name}: {e}"));
    let (readme, makefile) = (read("README.md"), read("Makefile"));
    let rules: BTreeSet<&str> = makefile
        .lines()
        .filter(|l| !l.starts_with(['\t', '#', ' ']))
        .filter_map(|l| Some(l.split_once(':')?.0))
        .flat_map(str::split_whitespace)
        .collect();
    let named = make_targets_in(&readme);
    assert!(named.contains("run") && named.contains("test"), "the README shows how to run and test: {named:?}");
    expect_none(
        named.iter().filter(|t| !rules.contains(t.as_str())).map(|t| format!("make {t}: no such target")).collect(),
    );
}

#[test]
fn this_file_sees_what_it_looks_for() {
    assert_eq!(code(r#"let a = "word // \" x"; // word"#), "let a = ; ");
    assert!(has_word("a.word {", "word") && !has_word("word_op un_word", "word"));
    let explained = ["// SAFETY: it is", "let x = f(", "    g()"];
    assert!(is_explained(&explained, 2));
    let far = ["// SAFETY: of another", "let y = 1;", "g()"];
    assert!(!is_explained(&far, 2));
    let page = "Say `make run` or\n```\nmake test FAST=1\n```\nand make haste; `make bench-ray`.";
    assert_eq!(make_targets_in(page).into_iter().collect::<Vec<_>>(), ["bench-ray", "run", "test"]);
    assert!(is_used("use io_uring::IoUring;", "io-uring") && !is_used("my_io_uring::x", "io-uring"));
    assert!(Path::new(&root().join("Cargo.toml")).exists());
}
