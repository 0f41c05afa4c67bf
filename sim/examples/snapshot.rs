//! Writes what both cameras see as PNGs, at 96x96, the same enlarged eight times, and 640x480:
//! `cargo run --release -p vela-sim --example snapshot -- FOLDER`.

use std::error::Error;
use std::path::Path;
use vela_sim::camera;
use vela_sim::render::render;

mod still_life;

fn main() -> Result<(), Box<dyn Error>> {
    let folder = std::env::args().nth(1).ok_or("expected the folder for the pictures")?;
    let drawing = still_life::drawing(&still_life::ABOVE)?;
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
