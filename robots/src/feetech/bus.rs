//! The servos' serial bus: what the driver reads and writes, in registers of the STS3215.

use rustypot::{DynamixelProtocolHandler, SyncReadError};
use serialport::{ClearBuffer, SerialPort};
use std::time::Duration;
use vela_embodiment::{Error, Result};

/// Registers: torque on, goal, limit of the torque, and the block from the position to the current.
const TORQUE_ENABLE: u8 = 40;
const GOAL_POSITION: u8 = 42;
const TORQUE_LIMIT: u8 = 48;
const PRESENT: u8 = 56;
const PRESENT_BYTES: u8 = 15;

/// A servo answers within this time; a USB adapter may keep an answer for some of it.
const PATIENCE: Duration = Duration::from_millis(8);
/// Before anything moves there is no hurry: a busy computer may need so long to hear an answer, and asks so often.
const PATIENCE_AT_FIRST: Duration = Duration::from_millis(60);
const TRIES_AT_FIRST: usize = 5;
/// A question that was garbled is asked again at once, so often.
const TRIES: usize = 2;

/// What one servo says of itself.
#[derive(Clone, Debug, PartialEq)]
pub struct ServoState {
    /// Its number on the bus.
    pub id: u8,
    /// Where it is, ticks.
    pub ticks: i32,
    /// What it pushes with, -1 to 1 of its full torque.
    pub load: f64,
    /// V
    pub voltage_v: f64,
    /// Degrees Celsius.
    pub temperature_c: f64,
    /// A, without a sign.
    pub current_a: f64,
    /// What it complains of.
    pub alarm: Option<&'static str>,
}

pub(super) struct Bus {
    port: Box<dyn SerialPort>,
    handler: DynamixelProtocolHandler,
    ids: Vec<u8>,
}

impl Bus {
    pub(super) fn open(path: &str, baud: u32, ids: Vec<u8>) -> Result<Self> {
        let port = serialport::new(path, baud)
            .timeout(PATIENCE)
            .open()
            .map_err(|e| Error::Robot(format!("serial port {path}: {e}")))?;
        Ok(Self { port, handler: DynamixelProtocolHandler::v1(), ids })
    }

    /// Asks every servo whether it is there.
    pub(super) fn find(&mut self, joints: &[&str]) -> Result<()> {
        let patient = |e| Error::Robot(format!("serial port: {e}"));
        self.port.set_timeout(PATIENCE_AT_FIRST).map_err(patient)?;
        let mut missing = Vec::new();
        for (id, joint) in self.ids.iter().zip(joints) {
            let there = (0..TRIES_AT_FIRST).any(|_| {
                // A late answer to the last question is not this one's.
                let _ = self.port.clear(ClearBuffer::Input);
                self.handler.ping(self.port.as_mut(), *id).unwrap_or(false)
            });
            if !there {
                missing.push(format!("{id} ('{joint}')"));
            }
        }
        self.port.set_timeout(PATIENCE).map_err(patient)?;
        if missing.is_empty() {
            return Ok(());
        }
        Err(Error::Robot(format!("no answer from servo {}: power and cables?", missing.join(", "))))
    }

    /// The state of every servo.
    pub(super) fn read(&mut self) -> Result<Vec<ServoState>> {
        let mut last = String::new();
        for _ in 0..TRIES {
            let read =
                self.handler.sync_read_with_error(self.port.as_mut(), &self.ids, PRESENT, PRESENT_BYTES);
            match read {
                Ok(answers) => {
                    let both = self.ids.iter().zip(answers);
                    let states: Option<Vec<_>> =
                        both.map(|(id, (bytes, status))| state(*id, &bytes, status.byte())).collect();
                    if let Some(states) = states {
                        return Ok(states);
                    }
                    last = "a servo's answer has the wrong length".into();
                }
                Err(error) => {
                    last = match error.downcast_ref::<SyncReadError>() {
                        Some(at) => format!("servo {}: {}", at.id, at.cause),
                        None => error.to_string(),
                    };
                }
            }
            let _ = self.port.clear(ClearBuffer::Input);
        }
        Err(Error::Link(format!("servo bus: {last}")))
    }

    pub(super) fn send_goals(&mut self, ticks: &[i32]) -> Result<()> {
        let goals: Vec<Vec<u8>> = ticks.iter().map(|t| word(*t).to_vec()).collect();
        self.write(GOAL_POSITION, &goals)
    }

    pub(super) fn limit_torque(&mut self, part: f64) -> Result<()> {
        let limit = ((part * 1000.0).round() as u16).to_le_bytes().to_vec();
        self.write(TORQUE_LIMIT, &vec![limit; self.ids.len()])
    }

    pub(super) fn enable_torque(&mut self, on: bool) -> Result<()> {
        self.write(TORQUE_ENABLE, &vec![vec![u8::from(on)]; self.ids.len()])
    }

    /// The same register of every servo, in one message that nobody answers.
    fn write(&mut self, register: u8, data: &[Vec<u8>]) -> Result<()> {
        self.handler
            .sync_write(self.port.as_mut(), &self.ids, register, data)
            .map_err(|e| Error::Link(format!("servo bus: {e}")))
    }
}

/// Sign and magnitude, as Feetech writes positions.
fn word(ticks: i32) -> [u8; 2] {
    let magnitude = ticks.unsigned_abs().min(0x7fff) as u16;
    (magnitude | if ticks < 0 { 0x8000 } else { 0 }).to_le_bytes()
}

fn signed(low: u8, high: u8, sign_bit: u32) -> i32 {
    let raw = i32::from(u16::from_le_bytes([low, high]));
    let magnitude = raw & ((1 << sign_bit) - 1);
    if (raw >> sign_bit) & 1 == 1 { -magnitude } else { magnitude }
}

fn state(id: u8, bytes: &[u8], status: u8) -> Option<ServoState> {
    let &[p0, p1, _, _, l0, l1, volts, celsius, _, own, _, _, _, c0, c1] = bytes else { return None };
    // The same bits in the answer's head and in the status register.
    let alarm = [
        (0x01, "voltage"),
        (0x02, "position sensor"),
        (0x04, "overheating"),
        (0x08, "overcurrent"),
        (0x20, "overload"),
    ];
    Some(ServoState {
        id,
        ticks: signed(p0, p1, 15),
        load: f64::from(signed(l0, l1, 10)) / 1000.0,
        voltage_v: f64::from(volts) / 10.0,
        temperature_c: f64::from(celsius),
        current_a: f64::from(signed(c0, c1, 15).abs()) * 6.5e-3,
        alarm: alarm.iter().find(|(bit, _)| (status | own) & bit != 0).map(|(_, name)| *name),
    })
}
