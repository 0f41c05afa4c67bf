//! `vela doctor` over the built binary, beside an arm with names of its own, a dead camera and a clock that is off.

mod sessions;

use serde_json::Value;
use sessions::{sessions, text};
use std::path::Path;
use std::process::{Command, Output, Stdio};
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::thread::JoinHandle;
use std::time::Duration;
use vela_embodiment::{Embodiment, Stamp, unix_time};
use vela_robots::ros2::keys::{self, Attachment, EndpointKind, Entity, Topic};
use vela_robots::ros2::messages::{Image, JointState, encode};
use vela_robots::{Side, open_session};
use zenoh::liveliness::LivelinessToken;
use zenoh::{Session, Wait};

type Answer<T> = Result<T, Box<dyn std::error::Error>>;

const DOMAIN: u32 = 7;
const BEHIND_SECS: f64 = 600.0;

/// Another maker's arm in a domain of its own: its first joint and its topics have other names, the clock of its joint
/// states is ten minutes behind, one camera sends only to who is on the graph, and one that is there sends nothing.
struct Foreign {
    speaking: Arc<AtomicBool>,
    thread: Option<JoinHandle<()>>,
    _tokens: Vec<LivelinessToken>,
}

impl Foreign {
    fn start(session: &Session, so101: &Embodiment) -> Answer<Self> {
        let image = |name: &str| Topic::new(name, &keys::IMAGE).best_effort();
        let states = Topic::new("/arm/joint_states", &keys::JOINT_STATE);
        let (front, lazy, dead) =
            (image("/usb_cam/image_raw"), image("/lazy/image_raw"), image("/dead/image_raw"));
        let node = Entity::node(DOMAIN, &session.zid().to_string(), "foreign");
        let mut tokens = vec![node.token()];
        for (number, topic) in (1..).zip([&states, &front, &lazy, &dead]) {
            tokens.push(node.endpoint_token(number, EndpointKind::Publisher, topic));
        }
        let declared = tokens.iter().map(|token| session.liveliness().declare_token(token.as_str()).wait());
        let tokens = declared.collect::<Result<Vec<_>, _>>().map_err(|e| e.to_string())?;
        let mut name: Vec<String> = so101.joint_names().into_iter().map(str::to_owned).collect();
        name[0] = "joint_1".into();
        let state = encode(&JointState { name, position: vec![0.1; 6], ..JointState::default() })?;
        let (width, height) = (so101.cameras[0].width, so101.cameras[0].height);
        let data = vec![90; (width * height * 3) as usize];
        let encoding = "rgb8".into();
        let picture = Image { width, height, encoding, step: 3 * width, data, ..Image::default() };
        let picture = encode(&picture)?;
        let (session, speaking) = (session.clone(), Arc::new(AtomicBool::new(true)));
        let thread = std::thread::spawn({
            let speaking = speaking.clone();
            move || {
                let listened = format!("@ros2_lv/{DOMAIN}/*/*/*/MS/*/*/*/%lazy%image_raw/*/*/*");
                let mut is_listened_to = false;
                for sequence in 1.. {
                    if !speaking.load(Ordering::SeqCst) {
                        return;
                    }
                    if sequence % 8 == 1 {
                        is_listened_to = session
                            .liveliness()
                            .get(&listened)
                            .wait()
                            .is_ok_and(|replies| replies.into_iter().next().is_some());
                    }
                    let put = |topic: &Topic, bytes: &[u8], stamp: Stamp| {
                        let beside = Attachment { sequence, stamp, gid: [3; 16] }.encode();
                        let _ = session.put(topic.key(DOMAIN), bytes).attachment(beside.as_slice()).wait();
                    };
                    put(&states, &state, unix_time().plus_secs(-BEHIND_SECS));
                    put(&front, &picture, unix_time());
                    if is_listened_to {
                        put(&lazy, &picture, unix_time());
                    }
                    std::thread::sleep(Duration::from_millis(12));
                }
            }
        });
        Ok(Self { speaking, thread: Some(thread), _tokens: tokens })
    }
}

impl Drop for Foreign {
    fn drop(&mut self) {
        self.speaking.store(false, Ordering::SeqCst);
        let _ = self.thread.take().map(JoinHandle::join);
    }
}

fn doctor(zenoh: &str, args: &[&str]) -> Answer<Output> {
    let mut command = Command::new(env!("CARGO_BIN_EXE_vela"));
    command.args(["doctor", "--policy", "builtin", "--secs", "1", "--zenoh", zenoh]).args(args);
    Ok(command.env("VELA_STATE_DIR", env!("CARGO_TARGET_TMPDIR")).stdin(Stdio::null()).output()?)
}

fn words(list: &Value) -> Vec<&str> {
    list.as_array().into_iter().flatten().filter_map(Value::as_str).collect()
}

/// What the doctor finds when nothing is missing and no more than this is amiss: pictures may be slow for a while on a
/// machine that does other things too.
fn found_in_time(zenoh: &str, args: &[&str], amiss: &[&str]) -> Answer<Value> {
    let mut last = String::new();
    for _ in 0..20 {
        let output = doctor(zenoh, args)?;
        let found: Value = serde_json::from_slice(&output.stdout).unwrap_or_default();
        if output.status.success() && words(&found["amiss"]) == amiss {
            return Ok(found);
        }
        last = format!("{output:?}");
    }
    Err(last.into())
}

#[test]
fn an_arm_with_names_of_its_own_is_known_by_its_file() -> Answer<()> {
    let dir = tempfile::tempdir()?;
    let [arm, zenoh] = sessions(dir.path())?;
    let session = open_session(Side::Robot, Some(Path::new(&arm)))?;
    let _arm = Foreign::start(&session, &Embodiment::so101()?)?;
    let file = dir.path().join("arm.toml");
    let so101 = text(&Path::new(env!("CARGO_MANIFEST_DIR")).join("configs/robots/so101.toml"));
    let camera = |name: &str, topic: &str| format!("[cameras.{name}]\ntopic = '{topic}'\nkind = 'raw'\n");
    let (front, wrist) = (camera("front", "/usb_cam/image_raw"), camera("wrist", "/lazy/image_raw"));
    let ros2 = format!("[ros2]\ndomain = {DOMAIN}\njoint_states = '/arm/joint_states'\n");
    let names = "[ros2.joint_names]\nshoulder_pan = 'joint_1'\n";
    std::fs::write(&file, format!("robot = '{so101}'\n{ros2}{names}{front}{wrist}"))?;
    let file = text(&file);

    // The dead camera and the clock are amiss, with the arm's file and without it.
    let amiss = [
        "/dead/image_raw: somebody publishes it and no picture came",
        "/arm/joint_states: its clock is behind ours, expected less than 100 ms between them",
    ];
    let found = found_in_time(&zenoh, &["--robot", &file, "--json"], &amiss)?;
    assert_eq!(found["missing"], serde_json::json!([]));
    let silent =
        serde_json::json!([{"name": "/dead/image_raw", "message": "sensor_msgs::msg::dds_::Image_"}]);
    assert_eq!(found["seen"]["silent"], silent, "{found}");
    assert_eq!(words(&found["seen"]["nodes"]), ["foreign"]);
    let topics = found["seen"]["topics"].as_array().ok_or("no topics")?;
    let offset_secs = |name: &str| {
        let topic = topics.iter().find(|topic| topic["name"] == name);
        topic.and_then(|topic| topic["clock_offset_ms"].as_f64()).map(|ms| ms * 1e-3)
    };
    let off = offset_secs("/arm/joint_states").ok_or("no offset of the joint states")?;
    assert!((off + BEHIND_SECS).abs() < 5.0, "{off}");
    let off = offset_secs("/usb_cam/image_raw").ok_or("no offset of the camera")?;
    assert!(off.abs() < 0.1, "{off}");

    // Without the file nothing of it has the robot's names.
    let domain = DOMAIN.to_string();
    let output = doctor(&zenoh, &["--domain", &domain, "--json"])?;
    assert_eq!(output.status.code(), Some(1), "{output:?}");
    let found: Value = serde_json::from_slice(&output.stdout)?;
    let missing = [
        "joint 'shoulder_pan': no joint state names it",
        "camera 'front': no topic has its name and pictures",
        "camera 'wrist': no topic has its name and pictures",
    ];
    assert_eq!(words(&found["missing"]), missing);
    let said = words(&found["amiss"]);
    assert!(amiss.iter().all(|what| said.contains(what)), "{said:?}");
    // And in words.
    let output = doctor(&zenoh, &["--robot", &file])?;
    let said = String::from_utf8_lossy(&output.stdout);
    let line = |name: &str| said.lines().find(|line| line.trim_start().starts_with(name)).unwrap_or_default();
    assert!(line("/dead/image_raw ").ends_with("sensor_msgs/msg/Image"), "{said}");
    assert!(line("/arm/joint_states ").contains("its clock is -600"), "{said}");
    Ok(())
}
