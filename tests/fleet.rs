//! The fleet's files (`configs/fleet`, explained in `docs/fleet.md`), started: a router, arms, a policy and an operator
//! with certificates made here. Only the address, the paths and, where a test says so, one line differ from what is
//! shipped.

mod running;

use rcgen::{BasicConstraints, CertificateParams, CertifiedIssuer, DnType, IsCa, KeyPair};
use running::Running;
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};
use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::time::{Duration, Instant};
use vela_embodiment::{Embodiment, EmergencyStop, Frame, InferOptions, Observation, Policy, Stamp};
use vela_robots::survey::survey;
use vela_robots::{RemotePolicy, Side, listen_for_stop, open_session, press_stop, release_stop};
use zenoh::{Session, Wait};

type Fallible<T> = Result<T, Box<dyn std::error::Error>>;

const NAMES: [&str; 4] = ["arm1", "arm2", "policy1", "operator"];
const ADDRESS: &str = "router.fleet.example:7447";

/// A router and everything that its files name, in a folder of its own.
struct Fleet {
    dir: tempfile::TempDir,
    port: u16,
    router: Option<Session>,
    written: AtomicUsize,
}

fn params(name: &str, addresses: &[&str]) -> Fallible<CertificateParams> {
    let mut params = CertificateParams::new(addresses.iter().map(|a| (*a).to_owned()).collect::<Vec<_>>())?;
    params.distinguished_name.push(DnType::CommonName, name);
    Ok(params)
}

/// An authority with a certificate for the router and for each of the others, in `dir`.
fn certify(dir: &Path) -> Fallible<()> {
    std::fs::create_dir_all(dir)?;
    let mut authority = params("the fleet", &[])?;
    authority.is_ca = IsCa::Ca(BasicConstraints::Unconstrained);
    let authority = CertifiedIssuer::self_signed(authority, KeyPair::generate()?)?;
    std::fs::write(dir.join("ca.pem"), authority.pem())?;
    for name in NAMES.iter().chain(&["router"]) {
        let key = KeyPair::generate()?;
        let addresses: &[&str] = if *name == "router" { &["127.0.0.1"] } else { &[] };
        let certificate = params(name, addresses)?.signed_by(&key, &authority)?;
        std::fs::write(dir.join(format!("{name}.pem")), certificate.pem())?;
        std::fs::write(dir.join(format!("{name}.key")), key.serialize_pem())?;
    }
    Ok(())
}

impl Fleet {
    fn start() -> Fallible<Self> {
        let dir = tempfile::tempdir()?;
        certify(dir.path())?;
        // Somebody else's, with the same names.
        certify(&dir.path().join("strangers"))?;
        let users: Vec<String> = NAMES.iter().map(|name| format!("{name}:change-me-{name}\n")).collect();
        std::fs::write(dir.path().join("users.txt"), users.concat())?;
        let mut fleet = Self { dir, port: 0, router: None, written: AtomicUsize::new(0) };
        // Another process may take the port between our look and zenoh's.
        for _ in 0..5 {
            fleet.port = std::net::TcpListener::bind(("127.0.0.1", 0))?.local_addr()?.port();
            if fleet.open_router().is_ok() {
                return Ok(fleet);
            }
        }
        fleet.open_router()?;
        Ok(fleet)
    }

    /// What `zenohd --config router.json5` does.
    fn open_router(&mut self) -> Fallible<()> {
        let config = zenoh::Config::from_file(self.file("router", &[])?).map_err(|e| e.to_string())?;
        self.router = Some(zenoh::open(config).wait().map_err(|e| e.to_string())?);
        Ok(())
    }

    /// A shipped file at this test's address and paths, with changes; each must change something.
    fn file(&self, name: &str, changes: &[(&str, &str)]) -> Fallible<PathBuf> {
        let shipped = Path::new(env!("CARGO_MANIFEST_DIR")).join(format!("configs/fleet/{name}.json5"));
        let mut text = std::fs::read_to_string(&shipped)?;
        let own = format!("{}/", self.dir.path().display());
        let address = format!("127.0.0.1:{}", self.port);
        for (from, to) in [(ADDRESS, address.as_str()), ("/etc/vela/", own.as_str())].iter().chain(changes) {
            assert!(text.contains(from), "{} has no '{from}'", shipped.display());
            text = text.replace(from, to);
        }
        let number = self.written.fetch_add(1, Ordering::SeqCst);
        let path = self.dir.path().join(format!("{name}-{number}.json5"));
        std::fs::write(&path, text)?;
        Ok(path)
    }

    fn open(&self, name: &str, changes: &[(&str, &str)]) -> Fallible<Session> {
        Ok(open_session(Side::Robot, Some(&self.file(name, changes)?))?)
    }

    fn vela(&self, args: &[&str], name: &str, changes: &[(&str, &str)]) -> Fallible<Command> {
        let mut command = Command::new(env!("CARGO_BIN_EXE_vela"));
        command.args(args).arg("--zenoh").arg(self.file(name, changes)?).stdin(Stdio::null());
        Ok(command)
    }
}

fn eventually(mut done: impl FnMut() -> bool) -> bool {
    (0..600).any(|_| {
        let is = done();
        if !is {
            std::thread::sleep(Duration::from_millis(50));
        }
        is
    })
}

fn observation() -> Fallible<Observation> {
    let robot = Embodiment::so101()?;
    let frame = |c: &vela_embodiment::Camera| Frame {
        camera: c.name.clone(),
        width: c.width,
        height: c.height,
        rgb: vec![100; (c.width * c.height * 3) as usize].into(),
        stamp: Stamp(1),
    };
    let frames = robot.cameras.iter().map(frame).collect();
    let joint_positions = vec![0.0; robot.joints.len()];
    Ok(Observation { frames, joint_positions, instruction: "pick up the red cube".into(), stamp: Stamp(1) })
}

#[test]
fn an_arm_with_its_certificate_and_user_gets_chunks_through_the_router() -> Fallible<()> {
    let mut fleet = Fleet::start()?;
    let act = fleet
        .vela(&["act", "--key", "vela/arm1", "--for-secs", "240"], "policy", &[])?
        .stderr(Stdio::null())
        .spawn()?;
    let _act = Running(act);
    let arm = fleet.open("arm", &[])?;
    let mut remote = RemotePolicy::new(&arm, "vela/arm1", &Embodiment::so101()?, 10.0)?;
    remote.wait_ready(60.0)?;
    let history = [observation()?];
    for _ in 0..3 {
        assert!(!remote.infer(&history, &InferOptions::default())?.actions.is_empty());
    }
    // An operator sees both from anywhere.
    let seen = fleet.vela(&["doctor", "--secs", "0.2", "--json"], "operator", &[])?.output()?;
    let seen: serde_json::Value = serde_json::from_slice(&seen.stdout)?;
    assert_eq!(seen["seen"]["policies"], serde_json::json!(["vela/arm1"]), "{seen}");

    // The router goes: nobody is there any more. It comes back: so do they, by themselves.
    let router = fleet.router.take().ok_or("no router")?;
    let gone = Instant::now();
    router.close().wait().map_err(|e| e.to_string())?;
    drop(router);
    assert!(eventually(|| !remote.alive()));
    let missed = gone.elapsed().as_secs_f64() * 1e3;
    assert!(remote.infer(&history, &InferOptions::default()).is_err());
    fleet.open_router()?;
    let back = Instant::now();
    assert!(eventually(|| remote.infer(&history, &InferOptions::default()).is_ok()));
    let again = back.elapsed().as_secs_f64() * 1e3;
    eprintln!(
        "fault: the fleet's router goes and comes back: the policy missed after {missed:.0} ms, chunks again \
         {again:.0} ms after it was back"
    );
    Ok(())
}

/// `vela act` for both arms.
fn act(fleet: &Fleet, name: &str) -> Fallible<Running> {
    let args = ["act", "--key", "vela/arm1", "--key", "vela/arm2", "--for-secs", "240"];
    Ok(Running(fleet.vela(&args, name, &[])?.stdout(Stdio::null()).stderr(Stdio::null()).spawn()?))
}

#[test]
fn two_policies_serve_two_arms_one_is_killed_and_no_arm_serves_another() -> Fallible<()> {
    let fleet = Fleet::start()?;
    let arms = [fleet.open("arm", &[])?, fleet.open("arm", &[("arm1", "arm2")])?];
    let operator = fleet.open("operator", &[])?;
    let so101 = Embodiment::so101()?;
    let remote = |arm: &Session, key: &str| RemotePolicy::new(arm, key, &so101, 5.0);
    let mut remotes = [remote(&arms[0], "vela/arm1")?, remote(&arms[1], "vela/arm2")?];

    // With the first arm's certificate a policy drives that arm and not the second.
    let own = act(&fleet, "arm")?;
    remotes[0].wait_ready(60.0)?;
    let none = |remote: &mut RemotePolicy| {
        let said = remote.wait_ready(1.0).err().map(|e| e.to_string()).unwrap_or_default();
        assert!(said.contains("no policy at vela/arm2"), "{said}");
    };
    none(&mut remotes[1]);
    drop(own);
    assert!(eventually(|| !remotes[0].alive()));

    // Two policies, both for both arms; each arm asks the first, until it is killed.
    let mut first = act(&fleet, "policy")?;
    for remote in &mut remotes {
        remote.wait_ready(60.0)?;
    }
    let _second = act(&fleet, "policy")?;
    let served = ["vela/arm1", "vela/arm1", "vela/arm2", "vela/arm2"];
    assert!(eventually(|| survey(&operator, 0, 0.1).is_ok_and(|seen| seen.policies == served)));
    // The first arm asks in nobody's name but its own.
    none(&mut remote(&arms[0], "vela/arm2")?);

    let history = [observation()?];
    let (mut lost, mut longest) = ([0, 0], Duration::ZERO);
    for k in 0..20 {
        if k == 10 {
            // SIGKILL: a question is on its way, or will be in a moment.
            first.0.kill()?;
        }
        for (remote, lost) in remotes.iter_mut().zip(&mut lost) {
            let asked = Instant::now();
            *lost += usize::from(remote.infer(&history, &InferOptions::default()).is_err());
            if k >= 10 {
                longest = longest.max(asked.elapsed());
            }
        }
    }
    assert!(lost.iter().all(|lost| *lost <= 1), "{lost:?} chunks lost by a kill");
    eprintln!(
        "fault: a fleet's policy server killed, another serves its two arms too: {lost:?} of 20 chunks of each lost, the \
         slowest answer after the kill took {:.0} ms",
        longest.as_secs_f64() * 1e3
    );
    Ok(())
}

#[test]
fn whoever_cannot_show_both_is_refused_and_so_is_a_strange_router() -> Fallible<()> {
    let fleet = Fleet::start()?;
    let soon = ("timeout_ms: 5000", "timeout_ms: 1500");
    let own = |file: &str| format!("{}/{file}", fleet.dir.path().display());
    let strange = |file: &str| format!("{}/strangers/{file}", fleet.dir.path().display());
    let (certificate, key, authority) = (own("arm1.pem"), own("arm1.key"), own("ca.pem"));
    let (other_certificate, other_key, other_authority) =
        (strange("arm1.pem"), strange("arm1.key"), strange("ca.pem"));
    let shown = format!("connect_certificate: \"{certificate}\",");
    let with = format!("connect_private_key: \"{key}\",");
    let user = "auth: { usrpwd: { user: \"arm1\", password: \"change-me-arm1\" } },";
    let plain = format!("tls/127.0.0.1:{}", fleet.port);
    let tcp = plain.replace("tls/", "tcp/");
    let cases: [(&str, Vec<(&str, &str)>); 7] = [
        ("no certificate", vec![(&shown, ""), (&with, ""), ("enable_mtls: true", "enable_mtls: false")]),
        ("a stranger's certificate", vec![(&certificate, &other_certificate), (&key, &other_key)]),
        ("another password", vec![("change-me-arm1", "change-me-arm2")]),
        ("an unknown user", vec![("user: \"arm1\"", "user: \"arm3\"")]),
        ("no user", vec![(user, "")]),
        ("no TLS", vec![(&plain, &tcp), ("[\"tls\"]", "[\"tcp\"]")]),
        ("a router of strangers", vec![(&authority, &other_authority)]),
    ];
    std::thread::scope(|scope| -> Fallible<()> {
        let mut tried = Vec::new();
        for (name, changes) in &cases {
            let changes: Vec<(&str, &str)> = changes.iter().copied().chain([soon]).collect();
            let path = fleet.file("arm", &changes)?;
            tried.push((name, scope.spawn(move || open_session(Side::Robot, Some(&path)).map(|_| ()))));
        }
        for (name, thread) in tried {
            let opened = thread.join().map_err(|_| "it died")?;
            let said = opened.err().ok_or(format!("{name}: it was let in"))?.to_string();
            assert!(said.contains("zenoh session of"), "{name}: {said}");
        }
        Ok(())
    })?;
    // With nothing changed it is let in.
    fleet.open("arm", &[soon])?;
    Ok(())
}

/// What came at an arm.
#[derive(Default)]
struct Heard {
    stop: EmergencyStop,
    commands: Arc<AtomicUsize>,
}

const TRAJECTORY: &str = "1/arm_controller/joint_trajectory/type/hash";

#[test]
fn an_arm_commands_no_other_arm_and_a_policy_stops_none() -> Fallible<()> {
    let fleet = Fleet::start()?;
    let as_arm2 = [("arm1", "arm2")];
    let (arm, other) = (fleet.open("arm", &[])?, fleet.open("arm", &as_arm2)?);
    let (commander, operator) = (fleet.open("arm", &[])?, fleet.open("operator", &[])?);
    let policy = fleet.open("policy", &[])?;
    // The first arm's certificate with the second's user is neither of them.
    let crossed =
        [("user: \"arm1\", password: \"change-me-arm1\"", "user: \"arm2\", password: \"change-me-arm2\"")];
    let crossed = fleet.open("arm", &crossed)?;

    let heard = Heard::default();
    let _stop = listen_for_stop(&arm, "vela/arm1", &heard.stop)?;
    let commands = heard.commands.clone();
    let ear = arm.declare_subscriber("1/arm_controller/joint_trajectory/*/*").callback(move |_| {
        commands.fetch_add(1, Ordering::SeqCst);
    });
    let _ear = ear.wait().map_err(|e| e.to_string())?;
    let put = |session: &Session, key: &str| session.put(key, "go").wait().map_err(|e| e.to_string());

    // Its own commander and the operator reach the arm.
    assert!(eventually(|| put(&commander, TRAJECTORY).is_ok() && heard.commands.load(Ordering::SeqCst) > 0));
    press_stop(&operator, "vela/arm1", "smoke")?;
    assert!(eventually(|| heard.stop.pressed()));
    release_stop(&operator, "vela/arm1")?;
    assert!(eventually(|| !heard.stop.pressed()));

    std::thread::sleep(Duration::from_millis(300));
    let before = heard.commands.load(Ordering::SeqCst);
    for _ in 0..20 {
        for session in [&other, &policy, &crossed] {
            put(session, TRAJECTORY)?;
            put(session, "vela/arm1/stop")?;
        }
        // An operator looks and stops; moving an arm is not among it.
        put(&operator, TRAJECTORY)?;
    }
    assert!(press_stop(&other, "vela/arm1", "mine").is_err_and(|e| e.to_string().contains("no arm listens")));
    let pressed = fleet.vela(&["robot", "--stop", "vela/arm1"], "arm", &as_arm2)?.output()?;
    assert_eq!(pressed.status.code(), Some(1), "{pressed:?}");

    // Whatever was to come has come when what is allowed comes again.
    put(&commander, TRAJECTORY)?;
    assert!(eventually(|| heard.commands.load(Ordering::SeqCst) > before));
    std::thread::sleep(Duration::from_millis(300));
    assert_eq!(heard.commands.load(Ordering::SeqCst), before + 1);
    assert!(!heard.stop.pressed(), "{}", heard.stop.reason());
    let pressed = fleet.vela(&["robot", "--stop", "vela/arm1"], "operator", &[])?.output()?;
    assert!(pressed.status.success(), "{pressed:?}");
    assert!(eventually(|| heard.stop.pressed()));
    Ok(())
}
