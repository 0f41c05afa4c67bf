//! `vela demo --serve`: while the arm works, the page, with what its front camera sees and the VLM inside the binary to
//! ask about it.

use crate::realtime::Moment;
use crate::serve::{self, Loading};
use anyhow::{Context, Result};
use std::net::{IpAddr, TcpListener};
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::thread::JoinHandle;
use tokio::sync::oneshot;
use vela_embodiment::{MonotonicClock, Stamp};
use vela_robots::Latest;
use vela_serve::{Camera, ServerConfig, Shot};

/// Edge of a picture, pixels: square, as those that the VLM was trained on.
const EDGE_PX: u32 = 384;

/// What is going on.
#[derive(Default)]
struct Stage {
    /// Where the arm shows itself, and what it was asked to do.
    playing: Option<(Arc<Latest<Moment>>, String)>,
    /// The last picture that was taken, and of which moment it is.
    taken: Option<(Stamp, Shot)>,
}

impl Stage {
    /// What the front camera sees now; rendered once for each moment, however many look.
    fn shot(&mut self) -> Result<Shot, String> {
        let none = || "the arm does not stand yet: try again".to_owned();
        let (moments, instruction) = self.playing.as_ref().ok_or_else(none)?;
        let moment = moments.get().ok_or_else(none)?;
        if let Some((_, shot)) = self.taken.as_ref().filter(|(stamp, _)| *stamp == moment.stamp) {
            return Ok(shot.clone());
        }
        let view =
            vela_sim::camera::view("front", &moment.drawing, EDGE_PX, EDGE_PX).map_err(|e| e.to_string())?;
        let rgb = vela_sim::render::render(&moment.drawing, &view);
        let mut file = std::io::Cursor::new(Vec::new());
        let (colours, format) = (image::ExtendedColorType::Rgb8, image::ImageFormat::Png);
        image::write_buffer_with_format(&mut file, &rgb, EDGE_PX, EDGE_PX, colours, format)
            .map_err(|e| e.to_string())?;
        let shot = Shot { png: file.into_inner().into(), caption: instruction.clone() };
        self.taken = Some((moment.stamp, shot.clone()));
        Ok(shot)
    }
}

/// The page beside a demo, on a thread of its own.
pub struct Live {
    stage: Arc<Mutex<Stage>>,
    /// Set when somebody ends the program.
    ended: Arc<AtomicBool>,
    end: oneshot::Sender<()>,
    thread: JoinHandle<()>,
}

fn held(stage: &Mutex<Stage>) -> MutexGuard<'_, Stage> {
    stage.lock().unwrap_or_else(PoisonError::into_inner)
}

impl Live {
    /// Serves at an address, and says on standard error where.
    pub fn start(host: IpAddr, port: u16) -> Result<Self> {
        let listener = TcpListener::bind((host, port)).with_context(|| format!("{host}:{port}"))?;
        listener.set_nonblocking(true)?;
        let at = listener.local_addr()?;
        // One thread: the policy beside it has a deadline.
        let service = serve::service(&Loading::builtin(1), 4, Arc::new(MonotonicClock::new()))?;
        let (stage, ended): (Arc<Mutex<Stage>>, Arc<AtomicBool>) = Default::default();
        let watched = stage.clone();
        let camera = Camera::new(move || held(&watched).shot());
        let limits = ServerConfig { camera: Some(camera), ..ServerConfig::default() };
        let runtime = tokio::runtime::Builder::new_multi_thread().worker_threads(1).enable_all().build()?;
        let ((end, over), told) = (oneshot::channel(), ended.clone());
        let guard = runtime.enter();
        let listener = tokio::net::TcpListener::from_std(listener)?;
        let signalled = serve::signalled()?;
        drop(guard);
        let thread = std::thread::Builder::new().name("vela-page".to_owned()).spawn(move || {
            let ending = async {
                tokio::select! {
                    () = signalled => told.store(true, Ordering::Release),
                    _ = over => {}
                }
            };
            runtime.block_on(vela_serve::run(listener, Arc::new(service), limits, ending));
        })?;
        eprintln!("the arm's camera, and a page to ask about it: http://{at}");
        Ok(Self { stage, ended, end, thread })
    }

    /// From now on an arm is seen that was asked to do something.
    pub fn show(&self, moments: &Arc<Latest<Moment>>, instruction: &str) {
        held(&self.stage).playing = Some((moments.clone(), instruction.to_owned()));
    }

    /// Whether somebody ended the program.
    pub fn is_ended(&self) -> bool {
        self.ended.load(Ordering::Acquire)
    }

    /// Ends the server after the answers that it is giving.
    pub fn finish(self) -> Result<()> {
        // It may have ended by itself.
        let _ = self.end.send(());
        self.thread.join().map_err(|_| anyhow::anyhow!("the page's thread died"))
    }
}
