//! What goes wrong, as a client is told: OpenAI's error object and an HTTP status.

use serde_json::{Value as Json, json};

/// Why a request is not answered.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Fault {
    /// The HTTP status.
    pub status: u16,
    /// `type` of the error object.
    pub kind: &'static str,
    /// One sentence.
    pub message: String,
    /// The field that is wrong.
    pub param: Option<String>,
    /// A word for programs.
    pub code: Option<&'static str>,
    /// Seconds after which it may be tried again.
    pub retry_secs: Option<u32>,
}

impl Fault {
    fn new(status: u16, kind: &'static str, code: Option<&'static str>, message: impl ToString) -> Self {
        Self { status, kind, message: message.to_string(), param: None, code, retry_secs: None }
    }

    /// The client's mistake, in the field `param` (empty: in none).
    pub fn invalid(param: &str, message: impl ToString) -> Self {
        let param = (!param.is_empty()).then(|| param.to_owned());
        Self { param, ..Self::new(400, "invalid_request_error", None, message) }
    }

    /// The same with a status and a code.
    pub fn refused(status: u16, code: &'static str, message: impl ToString) -> Self {
        Self::new(status, "invalid_request_error", Some(code), message)
    }

    /// No key, or a wrong one.
    pub fn unauthorised() -> Self {
        let message = "expected a valid API key in the header 'Authorization: Bearer KEY'";
        Self::new(401, "authentication_error", Some("invalid_api_key"), message)
    }

    /// Full: to be tried again.
    pub fn busy(message: impl ToString) -> Self {
        Self { retry_secs: Some(1), ..Self::new(429, "rate_limit_error", Some("busy"), message) }
    }

    /// Not now, for another reason.
    pub fn unavailable(message: impl ToString) -> Self {
        Self { retry_secs: Some(5), ..Self::new(503, "server_error", Some("unavailable"), message) }
    }

    /// It took longer than it may.
    pub fn too_slow(secs: u64) -> Self {
        let message = format!("the answer took longer than the {secs} seconds that a request may take");
        Self::new(504, "server_error", Some("timeout"), message)
    }

    /// Ours.
    pub fn internal(message: impl ToString) -> Self {
        Self::new(500, "server_error", None, message)
    }

    /// OpenAI's error object.
    pub fn json(&self) -> Json {
        json!({"error": {"message": self.message, "type": self.kind, "param": self.param, "code": self.code}})
    }
}

impl std::fmt::Display for Fault {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        match &self.param {
            Some(param) => write!(f, "{param}: {}", self.message),
            None => f.write_str(&self.message),
        }
    }
}

impl std::error::Error for Fault {}
