//! What has to exist before the crate compiles.

#[path = "build/init.rs"]
mod init;

fn main() {
    init::build_init_program();
}
