//! API keys, compared in constant time.

use sha2::{Digest, Sha256};
use subtle::ConstantTimeEq;

/// The keys that are accepted; without any, everyone may ask. Only their hashes are kept.
#[derive(Clone, Default)]
pub struct Keys {
    hashes: Vec<[u8; 32]>,
}

impl std::fmt::Debug for Keys {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(f, "Keys({})", self.hashes.len())
    }
}

impl Keys {
    /// These keys.
    pub fn new<'a>(keys: impl IntoIterator<Item = &'a str>) -> Self {
        Self { hashes: keys.into_iter().map(|key| Sha256::digest(key.as_bytes()).into()).collect() }
    }

    /// One key a line; empty lines and those that begin with `#` are left out.
    pub fn from_lines(text: &str) -> Self {
        Self::new(text.lines().map(str::trim).filter(|line| !line.is_empty() && !line.starts_with('#')))
    }

    /// Whether everyone may ask.
    pub fn is_empty(&self) -> bool {
        self.hashes.is_empty()
    }

    /// Whether the `Authorization` header holds one of the keys. Takes the same time whichever it is, or none.
    pub fn admit(&self, authorization: Option<&[u8]>) -> bool {
        if self.is_empty() {
            return true;
        }
        let header = authorization.unwrap_or_default();
        // OpenAI's scheme and openpi's.
        let named = |scheme: &[u8]| {
            header.split_at_checked(scheme.len()).filter(|(name, _)| name.eq_ignore_ascii_case(scheme))
        };
        let key = named(b"Bearer ").or(named(b"Api-Key ")).map(|(_, key)| key);
        let hash: [u8; 32] = Sha256::digest(key.unwrap_or_default()).into();
        let known = self.hashes.iter().fold(0u8.ct_eq(&1), |known, other| known | hash.ct_eq(other));
        bool::from(known) && key.is_some()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn only_a_whole_key_opens() {
        assert!(Keys::default().admit(None));
        let keys = Keys::from_lines("# ours\nalpha\n\n beta \n");
        for good in ["Bearer alpha", "bearer beta", "Api-Key alpha"] {
            assert!(keys.admit(Some(good.as_bytes())), "{good}");
        }
        for bad in ["Bearer alph", "Bearer alphaa", "alpha", "Basic alpha", "Bearer ", "", "Bearer # ours"] {
            assert!(!keys.admit(Some(bad.as_bytes())), "{bad}");
        }
        assert!(!keys.admit(None));
        assert_eq!(format!("{keys:?}"), "Keys(2)");
    }
}
