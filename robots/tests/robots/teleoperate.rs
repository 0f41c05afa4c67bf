//! One servo arm follows another: two emulated buses, and the cable of the leader pulled.

use crate::arm::eventually;
use crate::emulator::Emulator;
use crate::servos::{Eyes, bus, calibration, config};
use std::sync::{Arc, Mutex, PoisonError};
use vela_embodiment::{Embodiment, JointSide, Result};
use vela_robots::feetech::{HandGuided, LeaderArm, ServoArm, TeleoperationEvent, teleoperate};
use vela_robots::{ControlOptions, Controller, State};

fn leader(robot: &Embodiment, emulator: &Emulator) -> Result<LeaderArm> {
    LeaderArm::open(robot, calibration(robot), &config(emulator))
}

fn near(follower: &Emulator, servo: usize, ticks: i32) -> bool {
    follower.set(|table| (i32::from(table.word(servo, 56)) - ticks).abs() <= 2)
}

#[test]
fn the_follower_goes_where_a_hand_moves_the_leader_and_holds_without_it() -> Result<()> {
    let robot = Embodiment::so101()?;
    let (hand, arm) = (bus()?, bus()?);
    hand.set(|table| {
        for servo in &mut table.registers {
            servo[40] = 1;
        }
        // 17.6 degrees away at the start.
        table.turn(0, 200);
    });
    let follower = ServoArm::open(&robot, calibration(&robot), &config(&arm))?;
    let eyes = Eyes(robot.clone(), follower.clock(), 0);
    let guided = HandGuided::new(&robot);
    let options = ControlOptions { stop_after_hold_secs: 60.0, ..ControlOptions::default() };
    let (controller, _events) = Controller::start(follower, eyes, guided.clone(), "", &options)?;
    let handle = controller.handle();
    let told = Arc::new(Mutex::new(Vec::new()));
    let port = Arc::new(Mutex::new(hand.port.clone()));
    let thread = std::thread::spawn({
        let (robot, handle, told, port) = (robot.clone(), handle.clone(), told.clone(), port.clone());
        let config = config(&hand);
        move || {
            let open = || {
                let port = port.lock().unwrap_or_else(PoisonError::into_inner).clone();
                let config = vela_robots::feetech::ServoConfig { port, ..config.clone() };
                LeaderArm::open(&robot, calibration(&robot), &config)
            };
            teleoperate(open, &robot, &handle, &guided, &mut |event| {
                told.lock().unwrap_or_else(PoisonError::into_inner).push(event);
            })
        }
    });
    let last = || told.lock().unwrap_or_else(PoisonError::into_inner).last().cloned();
    // It comes: slowly, and the leader has no torque.
    assert!(eventually(|| last() == Some(TeleoperationEvent::Approaching)));
    assert!(eventually(|| last() == Some(TeleoperationEvent::Following)));
    assert!(eventually(|| near(&arm, 0, 2248)));
    hand.set(|table| assert!(table.registers.iter().all(|servo| servo[40] == 0)));
    // It follows, the gripper too.
    for _ in 0..10 {
        hand.set(|table| {
            table.turn(1, -30);
            table.turn(5, 40);
        });
        std::thread::sleep(std::time::Duration::from_millis(33));
    }
    assert!(eventually(|| near(&arm, 1, 2048 - 300) && near(&arm, 5, 2048 + 400)));
    // Lost bytes cost nothing.
    hand.set(|table| (table.lose, table.garble) = (2, 2));
    hand.set(|table| table.turn(2, 100));
    assert!(eventually(|| near(&arm, 2, 2148)));

    // The operator's stop: what the hand does meanwhile is come to slowly afterwards.
    let stop = handle.emergency_stop();
    stop.press("pressed in a test");
    hand.set(|table| table.turn(0, -400));
    assert!(eventually(
        || matches!(handle.state(), State::Holding { reason } if reason.contains("emergency stop"))
    ));
    std::thread::sleep(std::time::Duration::from_millis(200));
    assert!(near(&arm, 0, 2248), "it stands");
    stop.release();
    assert!(eventually(|| last() == Some(TeleoperationEvent::Approaching)));
    assert!(eventually(|| near(&arm, 0, 1848)));

    // The leader's cable is pulled: the follower holds, torque on, and says why.
    drop(hand);
    assert!(eventually(|| matches!(last(), Some(TeleoperationEvent::Lost(_)))), "{:?}", last());
    assert!(eventually(
        || matches!(handle.state(), State::Holding { reason } if reason.contains("the leader"))
    ));
    arm.set(|table| assert!(table.registers.iter().all(|servo| servo[40] == 1)));
    // And put in again, perhaps as another device; the arm has been moved meanwhile.
    let hand = bus()?;
    hand.set(|table| table.turn(0, 150));
    port.lock().unwrap_or_else(PoisonError::into_inner).clone_from(&hand.port);
    assert!(eventually(|| last() == Some(TeleoperationEvent::Following)), "{:?}", last());
    assert!(eventually(|| near(&arm, 0, 2198)));

    let report = controller.finish().report;
    assert!(thread.join().is_ok_and(|done| done.is_ok()));
    assert!(matches!(report.state, State::Stopped { .. }), "{report:?}");
    Ok(())
}

/// A leader that cannot be there at the start is an error at once.
#[test]
fn a_leader_that_is_not_there_is_named() -> Result<()> {
    let robot = Embodiment::so101()?;
    let hand = bus()?;
    hand.set(|table| table.silent = Some(3));
    let said = leader(&robot, &hand).err().map(|e| e.to_string()).unwrap_or_default();
    assert!(said.contains("no answer from servo 3 ('elbow_flex')"), "{said}");
    Ok(())
}
