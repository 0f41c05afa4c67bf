//! From what happens on the table to what the viewer shows.

use crate::realtime::Moment;
use anyhow::Result;
use nalgebra::Isometry3;
use std::path::Path;
use vela_embodiment::{Embodiment, Geometry, Observation};
use vela_robots::{ControlEvent, TickReport};
use vela_sim::scene::{ObjectKind, Scene};
use vela_sim::state::WorldState;
use vela_viz::{Backlog, Destination, Form, Show, Solid, Tick, srgb_from_linear};

/// A recording for a file, the viewer or both; `None` when neither is asked for.
pub fn open(rrd: Option<&Path>, view: bool, embodiment: &Embodiment) -> Result<Option<Show>> {
    let destination = match (rrd, view) {
        (None, false) => return Ok(None),
        (Some(path), false) => Destination::File(path.to_owned()),
        (None, true) => Destination::Viewer,
        (Some(path), true) => Destination::FileAndViewer(path.to_owned()),
    };
    Ok(Some(Show::open(&destination, embodiment, Backlog::Drop)?))
}

/// An episode begins: its sentence and what stands on the table.
pub fn begin(show: &Show, number: usize, instruction: &str, scene: &Scene, moment: Option<&Moment>) {
    let Some(moment) = moment else { return };
    show.begin_episode(number, instruction, moment.stamp);
    show.solids(solids(scene, &moment.state));
}

fn solids(scene: &Scene, state: &WorldState) -> Vec<Solid> {
    let zones = scene.zones.iter().map(|zone| Solid {
        name: format!("{} zone", zone.name),
        form: Form::Patch { half: zone.half_m },
        rgba: srgb_from_linear([0.80, 0.79, 0.74]),
        base_from_solid: Isometry3::translation(zone.xy_m[0], zone.xy_m[1], 0.0005),
    });
    let objects = state.objects.iter().map(|object| Solid {
        name: format!("{} {}", object.colour.word(), object.kind.word()),
        form: form(object.kind),
        rgba: srgb_from_linear(object.colour.albedo()),
        base_from_solid: object.base_from_object,
    });
    zones.chain(objects).collect()
}

fn form(kind: ObjectKind) -> Form {
    use vela_sim::drawing::Solid as Drawn;
    match vela_sim::solid(kind) {
        Drawn::Box(half) => Form::Plain(Geometry::Box(half.cast::<f64>() * 2.0)),
        Drawn::Sphere { radius } => Form::Plain(Geometry::Sphere { radius: f64::from(radius) }),
        Drawn::Cylinder { radius, half_length } => Form::Plain(Geometry::Cylinder {
            radius: f64::from(radius),
            length: f64::from(half_length) * 2.0,
        }),
        Drawn::Bowl { radius, half_height, wall } => Form::Bowl {
            radius: f64::from(radius),
            height: f64::from(half_height) * 2.0,
            wall: f64::from(wall),
        },
    }
}

/// Shows one event of the control loop.
pub fn event(show: &Show, event: &ControlEvent, moment: &Moment) {
    match event {
        ControlEvent::Observed(observation) => {
            show.latency("picture", moment.stamp.secs_since(observation.stamp), moment.stamp);
            show.tick(tick(observation.as_ref().clone(), None, moment));
        }
        ControlEvent::Chunk { plan, infer_secs, .. } => {
            show.plan(&plan.targets, plan.observation_stamp);
            show.latency("policy", *infer_secs, plan.observation_stamp);
        }
        ControlEvent::Merged { latency_secs, stamp, .. } => {
            show.latency("observation to plan", *latency_secs, *stamp);
        }
        ControlEvent::Failed { why, stamp } => show.note(why, *stamp),
        ControlEvent::State { state, stamp } => show.note(&format!("{state:?}"), *stamp),
        // Said on standard error, once.
        ControlEvent::Scheduled(_) => {}
        ControlEvent::Tick(report) => {
            let seen = Observation {
                frames: Vec::new(),
                joint_positions: report.joints.clone(),
                instruction: String::new(),
                stamp: report.stamp,
            };
            show.latency("tick start", report.late_secs, report.stamp);
            show.tick(tick(seen, Some(report), moment));
        }
    }
}

fn tick(observation: Observation, report: Option<&TickReport>, moment: &Moment) -> Tick {
    let zones = moment.drawing.marks.iter();
    let zones = zones.map(|m| Isometry3::translation(f64::from(m.xy_m[0]), f64::from(m.xy_m[1]), 0.0005));
    let objects = moment.state.objects.iter().map(|o| o.base_from_object);
    Tick {
        joint_targets: report.map_or_else(|| moment.state.joint_targets.clone(), |r| r.targets.clone()),
        held: report.is_some_and(|r| r.held),
        trips: report.map(|r| r.trips.clone()).unwrap_or_default(),
        base_from_solids: zones.chain(objects).collect(),
        observation,
    }
}
