@0xffaaf7385bc4adad;
# The `Conmon` interface: what container engines of today speak to a pod's
# monitor. Type id, ordinals and types are fixed by deployed clients; nothing is
# ever added here (new methods are in podinit.capnp, on `Pod`, which extends
# `Conmon`).
#
# Conventions, true for every method:
#   - one request struct in, one response struct out;
#   - a list may arrive as a null pointer and then counts as empty;
#   - `metadata` carries W3C trace context (traceparent, tracestate) and may be
#     absent; fields named `...Old` are unused and keep their ordinals;
#   - a refusal is an exception whose text is "<code>: <sentence>[: <cause>]*".
#     The codes are listed in podinit.capnp.

interface Conmon @0xb737e899dd6633f1 {
  struct TextTextMapEntry {
    key @0 :Text;
    value @1 :Text;
  }

  struct VersionRequest {
    verbose @0 :Bool;
    # Also return `cargoTree`.
    metadataOld @1 :Void;
    metadata @2 :List(TextTextMapEntry);
  }

  struct VersionResponse {
    processId @0 :UInt32;
    # The pod's stable pid: the keeper. Signals and cgroup moves go there.
    version @1 :Text;
    # Semantic version without a leading "v".
    tag @2 :Text;
    commit @3 :Text;
    buildDate @4 :Text;
    target @5 :Text;
    rustVersion @6 :Text;
    cargoVersion @7 :Text;
    cargoTree @8 :Text;
    metadata @9 :Void;
  }

  version @0 (request :VersionRequest) -> (response :VersionResponse);
  # Identify the server; also the way to find out whether one is alive.

  enum CgroupManager {
    systemd @0;
    cgroupfs @1;
  }

  struct LogDriver {
    enum Type {
      containerRuntimeInterface @0;
      json @1;
      journald @2;
    }

    type @0 :Type;
    path @1 :Text;
    maxSize @2 :UInt64;
    # Bytes after which the file is rotated; 0 = never.
  }

  struct CreateContainerRequest {
    id @0 :Text;
    bundlePath @1 :Text;
    terminal @2 :Bool;
    stdin @3 :Bool;
    exitPaths @4 :List(Text);
    # Files that receive the decimal exit code, each atomically; the first one, which an
    # engine watches, last.
    oomExitPaths @5 :List(Text);
    # Files created, before the exit files, if the container was OOM-killed.
    logDrivers @6 :List(LogDriver);
    cleanupCmd @7 :List(Text);
    # Run once after the exit has been recorded.
    globalArgs @8 :List(Text);
    # OCI runtime arguments before `create`.
    commandArgs @9 :List(Text);
    # OCI runtime arguments after `create`.
    metadataOld @10 :Void;
    metadata @11 :List(TextTextMapEntry);
    envVars @12 :List(TextTextMapEntry);
    # Added to the OCI runtime's environment.
    cgroupManager @13 :CgroupManager;
    additionalFds @14 :List(UInt64);
    # Slots of the fd socket, given to the runtime as descriptors 3, 4, ...
    leakFds @15 :List(UInt64);
    # Slots of the fd socket, kept open until the container has exited.
  }

  struct CreateContainerResponse {
    containerPid @0 :UInt32;
  }

  createContainer @1 (request :CreateContainerRequest) -> (response :CreateContainerResponse);
  # Create a container through the OCI runtime and monitor it from then on.
  # Finished or undone even if the caller disconnects.

  struct ExecSyncContainerRequest {
    id @0 :Text;
    timeoutSec @1 :UInt64;
    # 0 = no time-out.
    command @2 :List(Text);
    terminal @3 :Bool;
    metadataOld @4 :Void;
    metadata @5 :List(TextTextMapEntry);
    envVars @6 :List(TextTextMapEntry);
    cgroupManager @7 :CgroupManager;
  }

  struct ExecSyncContainerResponse {
    exitCode @0 :Int32;
    # 128+N after signal N; -2 if the runtime could not start the command (its
    # message is in `stderr`); -3 with `timedOut`.
    stdout @1 :Data;
    stderr @2 :Data;
    # Each at most 16 MiB. If there was more, the last line of stderr says how much.
    timedOut @3 :Bool;
  }

  execSyncContainer @2 (request :ExecSyncContainerRequest) -> (response :ExecSyncContainerResponse);

  struct AttachRequest {
    id @0 :Text;
    socketPath @1 :Text;
    # A SOCK_SEQPACKET socket is made here if it does not exist.
    execSessionId @2 :Text;
    stopAfterStdinEof @3 :Bool;
    metadataOld @4 :Void;
    metadata @5 :List(TextTextMapEntry);
  }

  struct AttachResponse {}

  attachContainer @3 (request :AttachRequest) -> (response :AttachResponse);
  # Packets to the client: one byte (2 stdout, 3 stderr) and up to 8191 bytes of
  # payload; the single byte 0 = done. Packets from the client: stdin, unframed.

  struct ReopenLogRequest {
    id @0 :Text;
    metadataOld @1 :Void;
    metadata @2 :List(TextTextMapEntry);
  }

  struct ReopenLogResponse {}

  reopenLogContainer @4 (request :ReopenLogRequest) -> (response :ReopenLogResponse);
  # Close the log files and open their paths again, never truncating.

  struct SetWindowSizeRequest {
    id @0 :Text;
    width @1 :UInt16;
    height @2 :UInt16;
    metadataOld @3 :Void;
    metadata @4 :List(TextTextMapEntry);
  }

  struct SetWindowSizeResponse {}

  setWindowSizeContainer @5 (request :SetWindowSizeRequest) -> (response :SetWindowSizeResponse);

  enum Namespace {
    ipc @0;
    net @1;
    pid @2;
    user @3;
    uts @4;
  }

  struct CreateNamespacesRequest {
    metadataOld @0 :Void;
    namespaces @1 :List(Namespace);
    uidMappings @2 :List(Text);
    gidMappings @3 :List(Text);
    # "CONTAINER HOST SIZE"; both lists are required with `user`.
    basePath @4 :Text;
    podId @5 :Text;
    metadata @6 :List(TextTextMapEntry);
  }

  struct NamespaceResponse {
    type @0 :Namespace;
    path @1 :Text;
  }

  struct CreateNamespacesResponse {
    namespaces @0 :List(NamespaceResponse);
    # Always all five, in the order of the enum: <basePath>/<kind>ns/<podId>.
    # Kinds that were not asked for are pins of the host's namespace.
  }

  createNamespaces @6 (request :CreateNamespacesRequest) -> (response :CreateNamespacesResponse);

  struct StartFdSocketRequest {
    metadata @0 :List(TextTextMapEntry);
  }

  struct StartFdSocketResponse {
    path @0 :Text;
  }

  startFdSocket @7 (request :StartFdSocketRequest) -> (response :StartFdSocketResponse);

  struct ServeExecContainerRequest {
    metadata @0 :List(TextTextMapEntry);
    id @1 :Text;
    command @2 :List(Text);
    tty @3 :Bool;
    stdin @4 :Bool;
    stdout @5 :Bool;
    stderr @6 :Bool;
    cgroupManager @7 :CgroupManager;
  }

  struct ServeExecContainerResponse {
    url @0 :Text;
  }

  serveExecContainer @8 (request :ServeExecContainerRequest) -> (response :ServeExecContainerResponse);

  struct ServeAttachContainerRequest {
    metadata @0 :List(TextTextMapEntry);
    id @1 :Text;
    stdin @2 :Bool;
    stdout @3 :Bool;
    stderr @4 :Bool;
  }

  struct ServeAttachContainerResponse {
    url @0 :Text;
  }

  serveAttachContainer @9 (request :ServeAttachContainerRequest) -> (response :ServeAttachContainerResponse);

  struct ServePortForwardContainerRequest {
    metadata @0 :List(TextTextMapEntry);
    netNsPath @1 :Text;
  }

  struct ServePortForwardContainerResponse {
    url @0 :Text;
  }

  servePortForwardContainer @10 (request :ServePortForwardContainerRequest) -> (response :ServePortForwardContainerResponse);
}
