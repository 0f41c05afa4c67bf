//! Calibrating an arm by hand, against the emulated bus; and LeRobot's file both ways.

use crate::emulator::{Emulator, SERVOS};
use crate::servos::{bus, calibration, config};
use vela_embodiment::{Embodiment, JointSide, Result};
use vela_robots::feetech::{Calibration, Calibrator, LeaderArm, ServoArm, Span, Unit};

/// Where each servo's horn happens to be mounted, ticks of its encoder in the middle of the joint's motion.
const MIDDLES: [i32; 6] = [300, 4000, 2047, 1024, 4095, 0];
/// How far each joint goes to either side, ticks.
const STOPS: [(i32, i32); 6] =
    [(-1200, 1250), (-1100, 1150), (-1000, 1000), (-900, 1200), (-2000, 2040), (-20, 1400)];

/// An arm as it comes out of the box, held by a hand.
fn unboxed() -> Result<Emulator> {
    let emulator = bus()?;
    emulator.set(|table| {
        for (k, middle) in MIDDLES.iter().enumerate() {
            table.registers[k][9..13].copy_from_slice(&[0, 0, 0xff, 0x0f]);
            let turned = middle - i32::from(table.word(k, 56));
            table.turn(k, turned);
            // Whatever was on before: the torque must go off.
            table.registers[k][40] = 1;
        }
    });
    Ok(emulator)
}

fn sweep(emulator: &Emulator, calibrator: &mut Calibrator, skip: Option<usize>) -> Result<Vec<Span>> {
    for (k, (low, high)) in STOPS.iter().enumerate() {
        if skip == Some(k) {
            continue;
        }
        for step in [low / 2, low - low / 2, -low / 2, -(low - low / 2), high / 2, high - high / 2] {
            emulator.set(|table| table.turn(k, step));
            calibrator.watch()?;
        }
        emulator.set(|table| table.turn(k, -high));
    }
    Ok(calibrator.watch()?.to_vec())
}

#[test]
fn the_middle_becomes_2047_and_the_ranges_are_what_a_hand_reached() -> Result<()> {
    let robot = Embodiment::so101()?;
    let emulator = unboxed()?;
    let mut calibrator = Calibrator::open(&robot, &config(&emulator))?;
    emulator.set(|table| {
        assert!(table.registers.iter().all(|servo| (servo[40], servo[55], servo[33]) == (0, 0, 0)));
        // Gains of every servo; the gripper's torque, current and what is left of it when overloaded.
        assert!(table.registers.iter().all(|servo| servo[21..24] == [16, 32, 0] && servo[7] == 0));
        assert_eq!((table.word(5, 16), table.word(5, 28), table.registers[5][36]), (500, 250, 25));
        assert_eq!((table.word(4, 16), table.word(4, 28)), (0, 0));
    });
    calibrator.centre()?;
    // What LeRobot writes: the position less 2047; 4095 is one more than a servo can keep.
    let offsets: Vec<i32> = emulator.set(|table| (0..6).map(|k| table.offset(k)).collect());
    assert_eq!(offsets, [-1747, 1953, 0, -1023, 2047, -2047]);
    let spans = sweep(&emulator, &mut calibrator, None)?;
    assert_eq!((spans[0].min, spans[0].at, spans[0].max), (2047 - 1200, 2047, 2047 + 1250));
    let made = calibrator.finish()?;
    let of = |joint: &str| &made.motors[joint];
    assert_eq!((of("shoulder_pan").id, of("shoulder_pan").homing_offset), (1, -1747));
    assert_eq!((of("shoulder_pan").range_min, of("shoulder_pan").range_max), (847, 3297));
    // The joint without stops has the whole turn, wherever it was moved.
    assert_eq!((of("wrist_roll").range_min, of("wrist_roll").range_max), (0, 4095));
    assert_eq!((of("gripper").range_min, of("gripper").range_max), (2027, 3447));
    emulator.set(|table| {
        assert_eq!((table.word(0, 9), table.word(0, 11)), (847, 3297));
        assert!(table.registers.iter().all(|servo| (servo[40], servo[55]) == (0, 1)), "off and locked");
    });

    // LeRobot's file, and back; then the arm runs with it, and so does a leader.
    let path = std::env::temp_dir().join(format!("vela-calibrate-{}/so101/mine.json", std::process::id()));
    made.save(&path)?;
    let text = std::fs::read_to_string(&path).unwrap_or_default();
    let first = "{\n    \"elbow_flex\": {\n        \"id\": 3,\n        \"drive_mode\": 0,\n        \
                 \"homing_offset\": 0,\n        \"range_min\": 1047,\n        \"range_max\": 3047\n    },";
    assert!(text.starts_with(first), "{text}");
    let read = Calibration::load(&path)?;
    let _ = std::fs::remove_dir_all(path.parent().and_then(|p| p.parent()).unwrap_or(&path));
    assert_eq!(read, made);
    let pose = LeaderArm::open(&robot, read.clone(), &config(&emulator))?.pose()?;
    let reading = ServoArm::open(&robot, read, &config(&emulator))?.joints()?;
    assert_eq!(pose, reading.positions);
    // Zero is the middle of the range, not the middle of the turn: LeRobot's convention.
    let middle = (2047.0 - 0.5 * (847.0 + 3297.0)) * 360.0 / 4095.0;
    assert!((pose[0].to_degrees() - middle).abs() < 1e-9, "{pose:?}");
    assert!((made.in_unit("gripper", Unit::Percent, 2027)?).abs() < 1e-9, "closed");
    Ok(())
}

#[test]
fn a_joint_that_was_forgotten_or_badly_centred_is_named() -> Result<()> {
    let robot = Embodiment::so101()?;
    let emulator = unboxed()?;
    let mut calibrator = Calibrator::open(&robot, &config(&emulator))?;
    calibrator.centre()?;
    sweep(&emulator, &mut calibrator, Some(2))?;
    let said = calibrator.finish().err().map(|e| e.to_string()).unwrap_or_default();
    assert!(said.contains("not moved from stop to stop: 'elbow_flex' (2047 to 2047 ticks)"), "{said}");

    let mut calibrator = Calibrator::open(&robot, &config(&emulator))?;
    calibrator.centre()?;
    let mut said = String::new();
    for _ in 0..5 {
        emulator.set(|table| table.turn(1, 500));
        said = calibrator.watch().err().map(|e| e.to_string()).unwrap_or_default();
    }
    assert!(said.contains("joint 'shoulder_lift' went from 4047 to 451 ticks at once"), "{said}");
    drop(calibrator);
    emulator.set(|table| table.silent = Some(SERVOS));
    let said = Calibrator::open(&robot, &config(&emulator)).err().map(|e| e.to_string()).unwrap_or_default();
    assert!(said.contains("no answer from servo 6 ('gripper')"), "{said}");
    Ok(())
}

/// A lost byte while the servos are set up is asked again; nothing half-written is taken for done.
#[test]
fn lost_bytes_and_bad_checksums_do_not_spoil_a_calibration() -> Result<()> {
    let robot = Embodiment::so101()?;
    let emulator = unboxed()?;
    let mut calibrator = Calibrator::open(&robot, &config(&emulator))?;
    emulator.set(|table| (table.lose, table.garble) = (2, 2));
    calibrator.centre()?;
    sweep(&emulator, &mut calibrator, None)?;
    emulator.set(|table| (table.lose, table.garble) = (3, 1));
    let made = calibrator.finish()?;
    assert_eq!(made.motors["shoulder_pan"].homing_offset, -1747);
    assert_eq!((made.motors["gripper"].range_min, made.motors["gripper"].range_max), (2027, 3447));
    Ok(())
}

/// A file that LeRobot made on another machine: its values are written to the servos, or nothing moves.
#[test]
fn servos_that_keep_another_calibration_than_the_file_are_refused_until_it_is_applied() -> Result<()> {
    let robot = Embodiment::so101()?;
    let emulator = bus()?;
    let mut file = calibration(&robot);
    for motor in file.motors.values_mut() {
        (motor.homing_offset, motor.range_min) = (-37, 1100);
    }
    let said = ServoArm::open(&robot, file.clone(), &config(&emulator))
        .err()
        .map(|e| e.to_string())
        .unwrap_or_default();
    let expected =
        "servo 2 ('shoulder_lift') keeps offset 0, range 1000 to 3096, the file says offset -37, range 1100";
    assert!(said.contains(expected), "{said}");
    assert!(LeaderArm::open(&robot, file.clone(), &config(&emulator)).is_err());
    emulator.set(|table| assert!(table.registers.iter().all(|servo| servo[40] == 0), "no torque"));
    Calibrator::apply(&robot, &config(&emulator), &file)?;
    let mut arm = ServoArm::open(&robot, file, &config(&emulator))?;
    // The encoder stands where it stood, and says 37 more.
    let reading = arm.joints()?;
    let expected = (2048.0 + 37.0 - 0.5 * (1100.0 + 3096.0)) * 360.0 / 4095.0;
    assert!((reading.positions[1].to_degrees() - expected).abs() < 1e-9, "{:?}", reading.positions);
    Ok(())
}
