//! A thread that keeps the newest pictures of a moving world, so that who moves the world never waits for them.

use crate::camera::{self, CameraView};
use crate::drawing::Drawing;
use crate::render::render;
use std::sync::{Arc, Condvar, Mutex, MutexGuard, PoisonError};
use std::thread::JoinHandle;
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

#[derive(Default)]
struct Desk {
    /// The newest drawing that nobody has taken yet.
    waiting: Option<(Drawing, Stamp)>,
    newest: Vec<Frame>,
    /// Which episode the desk belongs to: a picture of the last one comes too late.
    episode: u64,
    closed: bool,
}

/// The thread and the desk that it shares with the world's owner. Ends when it is dropped.
pub struct Studio {
    cameras: Vec<Camera>,
    shared: Arc<(Mutex<Desk>, Condvar)>,
    thread: Option<JoinHandle<()>>,
}

impl Studio {
    /// Starts the thread.
    pub fn open(cameras: &[Camera]) -> Self {
        let shared = Arc::new((Mutex::new(Desk::default()), Condvar::new()));
        let (cameras, own) = (cameras.to_vec(), Arc::clone(&shared));
        let for_thread = cameras.clone();
        let thread = std::thread::spawn(move || work(&for_thread, &own));
        Self { cameras, shared, thread: Some(thread) }
    }

    /// A new episode: takes its first pictures at once, so that none of the last episode is left.
    pub fn begin(&self, drawing: &Drawing, stamp: Stamp) -> Result<()> {
        let first = photograph(&self.cameras, drawing, stamp)?;
        let mut desk = lock(&self.shared.0);
        desk.episode += 1;
        desk.waiting = None;
        desk.newest = first;
        Ok(())
    }

    /// Leaves a drawing to be pictured; one that nobody has begun with yet is replaced.
    pub fn submit(&self, drawing: Drawing, stamp: Stamp) {
        lock(&self.shared.0).waiting = Some((drawing, stamp));
        self.shared.1.notify_one();
    }

    /// The newest pictures; never waits for one in the making.
    pub fn newest(&self) -> Vec<Frame> {
        lock(&self.shared.0).newest.clone()
    }
}

impl Drop for Studio {
    fn drop(&mut self) {
        lock(&self.shared.0).closed = true;
        self.shared.1.notify_one();
        if let Some(thread) = self.thread.take() {
            // A thread that panicked has nothing left to give back.
            let _ = thread.join();
        }
    }
}

fn work(cameras: &[Camera], shared: &(Mutex<Desk>, Condvar)) {
    loop {
        let mut desk = lock(&shared.0);
        let (drawing, stamp, episode) = loop {
            if desk.closed {
                return;
            }
            match desk.waiting.take() {
                Some((drawing, stamp)) => break (drawing, stamp, desk.episode),
                None => desk = shared.1.wait(desk).unwrap_or_else(PoisonError::into_inner),
            }
        };
        drop(desk);
        // Names and sizes were checked when the episode began.
        let Ok(frames) = photograph(cameras, &drawing, stamp) else { continue };
        let mut desk = lock(&shared.0);
        if desk.episode == episode {
            desk.newest = frames;
        }
    }
}

fn lock(desk: &Mutex<Desk>) -> MutexGuard<'_, Desk> {
    desk.lock().unwrap_or_else(PoisonError::into_inner)
}
