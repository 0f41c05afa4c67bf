//! The servos' serial bus: what the driver reads and writes, in registers of the STS3215.

use super::MotorCalibration;
use rustypot::{DynamixelProtocolHandler, SyncReadError};
use serialport::{ClearBuffer, SerialPort};
use std::time::Duration;
use vela_embodiment::{Error, Result};

// Registers: what is kept, then torque on, goal, limit of the torque, and the block from the position to the current.

/// What a servo keeps without power: its range, its offset and its mode; written only while it is not locked.
const RANGE: u8 = 9;
const HOMING_OFFSET: u8 = 31;
const OPERATING_MODE: u8 = 33;
const LOCK: u8 = 55;
/// The servo goes to positions.
const POSITION_MODE: u8 = 0;
/// What else LeRobot sets: answers at once, softer gains (proportional, derivative, integral) than a new servo's.
const RETURN_DELAY: (u8, [u8; 1]) = (7, [0]);
const GAINS: (u8, [u8; 3]) = (21, [16, 32, 0]);
/// A gripper that holds something pushes for minutes: half of the torque, half of the current (6.5 mA each), a quarter of
/// the torque once it is overloaded.
const GRIPPER_TORQUE: (u8, [u8; 2]) = (16, 500_u16.to_le_bytes());
const GRIPPER_CURRENT: (u8, [u8; 2]) = (28, 250_u16.to_le_bytes());
const GRIPPER_OVERLOADED: (u8, [u8; 1]) = (36, [25]);
/// Signs: of a position, and of an offset.
const POSITION_SIGN: u32 = 15;
const OFFSET_SIGN: u32 = 11;
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
        let port = serialport::new(path, baud).timeout(PATIENCE).open().map_err(|e| {
            // The lock of somebody else, or, for who is not root, the terminal's own.
            let held = ["exclusive lock", "busy"].iter().any(|words| e.description.contains(words));
            let why = if held { "another program has it open".into() } else { e.to_string() };
            Error::Robot(format!("serial port {path}: {why}"))
        })?;
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

    /// Does `act` for one servo until it succeeds, with the patience of before anything moves.
    fn patiently<T>(
        &mut self,
        id: u8,
        mut act: impl FnMut(
            &DynamixelProtocolHandler,
            &mut dyn SerialPort,
        ) -> std::result::Result<T, Box<dyn std::error::Error>>,
    ) -> Result<T> {
        let failed = |e: &dyn std::fmt::Display| Error::Link(format!("servo bus: servo {id}: {e}"));
        self.port.set_timeout(PATIENCE_AT_FIRST).map_err(|e| failed(&e))?;
        let mut done = Err(failed(&"no answer"));
        for _ in 0..TRIES_AT_FIRST {
            let _ = self.port.clear(ClearBuffer::Input);
            done = act(&self.handler, self.port.as_mut()).map_err(|e| failed(&e));
            if done.is_ok() {
                break;
            }
        }
        self.port.set_timeout(PATIENCE).map_err(|e| failed(&e))?;
        done
    }

    /// Writes a register of one servo and reads it back.
    fn keep(&mut self, id: u8, register: u8, data: &[u8]) -> Result<()> {
        self.patiently(id, |handler, port| handler.write(port, id, register, data))?;
        let bytes = data.len() as u8;
        let kept = self.patiently(id, |handler, port| handler.read(port, id, register, bytes))?;
        if kept == data {
            return Ok(());
        }
        Err(Error::Robot(format!("servo {id}: register {register} was set to {data:?} and holds {kept:?}")))
    }

    /// Takes the torque off every servo and makes sure of it.
    pub(super) fn release(&mut self) -> Result<()> {
        self.ids.clone().into_iter().try_for_each(|id| self.keep(id, TORQUE_ENABLE, &[0]))
    }

    /// Torque off, and what the servos keep may be written.
    pub(super) fn unlock(&mut self) -> Result<()> {
        self.release()?;
        for id in self.ids.clone() {
            self.keep(id, LOCK, &[0])?;
            self.keep(id, OPERATING_MODE, &[POSITION_MODE])?;
        }
        Ok(())
    }

    /// Sets the servos up as LeRobot does, `gripper` against burning; [`Self::unlock`] comes first.
    pub(super) fn configure(&mut self, gripper: Option<u8>) -> Result<()> {
        for id in self.ids.clone() {
            self.keep(id, RETURN_DELAY.0, &RETURN_DELAY.1)?;
            self.keep(id, GAINS.0, &GAINS.1)?;
        }
        if let Some(id) = gripper {
            self.keep(id, GRIPPER_TORQUE.0, &GRIPPER_TORQUE.1)?;
            self.keep(id, GRIPPER_CURRENT.0, &GRIPPER_CURRENT.1)?;
            self.keep(id, GRIPPER_OVERLOADED.0, &GRIPPER_OVERLOADED.1)?;
        }
        Ok(())
    }

    /// Nothing that the servos keep is written by accident any more.
    pub(super) fn lock(&mut self) -> Result<()> {
        self.ids.clone().into_iter().try_for_each(|id| self.keep(id, LOCK, &[1]))
    }

    /// The calibration that a servo keeps itself.
    pub(super) fn kept(&mut self, id: u8) -> Result<MotorCalibration> {
        let range = self.patiently(id, |handler, port| handler.read(port, id, RANGE, 4))?;
        let offset = self.patiently(id, |handler, port| handler.read(port, id, HOMING_OFFSET, 2))?;
        let (&[a, b, c, d], &[low, high]) = (range.as_slice(), offset.as_slice()) else {
            return Err(Error::Link(format!("servo bus: servo {id}: an answer has the wrong length")));
        };
        let ticks = |low, high| i32::from(u16::from_le_bytes([low, high]));
        let homing_offset = signed(low, high, OFFSET_SIGN);
        Ok(MotorCalibration {
            id,
            drive_mode: 0,
            homing_offset,
            range_min: ticks(a, b),
            range_max: ticks(c, d),
        })
    }

    /// Makes a servo keep this calibration; [`Self::unlock`] comes first.
    pub(super) fn calibrate(&mut self, motor: &MotorCalibration) -> Result<()> {
        self.keep(motor.id, HOMING_OFFSET, &word(motor.homing_offset, OFFSET_SIGN))?;
        let [a, b] = word(motor.range_min, POSITION_SIGN);
        let [c, d] = word(motor.range_max, POSITION_SIGN);
        self.keep(motor.id, RANGE, &[a, b, c, d])
    }

    /// Where every servo is, ticks, with the patience of before anything moves.
    pub(super) fn positions(&mut self) -> Result<Vec<i32>> {
        let each = self.ids.clone().into_iter().map(|id| {
            let at = self.patiently(id, |handler, port| handler.read(port, id, PRESENT, 2))?;
            match at[..] {
                [low, high] => Ok(signed(low, high, POSITION_SIGN)),
                _ => Err(Error::Link(format!("servo bus: servo {id}: an answer has the wrong length"))),
            }
        });
        each.collect()
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
        let goals: Vec<Vec<u8>> = ticks.iter().map(|t| word(*t, POSITION_SIGN).to_vec()).collect();
        self.write(GOAL_POSITION, &goals)
    }

    pub(super) fn limit_torque(&mut self, part: f64) -> Result<()> {
        let limit = ((part * 1000.0).round() as u16).to_le_bytes().to_vec();
        self.write(TORQUE_LIMIT, &vec![limit; self.ids.len()])
    }

    /// Switches the torque of every servo, and reads back that it is so: nobody answers the message that does it.
    pub(super) fn enable_torque(&mut self, on: bool) -> Result<()> {
        let (wanted, mut last) = (u8::from(on), String::new());
        for _ in 0..TRIES {
            self.write(TORQUE_ENABLE, &vec![vec![wanted]; self.ids.len()])?;
            match self.handler.sync_read(self.port.as_mut(), &self.ids, TORQUE_ENABLE, 1) {
                Ok(found) => match self.ids.iter().zip(&found).find(|(_, found)| found[..] != [wanted]) {
                    None => return Ok(()),
                    Some((id, found)) => {
                        last = format!("servo {id}: expected torque register {wanted}, got {found:?}");
                    }
                },
                Err(error) => last = error.to_string(),
            }
            let _ = self.port.clear(ClearBuffer::Input);
        }
        Err(Error::Link(format!("servo bus: torque {}: {last}", if on { "on" } else { "off" })))
    }

    /// The same register of every servo, in one message that nobody answers.
    fn write(&mut self, register: u8, data: &[Vec<u8>]) -> Result<()> {
        self.handler
            .sync_write(self.port.as_mut(), &self.ids, register, data)
            .map_err(|e| Error::Link(format!("servo bus: {e}")))
    }
}

/// Sign and magnitude, as Feetech writes positions and offsets.
fn word(ticks: i32, sign_bit: u32) -> [u8; 2] {
    let sign = 1_u16 << sign_bit;
    let magnitude = ticks.unsigned_abs().min(u32::from(sign) - 1) as u16;
    (magnitude | if ticks < 0 { sign } else { 0 }).to_le_bytes()
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
        ticks: signed(p0, p1, POSITION_SIGN),
        load: f64::from(signed(l0, l1, 10)) / 1000.0,
        voltage_v: f64::from(volts) / 10.0,
        temperature_c: f64::from(celsius),
        current_a: f64::from(signed(c0, c1, 15).abs()) * 6.5e-3,
        alarm: alarm.iter().find(|(bit, _)| (status | own) & bit != 0).map(|(_, name)| *name),
    })
}
