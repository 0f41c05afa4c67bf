//! A ROS 2 arm that stands.

use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::thread::JoinHandle;
use std::time::Duration;
use vela_embodiment::Embodiment;
use vela_robots::ros2::keys::{self, Topic};
use vela_robots::ros2::messages::{JointState, encode};
use zenoh::{Session, Wait};

/// Its joint states come from this process for as long as it is there.
pub struct Standing(Arc<AtomicBool>, Option<JoinHandle<()>>);

impl Standing {
    /// An SO-101 that says its joints on this session.
    pub fn start(session: &Session) -> Result<Self, Box<dyn std::error::Error>> {
        let name = Embodiment::so101()?.joint_names().into_iter().map(str::to_owned).collect();
        let state = encode(&JointState { name, position: vec![0.2; 6], ..JointState::default() })?;
        let (session, speaking) = (session.clone(), Arc::new(AtomicBool::new(true)));
        let thread = std::thread::spawn({
            let speaking = speaking.clone();
            move || {
                let key = Topic::new("/joint_states", &keys::JOINT_STATE).key(0);
                while speaking.load(Ordering::SeqCst) {
                    let _ = session.put(key.as_str(), state.clone()).wait();
                    std::thread::sleep(Duration::from_millis(10));
                }
            }
        });
        Ok(Self(speaking, Some(thread)))
    }
}

impl Drop for Standing {
    fn drop(&mut self) {
        self.0.store(false, Ordering::SeqCst);
        let _ = self.1.take().map(JoinHandle::join);
    }
}
