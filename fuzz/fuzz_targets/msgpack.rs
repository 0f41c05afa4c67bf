//! Messages of openpi's clients: MessagePack with NumPy arrays, then the observation in it.
#![no_main]

use libfuzzer_sys::fuzz_target;
use std::sync::LazyLock;
use vela_embodiment::{ActionSpace, Embodiment, PolicySpec, Stamp};
use vela_serve::openpi::{contract, value};

static SPEC: LazyLock<PolicySpec> = LazyLock::new(|| {
    let mut embodiment = Embodiment::so101().expect("the built-in robot");
    for camera in &mut embodiment.cameras {
        (camera.width, camera.height) = (4, 2);
    }
    PolicySpec {
        embodiment,
        space: ActionSpace::JointPositions,
        horizon: 4,
        execute: 2,
        history: 1,
        checkpoint: "fuzz".into(),
    }
});

fn count(value: &value::Value) -> usize {
    match value {
        value::Value::List(list) => list.iter().map(count).sum(),
        value::Value::Map(map) => map.iter().map(|(_, value)| count(value)).sum(),
        value::Value::Array(array) => array.numbers().count(),
        _ => 1,
    }
}

fuzz_target!(|bytes: &[u8]| {
    let Ok(message) = value::read(bytes) else { return };
    // Nothing is made of what is not there.
    assert!(count(&message) <= bytes.len().max(1));
    let _ = message.kind();
    let _ = contract::observation(&message, &SPEC, Stamp(1));
});
