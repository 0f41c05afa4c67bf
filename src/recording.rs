//! `vela record --robot`: a live arm on zenoh, whoever drives it, as a LeRobot dataset, in the units that its policies
//! know. It only listens: nothing that goes wrong here reaches the arm.

use crate::operator;
use crate::video::Video;
use anyhow::{Context, Result, bail};
use serde_json::json;
use std::path::Path;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::mpsc::{Receiver, TryRecvError};
use vela_embodiment::{Action, Clock, Embodiment, Frame, FrameSource, MonotonicClock, Observation, Stamp};
use vela_episodes::{Step, Writing};
use vela_robots::ros2::cameras::TopicCameras;
use vela_robots::ros2::{Moment, Witness};
use vela_robots::{ArmFile, JointScales, Latest, Side, open_session};

/// Pictures older than this are not of the present moment, s.
const STALE_SECS: f64 = 0.5;

/// What the cameras saw last, or why they saw nothing.
type Pictures = Latest<std::result::Result<Vec<Frame>, String>>;

/// What is recorded of which arm.
pub struct Job<'a> {
    /// The arm's file, as `vela robot` takes it.
    pub robot: &'a Path,
    /// The dataset's folder.
    pub out: &'a Path,
    /// How its pictures are stored.
    pub video: &'a Video,
    /// The sentence of every episode.
    pub task: &'a str,
    /// Episodes.
    pub episodes: u64,
    /// Each ends after this long, s; without it Enter ends one.
    pub episode_secs: Option<f64>,
    /// The next one begins after this long, s; without it, after Enter if Enter ended the last one, else at once.
    pub reset_secs: Option<f64>,
    /// A zenoh config file.
    pub zenoh: Option<&'a Path>,
    /// The arm has this long to be there, s.
    pub wait_secs: f64,
    /// Print JSON.
    pub json: bool,
}

/// What is being done.
enum Stage {
    /// For the arm, since then.
    Waiting(Stamp),
    Recording(Running),
    /// Until then, or until Enter.
    Resting(Option<Stamp>),
}

/// An episode that is being recorded.
#[derive(Default)]
struct Running {
    frames: u64,
    lost: u64,
    interventions: u64,
}

/// Who listens and what is heard.
struct Ears {
    robot: Embodiment,
    witness: Witness,
    pictures: Arc<Pictures>,
    scales: JointScales,
    task: String,
}

impl Ears {
    /// The arm at `now` as one frame of a dataset, or what is missing.
    fn step(&self, now: Stamp) -> std::result::Result<Step, String> {
        let Moment { reading, targets, intervention } = self.witness.moment(now)?;
        let frames = match self.pictures.get() {
            _ if self.robot.cameras.is_empty() => Vec::new(),
            Some(frames) => frames?,
            None => return Err("no picture came".into()),
        };
        if let Some(frame) = frames.iter().find(|frame| now.secs_since(frame.stamp) > STALE_SECS) {
            let age = now.secs_since(frame.stamp);
            return Err(format!("camera '{}': the newest picture is {age:.2} s old", frame.camera));
        }
        let (instruction, stamp) = (self.task.clone(), reading.stamp);
        let joint_positions = self.scales.theirs(&reading.positions);
        let observation = Observation { frames, joint_positions, instruction, stamp };
        let action = Action { joint_targets: self.scales.theirs(&targets) };
        // What the arm's gate said is in the arm's own log.
        Ok(Step { observation, action, intervention, ruling: None })
    }
}

/// Records.
pub fn run(job: &Job) -> Result<()> {
    let (file, robot) = ArmFile::load(job.robot)?;
    if [job.episode_secs, job.reset_secs].into_iter().flatten().any(|secs| !(0.0..1e6).contains(&secs)) {
        bail!("expected --episode-secs and --reset-secs of at least 0 s");
    }
    let scales = file.scales(&robot, file.policy_units)?;
    let writer = job.video.writer_in(job.out, &robot, file.policy_units.words())?;
    let recovered = writer.recovered_frames();
    if recovered > 0 && !job.json {
        println!("an earlier recording was killed: {recovered} frames of it are an episode now");
    }
    let session = open_session(Side::Policy, job.zenoh)?;
    let clock: Arc<dyn Clock> = Arc::new(MonotonicClock::new());
    let ros2 = file.ros2.clone().unwrap_or_default();
    let witness = Witness::listen(&session, &robot, &ros2, &clock)?;
    let (domain, distribution) = (file.domain(), file.distribution());
    let cameras = TopicCameras::listen(&session, &robot, domain, distribution, &file.cameras, &clock, false)?;
    let over = Arc::new(AtomicBool::new(false));
    let pictures = watch(cameras, &over)?;
    let ears = Ears { robot, witness, pictures, scales, task: job.task.to_owned() };
    let interrupted = operator::interruption()?;
    let mut writing = Writing::start(writer)?;
    let recorded = record(job, &ears, &*clock, &operator::lines(), &interrupted, &mut writing);
    over.store(true, Ordering::Release);
    // Whatever happened: what is on its way to the disk gets there. A failed write is the first reason of all.
    let writer = writing.finish().with_context(|| format!("recording into {}", job.out.display()))?;
    let totals = recorded?;
    let (episodes, frames) = (writer.episodes(), writer.frames());
    let Totals { recorded, lost, interventions } = totals;
    if job.json {
        println!(
            "{}",
            json!({"dataset": job.out, "recorded": recorded, "frames_lost": lost, "interventions": interventions,
                "recovered_frames": recovered, "episodes": episodes, "frames": frames})
        );
    } else {
        println!(
            "{}: {recorded} episodes recorded, {interventions} frames of them by somebody in the policy's place, {lost} \
             lost to a slow disk; the dataset holds {episodes} with {frames} frames",
            job.out.display()
        );
    }
    Ok(())
}

/// What came of it.
#[derive(Default)]
struct Totals {
    recorded: u64,
    lost: u64,
    interventions: u64,
}

fn record(
    job: &Job,
    ears: &Ears,
    clock: &dyn Clock,
    lines: &Receiver<String>,
    interrupted: &AtomicBool,
    writing: &mut Writing,
) -> Result<Totals> {
    let period = ears.robot.period_secs();
    let longest = job.episode_secs.map(|secs| (secs / period).round().max(1.0) as u64);
    let mut totals = Totals::default();
    let mut stage = Stage::Waiting(clock.now());
    let mut due = clock.now();
    while totals.recorded < job.episodes {
        clock.sleep_until(due);
        let now = clock.now();
        due = due.plus_secs(period).max(now);
        let ended = interrupted.load(Ordering::Acquire);
        let line = match lines.try_recv() {
            Err(TryRecvError::Disconnected) if longest.is_none() && !matches!(stage, Stage::Recording(_)) => {
                bail!(
                    "nobody can end an episode: --episode-secs is needed, or a terminal where Enter does it"
                );
            }
            line => line.ok(),
        };
        stage = match stage {
            Stage::Recording(running) => {
                let whole = longest.is_some_and(|longest| running.frames >= longest);
                let (why, step) = match (ended, &line, ears.step(now)) {
                    (true, _, _) => (Some("interrupted".into()), None),
                    (_, Some(_), _) => (Some("key".to_owned()), None),
                    _ if whole => (Some("time".to_owned()), None),
                    (_, _, Err(why)) => (Some(why), None),
                    (_, _, Ok(step)) => (None, Some(step)),
                };
                if let Some(step) = step {
                    Stage::Recording(take(running, step, writing)?)
                } else if running.frames == 0 || line.as_ref().is_some_and(|line| line.trim() == "drop") {
                    writing.discard_episode();
                    eprintln!("dropped");
                    Stage::Resting(resting(job, now, line.is_some()))
                } else {
                    let why = why.unwrap_or_default();
                    eprintln!("episode {} ended after {} frames: {why}", totals.recorded, running.frames);
                    commit(job, &running, &why, writing)?;
                    totals.recorded += 1;
                    totals.lost += running.lost;
                    totals.interventions += running.interventions;
                    Stage::Resting(resting(job, now, why == "key"))
                }
            }
            _ if ended => break,
            Stage::Resting(until) if line.is_some() || until.is_some_and(|until| now >= until) => {
                Stage::Waiting(now)
            }
            Stage::Waiting(since) => match ears.step(now) {
                Ok(step) => {
                    eprintln!("episode {}: recording; Enter ends it, 'drop' forgets it", totals.recorded);
                    Stage::Recording(take(Running::default(), step, writing)?)
                }
                Err(why) if now.secs_since(since) > job.wait_secs => {
                    bail!("after {} episodes, for {:.1} s: {why}", totals.recorded, job.wait_secs);
                }
                Err(_) => Stage::Waiting(since),
            },
            resting => resting,
        };
    }
    Ok(totals)
}

/// Until when nothing is recorded; `None`: until Enter.
fn resting(job: &Job, now: Stamp, by_key: bool) -> Option<Stamp> {
    match job.reset_secs {
        Some(secs) => Some(now.plus_secs(secs)),
        None => (!by_key).then_some(now),
    }
}

fn take(mut running: Running, step: Step, writing: &mut Writing) -> Result<Running> {
    let intervention = step.intervention;
    if writing.offer(step) {
        running.frames += 1;
        running.interventions += u64::from(intervention);
    } else if writing.is_over() {
        bail!("the recorder has ended");
    } else {
        running.lost += 1;
    }
    Ok(running)
}

fn commit(job: &Job, running: &Running, why: &str, writing: &mut Writing) -> Result<()> {
    let extra = json!({"driver": "live", "ended": why, "frames_lost": running.lost,
        "interventions": running.interventions});
    Ok(writing.end_episode(job.task.to_owned(), extra)?)
}

/// Keeps the newest pictures, until `over`.
fn watch(mut cameras: TopicCameras, over: &Arc<AtomicBool>) -> Result<Arc<Pictures>> {
    let newest = Arc::new(Latest::default());
    std::thread::Builder::new().name("vela-pictures".into()).spawn({
        let (newest, over) = (newest.clone(), over.clone());
        move || {
            while !over.load(Ordering::Acquire) {
                let frames = cameras.frames().map_err(|error| error.to_string());
                if frames.as_ref().is_ok_and(Vec::is_empty) {
                    return;
                }
                newest.put(frames);
            }
        }
    })?;
    Ok(newest)
}
