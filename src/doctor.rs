//! `vela doctor`: what is on the zenoh network, how fast it comes, and what is missing for a policy.

use crate::chooser;
use crate::replay::named;
use anyhow::{Result, bail};
use serde_json::json;
use std::path::PathBuf;
use vela_embodiment::Embodiment;
use vela_robots::survey::{SeenRobot, SeenTopic, SilentTopic, survey};
use vela_robots::{ArmFile, Side, open_session, ros2};

/// List robots, policies and cameras on the zenoh network with their rates, what is amiss, and what a policy misses.
#[derive(clap::Args)]
pub struct Args {
    /// Name what is missing for this policy: builtin, or a policy folder. Exit status 1 if anything is.
    #[arg(long)]
    policy: Option<String>,
    /// The robot whose cameras must keep up with its control loop: a file as in configs/robots (the built-in SO-101 by
    /// default), or the arm's own file, which `vela robot --config` takes: its topics and joints are then looked for by
    /// the names that it says.
    #[arg(long, value_name = "FILE")]
    robot: Option<PathBuf>,
    /// The ROS domain to listen to (the one of the arm's file, or 0).
    #[arg(long)]
    domain: Option<u32>,
    /// How long to listen, s.
    #[arg(long, default_value_t = 3.0)]
    secs: f64,
    /// A zenoh config file (JSON5) instead of the built-in one, which connects to loopback.
    #[arg(long)]
    zenoh: Option<PathBuf>,
    /// Print what was found as JSON.
    #[arg(long)]
    json: bool,
}

/// Runs the verb.
pub fn run(args: &Args) -> Result<()> {
    let (arm, robot) = match &args.robot {
        Some(file) => named(file)?,
        None => (None, Embodiment::so101()?),
    };
    let arm = arm.as_ref();
    let spec = match &args.policy {
        Some(policy) => Some(chooser::policy(policy, &robot)?.spec().clone()),
        None => None,
    };
    let session = open_session(Side::Policy, args.zenoh.as_deref())?;
    let domain = args.domain.or(arm.map(ArmFile::domain)).unwrap_or(ros2::DOMAIN);
    let seen = survey(&session, domain, args.secs)?;
    let amiss = seen.amiss(&robot, arm);
    let missing = spec.as_ref().map(|spec| seen.missing(spec, arm));
    if args.json {
        println!("{}", json!({"seen": seen, "amiss": amiss, "missing": missing}));
    } else {
        list("policies", &seen.policies, "none: run `vela act`");
        let robots: Vec<String> = seen.robots.iter().map(robot_line).collect();
        list("robots that look for one", &robots, "none");
        list("ROS 2 nodes", &seen.nodes, "none: run `vela robot` or `vela sim`");
        list("ROS 2 actions", &seen.actions, "none");
        println!("topics, listened to for {:.1} s:", seen.listened_ms / 1e3);
        seen.topics.iter().for_each(|topic| println!("  {}", line(topic)));
        let silent: Vec<String> = seen.silent.iter().map(silent_line).collect();
        list("topics with a publisher and nothing that came", &silent, "none");
        list("amiss", &amiss, "nothing");
        if let Some(missing) = &missing {
            list("missing for the policy", missing, "nothing");
        }
    }
    match missing {
        Some(missing) if !missing.is_empty() => bail!("{} things are missing for the policy", missing.len()),
        _ => Ok(()),
    }
}

fn list(what: &str, items: &[String], none: &str) {
    println!("{what}: {}", if items.is_empty() { none } else { "" });
    items.iter().for_each(|item| println!("  {item}"));
}

fn robot_line(robot: &SeenRobot) -> String {
    match &robot.asks {
        Some(policy) => format!("{} asks the policy of {policy}", robot.key),
        None => format!("{} has found none", robot.key),
    }
}

fn silent_line(topic: &SilentTopic) -> String {
    let message = topic.message.replace("::dds_::", "::").replace("::", "/");
    format!("{:<40} {}", topic.name, message.trim_end_matches('_'))
}

fn line(topic: &SeenTopic) -> String {
    let mut text = format!("{:<40} {:6.1} Hz", topic.name, topic.hz());
    if let Some((width, height)) = topic.size {
        text += &format!("  {width}x{height}");
    }
    if topic.lost > 0 {
        text += &format!("  {} lost", topic.lost);
    }
    if topic.torn > 0 {
        text += &format!("  {} torn", topic.torn);
    }
    if let Some(offset) = topic.clock_is_off_ms() {
        text += &format!("  its clock is {offset:+.0} ms off");
    }
    if let Some(drift) = topic.clock_runs_off_ms() {
        text += &format!("  its clock runs {drift:+.0} ms per s off");
    }
    text
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_topic_s_line_says_its_rate_and_what_is_off() {
        let (period_ms, size) = (100.0, Some((96, 72)));
        let mut topic = SeenTopic { name: "/front".into(), period_ms, size, ..SeenTopic::default() };
        topic.clock_drift_ms = Some(-3.0);
        topic.clock_offset_ms = Some(99.0);
        assert_eq!(line(&topic), format!("{:<40}   10.0 Hz  96x72", "/front"));
        (topic.clock_drift_ms, topic.clock_offset_ms, topic.lost) = (Some(-120.0), Some(600_000.0), 2);
        let off = "10.0 Hz  96x72  2 lost  its clock is +600000 ms off  its clock runs -120 ms per s off";
        assert!(line(&topic).ends_with(off), "{}", line(&topic));
        let silent = SilentTopic { name: "/cam".into(), message: "sensor_msgs::msg::dds_::Image_".into() };
        assert_eq!(silent_line(&silent), format!("{:<40} sensor_msgs/msg/Image", "/cam"));
    }
}
