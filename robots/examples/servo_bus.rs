//! Six STS3215 servos on a pseudo-terminal, as the tests emulate them: for trying `vela robot`, or anyone else's driver,
//! without an arm. Prints the port and runs until its standard input ends.
//!
//! A line `2 150` turns servo 2 by 150 ticks, as a hand would.

#[path = "../tests/robots/emulator.rs"]
mod emulator;

use std::io::BufRead;

fn main() -> Result<(), Box<dyn std::error::Error>> {
    let bus = emulator::Emulator::start()?;
    println!("{}", bus.port);
    for line in std::io::stdin().lock().lines() {
        let line = line?;
        let words: Vec<i32> = line.split_whitespace().filter_map(|word| word.parse().ok()).collect();
        match words[..] {
            [servo @ 1..=6, ticks] => bus.set(|table| table.turn(servo as usize - 1, ticks)),
            _ => eprintln!("expected a servo, 1 to 6, and ticks; got '{line}'"),
        }
    }
    Ok(())
}
