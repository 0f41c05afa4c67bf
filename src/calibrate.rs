//! `vela robot --calibrate`: an arm's servos measured by hand, into LeRobot's calibration file.

use crate::operator;
use anyhow::{Context, Result, anyhow, bail};
use serde_json::json;
use std::io::IsTerminal;
use std::path::Path;
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::mpsc::{Receiver, RecvTimeoutError};
use std::time::Duration;
use vela_robots::ArmFile;
use vela_robots::feetech::{Calibration, Calibrator, Span};

/// Between two looks at the servos.
const LOOK: Duration = Duration::from_millis(50);

/// Calibrates the arm of this file, or (`apply`) writes the calibration that its file names to its servos.
pub fn run(path: &Path, apply: bool, as_json: bool) -> Result<()> {
    let (file, embodiment) = ArmFile::load(path)?;
    let (Some(servos), Some(calibration)) = (&file.servos, &file.calibration) else {
        bail!("{}: only servos on USB are calibrated, and it names none", path.display());
    };
    let existing = apply.then(|| Calibration::load(calibration)).transpose()?;
    let lines = operator::lines();
    let interrupted = operator::interruption()?;
    eprintln!("Hold the arm and press Enter: its torque goes off.");
    enter(&lines, &interrupted)?;
    let made = if let Some(existing) = existing {
        Calibrator::apply(&embodiment, servos, &existing)?;
        existing
    } else {
        let mut calibrator = Calibrator::open(&embodiment, servos)?;
        if let Err(why) = show(&mut calibrator, &lines, &interrupted) {
            return Err(broken_off(why, calibrator));
        }
        let made = calibrator.finish()?;
        // The servos have it by now: what a hand has shown must not be lost with a full disk.
        made.save(calibration).with_context(|| {
            format!("the servos keep it already; {} should hold {}", calibration.display(), json!(made))
        })?;
        made
    };
    if as_json {
        println!("{}", json!({"calibration": calibration, "motors": made}));
    } else if apply {
        println!("{}: written to the servos", calibration.display());
    } else {
        println!("{}: written, and to the servos", calibration.display());
    }
    Ok(())
}

/// What the person shows with the arm.
fn show(calibrator: &mut Calibrator, lines: &Receiver<String>, interrupted: &AtomicBool) -> Result<()> {
    eprintln!("Put every joint in the middle of its motion and press Enter.");
    enter(lines, interrupted)?;
    calibrator.centre()?;
    eprintln!(
        "Move every joint from stop to stop, one after the other (wrist_roll has none), and press Enter."
    );
    let spans = watch(calibrator, lines, interrupted)?;
    draw(&spans, false);
    Ok(())
}

/// Locks the servos again and says how they were left.
fn broken_off(why: anyhow::Error, calibrator: Calibrator) -> anyhow::Error {
    let left = match calibrator.abandon() {
        Ok(()) => "the servos are locked again".to_owned(),
        Err(error) => format!("the servos are not locked, their memory can be written ({error})"),
    };
    anyhow!("{why:#}; broken off: no file was written, {left}, without torque and perhaps with new offsets")
}

/// Whether Enter was pressed.
fn pressed(lines: &Receiver<String>, interrupted: &AtomicBool) -> Result<bool> {
    if interrupted.load(Ordering::Acquire) {
        bail!("interrupted");
    }
    match lines.recv_timeout(LOOK) {
        Ok(_) => Ok(true),
        Err(RecvTimeoutError::Timeout) => Ok(false),
        Err(RecvTimeoutError::Disconnected) => bail!("standard input ended before Enter was pressed"),
    }
}

fn enter(lines: &Receiver<String>, interrupted: &AtomicBool) -> Result<()> {
    while !pressed(lines, interrupted)? {}
    Ok(())
}

/// Watches the joints until Enter.
fn watch(
    calibrator: &mut Calibrator,
    lines: &Receiver<String>,
    interrupted: &AtomicBool,
) -> Result<Vec<Span>> {
    let live = std::io::stderr().is_terminal();
    loop {
        let spans = calibrator.watch().context("watching the joints")?.to_vec();
        if live {
            draw(&spans, true);
        }
        if pressed(lines, interrupted)? {
            return Ok(spans);
        }
    }
}

/// A table of ticks; `again` puts the cursor back to its head.
fn draw(spans: &[Span], again: bool) {
    eprintln!("{:>16} {:>6} {:>6} {:>6}", "joint", "min", "at", "max");
    for span in spans {
        let note = if span.full_turn() { "  (whole turn)" } else { "" };
        eprintln!("{:>16} {:>6} {:>6} {:>6}{note}", span.joint, span.min, span.at, span.max);
    }
    if again {
        eprint!("\x1b[{}A", spans.len() + 1);
    }
}
