//! How busy a policy is, for robots that may choose among several.

use super::{Kind, pack, refuse, unpack};
use serde::{Deserialize, Serialize};
use vela_embodiment::Result;

/// A policy's load.
#[derive(Clone, Copy, Debug, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Load {
    /// Part of the last seconds that it thought, 0 to 1; 1 more for every question without an answer, and a tenth for
    /// every robot that has just come and not asked yet.
    pub busy: f64,
}

/// Encodes a load.
///
/// # Errors
/// Never, in practice: it is small.
pub fn encode(load: &Load) -> Result<Vec<u8>> {
    pack(Kind::Load, load)
}

/// Decodes a load.
///
/// # Errors
/// The bytes are torn, of another version or another kind, or the load is no number from 0 on.
pub fn decode(bytes: &[u8]) -> Result<Load> {
    let load: Load = unpack(Kind::Load, bytes)?;
    if !(load.busy.is_finite() && load.busy >= 0.0) {
        return Err(refuse(format!("expected a load of 0 or more, got {}", load.busy)));
    }
    Ok(load)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_load_comes_back_and_nonsense_is_refused() -> Result<()> {
        let load = Load { busy: 1.25 };
        assert_eq!(decode(&encode(&load)?)?, load);
        for busy in [f64::NAN, -1.0, f64::INFINITY] {
            assert!(decode(&encode(&Load { busy })?).is_err_and(|e| e.to_string().contains("0 or more")));
        }
        let bytes = encode(&load)?;
        assert!((0..bytes.len()).all(|end| decode(&bytes[..end]).is_err()));
        Ok(())
    }
}
