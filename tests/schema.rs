//! The generated Cap'n Proto code is checked in, so that building podinit needs
//! no C++ tool. This test runs the generator again and compares.
//!
//! After a change of `schema/*.capnp`: `make schema`.

use std::path::Path;

const SCHEMAS: [&str; 3] = ["conmon", "plugin", "podinit"];

#[test]
fn generated_code_is_what_the_schema_says() {
    let root = Path::new(env!("CARGO_MANIFEST_DIR"));
    let out = tempfile::tempdir().unwrap();
    let mut command = capnpc::CompilerCommand::new();
    command
        .src_prefix(root.join("schema"))
        .output_path(out.path())
        .default_parent_module(vec!["rpc".into(), "schema".into()]);
    for schema in SCHEMAS {
        command.file(root.join(format!("schema/{schema}.capnp")));
    }
    command.run().expect("the `capnp` tool (package capnproto) must be installed for this test");

    for schema in SCHEMAS {
        let file = format!("{schema}_capnp.rs");
        let fresh = std::fs::read_to_string(out.path().join(&file)).unwrap();
        let kept_path = root.join("src/rpc/schema").join(&file);
        if std::env::var_os("PODINIT_UPDATE_SCHEMA").is_some() {
            std::fs::write(&kept_path, &fresh).unwrap();
        }
        let kept = std::fs::read_to_string(&kept_path).unwrap_or_default();
        assert!(kept == fresh, "{} is stale: run `make schema`", kept_path.display());
    }
}
