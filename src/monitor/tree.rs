//! Finding what a process has started.

use std::collections::BTreeSet;
use std::fs;
use std::io;
use std::os::fd::OwnedFd;

use rustix::process::{Pid, PidfdFlags, Signal};

/// Rounds of looking for new descendants: each stops what it finds, so a program
/// would have to fork faster than /proc is read, several times in a row, to escape.
const ROUNDS: usize = 8;

/// Kills the descendants of process `root`, and what else is in its session, but not
/// itself. A process that has left both the tree and the session (a daemon,
/// setsid(2)) is left to the container's own end.
pub(super) fn kill_descendants(root: u32) {
    let mut seen = BTreeSet::new();
    let mut stopped = Vec::new();
    for _ in 0..ROUNDS {
        let new = members(root, &seen);
        if new.is_empty() {
            break;
        }
        for pid in new {
            seen.insert(pid);
            // Stopped before the next look, so that it starts nothing more.
            if let Some(pidfd) = open_member(pid)
                && rustix::process::pidfd_send_signal(&pidfd, Signal::STOP).is_ok()
            {
                stopped.push(pidfd);
            }
        }
    }
    for pidfd in stopped {
        if let Err(error) = rustix::process::pidfd_send_signal(&pidfd, Signal::KILL) {
            ::log::debug!("a descendant of process {root} was gone already: {error}");
        }
    }
}

fn open_member(pid: u32) -> Option<OwnedFd> {
    let raw = i32::try_from(pid).ok().and_then(Pid::from_raw)?;
    rustix::process::pidfd_open(raw, PidfdFlags::empty()).ok()
}

/// Processes below `root` or one of `known`, or in `root`'s session, that are
/// not in `known`.
fn members(root: u32, known: &BTreeSet<u32>) -> Vec<u32> {
    let Ok(entries) = fs::read_dir("/proc") else { return Vec::new() };
    let pids = entries.flatten().filter_map(|entry| entry.file_name().to_str()?.parse::<u32>().ok());
    let relations = pids.filter_map(|pid| Relations::of(pid).ok().flatten()).collect::<Vec<_>>();
    let mut family = BTreeSet::from([root]);
    family.extend(known);
    loop {
        let before = family.len();
        for process in &relations {
            if family.contains(&process.parent) || process.session == root {
                family.insert(process.pid);
            }
        }
        if family.len() == before {
            break;
        }
    }
    family.into_iter().filter(|pid| *pid != root && !known.contains(pid)).collect()
}

/// Children of process `pid`, whichever of its threads has started them.
pub(super) fn children(pid: u32) -> Vec<u32> {
    let Ok(threads) = fs::read_dir(format!("/proc/{pid}/task")) else { return Vec::new() };
    let lists =
        threads.flatten().filter_map(|thread| fs::read_to_string(thread.path().join("children")).ok());
    let numbers = lists.flat_map(|list| {
        list.split_ascii_whitespace().filter_map(|number| number.parse().ok()).collect::<Vec<u32>>()
    });
    numbers.collect()
}

/// When process `pid` was started, in clock ticks since boot: with the pid it
/// names a process for ever.
pub(super) fn start_ticks(pid: u32) -> Option<u64> {
    let stat = fs::read_to_string(format!("/proc/{pid}/stat")).ok()?;
    // proc(5): field 22; the state, which follows the name, is field 3.
    stat.get(stat.rfind(')')? + 1..)?.split_ascii_whitespace().nth(19)?.parse().ok()
}

#[derive(Debug, PartialEq, Eq)]
struct Relations {
    pid: u32,
    parent: u32,
    session: u32,
}

impl Relations {
    fn of(pid: u32) -> io::Result<Option<Self>> {
        Ok(Self::parse(pid, &fs::read_to_string(format!("/proc/{pid}/stat"))?))
    }

    /// proc(5): `pid (comm) state ppid pgrp session …`; comm may hold anything.
    fn parse(pid: u32, stat: &str) -> Option<Self> {
        let mut fields = stat.get(stat.rfind(')')? + 1..)?.split_ascii_whitespace();
        let parent = fields.nth(1)?.parse().ok()?;
        let session = fields.nth(1)?.parse().ok()?;
        Some(Self { pid, parent, session })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn children_are_found() {
        let mut child = std::process::Command::new("sleep").arg("600").spawn().unwrap();
        assert!(children(std::process::id()).contains(&child.id()));
        child.kill().unwrap();
        child.wait().unwrap();
        assert!(!children(std::process::id()).contains(&child.id()));
    }

    #[test]
    fn a_name_full_of_parentheses_does_not_shift_the_fields() {
        let told = Relations::parse(7, "7 (a) 1 2 (b) S 5 6 7 0 -1").unwrap();
        assert_eq!(told, Relations { pid: 7, parent: 5, session: 7 });
    }
}
