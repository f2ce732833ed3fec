// What `--version` tells about the build: src/version.rs reads it from the environment and from OUT_DIR.
// Included by build.rs.
//
// Reproducible: everything comes from the sources, the toolchain, or a variable that a packager sets.
// Nothing comes from the clock or the machine.

use std::env;
use std::fmt::Write;
use std::fs;
use std::path::Path;
use std::process::Command;

const UNKNOWN: &str = "unknown";

/// Sets the variables that src/version.rs wants.
pub(crate) fn tell_version() {
    println!("cargo::rerun-if-changed=build/version.rs");
    println!("cargo::rerun-if-changed=Cargo.lock");
    for variable in ["PODINIT_COMMIT", "PODINIT_TAG", "SOURCE_DATE_EPOCH"] {
        println!("cargo::rerun-if-env-changed={variable}");
    }
    watch_commit();
    set("PODINIT_BUILD_COMMIT", &given("PODINIT_COMMIT").or_else(|| git(&["rev-parse", "HEAD"])));
    set(
        "PODINIT_BUILD_TAG",
        &given("PODINIT_TAG").or_else(|| git(&["tag", "--points-at", "HEAD"])).or_else(none),
    );
    let seconds = given("SOURCE_DATE_EPOCH").or_else(|| git(&["show", "-s", "--format=%ct", "HEAD"]));
    set("PODINIT_BUILD_DATE", &seconds.and_then(|seconds| seconds.parse().ok()).map(date));
    set("PODINIT_BUILD_TARGET", &given("TARGET"));
    set("PODINIT_BUILD_RUST", &tool("RUSTC"));
    set("PODINIT_BUILD_CARGO", &tool("CARGO"));
    let out = given("OUT_DIR").unwrap_or_else(|| panic!("OUT_DIR is not set: run this through Cargo"));
    let tree = Path::new(&out).join("cargo_tree");
    fs::write(&tree, packages()).unwrap_or_else(|error| panic!("cannot write {}: {error}", tree.display()));
}

fn none() -> Option<String> {
    Some("none".to_owned())
}

fn set(name: &str, value: &Option<String>) {
    println!("cargo::rustc-env={name}={}", value.as_deref().unwrap_or(UNKNOWN));
}

/// An environment variable that is not empty.
fn given(name: &str) -> Option<String> {
    env::var(name).ok().filter(|value| !value.trim().is_empty())
}

fn tool(variable: &str) -> Option<String> {
    first_line(Command::new(given(variable)?).arg("--version"))
}

/// Asks git, unless this is a source package without a repository of its own.
fn git(arguments: &[&str]) -> Option<String> {
    Path::new(".git").exists().then(|| first_line(Command::new("git").args(arguments))).flatten()
}

fn first_line(command: &mut Command) -> Option<String> {
    let output = command.output().ok().filter(|output| output.status.success())?;
    let text = String::from_utf8(output.stdout).ok()?;
    text.lines().next().map(str::to_owned).filter(|line| !line.is_empty())
}

/// A release tells its commit exactly. A development build does not compile
/// the crate anew for each commit: it may tell the commit of the last change.
fn watch_commit() {
    if given("PROFILE").as_deref() != Some("release") || given("PODINIT_COMMIT").is_some() {
        return;
    }
    let reference = git(&["symbolic-ref", "-q", "HEAD"]);
    for name in ["HEAD"].into_iter().chain(reference.as_deref()) {
        let path = git(&["rev-parse", "--git-path", name]).filter(|path| Path::new(path).exists());
        if let Some(path) = path {
            println!("cargo::rerun-if-changed={path}");
        }
    }
}

/// Unix time in seconds as RFC 3339, UTC.
fn date(seconds: u64) -> String {
    let (days, second) = (seconds / 86_400, seconds % 86_400);
    // Days to a date of the Gregorian calendar, with years that begin in March:
    // H. Hinnant, "chrono-Compatible Low-Level Date Algorithms".
    let days = days + 719_468;
    let (era, day) = (days / 146_097, days % 146_097);
    let year = (day - day / 1_460 + day / 36_524 - day / 146_096) / 365;
    let day = day - (365 * year + year / 4 - year / 100);
    let month = (5 * day + 2) / 153;
    let day = day - (153 * month + 2) / 5 + 1;
    let (month, next) = if month < 10 { (month + 3, 0) } else { (month - 9, 1) };
    let year = era * 400 + year + next;
    let (hour, minute, second) = (second / 3_600, second / 60 % 60, second % 60);
    format!("{year:04}-{month:02}-{day:02}T{hour:02}:{minute:02}:{second:02}Z")
}

/// Every package of Cargo.lock with its version, one a line.
fn packages() -> String {
    let lock = fs::read_to_string("Cargo.lock").unwrap_or_default();
    let mut text = String::new();
    let value = |line: &str, key: &str| -> Option<String> {
        Some(line.strip_prefix(key)?.strip_prefix(" = \"")?.strip_suffix('"')?.to_owned())
    };
    for package in lock.split("[[package]]").skip(1) {
        let name = package.lines().find_map(|line| value(line, "name"));
        let version = package.lines().find_map(|line| value(line, "version"));
        if let (Some(name), Some(version)) = (name, version) {
            writeln!(text, "{name} v{version}")
                .unwrap_or_else(|error| panic!("a String takes text: {error}"));
        }
    }
    text
}
