//! A bus of STS3215 servos on a pseudo-terminal, with everything that goes wrong on such a bus.

use serialport::{SerialPort, TTYPort};
use std::io::{Read, Write};
use std::sync::{Arc, Mutex, PoisonError};
use std::time::Duration;

pub const SERVOS: u8 = 6;
/// Ticks of a turn.
const TURN: i32 = 4096;

/// What the test sets and sees while the bus runs.
#[derive(Default)]
pub struct Table {
    pub registers: Vec<[u8; 128]>,
    /// Answers to swallow a byte of.
    pub lose: u32,
    /// Answers to send with a wrong checksum.
    pub garble: u32,
    pub silent: Option<u8>,
    pub unplugged: bool,
    pub questions: u32,
    /// Lowest and highest goal that each servo was sent.
    pub goals: Vec<(u16, u16)>,
    /// The longest way from one goal to the next, of each servo.
    pub steps: Vec<u16>,
    /// Every goal of the first servo, in the order in which they came.
    pub path: Vec<u16>,
}

pub struct Emulator {
    table: Arc<Mutex<Table>>,
    pub port: String,
    thread: Option<std::thread::JoinHandle<()>>,
}

impl Emulator {
    /// Servos in the middle of their turns, calibrated to 1000 to 3096 ticks without an offset.
    pub fn start() -> std::io::Result<Self> {
        let (mut master, slave) = TTYPort::pair()?;
        let port = slave.name().ok_or_else(|| std::io::Error::other("a terminal without a name"))?;
        drop(slave);
        let mut servo = [0_u8; 128];
        // Firmware 3.10 of model 777, the STS3215.
        (servo[0], servo[1]) = (3, 10);
        servo[3..5].copy_from_slice(&777_u16.to_le_bytes());
        servo[9..11].copy_from_slice(&1000_u16.to_le_bytes());
        servo[11..13].copy_from_slice(&3096_u16.to_le_bytes());
        servo[42..44].copy_from_slice(&2048_u16.to_le_bytes());
        servo[55] = 1;
        servo[56..58].copy_from_slice(&2048_u16.to_le_bytes());
        (servo[62], servo[63]) = (74, 31);
        let servos = usize::from(SERVOS);
        let table = Table {
            registers: vec![servo; servos],
            goals: vec![(u16::MAX, 0); servos],
            steps: vec![0; servos],
            ..Table::default()
        };
        let table = Arc::new(Mutex::new(table));
        let shared = table.clone();
        let thread = std::thread::spawn(move || {
            let _ = master.set_timeout(Duration::from_millis(20));
            let (mut waiting, mut chunk) = (Vec::new(), [0; 256]);
            loop {
                match master.read(&mut chunk) {
                    Ok(n) => waiting.extend_from_slice(&chunk[..n]),
                    Err(e) if e.kind() == std::io::ErrorKind::TimedOut => {}
                    // Nobody has the port open.
                    Err(_) => std::thread::sleep(Duration::from_millis(5)),
                }
                let mut table = shared.lock().unwrap_or_else(PoisonError::into_inner);
                if table.unplugged {
                    break;
                }
                while let Some((packet, rest)) = split(&waiting) {
                    let answer = table.answer(&packet);
                    waiting = rest;
                    let _ = master.write_all(&answer);
                }
            }
        });
        Ok(Self { table, port, thread: Some(thread) })
    }

    pub fn set<T>(&self, act: impl FnOnce(&mut Table) -> T) -> T {
        act(&mut self.table.lock().unwrap_or_else(PoisonError::into_inner))
    }
}

impl Drop for Emulator {
    fn drop(&mut self) {
        self.set(|table| table.unplugged = true);
        if let Some(thread) = self.thread.take() {
            let _ = thread.join();
        }
    }
}

/// The first whole packet (number, instruction, parameters) and what follows it.
fn split(bytes: &[u8]) -> Option<(Vec<u8>, Vec<u8>)> {
    let start = bytes.windows(2).position(|w| w == [255, 255])?;
    let length = usize::from(*bytes.get(start + 3)?);
    let end = start + 4 + length;
    (bytes.len() >= end).then(|| {
        let sum = bytes[start + 2..end - 1].iter().fold(0_u8, |sum, b| sum.wrapping_add(*b));
        assert_eq!(!sum, bytes[end - 1], "the driver's checksum");
        ([&bytes[start + 2..start + 3], &bytes[start + 4..end - 1]].concat(), bytes[end..].to_vec())
    })
}

impl Table {
    /// A register of two bytes.
    pub fn word(&self, servo: usize, register: usize) -> u16 {
        u16::from_le_bytes([self.registers[servo][register], self.registers[servo][register + 1]])
    }

    fn set_word(&mut self, servo: usize, register: usize, value: u16) {
        self.registers[servo][register..register + 2].copy_from_slice(&value.to_le_bytes());
    }

    /// A hand turns a servo by so many ticks.
    pub fn turn(&mut self, servo: usize, ticks: i32) {
        let at = (i32::from(self.word(servo, 56)) + ticks).rem_euclid(TURN);
        self.set_word(servo, 56, at as u16);
    }

    /// What a servo takes off its position: sign and eleven bits.
    pub fn offset(&self, servo: usize) -> i32 {
        let raw = self.word(servo, 31);
        let magnitude = i32::from(raw & 0x7ff);
        if raw & 0x800 == 0 { magnitude } else { -magnitude }
    }

    fn status(&mut self, id: u8, data: &[u8]) -> Vec<u8> {
        if self.silent == Some(id) || id == 0 || id > SERVOS {
            return Vec::new();
        }
        let alarm = self.registers[usize::from(id - 1)][65];
        let mut bytes = vec![255, 255, id, data.len() as u8 + 2, alarm];
        bytes.extend_from_slice(data);
        bytes.push(!bytes[2..].iter().fold(0_u8, |sum, b| sum.wrapping_add(*b)));
        if self.lose > 0 {
            self.lose -= 1;
            bytes.remove(5);
        } else if self.garble > 0 {
            self.garble -= 1;
            if let Some(last) = bytes.last_mut() {
                *last = last.wrapping_add(1);
            }
        }
        bytes
    }

    fn write(&mut self, id: u8, register: u8, data: &[u8]) {
        if id == 0 || id > SERVOS {
            return;
        }
        let servo = usize::from(id - 1);
        // What is kept without power is not written while the servo is locked.
        if register < 40 && self.registers[servo][55] == 1 {
            return;
        }
        let at = usize::from(register);
        let (offset, last_goal) = (self.offset(servo), self.word(servo, 42));
        self.registers[servo][at..at + data.len()].copy_from_slice(data);
        if register == 31 {
            let turned = offset - self.offset(servo);
            self.turn(servo, turned);
        }
        if register == 42 {
            let goal = u16::from_le_bytes([data[0], data[1]]);
            let seen = &mut self.goals[servo];
            *seen = (seen.0.min(goal), seen.1.max(goal));
            self.steps[servo] = self.steps[servo].max(goal.abs_diff(last_goal));
            if servo == 0 {
                self.path.push(goal);
            }
            // Under torque it is there at once, inside its own range.
            if self.registers[servo][40] == 1 {
                let inside = goal.clamp(self.word(servo, 9), self.word(servo, 11));
                self.set_word(servo, 56, inside);
            }
        }
    }

    fn answer(&mut self, packet: &[u8]) -> Vec<u8> {
        self.questions += 1;
        match *packet {
            [id, 1] => self.status(id, &[]),
            [id, 2, register, length] if (1..=SERVOS).contains(&id) => {
                let at = usize::from(register)..usize::from(register) + usize::from(length);
                let data = self.registers[usize::from(id - 1)][at].to_vec();
                self.status(id, &data)
            }
            [id, 3, register, ref data @ ..] => {
                self.write(id, register, data);
                self.status(id, &[])
            }
            [_, 0x82, register, length, ref ids @ ..] => {
                let at = usize::from(register)..usize::from(register) + usize::from(length);
                let answers = ids.iter().map(|id| {
                    let data = self.registers[usize::from(id - 1)][at.clone()].to_vec();
                    self.status(*id, &data)
                });
                answers.collect::<Vec<_>>().concat()
            }
            [_, 0x83, register, length, ref data @ ..] => {
                for one in data.chunks(usize::from(length) + 1) {
                    self.write(one[0], register, &one[1..]);
                }
                Vec::new()
            }
            // No servo knows it, none answers.
            _ => Vec::new(),
        }
    }
}
