//! `pinns`: pins namespaces for an engine that keeps them by path, as CRI-O's
//! program of that name does, with its options and exit status (0, or 1 with one
//! line on standard error).
//!
//! This runs once for each pod of such an engine, so it is no user of clap, whose
//! parser alone takes longer than making the namespaces' mounts. Differences that
//! are meant: what fails is undone, `--help` and `--version` answer, a sysctl that
//! would change the host is refused, `--user=host` takes the host's.
#![forbid(unsafe_code)]

use std::ffi::OsString;
use std::io::{self, Write};
use std::path::PathBuf;
use std::process::ExitCode;

use crate::ns::pinns::{Job, run};
use crate::ns::{IdMapping, Kind, Source};

const HELP: &str = "\
Usage: pinns -d DIR -f NAME [--KIND[=host]]... [OPTION]...
Make namespaces, or take the host's, and pin them at DIR/<kind>ns/NAME.

  -d, --dir=DIR            where; made if its parent directory exists
  -f, --filename=NAME      file name of every pin; an empty file may be there
  -u, --uts[=host]         a new uts namespace, or the host's
  -i, --ipc[=host]         ... ipc
  -n, --net[=host]         ... net
  -U, --user[=host]        ... user; owns the others; needs both mappings
  -c, --cgroup[=host]      ... cgroup
  -m, --mnt[=host]         ... mnt
  -s, --sysctl=KEY=VALUE   set in the new namespaces; repeatable
      --uid-mapping=MAP    inside-outside-size, several joined by @
      --gid-mapping=MAP    the same, for groups
  -h, --help               this text
      --version            the version
";

/// Options as they were given.
#[derive(Debug, Default, Clone, PartialEq, Eq)]
struct Options {
    dir: Option<OsString>,
    filename: Option<String>,
    namespaces: Vec<(Kind, Source)>,
    sysctls: Vec<(String, String)>,
    uid_mapping: Option<String>,
    gid_mapping: Option<String>,
}

/// What the arguments ask for.
#[derive(Debug, PartialEq, Eq)]
enum Asked {
    Pin(Options),
    Help,
    Version,
}

/// An option that has, may have or has no value.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Name {
    Kind(Kind),
    Dir,
    Filename,
    Sysctl,
    UidMapping,
    GidMapping,
    Help,
    Version,
}

const LONG: [(&str, Name); 13] = [
    ("help", Name::Help),
    ("version", Name::Version),
    ("uts", Name::Kind(Kind::Uts)),
    ("ipc", Name::Kind(Kind::Ipc)),
    ("net", Name::Kind(Kind::Net)),
    ("user", Name::Kind(Kind::User)),
    ("cgroup", Name::Kind(Kind::Cgroup)),
    ("mnt", Name::Kind(Kind::Mnt)),
    ("dir", Name::Dir),
    ("filename", Name::Filename),
    ("uid-mapping", Name::UidMapping),
    ("gid-mapping", Name::GidMapping),
    ("sysctl", Name::Sysctl),
];

impl Name {
    fn short(letter: char) -> Option<Self> {
        Some(match letter {
            'h' => Self::Help,
            'u' => Self::Kind(Kind::Uts),
            'i' => Self::Kind(Kind::Ipc),
            'n' => Self::Kind(Kind::Net),
            'U' => Self::Kind(Kind::User),
            'c' => Self::Kind(Kind::Cgroup),
            'm' => Self::Kind(Kind::Mnt),
            'd' => Self::Dir,
            'f' => Self::Filename,
            's' => Self::Sysctl,
            _ => return None,
        })
    }

    /// A long name, or a beginning that only one has, as getopt_long(3) takes it.
    fn long(text: &str) -> Result<Self, String> {
        let mut matching = LONG.iter().filter(|(name, _)| name.starts_with(text));
        if let Some((_, name)) = LONG.iter().find(|(name, _)| *name == text) {
            return Ok(*name);
        }
        match (matching.next(), matching.next()) {
            (Some((_, name)), None) if !text.is_empty() => Ok(*name),
            (Some(_), Some(_)) if !text.is_empty() => Err(format!("option --{text} is ambiguous")),
            _ => Err(format!("there is no option --{text}")),
        }
    }

    /// Takes its value from the next argument, if the option has none of its own.
    fn needs_value(self) -> bool {
        matches!(self, Self::Dir | Self::Filename)
    }
}

/// Runs `pinns` with the arguments after `argv[0]`.
#[must_use]
pub fn main(arguments: &[OsString]) -> ExitCode {
    let done = match parse(arguments) {
        Ok(Asked::Help) => say(HELP),
        Ok(Asked::Version) => say(concat!("pinns (podinit) ", env!("CARGO_PKG_VERSION"), "\n")),
        Ok(Asked::Pin(options)) => pin(options),
        Err(message) => Err(message),
    };
    match done {
        Ok(()) => ExitCode::SUCCESS,
        Err(message) => {
            // Nowhere is left to complain to if standard error is gone.
            writeln!(io::stderr(), "[pinns:e]: {message}").ok();
            ExitCode::FAILURE
        }
    }
}

fn say(text: &str) -> Result<(), String> {
    io::stdout().write_all(text.as_bytes()).map_err(|e| format!("cannot write to standard output: {e}"))
}

fn pin(options: Options) -> Result<(), String> {
    let dir = options.dir.ok_or("no directory for the pins is given; use --dir")?;
    let filename = options.filename.ok_or("no file name for the pins is given; use --filename")?;
    let dir = std::path::absolute(&dir).map_err(|e| format!("cannot find the directory {dir:?}: {e}"))?;
    check_directory(&dir)?;
    if options.namespaces.is_empty() {
        return Err(
            "no namespace to pin is named; use --net, --ipc, --uts, --user, --cgroup or --mnt".to_owned()
        );
    }
    let user = options.namespaces.iter().find(|(kind, _)| *kind == Kind::User);
    let (uid, gid) = (options.uid_mapping, options.gid_mapping);
    let (uid_mappings, gid_mappings) = match (user, uid, gid) {
        (None, None, None) => (Vec::new(), Vec::new()),
        (None, _, _) => return Err("id mappings are given without --user; they would be lost".to_owned()),
        (Some((_, Source::Create)), Some(uid), Some(gid)) => (mappings(&uid)?, mappings(&gid)?),
        (Some(_), Some(_), Some(_)) => (Vec::new(), Vec::new()),
        (Some(_), _, _) => return Err("--user needs --uid-mapping and --gid-mapping".to_owned()),
    };
    let job = Job {
        dir,
        filename,
        namespaces: options.namespaces,
        sysctls: options.sysctls,
        uid_mappings,
        gid_mappings,
    };
    run(job).map_err(|e| e.to_string())
}

fn check_directory(dir: &PathBuf) -> Result<(), String> {
    match std::fs::metadata(dir) {
        Ok(found) if !found.is_dir() => Err(format!("{} exists but is not a directory", dir.display())),
        // If it is not there it will be made, or that fails with the reason.
        _ => Ok(()),
    }
}

/// `inside-outside-size`, several joined by `@`; a trailing `@` is allowed.
fn mappings(text: &str) -> Result<Vec<IdMapping>, String> {
    let entries = text.split('@').filter(|entry| !entry.is_empty());
    entries
        .map(|entry| {
            let mut fields = entry.split('-').map(str::parse::<u32>);
            match (fields.next(), fields.next(), fields.next(), fields.next()) {
                (Some(Ok(inside)), Some(Ok(outside)), Some(Ok(size)), None) => {
                    Ok(IdMapping { inside, outside, size })
                }
                _ => Err(format!("{entry:?} is no id mapping; write it as inside-outside-size")),
            }
        })
        .collect()
}

/// As getopt_long(3): options in any order, operands are ignored, `--` ends.
fn parse(arguments: &[OsString]) -> Result<Asked, String> {
    let mut options = Options::default();
    let mut rest = arguments.iter();
    while let Some(argument) = rest.next() {
        let text = argument.to_str().ok_or_else(|| format!("{argument:?} is not valid UTF-8"))?;
        if text == "--" {
            break;
        }
        if let Some(long) = text.strip_prefix("--") {
            let (name, value) = match long.split_once('=') {
                Some((name, value)) => (name, Some(value.to_owned())),
                None => (long, None),
            };
            let name = Name::long(name)?;
            let value = value.map(OsString::from);
            let value = if value.is_none() && name.needs_value() { next(&mut rest, long)? } else { value };
            match name {
                Name::Help => return Ok(Asked::Help),
                Name::Version => return Ok(Asked::Version),
                name => options.set(name, value)?,
            }
        } else if let Some(letters) = text.strip_prefix('-')
            && short(&mut options, letters, &mut rest)? == Some(Name::Help)
        {
            return Ok(Asked::Help);
        }
    }
    Ok(Asked::Pin(options))
}

fn next<'a>(rest: &mut impl Iterator<Item = &'a OsString>, option: &str) -> Result<Option<OsString>, String> {
    match rest.next() {
        Some(value) => Ok(Some(value.clone())),
        None => Err(format!("option {option:?} needs a value")),
    }
}

/// One argument of short options: several without value, then perhaps one with.
fn short<'a>(
    options: &mut Options,
    letters: &str,
    rest: &mut impl Iterator<Item = &'a OsString>,
) -> Result<Option<Name>, String> {
    for (at, letter) in letters.char_indices() {
        let name = Name::short(letter).ok_or_else(|| format!("there is no option -{letter}"))?;
        match name {
            Name::Help => return Ok(Some(name)),
            Name::Dir | Name::Filename | Name::Sysctl => {
                let attached = letters.get(at + letter.len_utf8()..).filter(|rest| !rest.is_empty());
                let value = match attached {
                    Some(value) => Some(OsString::from(value)),
                    None => next(rest, &letter.to_string())?,
                };
                options.set(name, value)?;
                return Ok(None);
            }
            name => options.set(name, None)?,
        }
    }
    Ok(None)
}

impl Options {
    fn set(&mut self, name: Name, value: Option<OsString>) -> Result<(), String> {
        if name == Name::Dir {
            self.dir = value;
            return Ok(());
        }
        let value = match value.map(OsString::into_string).transpose() {
            Ok(value) => value,
            Err(value) => return Err(format!("{value:?} is not valid UTF-8")),
        };
        match name {
            Name::Filename => self.filename = value,
            Name::UidMapping => self.uid_mapping = value,
            Name::GidMapping => self.gid_mapping = value,
            Name::Sysctl => {
                let text = value.ok_or("--sysctl needs a value: --sysctl=key=value")?;
                let (key, value) =
                    text.split_once('=').ok_or_else(|| format!("sysctl {text:?} has no `=`"))?;
                self.sysctls.push((key.to_owned(), value.to_owned()));
            }
            Name::Kind(kind) => {
                let host = value.as_deref() == Some("host");
                self.namespaces.retain(|(other, _)| *other != kind);
                self.namespaces.push((kind, if host { Source::Host } else { Source::Create }));
            }
            Name::Dir | Name::Help | Name::Version => {}
        }
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn parsed(arguments: &[&str]) -> Result<Asked, String> {
        parse(&arguments.iter().map(OsString::from).collect::<Vec<_>>())
    }

    #[test]
    fn options_in_all_the_forms_of_getopt() {
        let expected = Options {
            dir: Some("/d".into()),
            filename: Some("f".into()),
            namespaces: vec![(Kind::Uts, Source::Create), (Kind::Net, Source::Host)],
            sysctls: vec![("net.a".into(), "b=c".into())],
            ..Options::default()
        };
        for arguments in [
            vec!["-d", "/d", "-f", "f", "-u", "--net=host", "-s", "net.a=b=c"],
            vec!["-u", "--net=host", "-d/d", "-ff", "-snet.a=b=c"],
            vec!["--dir=/d", "--filename", "f", "--uts", "--net=host", "--sysctl=net.a=b=c"],
            vec!["operand", "-ud", "/d", "--file=f", "--net=host", "--sys=net.a=b=c", "--", "-m"],
        ] {
            assert_eq!(parsed(&arguments), Ok(Asked::Pin(expected.clone())), "{arguments:?}");
        }
    }

    #[test]
    fn what_is_no_option_is_refused() {
        for arguments in
            [vec!["-x"], vec!["--nonsense"], vec!["-d"], vec!["--dir"], vec!["--u"], vec!["-s", "a"]]
        {
            parsed(&arguments).expect_err(&format!("{arguments:?}"));
        }
        assert!(parsed(&["--sysctl"]).is_err(), "regression of a peer: it crashes");
        assert_eq!(parsed(&["-uh"]), Ok(Asked::Help));
        assert_eq!(parsed(&["--version"]), Ok(Asked::Version));
    }

    #[test]
    fn mappings_as_engines_write_them() {
        let map = |inside, outside, size| IdMapping { inside, outside, size };
        assert_eq!(mappings("0-100000-65536@"), Ok(vec![map(0, 100_000, 65_536)]));
        assert_eq!(mappings("0-1-2@3-4-5"), Ok(vec![map(0, 1, 2), map(3, 4, 5)]));
        for bad in ["0-1", "0-1-2-3", "a-b-c", "0-1--2", "0 1 2", "-1-2-3", "0-1-4294967296"] {
            assert!(mappings(bad).is_err(), "{bad}");
        }
    }
}
