//! One policy and several robots, each with a key, questions and a patience of its own.

use crate::arm::{FakeArm, FakePolicy, Switches, eventually};
use std::collections::{BTreeMap, BTreeSet};
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Mutex, PoisonError};
use std::thread::JoinHandle;
use std::time::Duration;
use vela_embodiment::{
    ActionChunk, Embodiment, Error, InferOptions, Observation, Policy, PolicySpec, Result, Robot,
};
use vela_robots::survey::survey;
use vela_robots::wire::{answer, ask, hello, load};
use vela_robots::{RemotePolicy, ServeEvent, ServeReport, Served, loopback_pair, serve_robots};
use zenoh::{Session, Wait};

/// A policy that serves on a thread of its own until it is shut down, and what it told.
struct Server {
    shutdown: Arc<AtomicBool>,
    refusals: Arc<Mutex<Vec<String>>>,
    thread: JoinHandle<Result<ServeReport>>,
}

fn serve(session: &Session, bases: &[&str], mut policy: impl Policy + 'static) -> Server {
    let shutdown = Arc::new(AtomicBool::new(false));
    let refusals: Arc<Mutex<Vec<String>>> = Arc::default();
    let bases: Vec<String> = bases.iter().map(ToString::to_string).collect();
    let thread = std::thread::spawn({
        let (session, shutdown, refusals) = (session.clone(), shutdown.clone(), refusals.clone());
        move || {
            let bases: Vec<&str> = bases.iter().map(String::as_str).collect();
            serve_robots(&session, &bases, &mut policy, &shutdown, &mut |event| {
                if let ServeEvent::Refused(why) = event {
                    refusals.lock().unwrap_or_else(PoisonError::into_inner).push(why);
                }
            })
        }
    });
    Server { shutdown, refusals, thread }
}

impl Server {
    /// How many refusals with these words it told.
    fn told(&self, words: &str) -> usize {
        let refusals = self.refusals.lock().unwrap_or_else(PoisonError::into_inner);
        refusals.iter().filter(|why| why.contains(words)).count()
    }

    fn end(self) -> Result<ServeReport> {
        self.shutdown.store(true, Ordering::SeqCst);
        self.thread.join().map_err(|_| Error::Policy("the server's thread died".into()))?
    }
}

fn died<T>(thread: std::thread::Result<T>) -> Result<T> {
    thread.map_err(|_| Error::Policy("a thread died".into()))
}

fn answered(count: u64) -> Served {
    Served { answered: count, ..Served::default() }
}

#[test]
fn two_robots_with_keys_of_their_own_are_served_at_once() -> Result<()> {
    for bases in [&["vela/left", "vela/right"][..], &["vela/*"]] {
        let (robot, far) = loopback_pair()?;
        let server = serve(&far, bases, FakePolicy::new()?);
        let ask = |base: &'static str, first: u64| -> Result<RemotePolicy> {
            let mut remote = RemotePolicy::new(&robot, base, &Embodiment::so101()?, 60.0)?;
            remote.wait_ready(30.0)?;
            let (mut near, mut arm) = (FakePolicy::new()?, FakeArm::real_time()?);
            for seed in first..first + 20 {
                let options = InferOptions { seed, ..InferOptions::default() };
                let history = [arm.observe()?];
                assert_eq!(remote.infer(&history, &options)?, near.infer(&history, &options)?, "{base}");
            }
            Ok(remote)
        };
        let both = std::thread::scope(|scope| {
            let left = scope.spawn(|| ask("vela/left", 0));
            let right = ask("vela/right", 1000);
            Ok::<_, Error>([died(left.join())??, right?])
        })?;
        // A doctor beside them finds who serves and who asks whom.
        let seen = survey(&robot, 0, 0.1)?;
        assert_eq!(seen.policies, bases);
        let of = bases.join(", ");
        let asking: Vec<(&str, Option<&str>)> =
            seen.robots.iter().map(|robot| (robot.key.as_str(), robot.asks.as_deref())).collect();
        assert_eq!(asking, [("vela/left", Some(of.as_str())), ("vela/right", Some(of.as_str()))]);
        // A third whose cameras differ is refused, and the others go on.
        let mut other = Embodiment::so101()?;
        other.cameras[0].width = 64;
        if bases == ["vela/*"] {
            let mut other = RemotePolicy::new(&robot, "vela/other", &other, 60.0)?;
            let text = other.wait_ready(30.0).err().map(|e| e.to_string()).unwrap_or_default();
            assert!(text.contains("camera 'front' is 64x96 against 96x96"), "{text}");
        }
        drop(both);
        let report = server.end()?;
        let expected =
            [("vela/left", 20), ("vela/right", 20)].map(|(base, n)| (base.to_owned(), answered(n)));
        assert_eq!(report.robots, BTreeMap::from(expected));
        assert_eq!((report.answered, report.refused, report.infer_secs.len()), (40, 0, 40));
    }
    Ok(())
}

/// Says how often this robot has asked.
struct Counting {
    inner: FakePolicy,
    robot: String,
    asked: BTreeMap<String, u32>,
}

impl Policy for Counting {
    fn spec(&self) -> &PolicySpec {
        &self.inner.spec
    }

    fn infer(&mut self, history: &[Observation], options: &InferOptions) -> Result<ActionChunk> {
        let asked = self.asked.entry(self.robot.clone()).or_default();
        *asked += 1;
        let said = f64::from(*asked);
        let chunk = self.inner.infer(history, options)?;
        Ok(ActionChunk { actions: vec![vec![said; 6]; chunk.actions.len()], ..chunk })
    }

    fn turn_to(&mut self, robot: &str) {
        robot.clone_into(&mut self.robot);
    }
}

#[test]
fn what_a_policy_keeps_of_one_robot_never_shows_in_an_answer_to_another() -> Result<()> {
    let (robot, far) = loopback_pair()?;
    let counting = Counting { inner: FakePolicy::new()?, robot: String::new(), asked: BTreeMap::new() };
    let server = serve(&far, &["vela/left", "vela/right"], counting);
    let so101 = Embodiment::so101()?;
    // Two programs beside one arm are two robots as well.
    let mut remotes = ["vela/left", "vela/right", "vela/right"]
        .map(|base| RemotePolicy::new(&robot, base, &so101, 60.0))
        .into_iter()
        .collect::<Result<Vec<_>>>()?;
    let history = [FakeArm::lockstep()?.observe()?];
    remotes.iter_mut().try_for_each(|remote| remote.wait_ready(30.0))?;
    for round in 1..=5 {
        for remote in &mut remotes {
            let said = remote.infer(&history, &InferOptions::default())?.actions[0][0];
            assert_eq!(said, f64::from(round));
        }
    }
    let report = server.end()?;
    assert_eq!(report.robots.get("vela/right"), Some(&answered(10)));
    Ok(())
}

/// One query, and what came of it.
fn query(session: &Session, key: &str, payload: Vec<u8>) -> Result<std::result::Result<Vec<u8>, String>> {
    let link = |error: zenoh::Error| Error::Link(error.to_string());
    let replies = session.get(key).payload(payload).timeout(Duration::from_secs(60)).wait().map_err(link)?;
    let reply = replies.recv().map_err(link)?;
    Ok(match reply.result() {
        Ok(sample) => Ok(sample.payload().to_bytes().into_owned()),
        Err(error) => Err(String::from_utf8_lossy(&error.payload().to_bytes()).into_owned()),
    })
}

fn question(robot: &str, sequence: u64, patience_secs: f64) -> Result<Vec<u8>> {
    let history = vec![FakeArm::lockstep()?.observe()?];
    let options = InferOptions::default();
    ask::encode(&ask::Ask { robot: robot.into(), sequence, patience_secs, history, options })
}

#[test]
fn a_robot_says_hello_first_and_its_numbers_rise() -> Result<()> {
    let (robot, far) = loopback_pair()?;
    let policy = FakePolicy::new()?;
    let calls = policy.switches.calls.clone();
    let server = serve(&far, &["vela/*"], policy);
    let place = |base: &str, what: &str| format!("{base}/policy/{}/{what}", far.zid());
    let mut remote = RemotePolicy::new(&robot, "vela/ready", &Embodiment::so101()?, 60.0)?;
    remote.wait_ready(30.0)?;
    let asks = |base: &str, sequence: u64| -> Result<String> {
        let reply = query(&robot, &place(base, "chunk"), question("me", sequence, 60.0)?)?;
        Ok(match reply {
            Ok(bytes) => answer::decode(&bytes)?.sequence.to_string(),
            Err(why) => why,
        })
    };
    assert!(asks("vela/a", 1)?.contains("expected a hello of robot 'me' at vela/a first"));
    let hello = hello::Hello { robot: "me".into(), embodiment: Embodiment::so101()? };
    let welcome = query(&robot, &place("vela/a", "hello"), hello::encode_hello(&hello)?)?;
    hello::decode_welcome(&welcome.map_err(Error::Link)?)?.into_spec()?;
    assert_eq!((asks("vela/a", 4)?, asks("vela/a", 5)?), ("4".into(), "5".into()));
    assert!(asks("vela/a", 5)?.contains("expected a question after number 5, got number 5"));
    assert!(asks("vela/b", 6)?.contains("at vela/b first"), "the welcome was for another key");
    assert!(asks("vela/*", 6)?.contains("expected the question of one robot"));
    let torn = query(&robot, &place("vela/a", "chunk"), b"nonsense".to_vec())?;
    assert!(torn.is_err_and(|why| why.contains("starts with VELA")));
    assert_eq!(asks("vela/a", 6)?, "6");
    let report = server.end()?;
    assert_eq!(calls.load(Ordering::SeqCst), 3, "nothing refused was thought about");
    assert_eq!(report.robots.get("vela/a").map(|a| (a.answered, a.refused)), Some((3, 3)));
    assert_eq!((report.answered, report.refused), (3, 5));
    Ok(())
}

/// A fake policy that thinks until it is let go, and its switches.
fn held() -> Result<(FakePolicy, Switches)> {
    let policy = FakePolicy::new()?;
    let switches = policy.switches.clone();
    switches.held.store(true, Ordering::SeqCst);
    Ok((policy, switches))
}

#[test]
fn a_slow_policy_thinks_about_no_question_that_nobody_waits_for() -> Result<()> {
    let (robot, far) = loopback_pair()?;
    let (policy, switches) = held()?;
    let server = serve(&far, &["vela/*"], policy);
    let (so101, history) = (Embodiment::so101()?, [FakeArm::lockstep()?.observe()?]);
    let mut patient = RemotePolicy::new(&robot, "vela/patient", &so101, 60.0)?;
    patient.wait_ready(30.0)?;
    let asking = std::thread::spawn({
        let history = history.clone();
        move || patient.infer(&history, &InferOptions::default())
    });
    assert!(eventually(|| switches.calls.load(Ordering::SeqCst) == 1));
    let mut hasty = RemotePolicy::new(&robot, "vela/hasty", &so101, 0.5)?;
    // Each question takes the place of the one before; the last is too old when its turn comes.
    let mut asked = 0;
    assert!(eventually(|| {
        let text = hasty.infer(&history, &InferOptions::default()).err().map(|e| e.to_string());
        asked += u64::from(text.is_some_and(|text| text.contains("chunk: no answer within 0.50 s")));
        asked == 4
    }));
    std::thread::sleep(Duration::from_millis(600));
    switches.held.store(false, Ordering::SeqCst);
    died(asking.join())??;
    assert!(eventually(|| server.told("vela/hasty: it waited") == 1));
    assert_eq!(server.told("came before the turn of number"), 3);
    assert_eq!(switches.calls.load(Ordering::SeqCst), 1, "no thought was given to four dead questions");
    // It is answered again as soon as there is time for it.
    let mut answers = 1;
    assert!(eventually(|| {
        let answer = hasty.infer(&history, &InferOptions::default()).is_ok();
        answers += u64::from(answer);
        answer
    }));
    let report = server.end()?;
    let hasty = report.robots.get("vela/hasty").copied().unwrap_or_default();
    assert_eq!((report.answered, hasty.answered, hasty.superseded), (answers, 1, 3));
    assert!(hasty.stale >= 1 && hasty.refused == hasty.stale + hasty.superseded, "{hasty:?}");
    Ok(())
}

/// Who was asked, in order.
#[derive(Clone, Default)]
struct Turns(Arc<Mutex<Vec<String>>>);

struct Watched {
    inner: FakePolicy,
    turns: Turns,
}

impl Policy for Watched {
    fn spec(&self) -> &PolicySpec {
        &self.inner.spec
    }

    fn infer(&mut self, history: &[Observation], options: &InferOptions) -> Result<ActionChunk> {
        self.inner.infer(history, options)
    }

    fn turn_to(&mut self, robot: &str) {
        let base = robot.split(' ').next().unwrap_or_default().to_owned();
        self.turns.0.lock().unwrap_or_else(PoisonError::into_inner).push(base);
    }
}

#[test]
fn a_chatty_robot_takes_no_turn_from_another_and_the_load_tells_who_waits() -> Result<()> {
    let (robot, far) = loopback_pair()?;
    let (inner, switches) = held()?;
    let turns = Turns::default();
    let server = serve(&far, &["vela/*"], Watched { inner, turns: turns.clone() });
    let place = |base: &str, what: &str| format!("{base}/policy/{}/{what}", far.zid());
    let busy = || -> Result<f64> {
        let bytes = query(&robot, &place("vela/anyone", "load"), Vec::new())?.map_err(Error::Link)?;
        Ok(load::decode(&bytes)?.busy)
    };
    let (so101, history) = (Embodiment::so101()?, [FakeArm::lockstep()?.observe()?]);
    let mut calm = RemotePolicy::new(&robot, "vela/calm", &so101, 60.0)?;
    calm.wait_ready(30.0)?;
    assert_eq!(busy()?, 0.1, "one robot has come and not asked yet");
    let hello = hello::Hello { robot: "chatty".into(), embodiment: so101 };
    query(&robot, &place("vela/chatty", "hello"), hello::encode_hello(&hello)?)?.map_err(Error::Link)?;
    // Fifty questions of one robot at once; the replies are nobody's business.
    let chatter = |numbers: std::ops::RangeInclusive<u64>| -> Result<()> {
        for number in numbers {
            let get = robot.get(place("vela/chatty", "chunk")).payload(question("chatty", number, 60.0)?);
            let sent = get.timeout(Duration::from_secs(60)).callback(|_| {}).wait();
            sent.map_err(|error| Error::Link(error.to_string()))?;
        }
        Ok(())
    };
    chatter(1..=1)?;
    assert!(eventually(|| switches.calls.load(Ordering::SeqCst) == 1));
    chatter(2..=50)?;
    let waits = |at_least: f64| eventually(|| busy().is_ok_and(|busy| busy >= at_least));
    assert!(waits(2.0), "one is thought about and one waits, however often it was asked: {:?}", busy());
    let asking = std::thread::spawn(move || calm.infer(&history, &InferOptions::default()));
    assert!(waits(3.0), "{:?}", busy());
    chatter(51..=100)?;
    // A question after them in the same link: when it is refused they have come.
    let twice = query(&robot, &place("vela/chatty", "chunk"), question("chatty", 100, 60.0)?)?;
    assert!(twice.is_err_and(|why| why.contains("after number 100")));
    let full = busy()?;
    assert!((3.0..4.0 + 1e-9).contains(&full), "{full}");
    switches.held.store(false, Ordering::SeqCst);
    died(asking.join())??;
    let report = server.end()?;
    let order = turns.0.lock().unwrap_or_else(PoisonError::into_inner).clone();
    assert_eq!(order, ["vela/chatty", "vela/chatty", "vela/calm"], "a hundred questions, two turns");
    let chatty = report.robots.get("vela/chatty").copied().unwrap_or_default();
    assert_eq!(chatty, Served { answered: 2, refused: 99, stale: 0, superseded: 98 });
    Ok(())
}

/// A session that listens at or connects to these endpoints. Patient: a starved machine must not look like a dead peer.
fn open(listen: &str, connect: &str) -> Result<Session> {
    let text = format!(
        "{{mode: 'peer', listen: {{endpoints: [{listen}]}}, connect: {{endpoints: [{connect}]}}, \
         scouting: {{multicast: {{enabled: false}}, gossip: {{enabled: false}}}}, \
         transport: {{link: {{tx: {{lease: 60000}}}}, shared_memory: {{enabled: false}}}}}}"
    );
    let link = |error: zenoh::Error| Error::Link(error.to_string());
    zenoh::open(zenoh::Config::from_json5(&text).map_err(link)?).wait().map_err(link)
}

/// A session that two others can reach at a free port, and these two.
fn between() -> Result<[Session; 3]> {
    let mut last = Error::Link("no port".into());
    // Another process may take the port between our look and zenoh's.
    for _ in 0..5 {
        let port = std::net::TcpListener::bind(("127.0.0.1", 0)).and_then(|listener| listener.local_addr());
        let endpoint = format!("'tcp/127.0.0.1:{}'", port.map_err(|e| Error::Link(e.to_string()))?.port());
        match open(&endpoint, "") {
            Ok(middle) => return Ok([middle, open("", &endpoint)?, open("", &endpoint)?]),
            Err(error) => last = error,
        }
    }
    Err(last)
}

/// Whichever would be asked otherwise, its load decides.
#[test]
fn robots_that_come_choose_the_server_that_has_time() -> Result<()> {
    let [robots, here, there] = between()?;
    let (so101, history) = (Embodiment::so101()?, [FakeArm::lockstep()?.observe()?]);
    let server = |session: &Session, name: &str| -> Result<(Server, Switches)> {
        let mut policy = FakePolicy::new()?;
        policy.spec.checkpoint = name.into();
        let switches = policy.switches.clone();
        Ok((serve(session, &["vela/*"], policy), switches))
    };
    let servers = [server(&here, "here")?, server(&there, "there")?];
    let both = || survey(&robots, 0, 0.1).is_ok_and(|seen| seen.policies == ["vela/*", "vela/*"]);
    assert!(eventually(both));
    let newcomer = |key: &str| -> Result<RemotePolicy> {
        let mut remote = RemotePolicy::new(&robots, key, &so101, 60.0)?;
        remote.wait_ready(30.0)?;
        Ok(remote)
    };
    // Two robots that come one after the other do not choose the same.
    let mut first = [newcomer("vela/first")?, newcomer("vela/second")?];
    let names: BTreeSet<String> = first.iter().map(|remote| remote.spec().checkpoint.clone()).collect();
    assert_eq!(names.len(), 2, "{names:?}");
    for (round, (_, switches)) in servers.iter().enumerate() {
        let busy = ["here", "there"][round];
        let asker = first.iter_mut().find(|remote| remote.spec().checkpoint == busy);
        let asker = asker.ok_or(Error::Policy(format!("nobody chose {busy}")))?;
        switches.held.store(true, Ordering::SeqCst);
        let calls = switches.calls.load(Ordering::SeqCst);
        std::thread::scope(|scope| {
            let asking = scope.spawn(|| asker.infer(&history, &InferOptions::default()));
            assert!(eventually(|| switches.calls.load(Ordering::SeqCst) > calls));
            let chosen = newcomer(&format!("vela/late{round}")).map(|late| late.spec().checkpoint.clone());
            switches.held.store(false, Ordering::SeqCst);
            died(asking.join())??;
            assert_ne!(chosen?, busy);
            Ok::<_, Error>(())
        })?;
    }
    for (server, _) in servers {
        server.end()?;
    }
    Ok(())
}
