//! Zenoh sessions from one config file; on loopback unless the file says otherwise, never on all interfaces.

use super::failed;
use std::path::Path;
use vela_embodiment::{Error, Result};
use zenoh::{Config, Session, Wait};

/// What zenoh puts into shared memory by itself.
const SHARED: &str = "transport/shared_memory/transport_optimization/messages";

/// Which end of the link a session is.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Side {
    /// Beside the arm: listens.
    Robot,
    /// Beside the model: connects.
    Policy,
}

/// Opens a session from a zenoh config file (JSON5), or from the built-in loopback config of this side.
///
/// # Errors
/// The file cannot be read or understood, it listens on all interfaces, or its endpoint is taken or unreachable.
pub fn open_session(side: Side, file: Option<&Path>) -> Result<Session> {
    let (name, config) = match (file, side) {
        (Some(path), _) => {
            let text = std::fs::read_to_string(path)
                .map_err(|source| Error::Io { path: path.display().to_string(), source })?;
            (path.display().to_string(), text)
        }
        (None, Side::Robot) => {
            ("built-in robot.json5".into(), include_str!("../../../configs/zenoh/robot.json5").into())
        }
        (None, Side::Policy) => {
            ("built-in policy.json5".into(), include_str!("../../../configs/zenoh/policy.json5").into())
        }
    };
    open(&name, parse(&name, &config)?)
}

/// Two sessions in this process, robot and policy, over TCP on a free loopback port.
///
/// # Errors
/// No port is free.
pub fn loopback_pair() -> Result<(Session, Session)> {
    loopback_pair_with(&[])
}

/// The same with other settings of both: keys of zenoh's configuration and their values in JSON5.
///
/// # Errors
/// No port is free, or a setting is none.
pub fn loopback_pair_with(settings: &[(&str, &str)]) -> Result<(Session, Session)> {
    let mut last = Error::Link("no loopback port".into());
    // Another process may take the port between our look and zenoh's.
    for _ in 0..5 {
        let port = std::net::TcpListener::bind(("127.0.0.1", 0))
            .and_then(|listener| listener.local_addr())
            .map_err(|e| failed("no free loopback port", e))?
            .port();
        let endpoint = format!("[\"tcp/127.0.0.1:{port}\"]");
        let mut robot = parse("robot.json5", include_str!("../../../configs/zenoh/robot.json5"))?;
        let mut policy = parse("policy.json5", include_str!("../../../configs/zenoh/policy.json5"))?;
        let set = |config: &mut Config, key: &str, value: &str| {
            config.insert_json5(key, value).map_err(|e| failed(&format!("setting {key}"), e))
        };
        set(&mut robot, "listen/endpoints", &endpoint)?;
        set(&mut policy, "connect/endpoints", &endpoint)?;
        for (key, value) in settings {
            set(&mut robot, key, value)?;
            set(&mut policy, key, value)?;
        }
        match open("loopback", robot).and_then(|robot| Ok((robot, open("loopback", policy)?))) {
            Ok(pair) => return Ok(pair),
            Err(error) => last = error,
        }
    }
    Err(last)
}

fn parse(name: &str, json5: &str) -> Result<Config> {
    let mut config =
        Config::from_json5(json5).map_err(|e| Error::Parse { what: name.into(), why: format!("{e}") })?;
    // Pictures on topics may go through shared memory. Questions and answers may not: when the receiver is not
    // scheduled for a tenth of a second such a message is lost without a word (eclipse-zenoh/zenoh issue 2628).
    config.insert_json5(SHARED, "[\"put\"]").map_err(|e| failed(&format!("setting {SHARED}"), e))?;
    let get = |key: &str| -> Result<serde_json::Value> {
        let refuse = |why: String| Error::Parse { what: name.into(), why: format!("{key}: {why}") };
        let text = config.get_json(key).map_err(|e| refuse(e.to_string()))?;
        serde_json::from_str(&text).map_err(|e| refuse(e.to_string()))
    };
    let mode = get("mode")?;
    let listen = get("listen/endpoints")?;
    // Either one list for all modes or one per mode.
    let listen = match &listen {
        serde_json::Value::Object(modes) => {
            modes.get(mode.as_str().unwrap_or("peer")).map(ToString::to_string).unwrap_or_default()
        }
        other => other.to_string(),
    };
    if listen.contains("[::]") || listen.contains("0.0.0.0") {
        return Err(Error::Parse {
            what: name.into(),
            why: format!(
                "it listens on all interfaces ({listen}); name one address in listen/endpoints, \
                 as configs/zenoh/robot.json5 does, or [] for none"
            ),
        });
    }
    Ok(config)
}

fn open(name: &str, config: Config) -> Result<Session> {
    zenoh::open(config).wait().map_err(|e| {
        let mut why = e.to_string();
        if why.contains("in use") {
            why += " A router that runs there, as ROS 2's rmw_zenohd, is joined by --zenoh configs/zenoh/client.json5";
        }
        failed(&format!("zenoh session of {name}"), why)
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn who_finds_the_port_taken_hears_how_to_join_a_router() -> Result<()> {
        let taken = std::net::TcpListener::bind(("127.0.0.1", 0)).map_err(|e| failed("no port", e))?;
        let place = taken.local_addr().map_err(|e| failed("no port", e))?;
        let config = parse("x", &format!("{{mode: 'peer', listen: {{endpoints: ['tcp/{place}']}}}}"))?;
        let said = open("x.json5", config).err().map(|e| e.to_string()).unwrap_or_default();
        assert!(said.contains("x.json5") && said.contains("--zenoh configs/zenoh/client.json5"), "{said}");
        assert!(!said.contains(".rs:"), "zenoh's source lines are nobody's business: {said}");
        Ok(())
    }

    #[test]
    fn a_config_that_listens_on_all_interfaces_or_is_torn_is_refused() -> Result<()> {
        let said = |text: &str| parse("x.json5", text).err().map(|e| e.to_string()).unwrap_or_default();
        assert!(said("{mode: 'peer'}").contains("all interfaces"));
        assert!(said("{mode: 'peer', listen: {endpoints: ['tcp/0.0.0.0:1']}}").contains("all interfaces"));
        assert!(said("{mode: ").starts_with("x.json5"));
        parse("client", "{mode: 'client', connect: {endpoints: ['tcp/127.0.0.1:1']}}")?;
        for file in ["robot", "policy", "client"] {
            let path = format!("{}/../configs/zenoh/{file}.json5", env!("CARGO_MANIFEST_DIR"));
            let text = std::fs::read_to_string(&path).map_err(|source| Error::Io { path, source })?;
            parse(file, &text)?;
        }
        Ok(())
    }
}
