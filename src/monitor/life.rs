//! A container's life as a pure function: where it is, what happened, where it
//! is then, and what is to be done. No I/O, no clock, no lock.
//!
//! ```text
//!  Creating ──Created──▶ Created ──Started──▶ Running
//!     │                   │   │                 │  │
//!     │ CreateFailed      │   └──Stop, Force──┐ │  │ Stop, Force
//!     ▼                   │                   ▼ ▼  ▼
//!   Gone ◀─┐              │ Ended         Stopping ⟲ Stop, GraceOver, Force
//!          │              ▼                   │
//!          │           Draining ◀────Ended────┘
//!          │              │ Recorded
//!          └──Delete── Exited
//! ```
//!
//! Everything that is not drawn is refused with a reason, or is harmless and
//! changes nothing; the table test below has every cell.

use std::fmt;

/// Where a container is in its life.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Phase {
    /// The OCI runtime is creating it.
    Creating,
    /// Its process exists; the user's program has not been started by us.
    Created,
    /// The user's program runs.
    Running,
    /// It was asked to stop and has not ended.
    Stopping,
    /// Its process has ended; streams are being read to their end.
    Draining,
    /// Its exit has been recorded.
    Exited,
    /// It is forgotten.
    Gone,
}

impl fmt::Display for Phase {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Self::Creating => "being created",
            Self::Created => "created",
            Self::Running => "running",
            Self::Stopping => "being stopped",
            Self::Draining => "ending",
            Self::Exited => "exited",
            Self::Gone => "gone",
        })
    }
}

/// What happened, or is wanted.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Input {
    /// The OCI runtime's `create` succeeded.
    Created,
    /// It did not.
    CreateFailed,
    /// A client wants it started.
    Start,
    /// The OCI runtime's `start` succeeded.
    Started,
    /// A client wants it to end.
    Stop,
    /// The grace time of a stop has passed.
    GraceOver,
    /// A client wants it gone whatever it is doing.
    Force,
    /// Its process has ended.
    Ended,
    /// Its exit is in the files.
    Recorded,
    /// A client wants it forgotten.
    Delete,
}

/// What is to be done.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Effect {
    /// Nothing.
    Nothing,
    /// Run the OCI runtime's `start`.
    RunStart,
    /// Send the stop signal.
    Signal,
    /// Send SIGKILL.
    Kill,
    /// Read the streams to their end, then record the exit.
    Drain,
    /// Tell everybody who waits.
    Tell,
    /// Run the OCI runtime's `delete`.
    RunDelete,
    /// Undo what the failed create left.
    Undo,
}

/// Why an input is refused.
pub type Refusal = &'static str;

/// One step of a container's life.
///
/// # Errors
/// The reason, as the end of a sentence, if `input` is not allowed in `phase`.
pub fn step(phase: Phase, input: Input) -> Result<(Phase, Effect), Refusal> {
    use Effect as E;
    use Input as I;
    use Phase as P;
    Ok(match (phase, input) {
        (P::Creating, I::Created) => (P::Created, E::Tell),
        (P::Creating, I::CreateFailed) => (P::Gone, E::Undo),
        (P::Creating, _) => return Err("wait until its create has been answered"),

        (P::Created, I::Start) => (P::Created, E::RunStart),
        (P::Created, I::Started) => (P::Running, E::Tell),
        // Nothing of the user's runs yet that could use a grace time, and PID 1
        // of a pid namespace ignores every other signal at this point.
        (P::Created, I::Stop | I::Force) | (P::Running, I::Force) => (P::Stopping, E::Kill),

        (P::Running, I::Start) => return Err("it has been started already"),
        (P::Running, I::Stop) => (P::Stopping, E::Signal),

        (P::Stopping, I::Stop) => (P::Stopping, E::Signal),
        (P::Stopping, I::GraceOver | I::Force) => (P::Stopping, E::Kill),
        (P::Stopping, I::Start) => return Err("it cannot be started again"),
        // The answer of a `start` that was under way when the stop came.
        (P::Stopping, I::Started) => (P::Stopping, E::Nothing),

        (P::Created | P::Running | P::Stopping, I::Ended) => (P::Draining, E::Drain),
        (P::Created | P::Running | P::Stopping | P::Draining, I::Delete) => {
            return Err("stop it first, or delete it by force");
        }

        (P::Draining, I::Recorded) => (P::Exited, E::Tell),
        (P::Draining | P::Exited, I::Stop | I::GraceOver | I::Force | I::Started) => (phase, E::Nothing),
        (P::Draining | P::Exited, I::Start) => return Err("a container is started once only"),

        (P::Exited, I::Delete) => (P::Gone, E::RunDelete),

        (P::Gone, _) => return Err("it has been deleted"),
        // What remains would be a second create, a grace time without a stop, or
        // an exit told twice.
        (_, I::Created | I::CreateFailed | I::GraceOver | I::Started | I::Ended | I::Recorded) => {
            return Err("that cannot happen here");
        }
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    const PHASES: [Phase; 7] = [
        Phase::Creating,
        Phase::Created,
        Phase::Running,
        Phase::Stopping,
        Phase::Draining,
        Phase::Exited,
        Phase::Gone,
    ];

    /// Rows: inputs. Columns: [`PHASES`]. "-" = refused; else phase/effect.
    const TABLE: [(Input, [&str; 7]); 10] = [
        (Input::Created, ["Created/Tell", "-", "-", "-", "-", "-", "-"]),
        (Input::CreateFailed, ["Gone/Undo", "-", "-", "-", "-", "-", "-"]),
        (Input::Start, ["-", "Created/RunStart", "-", "-", "-", "-", "-"]),
        (
            Input::Started,
            ["-", "Running/Tell", "-", "Stopping/Nothing", "Draining/Nothing", "Exited/Nothing", "-"],
        ),
        (
            Input::Stop,
            [
                "-",
                "Stopping/Kill",
                "Stopping/Signal",
                "Stopping/Signal",
                "Draining/Nothing",
                "Exited/Nothing",
                "-",
            ],
        ),
        (Input::GraceOver, ["-", "-", "-", "Stopping/Kill", "Draining/Nothing", "Exited/Nothing", "-"]),
        (
            Input::Force,
            [
                "-",
                "Stopping/Kill",
                "Stopping/Kill",
                "Stopping/Kill",
                "Draining/Nothing",
                "Exited/Nothing",
                "-",
            ],
        ),
        (Input::Ended, ["-", "Draining/Drain", "Draining/Drain", "Draining/Drain", "-", "-", "-"]),
        (Input::Recorded, ["-", "-", "-", "-", "Exited/Tell", "-", "-"]),
        (Input::Delete, ["-", "-", "-", "-", "-", "Gone/RunDelete", "-"]),
    ];

    #[test]
    fn every_cell_is_as_the_table_says() {
        for (input, row) in TABLE {
            for (phase, expected) in PHASES.into_iter().zip(row) {
                let told = match step(phase, input) {
                    Ok((next, effect)) => format!("{next:?}/{effect:?}"),
                    Err(_) => "-".to_owned(),
                };
                assert_eq!(told, expected, "{input:?} while {phase:?}");
            }
        }
    }
}
