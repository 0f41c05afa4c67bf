//! The native wire between control loop and policy: one whole, versioned message per direction.
//!
//! Layout: `VELA`, kind (u8), version (u8), then a MessagePack map. [`ask`] goes from the robot to the policy,
//! [`answer`] back, [`hello`] is the first exchange of both, [`load`] is how one policy of several is chosen,
//! [`world`] is what an environment in another process is told and says. Byte strings carry pixels and numbers (f64,
//! little endian), so that a decoder never allocates more than a small multiple of what arrived.

pub mod answer;
pub mod ask;
pub mod hello;
pub mod load;
mod packed;
pub mod world;

use serde::{Serialize, de::DeserializeOwned};
use vela_embodiment::{Error, Result};

/// The version of every message below; any change of a message's fields raises it.
pub const VERSION: u8 = 2;
/// The largest message that is read.
pub const MAX_BYTES: usize = 32 << 20;

const MAGIC: &[u8; 4] = b"VELA";
const HEADER: usize = 6;

/// What a message is.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[repr(u8)]
pub enum Kind {
    /// An observation that wants a chunk.
    Ask = 1,
    /// A chunk, or why there is none.
    Answer = 2,
    /// What a robot is.
    Hello = 3,
    /// What a policy is, or why it refuses the robot.
    Welcome = 4,
    /// How busy a policy is.
    Load = 5,
    /// Which episode an environment is to set up.
    Reset = 6,
    /// What an environment is to do for some ticks.
    Step = 7,
    /// How an environment stands.
    Moment = 8,
    /// What an environment's cameras show.
    View = 9,
    /// What an environment's expert would do.
    Label = 10,
}

impl Kind {
    fn name(byte: u8) -> String {
        match byte {
            1 => "ask".into(),
            2 => "answer".into(),
            3 => "hello".into(),
            4 => "welcome".into(),
            5 => "load".into(),
            6 => "reset".into(),
            7 => "step".into(),
            8 => "moment".into(),
            9 => "view".into(),
            10 => "label".into(),
            other => format!("kind {other}"),
        }
    }
}

/// A robot's name has so many bytes at most.
const LONGEST_NAME: usize = 100;

fn check_name(robot: &str) -> Result<()> {
    if !(1..=LONGEST_NAME).contains(&robot.len()) {
        let got = robot.len();
        return Err(refuse(format!("expected a robot with a name of 1 to {LONGEST_NAME} bytes, got {got}")));
    }
    Ok(())
}

fn refuse(why: String) -> Error {
    Error::Parse { what: "wire message".into(), why }
}

/// Header and body.
pub(crate) fn pack<T: Serialize>(kind: Kind, body: &T) -> Result<Vec<u8>> {
    let mut bytes = Vec::with_capacity(256);
    bytes.extend_from_slice(MAGIC);
    bytes.extend_from_slice(&[kind as u8, VERSION]);
    body.serialize(&mut rmp_serde::Serializer::new(&mut bytes).with_struct_map())
        .map_err(|e| refuse(format!("cannot be written: {e}")))?;
    if bytes.len() > MAX_BYTES {
        return Err(refuse(format!("{} bytes to send, at most {MAX_BYTES}", bytes.len())));
    }
    Ok(bytes)
}

/// The body of a message of this kind.
pub(crate) fn unpack<T: DeserializeOwned>(kind: Kind, bytes: &[u8]) -> Result<T> {
    if bytes.len() > MAX_BYTES {
        return Err(refuse(format!("{} bytes came, at most {MAX_BYTES}", bytes.len())));
    }
    let Some((header, body)) = bytes.split_at_checked(HEADER) else {
        return Err(refuse(format!("{} bytes came, a header alone has {HEADER}", bytes.len())));
    };
    if &header[..4] != MAGIC {
        return Err(refuse(format!("expected a message that starts with VELA, got {:02x?}", &header[..4])));
    }
    if header[5] != VERSION {
        return Err(refuse(format!("expected version {VERSION}, got {}: update the older side", header[5])));
    }
    if header[4] != kind as u8 {
        let (expected, got) = (Kind::name(kind as u8), Kind::name(header[4]));
        return Err(refuse(format!("expected {expected}, got {got}")));
    }
    let mut reader = rmp_serde::Deserializer::from_read_ref(body);
    reader.set_max_depth(32);
    T::deserialize(&mut reader).map_err(|e| refuse(format!("the {} is torn: {e}", Kind::name(header[4]))))
}

#[cfg(test)]
mod fuzz;
