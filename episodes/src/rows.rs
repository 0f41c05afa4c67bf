//! The frames of one episode: as they are recorded, as parquet rows, and as they are read back.

use crate::layout::{ACTION, IMAGES, STATE, refuse};
use crate::picture::{PictureFormat, decode};
use crate::stats::{FeatureStats, PictureCounts};
use crate::table;
use arrow::array::{
    Array, ArrayRef, AsArray, BinaryArray, FixedSizeListArray, Float32Array, Int64Array, RecordBatch,
    StringArray, StructArray,
};
use arrow::datatypes::{DataType, Field, Schema};
use std::path::Path;
use std::sync::Arc;
use vela_embodiment::{Camera, Error, Frame, Observation, Result, Stamp};

/// One frame of an episode.
#[derive(Clone, Debug, PartialEq)]
pub struct Recorded {
    /// What was seen; its stamp counts from the episode's start.
    pub observation: Observation,
    /// What was sent in answer, rad or m, in the order of the dataset's action names.
    pub action: Vec<f64>,
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

/// One episode, its pictures still PNG or JPEG bytes: a tenth of the memory, decoded frame by frame.
#[derive(Clone, Debug, PartialEq)]
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
    /// Seconds since the episode's start.
    pub timestamps_secs: Vec<f64>,
    /// The cameras, in the order of `pictures`.
    pub cameras: Vec<Camera>,
    /// `[cameras][frames]` of PNG or JPEG bytes.
    pub pictures: Vec<Vec<Vec<u8>>>,
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
        let what = || format!("episode {}, frame {frame}, camera {camera}", self.index);
        match (self.cameras.get(camera), self.pictures.get(camera).and_then(|list| list.get(frame))) {
            (Some(camera), Some(bytes)) => decode(bytes, camera, &what()),
            _ => Err(Error::Parse { what: what(), why: "there is no such picture".into() }),
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

/// The frames of the episode that is being recorded.
#[derive(Clone, Debug)]
pub(crate) struct Pending {
    states: Vec<Vec<f32>>,
    actions: Vec<Vec<f32>>,
    pictures: Vec<Vec<Vec<u8>>>,
    counts: Vec<PictureCounts>,
}

/// Where an episode stands in its dataset.
pub(crate) struct Place {
    pub(crate) episode: usize,
    pub(crate) first_index: usize,
    pub(crate) task: usize,
    pub(crate) fps: u32,
}

impl Pending {
    pub(crate) fn new(cameras: usize) -> Self {
        Self {
            states: Vec::new(),
            actions: Vec::new(),
            pictures: vec![Vec::new(); cameras],
            counts: vec![PictureCounts::new(); cameras],
        }
    }

    pub(crate) fn len(&self) -> usize {
        self.states.len()
    }

    /// Adds a frame that has been checked against the embodiment.
    pub(crate) fn push(
        &mut self,
        observation: &Observation,
        targets: &[f64],
        cameras: &[Camera],
        format: PictureFormat,
    ) -> Result<()> {
        let mut encoded = Vec::with_capacity(cameras.len());
        for (camera, counts) in cameras.iter().zip(&mut self.counts) {
            let frame = observation.frame(&camera.name).ok_or_else(|| Error::Unknown {
                kind: "camera (missing from the observation)",
                name: camera.name.clone(),
                known: String::new(),
            })?;
            encoded.push(format.encode(frame)?);
            counts.add(&frame.rgb);
        }
        for (list, picture) in self.pictures.iter_mut().zip(encoded) {
            list.push(picture);
        }
        self.states.push(observation.joint_positions.iter().map(|x| *x as f32).collect());
        self.actions.push(targets.iter().map(|x| *x as f32).collect());
        Ok(())
    }

    /// The statistics of every feature, by its name.
    pub(crate) fn stats(&self, cameras: &[Camera], place: &Place) -> Vec<(String, FeatureStats)> {
        fn rows(list: &[Vec<f32>]) -> Vec<&[f32]> {
            list.iter().map(Vec::as_slice).collect()
        }
        let column =
            |f: &dyn Fn(usize) -> f64| FeatureStats::of_column(&(0..self.len()).map(f).collect::<Vec<_>>());
        let mut stats = vec![
            (STATE.to_owned(), FeatureStats::of_rows(&rows(&self.states))),
            (ACTION.to_owned(), FeatureStats::of_rows(&rows(&self.actions))),
            ("timestamp".to_owned(), column(&|k| k as f64 / f64::from(place.fps))),
            ("frame_index".to_owned(), column(&|k| k as f64)),
            ("episode_index".to_owned(), column(&|_| place.episode as f64)),
            ("index".to_owned(), column(&|k| (place.first_index + k) as f64)),
            ("task_index".to_owned(), column(&|_| place.task as f64)),
        ];
        for (camera, counts) in cameras.iter().zip(&self.counts) {
            stats.push((format!("{IMAGES}{}", camera.name), counts.stats()));
        }
        stats
    }

    /// The rows of `data/`.
    pub(crate) fn batch(&self, cameras: &[Camera], place: &Place, extension: &str) -> Result<RecordBatch> {
        let n = self.len();
        let mut columns: Vec<(String, ArrayRef)> =
            vec![(STATE.into(), vectors(&self.states)?), (ACTION.into(), vectors(&self.actions)?)];
        for (camera, pictures) in cameras.iter().zip(&self.pictures) {
            let bytes: ArrayRef = Arc::new(BinaryArray::from_iter_values(pictures));
            let paths = (0..n).map(|k| format!("frame-{k:06}.{extension}"));
            let paths: ArrayRef = Arc::new(StringArray::from_iter_values(paths));
            let picture = StructArray::from(vec![
                (Arc::new(Field::new("bytes", DataType::Binary, true)), bytes),
                (Arc::new(Field::new("path", DataType::Utf8, true)), paths),
            ]);
            columns.push((format!("{IMAGES}{}", camera.name), Arc::new(picture)));
        }
        let timestamps = (0..n).map(|k| (k as f64 / f64::from(place.fps)) as f32);
        columns.push(("timestamp".into(), Arc::new(Float32Array::from_iter_values(timestamps))));
        let counted = |name: &str, f: &dyn Fn(usize) -> usize| -> (String, ArrayRef) {
            (name.into(), Arc::new(Int64Array::from_iter_values((0..n).map(|k| f(k) as i64))))
        };
        columns.push(counted("frame_index", &|k| k));
        columns.push(counted("episode_index", &|_| place.episode));
        columns.push(counted("index", &|k| place.first_index + k));
        columns.push(counted("task_index", &|_| place.task));
        batch_of(columns)
    }
}

/// A batch of columns with their names; every column may hold nulls, as LeRobot's do.
pub(crate) fn batch_of(columns: Vec<(String, ArrayRef)>) -> Result<RecordBatch> {
    let fields: Vec<Field> =
        columns.iter().map(|(name, array)| Field::new(name, array.data_type().clone(), true)).collect();
    let arrays = columns.into_iter().map(|(_, array)| array).collect();
    RecordBatch::try_new(Arc::new(Schema::new(fields)), arrays)
        .map_err(|e| Error::Parse { what: "rows of an episode".into(), why: e.to_string() })
}

/// Equal rows as `fixed_size_list<float>`; rows of one number as plain floats, as LeRobot has it.
fn vectors(rows: &[Vec<f32>]) -> Result<ArrayRef> {
    let numbers: ArrayRef = Arc::new(Float32Array::from_iter_values(rows.iter().flatten().copied()));
    let wide = rows.first().map_or(0, Vec::len);
    if wide == 1 {
        return Ok(numbers);
    }
    let field = Arc::new(Field::new("element", DataType::Float32, true));
    let list = FixedSizeListArray::try_new(field, wide as i32, numbers, None);
    Ok(Arc::new(list.map_err(|e| Error::Parse { what: "rows of an episode".into(), why: e.to_string() })?))
}

/// Reads a column of vectors, each `names` wide.
pub(crate) fn read_vectors(
    batch: &RecordBatch,
    name: &str,
    wide: usize,
    path: &Path,
) -> Result<Vec<Vec<f64>>> {
    let numbers = table::flatten(table::column(batch, name, path)?, &format!("column '{name}'"), path)?;
    if numbers.len() != wide * batch.num_rows() || wide == 0 {
        return Err(Error::Shape {
            what: format!("column '{name}' of {}", path.display()),
            expected: format!("{} rows of {wide} numbers", batch.num_rows()),
            got: format!("{} numbers", numbers.len()),
        });
    }
    Ok(numbers.chunks(wide).map(<[f64]>::to_vec).collect())
}

/// Reads a column of pictures as encoded bytes.
pub(crate) fn read_pictures(batch: &RecordBatch, name: &str, path: &Path) -> Result<Vec<Vec<u8>>> {
    let array = table::column(batch, name, path)?;
    let wrong =
        || refuse(path, format!("column '{name}': expected pictures in bytes, got {}", array.data_type()));
    let bytes = array.as_struct_opt().and_then(|s| s.column_by_name("bytes")).ok_or_else(wrong)?;
    let bytes = arrow::compute::cast(bytes, &DataType::Binary).map_err(|_| wrong())?;
    let bytes = bytes.as_binary_opt::<i32>().ok_or_else(wrong)?;
    (0..bytes.len())
        .map(|k| {
            let missing =
                || refuse(path, format!("column '{name}': row {k} has no bytes (a path alone is not read)"));
            if bytes.is_null(k) { Err(missing()) } else { Ok(bytes.value(k).to_vec()) }
        })
        .collect()
}
