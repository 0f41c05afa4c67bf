//! A bus of STS3215 servos on a pseudo-terminal, with everything that goes wrong on such a bus; and the driver against it.

use crate::arm::{FakePolicy, eventually, frames};
use serialport::{SerialPort, TTYPort};
use std::io::{Read, Write};
use std::sync::{Arc, Mutex, PoisonError};
use std::time::Duration;
use vela_embodiment::{
    Clock, Embodiment, Error, Frame, FrameSource, GateConfig, JointSide, MonotonicClock, Result, SafetyGate,
};
use vela_robots::feetech::{Calibration, MotorCalibration, ServoArm, ServoConfig};
use vela_robots::{ControlOptions, Controller, State};

const SERVOS: u8 = 6;

/// What the test sets and sees while the bus runs.
#[derive(Default)]
struct Table {
    registers: Vec<[u8; 128]>,
    /// Answers to swallow a byte of.
    lose: u32,
    /// Answers to send with a wrong checksum.
    garble: u32,
    silent: Option<u8>,
    unplugged: bool,
    questions: u32,
    /// Lowest and highest goal that each servo was sent.
    goals: Vec<(u16, u16)>,
}

struct Emulator {
    table: Arc<Mutex<Table>>,
    port: String,
    thread: Option<std::thread::JoinHandle<()>>,
}

impl Emulator {
    fn start() -> Result<Self> {
        let (mut master, slave) = TTYPort::pair().map_err(|e| Error::Robot(e.to_string()))?;
        let port = slave.name().ok_or_else(|| Error::Robot("a terminal without a name".into()))?;
        drop(slave);
        let mut servo = [0_u8; 128];
        servo[56..58].copy_from_slice(&2048_u16.to_le_bytes());
        servo[42..44].copy_from_slice(&2048_u16.to_le_bytes());
        (servo[62], servo[63]) = (74, 31);
        let servos = usize::from(SERVOS);
        let goals = vec![(u16::MAX, 0); servos];
        let table = Arc::new(Mutex::new(Table { registers: vec![servo; servos], goals, ..Table::default() }));
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

    fn set<T>(&self, act: impl FnOnce(&mut Table) -> T) -> T {
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
        let servo = usize::from(id - 1);
        let at = usize::from(register);
        self.registers[servo][at..at + data.len()].copy_from_slice(data);
        if register == 42 {
            let goal = u16::from_le_bytes([data[0], data[1]]);
            let seen = &mut self.goals[servo];
            *seen = (seen.0.min(goal), seen.1.max(goal));
            // Under torque it is there at once.
            if self.registers[servo][40] == 1 {
                self.registers[servo][56..58].copy_from_slice(data);
            }
        }
    }

    fn answer(&mut self, packet: &[u8]) -> Vec<u8> {
        self.questions += 1;
        match *packet {
            [id, 1] => self.status(id, &[]),
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

fn calibration(robot: &Embodiment) -> Calibration {
    let motor = |k: usize| MotorCalibration {
        id: k as u8 + 1,
        drive_mode: 0,
        homing_offset: 0,
        range_min: 1000,
        range_max: 3096,
    };
    let motors = robot.joints.iter().enumerate().map(|(k, joint)| (joint.name.clone(), motor(k)));
    Calibration { motors: motors.collect() }
}

fn config(emulator: &Emulator) -> ServoConfig {
    ServoConfig {
        port: emulator.port.clone(),
        baud: 1_000_000,
        torque: 0.4,
        max_temperature_c: 60.0,
        min_voltage_v: 6.0,
        max_voltage_v: 8.5,
    }
}

fn open(emulator: &Emulator) -> Result<ServoArm> {
    let robot = Embodiment::so101()?;
    ServoArm::open(&robot, calibration(&robot), &config(emulator))
}

#[test]
fn opening_moves_nothing_limits_the_torque_and_names_who_is_missing() -> Result<()> {
    let emulator = Emulator::start()?;
    let mut arm = open(&emulator)?;
    let reading = arm.joints()?;
    assert!(reading.positions[..5].iter().all(|q| q.abs() < 1e-9), "{:?}", reading.positions);
    // Half of the gripper's range, 45 degrees.
    assert!((reading.positions[5] - 45f64.to_radians()).abs() < 1e-3);
    emulator.set(|table| {
        for servo in &table.registers {
            assert_eq!((servo[40], u16::from_le_bytes([servo[48], servo[49]])), (1, 400));
        }
        assert!(table.goals.iter().all(|goal| *goal == (2048, 2048)));
    });
    let servos = arm.servos()?;
    assert_eq!((servos[2].id, servos[2].temperature_c, servos[2].voltage_v), (3, 31.0, 7.4));
    arm.relax()?;
    assert!(eventually(|| emulator.set(|table| table.registers.iter().all(|servo| servo[40] == 0))));
    drop(arm);

    emulator.set(|table| table.silent = Some(4));
    let said = open(&emulator).err().map(|e| e.to_string()).unwrap_or_default();
    assert!(said.contains("no answer from servo 4 ('wrist_flex')"), "{said}");
    let robot = Embodiment::so101()?;
    let nowhere = ServoConfig { port: "/dev/ttyNONE".into(), ..config(&emulator) };
    assert!(
        ServoArm::open(&robot, calibration(&robot), &nowhere)
            .is_err_and(|e| e.to_string().contains("ttyNONE"))
    );
    Ok(())
}

#[test]
fn lost_bytes_and_bad_checksums_cost_a_reading_and_never_a_wrong_one() -> Result<()> {
    let emulator = Emulator::start()?;
    let mut arm = open(&emulator)?;
    let good = arm.joints()?.positions;
    for (lose, garble) in [(1, 0), (0, 1), (3, 0), (0, 12), (2, 2)] {
        emulator.set(|table| (table.lose, table.garble) = (lose, garble));
        for _ in 0..6 {
            // On a busy machine an answer may come too late: that is no reading, and no wrong one either.
            match arm.joints() {
                Ok(reading) => assert_eq!(reading.positions, good),
                Err(error) => assert!(error.to_string().contains("servo bus"), "{error}"),
            }
        }
        assert!(eventually(|| arm.joints().is_ok_and(|r| arm_age(&arm, &r.stamp) < 0.05)));
    }
    Ok(())
}

fn arm_age(arm: &ServoArm, stamp: &vela_embodiment::Stamp) -> f64 {
    arm.clock().now().secs_since(*stamp)
}

#[test]
fn a_servo_that_overheats_starves_or_drops_out_is_named() -> Result<()> {
    let emulator = Emulator::start()?;
    let mut arm = open(&emulator)?;
    let mut said = |act: &dyn Fn(&mut Table)| {
        emulator.set(act);
        let mut why = String::new();
        eventually(|| {
            arm.joints().is_err_and(|e| {
                why = e.to_string();
                true
            })
        });
        why
    };
    assert!(said(&|t| t.registers[2][63] = 71).contains("servo 3 ('elbow_flex') is at 71 °C, at most 60 °C"));
    assert!(
        said(&|t| (t.registers[2][63], t.registers[1][62]) = (40, 52))
            .contains("servo 2 ('shoulder_lift') has 5.2 V")
    );
    assert!(said(&|t| (t.registers[1][62], t.registers[5][65]) = (74, 0x20)).contains("alarm: overload"));
    let gone = said(&|t| (t.registers[5][65], t.silent) = (0, Some(5)));
    assert!(gone.contains("servo 5"), "{gone}");
    emulator.set(|table| table.silent = None);
    assert!(eventually(|| arm.joints().is_ok()), "it comes back");
    Ok(())
}

struct Eyes(Embodiment, Arc<dyn Clock>, u8);

impl FrameSource for Eyes {
    fn frames(&mut self) -> Result<Vec<Frame>> {
        std::thread::sleep(Duration::from_millis(20));
        self.2 = self.2.wrapping_add(1);
        let mut frames = frames(&self.0, self.1.now());
        for frame in &mut frames {
            frame.rgb = vec![50 + self.2 / 2; frame.rgb.len()].into();
        }
        Ok(frames)
    }
}

/// The whole way: policy, queue, gate, driver, bus, servos; then the cable is pulled.
#[test]
fn a_policy_moves_the_servos_through_the_gate_until_the_cable_is_pulled() -> Result<()> {
    let emulator = Emulator::start()?;
    let arm = open(&emulator)?;
    let robot = arm.embodiment().clone();
    let eyes = Eyes(robot.clone(), arm.clock(), 0);
    let mut policy = FakePolicy::new()?;
    policy.step = 0.004;
    let options =
        ControlOptions { stop_after_hold_secs: 1.0, max_frame_age_secs: 1.0, ..ControlOptions::default() };
    let (controller, _events) = Controller::start(arm, eyes, policy, "go on", &options)?;
    let handle = controller.handle();
    let goal = |emulator: &Emulator| emulator.set(|table| table.goals[0].1);
    assert!(eventually(|| goal(&emulator) > 2148), "{} {:?}", goal(&emulator), handle.state());
    // Warm: it holds. Cool again: it goes on.
    emulator.set(|table| table.registers[0][63] = 65);
    assert!(eventually(|| matches!(handle.state(), State::Holding { reason } if reason.contains("65 °C"))));
    emulator.set(|table| table.registers[0][63] = 40);
    assert!(eventually(|| handle.state() == State::Running), "{:?}", handle.state());
    emulator.set(|table| table.unplugged = true);
    assert!(eventually(|| handle.ended()), "{:?}", handle.state());
    let report = controller.wait().report;
    assert!(matches!(&report.state, State::Stopped { reason } if reason.contains("servo bus")), "{report:?}");
    emulator.set(|table| {
        for (servo, seen) in table.registers.iter().zip(&table.goals) {
            assert_eq!(servo[40], 1, "torque stays on");
            assert!(seen.0 >= 1000 && seen.1 <= 3096);
        }
    });
    Ok(())
}

/// A servo that pushes harder than the run allows may only give way.
#[test]
fn the_load_that_a_servo_reports_reaches_the_gate() -> Result<()> {
    let emulator = Emulator::start()?;
    let mut arm = open(&emulator)?;
    // 90 % of full load on the elbow, toward greater positions.
    emulator.set(|table| table.registers[2][60..62].copy_from_slice(&900_u16.to_le_bytes()));
    let reading = arm.joints()?;
    assert!((reading.efforts[2] - 0.9 * 2.94).abs() < 1e-9, "{:?}", reading.efforts);
    let mut narrow = GateConfig::default();
    narrow.joints.entry("elbow_flex".into()).or_default().effort = Some(2.0);
    let mut gate = SafetyGate::new(arm.embodiment(), narrow, &reading.positions)?;
    gate.feel(&reading.efforts);
    let mut targets = reading.positions.clone();
    targets[2] += 0.02;
    let now = MonotonicClock::new().now();
    let action = vela_embodiment::Action { joint_targets: targets };
    let verdict = gate.check(Some((&action, now)), now);
    assert!((verdict.action.get().joint_targets[2] - reading.positions[2]).abs() < 1e-9);
    arm.apply(verdict.action)?;
    Ok(())
}
