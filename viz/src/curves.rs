//! Curves of a training run: one line per number, over steps.

use crate::{Error, Result};
use rerun::{RecordingStream, RecordingStreamBuilder};
use std::path::Path;

/// A recording of curves.
#[derive(Debug)]
pub struct Curves {
    recording: RecordingStream,
    path: String,
}

impl Curves {
    /// A new .rrd file; one that is there is replaced.
    ///
    /// # Errors
    /// The file cannot be written.
    pub fn open(path: &Path) -> Result<Self> {
        let name = path.display().to_string();
        let recording = RecordingStreamBuilder::new("vela train").save(path);
        let recording = recording.map_err(|e| Error::Recording { path: name.clone(), why: e.to_string() })?;
        Ok(Self { recording, path: name })
    }

    /// Adds one point to each of the named curves.
    ///
    /// # Errors
    /// The file cannot be written.
    pub fn add(&self, step: usize, points: &[(&str, f64)]) -> Result<()> {
        self.recording.set_time_sequence("step", step as i64);
        for (name, value) in points {
            let logged = self.recording.log(*name, &rerun::Scalars::single(*value));
            logged.map_err(|e| Error::Recording { path: self.path.clone(), why: e.to_string() })?;
        }
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn curves_go_to_a_file() -> Result<()> {
        let dir = std::env::temp_dir().join(format!("vela-curves-{}.rrd", std::process::id()));
        let curves = Curves::open(&dir)?;
        for step in 0..100 {
            curves.add(step, &[("loss", 1.0 / (1.0 + step as f64)), ("rate", 1e-3)])?;
        }
        drop(curves);
        let bytes = std::fs::metadata(&dir).map(|m| m.len()).unwrap_or(0);
        let _ = std::fs::remove_file(&dir);
        assert!(bytes > 1000, "{bytes}");
        Ok(())
    }
}
