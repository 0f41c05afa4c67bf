//! Of two equally good ways around an obstacle regression gives the average, which goes through it; diffusion and flow take
//! one or the other.

#[path = "../examples/two_ways/heads.rs"]
mod heads;

use vela_nn::Result;

#[test]
fn around_an_obstacle_the_average_fails_and_a_choice_arrives() -> Result<()> {
    for name in heads::HEADS {
        // Tokens take longer and choose as well, one after another (FAST) or not at all, each for itself: see the example.
        if ["tokens", "fast"].contains(&name) {
            continue;
        }
        let tally = heads::run(name, 700, 100)?;
        println!("{name}: {tally:?}");
        if name == "regression" {
            assert!(tally.rate < 0.1, "{name}: {tally:?}");
        } else {
            assert!(tally.rate > 0.8, "{name}: {tally:?}");
            assert!(tally.left > 20 && tally.right > 20, "{name}: {tally:?}");
        }
    }
    Ok(())
}
