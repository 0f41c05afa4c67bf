//! Messages that openpi's own client packed (`tests/golden/openpi`, msgpack 1.2 and NumPy 1.26), and torn ones.

use super::*;
use crate::openpi::contract;
use vela_embodiment::{ActionChunk, ActionSpace, Stamp};

const OBSERVATION: &[u8] = include_bytes!("../../../../tests/golden/openpi/observation.msgpack");
const ANSWER: &[u8] = include_bytes!("../../../../tests/golden/openpi/answer.msgpack");

type Outcome = Result<(), Fault>;

fn get<'a, 'b>(value: &'b Value<'a>, name: &str) -> &'b Value<'a> {
    match value {
        Value::Map(map) => map.iter().find(|(key, _)| *key == name).map_or(&Value::Nil, |(_, value)| value),
        _ => &Value::Nil,
    }
}

fn numbers(value: &Value) -> (String, Vec<f64>) {
    match value {
        Value::Array(array) => (value.kind(), array.numbers().collect()),
        other => (other.kind(), Vec::new()),
    }
}

#[test]
fn what_openpi_s_client_packed_is_read() -> Outcome {
    let seen = read(OBSERVATION)?;
    assert_eq!(numbers(get(&seen, "state")), ("an array [2] of float32".into(), vec![0.5, -1.25]));
    let front = numbers(get(get(&seen, "images"), "front"));
    assert_eq!(front, ("an array [2, 3, 3] of uint8".into(), (0..18).map(f64::from).collect()));
    assert_eq!(get(&seen, "prompt"), &Value::Text("pick up the green cube, bitte schön"));
    assert_eq!((get(&seen, "t"), get(&seen, "ok")), (&Value::Number(2.5), &Value::Bool(true)));
    let list = [1.0, -1.0, -300.0, 70_000.0, 2f64.powi(40), -(2f64.powi(40)), 1.5].map(Value::Number);
    let list = list.into_iter().chain([Value::Nil]).collect();
    assert_eq!(get(&seen, "n"), &Value::List(list));
    assert_eq!(numbers(get(&seen, "big")), ("an array [1, 2] of int16".into(), vec![-2.0, 3.0]));
    assert_eq!(numbers(get(&seen, "u")).1, [200.0, 65_535.0]);
    Ok(())
}

#[test]
fn an_answer_is_byte_for_byte_what_openpi_packs() {
    let chunk = ActionChunk {
        space: ActionSpace::JointPositions,
        actions: vec![vec![0.5, -1.0, 2.0], vec![1e-3, 4.0, -0.0]],
        period_secs: 0.1,
        observation_stamp: Stamp(0),
        seed: 0,
        checkpoint: String::new(),
    };
    assert_eq!(contract::answer(&chunk, 12.5, Some(13.25)), ANSWER);
}

#[test]
fn nested_bombs_huge_claims_and_torn_bytes_are_one_sentence() -> Outcome {
    let said = |bytes: &[u8]| read(bytes).map_or_else(|fault| fault.to_string(), |value| value.kind());
    assert!(said(b"").contains("torn"));
    // A list that holds a list, and so on.
    assert!(said(&[0x91; 100_000]).contains("at most 8 dicts and lists in one another"));
    // Four thousand million elements, and as many bytes.
    assert!(said(&[0xdd, 0xff, 0xff, 0xff, 0xff]).contains("torn"));
    assert!(said(&[0xdf, 0xff, 0xff, 0xff, 0xff]).contains("torn"));
    assert!(said(&[0xc6, 0xff, 0xff, 0xff, 0xff, 1, 2]).contains("torn"));
    let mut many = vec![0xdd, 0, 1, 0, 0];
    many.resize(70_000, 0xc0);
    assert!(said(&many).contains("at most 4096 values"));
    assert!(said(&[0xc0, 0xc0]).contains("1 bytes after it"));
    assert!(said(&[0xc7, 0, 1]).contains("no MessagePack extension"));
    assert!(said(&[0xa2, 0xff, 0xfe]).contains("UTF-8"));
    assert!(said(&[0x81, 0x01, 0x01]).contains("names as text, got a number"));
    assert!(said(&[0x82, 0xa1, b'a', 1, 0xa1, b'a', 2]).contains("got 'a' twice"));
    let mut writer = Writer::default();
    let good = writer.rows(&[vec![1.0, 2.0]]).done();
    assert_eq!(said(&good), "an array [1, 2] of float64");
    let with = |from: &[u8], to: &[u8]| {
        let place = good.windows(from.len()).position(|part| part == from).unwrap_or(0);
        let mut bytes = good.clone();
        bytes.splice(place..place + from.len(), to.iter().copied());
        said(&bytes)
    };
    assert!(with(b"\xa3<f8", b"\xa3>f8").contains("got '>f8'"));
    assert!(with(b"\xa3<f8", b"\xa2|O").contains("got '|O'"));
    assert!(
        with(&[0x92, 1, 2], &[0x92, 2, 2]).contains("expected the bytes of [2, 2] of float64, got 16 bytes")
    );
    let huge = [0x92, 0xce, 0x3b, 0x9a, 0xc9, 0xff, 0xce, 0x3b, 0x9a, 0xc9, 0xff];
    assert!(with(&[0x92, 1, 2], &huge).contains("got 16 bytes"));
    assert!(with(&[0x92, 1, 2], &[0x92, 1, 0xff]).contains("a shape of at most 8 lengths"));
    // Every prefix, and every byte changed: never a panic.
    for end in 0..OBSERVATION.len() {
        assert!(read(&OBSERVATION[..end]).is_err());
        let mut bytes = OBSERVATION.to_vec();
        for value in [0x00, 0x93, 0xc1, 0xdd, 0xdf, 0xff] {
            bytes[end] = value;
            let _ = read(&bytes);
        }
    }
    Ok(())
}
