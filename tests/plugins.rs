//! Seccomp plugins of other processes, over the plugin socket, with real
//! containers: who decides, and what becomes of calls when a plugin does not.
#![allow(clippy::unwrap_used, clippy::expect_used, reason = "what fails here fails the test")]

mod common;

use std::cell::RefCell;
use std::io::{BufRead, BufReader, Read, Write};
use std::path::{Path, PathBuf};
use std::process::{Child, ChildStdout, Command, Stdio};
use std::rc::Rc;

use common::{Options, Place, Pod, binary, eventually, kill, which};
use podinit::rpc::client::{Error, SeccompStats};
use podinit::rpc::plugin::client::{self, Call, OnFailure, Request, Session, Verdict};
use serde_json::{Value, json};
use tokio::sync::watch;

const RUNTIMES: [&str; 2] = ["crun", "runc"];

/// A plugin: `podinit seccomp answer`. Ends with its scope.
struct Plugin {
    child: Child,
    said: BufReader<ChildStdout>,
}

impl Plugin {
    fn start(socket: &Path, arguments: &[&str]) -> Self {
        let mut command = Command::new(binary());
        command.args(["seccomp", "answer", "--socket"]).arg(socket).args(arguments);
        Self::spawn(command)
    }

    fn spawn(mut command: Command) -> Self {
        let mut child = command.stdout(Stdio::piped()).spawn().expect("a plugin");
        let said = BufReader::new(child.stdout.take().unwrap());
        Self { child, said }
    }

    /// Starts one in a pod, and waits until it decides.
    fn of(pod: &Pod, arguments: &[&str]) -> Self {
        let mut plugin = Self::start(&pod.run_dir().join("plugins.sock"), arguments);
        plugin.wait_registered();
        plugin
    }

    fn wait_registered(&mut self) {
        let mut line = String::new();
        self.said.read_line(&mut line).expect("its standard output");
        assert_eq!(line, "registered\n");
    }

    /// Waits until a process of this test program has said so, among what the test runner says.
    fn wait_line(&mut self, wanted: &str) {
        let mut lines = self.said.by_ref().lines().map(Result::unwrap);
        assert!(lines.any(|line| line.ends_with(wanted)), "it ended without having said {wanted:?}");
    }

    fn signal(&self, signal: &str) {
        kill(self.child.id(), signal);
    }
}

impl Drop for Plugin {
    fn drop(&mut self) {
        // It may have ended with its pod.
        self.child.kill().ok();
        self.child.wait().ok();
    }
}

fn stats(pod: &Pod) -> SeccompStats {
    pod.call(async |client| client.seccomp_stats().await).expect("stats")
}

/// A hundred calls at once; prints how many failed with an error of that text.
fn hundred(error: &str) -> String {
    format!(
        "for i in $(seq 100); do mkdir /tmp/$i 2>/tmp/said.$i & done; wait; cat /tmp/said.* | tr -d '\\r' >/tmp/all; \
         busybox grep -c '{error}' /tmp/all; exit 0"
    )
}

fn decides_under(runtime: &str) {
    let pod = Pod::with_runtime(runtime);
    let _plugin = Plugin::of(&pod, &["--syscall", "mkdir", "--verdict", "errno:EROFS"]);
    pod.run_notified("c", &["mkdir"], "mkdir /tmp/a; touch /tmp/b && echo touched");
    let said = pod.output("c");
    assert!(said.contains("Read-only file system") && said.contains("touched"), "{said}");
    let row = stats(&pod).rows.into_iter().find(|row| row.plugin == "answer").expect("a row");
    assert_eq!((row.syscall.as_str(), row.verdict.as_str(), row.total()), ("mkdir", "errno", 1));
}

#[test]
fn plugin_decides_under_crun() {
    decides_under("crun");
}

#[test]
fn plugin_decides_under_runc() {
    decides_under("runc");
}

#[test]
fn a_plugin_can_kill_a_process() {
    for runtime in RUNTIMES {
        let pod = Pod::with_runtime(runtime);
        let _plugin = Plugin::of(&pod, &["--syscall", "mkdir", "--verdict", "kill"]);
        pod.run_notified("c", &["mkdir"], "mkdir /tmp/a; echo $?; test -e /tmp/a || echo not made");
        let said = pod.output("c");
        assert!(said.starts_with("137\nnot made\n"), "{runtime}: {said}");
        let row = stats(&pod).rows.into_iter().find(|row| row.plugin == "answer").expect("a row");
        assert_eq!((row.verdict.as_str(), row.total()), ("kill", 1));
    }
}

fn three_are_asked_under(runtime: &str) {
    let pod = Pod::with_runtime(runtime);
    let of = |name: &str, priority: &str, more: &[&str]| {
        Plugin::of(&pod, &[&["--name", name, "--priority", priority], more].concat())
    };
    let _last = of("last", "5", &["--syscall", "mkdir", "--syscall", "chmod", "--verdict", "errno:EROFS"]);
    // chmod(path, mode): only where the mode is 0700.
    let _second = of("second", "0", &["--syscall", "chmod", "--if", "1=448", "--verdict", "errno:ENOSPC"]);
    let _first = of("first", "-5", &["--syscall", "mkdir", "--verdict", "pass"]);
    assert_eq!(pod.seccomp_plugins(), ["first", "second", "last"]);
    let script = "busybox chmod 700 /tmp; busybox chmod 755 /tmp; mkdir /tmp/b";
    pod.run_notified("c", &["mkdir", "chmod"], script);
    let said = pod.output("c");
    let lines: Vec<&str> = said.lines().filter_map(|line| line.rsplit(": ").next()).collect();
    assert_eq!(
        lines,
        ["No space left on device", "Read-only file system", "Read-only file system"],
        "{runtime}: {said}"
    );
}

#[test]
fn three_plugins_are_asked_by_priority_until_one_decides() {
    RUNTIMES.iter().for_each(|runtime| three_are_asked_under(runtime));
}

#[test]
fn a_hundred_calls_survive_the_death_of_their_plugin() {
    let pod = Pod::start();
    for (step, signals) in [("killed", &["KILL"][..]), ("stopped and killed", &["STOP", "KILL"])] {
        let stalls =
            ["--syscall", "mkdir", "--verdict", "return:0", "--delay", "600000", "--deadline", "120000"];
        let plugin = Plugin::of(&pod, &[&stalls[..], &["--on-failure", "errno:EIO"]].concat());
        let name = step.replace(' ', "-");
        pod.run_notified(&name, &["mkdir"], &hundred("Input/output error"));
        eventually(|| stats(&pod).open == 100);
        signals.iter().for_each(|signal| plugin.signal(signal));
        assert_eq!(pod.output(&name).trim(), "100", "{step}");
        eventually(|| pod.seccomp_plugins().is_empty());
    }
    let stats = stats(&pod);
    assert_eq!((stats.received, stats.answered, stats.open), (200, 200, 0), "{stats:?}");
}

#[test]
fn a_plugin_that_dies_between_calls_costs_no_call() {
    let pod = Pod::start();
    pod.run_notified("c", &["mkdir"], &hundred("Permission denied").replace("& done", "; done"));
    // Each decides about some of the calls; what none decides about waits for the first, and has the default then.
    for _ in 0..3 {
        let answered = stats(&pod).answered;
        let verdict = ["--syscall", "mkdir", "--verdict", "errno:EACCES", "--on-failure", "errno:EACCES"];
        let plugin = Plugin::of(&pod, &verdict);
        eventually(|| {
            let stats = stats(&pod);
            stats.answered > answered || stats.received == 100
        });
        plugin.signal("KILL");
    }
    pod.wait("c");
    let stats = stats(&pod);
    assert_eq!((stats.received, stats.answered, stats.open), (100, 100, 0), "{stats:?}");
}

/// What a process of [`plugin_that_stands_still`] is told: its socket, and whether it listens there.
const STILL: &str = "PODINIT_TEST_STILL";
const LISTENS: &str = "PODINIT_TEST_STILL_LISTENS";

/// Stands still as soon as it is told which sessions there are.
struct Still;

impl client::Plugin for Still {
    async fn decide(&self, _: Call) -> Verdict {
        Verdict::Return(0)
    }

    fn synchronise(&self, sessions: &[Session]) {
        let mut told = std::io::stdout();
        writeln!(told, "told of {} sessions", sessions.len()).unwrap();
        loop {
            std::thread::park();
        }
    }
}

/// Not a test by itself: what [`still`] runs.
#[test]
fn plugin_that_stands_still() {
    let Some(socket) = std::env::var_os(STILL) else { return };
    let request = Request { priority: -1, ..Request::new("still", &["mkdir"]) };
    let plugin = async {
        if std::env::var_os(LISTENS).is_some() {
            return client::listen(socket.as_ref(), request, Still).await;
        }
        client::dial_in(socket.as_ref(), request, Still).await?.ended().await
    };
    client::run(plugin).expect("a plugin");
}

/// A plugin's process that has been told of one session, and does not go on.
fn still(socket: &Path, listens: bool) -> Plugin {
    let mut command = Command::new(std::env::current_exe().unwrap());
    command.args(["--exact", "plugin_that_stands_still", "--nocapture"]).env(STILL, socket);
    if listens {
        command.env(LISTENS, "yes");
    }
    let mut plugin = Plugin::spawn(command);
    plugin.wait_line("told of 1 sessions");
    plugin
}

#[test]
fn a_plugin_killed_while_it_is_synchronised_costs_no_call() {
    for listens in [false, true] {
        let place = Place::new();
        let (directory, options) = plugin_dir(&place);
        let pod = Pod::start_in(place, options);
        let socket = if listens { directory.join("p.sock") } else { pod.run_dir().join("plugins.sock") };
        let next = ["--name", "next", "--priority", "1", "--syscall", "mkdir", "--verdict", "errno:EROFS"];
        let _next = Plugin::of(&pod, &next);
        let script = "until [ -e /tmp/over ]; do mkdir /tmp/a 2>>/tmp/said; done; cat /tmp/said";
        pod.run_notified("c", &["mkdir"], script);
        let goes_on = || {
            let before = stats(&pod).answered;
            eventually(|| stats(&pod).answered > before + 5);
        };
        goes_on();
        // Killed, restarted, and killed again: every time it is told anew.
        for _ in 0..2 {
            let still = still(&socket, listens);
            goes_on();
            still.signal("KILL");
            goes_on();
            assert_eq!(pod.seccomp_plugins(), ["next"]);
        }
        let mut decides = vec!["--priority", "-1", "--syscall", "mkdir", "--verdict", "errno:ENOSPC"];
        decides.extend(listens.then_some("--listen"));
        let mut again = Plugin::start(&socket, &decides);
        again.wait_registered();
        eventually(|| pod.seccomp_plugins() == ["answer", "next"]);
        goes_on();
        pod.exec_stdout("c", "echo >/tmp/over");
        let said = pod.output("c");
        let of = |text: &str| said.lines().filter(|line| line.contains(text)).count();
        let (first, second) = (of("Read-only file system"), of("No space left on device"));
        assert!(first > 0 && second > 0 && first + second == said.lines().count(), "{said}");
        let stats = stats(&pod);
        assert_eq!((stats.received, stats.open), (stats.answered, 0), "{stats:?}");
        assert_eq!(stats.answered, (first + second) as u64, "{stats:?}");
        drop(again);
        if listens {
            std::fs::remove_file(&socket).unwrap();
        }
    }
}

/// Where a plugin is killed with a hundred calls pending.
#[derive(Clone, Copy, PartialEq, Eq)]
enum Step {
    /// It has been asked about each in a call of its own.
    Asked,
    /// It has put all verdicts off.
    PutOff,
    /// It has given some of the verdicts that it put off.
    AnsweredSome,
    /// It has been asked about many at once, and knows some of the verdicts.
    InABatch,
}

/// What becomes of the calls then: how many have the plugin's own verdict, and how often its
/// policy for the others shows.
struct Death {
    step: Step,
    on_failure: OnFailure,
    given: usize,
    shows: &'static str,
}

const DEATHS: [Death; 4] = [
    Death { step: Step::Asked, on_failure: OnFailure::Kill, given: 0, shows: "137" },
    Death {
        step: Step::PutOff,
        on_failure: OnFailure::Errno(5),
        given: 0,
        shows: "1 mkdir: Input/output error",
    },
    Death {
        step: Step::AnsweredSome,
        on_failure: OnFailure::Next,
        given: 40,
        shows: "1 mkdir: No space left",
    },
    Death { step: Step::InABatch, on_failure: OnFailure::Continue, given: 1, shows: "0" },
];

/// What a process of [`plugin_that_stops`] is told: its socket, and which of [`DEATHS`] is its own.
const STOPS: &str = "PODINIT_TEST_STOPS";
const DEATH: &str = "PODINIT_TEST_STOPS_AT";

/// Comes to its step, and no further.
struct Stops {
    step: Step,
    asked: RefCell<Vec<(u64, u64)>>,
    /// How many it has been asked about.
    count: watch::Sender<usize>,
    /// Whether the test has seen all calls pending.
    may: watch::Receiver<bool>,
}

impl client::Plugin for Stops {
    async fn decide(&self, call: Call) -> Verdict {
        self.asked.borrow_mut().push((call.notification.session, call.notification.id));
        let count = self.asked.borrow().len();
        self.count.send_replace(count);
        match self.step {
            Step::PutOff | Step::AnsweredSome => return Verdict::Later,
            // Those that come meanwhile are a batch.
            Step::InABatch if count == 1 => drop(self.may.clone().wait_for(|may| *may).await),
            Step::InABatch if count <= 40 => {}
            Step::Asked | Step::InABatch => std::future::pending().await,
        }
        Verdict::Errno(30)
    }
}

async fn stop_at(socket: &Path, death: &Death) -> Result<(), Error> {
    let (count, mut counted) = watch::channel(0);
    let (go_on, may) = watch::channel(false);
    let plugin = Rc::new(Stops { step: death.step, asked: RefCell::default(), count, may: may.clone() });
    // Until one of them is asked about in a batch, of which a container has half, or all are.
    let (batch_max, calls_max, until) = if death.step == Step::InABatch { (128, 1, 41) } else { (1, 0, 100) };
    let request = Request {
        deadline_ms: 120_000,
        on_failure: death.on_failure,
        batch_max,
        calls_max,
        ..Request::new("stops", &["mkdir"])
    };
    let plugged = client::dial_in(socket, request, Rc::clone(&plugin)).await?;
    let mut told = std::io::stdout();
    writeln!(told, "registered").unwrap();
    std::thread::spawn(move || {
        std::io::stdin().read_line(&mut String::new()).unwrap();
        go_on.send_replace(true);
    });
    may.clone().wait_for(|may| *may).await.unwrap();
    counted.wait_for(|count| *count >= until).await.unwrap();
    let asked = plugin.asked.borrow().clone();
    let some = if death.step == Step::AnsweredSome { &asked[..death.given] } else { &[] };
    let answers: Vec<_> = some.iter().map(|&(session, id)| (session, id, Verdict::Errno(30))).collect();
    // What was sent before, the monitor has taken when it answers.
    assert_eq!(plugged.answer(&answers).await?, 0);
    writeln!(told, "at its step").unwrap();
    std::future::pending().await
}

/// Not a test by itself: what [`killed_at`] runs.
#[test]
fn plugin_that_stops() {
    let Some(socket) = std::env::var_os(STOPS) else { return };
    let death: usize = std::env::var(DEATH).unwrap().parse().unwrap();
    client::run(stop_at(socket.as_ref(), &DEATHS[death])).expect("a plugin");
}

fn killed_at(runtime: &str, death: usize) {
    let pod = Pod::with_runtime(runtime);
    let next = ["--name", "next", "--priority", "1", "--syscall", "mkdir", "--verdict", "errno:ENOSPC"];
    let _next = Plugin::of(&pod, &next);
    let mut command = Command::new(std::env::current_exe().unwrap());
    command.args(["--exact", "plugin_that_stops", "--nocapture"]).stdin(Stdio::piped());
    command.env(STOPS, pod.run_dir().join("plugins.sock")).env(DEATH, death.to_string());
    let mut plugin = Plugin::spawn(command);
    plugin.wait_line("registered");
    let script = "for i in $(seq 100); do (said=$(mkdir /tmp/$i 2>&1); echo $? $said >/tmp/said.$i) & done; wait
        busybox sed 's/can.t create.*: /: /; s/ : / /' /tmp/said.*; echo made $(ls /tmp | busybox grep -vc said)";
    pod.run_notified("c", &["mkdir"], script);
    eventually(|| stats(&pod).open == 100);
    writeln!(plugin.child.stdin.as_ref().unwrap()).unwrap();
    plugin.wait_line("at its step");
    let Death { given, shows, on_failure, .. } = &DEATHS[death];
    eventually(|| stats(&pod).open as usize == 100 - given);
    plugin.signal("KILL");
    let said = pod.output("c");
    let count = |line: &str| said.lines().filter(|said| said.starts_with(line)).count();
    assert_eq!(
        (count("1 mkdir: Read-only"), count(shows)),
        (*given, 100 - given),
        "{runtime}, {death}: {said}"
    );
    let made = if *on_failure == OnFailure::Continue { 100 - given } else { 0 };
    assert_eq!(count(&format!("made {made}")), 1, "{runtime}, {death}: {said}");
    let stats = stats(&pod);
    assert_eq!((stats.received, stats.answered, stats.open), (100, 100, 0), "{stats:?}");
    assert_eq!(pod.seccomp_plugins(), ["next"]);
}

#[test]
fn a_plugin_killed_when_it_was_asked_leaves_its_policy() {
    RUNTIMES.iter().for_each(|runtime| killed_at(runtime, 0));
}

#[test]
fn a_plugin_killed_before_verdicts_that_it_put_off_leaves_its_policy() {
    RUNTIMES.iter().for_each(|runtime| killed_at(runtime, 1));
}

#[test]
fn a_plugin_killed_between_verdicts_that_it_put_off_leaves_its_policy() {
    RUNTIMES.iter().for_each(|runtime| killed_at(runtime, 2));
}

#[test]
fn a_plugin_killed_in_a_batch_leaves_its_policy() {
    RUNTIMES.iter().for_each(|runtime| killed_at(runtime, 3));
}

/// A hundred calls wait for the first plugin. One that is killed before it is registered was none.
#[test]
fn a_plugin_killed_before_it_is_registered_decides_nothing() {
    for (runtime, listens) in [("crun", false), ("crun", true), ("runc", false)] {
        let place = Place::new();
        let rules = place.path("rules.json");
        std::fs::write(&rules, r#"{"version": 1, "defaults": {"patienceMs": 300000}, "rules": []}"#).unwrap();
        let (directory, mut options) = plugin_dir(&place);
        options.arguments.extend(["--seccomp-rules".to_owned(), rules.to_str().unwrap().to_owned()]);
        options.runtime = Some(which(runtime));
        let pod = Pod::start_in(place, options);
        pod.run_notified("c", &["mkdir"], &hundred("Read-only"));
        eventually(|| stats(&pod).open == 100);
        let socket = if listens { directory.join("p.sock") } else { pod.run_dir().join("plugins.sock") };
        still(&socket, listens).signal("KILL");
        assert_eq!(stats(&pod).open, 100, "they wait for another");
        let _plugin = Plugin::of(&pod, &["--syscall", "mkdir", "--verdict", "errno:EROFS"]);
        assert_eq!(pod.output("c").trim(), "100");
        let stats = stats(&pod);
        assert_eq!((stats.received, stats.answered, stats.open), (100, 100, 0), "{stats:?}");
        if listens {
            std::fs::remove_file(&socket).unwrap();
        }
    }
}

#[test]
fn a_plugin_that_stands_still_costs_its_own_verdicts_only() {
    let pod = Pod::start();
    let still = ["--name", "still", "--priority", "0", "--syscall", "mkdir", "--verdict", "return:0"];
    let still = Plugin::of(&pod, &[&still[..], &["--deadline", "200", "--on-failure", "next"]].concat());
    let _next = Plugin::of(
        &pod,
        &["--name", "next", "--priority", "1", "--syscall", "mkdir", "--verdict", "errno:EROFS"],
    );
    still.signal("STOP");
    pod.run_notified("c", &["mkdir"], &hundred("Read-only"));
    assert_eq!(pod.output("c").trim(), "100");
    let counted = stats(&pod);
    let counters = counted.plugins.iter().find(|plugin| plugin.name == "still").expect("its counters");
    assert!(counters.timeouts > 0, "{counted:?}");
    // When it goes on it is asked again.
    still.signal("CONT");
    eventually(|| {
        let name = format!("again-{}", stats(&pod).received);
        pod.run_notified(&name, &["mkdir"], "mkdir /tmp/a && echo made");
        pod.output(&name).contains("made")
    });
}

#[test]
fn a_slow_verdict_holds_up_no_other() {
    let pod = Pod::start();
    let slow = ["--name", "slow", "--syscall", "mkdir", "--verdict", "errno:EROFS", "--delay", "600000"];
    let slow = Plugin::of(&pod, &[&slow[..], &["--deadline", "120000"]].concat());
    let _fast = Plugin::of(&pod, &["--name", "fast", "--syscall", "rmdir", "--verdict", "errno:EBUSY"]);
    pod.run_notified("c", &["mkdir", "rmdir"], "mkdir /tmp/a & busybox rmdir /tmp; echo first; wait");
    eventually(|| pod.log("c").stdout == b"first\n");
    assert_eq!(stats(&pod).open, 1);
    slow.signal("KILL");
    assert!(pod.output("c").contains("resource busy"));
}

#[test]
fn batches_lose_nothing() {
    let pod = Pod::start();
    let _plugin = Plugin::of(
        &pod,
        &["--syscall", "mkdir", "--verdict", "errno:EROFS", "--batch", "32", "--delay", "20"],
    );
    pod.run_notified("c", &["mkdir"], &hundred("Read-only"));
    assert_eq!(pod.output("c").trim(), "100");
}

fn plugin_dir(place: &Place) -> (PathBuf, Options) {
    let directory = place.path("tmp").join("plugins.d");
    std::fs::create_dir(&directory).unwrap();
    let arguments = vec!["--plugin-dir".to_owned(), directory.to_str().unwrap().to_owned()];
    (directory, Options { arguments, ..Options::default() })
}

#[test]
fn plugins_that_listen_are_dialled_and_dialled_again() {
    let place = Place::new();
    let (directory, options) = plugin_dir(&place);
    let socket = directory.join("p.sock");
    let decides = ["--listen", "--syscall", "mkdir", "--verdict"];
    let mut early = Plugin::start(&socket, &[&decides[..], &["errno:EROFS"]].concat());
    eventually(|| socket.exists());
    let pod = Pod::start_in(place, options);
    pod.run_notified("before", &["mkdir"], "mkdir /tmp/a");
    early.wait_registered();
    assert!(pod.output("before").contains("Read-only"));

    // The plugin restarts: its socket is another file of the same name.
    drop(early);
    eventually(|| pod.seccomp_plugins().is_empty());
    let mut late = Plugin::start(&socket, &[&decides[..], &["errno:ENOSPC"]].concat());
    late.wait_registered();
    eventually(|| pod.seccomp_plugins() == ["answer"]);
    pod.run_notified("after", &["mkdir"], "mkdir /tmp/a");
    assert!(pod.output("after").contains("No space left"));

    // The monitor restarts: it dials when there is something to decide again.
    let [monitor] = common::children_of(pod.keeper_pid())[..] else { panic!("one monitor") };
    kill(monitor, "KILL");
    eventually(|| common::children_of(pod.keeper_pid()).iter().any(|pid| *pid != monitor));
    pod.reconnect();
    pod.run_notified("anew", &["mkdir"], "mkdir /tmp/a");
    late.wait_registered();
    assert!(pod.output("anew").contains("No space left"));
    drop(late);
    std::fs::remove_file(&socket).unwrap();
}

#[test]
fn a_registration_ends_with_its_connection() {
    let pod = Pod::start();
    let plugin = Plugin::of(&pod, &["--syscall", "mkdir", "--verdict", "errno:EROFS"]);
    assert_eq!(pod.seccomp_plugins(), ["answer"]);
    drop(plugin);
    eventually(|| pod.seccomp_plugins().is_empty());
}

#[test]
fn what_was_traced_can_be_replayed() {
    let pod = Pod::start();
    let _plugin = Plugin::of(&pod, &["--syscall", "mkdir", "--verdict", "errno:EROFS"]);
    let mut command = Command::new(binary());
    command.args([
        "seccomp",
        "trace",
        "--decode",
        "--count",
        "2",
        "--output",
        "json",
        "--syscall",
        "mkdir",
        "--socket",
    ]);
    let mut trace = command.arg(pod.socket()).stdout(Stdio::piped()).spawn().expect("a trace");
    // The one that copies what calls point to is asked first.
    eventually(|| pod.seccomp_plugins() == ["trace", "answer"]);
    pod.run_notified("c", &["mkdir"], "mkdir /tmp/a; mkdir /tmp/b");
    assert!(pod.output("c").contains("Read-only"));
    let lines: Vec<String> =
        BufReader::new(trace.stdout.take().unwrap()).lines().map(Result::unwrap).collect();
    assert!(trace.wait().unwrap().success());
    let records: Vec<Value> = lines.iter().map(|line| serde_json::from_str(line).unwrap()).collect();
    for (record, path) in records.iter().zip(["/tmp/a", "/tmp/b"]) {
        assert_eq!(record["notification"]["decoded"][0]["content"]["text"], path);
        assert_eq!(record["verdict"], json!({ "errno": 30 }));
        assert_eq!(record["decided_by"], "answer");
    }
    assert_eq!(records.len(), 2);

    let file = pod.place.path("logs").join("recorded.json");
    std::fs::write(&file, lines.join("\n")).unwrap();
    let socket = pod.place.path("logs").join("replayed.sock");
    for (verdict, is_same) in [("errno:EROFS", true), ("errno:EACCES", false)] {
        let mut plugin = Plugin::start(&socket, &["--listen", "--syscall", "mkdir", "--verdict", verdict]);
        eventually(|| std::os::unix::net::UnixStream::connect(&socket).is_ok());
        let mut command = Command::new(binary());
        command.args(["seccomp", "replay", "--expect", "--plugin"]).arg(&socket).arg(&file);
        let replayed = command.output().expect("a replay");
        plugin.wait_registered();
        assert_eq!(replayed.status.success(), is_same, "{replayed:?}");
        let said: Vec<Value> =
            replayed.stdout.lines().map(|line| serde_json::from_str(&line.unwrap()).unwrap()).collect();
        assert_eq!(said.len(), 2);
        assert_eq!(said[0]["plugin"], "answer");
    }
}

#[test]
fn engine_and_people_see_sessions() {
    let pod = Pod::start();
    let _plugin = Plugin::of(
        &pod,
        &["--syscall", "mkdir", "--verdict", "errno:EROFS", "--delay", "600000", "--deadline", "120000"],
    );
    pod.run_notified("c", &["mkdir"], "mkdir /tmp/a");
    eventually(|| stats(&pod).open == 1);
    let mut command = Command::new(binary());
    command.args(["seccomp", "ls", "--output", "json", "--socket"]).arg(pod.socket());
    let listed: Value = serde_json::from_slice(&command.output().unwrap().stdout).unwrap();
    assert_eq!(listed["sessions"][0]["container"], pod.id("c"));
    assert_eq!(listed["plugins"][0]["name"], "answer");
    kill(
        pod.call(async |client| client.container_state(&pod.id("c")).await).unwrap().pid.expect("a pid"),
        "KILL",
    );
    pod.wait("c");
    eventually(|| pod.call(async |client| client.seccomp_sessions().await).unwrap().is_empty());
}

#[test]
fn others_than_root_cannot_be_plugins() {
    let pod = Pod::start();
    let socket = pod.run_dir().join("plugins.sock");
    let mode = |path: &Path| {
        std::os::unix::fs::PermissionsExt::mode(&std::fs::metadata(path).unwrap().permissions())
    };
    assert_eq!(mode(&socket) & 0o777, 0o600);
    // Even if somebody opens the way, the peer is asked who it is.
    std::fs::set_permissions(&socket, std::os::unix::fs::PermissionsExt::from_mode(0o666)).unwrap();
    for directory in [pod.run_dir(), pod.run_dir().parent().unwrap()] {
        std::fs::set_permissions(directory, std::os::unix::fs::PermissionsExt::from_mode(0o755)).unwrap();
    }
    let mut command = Command::new(which("setpriv"));
    command.args(["--reuid", "65534", "--clear-groups"]).arg(binary());
    command
        .args(["seccomp", "answer", "--syscall", "mkdir", "--verdict", "return:0", "--socket"])
        .arg(&socket);
    let refused = command.output().expect("setpriv of util-linux");
    assert!(!refused.status.success(), "{refused:?}");
    assert_eq!(pod.seccomp_plugins(), [""; 0]);
}
