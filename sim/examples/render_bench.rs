//! Prints frames per second of both cameras, one thread, as JSON:
//! `cargo run --release -p vela-sim --example render_bench -- [WIDTH HEIGHT]`.

use std::error::Error;
use std::hint::black_box;
use std::time::Instant;
use vela_sim::camera;
use vela_sim::render::render;

mod still_life;

const ROUNDS: usize = 15;
const FRAMES: usize = 60;

fn main() -> Result<(), Box<dyn Error>> {
    let sizes: Vec<u32> = std::env::args().skip(1).map(|text| text.parse()).collect::<Result<_, _>>()?;
    let [width, height] = sizes.try_into().unwrap_or([96, 96]);
    // The arm moves from frame to frame, as it does in an episode.
    let mut drawings = Vec::new();
    for k in 0..FRAMES {
        let mut joints = still_life::ABOVE;
        joints[0] = (k as f64 / FRAMES as f64 - 0.5) * 0.8;
        joints[5] = k as f64 / FRAMES as f64;
        drawings.push(still_life::drawing(&joints)?);
    }
    let mut rates = serde_json::Map::new();
    for name in camera::NAMES {
        let mut seconds = Vec::new();
        for _ in 0..ROUNDS {
            let start = Instant::now();
            for drawing in &drawings {
                black_box(render(drawing, &camera::view(name, drawing, width, height)?));
            }
            seconds.push(start.elapsed().as_secs_f64() / FRAMES as f64);
        }
        seconds.sort_by(f64::total_cmp);
        let median = seconds[ROUNDS / 2];
        rates.insert(name.into(), serde_json::json!({ "fps": 1.0 / median, "ms": 1e3 * median }));
    }
    let solids = drawings[0].solids.len();
    println!(
        "{}",
        serde_json::json!({ "width": width, "height": height, "solids": solids, "cameras": rates })
    );
    Ok(())
}
