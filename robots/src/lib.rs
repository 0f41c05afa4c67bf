//! What runs beside an arm: control loop, chunk broker, rollout and the zenoh wire.
