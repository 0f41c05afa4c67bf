//! Writes what both cameras see at the start of an episode as PNGs, at 96x96, the same enlarged eight times,
//! and 640x480: `cargo run --release -p vela-sim --example snapshot -- FOLDER [TASK [SEED [randomise]]]`.

use std::error::Error;
use std::path::Path;
use vela_embodiment::Embodiment;
use vela_sim::World;
use vela_sim::camera;
use vela_sim::render::render;
use vela_sim::tasks::{Sampler, Split, TaskKind};

fn main() -> Result<(), Box<dyn Error>> {
    let words: Vec<String> = std::env::args().skip(1).collect();
    let folder = words.first().ok_or("expected the folder for the pictures")?;
    let kind = TaskKind::from_name(words.get(1).map_or("place", String::as_str))?;
    let seed = words.get(2).map_or(Ok(0), |text| text.parse())?;
    let randomise = words.get(3).is_some_and(|word| word == "randomise");
    let so101 = Embodiment::so101()?;
    let (scene, task) = Sampler::new(&so101)?.sample(kind, seed, Split::Train, randomise)?;
    println!("{}", task.instruction);
    let drawing = World::new(&so101, &scene)?.drawing();
    for name in camera::NAMES {
        for (width, height) in [(96, 96), (640, 480)] {
            let rgb = render(&drawing, &camera::view(name, &drawing, width, height)?);
            let picture =
                image::RgbImage::from_raw(width, height, rgb).ok_or("a picture of the wrong size")?;
            picture.save(Path::new(&folder).join(format!("{name}-{width}x{height}.png")))?;
            if width == 96 {
                let large = image::imageops::resize(&picture, 768, 768, image::imageops::FilterType::Nearest);
                large.save(Path::new(&folder).join(format!("{name}-96x96-enlarged.png")))?;
            }
        }
    }
    Ok(())
}
