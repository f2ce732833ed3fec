// The program that is PID 1 of a pod (src/init/program), compiled here so that src/init/mod.rs can contain it.
// Included by build.rs.

use std::env;
use std::path::{Path, PathBuf};
use std::process::Command;

/// Where the program's sources and its system calls are.
const SOURCES: [&str; 3] = ["src/init/program", "src/sys/raw", "build"];

/// Compiles the program for the target of this build into `OUT_DIR/podinit-init`.
///
/// rustc is called directly: as a Cargo target it would be linked with the flags of the podinit binary (`crt-static`,
/// libseccomp, debug information), and it needs quite different ones. All that it uses is `core`.
pub(crate) fn build_init_program() {
    for source in SOURCES {
        println!("cargo::rerun-if-changed={source}");
    }
    let manifest = PathBuf::from(variable("CARGO_MANIFEST_DIR"));
    let program = Path::new(&variable("OUT_DIR")).join("podinit-init");

    let mut rustc = Command::new(variable("RUSTC"));
    rustc.args(["--edition=2024", "--crate-type=bin", "--crate-name=podinit_init", "-Dwarnings"]);
    rustc.args(["--target", &variable("TARGET")]);
    if let Ok(linker) = env::var("RUSTC_LINKER") {
        rustc.args(["-C", &format!("linker={linker}")]);
    }
    // Small, and with no way to panic: src/sys/raw/entry.rs tells how the linker proves that. The two checks that
    // a debug build would add are ways to panic.
    for option in [
        "panic=abort",
        "opt-level=s",
        "codegen-units=1",
        "debug-assertions=no",
        "overflow-checks=no",
        "strip=symbols",
    ] {
        rustc.args(["-C", option]);
    }
    // One segment at a fixed address: position independence would need relocation, and so writable pages.
    rustc.args(["-C", "relocation-model=static", "-C", "force-unwind-tables=no"]);
    let layout = manifest.join("build/layout.ld");
    for argument in
        ["-nostartfiles", "-nostdlib", "-static", "-no-pie", "-Wl,--build-id=none,-z,max-page-size=4096"]
    {
        rustc.args(["-C", &format!("link-arg={argument}")]);
    }
    rustc.args(["-C", &format!("link-arg=-Wl,-T,{}", layout.display())]);
    rustc.arg("-o").arg(&program).arg(manifest.join("src/init/program/main.rs"));

    let status =
        rustc.status().unwrap_or_else(|error| panic!("cannot start rustc for the init program: {error}"));
    assert!(status.success(), "the init program does not compile: see above");
}

fn variable(name: &str) -> String {
    env::var(name)
        .unwrap_or_else(|error| panic!("{name}, which Cargo sets for build scripts, cannot be read: {error}"))
}
