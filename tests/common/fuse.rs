//! A file system of one file, `log`, whose writes, and reads, are answered when the test
//! says so: what a dead disk or a hung NFS server looks like to whoever writes.
//!
//! The protocol is linux/fuse.h, spoken over /dev/fuse by one thread with a table of
//! descriptors of its own. It dies with this program, and the kernel then answers
//! whoever still waits: a close(2) of this program that waited for this program
//! would keep it for ever.

use std::fs::File;
use std::io::{Read, Write};
use std::os::fd::AsRawFd;
use std::path::{Path, PathBuf};
use std::sync::{Arc, Condvar, Mutex, mpsc};

use nix::mount::{MntFlags, MsFlags, mount, umount2};

const LOOKUP: u32 = 1;
const FORGET: u32 = 2;
const GETATTR: u32 = 3;
const OPEN: u32 = 14;
const READ: u32 = 15;
const WRITE: u32 = 16;
const RELEASE: u32 = 18;
const FLUSH: u32 = 25;
const INIT: u32 = 26;
const BATCH_FORGET: u32 = 42;

/// Bytes of `fuse_in_header` and `fuse_write_in`.
const HEADER: usize = 40;
/// errno "input/output error".
const EIO: i32 = 5;
/// errno "function not implemented".
const ENOSYS: i32 = 38;

#[derive(Default)]
struct State {
    open: bool,
    holds_flushes: bool,
    waiting: usize,
    content: Vec<u8>,
}

/// The mounted file system; unmounted when it is dropped.
pub(crate) struct SlowDisk {
    directory: PathBuf,
    shared: Arc<(Mutex<State>, Condvar)>,
}

impl SlowDisk {
    /// Mounts it on `directory`, for this thread and those that it starts. Writes
    /// wait.
    pub(crate) fn mount(directory: &Path) -> Self {
        nix::sched::unshare(nix::sched::CloneFlags::CLONE_NEWNS).unwrap();
        mount(None::<&str>, "/", None::<&str>, MsFlags::MS_REC | MsFlags::MS_PRIVATE, None::<&str>).unwrap();
        let shared = Arc::<(Mutex<State>, Condvar)>::default();
        let (served, place) = (Arc::clone(&shared), directory.to_owned());
        let (told, mounted) = mpsc::channel();
        std::thread::spawn(move || {
            leave_descriptors();
            let device = File::options().read(true).write(true).open("/dev/fuse").unwrap();
            let options = format!("fd={},rootmode=40000,user_id=0,group_id=0", device.as_raw_fd());
            mount(Some("slow"), &place, Some("fuse"), MsFlags::empty(), Some(options.as_str())).unwrap();
            told.send(()).unwrap();
            serve(device, &served);
        });
        mounted.recv().unwrap();
        Self { directory: directory.to_owned(), shared }
    }

    /// The one file.
    pub(crate) fn log(&self) -> PathBuf {
        self.directory.join("log")
    }

    /// Lets close(2) wait, too.
    #[allow(dead_code, reason = "each test program uses its part")]
    pub(crate) fn hold_flushes(&self) {
        self.shared.0.lock().unwrap().holds_flushes = true;
    }

    /// Gives the file bytes that nobody gets to read: memory that it is mapped to does not
    /// answer, and fails at last.
    #[allow(dead_code, reason = "each test program uses its part")]
    pub(crate) fn fill(&self, size: usize) {
        self.shared.0.lock().unwrap().content = vec![0; size];
    }

    /// Waits until a write, a read, or a close(2), is stuck.
    pub(crate) fn wait_for_a_write(&self) {
        let (state, changed) = &*self.shared;
        drop(changed.wait_while(state.lock().unwrap(), |state| state.waiting == 0).unwrap());
    }

    /// Answers everything from now on.
    pub(crate) fn release(&self) {
        let (state, changed) = &*self.shared;
        state.lock().unwrap().open = true;
        changed.notify_all();
    }

    /// What was written.
    #[allow(dead_code, reason = "each test program uses its part")]
    pub(crate) fn content(&self) -> Vec<u8> {
        self.shared.0.lock().unwrap().content.clone()
    }
}

impl Drop for SlowDisk {
    fn drop(&mut self) {
        self.release();
        umount2(&self.directory, MntFlags::MNT_DETACH).unwrap();
    }
}

/// Gives this thread a table of descriptors of its own, with the standard ones only.
fn leave_descriptors() {
    nix::sched::unshare(nix::sched::CloneFlags::CLONE_FILES).unwrap();
    let open: Vec<i32> = std::fs::read_dir("/proc/thread-self/fd")
        .unwrap()
        .map(|entry| entry.unwrap().file_name().to_str().unwrap().parse().unwrap())
        .collect();
    for number in open.into_iter().filter(|number| *number > 2) {
        // The directory's own is closed already.
        let _closed = nix::unistd::close(number);
    }
}

fn serve(mut device: File, shared: &(Mutex<State>, Condvar)) {
    let mut buffer = vec![0; (1 << 20) + 4096];
    // It ends with ENODEV when the last mount and the last open file are gone.
    while let Ok(count) = device.read(&mut buffer) {
        let request = &buffer[..count];
        let word = |at: usize| u32::from_ne_bytes(request[at..at + 4].try_into().unwrap());
        let (opcode, node) = (word(4), u64::from_ne_bytes(request[16..24].try_into().unwrap()));
        let size = shared.0.lock().unwrap().content.len() as u64;
        let answer = match opcode {
            FORGET | BATCH_FORGET => continue,
            INIT => Ok(init()),
            LOOKUP if &request[HEADER..count - 1] == b"log" => Ok(entry(size)),
            LOOKUP => Err(2),
            GETATTR => Ok([vec![0; 16], attributes(node, size)].concat()),
            // FOPEN_DIRECT_IO: what is written comes here at once.
            OPEN => Ok([vec![0; 8], 1_u32.to_ne_bytes().to_vec(), vec![0; 4]].concat()),
            WRITE => Ok(write(shared, &request[2 * HEADER..])),
            FLUSH => {
                flush(shared);
                Ok(Vec::new())
            }
            READ => {
                wait(shared);
                Err(EIO)
            }
            RELEASE => Ok(Vec::new()),
            _ => Err(ENOSYS),
        };
        let (error, body) = answer.map_or_else(|errno| (-errno, Vec::new()), |body| (0, body));
        let mut reply = u32::try_from(16 + body.len()).unwrap().to_ne_bytes().to_vec();
        reply.extend_from_slice(&error.to_ne_bytes());
        reply.extend_from_slice(&request[8..16]);
        reply.extend_from_slice(&body);
        // A request whose process was killed is gone.
        let _answered = device.write(&reply);
    }
}

/// `fuse_init_out`: version 7.31, writes of up to 1 MiB.
fn init() -> Vec<u8> {
    let mut body = vec![0; 64];
    body[0..4].copy_from_slice(&7_u32.to_ne_bytes());
    body[4..8].copy_from_slice(&31_u32.to_ne_bytes());
    body[20..24].copy_from_slice(&(1_u32 << 20).to_ne_bytes());
    body[24..28].copy_from_slice(&1_u32.to_ne_bytes());
    body
}

/// `fuse_entry_out` of the file, node 2, not to be cached.
fn entry(size: u64) -> Vec<u8> {
    [2_u64.to_ne_bytes().to_vec(), vec![0; 32], attributes(2, size)].concat()
}

/// `fuse_attr`.
fn attributes(node: u64, size: u64) -> Vec<u8> {
    let mode: u32 = if node == 1 { 0o040_755 } else { 0o100_600 };
    let mut attributes = [node.to_ne_bytes(), size.to_ne_bytes()].concat();
    attributes.resize(60, 0);
    attributes.extend_from_slice(&mode.to_ne_bytes());
    attributes.extend_from_slice(&1_u32.to_ne_bytes());
    attributes.resize(88, 0);
    attributes
}

fn flush(shared: &(Mutex<State>, Condvar)) {
    if shared.0.lock().unwrap().holds_flushes {
        wait(shared);
    }
}

fn wait((state, changed): &(Mutex<State>, Condvar)) {
    let mut state = state.lock().unwrap();
    state.waiting += 1;
    changed.notify_all();
    let mut state = changed.wait_while(state, |state| !state.open).unwrap();
    state.waiting -= 1;
}

/// `fuse_write_out`, once writes are let through.
fn write((state, changed): &(Mutex<State>, Condvar), bytes: &[u8]) -> Vec<u8> {
    let mut state = state.lock().unwrap();
    state.waiting += 1;
    changed.notify_all();
    let mut state = changed.wait_while(state, |state| !state.open).unwrap();
    state.waiting -= 1;
    state.content.extend_from_slice(bytes);
    [u32::try_from(bytes.len()).unwrap().to_ne_bytes(), [0; 4]].concat()
}
