//! The command line, for both modes. Pure, so that the podinit crate tests it.
//!
//! It takes the options of tini and of catatonit, so that it can stand where
//! either stood, and its own long ones.

use super::number;
use super::request::{GRACE_MS, Pause};

/// What to do.
#[derive(Debug, PartialEq, Eq)]
pub(crate) enum Mode {
    /// Hold a pid namespace.
    Pause(Pause),
    /// Run a command.
    Child(Child),
    /// Say how to use it.
    Help,
    /// Say which version it is.
    Version,
    /// Say what is wrong with the argument of this index.
    Wrong(&'static [u8], usize),
}

/// How to run a command.
#[derive(Debug, PartialEq, Eq)]
pub(crate) struct Child {
    /// Which argument is the command; those behind it are its own.
    pub(crate) command: usize,
    /// Send signals to the command's process group, not to its first process only.
    pub(crate) group: bool,
    /// Adopt orphans although this is not PID 1.
    pub(crate) subreaper: bool,
    /// Say so when an orphan was reaped.
    pub(crate) report_orphans: bool,
    /// What to get when our own parent ends; 0: nothing.
    pub(crate) parent_death_signal: i32,
    /// After the command's end, end what is left, waiting so long, in milliseconds.
    pub(crate) wait_ms: Option<u64>,
    /// Exit codes that are to become 0: code n is bit n % 64 of word n / 64.
    pub(crate) zeroed: [u64; 4],
}

impl Child {
    /// The exit code to use for `code` of the command.
    pub(crate) fn map(&self, code: u8) -> u8 {
        let word = self.zeroed.get(usize::from(code / 64)).copied().unwrap_or(0);
        if word >> (code % 64) & 1 == 1 { 0 } else { code }
    }
}

/// What is left of the command line, and what was found.
struct Parser<F> {
    argument: F,
    index: usize,
    pause: bool,
    grace_ms: Option<u64>,
    child: Child,
}

/// What a part of the command line was.
enum Step {
    Next,
    Command,
    Done(Mode),
}

/// Reads the `count` arguments that `argument` gives, the program's name first.
pub(crate) fn parse<F: Fn(usize) -> Option<&'static [u8]>>(count: usize, argument: F) -> Mode {
    let program = argument(0).unwrap_or_default();
    if is_named(program, b"pause") {
        // The pause program of an infra container: no options, no name, and no time to lose at the end.
        return Mode::Pause(Pause { name: 0, grace_ms: 0, keep_stderr: true });
    }
    let child = Child {
        command: 0,
        group: false,
        subreaper: false,
        report_orphans: false,
        parent_death_signal: 0,
        wait_ms: None,
        zeroed: [0; 4],
    };
    let mut parser = Parser { argument, index: 1, pause: false, grace_ms: None, child };
    loop {
        match parser.step() {
            Step::Next => parser.index += 1,
            Step::Command => return parser.finish(count),
            Step::Done(mode) => return mode,
        }
    }
}

/// Whether the last part of `path` is `name`.
fn is_named(path: &[u8], name: &[u8]) -> bool {
    path.strip_suffix(name).is_some_and(|rest| rest.is_empty() || rest.ends_with(b"/"))
}

impl<F: Fn(usize) -> Option<&'static [u8]>> Parser<F> {
    fn wrong(&self, why: &'static [u8]) -> Step {
        Step::Done(Mode::Wrong(why, self.index))
    }

    fn step(&mut self) -> Step {
        let Some(argument) = (self.argument)(self.index) else { return Step::Command };
        match argument {
            b"--" => {
                self.index += 1;
                Step::Command
            }
            [b'-', b'-', long @ ..] => self.long(long),
            [b'-', short @ ..] if !short.is_empty() => self.short(short),
            _ => Step::Command,
        }
    }

    fn long(&mut self, option: &'static [u8]) -> Step {
        match option {
            b"help" => return Step::Done(Mode::Help),
            b"version" => return Step::Done(Mode::Version),
            b"group" => self.child.group = true,
            b"subreaper" => self.child.subreaper = true,
            b"pause" => self.pause = true,
            b"wait" => self.child.wait_ms = self.child.wait_ms.or(Some(GRACE_MS)),
            _ => {
                if let Some(value) = option.strip_prefix(b"grace=") {
                    return self.grace(value);
                }
                if option == b"grace" {
                    self.index += 1;
                    let value = (self.argument)(self.index).unwrap_or_default();
                    return self.grace(value);
                }
                return self.wrong(b"unknown option");
            }
        }
        Step::Next
    }

    fn grace(&mut self, value: &[u8]) -> Step {
        let Some(ms) = number::parse(value) else { return self.wrong(b"--grace takes milliseconds") };
        self.grace_ms = Some(ms);
        Step::Next
    }

    /// A cluster of one-letter options, the last of which may take a value.
    fn short(&mut self, cluster: &'static [u8]) -> Step {
        let mut rest = cluster;
        while let [letter, behind @ ..] = rest {
            rest = behind;
            match letter {
                b'g' => self.child.group = true,
                b's' => self.child.subreaper = true,
                b'w' => self.child.report_orphans = true,
                b'P' => self.pause = true,
                // How much tini says about its own work; there is nothing to say.
                b'v' => {}
                b'h' => return Step::Done(Mode::Help),
                b'V' | b'l' | b'L' => return Step::Done(Mode::Version),
                b'p' | b'e' => {
                    let mut value = rest;
                    if value.is_empty() {
                        self.index += 1;
                        value = (self.argument)(self.index).unwrap_or_default();
                    }
                    return if *letter == b'p' { self.parent_death(value) } else { self.zero(value) };
                }
                _ => return self.wrong(b"unknown option"),
            }
        }
        Step::Next
    }

    fn parent_death(&mut self, value: &[u8]) -> Step {
        let Some(signal) = signal_number(value) else { return self.wrong(b"-p takes a signal") };
        self.child.parent_death_signal = signal;
        Step::Next
    }

    fn zero(&mut self, value: &[u8]) -> Step {
        let code = number::parse(value).filter(|code| *code <= 255);
        let word =
            code.and_then(|code| self.child.zeroed.get_mut((code / 64) as usize).map(|word| (word, code)));
        let Some((word, code)) = word else { return self.wrong(b"-e takes an exit code, 0 to 255") };
        *word |= 1 << (code % 64);
        Step::Next
    }

    fn finish(mut self, count: usize) -> Mode {
        let grace_ms = self.grace_ms.unwrap_or(GRACE_MS);
        if self.pause {
            let name = if self.index < count { self.index } else { 0 };
            return Mode::Pause(Pause { name, grace_ms, keep_stderr: true });
        }
        if self.index >= count {
            return Mode::Wrong(b"there is no command to run", 0);
        }
        self.child.command = self.index;
        self.child.wait_ms = self.child.wait_ms.map(|_| grace_ms);
        Mode::Child(self.child)
    }
}

/// Names of signals 1 to 31, in order.
const NAMES: &[u8] =
    b"HUP INT QUIT ILL TRAP ABRT BUS FPE KILL USR1 SEGV USR2 PIPE ALRM TERM STKFLT CHLD CONT \
    STOP TSTP TTIN TTOU URG XCPU XFSZ VTALRM PROF WINCH IO PWR SYS";

/// The number of a signal, given as such or by name, with or without `SIG`.
fn signal_number(text: &[u8]) -> Option<i32> {
    if let Some(number) = number::parse(text) {
        return i32::try_from(number).ok().filter(|number| (1..=64).contains(number));
    }
    let name = text.strip_prefix(b"SIG").unwrap_or(text);
    let at = NAMES.split(|byte| *byte == b' ').position(|known| known == name)?;
    i32::try_from(at + 1).ok()
}

#[cfg(test)]
mod tests {
    use super::*;

    fn parsed(words: &'static [&'static str]) -> Mode {
        parse(words.len(), |index| words.get(index).map(|word| word.as_bytes()))
    }

    fn child(words: &'static [&'static str]) -> Child {
        match parsed(words) {
            Mode::Child(child) => child,
            other => panic!("{words:?}: {other:?}"),
        }
    }

    #[test]
    fn command_begins_behind_the_options() {
        assert_eq!(child(&["tini", "sleep", "-g"]).command, 1);
        assert_eq!(child(&["tini", "--", "-g"]).command, 2);
        assert_eq!(child(&["tini", "-g", "--", "--", "x"]).command, 3);
        assert_eq!(child(&["tini", "-"]).command, 1);
    }

    #[test]
    fn options_of_tini_and_catatonit() {
        let all = child(&["tini", "-gsvvvw", "-pSIGTERM", "-e", "143", "-e0", "-e255", "--", "x"]);
        assert!(all.group && all.subreaper && all.report_orphans);
        assert_eq!(all.parent_death_signal, 15);
        assert_eq!((all.map(143), all.map(255), all.map(0), all.map(1), all.map(142)), (0, 0, 0, 1, 142));
        assert_eq!(parsed(&["catatonit", "-V"]), Mode::Version);
        assert_eq!(parsed(&["tini", "--version"]), Mode::Version);
        assert_eq!(parsed(&["tini", "-h"]), Mode::Help);
        assert_eq!(
            parsed(&["catatonit", "-P"]),
            Mode::Pause(Pause { name: 0, grace_ms: 10_000, keep_stderr: true })
        );
    }

    #[test]
    fn pause_takes_any_path_and_no_time() {
        let pause = Mode::Pause(Pause { name: 0, grace_ms: 0, keep_stderr: true });
        assert_eq!(parsed(&["pause"]), pause);
        assert_eq!(parsed(&["/usr/bin/pause", "-x"]), pause);
        assert_eq!(parsed(&["pause2", "x"]), parsed(&["tini", "x"]));
    }

    #[test]
    fn own_options() {
        assert_eq!(child(&["init", "--wait", "x"]).wait_ms, Some(10_000));
        assert_eq!(child(&["init", "--grace", "20", "--wait", "x"]).wait_ms, Some(20));
        assert_eq!(child(&["init", "--wait", "--grace=0", "x"]).wait_ms, Some(0));
        assert_eq!(child(&["init", "--grace=5", "x"]).wait_ms, None);
        assert_eq!(
            parsed(&["init", "-P", "--grace", "7", "pod"]),
            Mode::Pause(Pause { name: 4, grace_ms: 7, keep_stderr: true })
        );
    }

    #[test]
    fn every_signal_by_number_and_name() {
        for number in 1..=64 {
            assert_eq!(signal_number(number.to_string().as_bytes()), Some(number));
        }
        for (name, number) in
            [("HUP", 1), ("SIGKILL", 9), ("SIGTERM", 15), ("SIGCHLD", 17), ("XCPU", 24), ("SYS", 31)]
        {
            assert_eq!(signal_number(name.as_bytes()), Some(number), "{name}");
        }
        for wrong in ["", "0", "65", "-1", "SIG", "TERMINATE", "99999999999999999999", "1x"] {
            assert_eq!(signal_number(wrong.as_bytes()), None, "{wrong}");
        }
    }

    #[test]
    fn wrong_command_lines_are_told_apart() {
        for words in [
            &["init"] as &[_],
            &["init", "--"],
            &["init", "-g"],
            &["init", "-p"],
            &["init", "-p", "NONE", "x"],
            &["init", "-e", "256", "x"],
            &["init", "-e"],
            &["init", "-z", "x"],
            &["init", "--frob", "x"],
            &["init", "--grace", "soon", "x"],
        ] {
            assert!(matches!(parsed(words), Mode::Wrong(..)), "{words:?}");
        }
    }
}
