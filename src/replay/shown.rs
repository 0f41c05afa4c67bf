//! Recorded episodes in rerun: with the arm where the robot is known, else pictures and curves as they were stored.

use super::compared::{Moment, Plans};
use anyhow::Result;
use serde_json::Value;
use std::path::Path;
use vela_embodiment::{Embodiment, Joint, JointKind, Limits, Safety};
use vela_episodes::{Dataset, EncodedEpisode};
use vela_viz::{Backlog, Destination, Show, Tick};

/// A recording that episodes are drawn into.
pub struct Shown {
    show: Show,
    /// For each curve, the entry of the action that was sent.
    sent: Vec<Option<usize>>,
    robot_known: bool,
}

impl Shown {
    /// A new .rrd file of a dataset; without a robot there is a curve for each name in its states and actions.
    pub fn open(path: &Path, robot: Option<&Embodiment>, dataset: &Dataset) -> Result<Self> {
        let (drawn, sent) = match robot {
            Some(robot) => (robot.clone(), (0..robot.joints.len()).map(Some).collect()),
            None => {
                let curves = curves(dataset.state_names(), dataset.action_names());
                let (names, sent): (Vec<String>, _) = curves.into_iter().unzip();
                (stand_in(&names, dataset), sent)
            }
        };
        let show = Show::open(&Destination::File(path.to_owned()), &drawn, Backlog::Wait)?;
        Ok(Self { show, sent, robot_known: robot.is_some() })
    }

    /// Draws an episode, with what a policy would have done in it and the moment at which that was furthest off.
    pub fn episode(&self, recorded: &EncodedEpisode, plans: &Plans, worst: Option<&Moment>) -> Result<()> {
        if recorded.is_empty() {
            return Ok(());
        }
        let show = &self.show;
        let mut stamp = recorded.frame(0)?.observation.stamp;
        show.begin_episode(recorded.index, recorded.tasks.first().map_or("", |task| task), stamp);
        if !self.robot_known {
            show.note("the robot is not known: numbers are as the dataset stores them", stamp);
        }
        for k in 0..recorded.len() {
            let frame = recorded.frame(k)?;
            stamp = frame.observation.stamp;
            if let Some((_, plan)) = plans.iter().find(|(at, _)| *at == k) {
                show.plan(plan, stamp);
                plan.first().iter().for_each(|targets| show.asked(targets, stamp));
            }
            if let Some(moment) = worst.filter(|moment| moment.frame == k) {
                let text = format!("worst disagreement: {:.4} rad, most at {}", moment.mae, moment.joint);
                show.note(&text, stamp);
            }
            let entry = |place: &Option<usize>| place.and_then(|k| frame.action.get(k)).copied();
            show.tick(Tick {
                joint_targets: self.sent.iter().map(|place| entry(place).unwrap_or(f64::NAN)).collect(),
                observation: frame.observation,
                held: false,
                trips: Vec::new(),
                base_from_solids: Vec::new(),
            });
        }
        // Most datasets do not say how an episode went.
        match recorded.extra.get("success").and_then(Value::as_bool) {
            Some(success) => show.end_episode(success, "end of the recording", stamp),
            None => show.note("end of the recording", stamp),
        }
        Ok(())
    }

    /// Waits until everything is written.
    pub fn finish(self) -> Result<()> {
        self.show.finish()?;
        Ok(())
    }
}

/// A curve for each entry of the states and for each entry of the actions that has another name: its name, and the
/// action's entry.
fn curves(states: &[String], actions: &[String]) -> Vec<(String, Option<usize>)> {
    let more = actions.iter().filter(|name| !states.contains(name));
    let place = |name: &String| actions.iter().position(|own| own == name);
    states.iter().chain(more).map(|name| (name.clone(), place(name))).collect()
}

/// What stands for a robot that nobody described: a joint without a body for each curve.
fn stand_in(names: &[String], dataset: &Dataset) -> Embodiment {
    // Any text may be a name in a dataset, not in a URDF.
    let plain = |c: char| if c.is_alphanumeric() || "-./".contains(c) { c } else { '_' };
    let any = f64::INFINITY;
    let joints: Vec<Joint> = names
        .iter()
        .map(|name| Joint {
            name: name.chars().map(plain).collect(),
            kind: JointKind::Revolute,
            limits: Limits {
                lower: -any,
                upper: any,
                velocity: any,
                acceleration: any,
                jerk: None,
                effort: None,
            },
        })
        .collect();
    let bodies = joints.iter().enumerate().map(|(k, joint)| {
        let name = &joint.name;
        format!(
            "<link name='{k}'/><joint name='{name}' type='fixed'><parent link='base'/><child link='{k}'/></joint>"
        )
    });
    let urdf = format!("<robot name='unknown'><link name='base'/>{}</robot>", bodies.collect::<String>());
    Embodiment {
        name: dataset.robot_type().unwrap_or("unknown").to_owned(),
        joints,
        gripper: None,
        cameras: dataset.cameras().to_vec(),
        control_hz: dataset.fps(),
        tip_link: "base".into(),
        safety: Safety::default(),
        urdf,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_is_sent_has_the_curve_of_its_name() {
        let names = |names: &[&str]| names.iter().map(|name| (*name).to_owned()).collect::<Vec<_>>();
        let found = curves(&names(&["x", "y", "grip"]), &names(&["grip", "stop", "x"]));
        let expected = [("x", Some(2)), ("y", None), ("grip", Some(0)), ("stop", Some(1))];
        assert_eq!(found, expected.map(|(name, place)| (name.to_owned(), place)));
    }

    #[test]
    fn any_text_may_name_a_curve() -> Result<()> {
        let golden = Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/golden/lerobot_v30");
        let names = ["a'b", "<c>&", "", "left arm/1.pos", "\u{1}\n"].map(str::to_owned);
        let robot = stand_in(&names, &Dataset::open(&golden)?);
        assert_eq!(robot.joint_names(), ["a_b", "_c__", "", "left_arm/1.pos", "__"]);
        assert_eq!(robot.kinematics()?.dofs(), names.len());
        Ok(())
    }
}
