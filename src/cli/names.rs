//! Names that people type: ids, CONTAINER or POD/CONTAINER, key=value and their kin.

use std::fmt;
use std::str::FromStr;

use super::exit::Failure;
use crate::monitor::id::{ContainerId, PodId};

/// What an id names.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Named {
    /// A pod.
    Pod,
    /// A container.
    Container,
}

/// Checks that `id` can name what it shall name, a file and an argument among them.
///
/// # Errors
/// A usage failure that says why not.
pub fn check_id(what: Named, id: &str) -> Result<(), Failure> {
    let checked = match what {
        Named::Pod => PodId::new(id).map(drop),
        Named::Container => ContainerId::new(id).map(drop),
    };
    checked.map_err(|error| Failure::usage(error.to_string()))
}

/// A new name that nobody has: `prefix` and 12 hexadecimal digits.
///
/// # Errors
/// If the kernel gives no random bytes.
pub fn random_id(prefix: &str) -> Result<String, Failure> {
    let mut bytes = [0u8; 6];
    rustix::rand::getrandom(&mut bytes, rustix::rand::GetRandomFlags::empty())
        .map_err(|error| Failure::io("asking the kernel for a random name", &error.into()))?;
    let digits: String = bytes.iter().map(|byte| format!("{byte:02x}")).collect();
    Ok(format!("{prefix}{digits}"))
}

/// A container as people name it.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Reference {
    /// The pod, if it was named.
    pub pod: Option<String>,
    /// The container.
    pub container: String,
}

impl FromStr for Reference {
    type Err = String;

    fn from_str(text: &str) -> Result<Self, String> {
        let (pod, container) = match text.split_once('/') {
            Some((pod, container)) => (Some(pod), container),
            None => (None, text),
        };
        let check = |what, id| match check_id(what, id) {
            Err(Failure::Said { message, .. }) => Err(message),
            _ => Ok(()),
        };
        pod.map_or(Ok(()), |pod| check(Named::Pod, pod))?;
        check(Named::Container, container)?;
        Ok(Self { pod: pod.map(str::to_owned), container: container.to_owned() })
    }
}

impl fmt::Display for Reference {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match &self.pod {
            Some(pod) => write!(f, "{pod}/{}", self.container),
            None => f.write_str(&self.container),
        }
    }
}

/// A container where it is.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Place {
    /// Its pod's id.
    pub pod: String,
    /// Its id.
    pub container: String,
}

impl fmt::Display for Place {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}/{}", self.pod, self.container)
    }
}

/// Finds the one container that `name` can mean among all that there are.
///
/// # Errors
/// If there is none; if there are several, with their full names.
pub fn resolve(name: &Reference, all: &[Place]) -> Result<Place, Failure> {
    let fits = |place: &&Place| {
        place.container == name.container && name.pod.as_ref().is_none_or(|pod| *pod == place.pod)
    };
    let found: Vec<&Place> = all.iter().filter(fits).collect();
    match found.as_slice() {
        [one] => Ok((*one).clone()),
        [] => Err(Failure::new(format!("there is no container {name}: `podinit ps` lists those there are"))),
        several => {
            let names: Vec<String> = several.iter().map(ToString::to_string).collect();
            Err(Failure::new(format!(
                "{name} is the name of {} containers: say which one of {}",
                several.len(),
                names.join(", ")
            )))
        }
    }
}

/// Parses `KEY=VALUE` with a key that is not empty.
///
/// # Errors
/// A sentence for clap.
pub fn key_value(text: &str) -> Result<(String, String), String> {
    match text.split_once('=') {
        Some((key, value)) if !key.is_empty() => Ok((key.to_owned(), value.to_owned())),
        _ => Err("write it as KEY=VALUE".into()),
    }
}

/// Parses a number of bytes: digits, and optionally k, m or g for 2^10, 2^20, 2^30.
///
/// # Errors
/// A sentence for clap.
pub fn bytes(text: &str) -> Result<u64, String> {
    let (digits, shift) = match text.char_indices().last() {
        Some((at, 'k' | 'K')) => (&text[..at], 10),
        Some((at, 'm' | 'M')) => (&text[..at], 20),
        Some((at, 'g' | 'G')) => (&text[..at], 30),
        _ => (text, 0),
    };
    let number: u64 =
        digits.parse().map_err(|_| "write bytes as a number, with k, m or g after it if you like")?;
    number.checked_mul(1 << shift).ok_or_else(|| "that is more than a machine can count".into())
}

/// Parses a signal: a number from 1 to 64, or a name with or without SIG.
///
/// # Errors
/// A sentence for clap.
pub fn signal(text: &str) -> Result<u8, String> {
    let unknown = || "write a signal as a number from 1 to 64 or a name such as TERM".to_owned();
    if let Ok(number) = text.parse::<u8>() {
        return if (1..=64).contains(&number) { Ok(number) } else { Err(unknown()) };
    }
    let upper = text.to_uppercase();
    let name = if upper.starts_with("SIG") { upper } else { format!("SIG{upper}") };
    let signal = nix::sys::signal::Signal::from_str(&name).map_err(|_| unknown())?;
    u8::try_from(signal as i32).map_err(|_| unknown())
}

#[cfg(test)]
mod tests {
    use super::*;

    fn places(names: &[&str]) -> Vec<Place> {
        let place = |name: &&str| {
            let (pod, container) = name.split_once('/').unwrap();
            Place { pod: pod.into(), container: container.into() }
        };
        names.iter().map(place).collect()
    }

    fn said(result: Result<Place, Failure>) -> String {
        match result {
            Err(Failure::Said { message, .. }) => message,
            other => panic!("{other:?}"),
        }
    }

    #[test]
    fn name_resolves_if_one_container_has_it() {
        let all = places(&["p1/web", "p1/db", "p2/web"]);
        let find = |name: &str| resolve(&name.parse().unwrap(), &all);
        assert_eq!(find("db").unwrap().to_string(), "p1/db");
        assert_eq!(find("p2/web").unwrap().to_string(), "p2/web");
        let message = said(find("web"));
        assert!(message.contains("p1/web, p2/web"), "{message}");
        assert!(said(find("none")).contains("podinit ps"));
        assert!(said(find("p2/db")).contains("p2/db"));
    }

    #[test]
    fn name_that_could_leave_its_directory_is_refused() {
        for bad in ["", "/", "a/", "/a", "..", "a/..", "a/b/c", ".a", "-a", "a b", "a\0b", &"a".repeat(129)] {
            assert!(bad.parse::<Reference>().is_err(), "{bad:?}");
        }
        for good in ["a", "_a", "0", "a.b-c_d+e", "pod/a", &"a".repeat(128)] {
            assert_eq!(good.parse::<Reference>().unwrap().to_string(), good);
        }
    }

    #[test]
    fn random_names_are_names_and_differ() {
        let (a, b) = (random_id("pod-").unwrap(), random_id("pod-").unwrap());
        check_id(Named::Pod, &a).unwrap();
        assert_ne!(a, b);
    }

    #[test]
    fn bytes_have_suffixes() {
        assert_eq!(bytes("0"), Ok(0));
        assert_eq!(bytes("10k"), Ok(10 << 10));
        assert_eq!(bytes("64M"), Ok(64 << 20));
        assert_eq!(bytes("1g"), Ok(1 << 30));
        for bad in ["", "k", "-1", "1.5m", "1kb", "99999999999999g", "é"] {
            assert!(bytes(bad).is_err(), "{bad}");
        }
    }

    #[test]
    fn signals_have_names_and_numbers() {
        for (text, number) in [("TERM", 15), ("sigkill", 9), ("SIGHUP", 1), ("34", 34)] {
            assert_eq!(signal(text), Ok(number), "{text}");
        }
        for bad in ["", "0", "65", "TERMINATE", "-9"] {
            assert!(signal(bad).is_err(), "{bad}");
        }
    }

    #[test]
    fn key_values_keep_what_follows_the_first_sign() {
        assert_eq!(key_value("a=b=c"), Ok(("a".into(), "b=c".into())));
        assert_eq!(key_value("a="), Ok(("a".into(), String::new())));
        assert!(key_value("=b").is_err() && key_value("a").is_err());
    }
}
