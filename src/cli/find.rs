//! From names to connections: reaching a pod's server, and finding the pod that
//! a container is in.

use std::time::Duration;

use super::exit::Failure;
use super::names::{Place, Reference, resolve};
use super::paths::{PodDir, Root};
use crate::limits;
use crate::rpc::client::{Client, ContainerStatus, Error, PodClient};

/// A pod whose server answers.
#[derive(Debug)]
pub struct Pod {
    /// Its directory.
    pub dir: PodDir,
    /// The connection.
    pub client: Client,
}

/// A container in a pod whose server answers.
#[derive(Debug)]
pub struct Found {
    /// Its pod.
    pub pod: Pod,
    /// Its id.
    pub id: String,
}

/// Connects to the server of `dir`.
///
/// # Errors
/// If there is no such pod, or its server has ended.
pub fn reach(dir: PodDir) -> Result<Pod, Failure> {
    if !dir.path.exists() {
        return Err(Failure::new(format!(
            "there is no pod {}: `podinit pod ls` lists those there are",
            dir.id
        )));
    }
    match Client::connect(&dir.socket()) {
        Ok(client) => Ok(Pod { dir, client }),
        Err(error) => Err(Failure::new(format!(
            "pod {id} is not running ({error}): remove what is left of it with `podinit pod rm -f {id}`",
            id = dir.id
        ))),
    }
}

/// Asks one pod, for a command that asks all: bounded in time.
///
/// # Errors
/// What the pod says, or that it said nothing in [`limits::LISTING_TIMEOUT`].
pub fn ask<'a, T, F>(client: &'a Client, request: impl FnOnce(&'a PodClient) -> F) -> Result<T, Failure>
where
    F: Future<Output = Result<T, Error>>,
{
    within(client, limits::LISTING_TIMEOUT, request)
}

/// Asks a pod and waits `timeout` at most.
///
/// # Errors
/// What the pod says, or that it said nothing in time.
pub fn within<'a, T, F>(
    client: &'a Client,
    timeout: Duration,
    request: impl FnOnce(&'a PodClient) -> F,
) -> Result<T, Failure>
where
    F: Future<Output = Result<T, Error>>,
{
    match client.call(async |pod| tokio::time::timeout(timeout, request(pod)).await) {
        Ok(answer) => Ok(answer?),
        Err(_) => Err(Failure::new(format!("the pod's server did not answer in {} s", timeout.as_secs()))),
    }
}

/// The containers of all pods.
#[derive(Debug, Default)]
pub struct Containers {
    /// Those of the pods that answer.
    pub found: Vec<(PodDir, ContainerStatus)>,
    /// What became of the other pods.
    pub silent: Vec<Failure>,
}

/// Asks every pod for its containers.
///
/// # Errors
/// If the pods cannot be listed.
pub fn containers(root: &Root) -> Result<Containers, Failure> {
    let Containers { mut found, mut silent } = Containers::default();
    for dir in root.pods()? {
        // A pod that is not running has no containers.
        let Ok(client) = Client::connect(&dir.socket()) else { continue };
        match ask(&client, PodClient::list_containers) {
            Ok(list) => found.extend(list.into_iter().map(|status| (dir.clone(), status))),
            Err(failure) => silent.push(failure.while_doing(format_args!("pod {}", dir.id))),
        }
    }
    Ok(Containers { found, silent })
}

/// Finds the pod that the container `name` is in.
///
/// # Errors
/// If no pod or several pods have such a container.
pub fn find(root: &Root, name: &Reference) -> Result<Found, Failure> {
    let place = place(root, name)?;
    Ok(Found { pod: reach(root.pod(&place.pod)?)?, id: place.container })
}

/// The pod that `name` is in. A pod that was named is believed.
///
/// # Errors
/// If no pod or several pods have such a container.
pub fn place(root: &Root, name: &Reference) -> Result<Place, Failure> {
    if let Some(pod) = &name.pod {
        return Ok(Place { pod: pod.clone(), container: name.container.clone() });
    }
    let Containers { found, silent } = containers(root)?;
    let places: Vec<Place> =
        found.into_iter().map(|(dir, status)| Place { pod: dir.id, container: status.id }).collect();
    // A pod that does not answer may have it too: better an error than the wrong container.
    match silent.into_iter().next() {
        Some(failure) => Err(failure.while_doing(format_args!("looking for {name} (POD/{name} would do)"))),
        None => resolve(name, &places),
    }
}
