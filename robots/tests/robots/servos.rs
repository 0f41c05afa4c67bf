//! The driver of servo arms against the emulated bus.

use crate::arm::{FakePolicy, eventually, frames};
use crate::emulator::{Emulator, Table};
use crate::toll::{Toll, excess_rad};
use crate::watched::within_limits;
use std::sync::Arc;
use std::time::Duration;
use vela_embodiment::{
    Clock, Embodiment, Error, Frame, FrameSource, GateConfig, JointSide, MonotonicClock, Result, SafetyGate,
};
use vela_robots::feetech::{Calibration, MotorCalibration, ServoArm, ServoConfig};
use vela_robots::{ControlOptions, Controller, State};

pub fn bus() -> Result<Emulator> {
    Emulator::start().map_err(|e| Error::Robot(e.to_string()))
}

pub fn calibration(robot: &Embodiment) -> Calibration {
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

pub fn config(emulator: &Emulator) -> ServoConfig {
    ServoConfig {
        port: emulator.port.clone(),
        baud: 1_000_000,
        torque: 0.4,
        max_temperature_c: 60.0,
        min_voltage_v: 6.0,
        max_voltage_v: 8.5,
    }
}

/// Where the servos are, rad.
fn positions(robot: &Embodiment, table: &Table) -> Result<Vec<f64>> {
    let calibration = calibration(robot);
    let joints = robot.joints.iter().enumerate();
    joints.map(|(k, joint)| calibration.position(robot, &joint.name, table.word(k, 56).into())).collect()
}

fn open(emulator: &Emulator) -> Result<ServoArm> {
    let robot = Embodiment::so101()?;
    ServoArm::open(&robot, calibration(&robot), &config(emulator))
}

#[test]
fn opening_moves_nothing_limits_the_torque_and_names_who_is_missing() -> Result<()> {
    let emulator = bus()?;
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

/// Two programs on one port would tear each other's questions.
#[test]
fn a_second_driver_of_one_port_is_refused_in_words_and_let_in_when_the_first_has_gone() -> Result<()> {
    let emulator = bus()?;
    let mut arm = open(&emulator)?;
    let said = open(&emulator).err().map(|e| e.to_string()).unwrap_or_default();
    assert_eq!(said, format!("robot: serial port {}: another program has it open", emulator.port));
    assert!(eventually(|| arm.joints().is_ok()), "the first goes on");
    drop(arm);
    open(&emulator)?;
    Ok(())
}

#[test]
fn lost_bytes_and_bad_checksums_cost_a_reading_and_never_a_wrong_one() -> Result<()> {
    let emulator = bus()?;
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
    let emulator = bus()?;
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

pub struct Eyes(pub Embodiment, pub Arc<dyn Clock>, pub u8);

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
    let emulator = bus()?;
    let arm = open(&emulator)?;
    let robot = arm.embodiment().clone();
    let eyes = Eyes(robot.clone(), arm.clock(), 0);
    let mut policy = FakePolicy::new()?;
    policy.step = 0.004;
    let options = ControlOptions {
        stop_after_hold_secs: 1.0,
        max_frame_age_secs: 1.0,
        events: 1 << 14,
        ..ControlOptions::default()
    };
    let (controller, events) = Controller::start(arm, eyes, policy, "go on", &options)?;
    let handle = controller.handle();
    let goal = |emulator: &Emulator| emulator.set(|table| table.goals[0].1);
    assert!(eventually(|| goal(&emulator) > 2148), "{} {:?}", goal(&emulator), handle.state());
    // Warm: it holds. Cool again: it goes on.
    let warm = handle.clock().now();
    emulator.set(|table| table.registers[0][63] = 65);
    assert!(eventually(|| matches!(handle.state(), State::Holding { reason } if reason.contains("65 °C"))));
    let (cool, stood) = (handle.clock().now(), goal(&emulator));
    emulator.set(|table| table.registers[0][63] = 40);
    assert!(eventually(|| goal(&emulator) > stood + 10), "{:?}", handle.state());
    let pulled = handle.clock().now();
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
    let watched = within_limits(&report, events.try_iter())?;
    // Where the servos themselves stand.
    let robot = Embodiment::so101()?;
    let stands = emulator.set(|table| positions(&robot, table))?;
    let excess = watched.excess_rad.max(excess_rad(&robot, &stands));
    assert!(excess == 0.0, "{stands:?}");
    watched.toll(warm, cool).tell("servo too warm and cool again");
    Toll { excess_rad: Some(excess), ..watched.toll(pulled, pulled) }.tell("servo bus pulled out");
    Ok(())
}

/// A servo that pushes harder than the run allows may only give way.
#[test]
fn the_load_that_a_servo_reports_reaches_the_gate() -> Result<()> {
    let emulator = bus()?;
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
