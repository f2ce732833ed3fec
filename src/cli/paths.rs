//! Where the pods of people are: `<root>/pods/<pod id>/`, all of a pod's files
//! under its own directory.
//!
//! ```text
//! conmon.sock pidfile lock containers/ sockets/   the server's own (see ARCHITECTURE.md)
//! pod.json           what the pod was made with, for teardown after a crash
//! runtime/           state of the OCI runtime
//! bundles/<id>/      config.json of each container
//! logs/<id>.log      its log, in CRI format
//! attach/<id>.sock   its attach socket, while someone is attached
//! ```

use std::fs;
use std::io;
use std::os::unix::fs::DirBuilderExt;
use std::path::{Path, PathBuf};

use super::exit::Failure;
use super::names::{self, Named};

/// The directory of everything, from `--root` or `$PODINIT_ROOT`.
#[derive(Debug, Clone)]
pub struct Root(PathBuf);

/// The directory of one pod. It need not exist.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct PodDir {
    /// The pod's id.
    pub id: String,
    /// Absolute.
    pub path: PathBuf,
}

impl Root {
    /// The root at `path`, which need not exist.
    ///
    /// # Errors
    /// If the current directory is gone and `path` is relative to it.
    pub fn new(path: &Path) -> Result<Self, Failure> {
        let path = std::path::absolute(path)
            .map_err(|e| Failure::io(format_args!("finding the directory {}", path.display()), &e))?;
        Ok(Self(path))
    }

    /// The directory of pod `id`.
    ///
    /// # Errors
    /// If `id` cannot be a pod's id.
    pub fn pod(&self, id: &str) -> Result<PodDir, Failure> {
        names::check_id(Named::Pod, id)?;
        Ok(PodDir { id: id.to_owned(), path: self.0.join("pods").join(id) })
    }

    /// Every pod that has a directory, by name.
    ///
    /// # Errors
    /// If the directory cannot be read.
    pub fn pods(&self) -> Result<Vec<PodDir>, Failure> {
        let directory = self.0.join("pods");
        let entries = match fs::read_dir(&directory) {
            Ok(entries) => entries,
            Err(error) if error.kind() == io::ErrorKind::NotFound => return Ok(Vec::new()),
            Err(error) => {
                return Err(Failure::io(format_args!("listing the pods in {}", directory.display()), &error));
            }
        };
        // What is not a pod id was not made by podinit: not ours to show or to touch.
        let mut ids: Vec<String> = entries
            .filter_map(Result::ok)
            .filter(|entry| entry.file_type().is_ok_and(|kind| kind.is_dir()))
            .filter_map(|entry| entry.file_name().into_string().ok())
            .filter(|id| names::check_id(Named::Pod, id).is_ok())
            .collect();
        ids.sort();
        ids.iter().map(|id| self.pod(id)).collect()
    }
}

impl PodDir {
    /// The server's socket.
    #[must_use]
    pub fn socket(&self) -> PathBuf {
        self.path.join("conmon.sock")
    }

    /// The keeper's pid, if an engine has not taken the file away.
    #[must_use]
    pub fn pidfile(&self) -> PathBuf {
        self.path.join("pidfile")
    }

    /// State of the OCI runtime.
    #[must_use]
    pub fn runtime_root(&self) -> PathBuf {
        self.path.join("runtime")
    }

    /// What the pod was made with.
    #[must_use]
    pub fn note(&self) -> PathBuf {
        self.path.join("pod.json")
    }

    /// Bundle of a container that we made.
    #[must_use]
    pub fn bundle(&self, container: &str) -> PathBuf {
        self.path.join("bundles").join(container)
    }

    /// Log of a container that we made.
    #[must_use]
    pub fn log(&self, container: &str) -> PathBuf {
        self.path.join("logs").join(format!("{container}.log"))
    }

    /// Attach socket of a container.
    #[must_use]
    pub fn attach_socket(&self, container: &str) -> PathBuf {
        self.path.join("attach").join(format!("{container}.sock"))
    }

    /// Makes the pod's directory and takes its name.
    ///
    /// # Errors
    /// If the name is taken, or the directory cannot be made.
    pub fn make(&self) -> Result<(), Failure> {
        if let Some(parent) = self.path.parent() {
            private_directories(parent)?;
        }
        fs::DirBuilder::new().mode(0o700).create(&self.path).map_err(|error| match error.kind() {
            io::ErrorKind::AlreadyExists => Failure::new(format!(
                "there is a pod {id} already: choose another name, or remove it with `podinit pod rm {id}`",
                id = self.id
            )),
            _ => Failure::io(format_args!("making the pod's directory {}", self.path.display()), &error),
        })
    }
}

/// Makes `path` and what is missing above it, for the owner only.
///
/// # Errors
/// If it cannot be made.
pub fn private_directories(path: &Path) -> Result<(), Failure> {
    fs::DirBuilder::new()
        .mode(0o700)
        .recursive(true)
        .create(path)
        .map_err(|error| Failure::io(format_args!("making the directory {}", path.display()), &error))
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::os::unix::fs::PermissionsExt;

    #[test]
    fn pods_are_listed_by_name_and_strangers_left_out() {
        let root = tempfile::tempdir().unwrap();
        let here = Root::new(root.path()).unwrap();
        assert_eq!(here.pods().unwrap(), []);
        for id in ["b", "a"] {
            here.pod(id).unwrap().make().unwrap();
        }
        fs::create_dir(root.path().join("pods/.hidden")).unwrap();
        fs::write(root.path().join("pods/file"), "").unwrap();
        let ids: Vec<String> = here.pods().unwrap().into_iter().map(|pod| pod.id).collect();
        assert_eq!(ids, ["a", "b"]);
        let mode = fs::metadata(root.path().join("pods/a")).unwrap().permissions().mode();
        assert_eq!(mode & 0o777, 0o700);
    }

    #[test]
    fn name_is_taken_once() {
        let root = tempfile::tempdir().unwrap();
        let pod = Root::new(root.path()).unwrap().pod("a").unwrap();
        pod.make().unwrap();
        let Err(Failure::Said { message, .. }) = pod.make() else { panic!("made twice") };
        assert!(message.contains("podinit pod rm a"), "{message}");
    }
}
