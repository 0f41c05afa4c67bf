//! The planner thread: asks the policy for the next chunk whenever the loop wants one.

use super::report::ControlEvent;
use super::shared::{EventSink, Shared};
use crate::queue::ChunkQueue;
use crate::resolve::{Plan, Resolver, chunk_seed};
use std::sync::Arc;
use std::sync::mpsc::{Receiver, SyncSender};
use std::time::Duration;
use vela_embodiment::{ActionChunk, Error, InferOptions, Observation, Policy, Result};

/// The loop wants a chunk.
pub(super) struct Request {
    pub(super) number: u64,
    pub(super) delay_ticks: usize,
    /// The present plan: only this thread knows which observation it will be compared with.
    pub(super) queue: ChunkQueue,
}

/// What came of it.
pub(super) struct Thought {
    pub(super) plan: Arc<Plan>,
    pub(super) infer_secs: f64,
    /// The policy's own receding horizon; known late when the policy is far away.
    pub(super) execute: usize,
}

pub(super) fn run<P: Policy>(
    mut policy: P,
    resolver: &Resolver,
    requests: &Receiver<Request>,
    answers: &SyncSender<std::result::Result<Thought, String>>,
    shared: &Shared,
    sink: &EventSink,
    seed: u64,
) -> P {
    while !shared.stopping() {
        // The time-out only bounds how late this thread sees the end.
        let Ok(request) = requests.recv_timeout(Duration::from_millis(50)) else { continue };
        let start = shared.clock.now();
        let answer = think(&mut policy, resolver, request, shared, seed);
        let stamp = shared.clock.now();
        let infer_secs = stamp.secs_since(start);
        let answer = match answer {
            Ok((observation, chunk, plan)) => {
                let plan = Arc::new(plan);
                let chunk = Arc::new(chunk);
                sink.send(ControlEvent::Chunk { observation, chunk, plan: plan.clone(), infer_secs });
                Ok(Thought { plan, infer_secs, execute: policy.spec().execute })
            }
            Err(error) => {
                let why = error.to_string();
                sink.send(ControlEvent::Failed { why: why.clone(), stamp });
                Err(why)
            }
        };
        if answers.send(answer).is_err() {
            break;
        }
    }
    policy
}

fn think<P: Policy>(
    policy: &mut P,
    resolver: &Resolver,
    request: Request,
    shared: &Shared,
    seed: u64,
) -> Result<(Arc<Observation>, ActionChunk, Plan)> {
    let history = shared.history(policy.spec().history);
    let Some(newest) = history.last().cloned() else {
        return Err(Error::Robot("nothing has been seen yet".into()));
    };
    let history: Vec<Observation> = history.iter().map(|observation| (**observation).clone()).collect();
    let options = InferOptions {
        seed: chunk_seed(seed, request.number),
        delay_ticks: request.delay_ticks,
        unexecuted: request.queue.unexecuted(newest.stamp),
    };
    let chunk = policy.infer(&history, &options)?;
    if chunk.observation_stamp != newest.stamp {
        return Err(Error::Policy(format!(
            "the chunk answers the observation at {:.4} s, asked was the one at {:.4} s",
            chunk.observation_stamp.secs(),
            newest.stamp.secs()
        )));
    }
    let plan = resolver.resolve(&chunk, &newest.joint_positions)?;
    Ok((newest, chunk, plan))
}
