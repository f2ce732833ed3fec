//! Every limit of podinit, in one place, each with its reason.
#![forbid(unsafe_code)]

use std::time::Duration;

/// Longest container id or pod id in bytes. Ids become file names, and engines
/// use 64 hexadecimal digits.
pub const ID_BYTES_MAX: usize = 128;

/// Bytes kept of each stream of an exec: what the CRI allows for ExecSync.
pub const EXEC_OUTPUT_BYTES_MAX: usize = 16 << 20;

/// Bytes kept of what an OCI runtime says on its stderr; it becomes an error text.
pub const RUNTIME_STDERR_BYTES_MAX: usize = 16 << 10;

/// Payload bytes of one log record; a longer line is cut into partial records.
pub const LOG_RECORD_BYTES_MAX: usize = 16 << 10;

/// How long `create` of an OCI runtime may take, unless configured: CRI-O's own
/// default for its other monitor.
pub const CREATE_TIMEOUT: Duration = Duration::from_secs(240);

/// How long a stream may stay open after its process has exited, when some
/// other process still holds it. What is in the pipe by then is kept.
pub const DRAIN_GRACE: Duration = Duration::from_millis(500);

/// Client connections served at a time. An unbounded number would be an unbounded
/// heap. One more waits for [`CONNECTION_WAIT_MAX`], and is then refused.
pub const CONNECTIONS_MAX: usize = 64;

/// Connections that wait until one of [`CONNECTIONS_MAX`] has ended, or until
/// the next monitor serves; beyond this, connecting blocks.
pub const BACKLOG_MAX: i32 = 1024;

/// Events kept for replay.
pub const EVENTS_KEPT_MAX: usize = 1024;

/// File descriptors that the keeper holds for the monitor.
pub const KEPT_FDS_MAX: usize = 1024;

/// Longest name of a kept descriptor, in bytes: an id and what the descriptor is for.
pub const KEPT_NAME_BYTES_MAX: usize = 192;
const _: () = assert!(KEPT_NAME_BYTES_MAX >= ID_BYTES_MAX + 64);

/// Exit statuses that the keeper remembers until a monitor has seen them.
pub const KEPT_EXITS_MAX: usize = 1024;

/// How long a monitor may take from its start until it serves. It has the state
/// files of a pod's containers to read; beyond this it hangs, and is replaced.
pub const START_TIMEOUT: Duration = Duration::from_secs(30);

/// How long a monitor may take to end the pod in order before it is killed with
/// all that is below it. Engines wait 10 s for the pod's server to be gone.
pub const STOP_TIMEOUT: Duration = Duration::from_secs(8);

/// How long the end of a pod by a signal waits for creates that it has interrupted. A hook
/// of one has [`HOOKS_PARTING_MAX`]; to take what there is out of the OCI runtime's books
/// takes some 50 ms, and a runtime that hangs shall not take the time of the rest.
pub const CREATE_PARTING_MAX: Duration = HOOKS_PARTING_MAX.saturating_add(Duration::from_millis(500));

/// How long the end of a pod waits for cleanup commands: they tell somebody of an exit,
/// and [`STOP_TIMEOUT`] is for all of the end.
pub const CLEANUP_PARTING_MAX: Duration = Duration::from_secs(3);

/// Pauses between two attempts to write an exit file that could not be written: short at
/// first, since an engine waits for it, then doubling up to the greatest, for which a
/// person waits who has made room.
pub const EXIT_FILE_RETRY_MIN: Duration = Duration::from_millis(50);
/// See [`EXIT_FILE_RETRY_MIN`].
pub const EXIT_FILE_RETRY_MAX: Duration = Duration::from_secs(2);

/// Longest pause before a monitor that keeps dying is started again: a crash
/// loop shall cost the node nothing, and the pod's logs shall not stand still
/// for longer than a person looks at them.
pub const RESTART_PAUSE_MAX: Duration = Duration::from_secs(5);

/// Pause before the second restart in a row (the first has none); doubled each time.
pub const RESTART_PAUSE_FIRST: Duration = Duration::from_millis(100);

/// A monitor that has served for this long did not die of how it was started:
/// the next restart is the first in a row again.
pub const RESTART_CALM: Duration = Duration::from_secs(10);

/// Restarts in a row after which a keeper that holds nothing gives up.
pub const RESTARTS_IN_A_ROW_MAX: u32 = 10;

/// How often processes that are being killed are looked for again: one that
/// was made with `CLONE_PARENT` becomes the keeper's child without a signal.
pub const KILL_AGAIN: Duration = Duration::from_millis(100);
/// Id mappings of each of users and groups: what the kernel takes (user_namespaces(7)).
pub const ID_MAPPINGS_MAX: usize = 340;

/// Sysctls of a pod. Engines set a dozen; more is a mistake.
pub const SYSCTLS_MAX: usize = 256;

/// Bytes of a sysctl's value: the kernel takes one write of at most a page.
pub const SYSCTL_VALUE_BYTES_MAX: usize = 4095;

/// Bytes of a host name or domain name: what the kernel keeps (uname(2)).
pub const HOSTNAME_BYTES_MAX: usize = 64;

/// Bytes of a pin's file name: what file systems take. (A pod id is shorter.)
pub const PIN_NAME_BYTES_MAX: usize = 255;

/// Mounts stacked on one pin that a removal takes away before it gives up.
pub const PIN_STACK_MAX: usize = 64;
/// Words (8 bytes) that a client reads of one answer: both streams of an exec
/// and 1 MiB of everything else.
pub const ANSWER_WORDS_MAX: usize = (2 * EXEC_OUTPUT_BYTES_MAX + (1 << 20)) / 8;

/// Pointers that a client follows into one answer. The deepest path of the
/// schema, with the RPC protocol's own envelope, is below 16.
pub const ANSWER_NESTING_MAX: i32 = 32;
/// Records that a log driver gets at once: enough for a read buffer of 100-byte
/// lines, and a bound on what a sink keeps when it fails.
pub const LOG_BATCH_RECORDS_MAX: usize = 3072;

/// Rotated files that may be kept of one log. Every rotation renames all of them,
/// and readers look at [`LOG_READ_FILES_MAX`].
pub const LOG_BACKUPS_MAX: u16 = 60;
const _: () = assert!((LOG_BACKUPS_MAX as usize) < LOG_READ_FILES_MAX);

/// Pauses between two attempts to write a log that cannot be written: short at
/// first, since most causes are short (a full FIFO), then doubling up to the
/// greatest, at which a full disk costs no measurable work.
pub const LOG_RETRY_MIN: Duration = Duration::from_millis(10);
/// See [`LOG_RETRY_MIN`].
pub const LOG_RETRY_MAX: Duration = Duration::from_millis(500);

/// How long a journal that takes nothing may hold a container back before its
/// entries are dropped.
pub const JOURNAL_STALL_MAX: Duration = Duration::from_secs(1);

/// Bytes of the reason in a gap record: a sentence.
pub const LOG_GAP_REASON_BYTES_MAX: usize = 200;

/// Bytes read from a container at a time, into a buffer that all streams share.
pub const RELAY_READ_BYTES: usize = 256 << 10;

/// How long the relay is quiet before its buffers give their pages back: longer
/// than the pauses within a burst, so that a burst pays for its pages once.
pub const RELAY_REST: Duration = Duration::from_secs(1);

/// How long a write to a log may take before another thread attends to the other
/// containers: longer than a write to a file system that works takes, shorter than
/// what anybody notices.
pub const RELAY_TAKEOVER: Duration = Duration::from_millis(10);

/// Threads of one relay: one leads, and one is stuck for each log that is. Pods
/// have fewer containers than that.
pub const RELAY_THREADS_MAX: usize = 64;

/// Bytes kept of a container's output while its log cannot be written and the
/// container shall not wait, unless configured: some ten thousand lines.
pub const LOG_BUFFER_BYTES: usize = 1 << 20;

/// The most that can be configured: no container shall take the node's memory.
pub const LOG_BUFFER_BYTES_MAX: usize = 64 << 20;

/// A container whose output is held back because of its rate is read when so much
/// may come as in this time: often enough to look steady, seldom enough to cost
/// nothing.
pub const LOG_RATE_STEP: Duration = Duration::from_millis(50);

/// The least time between two events that tell of missing output of one container.
pub const LOG_NOTICE_PAUSE: Duration = Duration::from_secs(10);

/// How long the end of a container waits for a write to its log that the kernel
/// has not finished: longer than a slow disk takes, shorter than [`DRAIN_MAX`].
pub const LOG_END_MAX: Duration = Duration::from_secs(5);
const _: () = assert!(LOG_END_MAX.as_secs() < DRAIN_MAX.as_secs());

/// What a container's output pipe is enlarged to: it sleeps less often, and so
/// does the relay. Of five sizes this one gained most (docs/logs.md).
pub const RELAY_PIPE_BYTES: usize = 512 << 10;

/// Attach sockets of one container: engines use one path per container.
pub const ATTACH_SOCKETS_MAX: usize = 8;

/// Attached clients of one container.
pub const ATTACH_CLIENTS_MAX: usize = 64;

/// Bytes that wait for one attached client before its container is held back.
pub const ATTACH_QUEUE_BYTES_MAX: usize = 1 << 20;

/// Bytes of earlier output that an attached client may ask for: what may wait for
/// it anyway.
pub const ATTACH_REPLAY_BYTES_MAX: usize = ATTACH_QUEUE_BYTES_MAX;

/// How long a client waits for earlier output: until its log can be written, and
/// read.
pub const ATTACH_REPLAY_TIMEOUT: Duration = Duration::from_secs(2);

/// How long a container is held back for an attached client that takes nothing.
pub const ATTACH_STALL_MAX: Duration = Duration::from_millis(250);

/// How long a container is held back for one that takes something, but does not
/// catch up.
pub const ATTACH_LAG_MAX: Duration = Duration::from_secs(10);

/// How long a client may take nothing of what waits for it after the container's
/// output has ended.
pub const ATTACH_PARTING_MAX: Duration = Duration::from_secs(5);
/// Entries of a request's metadata that are looked at: trace context has two.
pub const TRACE_ENTRIES_MAX: usize = 16;

/// Bytes of `tracestate` that are passed on: what W3C's Trace Context asks for at least.
pub const TRACE_STATE_BYTES_MAX: usize = 512;

/// How long the last spans may take to reach their collector when the pod ends. Engines
/// wait for the end.
#[cfg(feature = "tracing-otlp")]
pub const TRACE_FLUSH_MAX: Duration = Duration::from_secs(2);

/// How long an OCI runtime may take for anything but `create`.
pub const RUNTIME_CALL_TIMEOUT: Duration = Duration::from_secs(60);

/// How long a terminal may be on its way after the runtime that sent it has exited.
pub const CONSOLE_TIMEOUT: Duration = Duration::from_secs(5);

/// How long a process may take to go after SIGKILL before we say so.
pub const KILL_TIMEOUT: Duration = Duration::from_secs(10);

/// How long the cgroup of an exec may take to be empty after SIGKILL, or to be removed.
pub const LEAF_TIMEOUT: Duration = Duration::from_secs(2);

/// How often it is looked at meanwhile: processes that were killed take about as long.
pub const LEAF_LOOK_AGAIN: Duration = Duration::from_millis(2);

/// How often the OOM counters of a pod's containers are read anew because one of them changed meanwhile.
pub const OOM_READS_MAX: usize = 8;

/// Rounds of moving an exec's descendants after it: each finds what was started during the one before.
pub const LEAF_MOVES_MAX: usize = 8;

/// How long reading a stream to its end may take in all, log writes included,
/// before an exit is recorded as "log not complete".
pub const DRAIN_MAX: Duration = Duration::from_secs(10);

/// Containers that have exited and are still remembered; engines delete them
/// through the OCI runtime, behind our back.
pub const EXITED_KEPT_MAX: usize = 256;

/// Connections to the socket for descriptors that are served at a time. Engines
/// use one, for one create.
pub const FD_CONNECTIONS_MAX: usize = 16;

/// Descriptors in one message: what the kernel takes (`SCM_MAX_FD`, unix(7)).
pub const FDS_PER_MESSAGE_MAX: usize = 253;

/// Descriptors that wait for the create that will use them: four full messages.
pub const FD_SLOTS_MAX: usize = 4 * FDS_PER_MESSAGE_MAX;

/// Pause after a connection could not be accepted, for want of descriptors most
/// likely: the condition stays readable, and a loop would be all that runs.
pub const ACCEPT_PAUSE: Duration = Duration::from_millis(50);

/// Connections that were accepted and have not said a word; beyond it the oldest
/// is closed.
pub const SILENT_CONNECTIONS_MAX: usize = 256;

/// Statuses of children that nobody has asked for, kept while a create or an exec may
/// still ask. Each has one process to ask for; the others are orphans.
pub const UNKNOWN_EXITS_MAX: usize = 4096;

/// How often the run directory and the hook files are looked at where the kernel
/// cannot tell of changes. One look is a stat and a listing; a pod that everybody has
/// forgotten may last this much longer.
pub const WATCH_FALLBACK_PERIOD: Duration = Duration::from_secs(10);

/// How long a connection may wait for another to end, once there are
/// [`CONNECTIONS_MAX`]. A burst of short calls is over by then; a client that would wait
/// longer is told so instead.
pub const CONNECTION_WAIT_MAX: Duration = Duration::from_secs(5);

/// How long the keeper may take to tell how its child ended.
pub const KEEPER_WORD_TIMEOUT: Duration = Duration::from_secs(5);

/// How long a pod's init may take to end its namespace in order; all containers
/// have been stopped by then.
pub const INIT_GRACE: Duration = Duration::from_secs(5);

/// The longest record that a log reader takes; other monitors write longer ones
/// than we do. What is longer is not a log, and would be an unbounded heap.
pub const LOG_READ_RECORD_BYTES_MAX: usize = 1 << 20;

/// Rotated files of one log that a reader looks at: kubelet keeps 5 of a container.
pub const LOG_READ_FILES_MAX: usize = 64;

/// How often a log's files are listed anew because they were renamed meanwhile:
/// each rotation takes longer to fill its file than a listing takes.
pub const LOG_LISTING_ATTEMPTS_MAX: u32 = 16;

/// Bytes of one datagram of a netlink answer: the kernel fills at most 32 KiB.
pub const NETLINK_ANSWER_BYTES_MAX: usize = 64 << 10;

/// How often a list is asked for that changes while the kernel answers.
pub const NETLINK_ATTEMPTS_MAX: u32 = 8;

/// Directories within directories of a run directory that are looked into for sockets; podinit makes three.
pub const RUN_DIR_DEPTH_MAX: usize = 8;

/// How long the end of a pod's init may take after SIGKILL: it waits for every
/// process of its namespace, one of which may be stuck in a dead file system.
pub const INIT_END_TIMEOUT: Duration = Duration::from_secs(10);

/// How long a pod's server may take until it is ready, as people wait for it. It
/// opens a socket and starts two processes, but the machine may be busy.
pub const LAUNCH_TIMEOUT: Duration = Duration::from_secs(30);

/// How long a command that asks every pod waits for one of them.
pub const LISTING_TIMEOUT: Duration = Duration::from_secs(5);

/// What a pod's server may take, beyond the containers' grace time, to end.
pub const SHUTDOWN_PATIENCE: Duration = Duration::from_secs(30);

/// What `run` gives a container between SIGTERM and SIGKILL when nobody reads
/// its output any more.
pub const STOP_GRACE: Duration = Duration::from_secs(10);

/// How long `run` waits for the rest of a terminal's output once its process is
/// gone. The server sends it at once.
pub const OUTPUT_PATIENCE: Duration = Duration::from_secs(5);

/// Bytes that `run` and `logs` read and write at a time: a pipe's capacity.
pub const PRINT_BUFFER_BYTES: usize = 64 << 10;

/// Bytes of a config.json that is read here. Engines write tens of KiB.
pub const CONFIG_BYTES_MAX: u64 = 4 << 20;

/// Streaming URLs that nobody has used yet; beyond it the oldest is forgotten.
pub const STREAM_TOKENS_MAX: usize = 64;

/// How long a streaming URL can be used. The kubelet does it at once.
pub const STREAM_TOKEN_TIMEOUT: Duration = Duration::from_secs(60);

/// Streaming sessions at a time: each is a command, or a person who watches.
pub const STREAM_SESSIONS_MAX: usize = 64;

/// Connections to the streaming port that have shown no token yet; any process of
/// the node can make them, so beyond it the oldest is closed.
pub const STREAM_STRANGERS_MAX: usize = 32;

/// How long a stranger may take to show its token.
pub const STREAM_HEAD_TIMEOUT: Duration = Duration::from_secs(10);

/// Bytes of the head of an HTTP request, and fields in it. Go's clients send a
/// few hundred bytes; proxies add to that.
pub const STREAM_HEAD_BYTES_MAX: usize = 16 << 10;
/// See [`STREAM_HEAD_BYTES_MAX`].
pub const STREAM_HEAD_FIELDS_MAX: usize = 64;

/// Payload bytes of one TLS record (RFC 8446, section 5.1).
pub const TLS_RECORD_BYTES_MAX: usize = 16 << 10;

/// Bytes that a streaming session reads at a time, in each direction.
pub const STREAM_CHUNK_BYTES: usize = 32 << 10;
const _: () = assert!(STREAM_CHUNK_BYTES >= STREAM_HEAD_BYTES_MAX);

/// Input that waits for a command, or for a server in a pod, before its client is
/// not read any more.
pub const STREAM_INPUT_BYTES_MAX: usize = 64 << 10;

/// Answers (pongs, stream replies) that wait for a client. One that asks for more
/// without reading any is disconnected.
pub const STREAM_CONTROL_BYTES_MAX: usize = 64 << 10;

/// How long a SPDY client may take to open the streams that it asked for: what
/// the kubelet's own server gives.
pub const STREAM_OPEN_TIMEOUT: Duration = Duration::from_secs(30);

/// How long a session may be silent in both directions: the kubelet's default.
pub const STREAM_IDLE_MAX: Duration = Duration::from_secs(4 * 3600);

/// How long a client may take to read its last words and close the connection.
pub const STREAM_LINGER_MAX: Duration = Duration::from_secs(10);

/// How often a client whose input waits is told that we are alive, and how soon we
/// notice that it is not. client-go gives up after 61 s without an answer to its
/// pings, which wait behind the input.
pub const STREAM_HEARTBEAT: Duration = Duration::from_secs(5);

/// Bytes of a SPDY control frame, and of the headers in it, decompressed. A
/// stream's headers are about a hundred bytes.
pub const SPDY_CONTROL_BYTES_MAX: usize = 8 << 10;
/// See [`SPDY_CONTROL_BYTES_MAX`].
pub const SPDY_HEADER_BYTES_MAX: usize = 8 << 10;
const _: () = assert!(STREAM_CHUNK_BYTES >= SPDY_CONTROL_BYTES_MAX + 8);

/// Connections forwarded at a time for one client of a port-forward.
pub const FORWARDS_MAX: usize = 64;

/// How long a server in a pod may take to accept a forwarded connection.
pub const FORWARD_DIAL_TIMEOUT: Duration = Duration::from_secs(10);

/// Addresses of a pod that are tried for a forwarded connection.
pub const FORWARD_ADDRESSES_MAX: usize = 16;

/// Bytes of a hook's regular expression once it is compiled: a small one
/// (`(abcdefgh){1000}`) can become a large one.
pub const HOOK_PATTERN_BYTES_MAX: usize = 1 << 20;

/// Regular expressions in one hook file; those in use have a handful.
pub const HOOK_PATTERNS_MAX: usize = 64;

/// Bytes of a hook file; those in use are below 1 KiB.
pub const HOOK_FILE_BYTES_MAX: u64 = 64 << 10;

/// Hook files in all directories; a node has a dozen.
pub const HOOK_FILES_MAX: usize = 512;

/// How often a hooks directory is looked for again that appears while the way to
/// it is being watched. Somebody who makes and removes it all the time shall not
/// hold up the rest.
pub const HOOK_WATCH_ATTEMPTS_MAX: usize = 8;

/// Attempts that a hook may ask for. With [`HOOK_RETRY_PAUSE_MAX`] it bounds how
/// long a stage may go on about one hook.
pub const HOOK_ATTEMPTS_MAX: u32 = 10;

/// Longest pause between two attempts that a hook may ask for.
pub const HOOK_RETRY_PAUSE_MAX: Duration = Duration::from_secs(60);
/// Items in one list of a seccomp selector, rule or verdict. There are some 450
/// system calls; more containers than this are better told by a label.
pub const SECCOMP_SELECTOR_ITEMS_MAX: usize = 512;

/// Argument comparisons of one selector. A call has six arguments.
pub const SECCOMP_SELECTOR_COMPARISONS_MAX: usize = 16;

/// The longest that a plugin may take for one verdict: a call that waits longer
/// looks like a hang to whoever made it.
pub const SECCOMP_DEADLINE_MAX: Duration = Duration::from_secs(300);

/// Calls that a plugin is asked about at a time, unless it says otherwise.
pub const SECCOMP_IN_FLIGHT_DEFAULT: usize = 256;

/// Bytes of a target's memory that are read or written at once: as much as a
/// write(2) of a pipe's greatest size.
pub const SECCOMP_MEMORY_BYTES_MAX: usize = 1 << 20;

/// Bytes of a text that is read from a target up to its zero: 16 paths
/// (`PATH_MAX`, limits.h).
pub const SECCOMP_STRING_BYTES_MAX: usize = 64 << 10;

/// Bytes of a target's `/proc/<tid>/status` and `cgroup` that are read: the
/// kernel writes 2 KiB, and 64 Ki groups at most.
pub const SECCOMP_STATUS_BYTES_MAX: u64 = 1 << 20;

/// Bytes of the state that an OCI runtime sends with a listener. It holds all
/// annotations, and engines put tens of KiB there.
pub const SECCOMP_STATE_BYTES_MAX: usize = 1 << 20;

/// How long a runtime may take to send it. It does so at once, and a container
/// waits.
pub const SECCOMP_STATE_TIMEOUT: Duration = Duration::from_secs(10);

/// Runtimes that are received from at a time; more wait in the socket's backlog.
pub const SECCOMP_ARRIVALS_MAX: usize = 64;

/// Listeners of one pod: one for each container and for each exec that runs. A
/// container gets another one only while it has fewer than are left.
pub const SECCOMP_SESSIONS_MAX: usize = 4096;

/// Bytes of all their descriptions together. Each exec brings its container's
/// annotations again. A container gets no more of them than it leaves.
pub const SECCOMP_SESSIONS_BYTES_MAX: usize = 32 << 20;

/// Calls of one container, over all its listeners, that wait for a verdict. Beyond it
/// the kernel keeps them, until one of ours is answered: most end at a deadline, but a
/// call whose target does not run to take a descriptor waits as long as that, and one
/// that waits for the first plugin as long as the rules say.
pub const SECCOMP_CONTAINER_CALLS_MAX: usize = 1024;
/// The same of all containers of a pod. A container gets another one only while it has
/// fewer than are left, but one in any case: so there can be one more for each container.
pub const SECCOMP_CALLS_MAX: usize = 8192;

/// How long seccomp's thread stays with listeners that call again and again before
/// everything else on it has its turn; who calls less often than that is waited for
/// by the event loop. Shorter costs more turns, longer delays what else there is.
pub const SECCOMP_LINGER: Duration = Duration::from_millis(1);
/// Listeners that it stays with at a time: poll(2) looks at each of them for every call.
pub const SECCOMP_LINGER_LISTENERS_MAX: usize = 8;

/// How long broker and plugin stay awake for each other's next message: longer than
/// either takes for one even in a virtual machine (some 40 µs each).
pub const SECCOMP_AWAKE: Duration = Duration::from_micros(100);
/// They do so if the last one came as soon as this: a plugin that takes longer, or is
/// asked less often, is slept for.
pub const SECCOMP_SOON: Duration = Duration::from_micros(200);

/// How often, while there are as many, those are looked for that nobody waits for
/// any more: the kernel does not tell of an interruption.
pub const SECCOMP_SWEEP_PERIOD: Duration = Duration::from_millis(100);
/// How long they are looked for at a time, and how long everything else then has its
/// turn: the kernel takes up to 10 µs for one of 1024 calls of a listener.
pub const SECCOMP_SWEEP_TURN: Duration = Duration::from_millis(1);
/// See [`SECCOMP_SWEEP_TURN`].
pub const SECCOMP_SWEEP_PAUSE: Duration = Duration::from_millis(4);

/// How often calls that wait are looked through for those whose thread does not wait
/// any more. Until then they count as open for their plugin.
pub const SECCOMP_CHECK_PERIOD: Duration = Duration::from_secs(1);

/// Registrations of plugins in one pod. Every call that nobody before wanted is
/// compared with all of them.
pub const SECCOMP_REGISTRATIONS_MAX: usize = 128;

/// Observations that wait for one observer; one that is slower loses the rest,
/// and is told how many.
pub const SECCOMP_TAP_QUEUE_MAX: usize = 1024;

/// Observers of one pod.
pub const SECCOMP_TAPS_MAX: usize = 32;

/// Changes of sessions that wait for one subscriber; one that is slower is told
/// to look at all of them again.
pub const SECCOMP_CHANGES_QUEUE_MAX: usize = 1024;

/// Threads for what a target can make slow: reading its memory, connecting in its
/// name. A thread is there while it is needed, and one second longer.
pub const SECCOMP_WORKERS_MAX: usize = 256;
/// How many of them one container can have at a time: it can make all of them wait
/// for as long as it likes.
pub const SECCOMP_CONTAINER_WORKERS_MAX: usize = 32;
/// See [`SECCOMP_WORKERS_MAX`].
pub const SECCOMP_WORKER_REST: Duration = Duration::from_secs(1);
/// Stack of such a thread: it makes one system call.
pub const SECCOMP_WORKER_STACK_BYTES: usize = 64 << 10;

/// Descriptors of one container's targets, or of one plugin, that wait to be closed,
/// which its file systems can hold up. Who has as many gets no more; and no plugin is
/// asked about a call of the container, since it may give a descriptor.
pub const SECCOMP_CLOSES_MAX: usize = 256;
/// How long there is patience until fewer wait. A close(2) takes some µs unless its file
/// system holds it up.
pub const SECCOMP_CLOSES_PATIENCE: Duration = Duration::from_secs(1);

/// Failures in a row at one container's calls after which a plugin is not asked about them
/// for a while; and how long. One call then tries again.
pub const SECCOMP_FAILURES_IN_A_ROW_MAX: u32 = 5;
/// See [`SECCOMP_FAILURES_IN_A_ROW_MAX`].
pub const SECCOMP_SUSPENSION: Duration = Duration::from_secs(1);

/// How often the log is told of a plugin's failures at calls of one container; the
/// statistics count all. The log is lossy, and a container can make any number fail.
pub const SECCOMP_FAILURE_LOG_PERIOD: Duration = Duration::from_secs(10);

/// Different system calls that are counted by name for one container or plugin;
/// more are counted together. There are some 450.
pub const SECCOMP_COUNTED_CALLS_MAX: usize = 512;

/// Bytes of one rules file, rules in it, and rules files of a directory. All are
/// read again at each change.
pub const SECCOMP_RULES_BYTES_MAX: u64 = 1 << 20;
/// See [`SECCOMP_RULES_BYTES_MAX`].
pub const SECCOMP_RULES_MAX: usize = 128;
/// See [`SECCOMP_RULES_BYTES_MAX`].
pub const SECCOMP_RULES_FILES_MAX: usize = 64;

/// How long a directory of rules is quiet before it is read again: an editor
/// writes several times for one change.
pub const SECCOMP_RULES_SETTLE: Duration = Duration::from_millis(50);

/// How often rules are looked at that cannot be read, or whose changes the kernel does
/// not tell (a user has 128 inotify instances by default): soon enough for whoever has just
/// mended them.
pub const SECCOMP_RULES_RETRY: Duration = Duration::from_secs(2);

/// How long after the last forbidden call a container is ended: what CRI-O gives.
pub const SECCOMP_STOP_DELAY: Duration = Duration::from_secs(5);

/// How long a connection that is made in a target's name may take, unless its
/// rule says otherwise: what Linux needs to give up by itself (tcp_syn_retries).
pub const SECCOMP_CONNECT_TIMEOUT: Duration = Duration::from_secs(135);
const _: () = assert!(SECCOMP_CONNECT_TIMEOUT.as_secs() <= SECCOMP_DEADLINE_MAX.as_secs());

/// How long a hook may take whose file does not say. Without a default a hook
/// that hangs would hang its container's creation for ever.
pub const HOOK_TIMEOUT: Duration = Duration::from_secs(30);

/// What a hook's file may ask for at most: kubelet gives a whole container
/// creation about as much.
pub const HOOK_TIMEOUT_MAX: Duration = Duration::from_secs(600);

/// What a hook gets between SIGTERM and SIGKILL when its time is over. It has had
/// its time; this is for removing a lock, not for finishing.
pub const HOOK_TERM_GRACE: Duration = Duration::from_millis(100);

/// What all hooks together get when the pod is ended by a signal: the keeper waits
/// for [`STOP_TIMEOUT`], of which PID 1 may take [`INIT_GRACE`].
pub const HOOKS_PARTING_MAX: Duration = Duration::from_secs(2);

/// Bytes kept of each stream of a hook: its last words. They are in its result and
/// in a log.
pub const HOOK_OUTPUT_BYTES_MAX: usize = 64 << 10;

/// Results of hooks that are kept.
pub const HOOK_RESULTS_KEPT_MAX: usize = 256;

/// Bytes of output in them, all together.
pub const HOOK_RESULTS_BYTES_MAX: usize = 2 << 20;

/// Resident hooks of a pod: each is a plugin that waits.
pub const RESIDENT_HOOKS_MAX: usize = 64;

/// Bytes of the text with which a resident hook may explain its failure.
pub const HOOK_REASON_BYTES_MAX: usize = 4 << 10;
/// Words (8 bytes) of one message between a plugin and the monitor, either way:
/// the greatest has a registration's lists, or [`PLUGIN_GATHERED_BYTES_MAX`].
pub const PLUGIN_MESSAGE_WORDS_MAX: usize = (2 << 20) / 8;

/// Bytes of memory, names and descriptions that are gathered in one message to a
/// plugin: half of what it takes, for what the wire adds to them.
pub const PLUGIN_GATHERED_BYTES_MAX: usize = 1 << 20;
// One notification always fits: `reads`, and what `decode` brings of a call, three texts at most.
const _: () =
    assert!(PLUGIN_READS_MAX * PLUGIN_READ_BYTES_MAX + 4 * PATH_BYTES_MAX <= PLUGIN_GATHERED_BYTES_MAX);

/// Bytes of targets' memory that wait for one registration: to be sent, or for the
/// answer. 40 notifications with all that `reads` can ask for, or 4096 paths.
pub const PLUGIN_MEMORY_BYTES_MAX: usize = 16 << 20;

/// Bytes that a plugin's calls to targets have under way, each counted as what it reads or
/// writes, and as a page at least: 4096 that read a path, or 256 of [`PLUGIN_READ_BYTES_MAX`].
/// One container's can be half of them. More fail: who sends them need not wait for answers.
pub const PLUGIN_WORK_BYTES_MAX: usize = 16 << 20;

/// How long a call waits, in line and until it is done, for its memory to be copied for
/// an observer. What answers at all does so in less than a millisecond.
pub const PLUGIN_COPY_TIMEOUT: Duration = Duration::from_secs(1);

/// Pointers in pointers of such a message: ours nest five deep.
pub const PLUGIN_MESSAGE_NESTING_MAX: i32 = 16;

/// Connections of plugins to one pod, and of plugins' descriptor exchanges.
pub const PLUGIN_CONNECTIONS_MAX: usize = 64;

/// Registrations over one connection: a plugin has one for each thing it does.
pub const PLUGIN_REGISTRATIONS_MAX: usize = 16;

/// Bytes of a plugin's name: it stands in every line of statistics.
pub const PLUGIN_NAME_BYTES_MAX: usize = 63;

/// How long a plugin may take for a verdict, unless it says otherwise: what NRI
/// gives for a request.
pub const PLUGIN_DEADLINE_DEFAULT: Duration = Duration::from_secs(2);

/// Notifications in one call to a plugin, and such calls in flight. A plugin that
/// does not answer keeps that many messages in memory, and no more.
pub const PLUGIN_BATCH_MAX: usize = 256;
/// See [`PLUGIN_BATCH_MAX`].
pub const PLUGIN_CALLS_MAX: usize = 1024;

/// News of sessions that a plugin has not taken. It is told of all at once when it
/// has caught up.
pub const PLUGIN_NEWS_MAX: usize = 256;

/// Descriptors that wait for one plugin, or of one plugin for its verdicts.
pub const PLUGIN_DESCRIPTORS_MAX: usize = 64;

/// Pieces of memory that a plugin can have with each notification: one for each
/// argument.
pub const PLUGIN_READS_MAX: usize = 6;

/// Bytes of one such piece, and of memory that is read or written at once for a
/// plugin: answers that it does not read are in our memory.
pub const PLUGIN_READ_BYTES_MAX: usize = 64 << 10;

/// Bytes of a path that a system call takes, with its zero (`PATH_MAX`, limits.h).
pub const PATH_BYTES_MAX: usize = 4096;

/// Sockets in the directory of plugins that are dialled.
pub const PLUGIN_SOCKETS_MAX: usize = 64;

/// How long a plugin that was dialled may take to register.
pub const PLUGIN_ATTACH_TIMEOUT: Duration = Duration::from_secs(10);

/// How soon a plugin that is not there is dialled again, and how seldom at last:
/// the time doubles. A change of its socket is seen at once.
pub const PLUGIN_REDIAL_MIN: Duration = Duration::from_millis(100);
/// See [`PLUGIN_REDIAL_MIN`].
pub const PLUGIN_REDIAL_MAX: Duration = Duration::from_secs(10);

/// Bytes of a line of recorded notifications: one with every argument's memory.
pub const REPLAY_LINE_BYTES_MAX: u64 = 4 << 20;

/// Bytes of a reason that a plugin gives, or is given.
pub const PLUGIN_REASON_BYTES_MAX: usize = 256;
