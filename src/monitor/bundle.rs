//! What the monitor reads in a bundle's config.json (runtime-spec, config.md),
//! and the one thing that it may add.

use std::collections::HashMap;
use std::fs;
use std::io::{self, Read};
use std::path::{Path, PathBuf};

use serde::Deserialize;
use serde_json::{Map, Value, json};

use crate::init;
use crate::limits::CONFIG_BYTES_MAX;
use crate::monitor::error::Error;
use crate::monitor::id::ContainerId;
use crate::monitor::log::options::{Given, PREFIX};
use crate::monitor::make_private_dir;

/// Where CRI-O says whether the container has `stdinOnce`: "true" or "false".
const STDIN_ONCE: &str = "io.kubernetes.cri-o.StdinOnce";

/// Where podinit's init is in a container that was asked to have it.
const INIT_IN_CONTAINER: &str = "/run/podinit-init";

/// Makes a bundle below `run_dir` that says what `bundle` says, but starts the
/// command through podinit's init.
///
/// # Errors
/// If the bundle has no command, or cannot be read or written.
pub(super) fn with_init(bundle: &Path, run_dir: &Path, id: &ContainerId) -> Result<PathBuf, Error> {
    let unusable = |reason: &str| Error::Bundle {
        path: bundle.to_owned(),
        source: io::Error::new(io::ErrorKind::InvalidData, reason.to_owned()),
    };
    let mut config = read(bundle)?;
    let program = init::path_in(run_dir).map_err(|error| Error::io("write the init program", error))?;
    let arguments = config.get_mut("process").and_then(|process| process.get_mut("args"));
    let arguments =
        arguments.and_then(Value::as_array_mut).ok_or_else(|| unusable("process.args is missing"))?;
    arguments.splice(0..0, [json!(INIT_IN_CONTAINER), json!("--")]);
    let mounts = config.entry("mounts").or_insert_with(|| json!([]));
    let mounts = mounts.as_array_mut().ok_or_else(|| unusable("mounts is not a list"))?;
    mounts.push(json!({
        "destination": INIT_IN_CONTAINER,
        "type": "bind",
        "source": program,
        "options": ["bind", "ro", "nosuid", "nodev"],
    }));
    // The root's path is relative to the bundle (config.md, Root).
    if let Some(root) = config.get_mut("root").and_then(|root| root.get_mut("path"))
        && let Some(path) = root.as_str().map(|path| bundle.join(path))
    {
        *root = json!(path);
    }
    let ours = run_dir.join("bundles").join(id.as_str());
    make_private_dir(&ours)?;
    let text = serde_json::to_vec(&config).map_err(io::Error::other);
    let written = text.and_then(|text| fs::write(ours.join("config.json"), text));
    written.map_err(|error| Error::io(format!("write the bundle {}", ours.display()), error))?;
    Ok(ours)
}

/// The options of the container's logs among the annotations of `bundle`.
///
/// # Errors
/// If config.json cannot be read.
pub(super) fn log_options(bundle: &Path) -> Result<Given, Error> {
    let mut given = Given::default();
    given.add_annotations(annotations(bundle, PREFIX)?);
    Ok(given)
}

/// Whether the container has `stdinOnce`, if the engine says so in an annotation of
/// `bundle`.
///
/// # Errors
/// If config.json cannot be read.
pub(super) fn stdin_once(bundle: &Path) -> Result<Option<bool>, Error> {
    let annotations = annotations(bundle, STDIN_ONCE)?;
    Ok(annotations.get(STDIN_ONCE).and_then(|value| value.parse().ok()))
}

/// All annotations of `bundle` if `prefix` is in it, else none: most bundles have
/// none that matter, and parsing costs more than looking.
fn annotations(bundle: &Path, prefix: &str) -> Result<HashMap<String, String>, Error> {
    #[derive(Deserialize)]
    struct Annotated {
        #[serde(default)]
        annotations: HashMap<String, String>,
    }
    let text = read_text(bundle)?;
    if memchr::memmem::find(&text, prefix.as_bytes()).is_none() {
        return Ok(HashMap::new());
    }
    let fail = |error| Error::Bundle { path: bundle.to_owned(), source: io::Error::other(error) };
    let config: Annotated = serde_json::from_slice(&text).map_err(fail)?;
    Ok(config.annotations)
}

pub(super) fn read(bundle: &Path) -> Result<Map<String, Value>, Error> {
    let fail = |error| Error::Bundle { path: bundle.to_owned(), source: io::Error::other(error) };
    serde_json::from_slice(&read_text(bundle)?).map_err(fail)
}

fn read_text(bundle: &Path) -> Result<Vec<u8>, Error> {
    let fail = |source| Error::Bundle { path: bundle.to_owned(), source };
    let file = fs::File::open(bundle.join("config.json")).map_err(fail)?;
    let mut text = Vec::new();
    file.take(CONFIG_BYTES_MAX + 1).read_to_end(&mut text).map_err(fail)?;
    if text.len() as u64 > CONFIG_BYTES_MAX {
        return Err(fail(io::Error::new(io::ErrorKind::InvalidData, "config.json is too large")));
    }
    Ok(text)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn log_options_are_the_annotations_with_our_prefix() {
        let place = tempfile::tempdir().unwrap();
        let write = |text: &str| fs::write(place.path().join("config.json"), text).unwrap();
        let mut expected = Given::default();
        write(r#"{"annotations": {"io.kubernetes.cri-o.Name": "x"}}"#);
        assert_eq!(log_options(place.path()).unwrap(), expected);
        write(r#"{"process": {}, "annotations": {"org.podinit.log.backups": "2", "a": "b"}}"#);
        expected.add([("backups".to_owned(), "2".to_owned())]);
        assert_eq!(log_options(place.path()).unwrap(), expected);
        write(r#"{"annotations": {"org.podinit.log.backups": 2}}"#);
        assert!(log_options(place.path()).is_err(), "values of annotations are text");
        write(&" ".repeat(usize::try_from(CONFIG_BYTES_MAX).unwrap() + 1));
        assert!(format!("{:?}", log_options(place.path()).unwrap_err()).contains("too large"));
    }

    #[test]
    fn stdin_once_is_what_the_engine_says() {
        let place = tempfile::tempdir().unwrap();
        let said = |text: &str| {
            fs::write(place.path().join("config.json"), text).unwrap();
            stdin_once(place.path()).unwrap()
        };
        assert_eq!(said(r#"{"annotations": {"io.kubernetes.cri-o.StdinOnce": "false"}}"#), Some(false));
        assert_eq!(said(r#"{"annotations": {"io.kubernetes.cri-o.StdinOnce": "true"}}"#), Some(true));
        assert_eq!(said(r#"{"annotations": {"io.kubernetes.cri-o.StdinOnce": "?"}}"#), None);
        assert_eq!(said(r#"{"annotations": {"io.kubernetes.cri-o.Stdin": "true"}}"#), None);
        assert_eq!(said("{}"), None);
    }

    #[test]
    fn an_injected_init_changes_nothing_else() {
        let place = tempfile::tempdir().unwrap();
        let bundle = place.path().join("bundle");
        fs::create_dir(&bundle).unwrap();
        let config = json!({
            "process": {"args": ["sleep", "1"], "env": ["A=1", "B=2"], "cwd": "/"},
            "root": {"path": "rootfs", "readonly": true},
            "linux": {"x": [1]},
        });
        fs::write(bundle.join("config.json"), config.to_string()).unwrap();
        let id = ContainerId::new("c").unwrap();
        let ours = with_init(&bundle, place.path(), &id).unwrap();
        let mut made: Value = serde_json::from_slice(&fs::read(ours.join("config.json")).unwrap()).unwrap();
        assert_eq!(made["process"]["args"], json!([INIT_IN_CONTAINER, "--", "sleep", "1"]));
        assert_eq!(made["root"]["path"], json!(bundle.join("rootfs")));
        let source = made["mounts"][0]["source"].as_str().unwrap();
        assert!(Path::new(source).is_file());

        made["process"]["args"] = json!(["sleep", "1"]);
        made["root"]["path"] = json!("rootfs");
        made.as_object_mut().unwrap().remove("mounts");
        assert_eq!(made, config);
    }
}
