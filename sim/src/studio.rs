//! Pictures of a drawing with an embodiment's cameras. A drawing is cheap to make and to send, so that whoever moves
//! the world in real time need not wait for its pictures.

use crate::camera::{self, CameraView};
use crate::drawing::Drawing;
use crate::render::render;
use vela_embodiment::{Camera, Frame, Result, Stamp};

/// One picture per camera of a drawing.
pub fn photograph(cameras: &[Camera], drawing: &Drawing, stamp: Stamp) -> Result<Vec<Frame>> {
    let views = views(cameras, drawing)?;
    Ok(cameras
        .iter()
        .zip(&views)
        .map(|(camera, view)| Frame {
            camera: camera.name.clone(),
            width: camera.width,
            height: camera.height,
            rgb: render(drawing, view).into(),
            stamp,
        })
        .collect())
}

/// Where the cameras are in a drawing, in their order.
pub fn views(cameras: &[Camera], drawing: &Drawing) -> Result<Vec<CameraView>> {
    cameras.iter().map(|c| camera::view(&c.name, drawing, c.width, c.height)).collect()
}
