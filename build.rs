//! What has to exist before the crate compiles.

#[path = "build/init.rs"]
mod init;
#[path = "build/version.rs"]
mod version;

fn main() {
    init::build_init_programs();
    version::tell_version();
    init::build_init_programs();
}
