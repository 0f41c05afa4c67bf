//! What a robot's client has to send for this policy, and what it gets.

use super::value::{Array, Dtype, Value, Writer, short};
use crate::Fault;
use std::collections::BTreeMap;
use std::sync::Arc;
use vela_embodiment::{ActionChunk, ActionSpace, Camera, Embodiment, Frame, Observation, PolicySpec, Stamp};

/// A prompt is shorter than this many bytes.
const LONGEST_PROMPT: usize = 1000;

/// The parts in which openpi's DROID robots send the state, in the order in which they make it.
const STATE_PARTS: [&str; 2] = ["joint_position", "gripper_position"];

/// The server's first message: what the policy is and what it wants.
pub fn metadata(spec: &PolicySpec) -> Vec<u8> {
    let robot = &spec.embodiment;
    let space = match spec.space {
        ActionSpace::JointPositions => "joint_positions",
        ActionSpace::JointDeltas => "joint_deltas",
        ActionSpace::EndEffectorDeltas => "end_effector_deltas",
    };
    let mut writer = Writer::default();
    writer.map(11).text("server").text(concat!("vela ", env!("CARGO_PKG_VERSION")));
    writer.text("robot").text(&robot.name).text("checkpoint").text(&spec.checkpoint);
    writer.text("joint_names").list(robot.joints.len() as u32);
    for name in robot.joint_names() {
        writer.text(name);
    }
    writer.text("cameras").map(robot.cameras.len() as u32);
    for camera in &robot.cameras {
        writer.text(&camera.name).list(3);
        writer.count(u64::from(camera.height)).count(u64::from(camera.width)).count(3);
    }
    writer.text("action_space").text(space).text("action_horizon").count(spec.horizon as u64);
    writer.text("execute").count(spec.execute as u64).text("history").count(spec.history as u64);
    writer.text("control_hz").number(robot.control_hz);
    writer.text("observation").list(2 + robot.cameras.len() as u32).text("state").text("prompt");
    for camera in &robot.cameras {
        writer.text(&format!("images/{}", camera.name));
    }
    writer.done()
}

/// An observation out of a client's message. Names may be flat (`observation/state`, `observation.images.front`) or in
/// one another (`images: {front: ...}`); `state` is one number per joint, rad or m, whole or, as DROID robots send it, in
/// the parts `joint_position` and `gripper_position`; `prompt` is a sentence, and each camera a picture of its size,
/// `[height, width, 3]` or `[3, height, width]`, uint8, or floats of 0 to 1.
///
/// # Errors
/// Everything that is missing, too much, or of the wrong form, in one sentence each.
pub fn observation(message: &Value, spec: &PolicySpec, stamp: Stamp) -> Result<Observation, Fault> {
    let robot = &spec.embodiment;
    let mut differences = Vec::new();
    let Value::Map(_) = message else {
        return Err(refused(&[format!("expected a dict, got {}", message.kind())]));
    };
    let mut given = BTreeMap::new();
    gather(message, "", &mut given, &mut differences);
    let parts = STATE_PARTS.map(|name| given.remove(name));
    let whole = given.remove("state");
    let mut take = |name: &str, differences: &mut Vec<String>| {
        let value = given.remove(name);
        if value.is_none() {
            differences.push(format!("'{name}' is missing"));
        }
        value
    };
    let mut read = Observation {
        frames: Vec::with_capacity(robot.cameras.len()),
        joint_positions: Vec::new(),
        instruction: String::new(),
        stamp,
    };
    match state(whole, parts, robot) {
        Ok(positions) => read.joint_positions = positions,
        Err(why) => differences.push(why),
    }
    match take("prompt", &mut differences) {
        Some(Value::Text(text)) if !text.trim().is_empty() && text.len() <= LONGEST_PROMPT => {
            text.trim().clone_into(&mut read.instruction);
        }
        Some(value) => differences
            .push(format!("'prompt': expected a str of 1 to {LONGEST_PROMPT} bytes, got {}", value.kind())),
        None => {}
    }
    for camera in &robot.cameras {
        match take(&camera.name, &mut differences) {
            Some(Value::Array(array)) => match picture(array, camera) {
                Ok(rgb) => read.frames.push(Frame {
                    camera: camera.name.clone(),
                    width: camera.width,
                    height: camera.height,
                    rgb,
                    stamp,
                }),
                Err(why) => differences.push(why),
            },
            Some(value) => {
                differences.push(format!("camera '{}': expected an array, got {}", camera.name, value.kind()))
            }
            None => {}
        }
    }
    let robot_knows = || {
        let cameras = robot.cameras.iter().map(|camera| camera.name.as_str());
        ["state", "prompt"].into_iter().chain(cameras).collect::<Vec<_>>().join(", ")
    };
    differences.extend(
        given
            .keys()
            .map(|name| format!("'{}' is not of this policy, which takes {}", short(name), robot_knows())),
    );
    if !differences.is_empty() {
        return Err(refused(&differences));
    }
    Ok(read)
}

fn refused(differences: &[String]) -> Fault {
    // A hostile message may have thousands.
    let shown = differences.iter().take(16).map(String::as_str).collect::<Vec<_>>().join("; ");
    Fault::refused(400, "bad_observation", format!("the observation does not fit: {shown}"))
}

/// Every value by its plain name, whatever way its client says it.
fn gather<'a, 'b>(
    value: &'b Value<'a>,
    path: &str,
    given: &mut BTreeMap<String, &'b Value<'a>>,
    differences: &mut Vec<String>,
) {
    if let Value::Map(map) = value {
        for (name, value) in map {
            let path = if path.is_empty() { (*name).to_owned() } else { format!("{path}/{name}") };
            gather(value, &path, given, differences);
        }
        return;
    }
    let path = path.replace('.', "/");
    let name = path.strip_prefix("observation/").unwrap_or(&path);
    let name = name.strip_prefix("images/").unwrap_or(name);
    if given.insert(name.to_owned(), value).is_some() {
        differences.push(format!("'{}' came twice", short(name)));
    }
}

/// One number per joint, from the whole state or from [`STATE_PARTS`] joined.
fn state(whole: Option<&Value>, parts: [Option<&Value>; 2], robot: &Embodiment) -> Result<Vec<f64>, String> {
    let [joints, gripper] = STATE_PARTS;
    let (what, positions, got) = match (whole, parts) {
        (Some(whole), [None, None]) => ("'state'".to_owned(), numbers(whole), whole.kind()),
        (None, [Some(first), Some(last)]) => {
            let joined = numbers(first).zip(numbers(last)).map(|(first, last)| [first, last].concat());
            let what = format!("'{joints}' with '{gripper}'");
            (what, joined, format!("{} with {}", first.kind(), last.kind()))
        }
        (None, [None, None]) => return Err("'state' is missing".into()),
        (None, [None, _]) => return Err(format!("'{joints}' is missing beside '{gripper}'")),
        (None, [_, None]) => return Err(format!("'{gripper}' is missing beside '{joints}'")),
        (Some(_), _) => {
            return Err(format!("expected either 'state' or '{joints}' with '{gripper}', got both"));
        }
    };
    let expected = robot.joints.len();
    let Some(positions) = positions.filter(|positions| positions.len() == expected) else {
        let names = robot.joint_names().join(", ");
        return Err(format!("{what}: expected {expected} numbers ({names}), got {got}"));
    };
    match positions.iter().position(|x| !x.is_finite()) {
        None => Ok(positions),
        Some(place) => Err(format!("{what}: joint '{}' is not a finite number", robot.joints[place].name)),
    }
}

/// The numbers of a row: an array of one axis, or a list.
fn numbers(value: &Value) -> Option<Vec<f64>> {
    match value {
        Value::Array(array) if array.shape.len() == 1 => Some(array.numbers().collect()),
        Value::List(list) => list
            .iter()
            .map(|item| match item {
                Value::Number(number) => Some(*number),
                _ => None,
            })
            .collect(),
        _ => None,
    }
}

/// RGB bytes, `[height, width, 3]`.
fn picture(array: &Array, camera: &Camera) -> Result<Arc<[u8]>, String> {
    let (height, width) = (camera.height as usize, camera.width as usize);
    let planes = match array.shape.as_slice() {
        [h, w, 3] if (*h, *w) == (height, width) => false,
        [3, h, w] if (*h, *w) == (height, width) => true,
        shape => {
            return Err(format!(
                "camera '{}': expected [{height}, {width}, 3] or [3, {height}, {width}], got {shape:?}",
                camera.name
            ));
        }
    };
    let bytes: Vec<u8> = match array.dtype {
        Dtype::Unsigned(1) => array.data.to_vec(),
        Dtype::Float(_) => {
            if let Some(outside) = array.numbers().find(|x| !(0.0..=1.0).contains(x)) {
                return Err(format!("camera '{}': expected floats of 0 to 1, got {outside}", camera.name));
            }
            array.numbers().map(|x| (x * 255.0).round() as u8).collect()
        }
        other => {
            let got = other.name();
            return Err(format!("camera '{}': expected uint8 or floats, got {got}", camera.name));
        }
    };
    if !planes {
        return Ok(bytes.into());
    }
    let pixels = height * width;
    Ok((0..pixels * 3).map(|k| bytes[k % 3 * pixels + k / 3]).collect())
}

/// The answer: actions `[horizon, dims]` in the policy's space, and how long it took, ms.
pub fn answer(chunk: &ActionChunk, infer_ms: f64, previous_ms: Option<f64>) -> Vec<u8> {
    let mut writer = Writer::default();
    writer.map(3).text("actions").rows(&chunk.actions);
    writer.text("server_timing").map(if previous_ms.is_some() { 2 } else { 1 });
    writer.text("infer_ms").number(infer_ms);
    if let Some(previous_ms) = previous_ms {
        writer.text("prev_total_ms").number(previous_ms);
    }
    writer.text("policy_timing").map(1).text("infer_ms").number(infer_ms);
    writer.done()
}

#[cfg(test)]
mod tests {
    use super::*;

    fn spec() -> PolicySpec {
        let mut embodiment = Embodiment::so101().unwrap_or_else(|e| unreachable!("{e}"));
        for camera in &mut embodiment.cameras {
            (camera.width, camera.height) = (3, 2);
        }
        PolicySpec {
            embodiment,
            space: ActionSpace::JointPositions,
            horizon: 4,
            execute: 2,
            history: 1,
            checkpoint: "c".into(),
        }
    }

    fn picture_of(dtype: Dtype, shape: &[usize], data: &'static [u8]) -> Value<'static> {
        Value::Array(Array { dtype, shape: shape.to_vec(), data })
    }

    const PIXELS: &[u8] = &[0, 1, 2, 3, 4, 5, 6, 7, 8, 9, 10, 11, 12, 13, 14, 15, 16, 17];

    fn good() -> Vec<(&'static str, Value<'static>)> {
        let image = || picture_of(Dtype::Unsigned(1), &[2, 3, 3], PIXELS);
        vec![
            ("observation/state", Value::List((0..6).map(|k| Value::Number(f64::from(k) * 0.1)).collect())),
            ("prompt", Value::Text(" pick it up ")),
            ("images", Value::Map(vec![("front", image())])),
            ("observation.images.wrist", picture_of(Dtype::Unsigned(1), &[3, 2, 3], PIXELS)),
        ]
    }

    fn said(map: Vec<(&'static str, Value<'static>)>) -> String {
        observation(&Value::Map(map), &spec(), Stamp(3))
            .err()
            .map(|fault| fault.to_string())
            .unwrap_or_default()
    }

    #[test]
    fn flat_and_nested_names_rows_and_planes_become_one_observation() -> Result<(), Fault> {
        let seen = observation(&Value::Map(good()), &spec(), Stamp(3))?;
        assert_eq!(
            (seen.instruction.as_str(), seen.stamp, seen.joint_positions[5]),
            ("pick it up", Stamp(3), 0.5)
        );
        assert_eq!(seen.frames[0].rgb[..], *PIXELS);
        assert_eq!(seen.frames[1].rgb[..7], [0, 6, 12, 1, 7, 13, 2], "three planes of two rows of three");
        assert!(seen.check(&spec().embodiment).is_ok());
        let mut floats = good();
        let bytes: Vec<u8> = PIXELS.iter().flat_map(|p| (f32::from(*p) / 17.0).to_le_bytes()).collect();
        floats[3].1 = picture_of(Dtype::Float(4), &[2, 3, 3], bytes.leak());
        let seen = observation(&Value::Map(floats), &spec(), Stamp(3))?;
        assert_eq!((seen.frames[1].rgb[0], seen.frames[1].rgb[17], seen.frames[1].rgb[1]), (0, 255, 15));
        Ok(())
    }

    #[test]
    fn a_droid_robot_sends_its_state_in_parts() -> Result<(), Fault> {
        let mut spec = spec();
        for (camera, name) in
            spec.embodiment.cameras.iter_mut().zip(["exterior_image_1_left", "wrist_image_left"])
        {
            name.clone_into(&mut camera.name);
        }
        let list = |values: &[f64]| Value::List(values.iter().copied().map(Value::Number).collect());
        let image = || picture_of(Dtype::Unsigned(1), &[2, 3, 3], PIXELS);
        // The keys of openpi's examples/droid/main.py.
        let droid = |arm: &[f64], gripper: &[f64]| {
            vec![
                ("observation/exterior_image_1_left", image()),
                ("observation/wrist_image_left", image()),
                ("observation/joint_position", list(arm)),
                ("observation/gripper_position", list(gripper)),
                ("prompt", Value::Text("pick it up")),
            ]
        };
        let arm = [0.1, 0.2, 0.3, 0.4, 0.5];
        let seen = observation(&Value::Map(droid(&arm, &[0.9])), &spec, Stamp(3))?;
        assert_eq!(seen.joint_positions, [0.1, 0.2, 0.3, 0.4, 0.5, 0.9]);
        assert_eq!(seen.frames.len(), 2);
        let said = |map| observation(&Value::Map(map), &spec, Stamp(3)).err().map(|why| why.to_string());
        let without = |place: usize| {
            let mut map = droid(&arm, &[0.9]);
            map.remove(place);
            map
        };
        let mut both = droid(&arm, &[0.9]);
        both.push(("observation/state", list(&[0.0; 6])));
        for (map, why) in [
            (droid(&arm, &[0.9, 1.0]), "'gripper_position': expected 6 numbers (shoulder_pan, "),
            (droid(&arm, &[0.9, 1.0]), "got a list of 5 with a list of 2"),
            (droid(&arm, &[f64::NAN]), "joint 'gripper' is not a finite number"),
            (without(2), "'joint_position' is missing beside 'gripper_position'"),
            (without(3), "'gripper_position' is missing beside 'joint_position'"),
            (both, "expected either 'state' or 'joint_position' with 'gripper_position', got both"),
        ] {
            let words = said(map).unwrap_or_default();
            assert!(words.contains(why), "{words}");
        }
        Ok(())
    }

    #[test]
    fn every_difference_is_named_at_once() {
        let all = said(vec![("observation/state", Value::List(vec![])), ("depth", Value::Nil)]);
        assert!(all.contains("'state': expected 6 numbers (shoulder_pan, "), "{all}");
        assert!(all.contains("got a list of 0") && all.contains("'prompt' is missing"), "{all}");
        assert!(all.contains("'front' is missing") && all.contains("'wrist' is missing"), "{all}");
        assert!(
            all.contains("'depth' is not of this policy, which takes state, prompt, front, wrist"),
            "{all}"
        );
        let with = |place: usize, value| {
            let mut map = good();
            map[place].1 = value;
            said(map)
        };
        let nan = with(0, Value::List(vec![Value::Number(f64::NAN); 6]));
        assert!(nan.contains("joint 'shoulder_pan' is not a finite number"), "{nan}");
        assert!(with(1, Value::Text("")).contains("'prompt': expected a str"));
        let small = with(3, picture_of(Dtype::Unsigned(1), &[18], PIXELS));
        assert!(small.contains("camera 'wrist': expected [2, 3, 3] or [3, 2, 3], got [18]"), "{small}");
        assert!(with(3, picture_of(Dtype::Signed(1), &[2, 3, 3], PIXELS)).contains("got int8"));
        let bright: &[u8] = [2.0f32; 18].iter().flat_map(|x| x.to_le_bytes()).collect::<Vec<u8>>().leak();
        assert!(with(3, picture_of(Dtype::Float(4), &[2, 3, 3], bright)).contains("floats of 0 to 1, got 2"));
        let mut twice = good();
        twice.push(("state", Value::Nil));
        assert!(said(twice).contains("'state' came twice"));
        let other = observation(&Value::Nil, &spec(), Stamp(0)).err().map(|fault| fault.to_string());
        assert!(other.is_some_and(|why| why.contains("expected a dict, got None")));
    }
}
