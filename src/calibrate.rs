//! `vela robot --calibrate`: an arm's servos measured by hand, into LeRobot's calibration file.

use crate::operator;
use anyhow::{Context, Result, anyhow, bail};
use serde_json::json;
use std::io::IsTerminal;
use std::path::Path;
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
    eprintln!("Hold the arm and press Enter: its torque goes off.");
    enter(&lines)?;
    let made = if let Some(existing) = existing {
        Calibrator::apply(&embodiment, servos, &existing)?;
        existing
    } else {
        let mut calibrator = Calibrator::open(&embodiment, servos)?;
        eprintln!("Put every joint in the middle of its motion and press Enter.");
        enter(&lines)?;
        calibrator.centre()?;
        eprintln!(
            "Move every joint from stop to stop, one after the other (wrist_roll has none), and press Enter."
        );
        let spans = watch(&mut calibrator, &lines)?;
        draw(&spans, false);
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

fn nobody() -> anyhow::Error {
    anyhow!("standard input ended before Enter was pressed; the servos may be without torque now")
}

fn enter(lines: &Receiver<String>) -> Result<()> {
    lines.recv().map(drop).map_err(|_| nobody())
}

/// Watches the joints until Enter.
fn watch(calibrator: &mut Calibrator, lines: &Receiver<String>) -> Result<Vec<Span>> {
    let live = std::io::stderr().is_terminal();
    loop {
        let spans = calibrator.watch().context("watching the joints")?.to_vec();
        if live {
            draw(&spans, true);
        }
        match lines.recv_timeout(LOOK) {
            Err(RecvTimeoutError::Timeout) => {}
            Ok(_) => return Ok(spans),
            Err(RecvTimeoutError::Disconnected) => return Err(nobody()),
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
