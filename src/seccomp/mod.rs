//! Seccomp notifications: received from the kernel, decided by plugins and
//! built-ins, answered in time.
//!
//! An OCI runtime that installs a profile with `SCMP_ACT_NOTIFY` sends the
//! listener's descriptor to the socket that the profile names. From then on the
//! kernel stops every call that the profile notifies of until somebody answers.
//!
//! All of a pod's seccomp lives on one thread of its own, which starts with the
//! first connection: listeners, broker and plugins. Its state is behind an `Rc`,
//! in plain cells; a borrow of a cell never lives across an await.
//!
//! What is here is a mechanism for whoever runs the pod. The kernel's manual
//! (seccomp_unotify(2)) says why it is no wall by itself: see
//! [`verdict::Verdict::Continue`].
#![forbid(unsafe_code)]

pub mod arrival;
pub(crate) mod awake;
pub mod broker;
pub mod builtin;
mod call;
pub mod decode;
pub mod foreign;
mod linger;
pub mod lint;
mod listener;
mod live;
pub mod notification;
pub mod plugin;
pub mod recording;
pub mod reload;
mod route;
pub mod rules;
pub mod select;
pub(crate) mod share;
pub mod state;
pub mod stats;
pub mod syscall;
pub mod tap;
pub mod target;
pub mod thread;
pub mod verdict;
pub mod worker;

pub use broker::Broker;
pub use route::RegistrationId;
pub use thread::{Handle, Options, start};
