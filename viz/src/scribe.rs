//! Writes events into a recording: entities, times and colours.

use crate::blueprint::{self, TIMELINE};
use crate::show::{Event, Tick};
use crate::solid::{colour, log_form, log_shapes, transform, vec3};
use crate::{Error, Result, Solid};
use image::codecs::jpeg::JpegEncoder;
use nalgebra::Isometry3;
use rerun::{RecordingStream, RecordingStreamResult};
use std::collections::{BTreeMap, BTreeSet};
use vela_embodiment::{Embodiment, Frame, Geometry, Kinematics, Stamp, TripReason};

/// Seconds between two episodes on the timeline.
const GAP_SECS: f64 = 0.5;
/// Seconds for which a reason for a trip is not told again in the log.
const QUIET_SECS: f64 = 1.0;
/// Reach of the SO-101, m; the view is scaled to other arms by theirs.
const SO101_REACH_M: f64 = 0.45;
/// One colour per joint, sRGB.
const JOINT_COLOURS: [[u8; 3]; 7] = [
    [66, 133, 244],
    [244, 140, 36],
    [52, 168, 83],
    [219, 68, 83],
    [142, 94, 201],
    [0, 160, 166],
    [140, 110, 70],
];
const PLAN_COLOUR: [f32; 3] = [1.0, 0.36, 0.05];
const TRIP_COLOUR: [f32; 4] = [0.9, 0.1, 0.1, 1.0];

/// Owns the recording on the showing thread.
pub(crate) struct Scribe {
    recording: RecordingStream,
    embodiment: Embodiment,
    kinematics: Kinematics,
    /// Links that have something to draw: index and path.
    links: Vec<(usize, String)>,
    solids: Vec<String>,
    /// Added to a stamp's seconds to place it on the timeline.
    offset_secs: f64,
    latest_secs: f64,
    joints: Vec<f64>,
    pictures: BTreeMap<String, Stamp>,
    stages: BTreeSet<String>,
    has_asked: bool,
    last_trips: BTreeSet<TripReason>,
    /// When each reason was last told, s on the timeline.
    told_secs: BTreeMap<TripReason, f64>,
    trip_counts: BTreeMap<TripReason, u64>,
    instruction: String,
    number: usize,
}

impl Scribe {
    /// Logs what never changes: the arm's shapes, the table, names and colours of curves, the first view.
    pub(crate) fn new(recording: RecordingStream, embodiment: &Embodiment) -> Result<Self> {
        let kinematics = embodiment.kinematics()?;
        let mut scribe = Self {
            recording,
            embodiment: embodiment.clone(),
            links: Vec::new(),
            solids: Vec::new(),
            offset_secs: 0.0,
            latest_secs: 0.0,
            joints: vec![0.0; embodiment.joints.len()],
            pictures: BTreeMap::new(),
            stages: BTreeSet::new(),
            has_asked: false,
            last_trips: BTreeSet::new(),
            told_secs: BTreeMap::new(),
            trip_counts: BTreeMap::new(),
            instruction: String::new(),
            number: 0,
            kinematics,
        };
        scribe.begin().map_err(|e| Error::Recording { path: "first messages".into(), why: e.to_string() })?;
        Ok(scribe)
    }

    fn begin(&mut self) -> RecordingStreamResult<()> {
        let recording = &self.recording;
        // Control time is the only time: wall clocks would differ from run to run.
        recording.set_log_time_enabled(false);
        recording.set_log_tick_enabled(false);
        let reach = self.reach_m();
        let scale = reach / SO101_REACH_M;
        blueprint::send(recording, &self.embodiment, scale)?;
        recording.log_static("world", &rerun::ViewCoordinates::RIGHT_HAND_Z_UP())?;
        let top = Geometry::Box(nalgebra::Vector3::new(0.75, 0.9, 0.02) * scale);
        let place = Isometry3::translation(0.2 * scale, 0.0, -0.0105 * scale);
        log_shapes(recording, "world/table", true, &[(place, &top, [0.72, 0.68, 0.62, 1.0])])?;
        for (index, link) in self.kinematics.model().links.iter().enumerate() {
            if link.visuals.is_empty() {
                continue;
            }
            let path = format!("world/arm/{}", link.name);
            let shapes: Vec<_> = link
                .visuals
                .iter()
                .map(|shape| (shape.link_from_shape, &shape.geometry, shape.rgba))
                .collect();
            log_shapes(recording, &path, true, &shapes)?;
            self.links.push((index, path));
        }
        for (k, joint) in self.embodiment.joints.iter().enumerate() {
            let [r, g, b] = JOINT_COLOURS[k % JOINT_COLOURS.len()];
            let pale = [r, g, b].map(|x| (u16::from(x) / 2 + 110) as u8);
            let curve = |name: String, colour: [u8; 3], width: f32| {
                rerun::SeriesLines::new()
                    .with_names([name])
                    .with_colors([rerun::Color::from_rgb(colour[0], colour[1], colour[2])])
                    .with_widths([width])
            };
            recording.log_static(
                joint_path(&joint.name, "sent"),
                &curve(format!("{} sent", joint.name), pale, 1.5),
            )?;
            recording.log_static(
                joint_path(&joint.name, "measured"),
                &curve(joint.name.clone(), [r, g, b], 2.0),
            )?;
            let marks = rerun::SeriesPoints::new()
                .with_names([format!("{} gate", joint.name)])
                .with_colors([colour(TRIP_COLOUR)])
                .with_markers([rerun::components::MarkerShape::Cross])
                .with_marker_sizes([4.0f32]);
            recording.log_static(joint_path(&joint.name, "gate"), &marks)?;
        }
        Ok(())
    }

    /// Distance of the tip from the base at zero, m: a measure of the arm's size.
    fn reach_m(&self) -> f64 {
        let tip = self.kinematics.base_from_tip(&vec![0.0; self.embodiment.joints.len()]);
        tip.translation.vector.norm().max(0.05)
    }

    pub(crate) fn flush(&self) -> std::result::Result<(), String> {
        self.recording.flush_blocking().map_err(|e| e.to_string())
    }

    pub(crate) fn write(&mut self, event: Event) -> RecordingStreamResult<()> {
        match event {
            Event::Begin { number, instruction, stamp } => {
                // The first episode starts at zero, each other one after what was last shown.
                let start = if self.latest_secs > 0.0 { self.latest_secs + GAP_SECS } else { 0.0 };
                self.offset_secs = start - stamp.secs();
                self.at(stamp);
                (self.number, self.instruction) = (number, instruction);
                self.trip_counts.clear();
                self.last_trips.clear();
                self.told_secs.clear();
                self.plan(&[])?;
                self.task("")?;
                self.line(
                    &format!("episode {}: {}", self.number, self.instruction),
                    rerun::TextLogLevel::INFO,
                )
            }
            Event::Solids(solids) => self.solids(&solids),
            Event::Tick(tick) => self.tick(&tick),
            Event::Plan { joint_targets, stamp } => {
                self.at(stamp);
                self.plan(&joint_targets)
            }
            Event::Asked { joint_targets, stamp } => {
                self.at(stamp);
                let [r, g, b] = PLAN_COLOUR;
                for (joint, target) in self.embodiment.joints.iter().zip(joint_targets) {
                    let path = joint_path(&joint.name, "asked");
                    if !self.has_asked {
                        let curve = rerun::SeriesLines::new()
                            .with_names([format!("{} policy", joint.name)])
                            .with_colors([colour([r, g, b, 1.0])])
                            .with_widths([1.0f32]);
                        self.recording.log_static(path.clone(), &curve)?;
                    }
                    self.recording.log(path, &rerun::Scalars::single(target))?;
                }
                self.has_asked = true;
                Ok(())
            }
            Event::Latency { stage, secs, stamp } => {
                self.at(stamp);
                let path = format!("latency/{}", part(&stage));
                if self.stages.insert(stage.clone()) {
                    let curve = rerun::SeriesLines::new().with_names([stage]).with_widths([1.5f32]);
                    self.recording.log_static(path.clone(), &curve)?;
                }
                self.recording.log(path, &rerun::Scalars::single(secs * 1e3))
            }
            Event::Note { text, stamp } => {
                self.at(stamp);
                self.line(&text, rerun::TextLogLevel::INFO)
            }
            Event::End { success, words, stamp } => {
                self.at(stamp);
                self.plan(&[])?;
                self.task(&format!("**{}** {words}", if success { "done" } else { "not done" }))?;
                let trips: Vec<String> =
                    self.trip_counts.iter().map(|(reason, n)| format!("{} {n}", words_of(*reason))).collect();
                let gate =
                    if trips.is_empty() { String::new() } else { format!("; gate: {}", trips.join(", ")) };
                let level = if success { rerun::TextLogLevel::INFO } else { rerun::TextLogLevel::WARN };
                let verdict = if success { "done" } else { "not done" };
                self.line(&format!("{verdict}: {words}{gate}"), level)
            }
        }
    }

    /// Puts what follows at `stamp` on the timeline.
    fn at(&mut self, stamp: Stamp) {
        let secs = (stamp.secs() + self.offset_secs).max(0.0);
        self.latest_secs = self.latest_secs.max(secs);
        self.recording.set_duration_secs(TIMELINE, secs);
    }

    fn line(&self, text: &str, level: &str) -> RecordingStreamResult<()> {
        self.recording.log("log", &rerun::TextLog::new(text).with_level(level))
    }

    fn task(&self, outcome: &str) -> RecordingStreamResult<()> {
        let text = format!("### {}\nepisode {} {outcome}", self.instruction, self.number);
        self.recording.log("task", &rerun::TextDocument::from_markdown(text))
    }

    fn solids(&mut self, solids: &[Solid]) -> RecordingStreamResult<()> {
        for path in std::mem::take(&mut self.solids) {
            self.recording.log(path, &rerun::Clear::recursive())?;
        }
        for solid in solids {
            // Each episode has entities of its own, so that a name may stand for another shape in the next.
            let path = format!("world/things/episode_{}/{}", self.number, part(&solid.name));
            log_form(&self.recording, &path, solid)?;
            self.recording.log(path.clone(), &transform(&solid.base_from_solid))?;
            self.solids.push(path);
        }
        Ok(())
    }

    fn tick(&mut self, tick: &Tick) -> RecordingStreamResult<()> {
        self.at(tick.observation.stamp);
        let measured = &tick.observation.joint_positions;
        self.joints.clone_from(measured);
        let poses = self.kinematics.base_from_links(measured);
        for (index, path) in &self.links {
            self.recording.log(path.as_str(), &transform(&poses[*index]))?;
        }
        for (path, pose) in self.solids.iter().zip(&tick.base_from_solids) {
            self.recording.log(path.as_str(), &transform(pose))?;
        }
        for (k, joint) in self.embodiment.joints.iter().enumerate() {
            for (what, values) in [("measured", measured), ("sent", &tick.joint_targets)] {
                if let Some(value) = values.get(k) {
                    self.recording.log(joint_path(&joint.name, what), &rerun::Scalars::single(*value))?;
                }
            }
        }
        for frame in &tick.observation.frames {
            self.picture(frame)?;
        }
        self.trips(tick)
    }

    fn picture(&mut self, frame: &Frame) -> RecordingStreamResult<()> {
        if self.pictures.insert(frame.camera.clone(), frame.stamp) == Some(frame.stamp) {
            return Ok(());
        }
        let path = format!("cameras/{}", part(&frame.camera));
        let mut jpeg = Vec::with_capacity(frame.rgb.len() / 4);
        let encoded = JpegEncoder::new_with_quality(&mut jpeg, 90).encode(
            &frame.rgb,
            frame.width,
            frame.height,
            image::ExtendedColorType::Rgb8,
        );
        match encoded {
            Ok(()) => {
                let picture = rerun::EncodedImage::from_file_contents(jpeg)
                    .with_magnification_filter(rerun::components::MagnificationFilter::Linear);
                self.recording.log(path, &picture)
            }
            Err(e) => self.line(&format!("camera '{}': {e}", frame.camera), rerun::TextLogLevel::ERROR),
        }
    }

    /// A line for each reason, not more often than [`QUIET_SECS`], a red dot at the tip and a cross on the joint's curve.
    fn trips(&mut self, tick: &Tick) -> RecordingStreamResult<()> {
        let reasons: BTreeSet<TripReason> = tick.trips.iter().map(|trip| trip.reason).collect();
        for trip in &tick.trips {
            *self.trip_counts.entry(trip.reason).or_default() += 1;
            for (k, joint) in self.embodiment.joints.iter().enumerate() {
                if trip.detail.contains(&format!("'{}'", joint.name)) {
                    let place = tick.joint_targets.get(k).copied().unwrap_or_default();
                    self.recording.log(joint_path(&joint.name, "gate"), &rerun::Scalars::single(place))?;
                }
            }
        }
        if reasons == self.last_trips {
            return Ok(());
        }
        if reasons.is_empty() {
            self.recording.log("world/gate", &rerun::Clear::flat())?;
        } else {
            let tip = self.kinematics.base_from_tip(&self.joints).translation.vector;
            let mark = rerun::Points3D::new([vec3(&tip)])
                .with_radii([rerun::Radius::new_ui_points(7.0)])
                .with_colors([colour(TRIP_COLOUR)]);
            self.recording.log("world/gate", &mark)?;
            for trip in &tick.trips {
                let before = self.told_secs.get(&trip.reason);
                if before.is_some_and(|secs| self.latest_secs - secs < QUIET_SECS) {
                    continue;
                }
                self.told_secs.insert(trip.reason, self.latest_secs);
                let held = if tick.held { ", held" } else { "" };
                let text = format!("gate: {}{held}: {}", words_of(trip.reason), trip.detail);
                self.line(&text, rerun::TextLogLevel::WARN)?;
            }
        }
        self.last_trips = reasons;
        Ok(())
    }

    /// The tip's way through the plan, from where it is, fading with time; nothing for an empty plan.
    fn plan(&self, joint_targets: &[Vec<f64>]) -> RecordingStreamResult<()> {
        if joint_targets.is_empty() {
            return self.recording.log("world/plan", &rerun::Clear::flat());
        }
        let tip = |joints: &[f64]| vec3(&self.kinematics.base_from_tip(joints).translation.vector);
        let mut places = vec![tip(&self.joints)];
        places.extend(joint_targets.iter().map(|targets| tip(targets)));
        let steps = joint_targets.len() as f32;
        let fading = |k: usize| {
            let [r, g, b] = PLAN_COLOUR;
            let late = k as f32 / steps;
            colour([r, g + (0.85 - g) * late, b + (0.25 - b) * late, 1.0])
        };
        let strips: Vec<[[f32; 3]; 2]> = places.windows(2).map(|pair| [pair[0], pair[1]]).collect();
        let line = rerun::LineStrips3D::new(strips)
            .with_colors((0..joint_targets.len()).map(fading))
            .with_radii([rerun::Radius::new_ui_points(3.5)]);
        self.recording.log("world/plan", &line)
    }
}

fn joint_path(joint: &str, what: &str) -> String {
    format!("joints/{}/{what}", part(joint))
}

/// A name as one part of an entity path.
fn part(name: &str) -> String {
    name.chars().map(|c| if c.is_alphanumeric() || c == '-' { c } else { '_' }).collect()
}

fn words_of(reason: TripReason) -> &'static str {
    match reason {
        TripReason::Position => "position limit",
        TripReason::Velocity => "speed limit",
        TripReason::Acceleration => "acceleration limit",
        TripReason::Jerk => "jerk limit",
        TripReason::Effort => "effort limit",
        TripReason::Workspace => "workspace",
        TripReason::KeepOut => "keep-out zone",
        TripReason::SelfCollision => "self-collision",
        TripReason::EmergencyStop => "emergency stop",
        TripReason::NotFinite => "not a number",
        TripReason::Shape => "wrong number of targets",
        TripReason::Stale => "stale plan",
        TripReason::NoPlan => "no plan",
        TripReason::Rate => "too fast a rate",
    }
}
