@0xc1d8a3f25b7e9064;
# What a seccomp plugin speaks with a pod's monitor. It stands alone: a plugin
# author needs this file and nothing else of podinit (docs/seccomp-plugins.md).
#
# Two ways to meet, one conversation:
#   dial in    the plugin connects to `plugins.sock` in a pod's run directory. The
#              bootstrap capability there is a PluginHost.
#   dial out   the plugin listens on a socket in /run/podinit/plugins.d; every
#              pod's monitor connects to it. The bootstrap capability there is
#              the plugin's PluginProgram, which is given the PluginHost.
#
# A PluginHost gives no power over containers: it can be registered with, and
# that is all. What a plugin may do to a process, it may do while a call of that
# process is in its hands, by the session's Target.
#
# Errors are exceptions with the texts of podinit.capnp: "<code>: <sentence>".
# Codes here: invalid-argument, not-found (the call is over), not-supported,
# resource-exhausted, internal.

interface PluginProgram {
  # What a plugin that listens has as its bootstrap capability.

  attach @0 (host :PluginHost) -> ();
  # A monitor has connected. The plugin registers with `host` what it wants of
  # that pod, and answers. It is called again after a restart of either side.
}

interface PluginHost {
  register @0 (request :RegistrationRequest, plugin :SeccompPlugin) -> (registration :Registration);
  # From now on `plugin` is asked about what the request selects. `synchronise`
  # is called before this answers. The registration ends when its capability is
  # dropped, and with the connection.
}

interface Registration {
  answer @0 (answers :List(Answer)) -> (stale :UInt32);
  # Verdicts that were put off (`later`), or will be: they may come before the
  # answer to `decide` that says so. `stale` of them were too late: the deadline
  # had passed, the process was gone, or there was one already.
}

struct RegistrationRequest {
  name @0 :Text;
  # In logs and statistics: 1 to 63 letters, digits, '.', '_' or '-'.
  selector @1 :Selector;
  priority @2 :Int32;
  # The lowest is asked first; among equals rules come before plugins, and of plugins
  # the first that registered.
  deadlineMs @3 :UInt32;
  # For one verdict. 0 = the monitor's default; more than its maximum is refused.
  onFailure @4 :FailurePolicy;
  # When the deadline passes, the plugin goes away, or its verdict makes no sense.
  allowContinue @5 :Bool;
  # Without it the verdict `continue` is refused: see there.
  kind @6 :Kind;
  batchMax @7 :UInt16;
  # Notifications in one call of `decide`. 0 and 1: each has a call of its own,
  # and waits for no other. More: what waits is sent together, and answered
  # together, so that a slow one must be put off (`later`).
  callsMax @8 :UInt16;
  # Calls of `decide` in flight. 0 = the monitor's maximum. Where there can be more
  # than one notification, those of one container are at most half of them.
  decode @9 :Bool;
  # Bring what the arguments of well-known system calls point to: paths, socket
  # addresses. It was copied once, when the call was received.
  reads @10 :List(Read);
  # Bring this, too. For selectors of one system call, or of similar ones.

  enum Kind {
    decider @0;
    observer @1;
    # Is told by `observe` what was decided, and decides nothing.
  }
}

struct FailurePolicy {
  union {
    errno @0 :UInt16;
    # The call fails with this number. 0 (an empty policy) stands for EPERM.
    next @1 :Void;
    # As if it had passed on.
    continue @2 :Void;
    # Let the kernel do the call. Open on failure: think twice.
    kill @3 :Void;
    # SIGKILL to the process.
  }
}

struct Selector {
  # All that is given must hold; an empty list holds always.
  syscalls @0 :List(Text);
  # Names as libseccomp has them, or decimal numbers; any of them.
  comparisons @1 :List(Comparison);
  # All of them.
  containers @2 :List(Text);
  # Ids; any of them.
  metadata @3 :List(Text);
  # The profile's `listenerMetadata`; any of them, exactly.
  annotations @4 :List(Label);
  # The container's; all of them.
  labels @5 :List(Label);
  # The container's, where the engine passes them; all of them.
  architectures @6 :List(Text);
  # SCMP_ARCH_X86_64, SCMP_ARCH_X86, SCMP_ARCH_AARCH64, ..., as profiles have
  # them; any of them.
}

struct Comparison {
  argument @0 :UInt8;
  # 0 to 5.
  operation @1 :Operation;
  values @2 :List(UInt64);
  # One; for oneOf one or more.
  mask @3 :UInt64;
  # Bits of the argument that are compared; 0 = all of them. For an argument of
  # 32 bits that is 0xffffffff: the program may leave anything in the rest.

  enum Operation {
    equal @0;
    notEqual @1;
    less @2;
    lessOrEqual @3;
    greater @4;
    greaterOrEqual @5;
    oneOf @6;
  }
}

struct Label {
  key @0 :Text;
  value @1 :Text;
}

struct Read {
  argument @0 :UInt8;
  # 0 to 5: the one that points to it. A null pointer is not followed.
  union {
    text @1 :UInt32;
    # Up to a zero byte, at most this many bytes; 0 = PATH_MAX (4096).
    bytes @2 :UInt32;
    # This many bytes.
    sizedBy @3 :UInt8;
    # As many bytes as that argument says, up to the monitor's maximum.
  }
}

interface SeccompPlugin {
  # What a registration asks.

  synchronise @0 (host :Host, sessions :List(Session)) -> ();
  # Once per registration, before anything else: the sessions that exist, as far
  # as one message has room for them (1 MiB). Of the others `sessionOpened` tells.

  sessionOpened @1 (session :Session) -> ();
  # Before the session's first notification.

  sessionClosed @2 (session :UInt64) -> ();
  # The last process of the session is gone.

  decide @3 (notifications :List(Notification)) -> (verdicts :List(Verdict));
  # As many verdicts as notifications, in that order.

  observe @4 (records :List(Record), lost :UInt64) -> ();
  # For an observer. The next call comes when this one has been answered. `lost`:
  # records that did not fit in between, since the last call. With `decode` or
  # `reads`, calls with such memory wait until it has been copied, for a second at
  # most, and for nothing else; what was not copied by then is missing. Of an
  # observer that lets 16 MiB of it wait, the oldest is dropped (`failed`).
}

struct Host {
  podId @0 :Text;
  # Empty if the monitor was not told one.
  runDirectory @1 :Text;
  descriptorSocket @2 :Text;
  # Where descriptors change hands: see Ticket in docs/seccomp-plugins.md.
  monitorPid @3 :UInt32;
  version @4 :Text;
  # Of podinit.
}

struct Session {
  # A listener: the processes of a container, or of an exec, under one filter.
  id @0 :UInt64;
  # Not used again while the pod lives.
  container @1 :Text;
  pid @2 :UInt32;
  # The process that the OCI runtime installed the filter in.
  metadata @3 :Text;
  # `listenerMetadata` of the profile.
  annotations @4 :List(Label);
  # The container's.
  labels @5 :List(Label);
  # The container's, where the engine passes them.
  exec @6 :Bool;
  # Of an exec, not of the container's first process.
  sinceNs @7 :UInt64;
  # Unix time in nanoseconds.
  target @8 :Target;
  # Missing in SeccompControl's answers.
}

struct Notification {
  # A system call of a process, which stands still until there is a verdict.
  id @0 :UInt64;
  # Unique in its session.
  session @1 :UInt64;
  container @2 :Text;
  tid @3 :UInt32;
  # The calling thread, as the monitor sees it.
  syscall @4 :Int32;
  name @5 :Text;
  # Empty if libseccomp has none for it.
  architecture @6 :Text;
  # As in Selector.
  instructionPointer @7 :UInt64;
  arguments @8 :List(UInt64);
  # Six of them.
  decoded @9 :List(Decoded);
}

struct Decoded {
  # What an argument pointed to when the call was received. The process can have
  # changed it since: judge this copy, and act on it, not on the original.
  argument @0 :UInt8;
  union {
    text @1 :Data;
    # Without the zero byte. A path is bytes, not necessarily UTF-8.
    bytes @2 :Data;
    address @3 :SocketAddress;
    failed @4 :Text;
    # Why it could not be read.
  }
  cut @5 :Bool;
  # There was more, or not all of it could be read.
}

struct SocketAddress {
  raw @0 :Data;
  # struct sockaddr, as it was.
  union {
    other @1 :UInt16;
    # Its address family.
    unix @2 :Data;
    # The path; an abstract name begins with a zero byte; an unnamed one is empty.
    inet @3 :Internet;
    # Four bytes.
    inet6 @4 :Internet;
    # Sixteen bytes.
  }

  struct Internet {
    address @0 :Data;
    port @1 :UInt16;
  }
}

struct Verdict {
  union {
    passOn @0 :Void;
    # The next plugin decides; after the last, the monitor's default.
    returnValue @1 :Int64;
    # The call is not made and has returned this; negative values are for `errno`.
    errno @2 :UInt16;
    # The call is not made and has failed with this number, 1 to 4095.
    continue @3 :Void;
    # The kernel makes the call, with whatever its arguments point to by then:
    # another thread can change it after it was looked at (seccomp_unotify(2)).
    # Never a way to allow what was judged by memory.
    addDescriptor @4 :AddDescriptor;
    # Install a descriptor in the process; the call returns its number.
    kill @5 :Void;
    # SIGKILL to the process.
    later @6 :Void;
    # Registration.answer will say; the deadline runs on.
  }
}

struct AddDescriptor {
  ticket @0 :Data;
  # Of the descriptor.
  at @1 :Int32 = -1;
  # The number that it shall have; -1 = the lowest that is free.
  closeOnExec @2 :Bool;
}

struct Answer {
  session @0 :UInt64;
  id @1 :UInt64;
  verdict @2 :Verdict;
}

struct Record {
  # A call that has been answered.
  notification @0 :Notification;
  verdict @1 :Verdict;
  # What was answered. `passOn` if it was never answered: the process was gone, or
  # a signal interrupted the call.
  decidedBy @2 :Text;
  # A plugin, a built-in, or "default".
  latencyUs @3 :UInt64;
  # From its reception to the answer.
  atNs @4 :UInt64;
  # Unix time of the answer, in nanoseconds.
}

interface Target {
  # A session's processes, as far as their calls are in this plugin's hands. `id`
  # is that of such a notification: of any other, and when the process is gone,
  # every method fails with `not-found`. The monitor asks the kernel again after
  # it has opened anything, and before it changes anything.

  check @0 (id :UInt64) -> (open :Bool);
  # Whether the process still waits. Ask before a side effect of your own.

  readMemory @1 (id :UInt64, address :UInt64, size :UInt32) -> (bytes :Data);
  # All of it or an error; at most 64 KiB.

  readText @2 (id :UInt64, address :UInt64, max :UInt32) -> (text :Data, cut :Bool);
  # Up to a zero byte, at most `max` bytes (0 = 4096; 64 KiB at most).

  writeMemory @3 (id :UInt64, address :UInt64, bytes :Data) -> ();
  # All of it or an error; at most 64 KiB. After an error a part may be written.

  duplicate @4 (id :UInt64, descriptor :Int32) -> (ticket :Data);
  # A descriptor of the process, for this plugin (pidfd_getfd(2)).

  install @5 (id :UInt64, descriptor :AddDescriptor) -> (descriptor :Int32);
  # A descriptor for the process, before the answer. If the call is interrupted
  # the process keeps it: where that matters use the verdict.

  credentials @6 (id :UInt64) -> (credentials :Credentials);

  namespaces @7 (id :UInt64) -> (namespaces :List(Namespace));

  cgroup @8 (id :UInt64) -> (path :Text);
  # As /proc/<pid>/cgroup has it: the memory controller's where that has a
  # hierarchy of its own, else the unified tree's.

  open @9 (id :UInt64, place :Place) -> (ticket :Data);
  # A descriptor of what the process stands in.

  enum Place {
    root @0;
    # Its root directory (O_PATH).
    workingDirectory @1;
    # O_PATH.
    pidfd @2;
    # Of the calling thread; before Linux 6.9 of its process.
  }
}

struct Credentials {
  # The effective ones of the calling thread.
  uid @0 :UInt32;
  gid @1 :UInt32;
  groups @2 :List(UInt32);
  capabilities @3 :UInt64;
  # Effective, a bit each (capabilities(7)).
}

struct Namespace {
  kind @0 :Text;
  # cgroup, ipc, mnt, net, pid, time, user, uts.
  inode @1 :UInt64;
}
