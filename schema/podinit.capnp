@0xd3a1c0f0b7e4955e;
# The `Pod` interface: everything that podinit does beyond `Conmon`. The
# bootstrap capability of a pod's socket implements it, so a client of either
# interface is served on the same socket.
#
# Errors. A refusal is an exception whose text is "<code>: <sentence>[: <cause>]*".
# A program switches on the code, a person reads the sentence. Codes:
#   invalid-argument     the request itself is wrong; do not repeat it
#   not-found            no such container, namespace or file
#   already-exists       the id is taken
#   wrong-state          the container is not in a state that allows this
#   runtime-failed       the OCI runtime said no; its stderr is the cause
#   timeout              a deadline passed; what was begun has been undone
#   resource-exhausted   a limit of podinit or the kernel was reached; retry later
#   not-supported        this version has no such method (exception type `unimplemented`)
#   shutting-down        the pod is being stopped
#   internal             a defect of podinit; please report it

using Conmon = import "conmon.capnp".Conmon;
using Plugin = import "plugin.capnp";

enum ContainerPhase {
  creating @0;
  created @1;
  running @2;
  stopping @3;
  # A stop was asked for and the process is still there.
  exited @4;
  # The process is gone and its exit has been recorded.
}

struct ExitStatus {
  # How a process ended. Unknown is a value, never a made-up zero.
  union {
    unknown @0 :Text;
    # Why it is not known.
    code @1 :UInt8;
    signal @2 :UInt8;
  }
  oomKilled @3 :Bool;
  # The container's own cgroup counted an OOM kill since it was created.
  exitedAtNs @4 :UInt64;
  # Unix time in nanoseconds.
  logComplete @5 :Bool;
  # Both streams were read to their end and written before this was recorded.
  oomVictim @6 :OomVictim;
  # Whom the kernel killed for want of memory.
}

struct ContainerStatus {
  id @0 :Text;
  phase @1 :ContainerPhase;
  pid @2 :UInt32;
  # 0 once the process is gone.
  bundle @3 :Text;
  createdAtNs @4 :UInt64;
  startedAtNs @5 :UInt64;
  # 0 = not started, or started by the engine through the OCI runtime itself.
  exit @6 :ExitStatus;
  # Only in phase `exited`.
  terminal @7 :Bool;
  logPath @8 :Text;
  # Path of the first file log driver; empty if there is none.
  restarts @9 :UInt32;
  # How many times the monitor was restarted while the container lived.
}

struct Event {
  sequence @0 :UInt64;
  # Counts from 1 and never has a gap, so a reader knows what it missed.
  timeNs @1 :UInt64;
  container @2 :Text;
  # Empty for an event of the pod itself.
  union {
    created @3 :UInt32;
    # pid
    started @4 :Void;
    exited @5 :ExitStatus;
    deleted @6 :Void;
    oomKilled @7 :Void;
    # Told before `exited`.
    execFailed @8 :Text;
    monitorRestarted @9 :UInt32;
    # How many times so far.
    stopping @10 :Void;
    podStopping @11 :Void;
    lost @12 :UInt64;
    # So many events before this one are no longer kept.
    initEnded @13 :InitEnd;
    hookFailed @14 :HookFailure;
    logFailed @15 :Text;
    # A log cannot be written, and why. Told once until it can be again.
    logGap @16 :LogGap;
    # Output that is missing in the log. Told when the gap is closed.
  }
}

struct HookFailure {
  # A hook failed that was to tell: its policy is `fail` or `warn`.
  sequence @0 :UInt64;
  # Of its result, see `hookResults`.
  hook @1 :Text;
  stage @2 :Text;
  podId @3 :Text;
  fatal @4 :Bool;
  # What the hook belonged to was refused or undone because of it.
  reason @5 :Text;
}

struct InitEnd {
  # PID 1 of a pod's pid namespace has ended, and all of the namespace with it.
  podId @0 :Text;
  exit @1 :ExitStatus;
  # Unless the pod was being stopped, an end that nobody wanted.
  killed @2 :List(Process);
  # Those that were still there when the grace time of a stop had passed.

  struct Process {
    pid @0 :UInt32;
    # As the pod counts.
    name @1 :Text;
  }
}

interface EventListener {
  event @0 (event :Event) -> ();
  # The next event is sent when this one has been answered: a slow listener
  # delays only itself.
}

interface Subscription {
  # Events stop when this capability is dropped.
}

struct StopResult {
  exit @0 :ExitStatus;
  killed @1 :Bool;
  # The grace time passed and SIGKILL was needed.
}

interface Pod extends(Conmon) {
  listContainers @0 () -> (containers :List(ContainerStatus));

  containerState @1 (id :Text) -> (status :ContainerStatus);

  startContainer @2 (id :Text) -> ();
  # `start` of the OCI runtime.

  stopContainer @3 (id :Text, signal :UInt8, graceMs :UInt32) -> (result :StopResult);
  # Send `signal` (0 = SIGTERM), wait up to `graceMs` for the exit, then SIGKILL.
  # Of a container that has exited: its recorded status, at once.

  deleteContainer @4 (id :Text, force :Bool) -> ();
  # `delete` of the OCI runtime, then forget the container. `force` kills first.

  waitContainer @5 (id :Text) -> (exit :ExitStatus);
  # Answers when the exit has been recorded: files written, log complete.

  events @6 (since :UInt64, listener :EventListener) -> (subscription :Subscription);
  # Every kept event with a sequence number above `since`, then live ones.

  shutdown @7 (graceMs :UInt32) -> ();
  # Stop all containers (SIGTERM, grace time, SIGKILL), delete them, unpin the
  # namespaces, remove the pod's files, end. Answers just before the end.

  createSandbox @8 (request :SandboxRequest) -> (sandbox :Sandbox);
  # Make, share or take the pod's namespaces. The same request again answers the
  # same; a different one is `already-exists`.

  namespaces @9 () -> (sandboxes :List(Sandbox));

  exec @10 (request :ExecRequest) -> (result :ExecResult);
  # As execSyncContainer, and says what that one cannot: whether output was cut,
  # why the command could not start, how it ended.

  network @11 (podId :Text) -> (network :Network);
  # What the pod's network namespace looks like from inside, now.

  podStats @12 () -> (stats :PodStats);

  containerStats @13 (id :Text) -> (stats :ContainerStats, account :LogAccount);
  # Of a container that has exited: as they were at its end.

  createContainer @14 (
    request :Conmon.CreateContainerRequest,
    init :Bool,
    logOptions :List(KeyValue)
  ) -> (containerPid :UInt32);
  # As Conmon's method of this name. With `init`, podinit's init is the
  # container's first process: it starts the command, passes signals on and reaps.
  # It is mounted into the container; image and bundle stay as they are. The OCI
  # runtime is then given a bundle of ours, which says the same but for this.
  # `logOptions` say how the logs' files are kept; they win over annotations of the
  # bundle, whose names are the same with `org.podinit.log.` before them.

  runHook @15 (request :HookRequest) -> (result :HookResult);
  # Runs one hook once, now, by its definition or by the name of a known one.

  listHooks @16 () -> (hooks :List(HookDescription));
  # The hooks of the pod, in the order in which they would run.

  hookResults @17 (since :UInt64) -> (results :List(HookResult));
  # How hooks ended, from sequence number `since` on; the last ones are kept.

  reachStage @18 (request :StageRequest) -> (results :List(HookResult));
  # The engine says that the pod is at a stage that only the engine knows:
  # networkReady, podReady. Answers when the stage's hooks have run.

  setLogLimits @19 (request :LogLimits) -> ();
  # Changes how fast, and with what policy, a container's output is logged.

  attach @20 (request :AttachRequest) -> ();
  # As Conmon's method, and says how much of the past a client is given.

  seccomp @21 () -> (control :SeccompControl);
  # What the pod's seccomp broker knows and does.
}

struct HookRequest {
  union {
    name @0 :Text;
    # A hook that the pod knows: its file's name, or the name that a resident hook
    # registered with.
    definition @1 :Text;
    # What a hook file of version 1.0.0 would hold, `when` and `stages` included;
    # they say nothing here.
  }
  stage @2 :Text;
  # What the hook is told, by its name in hook files. Empty = the first of the
  # hook's own stages.
  container @3 :Text;
  # Run it as a hook of this container. Empty = of the pod.
  podId @4 :Text;
  # Of which pod. Empty = the only one.
  bundle @5 :Text;
  # Absolute path: the hook's working directory and the bundle that it is told.
  # Empty = the container's; for a hook of the pod its run directory.
}

struct HookResult {
  # How one hook ended, and what it said.
  sequence @0 :UInt64;
  # Counts from 1 and never has a gap.
  hook @1 :Text;
  stage @2 :Text;
  podId @3 :Text;
  container @4 :Text;
  # Empty for a hook of the pod.
  startedAtNs @5 :UInt64;
  # Unix time in nanoseconds; of the first attempt.
  elapsedNs @6 :UInt64;
  # All attempts and the pauses between them.
  attempts @7 :UInt32;
  union {
    code @8 :UInt8;
    # 0 is success.
    signal @9 :UInt8;
    timedOut @10 :Void;
    # Its time was over, and all of it was killed.
    notStarted @11 :Text;
    # It could not be executed, or its namespaces could not be joined.
    answered @12 :Void;
    # A resident hook succeeded.
    refused @13 :Text;
    # A resident hook failed with this text, or its connection ended.
    lost @14 :Text;
    # It ended, and its status is not known.
  }
  stdout @15 :Data;
  stderr @16 :Data;
  # The last 64 KiB of each, of the last attempt.
  stdoutDropped @17 :UInt64;
  stderrDropped @18 :UInt64;
  # Bytes before those.
  leftRunning @19 :UInt32;
  # Processes that it left behind when it ended in time. They end with the pod.
  killed @20 :UInt32;
  # Processes of it that were killed because its time was over.
}

enum HookFailurePolicy {
  fail @0;
  warn @1;
  ignore @2;
}

struct HookDescription {
  name @0 :Text;
  path @1 :Text;
  # Empty for a resident hook.
  args @2 :List(Text);
  stages @3 :List(Text);
  namespaces @4 :List(NamespaceKind);
  failure @5 :HookFailurePolicy;
  timeoutMs @6 :UInt64;
  # What it would be given, with the default and the ceiling applied.
  attempts @7 :UInt32;
  concurrent @8 :Bool;
  resident @9 :Bool;
}

struct StageRequest {
  stage @0 :Text;
  # networkReady or podReady.
  podId @1 :Text;
  # Empty = the only pod.
}

struct HookCondition {
  # All that are given must hold; with none, the hook never runs. The rules are
  # those of hook files.
  always @0 :Bool;
  annotations @1 :List(KeyValue);
  # Regular expressions for key and value.
  commands @2 :List(Text);
  # Regular expressions for the first argument of a container's process.
  hasBindMounts @3 :Bool;
}

struct HookRegistration {
  # A resident hook: no process is started for it.
  name @0 :Text;
  # Not that of another hook.
  stages @1 :List(Text);
  when @2 :HookCondition;
  after @3 :List(Text);
  before @4 :List(Text);
  # Names of other hooks.
  timeoutMs @5 :UInt64;
  # 0 = the default.
  failure @6 :HookFailurePolicy;
  concurrent @7 :Bool;
}

struct HookCall {
  stage @0 :Text;
  podId @1 :Text;
  container @2 :Text;
  state @3 :Text;
  # The OCI state, as JSON: what a hook that is a program reads from its standard
  # input. Pids are the host's.
}

interface ResidentHook {
  run @0 (call :HookCall) -> ();
  # An exception is a failure of the hook, with its text as the reason.
}

interface Registration {
  # The hook is forgotten when this capability is dropped or its connection ends.
}

interface HookRegistry {
  # The bootstrap capability of `hooks.sock` in a pod's run directory. It gives no
  # power over containers.
  register @0 (hook :HookRegistration, resident :ResidentHook) -> (registration :Registration);
}

struct LogRate {
  # How much output is logged. 0 = no limit.
  bytesPerSecond @0 :UInt64;
  bytesBurst @1 :UInt64;
  # Bytes that may come at once, after a pause. 0 = what comes in a second.
  linesPerSecond @2 :UInt64;
  linesBurst @3 :UInt64;
}

struct LogLimits {
  # Replaces all that was set before.
  id @0 :Text;
  # Of the container; empty: the pod's total.
  stdout @1 :LogRate;
  stderr @2 :LogRate;
  total @3 :LogRate;
  # Of all containers together; only with an empty `id`, and then alone.
  whenFast @4 :WhenFast;
  whenStuck @5 :WhenStuck;
  bufferBytes @6 :UInt64;
  # What is kept while a log cannot be written and output is read nevertheless.
  # 0 = 1 MiB.

  enum WhenFast {
    # Output comes faster than it may.
    block @0;
    # It is read as fast as it may come; the container waits.
    drop @1;
    # It is read, and what is too much is dropped, with a gap record.
  }

  enum WhenStuck {
    # A log cannot be written.
    block @0;
    # Output is not read; the container waits, and nothing is lost.
    dropOldest @1;
    dropNewest @2;
    # Output is read and kept up to `bufferBytes`. The rest is dropped, with a gap
    # record as soon as the log can be written.
  }
}

struct LogGap {
  stderr @0 :Bool;
  bytes @1 :UInt64;
  # Newlines not counted.
  lines @2 :UInt64;
  reason @3 :Text;
}

struct AttachRequest {
  id @0 :Text;
  socketPath @1 :Text;
  # Where the SOCK_SEQPACKET socket is to be; absolute.
  execSession @2 :Text;
  # Empty: nothing but the container itself can be attached to.
  stopAfterStdinEof @3 :Bool;
  # The end of a client's input is the end of the container's. Without it the
  # container's stdin stays open for the next client.
  replayBytes @4 :UInt32;
  # Of what the container wrote before the client came, the last so many bytes at
  # most, from the beginning of a line on. Needs a log that is a file.
}

struct LogAccount {
  # What was read from a container and what its log holds of it: what the log can
  # be audited against.
  stdout @0 :Stream;
  stderr @1 :Stream;
  isFinal @2 :Bool;
  # The container has exited; nothing more will be counted.

  struct Stream {
    readBytes @0 :UInt64;
    # From the container, and of hooks whose lines are in its log.
    records @1 :UInt64;
    # Written to the first log that is a file, since this monitor opened it. Gap
    # records are not counted.
    payloadBytes @2 :UInt64;
    # In those records, without newlines.
    lines @3 :UInt64;
    # Ended by those records.
  }
}

interface SeccompControl {
  # The broker, for the engine and for people. Plugins have a socket of their own
  # and an interface of their own (plugin.capnp).

  sessions @0 () -> (sessions :List(Plugin.Session));

  plugins @1 () -> (plugins :List(SeccompPluginStatus));
  # In the order in which they are asked.

  stats @2 () -> (stats :SeccompStats);

  trace @3 (selector :Plugin.Selector, listener :SeccompTraceListener, decode :Bool)
      -> (subscription :Subscription);
  # What is decided, as it is decided. A slow listener loses records, and is told
  # how many; it delays nobody. With `decode`, paths and socket addresses are
  # copied when a call is received, which every traced call waits for. Ends when
  # the subscription is dropped.

  profile @4 (containerId :Text) -> (profile :Text, calls :List(SeccompRecorded));
  # A profile (JSON, as `linux.seccomp` of the OCI runtime specification) that
  # allows what the built-in `record` saw of the container; and what that was.

  loadRules @5 (rules :Text) -> ();
  # Replaces the rules of the built-ins (JSON; docs/seccomp.md). All or nothing.
}

interface SeccompTraceListener {
  records @0 (records :List(Plugin.Record), lost :UInt64) -> ();
  # The next call comes when this one has been answered. `lost`: records that were
  # dropped since the last call.
}

struct SeccompRecorded {
  # Calls that were recorded of a container.
  name @0 :Text;
  # Empty if libseccomp has none for it: then it is not in the profile.
  number @1 :Int32;
  architecture @2 :Text;
  # As in Plugin.Selector; empty if libseccomp does not know it.
  count @3 :UInt64;
}

struct SeccompPluginStatus {
  name @0 :Text;
  priority @1 :Int32;
  deadlineMs @2 :UInt32;
  onFailure @3 :Text;
  # errno:<number>, continue, kill or next.
  missing @4 :List(Text);
  # Plugins that a rule needs and that are not registered: it is passed over.
}

struct SeccompStats {
  received @0 :UInt64;
  # Notifications, since the monitor's start.
  answered @1 :UInt64;
  interrupted @2 :UInt64;
  # The process was gone, or a signal came, before the answer.
  gone @3 :UInt64;
  # The same, before the notification could be received.
  open @4 :UInt32;
  # Calls that wait for a verdict now.
  sessions @5 :UInt32;
  plugins @6 :List(Plugin);
  rows @7 :List(Row);
  # What everybody said who was asked, also who passed on. Times are from when it was
  # asked until it had said it.
  calls @8 :List(Row);
  # What calls were answered, whoever decided. Times are from a call's reception to its
  # answer.

  struct Plugin {
    # All that registered with one name, rules among them.
    name @0 :Text;
    registrations @1 :UInt32;
    # Now.
    timeouts @2 :UInt64;
    failures @3 :UInt64;
    # It went away with a call in its hands, or gave a bad verdict.
    suspended @4 :UInt64;
    # Calls that it was not asked about, because it had failed too often just before.
    interrupted @5 :UInt64;
  }

  struct Row {
    plugin @0 :Text;
    # Or "default"; empty in `calls`.
    syscall @1 :Text;
    architecture @2 :Text;
    verdict @3 :Text;
    # return, errno, continue, addfd, kill or pass. Of a failure, what it led to.
    histogram @4 :List(UInt64);
    # Entry n: took less than 2^n microseconds, and not less than the entry
    # before; the last has all that took longer.
  }
}

struct Network {
  interfaces @0 :List(Interface);
  routes @1 :List(Route);

  struct Interface {
    index @0 :UInt32;
    name @1 :Text;
    kind @2 :Text;
    # As `ip -details link` calls it: veth, bridge, ...; empty for a device
    # without one.
    hardwareAddress @3 :Text;
    up @4 :Bool;
    state @5 :Text;
    # Operational state, RFC 2863: up, down, unknown, ...
    mtu @6 :UInt32;
    # Bytes.
    addresses @7 :List(Address);
    statistics @8 :Statistics;
  }

  struct Address {
    address @0 :Text;
    # IPv4 or IPv6, without the prefix.
    prefix @1 :UInt8;
    # Bits.
  }

  struct Statistics {
    rxBytes @0 :UInt64;
    rxPackets @1 :UInt64;
    rxErrors @2 :UInt64;
    rxDropped @3 :UInt64;
    txBytes @4 :UInt64;
    txPackets @5 :UInt64;
    txErrors @6 :UInt64;
    txDropped @7 :UInt64;
  }

  struct Route {
    destination @0 :Text;
    # 0.0.0.0 or :: with prefix 0 is the default route.
    prefix @1 :UInt8;
    gateway @2 :Text;
    # Empty: directly reachable.
    interface @3 :Text;
    source @4 :Text;
    # Preferred source address; empty = the kernel chooses.
    metric @5 :UInt32;
  }
}

struct PodStats {
  orphansReaped @0 :UInt64;
  # Children that nobody had asked for and that the monitor collected: what
  # containers without a pid namespace of their pod leave behind. The pod's init
  # has the kernel reap its orphans, which are not counted.
  inits @1 :List(InitStats);
  containers @2 :UInt32;
  # Known, exited ones included.
  execs @3 :UInt32;
  # Running now.
  monitorRestarts @4 :UInt32;
  logTotal @5 :LogRate;
  # The limit of all containers' logs together.

  struct InitStats {
    podId @0 :Text;
    pid @1 :UInt32;
    processes @2 :UInt32;
    # In its pid namespace and those below, itself and zombies not counted.
    zombies @3 :UInt32;
  }
}

struct ContainerStats {
  stdout @0 :ChannelStats;
  # The terminal's output, if there is one.
  stderr @1 :ChannelStats;
  writeErrors @2 :UInt64;
  # Failed log writes, each of which was tried again: those of both streams, and
  # rotations, compressing and synchronising that failed.
  lastWriteError @3 :Text;
  stallLongestNs @4 :UInt64;
  # The longest time for which output was not read because a log could not be
  # written.
  clients @5 :UInt32;
  # Attached now.
  clientsCutOff @6 :UInt64;
  # Attached clients that did not read.
  limits @7 :LogLimits;
  # As they are now.
  buffered @8 :UInt64;
  # Bytes that wait because a log cannot be written.

  struct ChannelStats {
    bytes @0 :UInt64;
    # Read from the container.
    lines @1 :UInt64;
    partials @2 :UInt64;
    # Log records that did not end a line.
    dropped @3 :UInt64;
    # Payload bytes that a log could not keep, summed over the logs, and those that
    # came too fast.
    rateLimited @4 :UInt64;
    # Of `dropped`: bytes that came too fast.
    throttledNs @5 :UInt64;
    # How long output was not read because it came too fast.
    writeErrors @6 :UInt64;
    # Failed log writes that had records of this stream; each was tried again.
    stallLongestNs @7 :UInt64;
    # The longest time for which a log had output of this stream to write and could
    # not.
  }
}

enum NamespaceKind {
  net @0;
  ipc @1;
  uts @2;
  user @3;
  pid @4;
  cgroup @5;
  mnt @6;
  time @7;
}

struct NamespaceRequest {
  kind @0 :NamespaceKind;
  union {
    create @1 :Void;
    host @2 :Void;
    path @3 :Text;
    # Take the namespace pinned at this path.
  }
}

struct KeyValue {
  key @0 :Text;
  value @1 :Text;
}

struct IdMapping {
  inside @0 :UInt32;
  outside @1 :UInt32;
  size @2 :UInt32;
}

struct SandboxRequest {
  podId @0 :Text;
  namespaces @1 :List(NamespaceRequest);
  hostname @2 :Text;
  # Needs a created uts namespace. Empty = leave as it is.
  domainname @3 :Text;
  sysctls @4 :List(KeyValue);
  # Only those namespaced by the kinds that are created.
  uidMappings @5 :List(IdMapping);
  gidMappings @6 :List(IdMapping);
  basePath @7 :Text;
  # Pins are <basePath>/<kind>ns/<podId>. Empty = the pod's run directory.
  unpinned @8 :Bool;
  # Keep the namespaces by descriptor only: no mount, no path.
}

struct PinnedNamespace {
  kind @0 :NamespaceKind;
  path @1 :Text;
  inode @2 :UInt64;
  ownerInode @3 :UInt64;
  # The user namespace that owns it.
  created @4 :Bool;
  # false: shared with the host, or taken from a path.
}

struct Sandbox {
  podId @0 :Text;
  namespaces @1 :List(PinnedNamespace);
  initPid @2 :UInt32;
  # PID 1 of the pod's pid namespace, as the host sees it; 0 if there is none.
  createdAtNs @3 :UInt64;
}

struct ExecRequest {
  id @0 :Text;
  command @1 :List(Text);
  timeoutMs @2 :UInt64;
  # 0 = no time-out.
  terminal @3 :Bool;
  env @4 :List(KeyValue);
  # Added to the environment of the command.
}

struct ExecResult {
  union {
    exit @0 :ExitStatus;
    notStarted @1 :Text;
    # What the OCI runtime said.
    timedOut @2 :Void;
  }
  stdout @3 :Data;
  stderr @4 :Data;
  stdoutDropped @5 :UInt64;
  stderrDropped @6 :UInt64;
  # Bytes beyond the 16 MiB that are kept of each stream.
}

enum OomVictim {
  # Whom of a container the kernel has killed for want of memory.
  nobody @0;
  firstProcess @1;
  # The container's first process, and perhaps others with it.
  others @2;
  # Only processes that the first one had started; it ended by itself, in whatever way.
}
