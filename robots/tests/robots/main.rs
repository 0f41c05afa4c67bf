//! The loop, the rollout and the link over real TCP sessions on loopback, with a small kinematic arm and policies
//! that behave and misbehave.

mod arm;
mod cable;
mod calibrate;
mod control;
mod cut;
mod driver;
mod emulator;
mod external;
mod faults;
mod gripper;
mod late;
mod link;
mod many;
mod rollout;
mod ros2;
mod seats;
mod servos;
mod teleoperate;
mod toll;
mod watched;
