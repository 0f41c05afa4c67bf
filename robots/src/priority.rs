//! Real-time priority: threads that keep time ask the system to be run before all others, as robots' loops do.
//!
//! Linux gives `SCHED_FIFO` to root and to whom `ulimit -r` allows it. Whoever does not get it goes on without: the loop
//! keeps its time as well as the machine's load lets it.

use std::fmt;

/// What a thread does, by how urgent it is.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Urgency {
    /// Keeps the control loop's time.
    Control,
    /// Carries messages; only the control loop interrupts it.
    Message,
    /// Makes pictures ready; messages that come meanwhile interrupt it.
    Picture,
}

impl Urgency {
    /// Of 1 to 99. 50 is what ROS 2's controller manager asks for.
    pub fn priority(self) -> u8 {
        match self {
            Self::Control => 50,
            Self::Message => 49,
            Self::Picture => 48,
        }
    }
}

/// How the system runs a thread.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Scheduling {
    /// Before every thread that has no such priority, as long as it wants (`SCHED_FIFO`).
    RealTime {
        /// 1 to 99.
        priority: u8,
    },
    /// Like any other thread.
    Plain {
        /// Why not in real time.
        why: String,
    },
}

impl Scheduling {
    /// Whether it is in real time.
    pub fn is_real_time(&self) -> bool {
        matches!(self, Self::RealTime { .. })
    }
}

/// What the log says of a control loop, and what can be done.
impl fmt::Display for Scheduling {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::RealTime { priority } => {
                write!(f, "the control loop has real-time priority {priority} (SCHED_FIFO)")
            }
            Self::Plain { why } => {
                let priority = Urgency::Control.priority();
                write!(
                    f,
                    "the control loop has no real-time priority ({why}): on a busy machine its ticks may come late; \
                     `ulimit -r {priority}`, or `USER - rtprio {priority}` in /etc/security/limits.conf and a new \
                     login, allows it"
                )
            }
        }
    }
}

/// Asks the system for a real-time priority for the calling thread. Threads that it starts from then on have it too.
#[cfg(unix)]
pub fn ask(urgency: Urgency) -> Scheduling {
    use thread_priority::unix::{
        RealtimeThreadSchedulePolicy, ThreadSchedulePolicy, set_thread_priority_and_policy, thread_native_id,
    };
    use thread_priority::{Error, ThreadPriority};
    let priority = urgency.priority();
    let plain = |why: String| Scheduling::Plain { why };
    let Ok(wanted) = priority.try_into().map(ThreadPriority::Crossplatform) else {
        return plain(format!("the system knows no priority {priority}"));
    };
    let policy = ThreadSchedulePolicy::Realtime(RealtimeThreadSchedulePolicy::Fifo);
    match set_thread_priority_and_policy(thread_native_id(), wanted, policy) {
        Ok(()) => Scheduling::RealTime { priority },
        Err(Error::OS(code)) => plain(std::io::Error::from_raw_os_error(code).to_string()),
        Err(other) => plain(format!("{other:?}")),
    }
}

/// Runs `work` on a thread of its own that asks for a real-time priority, and waits for it. Every thread that it starts
/// asks no more: it has the same. A zenoh session that is opened here carries its messages with it.
///
/// # Errors
/// The thread cannot be started or died.
pub fn urgently<T: Send>(urgency: Urgency, work: impl FnOnce() -> T + Send) -> vela_embodiment::Result<T> {
    use vela_embodiment::Error;
    std::thread::scope(|scope| {
        let thread = std::thread::Builder::new().name("vela-urgent".into());
        let thread = thread.spawn_scoped(scope, || {
            // Whoever keeps time says what came of its own question.
            let _ = ask(urgency);
            work()
        });
        let thread = thread.map_err(|e| Error::Robot(format!("cannot start an urgent thread: {e}")))?;
        thread.join().map_err(|_| Error::Robot("an urgent thread died".into()))
    })
}

/// Asks the system for a real-time priority for the calling thread: not on this one.
#[cfg(not(unix))]
pub fn ask(_: Urgency) -> Scheduling {
    Scheduling::Plain { why: "this system has no SCHED_FIFO".into() }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// Priority and policy of the calling thread: fields 40 and 41 of proc_pid_stat(5), counted behind the name.
    #[cfg(target_os = "linux")]
    fn own() -> Option<(u8, u8)> {
        let stat = std::fs::read_to_string("/proc/thread-self/stat").ok()?;
        let fields: Vec<&str> = stat.rsplit(')').next()?.split_whitespace().collect();
        Some((fields.get(37)?.parse().ok()?, fields.get(38)?.parse().ok()?))
    }

    #[test]
    #[cfg(target_os = "linux")]
    fn a_thread_has_what_it_was_told_and_so_have_those_that_it_starts() -> vela_embodiment::Result<()> {
        let (given, own_one, child) = urgently(Urgency::Message, || {
            let given = ask(Urgency::Picture);
            (given, own(), std::thread::spawn(own).join().ok().flatten())
        })?;
        let expected = if given.is_real_time() { (48, 1) } else { (0, 0) };
        assert_eq!((own_one, child), (Some(expected), Some(expected)), "{given}");
        assert_eq!(own(), Some((0, 0)), "the thread that waited is as it was");
        Ok(())
    }

    #[test]
    fn the_log_says_what_can_be_done() {
        let refused = Scheduling::Plain { why: "Operation not permitted".into() }.to_string();
        assert!(refused.contains("Operation not permitted") && refused.contains("ulimit -r 50"), "{refused}");
        let given = Scheduling::RealTime { priority: 50 }.to_string();
        assert_eq!(given, "the control loop has real-time priority 50 (SCHED_FIFO)");
    }
}
