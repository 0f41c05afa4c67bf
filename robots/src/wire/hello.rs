//! The first exchange: the robot says what it is, the policy says what it needs, or refuses with the differences.

use super::{Kind, check_name, pack, refuse, unpack};
use crate::resolve::require_policy_fits;
use serde::{Deserialize, Serialize};
use vela_embodiment::{Embodiment, Error, PolicySpec, Result};

/// What a robot says first.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Hello {
    /// Its name for as long as it is there; another's is another.
    pub robot: String,
    /// What it is; without its URDF, which stays at home.
    pub embodiment: Embodiment,
}

/// What a policy says to it.
#[derive(Clone, Debug, PartialEq)]
pub enum Welcome {
    /// It fits.
    Accepted(Box<PolicySpec>),
    /// It does not; every difference.
    Refused(Vec<String>),
}

#[derive(Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
struct Body {
    spec: Option<PolicySpec>,
    refused: Vec<String>,
}

impl Welcome {
    /// What a policy with this spec says to a robot.
    pub fn to(hello: &Hello, spec: &PolicySpec) -> Self {
        match require_policy_fits(&hello.embodiment, spec) {
            Ok(()) => Self::Accepted(Box::new(spec.clone())),
            Err(Error::Mismatch(differences)) => Self::Refused(differences),
            Err(other) => Self::Refused(vec![other.to_string()]),
        }
    }

    /// The spec, or the refusal as an error.
    pub fn into_spec(self) -> Result<PolicySpec> {
        match self {
            Self::Accepted(spec) => Ok(*spec),
            Self::Refused(differences) => Err(Error::Mismatch(differences)),
        }
    }
}

/// Bytes of a robot's hello.
pub fn encode_hello(hello: &Hello) -> Result<Vec<u8>> {
    pack(Kind::Hello, hello)
}

/// The hello in these bytes.
pub fn decode_hello(bytes: &[u8]) -> Result<Hello> {
    let hello: Hello = unpack(Kind::Hello, bytes)?;
    check_name(&hello.robot)?;
    Ok(hello)
}

/// Bytes of a policy's welcome.
pub fn encode_welcome(welcome: &Welcome) -> Result<Vec<u8>> {
    let (spec, refused) = match welcome {
        Welcome::Accepted(spec) => (Some((**spec).clone()), Vec::new()),
        Welcome::Refused(differences) => (None, differences.clone()),
    };
    pack(Kind::Welcome, &Body { spec, refused })
}

/// The welcome in these bytes.
pub fn decode_welcome(bytes: &[u8]) -> Result<Welcome> {
    let body: Body = unpack(Kind::Welcome, bytes)?;
    match (body.spec, body.refused.is_empty()) {
        (Some(spec), true) => Ok(Welcome::Accepted(Box::new(spec))),
        (None, false) => Ok(Welcome::Refused(body.refused)),
        _ => Err(refuse("the welcome must have either a spec or a refusal".into())),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_robot_that_fits_is_welcomed_and_another_is_told_why_not() -> Result<()> {
        let spec = super::super::fuzz::sample_spec()?;
        let mut hello = Hello { robot: "7-1".into(), embodiment: spec.embodiment.clone() };
        // Neither the URDF nor the robot's own safety rules cross the wire.
        hello.embodiment.urdf = String::new();
        hello.embodiment.safety = vela_embodiment::Safety::default();
        assert_eq!(decode_hello(&encode_hello(&hello)?)?, hello);
        let welcome = decode_welcome(&encode_welcome(&Welcome::to(&hello, &spec))?)?;
        assert_eq!(welcome.into_spec()?.checkpoint, spec.checkpoint);
        hello.embodiment.cameras[1].name = "overhead".into();
        let refused = decode_welcome(&encode_welcome(&Welcome::to(&hello, &spec))?)?;
        let text = refused.into_spec().err().map(|e| e.to_string()).unwrap_or_default();
        assert!(text.contains("camera 'wrist' is missing"), "{text}");
        Ok(())
    }

    /// The contracts cross the wire as they are, so a field more or less there is a new version here.
    #[test]
    fn a_changed_contract_raises_the_version() -> Result<()> {
        let mut spec = super::super::fuzz::sample_spec()?;
        // A robot's own file may change; the names of its fields may not.
        spec.embodiment.joints.truncate(1);
        spec.embodiment.cameras.truncate(1);
        spec.embodiment.cameras.iter_mut().for_each(|camera| (camera.width, camera.height) = (8, 8));
        let bytes = encode_welcome(&Welcome::Accepted(Box::new(spec)))?;
        let text = String::from_utf8_lossy(&bytes);
        let names = [
            "spec",
            "embodiment",
            "name",
            "joints",
            "kind",
            "limits",
            "lower",
            "upper",
            "velocity",
            "acceleration",
            "gripper",
            "joint",
            "open",
            "closed",
            "cameras",
            "width",
            "height",
            "control_hz",
            "tip_link",
            "space",
            "horizon",
            "execute",
            "history",
            "checkpoint",
            "refused",
        ];
        assert!(names.iter().all(|name| text.contains(name)));
        assert_eq!(
            (super::super::VERSION, bytes.len()),
            (2, WELCOME_BYTES),
            "raise VERSION and this length together"
        );
        Ok(())
    }

    /// Length of this welcome at this version.
    const WELCOME_BYTES: usize = 351;
}
