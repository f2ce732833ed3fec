//! A session's processes, for the plugin that has calls of them in its hands.

use std::rc::{Rc, Weak};

use super::host::exhausted;
use super::packet::TICKET_BYTES;
use super::remote::Remote;
use super::translate;
use crate::limits::{PATH_BYTES_MAX, PLUGIN_READ_BYTES_MAX};
use crate::rpc::schema::plugin_capnp::target as wire;
use crate::seccomp::foreign::ForeignFd;
use crate::seccomp::notification::SessionId;
use crate::seccomp::share::Permit;
use crate::seccomp::target::{Credentials, Target, TargetError};

/// The `Target` of one session and one registration.
pub(super) struct TargetServer {
    pub(super) remote: Weak<Remote>,
    pub(super) session: SessionId,
}

/// What a call to a target counts for at least: a page of it, or of what is said of it.
const PAGE: usize = 4096;

fn refuse(error: &TargetError) -> capnp::Error {
    let code = match error {
        TargetError::Gone => "not-found",
        TargetError::Malformed(_) => "internal",
        _ => "invalid-argument",
    };
    capnp::Error::failed(format!("{code}: {error}"))
}

fn invalid(sentence: &str) -> capnp::Error {
    capnp::Error::failed(format!("invalid-argument: {sentence}"))
}

/// Refuses what would be a great message.
fn too_much(bytes: usize) -> Result<(), capnp::Error> {
    if bytes <= PLUGIN_READ_BYTES_MAX {
        return Ok(());
    }
    Err(invalid(&format!("{bytes} bytes of memory are too many at once; at most {PLUGIN_READ_BYTES_MAX}")))
}

fn size(size: u32) -> usize {
    usize::try_from(size).unwrap_or(usize::MAX)
}

impl TargetServer {
    fn target(&self, id: u64) -> Result<(Rc<Remote>, Target), capnp::Error> {
        let found = self.remote.upgrade().and_then(|remote| {
            let target = remote.target((self.session, id))?;
            Some((remote, target))
        });
        found.ok_or_else(|| {
            capnp::Error::failed(format!("not-found: call {id} is not in this plugin's hands"))
        })
    }

    /// The target, and room for something to be done to it that takes `bytes`.
    fn find(&self, id: u64, bytes: usize) -> Result<(Rc<Remote>, Target, Permit), capnp::Error> {
        let (remote, target) = self.target(id)?;
        let room = remote.work(&target, bytes.clamp(PAGE, PLUGIN_READ_BYTES_MAX));
        let room =
            room.ok_or_else(|| exhausted("too many calls to processes of this container are under way"))?;
        Ok((remote, target, room))
    }

    /// Lets the plugin fetch a descriptor while call `id` is in its hands.
    fn ticket(&self, remote: &Remote, id: u64, fd: ForeignFd) -> Result<[u8; TICKET_BYTES], capnp::Error> {
        let kept = remote.tickets().keep(remote.owner(), Some((self.session, id)), fd);
        kept.map_err(|error| capnp::Error::failed(format!("internal: no ticket can be made: {error}")))
    }
}

impl wire::Server for TargetServer {
    async fn check(
        self: Rc<Self>,
        params: wire::CheckParams,
        mut results: wire::CheckResults,
    ) -> Result<(), capnp::Error> {
        let found = self.target(params.get()?.get_id());
        results.get().set_open(found.is_ok_and(|(_, target)| target.is_waiting()));
        Ok(())
    }

    async fn read_memory(
        self: Rc<Self>,
        params: wire::ReadMemoryParams,
        mut results: wire::ReadMemoryResults,
    ) -> Result<(), capnp::Error> {
        let params = params.get()?;
        let wanted = size(params.get_size());
        let (_, target, _room) = self.find(params.get_id(), wanted)?;
        too_much(wanted)?;
        let read = target.read_memory(params.get_address(), wanted).await;
        let bytes = read.map_err(|error| refuse(&error))?;
        if bytes.len() < wanted {
            return Err(invalid(&format!("only {} of {wanted} bytes are there", bytes.len())));
        }
        results.get().set_bytes(&bytes);
        Ok(())
    }

    async fn read_text(
        self: Rc<Self>,
        params: wire::ReadTextParams,
        mut results: wire::ReadTextResults,
    ) -> Result<(), capnp::Error> {
        let params = params.get()?;
        let max = if params.get_max() == 0 { PATH_BYTES_MAX } else { size(params.get_max()) };
        let (_, target, _room) = self.find(params.get_id(), max)?;
        too_much(max)?;
        match target.read_string(params.get_address(), max).await {
            Ok(text) => results.get().set_text(&text),
            Err(TargetError::Unterminated { address, max }) => {
                let begin = target.read_memory(address, max).await.map_err(|error| refuse(&error))?;
                // It can have got an end meanwhile; what is cut is not to be judged anyway.
                results.get().set_text(&begin);
                results.get().set_cut(true);
            }
            Err(error) => return Err(refuse(&error)),
        }
        Ok(())
    }

    async fn write_memory(
        self: Rc<Self>,
        params: wire::WriteMemoryParams,
        _: wire::WriteMemoryResults,
    ) -> Result<(), capnp::Error> {
        let params = params.get()?;
        let bytes = params.get_bytes()?;
        let (_, target, _room) = self.find(params.get_id(), bytes.len())?;
        too_much(bytes.len())?;
        let written = target.write_memory(params.get_address(), bytes.to_vec()).await;
        written.map_err(|error| refuse(&error))
    }

    async fn duplicate(
        self: Rc<Self>,
        params: wire::DuplicateParams,
        mut results: wire::DuplicateResults,
    ) -> Result<(), capnp::Error> {
        let params = params.get()?;
        let (remote, target, _room) = self.find(params.get_id(), PAGE)?;
        let number =
            u32::try_from(params.get_descriptor()).map_err(|_| invalid("a descriptor has a number"))?;
        let fd = target.duplicate_fd(number).await.map_err(|error| refuse(&error))?;
        results.get().set_ticket(&self.ticket(&remote, params.get_id(), fd)?);
        Ok(())
    }

    async fn install(
        self: Rc<Self>,
        params: wire::InstallParams,
        mut results: wire::InstallResults,
    ) -> Result<(), capnp::Error> {
        let params = params.get()?;
        let (remote, target, _room) = self.find(params.get_id(), PAGE)?;
        let install = translate::install(params.get_descriptor()?, |ticket| remote.tickets().take(ticket));
        let install = install.map_err(invalid)?;
        let number = target.install_fd(install.fd, install.at, install.close_on_exec).await;
        let number = number.map_err(|error| refuse(&error))?;
        results.get().set_descriptor(i32::try_from(number).unwrap_or(i32::MAX));
        Ok(())
    }

    async fn credentials(
        self: Rc<Self>,
        params: wire::CredentialsParams,
        mut results: wire::CredentialsResults,
    ) -> Result<(), capnp::Error> {
        let (_, target, _room) = self.find(params.get()?.get_id(), PAGE)?;
        let Credentials { users, groups, more_groups, capabilities, .. } =
            target.credentials().await.map_err(|error| refuse(&error))?;
        let mut to = results.get().init_credentials();
        // Real, effective, saved, of the file system; inheritable, permitted, effective, ...
        let ([_, uid, ..], [_, gid, ..], [_, _, effective, ..]) = (users, groups, capabilities);
        to.set_uid(uid);
        to.set_gid(gid);
        to.set_capabilities(effective);
        let count = u32::try_from(more_groups.len()).unwrap_or(u32::MAX);
        let mut list = to.init_groups(count);
        for (index, group) in (0..count).zip(more_groups) {
            list.set(index, group);
        }
        Ok(())
    }

    async fn namespaces(
        self: Rc<Self>,
        params: wire::NamespacesParams,
        mut results: wire::NamespacesResults,
    ) -> Result<(), capnp::Error> {
        let (_, target, _room) = self.find(params.get()?.get_id(), PAGE)?;
        let namespaces = target.namespaces().await.map_err(|error| refuse(&error))?;
        let count = u32::try_from(namespaces.len()).unwrap_or(u32::MAX);
        let mut list = results.get().init_namespaces(count);
        for (index, namespace) in (0..count).zip(namespaces) {
            let mut to = list.reborrow().get(index);
            to.set_kind(namespace.kind);
            to.set_inode(namespace.inode);
        }
        Ok(())
    }

    async fn cgroup(
        self: Rc<Self>,
        params: wire::CgroupParams,
        mut results: wire::CgroupResults,
    ) -> Result<(), capnp::Error> {
        let (_, target, _room) = self.find(params.get()?.get_id(), PAGE)?;
        let cgroups = target.cgroup().await.map_err(|error| refuse(&error))?;
        results.get().set_path(cgroup(&cgroups));
        Ok(())
    }

    async fn open(
        self: Rc<Self>,
        params: wire::OpenParams,
        mut results: wire::OpenResults,
    ) -> Result<(), capnp::Error> {
        let params = params.get()?;
        let (remote, target, _room) = self.find(params.get_id(), PAGE)?;
        let opened = match params.get_place().map_err(|_| invalid("there is no such place"))? {
            wire::Place::Root => target.root().await,
            wire::Place::WorkingDirectory => target.working_directory().await,
            wire::Place::Pidfd => target.pidfd().await,
        };
        let opened = opened.map_err(|error| refuse(&error))?;
        results.get().set_ticket(&self.ticket(&remote, params.get_id(), opened)?);
        Ok(())
    }
}

/// One path of `/proc/<pid>/cgroup` (cgroups(7)): the memory controller's where it
/// has a hierarchy of its own, else the unified tree's.
fn cgroup(lines: &str) -> &str {
    let path = |wanted: fn(&str) -> bool| {
        lines.lines().find_map(|line| {
            let (_, rest) = line.split_once(':')?;
            let (controllers, path) = rest.split_once(':')?;
            wanted(controllers).then_some(path)
        })
    };
    let memory = path(|controllers| controllers.split(',').any(|one| one == "memory"));
    memory.or_else(|| path(str::is_empty)).unwrap_or_default()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_process_has_one_cgroup_to_speak_of() {
        assert_eq!(cgroup("0::/a\n"), "/a");
        assert_eq!(cgroup("2:cpu,memory:/m\n1:pids:/p\n0::/a\n"), "/m");
        assert_eq!(cgroup("1:pids:/p\n"), "");
        assert_eq!(cgroup("nonsense"), "");
    }
}
