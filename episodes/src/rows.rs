//! The frames of one episode as they are read back.

use crate::picture::decode;
use crate::video::Movie;
use std::sync::Arc;
use vela_embodiment::{Camera, Error, Frame, Observation, Result, Stamp};

/// One frame of an episode.
#[derive(Clone, Debug, PartialEq)]
pub struct Recorded {
    /// What was seen; its stamp counts from the episode's start.
    pub observation: Observation,
    /// What was sent in answer, rad or m, in the order of the dataset's action names.
    pub action: Vec<f64>,
    /// Whether a person or an expert chose the action in the policy's place.
    pub intervention: bool,
    /// Seconds since the episode's start: the frame's number over the dataset's rate.
    pub timestamp_secs: f64,
}

/// One episode, its pictures decoded.
#[derive(Clone, Debug, PartialEq)]
pub struct Recording {
    /// Its number in the dataset.
    pub index: usize,
    /// What the robot was asked to do.
    pub task: String,
    /// What the recorder noted; null when it noted nothing.
    pub extra: serde_json::Value,
    /// In order of time.
    pub frames: Vec<Recorded>,
}

/// The pictures of one camera in one episode.
#[derive(Clone, Debug)]
pub(crate) enum Pictures {
    /// PNG or JPEG bytes, one per frame.
    Bytes(Vec<Vec<u8>>),
    /// A part of a video file: from where on, s, and pictures per second.
    Film { movie: Arc<Movie>, from_secs: f64, fps: f64 },
}

impl Pictures {
    /// RGB bytes, `[height, width, 3]`; `what` names the picture in errors.
    pub(crate) fn rgb(&self, frame: usize, camera: &Camera, what: &str) -> Result<Vec<u8>> {
        let missing = || Error::Parse { what: what.to_owned(), why: "there is no such picture".into() };
        match self {
            Pictures::Bytes(list) => decode(list.get(frame).ok_or_else(missing)?, camera, what),
            Pictures::Film { movie, from_secs, fps } => {
                // LeRobot takes a picture that is less than its tolerance away; the next one is a whole period away.
                let rgb = movie.frame(from_secs + frame as f64 / fps, 0.4 / fps)?;
                let bytes = camera.width as usize * camera.height as usize * 3;
                if rgb.len() != bytes {
                    return Err(Error::Shape {
                        what: what.to_owned(),
                        expected: format!("{}x{} RGB", camera.width, camera.height),
                        got: format!("{} bytes", rgb.len()),
                    });
                }
                Ok(rgb)
            }
        }
    }
}

/// One episode, its pictures still encoded: a tenth of the memory, decoded frame by frame.
#[derive(Clone, Debug)]
pub struct EncodedEpisode {
    /// Its number in the dataset.
    pub index: usize,
    /// What the recorder noted; null when it noted nothing.
    pub extra: serde_json::Value,
    /// The instruction at each frame.
    pub tasks: Vec<Arc<str>>,
    /// `[frames][joints]`, rad or m.
    pub states: Vec<Vec<f64>>,
    /// `[frames][dims]`, rad or m.
    pub actions: Vec<Vec<f64>>,
    /// Which frames were chosen by a person or an expert in the policy's place; none in a dataset that does not say.
    pub interventions: Vec<bool>,
    /// Seconds since the episode's start.
    pub timestamps_secs: Vec<f64>,
    /// The cameras, in the order of `pictures`.
    pub cameras: Vec<Camera>,
    /// One per camera.
    pub(crate) pictures: Vec<Pictures>,
}

impl EncodedEpisode {
    /// Number of frames.
    pub fn len(&self) -> usize {
        self.states.len()
    }

    /// Whether it has no frame.
    pub fn is_empty(&self) -> bool {
        self.states.is_empty()
    }

    /// RGB bytes, `[height, width, 3]`, of one picture.
    ///
    /// # Errors
    /// There is no such picture, it cannot be decoded, or it is not of the camera's size.
    pub fn rgb(&self, camera: usize, frame: usize) -> Result<Vec<u8>> {
        let what = format!("episode {}, frame {frame}, camera {camera}", self.index);
        match (self.cameras.get(camera), self.pictures.get(camera)) {
            (Some(camera), Some(pictures)) => pictures.rgb(frame, camera, &what),
            _ => Err(Error::Parse { what, why: "there is no such camera".into() }),
        }
    }

    /// One frame, its pictures decoded.
    ///
    /// # Errors
    /// There is no such frame, or a picture cannot be decoded.
    pub fn frame(&self, frame: usize) -> Result<Recorded> {
        let (Some(state), Some(action), Some(secs), Some(task)) = (
            self.states.get(frame),
            self.actions.get(frame),
            self.timestamps_secs.get(frame),
            self.tasks.get(frame),
        ) else {
            return Err(Error::Unknown {
                kind: "frame",
                name: frame.to_string(),
                known: format!("0 to {} of episode {}", self.len().saturating_sub(1), self.index),
            });
        };
        let stamp = Stamp::from_secs(*secs);
        let frames = self.cameras.iter().enumerate().map(|(k, camera)| {
            let rgb = self.rgb(k, frame)?.into();
            let (width, height) = (camera.width, camera.height);
            Ok(Frame { camera: camera.name.clone(), width, height, rgb, stamp })
        });
        Ok(Recorded {
            observation: Observation {
                frames: frames.collect::<Result<_>>()?,
                joint_positions: state.clone(),
                instruction: task.to_string(),
                stamp,
            },
            action: action.clone(),
            intervention: self.interventions.get(frame).copied().unwrap_or_default(),
            timestamp_secs: *secs,
        })
    }

    /// All frames, their pictures decoded.
    ///
    /// # Errors
    /// A picture cannot be decoded.
    pub fn decode(&self) -> Result<Recording> {
        Ok(Recording {
            index: self.index,
            task: self.tasks.first().map(|task| task.to_string()).unwrap_or_default(),
            extra: self.extra.clone(),
            frames: (0..self.len()).map(|frame| self.frame(frame)).collect::<Result<_>>()?,
        })
    }
}
