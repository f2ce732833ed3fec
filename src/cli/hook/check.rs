//! `podinit hook check`: reads hook files as a pod's server does, and says what
//! it found.

use std::fmt::Write;
use std::fs::File;
use std::io::Read;
use std::os::unix::fs::PermissionsExt;
use std::path::{Path, PathBuf};

use clap::Args;

use crate::cli::exit::Failure;
use crate::cli::{complain, output};
use crate::hook::directory::{Listing, Problem};
use crate::hook::matching::Condition;
use crate::hook::{Hook, Stage, Subject, default_directories, order};
use crate::limits::{CONFIG_BYTES_MAX, HOOK_TIMEOUT_MAX};
use crate::ns::Kind;

pub(super) const HELP: &str = "\
Directories are in rising preference: a file of a later one replaces one of the same name. Nothing is
run. Exit code 1 if a file cannot be used, even one that is replaced.";

/// Options of `podinit hook check`.
#[derive(Debug, Args)]
pub struct CheckArgs {
    /// Directories with hook files; podinit's own if none is given
    #[arg(value_name = "DIR")]
    directories: Vec<PathBuf>,

    /// Say which hooks this bundle's container would have, and why not the others
    #[arg(long, value_name = "DIR")]
    bundle: Option<PathBuf>,
}

/// A file that is a hook.
struct Good {
    path: PathBuf,
    hook: Hook,
    notes: Vec<String>,
}

/// What was found.
#[derive(Default)]
struct Survey {
    good: Vec<Good>,
    /// Files that do not count, and why.
    aside: Vec<(PathBuf, String)>,
    problems: Vec<Problem>,
}

pub(super) fn run(args: &CheckArgs) -> Result<(), Failure> {
    let subject = args.bundle.as_deref().map(subject).transpose()?;
    let listing = Listing::new(&directories(args)?);
    let mut survey = survey(&listing);
    sort(&mut survey);
    let names: Vec<String> = survey.good.iter().map(|good| good.hook.name.clone()).collect();
    let mut text = String::new();
    for (at, good) in survey.good.iter().enumerate() {
        describe(&mut text, at + 1, good, &names, subject.as_ref());
    }
    for (path, reason) in &survey.aside {
        say(&mut text, format_args!("   {}: {reason}", path.display()));
    }
    if listing.files.is_empty() {
        say(&mut text, format_args!("no hook files"));
    }
    output::print(&text)?;
    for problem in &survey.problems {
        complain(problem);
    }
    match survey.problems.len() {
        0 => Ok(()),
        wrong => Err(Failure::new(format!("faults: {wrong}; hook files: {}", listing.files.len()))),
    }
}

/// The directories that were named, which must be there, or podinit's own.
fn directories(args: &CheckArgs) -> Result<Vec<PathBuf>, Failure> {
    for directory in &args.directories {
        std::fs::metadata(directory)
            .map_err(|error| Failure::io(format!("looking into {}", directory.display()), &error))?;
    }
    if args.directories.is_empty() {
        return Ok(default_directories().map(Path::to_owned).to_vec());
    }
    Ok(args.directories.clone())
}

/// The container of a bundle.
fn subject(bundle: &Path) -> Result<Subject, Failure> {
    let path = bundle.join("config.json");
    let mut text = Vec::new();
    let read = File::open(&path).and_then(|file| file.take(CONFIG_BYTES_MAX).read_to_end(&mut text));
    read.map_err(|error| Failure::io(format!("reading {}", path.display()), &error))?;
    let wrong = |reason: String| Failure::new(format!("{}: {reason}", path.display()));
    let config = serde_json::from_slice(&text).map_err(|error| wrong(error.to_string()))?;
    Subject::of_config(&config).map_err(|error| wrong(error.to_string()))
}

fn survey(listing: &Listing) -> Survey {
    let mut survey = Survey { problems: listing.problems.clone(), ..Survey::default() };
    for found in &listing.files {
        let path = listing.path(found);
        match (listing.read(found), listing.replacement(found)) {
            (Err(error), _) => {
                survey.problems.push(Problem { path, reason: error.to_string(), kept: false });
            }
            (Ok(None), _) => survey.aside.push((path, "not read: a link to nothing".to_owned())),
            (Ok(Some(_)), Some(by)) => {
                let by = listing.path(by);
                survey.aside.push((path, format!("not read: {} replaces it", by.display())));
            }
            (Ok(Some(parsed)), None) => {
                survey.good.push(Good { path, hook: parsed.hook, notes: parsed.notes });
            }
        }
    }
    survey
}

/// Puts the hooks into the order in which they run.
fn sort(survey: &mut Survey) {
    survey.good.sort_by_cached_key(|good| order::sort_key(&good.hook.name));
    let hooks: Vec<&Hook> = survey.good.iter().map(|good| &good.hook).collect();
    match order::order(&hooks) {
        Ok(order) => {
            let mut places: Vec<_> = survey.good.drain(..).map(Some).collect();
            survey.good =
                order.into_iter().filter_map(|at| places.get_mut(at).and_then(Option::take)).collect();
        }
        Err(cycle) => {
            let named = |good: &&Good| cycle.names.first() == Some(&good.hook.name);
            let path = survey.good.iter().find(named).map(|good| good.path.clone()).unwrap_or_default();
            survey.problems.push(Problem { path, reason: cycle.to_string(), kept: false });
        }
    }
}

/// Adds a line. Writing to a text cannot fail.
fn say(text: &mut String, line: std::fmt::Arguments<'_>) {
    writeln!(text, "{line}").ok();
}

fn describe(text: &mut String, number: usize, good: &Good, names: &[String], subject: Option<&Subject>) {
    let hook = &good.hook;
    say(text, format_args!("{number}. {} at {}", good.path.display(), list(&hook.stages)));
    match subject {
        Some(subject) => explain(text, hook, subject),
        None => {
            for condition in hook.when.conditions() {
                say(text, format_args!("   when {condition}"));
            }
        }
    }
    for note in good.notes.iter().cloned().chain(notes(hook, names)) {
        say(text, format_args!("   note: {note}"));
    }
}

fn list(stages: &[Stage]) -> String {
    if stages.is_empty() {
        return "no stage".to_owned();
    }
    stages.iter().map(|stage| stage.name()).collect::<Vec<_>>().join(", ")
}

/// What is no fault of the file, and keeps the hook from doing what it shall.
fn notes(hook: &Hook, names: &[String]) -> Vec<String> {
    let mut notes = Vec::new();
    notes.extend(note_on_program(hook));
    notes.extend(notes_on_conditions(hook));
    if hook.stages.is_empty() {
        notes.push("without stages it never runs".to_owned());
    }
    if hook.timeout.is_some_and(|timeout| timeout > HOOK_TIMEOUT_MAX) {
        notes.push(format!("it is given {} seconds at most", HOOK_TIMEOUT_MAX.as_secs()));
    }
    let late = hook.stages.iter().find(|stage| matches!(stage, Stage::ContainerExited | Stage::Poststop));
    if let Some(late) = late.filter(|_| hook.options.namespaces.contains(&Kind::Mnt)) {
        notes.push(format!("at {late} the container's mnt namespace is gone, so the hook fails"));
    }
    for name in hook.options.after.iter().chain(&hook.options.before).filter(|name| !names.contains(name)) {
        notes.push(format!("there is no hook {name:?} to come after or before"));
    }
    notes
}

fn note_on_program(hook: &Hook) -> Option<String> {
    let program = hook.path.display();
    let status = std::fs::metadata(&hook.path).ok()?;
    if !status.is_file() {
        return Some(format!("{program} is no file and cannot be executed"));
    }
    (status.permissions().mode() & 0o111 == 0).then(|| format!("{program} cannot be executed; chmod +x"))
}

fn notes_on_conditions(hook: &Hook) -> Vec<String> {
    if hook.when.conditions().next().is_none() {
        return vec!["without conditions it never runs; write \"when\": {\"always\": true}".to_owned()];
    }
    let never = |condition: &Condition<'_>| {
        matches!(condition, Condition::Always(false) | Condition::HasBindMounts(false))
    };
    let mut notes: Vec<String> = hook
        .when
        .conditions()
        .filter(never)
        .map(|condition| format!("{condition} never holds, so the hook never runs"))
        .collect();
    let of_pod = hook.stages.iter().find(|stage| stage.is_of_pod());
    if let Some(of_pod) = of_pod.filter(|_| notes.is_empty())
        && hook.when.matches(&Subject::default()) != Ok(true)
    {
        notes.push(format!("at {of_pod} there is no container, so nothing but always: true holds"));
    }
    notes
}

/// Says which conditions hold for a container, and for its pod, which has nothing
/// that a condition could be about.
fn explain(text: &mut String, hook: &Hook, subject: &Subject) {
    for condition in hook.when.conditions() {
        let word = match condition.holds(subject) {
            Ok(true) => "holds",
            Ok(false) => "does not hold",
            Err(_) => "cannot be asked",
        };
        say(text, format_args!("   {condition}: {word}"));
    }
    let (of_pod, of_container): (Vec<Stage>, Vec<Stage>) =
        hook.stages.iter().partition(|stage| stage.is_of_pod());
    if !of_container.is_empty() || of_pod.is_empty() {
        verdict(text, hook, subject, "the container", &of_container);
    }
    if !of_pod.is_empty() {
        verdict(text, hook, &Subject::default(), "its pod", &of_pod);
    }
}

fn verdict(text: &mut String, hook: &Hook, subject: &Subject, whose: &str, stages: &[Stage]) {
    match hook.when.matches(subject) {
        Ok(true) => say(text, format_args!("   runs for {whose} at {}", list(stages))),
        Ok(false) => say(text, format_args!("   does not run for {whose}")),
        Err(error) => say(text, format_args!("   does not run for {whose}: {error}")),
    }
}
