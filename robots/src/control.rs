//! The real-time control loop of one arm: a fixed rate on a thread of its own that never waits for anyone.
//!
//! Four parties: the *loop* asks the queue for an action, has the gate check it and hands it to the arm; the
//! *camera thread* waits for frames (or renders them) and pairs them with the joints of their moment; the *planner
//! thread* asks the policy, near or far, for the next chunk; *listeners* (recorder, viewer, ROS 2) get events over a
//! bounded channel that drops and counts when they are slow; the gate's verdicts have one of their own, for a log that
//! hides nothing. Between them only bounded channels and locks that the
//! loop merely tries. What cannot be trusted or does not come makes the arm hold, with a reason; a hold that lasts
//! becomes a stop.

mod camera;
mod planner;
mod report;
mod shared;
mod tick;
mod verdicts;

pub use report::{ControlEvent, ControlReport, TickReport};
pub use shared::{ControlHandle, Latest};
pub use verdicts::{Stretch, Stretches, VerdictEntry, Verdicts};

use crate::priority::{self, Urgency};
use crate::resolve::{Resolver, require_policy_fits};
use shared::{EventSink, Shared};
use std::sync::Arc;
use std::sync::mpsc::{Receiver, sync_channel};
use std::thread::JoinHandle;
use vela_embodiment::{Error, FrameSource, GateConfig, JointSide, Policy, Result};

/// How the loop behaves.
#[derive(Clone, Debug, PartialEq)]
pub struct ControlOptions {
    /// Seed of the policy's sampling noise; each chunk gets its own seed of this stream.
    pub seed: u64,
    /// Ticks of a chunk to carry out before the next one; the policy's own number when absent.
    pub execute: Option<usize>,
    /// The gate's own limits.
    pub gate: GateConfig,
    /// Frames older than this make the arm hold, s.
    pub max_frame_age_secs: f64,
    /// Joints read longer ago than this make the arm hold, s.
    pub max_joint_age_secs: f64,
    /// A hold that lasts this long becomes a stop, s; infinite waits for ever.
    pub stop_after_hold_secs: f64,
    /// The same for the hold before the first plan, s.
    pub start_within_secs: f64,
    /// A tick that starts later than this part of a period after its time counts as late.
    pub late_part: f64,
    /// Events that may wait for a slow listener.
    pub events: usize,
    /// Verdicts of the gate that may wait for a slow log ([`Controller::verdicts`]).
    pub verdicts: usize,
    /// The loop's thread and the camera thread ask the system for a real-time priority: for arms whose loop and cameras
    /// only pass messages on. A simulated one computes there, which must not stop everything else.
    pub real_time: bool,
}

impl Default for ControlOptions {
    fn default() -> Self {
        Self {
            seed: 0,
            execute: None,
            gate: GateConfig::default(),
            max_frame_age_secs: 0.5,
            max_joint_age_secs: 0.25,
            stop_after_hold_secs: 2.0,
            start_within_secs: 10.0,
            late_part: 0.25,
            events: 512,
            verdicts: 4096,
            real_time: false,
        }
    }
}

/// What the loop is doing.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum State {
    /// The arm follows a plan.
    Running,
    /// The arm stands still and goes on when what is missing returns.
    Holding {
        /// What is missing.
        reason: String,
    },
    /// The arm stands still and the loop has ended.
    Stopped {
        /// Why.
        reason: String,
    },
}

/// A running control loop. Dropping it stops the arm; [`Self::finish`] also gives everything back.
pub struct Controller<A, C, P> {
    handle: ControlHandle,
    arm: Option<JoinHandle<(A, ControlReport)>>,
    cameras: Option<JoinHandle<C>>,
    policy: Option<JoinHandle<P>>,
    verdicts: Option<Verdicts>,
}

/// What a finished loop gives back. A part whose thread hangs (a dead camera's driver) or died is `None`.
pub struct Finished<A, C, P> {
    /// The arm.
    pub arm: Option<A>,
    /// Its cameras.
    pub cameras: Option<C>,
    /// The policy.
    pub policy: Option<P>,
    /// How it went.
    pub report: ControlReport,
}

impl<A, C, P> Controller<A, C, P>
where
    A: JointSide + 'static,
    C: FrameSource + 'static,
    P: Policy + 'static,
{
    /// Starts the three threads. Events come from the receiver until the loop has ended; it need not be read.
    ///
    /// # Errors
    /// The policy does not fit the arm (every difference named), or a thread cannot be started.
    pub fn start(
        arm: A,
        cameras: C,
        policy: P,
        instruction: &str,
        options: &ControlOptions,
    ) -> Result<(Self, Receiver<ControlEvent>)> {
        require_policy_fits(arm.embodiment(), policy.spec())?;
        let resolver = Resolver::new(arm.embodiment())?;
        let clock = arm.clock();
        let embodiment = arm.embodiment().clone();
        let (event_sender, events) = sync_channel(options.events);
        let (verdict_sink, verdicts) = verdicts::channel(options.verdicts);
        let (command_sender, commands) = sync_channel(4);
        let (request_sender, requests) = sync_channel(1);
        let (answer_sender, answers) = sync_channel(4);
        let shared = Arc::new(Shared::new(instruction, clock.clone()));
        let sink = EventSink::new(event_sender, shared.clone());
        let handle = ControlHandle::new(shared.clone(), command_sender);

        let cameras = spawn("vela-camera", {
            let (shared, sink, embodiment) = (shared.clone(), sink.clone(), embodiment.clone());
            let real_time = options.real_time;
            move || {
                if real_time {
                    // The loop says whether it was given.
                    let _ = priority::ask(Urgency::Picture);
                }
                camera::run(cameras, &embodiment, &shared, &sink)
            }
        })?;
        let policy = spawn("vela-planner", {
            let (shared, sink, options) = (shared.clone(), sink.clone(), options.clone());
            move || planner::run(policy, &resolver, &requests, &answer_sender, &shared, &sink, options.seed)
        });
        let policy = match policy {
            Ok(policy) => policy,
            Err(error) => {
                handle.stop(&error.to_string());
                return Err(error);
            }
        };
        let channels = tick::Channels { requests: request_sender, answers, commands };
        let arm = spawn("vela-control", {
            let options = options.clone();
            let shared = shared.clone();
            move || tick::run(arm, &channels, &shared, &sink, verdict_sink, &options)
        });
        let arm = arm.inspect_err(|error| handle.stop(&error.to_string()))?;
        let (arm, cameras, policy) = (Some(arm), Some(cameras), Some(policy));
        Ok((Self { handle, arm, cameras, policy, verdicts: Some(verdicts) }, events))
    }

    /// Every verdict of the gate that is not a plain pass, for a log; they can be taken once.
    pub fn verdicts(&mut self) -> Option<Verdicts> {
        self.verdicts.take()
    }

    /// The loop's remote control; clones work from any thread.
    pub fn handle(&self) -> ControlHandle {
        self.handle.clone()
    }

    /// Waits until the loop has ended by itself (see [`ControlHandle::stop`]) and gives everything back.
    pub fn wait(mut self) -> Finished<A, C, P> {
        self.collect()
    }

    /// Brakes the arm, ends the loop and gives everything back.
    pub fn finish(self) -> Finished<A, C, P> {
        self.handle.stop("finished");
        self.wait()
    }

    fn collect(&mut self) -> Finished<A, C, P> {
        let ended = self.arm.take().and_then(|thread| thread.join().ok());
        let (arm, report) = match ended {
            Some((arm, report)) => (Some(arm), report),
            None => (None, ControlReport::died()),
        };
        self.handle.stop("the control loop has ended");
        let clock = self.handle.clock();
        let deadline = clock.now().plus_secs(3.0);
        let waited = || {
            clock.sleep_until(clock.now().plus_secs(0.005));
            clock.now() < deadline
        };
        let cameras = join_within(self.cameras.take(), &waited);
        let policy = join_within(self.policy.take(), &waited);
        Finished { arm, cameras, policy, report }
    }
}

impl<A, C, P> Drop for Controller<A, C, P> {
    fn drop(&mut self) {
        if self.arm.is_some() {
            self.handle.stop("the controller was dropped");
        }
    }
}

fn spawn<T: Send + 'static>(name: &str, body: impl FnOnce() -> T + Send + 'static) -> Result<JoinHandle<T>> {
    std::thread::Builder::new()
        .name(name.into())
        .spawn(body)
        .map_err(|e| Error::Robot(format!("cannot start thread {name}: {e}")))
}

fn join_within<T>(thread: Option<JoinHandle<T>>, more_time: &dyn Fn() -> bool) -> Option<T> {
    let thread = thread?;
    while !thread.is_finished() {
        if !more_time() {
            return None;
        }
    }
    thread.join().ok()
}
