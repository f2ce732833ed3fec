//! What the `record` built-in has seen, per container, and the profile that
//! allows just that.

use std::cell::RefCell;
use std::collections::{BTreeMap, BTreeSet, VecDeque};

use serde_json::{Value, json};

use super::select::Call;
use super::syscall::{Architecture, name};
use crate::limits::{SECCOMP_COUNTED_CALLS_MAX, SECCOMP_SESSIONS_MAX};

/// How often, by architecture and number.
type Counts = BTreeMap<(u32, i32), u64>;

/// The recordings of a pod.
#[derive(Debug, Default)]
pub struct Recordings {
    containers: RefCell<BTreeMap<String, Counts>>,
    /// Their ids, the oldest first: it makes room for a new one.
    order: RefCell<VecDeque<String>>,
}

/// What one container has called.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Recording {
    /// Its id.
    pub container: String,
    /// The calls, by architecture and name.
    pub calls: Vec<Recorded>,
}

/// A call that was recorded.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Recorded {
    /// `AUDIT_ARCH_*`.
    pub arch: u32,
    /// Its number.
    pub syscall: i32,
    /// Its name, if it has one.
    pub name: Option<String>,
    /// How often.
    pub count: u64,
}

impl Recordings {
    /// Counts a call of `container`. Whether it is the first of its kind there; those
    /// beyond the limit are none.
    pub(super) fn add(&self, container: &str, call: &Call) -> bool {
        let mut containers = self.containers.borrow_mut();
        if let Some(calls) = containers.get_mut(container) {
            let is_known = calls.contains_key(&(call.arch, call.syscall));
            let is_counted = is_known || calls.len() < SECCOMP_COUNTED_CALLS_MAX;
            if is_counted {
                *calls.entry((call.arch, call.syscall)).or_default() += 1;
            }
            is_counted && !is_known
        } else {
            let mut order = self.order.borrow_mut();
            if order.len() >= SECCOMP_SESSIONS_MAX
                && let Some(oldest) = order.pop_front()
            {
                containers.remove(&oldest);
            }
            order.push_back(container.to_owned());
            let calls = BTreeMap::from([((call.arch, call.syscall), 1)]);
            containers.insert(container.to_owned(), calls);
            true
        }
    }

    /// What was recorded so far, of one container or of all.
    #[must_use]
    pub fn list(&self, container: Option<&str>) -> Vec<Recording> {
        let containers = self.containers.borrow();
        let chosen = containers.iter().filter(|(id, _)| container.is_none_or(|wanted| wanted == *id));
        let recording = |(id, calls): (&String, &Counts)| Recording {
            container: id.clone(),
            calls: calls
                .iter()
                .map(|((arch, syscall), count)| Recorded::new(*arch, *syscall, *count))
                .collect(),
        };
        chosen.map(recording).collect()
    }
}

impl Recorded {
    fn new(arch: u32, syscall: i32, count: u64) -> Self {
        Self { arch, syscall, name: name(arch, syscall), count }
    }
}

impl Recording {
    /// An OCI profile (runtime-spec, config-linux.md, "Seccomp") that allows what
    /// was recorded and refuses the rest with `EPERM`. It is what the notified
    /// calls were: join it with the profile that notified of them.
    #[must_use]
    pub fn profile(&self) -> Value {
        let of = |call: &Recorded| Architecture::of(call.arch, call.syscall);
        let architectures: BTreeSet<_> = self.calls.iter().filter_map(of).map(Architecture::as_str).collect();
        let names: BTreeSet<_> = self.calls.iter().filter_map(|call| call.name.as_deref()).collect();
        let mut syscalls = Vec::new();
        if !names.is_empty() {
            syscalls.push(json!({ "names": names, "action": "SCMP_ACT_ALLOW" }));
        }
        json!({
            "defaultAction": "SCMP_ACT_ERRNO",
            "defaultErrnoRet": libc::EPERM,
            "architectures": architectures,
            "syscalls": syscalls,
        })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_profile_allows_what_was_recorded() {
        let recordings = Recordings::default();
        let call = |arch, syscall| Call { arch, syscall, args: [0; 6] };
        let x86_64 = Architecture::X86_64.audit();
        for syscall in [83, 83, 257, 999_999] {
            recordings.add("c", &call(x86_64, syscall));
        }
        recordings.add("other", &call(Architecture::X86.audit(), 39));
        let list = recordings.list(Some("c"));
        assert_eq!(list.len(), 1);
        assert_eq!(list[0].calls[0], Recorded::new(x86_64, 83, 2));
        let profile = list[0].profile();
        assert_eq!(profile["architectures"], json!(["SCMP_ARCH_X86_64"]));
        assert_eq!(profile["syscalls"][0]["names"], json!(["mkdir", "openat"]));
        assert_eq!(recordings.list(None).len(), 2);
        let empty = Recording { container: String::new(), calls: Vec::new() };
        assert_eq!(empty.profile()["syscalls"], json!([]));
    }

    #[test]
    fn a_container_with_many_calls_leaves_the_first_of_another_its_place() {
        let recordings = Recordings::default();
        let call = |syscall| Call { arch: Architecture::X86_64.audit(), syscall, args: [0; 6] };
        let of_one = (0..2000).filter(|number| recordings.add("one", &call(*number))).count();
        assert_eq!(of_one, SECCOMP_COUNTED_CALLS_MAX);
        assert!(!recordings.add("one", &call(0)));
        assert!(recordings.add("another", &call(0)));
        assert!(!recordings.add("another", &call(0)));
    }

    #[test]
    fn the_oldest_recording_makes_room_for_the_newest() {
        let recordings = Recordings::default();
        let call = Call { arch: Architecture::X86_64.audit(), syscall: 83, args: [0; 6] };
        for container in 0..=SECCOMP_SESSIONS_MAX {
            recordings.add(&container.to_string(), &call);
        }
        assert_eq!(recordings.list(None).len(), SECCOMP_SESSIONS_MAX);
        assert_eq!(recordings.list(Some("0")), []);
        assert_eq!(recordings.list(Some(&SECCOMP_SESSIONS_MAX.to_string())).len(), 1);
    }
}
