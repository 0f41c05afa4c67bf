//! Prints frames per second of both cameras, one thread, as JSON:
//! `cargo run --release -p vela-sim --example render_bench -- [WIDTH HEIGHT]`.

use std::error::Error;
use std::hint::black_box;
use std::time::Instant;
use vela_embodiment::Embodiment;
use vela_sim::World;
use vela_sim::camera;
use vela_sim::render::render;
use vela_sim::tasks::{Sampler, Split, TaskKind};

const ROUNDS: usize = 15;

fn main() -> Result<(), Box<dyn Error>> {
    let sizes: Vec<u32> = std::env::args().skip(1).map(|text| text.parse()).collect::<Result<_, _>>()?;
    let [width, height] = sizes.try_into().unwrap_or([96, 96]);
    let so101 = Embodiment::so101()?;
    let sampler = Sampler::new(&so101)?;
    let mut drawings = Vec::new();
    for kind in TaskKind::ALL {
        for seed in 0..8 {
            let (scene, _) = sampler.sample(kind, seed, Split::Train, false)?;
            drawings.push(World::new(&so101, &scene)?.drawing());
        }
    }
    let mut rates = serde_json::Map::new();
    for name in camera::NAMES {
        let mut seconds = Vec::new();
        for _ in 0..ROUNDS {
            let start = Instant::now();
            for drawing in &drawings {
                black_box(render(drawing, &camera::view(name, drawing, width, height)?));
            }
            seconds.push(start.elapsed().as_secs_f64() / drawings.len() as f64);
        }
        seconds.sort_by(f64::total_cmp);
        let median = seconds[ROUNDS / 2];
        rates.insert(name.into(), serde_json::json!({ "fps": 1.0 / median, "ms": 1e3 * median }));
    }
    let solids: usize = drawings.iter().map(|drawing| drawing.solids.len()).sum();
    println!(
        "{}",
        serde_json::json!({
            "width": width,
            "height": height,
            "scenes": drawings.len(),
            "solids": solids as f64 / drawings.len() as f64,
            "cameras": rates,
        })
    );
    Ok(())
}
