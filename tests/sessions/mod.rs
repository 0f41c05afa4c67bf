//! Zenoh's files of programs that meet on this machine.

use std::path::Path;

/// A path as a program's argument.
pub fn text(path: &Path) -> String {
    path.display().to_string()
}

/// A port that nobody has.
pub fn free_port() -> std::io::Result<u16> {
    Ok(std::net::TcpListener::bind(("127.0.0.1", 0))?.local_addr()?.port())
}

/// Writes a session's file: where it listens, and where it connects, which it tries again and again.
pub fn session(path: &Path, listen: &str, connect: &str) -> std::io::Result<String> {
    let config = format!(
        "{{mode: 'peer', listen: {{endpoints: [{listen}]}}, connect: {{endpoints: [{connect}], timeout_ms: -1, \
         exit_on_failure: false, retry: {{period_init_ms: 100, period_max_ms: 200}}}}, \
         scouting: {{multicast: {{enabled: false}}, gossip: {{enabled: false}}}}}}"
    );
    std::fs::write(path, config)?;
    Ok(text(path))
}

/// The files of a robot's session, on a free port, and of those that join it.
#[allow(dead_code, reason = "a test with a wire in the middle writes each by itself")]
pub fn sessions(dir: &Path) -> std::io::Result<[String; 2]> {
    let endpoint = format!("'tcp/127.0.0.1:{}'", free_port()?);
    let write = |name: &str, listen, connect| session(&dir.join(name), listen, connect);
    Ok([write("robot.json5", &endpoint, "")?, write("other.json5", "", &endpoint)?])
}
