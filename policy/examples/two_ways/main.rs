//! `two_ways [STEPS] [SCENES]`: every head on the task with two equally good ways, as one line of JSON.

mod heads;

use serde_json::json;
use vela_nn::{Error, Result};

fn main() -> Result<()> {
    vela_nn::threads::set(0);
    let number = |i: usize, default: usize| match std::env::args().nth(i) {
        Some(text) => text.parse().map_err(|_| Error::invalid(format!("expected a number, got '{text}'"))),
        None => Ok(default),
    };
    let (steps, scenes) = (number(1, 1500)?, number(2, 400)?);
    let mut rows = Vec::new();
    for head in heads::HEADS {
        let tally = heads::run(head, steps, scenes)?;
        rows.push(json!({"head": head, "rate": tally.rate, "left": tally.left, "right": tally.right, "jerk": tally.jerk}));
    }
    println!("{}", json!({"steps": steps, "scenes": scenes, "two_ways": rows}));
    Ok(())
}
