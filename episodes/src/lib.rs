//! LeRobot datasets: read, write, record, stats.
