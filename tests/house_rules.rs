//! The rules of this repository that a machine can check. ARCHITECTURE.md says
//! why they are rules; this file says where they are broken.

use std::fs;
use std::path::{Path, PathBuf};

fn root() -> &'static Path {
    Path::new(env!("CARGO_MANIFEST_DIR"))
}

/// Every file below `directory` (from the root of the repository) with one of the extensions.
fn files(directory: &str, extensions: &[&str]) -> Vec<PathBuf> {
    let mut found = Vec::new();
    let mut left = vec![root().join(directory)];
    while let Some(directory) = left.pop() {
        for entry in fs::read_dir(&directory).into_iter().flatten().flatten() {
            let path = entry.path();
            let hidden = path.file_name().is_some_and(|name| name.as_encoded_bytes().starts_with(b"."));
            let built = path == root().join("target") || path.ends_with("fuzz/target");
            if path.is_dir() && !hidden && !built {
                left.push(path);
            } else if path.extension().is_some_and(|e| extensions.iter().any(|known| e == *known)) {
                found.push(path);
            }
        }
    }
    found.sort();
    found
}

fn is_generated(path: &Path) -> bool {
    path.starts_with(root().join("src/rpc/schema"))
}

/// The code of a line of Rust: without its comment. Good enough for words that no string of ours holds.
fn code(line: &str) -> &str {
    line.split("//").next().unwrap_or(line)
}

fn has_word(text: &str, word: &str) -> bool {
    let part_of_word = |c: char| c.is_alphanumeric() || c == '_';
    text.match_indices(word).any(|(at, _)| {
        !text[..at].chars().next_back().is_some_and(part_of_word)
            && !text[at + word.len()..].chars().next().is_some_and(part_of_word)
    })
}

/// Asserts that no line of `paths` is refused, and names each one that is.
fn assert_no_line(rule: &str, paths: &[PathBuf], is_refused: impl Fn(&str) -> bool) {
    let mut broken = Vec::new();
    for path in paths {
        let Ok(text) = fs::read_to_string(path) else { continue };
        for (index, line) in text.lines().enumerate().filter(|(_, line)| is_refused(line)) {
            let name = path.strip_prefix(root()).unwrap_or(path).display();
            broken.push(format!("{name}:{}: {}", index + 1, line.trim()));
        }
    }
    assert!(broken.is_empty(), "{rule}:\n  {}", broken.join("\n  "));
}

#[test]
fn unsafe_is_only_in_sys() {
    let sys = root().join("src/sys");
    // The init programs are crates of their own; their roots allow it for the files of src/sys that they
    // take in by path.
    let roots = ["pod.rs", "command.rs"].map(|name| root().join("src/init/program").join(name));
    let others: Vec<_> = files("src", &["rs"]).into_iter().filter(|path| !path.starts_with(&sys)).collect();
    let (roots, others): (Vec<_>, Vec<_>) = others.into_iter().partition(|path| roots.contains(path));
    assert_no_line("`unsafe` belongs into src/sys", &roots, |line| has_word(code(line), "unsafe"));
    assert_no_line("`unsafe` belongs into src/sys", &others, |line| {
        has_word(code(line), "unsafe") || code(line).contains("allow(unsafe_code)")
    });
}

#[test]
fn module_roots_forbid_unsafe() {
    let crate_roots = [root().join("src/lib.rs"), root().join("src/main.rs")];
    for path in files("src", &["rs"]) {
        let is_root = path.file_name().is_some_and(|name| name == "mod.rs")
            || path.parent() == Some(&root().join("src"));
        let may_be_unsafe = path.starts_with(root().join("src/sys"));
        if is_root && !may_be_unsafe && !crate_roots.contains(&path) && !is_generated(&path) {
            let text = fs::read_to_string(&path).unwrap();
            let has_code = text.lines().any(|line| !code(line).trim().is_empty());
            let forbids = text.contains("#![forbid(unsafe_code)]");
            assert!(forbids || !has_code, "{} does not forbid unsafe", path.display());
        }
    }
}

#[test]
fn the_data_path_and_the_keeper_have_no_async_runtime() {
    let mut paths = Vec::new();
    for part in ["sys", "keeper", "init", "ns", "monitor/relay", "monitor/log"] {
        paths.extend(files(&format!("src/{part}"), &["rs"]));
    }
    assert_no_line("no async runtime here", &paths, |line| {
        ["tokio", "async", "await"].iter().any(|word| has_word(code(line), word))
    });
}

#[test]
fn only_rpc_and_cli_name_the_wire() {
    let mut paths = Vec::new();
    for part in ["sys", "keeper", "init", "ns", "hook", "seccomp", "monitor"] {
        paths.extend(files(&format!("src/{part}"), &["rs"]));
    }
    assert_no_line("Cap'n Proto belongs into src/rpc", &paths, |line| {
        ["capnp", "capnp_rpc", "conmon_capnp", "plugin_capnp", "podinit_capnp"]
            .iter()
            .any(|word| has_word(code(line), word))
    });
}

#[test]
fn lower_modules_do_not_use_upper_ones() {
    let allowed: [(&str, &[&str]); 3] =
        [("sys", &["sys"]), ("keeper", &["keeper", "sys", "limits"]), ("init", &["init", "sys", "limits"])];
    for (part, uses) in allowed {
        let mut paths = files(&format!("src/{part}"), &["rs"]);
        // The init programs are crates of their own: `crate::` is something else there.
        let programs = ["src/sys/raw", "src/init/program"].map(|directory| root().join(directory));
        paths.retain(|path| !programs.iter().any(|program| path.starts_with(program)));
        assert_no_line(&format!("src/{part} may use {uses:?} only"), &paths, |line| {
            code(line).match_indices("crate::").any(|(at, prefix)| {
                let rest = &code(line)[at + prefix.len()..];
                let module = rest.split(|c: char| !c.is_alphanumeric() && c != '_').next().unwrap_or("");
                !module.is_empty() && !uses.contains(&module)
            })
        });
    }
}

#[test]
fn nothing_is_left_for_later() {
    // Spelled in two halves, so that this file is not found.
    let markers = [concat!("TO", "DO"), concat!("FIX", "ME"), concat!("XX", "X:")];
    let paths = [files("src", &["rs"]), files("tests", &["rs", "go"]), files("scripts", &["sh"])].concat();
    assert_no_line("finish it or say so in an issue", &paths, |line| {
        markers.iter().any(|marker| has_word(line, marker))
    });
}

#[test]
fn no_path_of_somebodys_machine() {
    let machines =
        [concat!("/wo", "rk/"), concat!("/ho", "me/"), concat!("/Use", "rs/"), concat!("/ro", "ot/")];
    let known = ["rs", "go", "sh", "md", "toml", "capnp", "yml", "yaml", "json"];
    let paths: Vec<_> = files("", &known).into_iter().filter(|path| !is_generated(path)).collect();
    assert_no_line("a path that exists on one machine only", &paths, |line| {
        machines.iter().any(|machine| line.contains(machine))
    });
}

#[test]
fn no_trailing_space_and_no_tab_in_rust() {
    let paths: Vec<_> =
        files("", &["rs", "sh", "toml", "capnp"]).into_iter().filter(|path| !is_generated(path)).collect();
    assert_no_line("trailing space", &paths, |line| line.ends_with([' ', '\t']));
    let rust: Vec<_> = paths.into_iter().filter(|path| path.extension().is_some_and(|e| e == "rs")).collect();
    assert_no_line("a tab; rustfmt indents with spaces", &rust, |line| line.starts_with('\t'));
}

#[test]
fn every_page_that_is_pointed_to_exists() {
    for page in ["README.md", "ARCHITECTURE.md", "CHANGELOG.md", "SECURITY.md", "LICENSE", "NOTICE"] {
        assert!(root().join(page).is_file(), "{page} is missing");
    }
    for page in files("", &["md"]) {
        let text = fs::read_to_string(&page).unwrap();
        for link in text.split("](").skip(1).filter_map(|rest| rest.split(')').next()) {
            let target = link.split('#').next().unwrap_or(link);
            let elsewhere = target.is_empty() || target.contains("://");
            let directory = page.parent().unwrap();
            assert!(elsewhere || directory.join(target).exists(), "{}: no file {target}", page.display());
        }
    }
}
