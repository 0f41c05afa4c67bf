//! The `vela` command line.
fn main() {}
