// The programs that are PID 1 of a pod and of a container (src/init/program), compiled here so that src/init/mod.rs
// can contain them. A module of build.rs.

use std::path::{Path, PathBuf};
use std::process::Command;
use std::{env, fs};

/// Where the program's sources and its system calls are.
const SOURCES: [&str; 3] = ["src/init/program", "src/sys/raw", "build"];

/// Compiles the programs for the target of this build into `OUT_DIR/podinit-init-pod` and `-command`.
pub(crate) fn build_init_programs() {
    for source in SOURCES {
        println!("cargo::rerun-if-changed={source}");
    }
    for name in ["pod", "command"] {
        let program = Path::new(&variable("OUT_DIR")).join(format!("podinit-init-{name}"));
        compile(&format!("src/init/program/{name}.rs"), &program);
        if let Err(error) = cut_off_section_headers(&program) {
            panic!("{}: cannot cut off the section headers: {error}", program.display());
        }
    }
}

/// rustc is called directly: as Cargo targets the programs would be linked with the flags of the podinit binary
/// (`crt-static`, libseccomp, debug information), and they need quite different ones. All that they use is `core`.
fn compile(source: &str, program: &Path) {
    let manifest = PathBuf::from(variable("CARGO_MANIFEST_DIR"));
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
    // One segment, without an address in it: relocation would need writable pages. `relro-level` is here for what
    // it implies: without it the compiler calls memcpy and its kin by addresses in a table.
    for option in
        ["relocation-model=pie", "target-feature=+crt-static", "relro-level=off", "force-unwind-tables=no"]
    {
        rustc.args(["-C", option]);
    }
    let layout = manifest.join("build/layout.ld");
    for argument in [
        "-nostartfiles",
        "-nostdlib",
        "-static-pie",
        "-Wl,--build-id=none,--no-dynamic-linker,--hash-style=sysv,-z,text,-z,norelro,-z,max-page-size=4096",
    ] {
        rustc.args(["-C", &format!("link-arg={argument}")]);
    }
    rustc.args(["-C", &format!("link-arg=-Wl,-T,{}", layout.display())]);
    rustc.arg("-o").arg(program).arg(manifest.join(source));

    let status = rustc.status().unwrap_or_else(|error| panic!("cannot start rustc for {source}: {error}"));
    assert!(status.success(), "{source} does not compile: see above");
}

/// Ends the file where its one segment ends. The kernel reads no section headers, and a memory file pays for them.
fn cut_off_section_headers(program: &Path) -> std::io::Result<()> {
    let mut file = fs::read(program)?;
    let word = |at: usize| {
        let bytes =
            file.get(at..at + 8).and_then(|bytes| bytes.try_into().ok()).map_or(0, u64::from_le_bytes);
        usize::try_from(bytes).unwrap_or(0)
    };
    // Elf64_Ehdr.e_phoff, and p_filesz of the first Elf64_Phdr, whose p_offset is 0 (layout.ld).
    let length = word(word(32) + 32);
    assert!(length > 64 && length <= file.len(), "the segment does not lie in the file");
    file.truncate(length);
    file[40..48].fill(0); // e_shoff
    file[60..64].fill(0); // e_shnum, e_shstrndx
    fs::write(program, file)
}

fn variable(name: &str) -> String {
    env::var(name)
        .unwrap_or_else(|error| panic!("{name}, which Cargo sets for build scripts, cannot be read: {error}"))
}
