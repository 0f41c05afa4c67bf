//! A program under test whose words come line by line, with the moments when they came.

use std::io::{BufRead, BufReader};
use std::process::{Child, Command, Stdio};
use std::sync::mpsc::{Receiver, channel};
use std::time::{Duration, Instant};

type Fallible<T> = Result<T, Box<dyn std::error::Error>>;

/// Killed when the test is over, also when it fails.
pub struct Program {
    pub child: Child,
    said: Receiver<(Instant, String)>,
    pub heard: Vec<String>,
}

impl Program {
    pub fn start(command: &mut Command) -> Fallible<Self> {
        let mut child =
            command.stdin(Stdio::piped()).stdout(Stdio::piped()).stderr(Stdio::piped()).spawn()?;
        let (sender, said) = channel();
        let stderr = child.stderr.take().ok_or("no stderr")?;
        std::thread::spawn(move || {
            for line in BufReader::new(stderr).lines().map_while(Result::ok) {
                if sender.send((Instant::now(), line)).is_err() {
                    return;
                }
            }
        });
        Ok(Self { child, said, heard: Vec::new() })
    }

    /// Waits until a line of its standard error has these words; when it came.
    pub fn says(&mut self, words: &str) -> Fallible<Instant> {
        while let Ok((when, line)) = self.said.recv_timeout(Duration::from_secs(60)) {
            self.heard.push(line);
            if self.heard.last().is_some_and(|line| line.contains(words)) {
                return Ok(when);
            }
        }
        Err(format!("it never said '{words}', but {:#?}", self.heard).into())
    }
}

impl Drop for Program {
    fn drop(&mut self) {
        let _ = self.child.kill();
        let _ = self.child.wait();
    }
}
