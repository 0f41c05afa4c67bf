//! `vela bench robot`: what stands between a camera and a joint beside the model, and how well the control loop keeps
//! time.

mod beat;
mod edge;
mod question;

use crate::stats::quantile;
use anyhow::{Result, bail};
use beat::{Beat, Beats};
use edge::Edge;
use serde::Serialize;
use vela_embodiment::{
    ActionChunk, ActionSpace, Camera, Embodiment, Error, InferOptions, Observation, Policy, PolicySpec,
};
use vela_robots::loopback_pair_with;
use vela_robots::priority::{self, Urgency};
use vela_robots::ros2::cameras::ImageKind;
use vela_sim::tabletop::Tabletop;
use vela_sim::tasks::Split;
use zenoh::Session;

/// Pictures of the cameras, pixels.
const SIZE: (u32, u32) = (640, 480);
/// Observations per second.
const PACE_HZ: f64 = 30.0;
/// Observations that do not count, while sessions and caches warm up.
const WARM_UP: usize = 15;

#[derive(clap::Args)]
pub struct Args {
    /// Seconds of each measurement.
    #[arg(long, default_value_t = 10.0)]
    secs: f64,
    /// Seconds of the control loop's; else as the others.
    #[arg(long)]
    loop_secs: Option<f64>,
    /// The control loop's rate, Hz.
    #[arg(long, default_value_t = 500.0)]
    hz: f64,
    /// The policy burns every core for this long at a time, one second apart, s; 0: it burns nothing.
    #[arg(long, default_value_t = 5.0)]
    burn_secs: f64,
    /// Print JSON.
    #[arg(long)]
    json: bool,
}

/// Milliseconds of something that was done many times.
#[derive(Serialize)]
struct Spread {
    times: usize,
    p50_ms: f64,
    p99_ms: f64,
    worst_ms: f64,
    /// 1 %, 2 % and so on took no longer; the last is the worst.
    percentiles_ms: Vec<f64>,
}

impl Spread {
    fn of(secs: &[f64]) -> Self {
        let ms = |q| quantile(secs, q) * 1e3;
        let percentiles_ms = (1..=100).map(|percent| ms(f64::from(percent) / 100.0)).collect();
        Self { times: secs.len(), p50_ms: ms(0.5), p99_ms: ms(0.99), worst_ms: ms(1.0), percentiles_ms }
    }
}

#[derive(Serialize)]
struct Measured {
    jpeg_to_command: Edge,
    raw_to_command: Edge,
    /// The same over TCP, without shared memory.
    raw_over_tcp: Edge,
    /// A question with both pictures to a policy in another session that does not think, and its answer.
    question: Spread,
    hz: f64,
    control: Beat,
    /// A loop that only waits, measured beside it on a plain thread.
    bare: Beat,
    /// The same on a thread that asked for the control loop's priority.
    bare_real_time: Beat,
}

/// Runs the verb.
pub fn run(args: &Args) -> Result<()> {
    if !(args.secs > 0.0
        && args.loop_secs.unwrap_or(args.secs) > 0.0
        && args.hz > 0.0
        && args.burn_secs >= 0.0)
    {
        bail!("expected --secs, --loop-secs and --hz above 0 and --burn-secs of at least 0");
    }
    let pictures = pictures()?;
    let jpeg_to_command = edge::measure(args, &pictures, ImageKind::Compressed, true)?;
    let raw_to_command = edge::measure(args, &pictures, ImageKind::Raw, true)?;
    let raw_over_tcp = edge::measure(args, &pictures, ImageKind::Raw, false)?;
    let question = question::measure(args, &pictures)?;
    let Beats { control, bare, bare_real_time } = beat::measure(args)?;
    let hz = args.hz;
    let measured = Measured {
        jpeg_to_command,
        raw_to_command,
        raw_over_tcp,
        question,
        hz,
        control,
        bare,
        bare_real_time,
    };
    if args.json {
        println!("{}", serde_json::to_string(&measured)?);
        return Ok(());
    }
    let line = |what: &str, s: &Spread| {
        println!("{what:<34} {:8.2} {:8.2} {:8.2}  {}", s.p50_ms, s.p99_ms, s.worst_ms, s.times);
    };
    println!("{:<34} {:>8} {:>8} {:>8}  times", "ms", "p50", "p99", "worst");
    for (what, edge) in [
        ("two JPEG pictures to command", &measured.jpeg_to_command),
        ("two raw pictures to command", &measured.raw_to_command),
        ("the same without shared memory", &measured.raw_over_tcp),
    ] {
        line(what, &edge.total);
        println!("  {} kB together{}", edge.bytes / 1000, edge.coded);
        if edge.lost > 0 {
            println!("  {} were lost on the way", edge.lost);
        }
        line("  to the robot, unpacked", &edge.seen);
        line("  plan, gate, message", &edge.decided);
        line("  back to the arm", &edge.carried);
    }
    line("question and answer, both pictures", &measured.question);
    for (what, beat) in [
        ("control loop", &measured.control),
        ("bare timer beside it", &measured.bare),
        ("bare timer of its priority", &measured.bare_real_time),
    ] {
        println!(
            "{what:<27} {:.0} Hz, {}: {} of {} ticks late ({:.3} %), the worst by {:.2} ms",
            args.hz,
            if beat.real_time { "SCHED_FIFO" } else { "a plain thread" },
            beat.late,
            beat.ticks,
            beat.late_percent,
            beat.worst_late_ms
        );
    }
    Ok(())
}

/// The arm's session and the policy's.
fn sessions(shared_memory: bool) -> Result<(Session, Session)> {
    let setting = ("transport/shared_memory/enabled", if shared_memory { "true" } else { "false" });
    // As `vela robot` opens its own.
    Ok(priority::urgently(Urgency::Message, || loopback_pair_with(&[setting]))??)
}

/// The arm with cameras of this size and this rate.
fn robot(size: (u32, u32), hz: f64) -> Result<Embodiment> {
    let mut robot = Embodiment::so101()?;
    (robot.control_hz, robot.cameras) = (
        hz,
        ["front", "wrist"].map(|name| Camera { name: name.into(), width: size.0, height: size.1 }).to_vec(),
    );
    Ok(robot)
}

/// Asks for the place where the arm stands.
struct Still {
    spec: PolicySpec,
}

impl Still {
    fn new(robot: &Embodiment) -> Self {
        let spec = PolicySpec {
            embodiment: robot.clone(),
            space: ActionSpace::JointPositions,
            horizon: 16,
            execute: 8,
            history: 1,
            checkpoint: "still".into(),
        };
        Self { spec }
    }
}

impl Policy for Still {
    fn spec(&self) -> &PolicySpec {
        &self.spec
    }

    fn infer(
        &mut self,
        history: &[Observation],
        options: &InferOptions,
    ) -> vela_embodiment::Result<ActionChunk> {
        let newest = history.last().ok_or_else(|| Error::Policy("nothing to look at".into()))?;
        Ok(ActionChunk {
            space: self.spec.space.clone(),
            actions: vec![newest.joint_positions.clone(); self.spec.horizon],
            period_secs: self.spec.embodiment.period_secs(),
            observation_stamp: newest.stamp,
            seed: options.seed,
            checkpoint: self.spec.checkpoint.clone(),
        })
    }
}

/// What both cameras see, `[height, width, 3]` each, with a sensor's noise in its brightness: a camera's own JPEG has
/// little of it in its colours, which are halved before they are packed.
fn pictures() -> Result<Vec<Vec<u8>>> {
    use rand::Rng;
    let table = Tabletop::blind(&Embodiment::so101()?, Split::Test)?;
    let drawing = table.drawing();
    ["front", "wrist"]
        .into_iter()
        .map(|name| {
            let mut rng = vela_embodiment::stream(0, name);
            let view = vela_sim::camera::view(name, &drawing, SIZE.0, SIZE.1)?;
            let mut rgb = vela_sim::render::render(&drawing, &view);
            for pixel in rgb.chunks_exact_mut(3) {
                let noise = rng.random_range(-3..=3);
                pixel.iter_mut().for_each(|byte| *byte = byte.saturating_add_signed(noise));
            }
            Ok(rgb)
        })
        .collect()
}
