//! `meta/info.json`: what a dataset's columns are.

use crate::layout::{CHUNKS_SIZE, Layout, Version, read_json, refuse};
use crate::picture::PictureFormat;
use crate::video::h264;
use serde::{Deserialize, Serialize};
use std::collections::BTreeMap;
use std::path::Path;
use vela_embodiment::{Camera, Embodiment, Error, Result};

/// Joint vectors as measured.
pub(crate) const STATE: &str = "observation.state";
/// Joint targets as sent.
pub(crate) const ACTION: &str = "action";
/// Whether a person or an expert, and not the policy, chose a frame's action: the name and form that LeRobot 0.6.1
/// records corrections under.
pub(crate) const INTERVENTION: &str = "intervention";
/// What a camera's feature begins with.
pub(crate) const IMAGES: &str = "observation.images.";
/// The columns that every dataset has besides, in LeRobot's order.
pub(crate) const BOOKKEEPING: [&str; 5] =
    ["timestamp", "frame_index", "episode_index", "index", "task_index"];
/// The units of joints where nobody asked for others, as `meta/info.json` says them.
pub const SI_UNITS: &str = "rad (revolute joints), m (prismatic joints)";
/// A vector longer than this is a broken file, not a robot.
const WIDEST: usize = 1 << 16;

/// One column of the dataset.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub(crate) struct Feature {
    pub(crate) dtype: String,
    pub(crate) shape: Vec<usize>,
    /// A list, a map of lists, or null.
    #[serde(default)]
    pub(crate) names: serde_json::Value,
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub(crate) info: Option<serde_json::Value>,
    /// What else LeRobot has noted; kept as it is.
    #[serde(flatten)]
    other: BTreeMap<String, serde_json::Value>,
}

impl Feature {
    fn vector(names: Vec<String>, units: &str) -> Self {
        Self {
            dtype: "float32".into(),
            shape: vec![names.len()],
            names: names.into(),
            info: Some(serde_json::json!({ "units": units })),
            other: BTreeMap::new(),
        }
    }

    fn scalar(dtype: &str) -> Self {
        Self {
            dtype: dtype.into(),
            shape: vec![1],
            names: serde_json::Value::Null,
            info: None,
            other: BTreeMap::new(),
        }
    }

    /// A camera's pictures, stored like this; names and notes as LeRobot 0.6.1 writes them.
    pub(crate) fn pictures(width: u32, height: u32, fps: f64, format: PictureFormat) -> Self {
        let quality = match format {
            PictureFormat::Png | PictureFormat::Jpeg { .. } => None,
            PictureFormat::H264 { qp } => Some(("video.qp", qp)),
            PictureFormat::Av1 { crf } => Some(("video.crf", crf)),
        };
        let info = quality.map(|(name, quality)| {
            serde_json::json!({
                "video.height": height, "video.width": width, "video.codec": format.extension(),
                "video.pix_fmt": "yuv420p", "video.fps": fps.round() as u64, "video.channels": 3,
                "video.g": h264::GROUP, name: quality, "has_audio": false, "is_depth_map": false
            })
        });
        Self {
            dtype: if format.is_video() { "video" } else { "image" }.into(),
            shape: vec![height as usize, width as usize, 3],
            names: serde_json::json!(["height", "width", "channels"]),
            info,
            other: BTreeMap::new(),
        }
    }

    /// How its pictures are stored; of stills inside parquet PNG is said, of foreign videos the usual quality.
    fn picture_format(&self, key: &str) -> Result<PictureFormat> {
        let note = |name: &str| self.info.as_ref().map(|info| &info[name]);
        let quality = |name: &str| note(name).and_then(|quality| u8::try_from(quality.as_u64()?).ok());
        match (self.is_video(), note("video.codec").and_then(|codec| codec.as_str())) {
            (false, _) => Ok(PictureFormat::Png),
            (true, Some("h264")) => {
                let qp = quality("video.qp").filter(|qp| h264::QUANTISERS.contains(qp));
                Ok(qp.map_or(PictureFormat::VIDEO, |qp| PictureFormat::H264 { qp }))
            }
            (true, Some("av1")) => {
                Ok(quality("video.crf").map_or(PictureFormat::AV1, |crf| PictureFormat::Av1 { crf }))
            }
            (true, codec) => Err(self.unlike(key, "video coded as h264 or av1", codec.unwrap_or("no codec"))),
        }
    }

    pub(crate) fn is_picture(&self) -> bool {
        self.dtype == "image" || self.is_video()
    }

    pub(crate) fn is_video(&self) -> bool {
        self.dtype == "video"
    }

    /// Whether it holds numbers, which have statistics; text has none.
    pub(crate) fn is_numeric(&self) -> bool {
        ["float", "int", "uint", "bool"].iter().any(|kind| self.dtype.starts_with(kind))
    }

    /// Numbers in one row.
    pub(crate) fn width(&self) -> usize {
        self.shape.iter().product()
    }

    /// The names of a vector's entries; numbered when there are none.
    pub(crate) fn entry_names(&self) -> Vec<String> {
        let list = match &self.names {
            serde_json::Value::Object(map) => map.values().find_map(|v| v.as_array()),
            other => other.as_array(),
        };
        let named: Vec<String> =
            list.into_iter().flatten().filter_map(|v| v.as_str().map(str::to_owned)).collect();
        let wide = self.width();
        if named.len() == wide { named } else { (0..wide).map(|k| k.to_string()).collect() }
    }

    /// Width and height of a picture.
    pub(crate) fn picture_size(&self, key: &str) -> Result<(u32, u32)> {
        let channels_first =
            self.names.get(0).and_then(|n| n.as_str()).is_some_and(|n| n.starts_with("channel"));
        match self.shape[..] {
            [3, height, width] if channels_first => Ok((width as u32, height as u32)),
            [height, width, 3] => Ok((width as u32, height as u32)),
            _ => Err(self.unlike(key, "[height, width, 3]", &format!("{:?}", self.shape))),
        }
    }

    fn unlike(&self, key: &str, expected: &str, got: &str) -> Error {
        Error::Shape {
            what: format!("feature '{key}' of meta/info.json"),
            expected: expected.into(),
            got: got.into(),
        }
    }

    /// Sizes that no robot has would only ask for memory that is not there.
    fn check(&self, key: &str) -> Result<()> {
        let most = if self.is_picture() { 1 << 14 } else { WIDEST };
        let product = self.shape.iter().try_fold(1usize, |product, n| product.checked_mul(*n));
        let usual = product.is_some_and(|product| self.is_picture() || product <= WIDEST);
        if self.shape.is_empty() || self.shape.iter().any(|n| *n == 0 || *n > most) || !usual {
            let expected = format!("a shape with sizes of 1 to {most}");
            return Err(self.unlike(key, &expected, &format!("{:?}", self.shape)));
        }
        Ok(())
    }
}

/// `meta/info.json`.
#[derive(Clone, Debug, Serialize, Deserialize)]
pub(crate) struct Info {
    pub(crate) codebase_version: String,
    #[serde(default)]
    pub(crate) robot_type: Option<String>,
    pub(crate) total_episodes: usize,
    pub(crate) total_frames: usize,
    pub(crate) total_tasks: usize,
    pub(crate) chunks_size: i64,
    /// v3.0 only, as the next one.
    #[serde(default)]
    pub(crate) data_files_size_in_mb: u64,
    #[serde(default)]
    pub(crate) video_files_size_in_mb: u64,
    pub(crate) fps: serde_json::Number,
    #[serde(default)]
    pub(crate) splits: BTreeMap<String, String>,
    pub(crate) data_path: String,
    pub(crate) video_path: Option<String>,
    pub(crate) features: BTreeMap<String, Feature>,
    /// What else LeRobot has noted; kept as it is.
    #[serde(flatten)]
    other: BTreeMap<String, serde_json::Value>,
}

impl Info {
    /// An empty v3.0 dataset of these columns.
    pub(crate) fn new(
        robot_type: Option<String>,
        fps: serde_json::Number,
        features: BTreeMap<String, Feature>,
    ) -> Self {
        Self {
            codebase_version: Version::V30.name().into(),
            robot_type,
            total_episodes: 0,
            total_frames: 0,
            total_tasks: 0,
            chunks_size: CHUNKS_SIZE,
            data_files_size_in_mb: 100,
            video_files_size_in_mb: 200,
            fps,
            splits: BTreeMap::new(),
            data_path: Version::V30.data_path().into(),
            video_path: features.values().any(Feature::is_video).then(|| Version::V30.video_path().into()),
            features,
            other: BTreeMap::new(),
        }
    }

    /// An empty v3.0 dataset of a robot's joints, said in `units`, and cameras.
    pub(crate) fn of_robot(embodiment: &Embodiment, fps: u32, format: PictureFormat, units: &str) -> Self {
        let joints: Vec<String> = embodiment.joints.iter().map(|j| format!("{}.pos", j.name)).collect();
        let mut features = BTreeMap::new();
        features.insert(STATE.to_owned(), Feature::vector(joints.clone(), units));
        features.insert(ACTION.to_owned(), Feature::vector(joints, units));
        features.insert(INTERVENTION.to_owned(), Feature::scalar("bool"));
        for Camera { name, width, height } in &embodiment.cameras {
            let feature = Feature::pictures(*width, *height, f64::from(fps), format);
            features.insert(format!("{IMAGES}{name}"), feature);
        }
        for name in BOOKKEEPING {
            let dtype = if name == "timestamp" { "float32" } else { "int64" };
            features.insert(name.to_owned(), Feature::scalar(dtype));
        }
        Self::new(Some(embodiment.name.clone()), fps.into(), features)
    }

    /// Reads `meta/info.json` and refuses what is not a v2.1 or v3.0 dataset in the usual folders.
    pub(crate) fn load(root: &Path) -> Result<(Self, Layout)> {
        let path = root.join("meta/info.json");
        let info: serde_json::Value = read_json(&path)?;
        let named = info["codebase_version"].as_str().unwrap_or("none");
        let version = Version::named(named).ok_or_else(|| {
            let why = format!("expected a LeRobot dataset of version v2.1 or v3.0, got {named}");
            refuse(&path, why)
        })?;
        let info: Self = serde_json::from_value(info).map_err(|e| refuse(&path, e.to_string()))?;
        if info.data_path != version.data_path() {
            let why = format!("data_path: expected {}, got {}", version.data_path(), info.data_path);
            return Err(refuse(&path, why));
        }
        let has_video = info.features.values().any(Feature::is_video);
        if has_video && info.video_path.as_deref() != Some(version.video_path()) {
            let got = info.video_path.as_deref().unwrap_or("none");
            return Err(refuse(&path, format!("video_path: expected {}, got {got}", version.video_path())));
        }
        if !info.fps().is_finite() || info.fps() <= 0.0 {
            return Err(refuse(&path, format!("fps: expected more than zero, got {}", info.fps)));
        }
        if info.chunks_size <= 0 {
            let why = format!("chunks_size: expected more than zero, got {}", info.chunks_size);
            return Err(refuse(&path, why));
        }
        for (key, feature) in &info.features {
            feature.check(key)?;
        }
        Ok((info, Layout::new(root, version)))
    }

    pub(crate) fn fps(&self) -> f64 {
        self.fps.as_f64().unwrap_or(f64::NAN)
    }

    /// The vector feature of that name.
    pub(crate) fn vector(&self, key: &str) -> Result<&Feature> {
        match self.features.get(key) {
            Some(feature) if feature.dtype.starts_with("float") => Ok(feature),
            Some(feature) => Err(feature.unlike(key, "dtype float32", &feature.dtype)),
            None => Err(Error::Unknown {
                kind: "feature (missing from meta/info.json)",
                name: key.into(),
                known: self.features.keys().map(String::as_str).collect::<Vec<_>>().join(", "),
            }),
        }
    }

    /// In which units joints are measured, where it says so.
    pub(crate) fn units(&self) -> Option<&str> {
        self.features.get(STATE)?.info.as_ref()?["units"].as_str()
    }

    /// How pictures to come are stored.
    ///
    /// # Errors
    /// The cameras differ in it, or they are videos of a codec that is not written.
    pub(crate) fn picture_format(&self) -> Result<PictureFormat> {
        let pictures = self.features.iter().filter(|(_, feature)| feature.is_picture());
        let formats = pictures.map(|(key, feature)| Ok((key, feature.picture_format(key)?)));
        let formats = formats.collect::<Result<Vec<_>>>()?;
        let Some((_, first)) = formats.first() else { return Ok(PictureFormat::default()) };
        match formats.iter().find(|(_, format)| format.is_video() != first.is_video()) {
            None => Ok(*first),
            Some((key, format)) => Err(Error::Shape {
                what: format!("pictures '{key}' of meta/info.json"),
                expected: format!("to be stored as those of the other cameras ({})", first.extension()),
                got: format.extension().into(),
            }),
        }
    }

    /// The columns that are video files, in order of their names.
    pub(crate) fn videos(&self) -> Vec<&str> {
        let videos = self.features.iter().filter(|(_, feature)| feature.is_video());
        videos.map(|(key, _)| key.as_str()).collect()
    }

    /// The columns of pictures with their cameras, in order of their names.
    pub(crate) fn cameras(&self) -> Result<Vec<(String, Camera)>> {
        let mut cameras = Vec::new();
        for (key, feature) in self.features.iter().filter(|(_, feature)| feature.is_picture()) {
            let (width, height) = feature.picture_size(key)?;
            let name = key.strip_prefix(IMAGES).or_else(|| key.strip_prefix("observation.")).unwrap_or(key);
            cameras.push((key.clone(), Camera { name: name.to_owned(), width, height }));
        }
        Ok(cameras)
    }
}
