//! Files of the format 0.1.0. It is not read: there any condition that holds is
//! enough, and nobody writes it any more. The refusal shows what the same file
//! is in 1.0.0.

use serde_json::{Map, Value, json};

use super::file::{FileError, VERSION};
use super::json::Field;

/// Says of a file without a version, or of 0.1.0, what to do about it.
pub(super) fn explain(file: &Field<'_>) -> FileError {
    match converted(file) {
        Ok(Some(files)) => FileError::Older(sentence(&files)),
        // Not of that format either.
        Ok(None) => FileError::Field {
            field: "version".to_owned(),
            reason: format!("it is missing; write \"version\": \"{VERSION}\""),
        },
        Err(wrong) => FileError::Older(format!(
            "it is of the format 0.1.0, which is not read, and is wrong as such ({wrong}); \
             write it anew as {VERSION}"
        )),
    }
}

fn sentence(files: &[Value]) -> String {
    let mut texts = files.iter().map(Value::to_string);
    let first = texts.next().unwrap_or_default();
    let mut sentence = format!("it is of the format 0.1.0, which is not read; as {VERSION} it is {first}");
    for further in texts {
        sentence.push_str(&format!(" and, in a file of its own, {further}"));
    }
    if files.len() > 1 {
        sentence.push_str(
            " (0.1.0 took a container for which any condition held; now all conditions of a file must hold)",
        );
    }
    sentence
}

/// The files that say what this one says; none if it is not of that format.
fn converted(file: &Field<'_>) -> Result<Option<Vec<Value>>, FileError> {
    let Some(path) = file.get("hook")? else { return Ok(None) };
    let Ok(path) = path.text() else { return Ok(None) };
    let mut hook = Map::new();
    hook.insert("path".to_owned(), json!(path));
    if let Some(arguments) = texts(file, &["arguments"])? {
        let all: Vec<_> = std::iter::once(path.to_owned()).chain(arguments).collect();
        hook.insert("args".to_owned(), json!(all));
    }
    let stages = texts(file, &["stages", "stage"])?.ok_or(FileError::Missing("stages"))?;

    let mut conditions = Vec::new();
    if let Some(commands) = texts(file, &["cmds", "cmd"])? {
        conditions.push(json!({ "commands": commands }));
    }
    if let Some(annotations) = texts(file, &["annotations", "annotation"])? {
        // The values alone were matched.
        conditions.push(json!({ "annotations": { ".*": annotations.join("|") } }));
    }
    if file.get("hasbindmounts")?.is_some_and(|field| field.bool().unwrap_or(false)) {
        conditions.push(json!({ "hasBindMounts": true }));
    }
    if conditions.is_empty() {
        // It never ran.
        conditions.push(json!({ "always": false }));
    }
    let file = |when| json!({ "version": VERSION, "hook": hook, "when": when, "stages": stages });
    Ok(Some(conditions.into_iter().map(file).collect()))
}

/// The list under the one of these names that is there.
fn texts(file: &Field<'_>, names: &[&str]) -> Result<Option<Vec<String>>, FileError> {
    for name in names {
        if let Some(field) = file.get(name)? {
            return field.texts().map(Some);
        }
    }
    Ok(None)
}
