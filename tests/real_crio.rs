//! podinit under the real CRI-O, unmodified: as the monitor of its pods, as its pinns, and as
//! the process of its pause image. crictl asks what the kubelet would ask. `make test-crio`
//! builds both; docs/crio.md has the versions and what else was seen.
#![allow(clippy::unwrap_used, clippy::expect_used, reason = "what fails here fails the test")]

mod common;
mod engine;

use std::fs;
use std::io::{BufRead, BufReader, Read, Write};
use std::os::unix::fs::MetadataExt;
use std::path::Path;
use std::process::Stdio;

use engine::{Crio, PidMode, finish_child};
use serde_json::json;

/// The runtime handlers whose monitor is podinit, each with another OCI runtime.
const HANDLERS: [&str; 2] = ["podinit", "podinit-runc"];

/// What a command of crictl's wrote to standard output.
fn stdout(output: &std::process::Output) -> String {
    String::from_utf8_lossy(&output.stdout).into_owned()
}

/// What it wrote to standard error. crictl tells there of a command's exit code.
fn said(output: &std::process::Output) -> String {
    String::from_utf8_lossy(&output.stderr).into_owned()
}

/// The whole life, with each OCI runtime, with the infra container and without.
#[test]
fn pod_lives_and_leaves_nothing() {
    let crio = Crio::start();
    for handler in HANDLERS {
        for pid_mode in [PidMode::Pod, PidMode::Container] {
            let pod = crio.pod(handler, pid_mode);
            assert_eq!(crio.keepers().len(), 1, "{handler}, {pid_mode:?}");
            let first = pod.run("echo out; echo err >&2; hostname; exit 42");
            assert_eq!(first.wait(), (42, "Error".to_owned()), "{handler}, {pid_mode:?}");
            let log = first.log();
            assert_eq!((&log.stdout[..], &log.stderr[..]), (&b"out\ninside\n"[..], &b"err\n"[..]));
            assert_eq!(crio.ask(&["logs", "--stream", "stdout", &first.id]), "out\ninside");
            let second = pod.run("exit 0");
            assert_eq!(second.wait(), (0, "Completed".to_owned()));
            let third = pod.run("exec sleep 600");
            let namespace =
                |pid: u32, kind: &str| fs::metadata(format!("/proc/{pid}/ns/{kind}")).unwrap().ino();
            for kind in ["net", "ipc", "uts"] {
                assert_ne!(namespace(third.pid(), kind), namespace(std::process::id(), kind), "{kind}");
            }
            if pid_mode == PidMode::Pod {
                let init = u32::try_from(pod.inspect()["info"]["pid"].as_u64().unwrap()).unwrap();
                assert_eq!(namespace(third.pid(), "pid"), namespace(init, "pid"));
                let command = fs::read_to_string(format!("/proc/{init}/cmdline")).unwrap();
                assert_eq!(command, "pause\0", "podinit's own program, whatever the image calls it");
            }
            crio.ask(&["stop", "--timeout", "0", &third.id]);
            // CRI-O sends SIGTERM all the same, which does nothing to the first process of a namespace.
            assert_eq!(third.wait().0, if pid_mode == PidMode::Pod { 143 } else { 137 });
            crio.ask(&["rm", &third.id]);
            pod.remove();
            assert!(crio.keepers().is_empty());
        }
    }
}

/// A second attempt of the same container, as the kubelet restarts one.
#[test]
fn container_that_ended_is_started_again() {
    let crio = Crio::start();
    let pod = crio.pod("podinit", PidMode::Container);
    for attempt in 0..3 {
        let again = pod.run_with(&format!("echo attempt {attempt}; exit {attempt}"), |config| {
            config["metadata"] = json!({ "name": "again", "attempt": attempt });
            config["log_path"] = json!(format!("again/{attempt}.log"));
        });
        assert_eq!(again.wait().0, attempt);
        assert_eq!(again.log().stdout, format!("attempt {attempt}\n").as_bytes());
        crio.ask(&["rm", &again.id]);
    }
    pod.remove();
}

#[test]
fn exec_answers_with_output_and_exit_code() {
    let crio = Crio::start();
    for handler in HANDLERS {
        let pod = crio.pod(handler, PidMode::Pod);
        let container = pod.run("exec sleep 600");
        // Probes.
        let sync = container.exec_sync("echo out; echo err >&2");
        assert!(sync.status.success(), "{handler}: {sync:?}");
        assert_eq!(stdout(&sync).split_whitespace().collect::<Vec<_>>(), ["out", "err"], "{handler}");
        let failed = container.exec_sync("echo err >&2; exit 3");
        assert!(said(&failed).contains("exited with 3: err"), "{handler}: {failed:?}");
        let late = crio.crictl(&["exec", "--sync", "--timeout", "1", &container.id, "sleep", "77"]);
        assert!(
            !late.status.success() && String::from_utf8_lossy(&late.stderr).contains("timed out"),
            "{late:?}"
        );
        let left = container.exec_sync("ps");
        assert!(left.status.success() && !stdout(&left).contains("sleep 77"), "{left:?}");
        let much = container.exec_sync("head -c 3000000 /dev/zero | tr '\\0' x");
        assert_eq!(much.stdout.iter().filter(|byte| **byte == b'x').count(), 3_000_000);

        // kubectl exec -i, and -it.
        let mut command =
            crio.command(&["exec", "-i", &container.id, "sh", "-c", "cat; echo end >&2; exit 5"]);
        command.stdin(Stdio::piped()).stdout(Stdio::piped()).stderr(Stdio::piped());
        let mut child = command.spawn().unwrap();
        child.stdin.take().unwrap().write_all(b"through\n").unwrap();
        let output = finish_child(child);
        assert_eq!(stdout(&output), "through\n");
        assert!(said(&output).contains("end\n") && said(&output).contains("exit code 5"), "{output:?}");
        pod.remove();
    }
}

/// A terminal of the client's own: crictl refuses -t without one.
fn in_terminal(command: &str) -> std::process::Command {
    let mut script = std::process::Command::new("script");
    script.args(["--quiet", "--return", "--flush", "--command", command, "/dev/null"]);
    script
}

#[test]
fn exec_and_attach_have_terminals() {
    let crio = Crio::start();
    let pod = crio.pod("podinit", PidMode::Pod);
    let container =
        pod.run_with("stty -echo; while read -r line; do echo \"got $line\"; done; exit 6", |config| {
            config["tty"] = json!(true);
            config["stdin"] = json!(true);
        });
    let run = |words: &[&str], typed: &[u8], until: &str| -> String {
        let crictl = crio.command(words);
        let words = [crictl.get_program()].into_iter().chain(crictl.get_args());
        let words: Vec<String> = words.map(|word| format!("'{}'", word.to_string_lossy())).collect();
        let line = format!("exec {}", words.join(" "));
        let mut command = in_terminal(&line);
        command.env("TERM", "dumb").stdin(Stdio::piped()).stdout(Stdio::piped()).stderr(Stdio::piped());
        let mut child = command.spawn().unwrap();
        let mut stdin = child.stdin.take().unwrap();
        let mut output = child.stdout.take().unwrap();
        stdin.write_all(typed).unwrap();
        let mut seen = Vec::new();
        let mut buffer = [0; 4096];
        while !String::from_utf8_lossy(&seen).contains(until) {
            let read = output.read(&mut buffer).unwrap();
            assert!(read > 0, "{until:?} is not in {:?}", String::from_utf8_lossy(&seen));
            seen.extend_from_slice(&buffer[..read]);
        }
        drop(stdin);
        common::kill(child.id(), "TERM");
        child.wait().unwrap();
        String::from_utf8_lossy(&seen).into_owned()
    };
    // It waits for more: CRI-O has lost the last output of a terminal whose command had ended.
    run(
        &[
            "exec",
            "-i",
            "-t",
            &container.id,
            "sh",
            "-c",
            "tty; read -r line; echo \"read $line\"; read -r last",
        ],
        b"typed\n",
        "read typed",
    );
    // The published client ends after the first packet of output, so the log tells of the rest.
    run(&["attach", "-i", "-t", &container.id], b"one\ntwo\n", "got one");
    crio.poll("both lines", || container.log().stdout.ends_with(b"got two\r\n").then_some(()));
    pod.remove();
}

#[test]
fn attach_brings_output_and_takes_input() {
    let crio = Crio::start();
    for handler in HANDLERS {
        let pod = crio.pod(handler, PidMode::Pod);
        let container = pod.run_with("cat; echo over >&2; exit 9", |config| {
            config["stdin"] = json!(true);
            config["stdin_once"] = json!(true);
        });
        let mut command = crio.command(&["attach", "-i", &container.id]);
        command.stdin(Stdio::piped()).stdout(Stdio::piped()).stderr(Stdio::piped());
        let mut child = command.spawn().unwrap();
        child.stdin.take().unwrap().write_all(b"input\n").unwrap();
        let output = finish_child(child);
        assert!(output.status.success(), "{handler}: {output:?}");
        assert_eq!(container.wait().0, 9, "{handler}");
        assert_eq!(container.log().stdout, b"input\n", "{handler}");
        pod.remove();
    }
}

/// The kubelet renames a log and asks for the next one.
#[test]
fn log_is_reopened_without_a_loss() {
    let crio = Crio::start();
    let pod = crio.pod("podinit", PidMode::Pod);
    let container = pod.run("n=0; while [ $n -lt 20000 ]; do echo line $n; n=$((n+1)); done; exec sleep 600");
    let mut kept = Vec::new();
    for round in 0..5 {
        let old = container.log.with_extension(format!("log.{round}"));
        fs::rename(&container.log, &old).unwrap();
        crio.ask(&["logs", "--reopen", &container.id]);
        assert!(container.log.exists(), "round {round}");
        kept.push(old);
    }
    let all = || -> Vec<u8> {
        let paths = kept.iter().chain([&container.log]);
        paths.flat_map(|path| common::Log::read(path).stdout).collect()
    };
    let expected: String = (0..20_000).map(|n| format!("line {n}\n")).collect();
    crio.poll("all lines", || (all().len() >= expected.len()).then_some(()));
    assert!(all() == expected.as_bytes());
    pod.remove();
}

#[test]
fn port_is_forwarded_into_the_pod() {
    let crio = Crio::start();
    let pod = crio.pod("podinit", PidMode::Container);
    let address = pod.inspect()["status"]["network"]["ip"].as_str().unwrap().to_owned();
    assert!(address.starts_with("10.213.0."), "{address}");
    let container = pod.run("exec /bin/busybox nc -ll -p 8080 -e cat");
    crio.poll("a port that listens", || {
        container.exec_sync("/bin/busybox nc -w 1 127.0.0.1 8080 </dev/null").status.success().then_some(())
    });
    // Straight through the bridge, too.
    let through = |mut connection: std::net::TcpStream| {
        connection.set_read_timeout(Some(common::DEADLINE)).unwrap();
        connection.write_all(b"there and back").unwrap();
        let mut answer = [0; 14];
        connection.read_exact(&mut answer).unwrap();
        assert_eq!(&answer, b"there and back");
    };
    through(std::net::TcpStream::connect((address.as_str(), 8080)).unwrap());

    let mut command = crio.command(&["port-forward", &pod.id, "18080:8080"]);
    let mut child = command.stdout(Stdio::piped()).stderr(Stdio::piped()).spawn().unwrap();
    through(crio.poll("the forwarded port", || std::net::TcpStream::connect(("127.0.0.1", 18080)).ok()));
    common::kill(child.id(), "TERM");
    child.wait().unwrap();
    pod.remove();
}

#[test]
fn stats_count_what_a_container_uses() {
    let crio = Crio::start();
    let pod = crio.pod("podinit", PidMode::Pod);
    let container = pod.run("n=0; while [ $n -lt 100000 ]; do n=$((n+1)); done; exec sleep 600");
    let used = crio.poll("time on a processor", || {
        let stats: serde_json::Value =
            serde_json::from_str(&crio.ask(&["stats", "--output", "json", "--id", &container.id])).unwrap();
        let cpu = stats["stats"][0]["cpu"]["usageCoreNanoSeconds"]["value"].as_str().map(str::to_owned);
        cpu.and_then(|cpu| cpu.parse::<u64>().ok()).filter(|cpu| *cpu > 0)
    });
    assert!(used > 0);
    let pods = crio.ask(&["statsp", "--output", "json", "--id", &pod.id]);
    assert!(pods.contains(&container.id), "{pods}");
    pod.remove();
}

#[test]
fn out_of_memory_is_the_reason() {
    let crio = Crio::start();
    for handler in HANDLERS {
        let pod = crio.pod(handler, PidMode::Pod);
        let limited = |script: &str| {
            pod.run_with(script, |config| {
                config["linux"]["resources"] = json!({ "memory_limit_in_bytes": 16 << 20 });
            })
        };
        let neighbour = limited("exec sleep 600");
        assert_eq!(limited("exec tail /dev/zero").wait(), (137, "OOMKilled".to_owned()), "{handler}");
        crio.ask(&["stop", "--timeout", "0", &neighbour.id]);
        assert_eq!(neighbour.wait(), (143, "Error".to_owned()), "{handler}");
        pod.remove();
    }
}

#[test]
fn stop_waits_for_the_container_and_then_kills_it() {
    let crio = Crio::start();
    let pod = crio.pod("podinit", PidMode::Container);
    let polite = pod.run("trap 'exit 11' TERM; while :; do sleep 0.1; done");
    let deaf = pod.run("trap '' TERM; while :; do sleep 0.1; done");
    crio.ask(&["stop", "--timeout", "30", &polite.id]);
    assert_eq!(polite.wait().0, 11);
    crio.ask(&["stop", "--timeout", "1", &deaf.id]);
    assert_eq!(deaf.wait().0, 137);
    pod.remove();
}

/// Ended in order, and killed: the monitor is found again, with its streams, and what ended
/// meanwhile has its exit code.
#[test]
fn containers_outlive_the_engine() {
    let crio = Crio::start();
    for ends in [Crio::halt, Crio::kill] {
        for pid_mode in [PidMode::Pod, PidMode::Container] {
            let pod = crio.pod("podinit", pid_mode);
            let keepers = crio.keepers();
            let living = pod
                .run("n=0; while [ ! -e /tmp/end ]; do echo line $n; n=$((n+1)); sleep 0.01; done; exit 21");
            let ending = pod.run("while [ ! -e /tmp/end ]; do sleep 0.01; done; exit 22");
            let (pid, root) = (living.pid(), format!("/proc/{}/root", ending.pid()));
            let ending_process = common::pidfd(ending.pid()).unwrap();
            ends(&crio);
            let before = living.log().stdout.len();
            fs::write(Path::new(&root).join("tmp/end"), "").unwrap();
            assert!(common::wait_readable(&ending_process), "{pid_mode:?}");
            crio.poll("more lines while CRI-O is away", || {
                (living.log().stdout.len() > before).then_some(())
            });
            crio.boot();

            assert_eq!(crio.keepers(), keepers, "{pid_mode:?}");
            assert_eq!(ending.wait().0, 22, "{pid_mode:?}");
            assert_eq!(living.pid(), pid);
            assert!(living.exec_sync("true").status.success());
            let old = living.log.with_extension("old");
            fs::rename(&living.log, old).unwrap();
            crio.ask(&["logs", "--reopen", &living.id]);
            assert!(living.exec_sync("touch /tmp/end").status.success());
            assert_eq!(living.wait().0, 21, "{pid_mode:?}");
            assert_eq!(pod.run("exit 23").wait().0, 23, "{pid_mode:?}");
            pod.remove();
        }
    }
}

/// The pod goes on, and CRI-O notices nothing but a connection that was cut.
#[test]
fn monitor_that_is_killed_is_replaced() {
    let crio = Crio::start();
    let pod = crio.pod("podinit", PidMode::Pod);
    let container = pod.run("while [ ! -e /tmp/end ]; do sleep 0.01; done; echo end; exit 31");
    let keepers = crio.keepers();
    let monitors = common::children_of(keepers[0]);
    let monitor = monitors.into_iter().find(|pid| {
        fs::read(format!("/proc/{pid}/cmdline")).unwrap().split(|byte| *byte == 0).nth(1) == Some(b"monitor")
    });
    common::kill(monitor.expect("a monitor"), "KILL");
    // The first request after it may find the old connection.
    crio.poll("an exec", || container.exec_sync("true").status.success().then_some(()));
    assert_eq!(crio.keepers(), keepers);
    assert!(container.exec_sync("touch /tmp/end").status.success());
    assert_eq!(container.wait().0, 31);
    assert_eq!(container.log().stdout, b"end\n");
    pod.remove();
}

/// The monitor's own server for streams, instead of CRI-O's.
#[test]
fn websockets_go_straight_to_the_monitor() {
    let crio = Crio::start();
    let pod = crio.pod("websockets", PidMode::Pod);
    let container = pod.run_with("while read -r line; do echo \"got $line\"; done", |config| {
        config["stdin"] = json!(true);
    });
    for transport in ["websocket", "spdy"] {
        let mut command =
            crio.command(&["exec", "-i", "--transport", transport, &container.id, "sh", "-c", "cat; exit 4"]);
        command.stdin(Stdio::piped()).stdout(Stdio::piped()).stderr(Stdio::piped());
        let mut child = command.spawn().unwrap();
        child.stdin.take().unwrap().write_all(b"through\n").unwrap();
        let output = finish_child(child);
        assert_eq!(stdout(&output), "through\n", "{transport}");
        assert!(said(&output).contains("exit code 4"), "{transport}: {output:?}");
    }
    pod.remove();
}

/// pinns with a user namespace, which CRI-O asks for by its mappings.
#[test]
fn pod_has_a_user_namespace() {
    let crio = Crio::start();
    let mapping = json!([{ "host_id": 200_000, "container_id": 0, "length": 65_536 }]);
    let pod = crio.pod_with("podinit", PidMode::Container, |config| {
        config["linux"]["security_context"]["namespace_options"]["userns_options"] =
            json!({ "mode": 0, "uids": mapping, "gids": mapping });
    });
    let container = pod.run("cat /proc/self/uid_map; exec sleep 600");
    let log = crio.poll("a line", || Some(container.log().stdout).filter(|log| log.ends_with(b"\n")));
    let fields = String::from_utf8(log).unwrap();
    assert_eq!(fields.split_whitespace().collect::<Vec<_>>(), ["0", "200000", "65536"]);
    assert_eq!(fs::metadata(format!("/proc/{}", container.pid())).unwrap().uid(), 200_000);
    pod.remove();
}

/// A profile of the node's that names the monitor's socket, as the kubelet's `Localhost` does:
/// CRI-O hands it on, and a plugin decides, in the container and in what is executed in it.
#[test]
fn profile_that_names_the_monitors_socket_is_decided_there() {
    let crio = Crio::start();
    for handler in HANDLERS {
        let pod = crio.pod(handler, PidMode::Container);
        let [keeper] = crio.keepers()[..] else { panic!("one pod") };
        let command = fs::read_to_string(format!("/proc/{keeper}/cmdline")).unwrap();
        let run_dir = command.split('\0').skip_while(|word| *word != "--run-dir").nth(1).unwrap();
        let run_dir = Path::new(run_dir);
        let mut plugin = std::process::Command::new(common::binary());
        plugin.args(["seccomp", "answer", "--syscall", "mkdir", "--syscall", "mkdirat"]);
        plugin.args(["--verdict", "errno:EXDEV", "--socket"]).arg(run_dir.join("plugins.sock"));
        let mut plugin = plugin.stdout(Stdio::piped()).spawn().unwrap();
        let mut line = String::new();
        BufReader::new(plugin.stdout.take().unwrap()).read_line(&mut line).unwrap();
        assert_eq!(line, "registered\n");
        let profile = crio.place.path("profile.json");
        let text = common::profile(&run_dir.join("seccomp.sock"), &["mkdir", "mkdirat"]).to_string();
        fs::write(&profile, text).unwrap();
        let container = pod.run_with("mkdir /tmp/d; echo $?; exec sleep 600", |config| {
            let localhost = json!({ "profile_type": 2, "localhost_ref": profile });
            config["linux"]["security_context"]["seccomp"] = localhost;
        });
        let log = crio.poll("a line", || Some(container.log()).filter(|log| log.stdout.ends_with(b"\n")));
        assert_eq!(log.stdout, b"1\n", "{handler}");
        assert!(String::from_utf8_lossy(&log.stderr).contains("Invalid cross-device link"), "{handler}");
        let executed = container.exec_sync("mkdir /tmp/d 2>&1 || true");
        assert!(stdout(&executed).contains("Invalid cross-device link"), "{handler}: {executed:?}");
        pod.remove();
        assert!(plugin.wait().unwrap().success(), "a plugin ends with its pod");
    }
}

/// With the node's network, as static pods of a control plane have it.
#[test]
fn pod_shares_the_nodes_network() {
    let crio = Crio::start();
    let pod = crio.pod_with("podinit", PidMode::Container, |config| {
        config["linux"]["security_context"]["namespace_options"]["network"] = json!(2);
    });
    let container = pod.run("exec sleep 600");
    let ours = fs::read_link("/proc/thread-self/ns/net").unwrap();
    assert_eq!(fs::read_link(format!("/proc/{}/ns/net", container.pid())).unwrap(), ours);
    pod.remove();
}

/// One conmon per container, as CRI-O does by default, and podinit as pinns and pause.
#[test]
fn pins_serve_a_pod_of_conmons_too() {
    let crio = Crio::start_with(|config| {
        config.replace("default_runtime = \"podinit\"", "default_runtime = \"conmon\"")
    });
    for pid_mode in [PidMode::Pod, PidMode::Container] {
        let pod = crio.pod("conmon", pid_mode);
        let container = pod.run("echo out; exit 42");
        assert_eq!(container.wait().0, 42, "{pid_mode:?}");
        assert_eq!(container.log().stdout, b"out\n");
        assert!(crio.keepers().is_empty(), "{pid_mode:?}");
        let living = pod.run("exec sleep 600");
        assert_eq!(stdout(&living.exec_sync("echo in")).trim_end(), "in");
        pod.remove();
    }
}
