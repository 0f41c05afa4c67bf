//! Every verdict of the safety gate that is no plain pass is on disk with its reason, without a flag: the log of a loop, and
//! the file in a dataset. Over the built binary; every session on a port of its own.

mod running;
mod sessions;
mod standing;

use running::Running;
use serde_json::Value;
use sessions::{sessions, text};
use standing::Standing;
use std::collections::BTreeMap;
use std::path::{Path, PathBuf};
use std::process::{Command, Output, Stdio};
use std::time::Duration;
use vela_embodiment::{Action, Embodiment, Episode, Expert, TripReason};
use vela_episodes::{Dataset, DatasetWriter, Recorder, Ruling};
use vela_robots::{Rollout, RolloutOptions, Side, open_session, rollout_expert};
use vela_sim::tabletop::Tabletop;
use vela_sim::tasks::Split;

type Fallible<T> = Result<T, Box<dyn std::error::Error>>;
type Outcome = Fallible<()>;

/// `vela` whose state is in this folder.
fn vela(args: &[&str], state: &Path) -> Command {
    let mut command = Command::new(env!("CARGO_BIN_EXE_vela"));
    command.args(args).env("VELA_STATE_DIR", state).stdin(Stdio::null());
    command
}

fn said(output: &Output) -> String {
    String::from_utf8_lossy(&output.stderr).into_owned()
}

/// A simulated arm to which nobody ever comes.
fn alone(dir: &Path, rest: &[&str]) -> Fallible<Command> {
    let [zenoh, _] = sessions(dir)?;
    let mut command = vela(&["sim", "--task", "reach", "--zenoh", &zenoh], &dir.join("state"));
    command.args(["--wait-secs", "1.2", "--hold-secs", "0.5"]).args(rest);
    Ok(command)
}

/// The files in a state's folder.
fn files(state: &Path) -> Fallible<Vec<PathBuf>> {
    let found = std::fs::read_dir(state.join("verdicts"))?;
    Ok(found.map(|entry| entry.map(|entry| entry.path())).collect::<Result<_, _>>()?)
}

/// The one file there, of this verb.
fn only(state: &Path, verb: &str) -> Fallible<PathBuf> {
    let [file]: [PathBuf; 1] = files(state)?
        .try_into()
        .map_err(|found: Vec<PathBuf>| format!("expected one file, got {found:?}"))?;
    let name = file.file_name().and_then(|name| name.to_str()).unwrap_or_default().to_owned();
    let parts: Vec<&str> = name.split(['-', '.']).collect();
    let [own, date, pid, "jsonl"] = parts.as_slice() else { return Err(name.into()) };
    assert_eq!((*own, date.len(), date.ends_with('Z')), (verb, 16, true), "{name}");
    assert!(pid.parse::<u32>().is_ok(), "{name}");
    Ok(file)
}

fn lines(path: &Path) -> Fallible<Vec<Value>> {
    let text = std::fs::read_to_string(path)?;
    text.lines().map(|line| serde_json::from_str(line).map_err(|e| format!("{line}: {e}").into())).collect()
}

/// How many ticks of these lines were held, and how often each reason is there.
fn counted(lines: &[Value]) -> Fallible<(u64, BTreeMap<String, u64>)> {
    let (mut held, mut trips) = (0, BTreeMap::new());
    for line in lines {
        assert!(line["dropped"].is_null(), "{line}");
        let ticks = line["ticks"].as_u64().ok_or("no ticks")?;
        let (first, last) = (line["tick"].as_u64().ok_or("no tick")?, line["last_tick"].as_u64());
        assert_eq!(last, Some(first + ticks - 1), "{line}");
        held += if line["held"] == true { ticks } else { 0 };
        let reasons = line["trips"].as_array().filter(|trips| !trips.is_empty()).ok_or("no reason")?;
        for trip in reasons {
            assert!(trip["detail"].as_str().is_some_and(|detail| !detail.is_empty()), "{line}");
            *trips.entry(trip["reason"].as_str().ok_or("no reason")?.to_owned()).or_default() += ticks;
        }
    }
    Ok((held, trips))
}

#[test]
fn an_arm_that_waits_in_vain_leaves_every_tick_s_reason_in_a_few_lines() -> Outcome {
    let dir = tempfile::tempdir()?;
    let output = alone(dir.path(), &[])?.output()?;
    assert_eq!(output.status.code(), Some(1));
    let file = only(&dir.path().join("state"), "sim")?;
    assert_eq!(said(&output).matches(&text(&file)).count(), 1, "{}", said(&output));
    let lines = lines(&file)?;
    let (held, trips) = counted(&lines)?;
    // More than a second, without a gap, in a line when it begins and one a second.
    assert!(held >= 10 && trips.values().sum::<u64>() == held, "{trips:?}");
    assert!(trips["no_plan"] > held / 2, "{trips:?}");
    let last = lines.last().and_then(|line| line["last_tick"].as_u64());
    assert_eq!((lines[0]["tick"].as_u64(), last), (Some(0), Some(held - 1)));
    // Each cause is a line when it begins, and one a second; a hurried tick on a busy machine parts two.
    assert!((2..=20).contains(&lines.len()), "{lines:?}");
    let causes: Vec<&str> = lines.iter().filter_map(|line| line["trips"][0]["detail"].as_str()).collect();
    let named = |cause: &str| causes.iter().any(|said| said.contains(cause));
    assert!(named("waiting for the first plan") && named("no policy at vela/arm"), "{causes:?}");
    Ok(())
}

/// In the simulator nothing is written unless a file is named, and then the same in every run.
#[test]
fn an_evaluation_s_verdicts_are_written_where_somebody_says() -> Outcome {
    let dir = tempfile::tempdir()?;
    let play = |rest: &[&str]| -> Fallible<Value> {
        let args = ["eval", "--task", "reach", "--episodes", "2", "--seed", "7", "--json"];
        let output = vela(&[&args, rest].concat(), &dir.path().join("state")).output()?;
        assert!(output.status.success(), "{}", said(&output));
        Ok(serde_json::from_slice(&output.stdout)?)
    };
    let (first, second) = (text(&dir.path().join("a.jsonl")), text(&dir.path().join("b.jsonl")));
    assert_eq!(play(&["--log", &first])?["log"], first);
    play(&["--log", &second])?;
    let written = std::fs::read_to_string(&first)?;
    assert_eq!(written, std::fs::read_to_string(&second)?);
    let lines = lines(Path::new(&first))?;
    assert!(counted(&lines)?.1.values().sum::<u64>() > 10, "{written}");
    let seeds: Vec<u64> = lines.iter().filter_map(|line| line["seed"].as_u64()).collect();
    assert!(seeds.is_sorted() && seeds.first() == Some(&7) && seeds.last() == Some(&8), "{seeds:?}");
    assert!(lines.iter().all(|line| line["task"] == "reach"));
    assert_eq!(play(&[])?["log"], Value::Null);
    assert!(!dir.path().join("state").exists());
    let full = ["eval", "--task", "reach", "--episodes", "1", "--log", "/dev/full"];
    let output = vela(&full, dir.path()).output()?;
    assert!(
        output.status.code() == Some(1) && said(&output).contains("writing /dev/full"),
        "{}",
        said(&output)
    );
    Ok(())
}

#[test]
fn a_flag_says_where_or_that_there_is_none() -> Outcome {
    let dir = tempfile::tempdir()?;
    let (state, named) = (dir.path().join("state"), dir.path().join("verdicts.jsonl"));
    let output = alone(dir.path(), &["--log", &text(&named)])?.output()?;
    assert!(said(&output).contains(&text(&named)) && counted(&lines(&named)?)?.0 >= 10, "{}", said(&output));
    let silent = alone(dir.path(), &["--no-log"])?.output()?;
    assert!(said(&silent).contains("no policy came") && !said(&silent).contains("verdicts"));
    assert!(!state.exists());
    let both = alone(dir.path(), &["--no-log", "--log", &text(&named)])?.output()?;
    assert_eq!(both.status.code(), Some(2));
    // Without a word in the environment it is the standard's folder, or the home's.
    for (variable, inside) in [("XDG_STATE_HOME", "vela"), ("HOME", ".local/state/vela")] {
        let home = dir.path().join(variable);
        let mut command = alone(dir.path(), &[])?;
        command.env_remove("VELA_STATE_DIR").env("XDG_STATE_HOME", "relative").env(variable, &home);
        let output = command.output()?;
        let file = only(&home.join(inside), "sim").map_err(|e| format!("{e}: {}", said(&output)))?;
        assert!(!lines(&file)?.is_empty());
    }
    Ok(())
}

#[test]
fn a_place_that_cannot_be_had_is_refused_and_a_full_disk_stops_the_arm() -> Outcome {
    let dir = tempfile::tempdir()?;
    std::fs::write(dir.path().join("state"), "a file in the way")?;
    let output = alone(dir.path(), &[])?.output()?;
    assert_eq!(output.status.code(), Some(1));
    let why = said(&output);
    assert!(why.contains("--log") && why.contains("--no-log") && why.contains("verdicts: "), "{why}");
    assert!(!why.contains("no policy came"), "it was refused before it waited: {why}");

    let output = alone(dir.path(), &["--log", "/dev/full"])?.output()?;
    assert_eq!(output.status.code(), Some(1));
    let why = said(&output);
    assert!(why.contains("stopped: the gate's verdicts cannot be written: writing /dev/full"), "{why}");
    assert!(why.contains("--no-log"), "{why}");
    Ok(())
}

#[test]
fn what_is_written_outlives_a_kill() -> Outcome {
    let dir = tempfile::tempdir()?;
    let [zenoh, _] = sessions(dir.path())?;
    let state = dir.path().join("state");
    let args = ["sim", "--task", "reach", "--wait-secs", "60", "--zenoh", &zenoh];
    let mut arm = Running(vela(&args, &state).stderr(Stdio::null()).spawn()?);
    // A second's repeats are told in one line, while the arm runs.
    let held = || Ok::<_, Box<dyn std::error::Error>>(counted(&lines(&only(&state, "sim")?)?)?.0);
    assert!((0..600).any(|_| {
        std::thread::sleep(Duration::from_millis(50));
        held().is_ok_and(|held| held > 20)
    }));
    arm.0.kill()?;
    arm.0.wait()?;
    assert!(held()? > 20, "{} ticks are told", held()?);
    Ok(())
}

/// What the demo's table says of the gate is what its log says, line by line.
#[test]
fn a_demo_s_log_has_as_many_reasons_as_its_gate_counted() -> Outcome {
    let dir = tempfile::tempdir()?;
    let args = ["demo", "--task", "reach", "--episodes", "2", "--json"];
    let output = vela(&args, dir.path()).output()?;
    assert!(output.status.success(), "{}", said(&output));
    let told: Value = serde_json::from_slice(&output.stdout)?;
    let lines = lines(&only(dir.path(), "demo")?)?;
    for (number, episode) in told["episodes"].as_array().ok_or("no episodes")?.iter().enumerate() {
        let own: Vec<Value> = lines.iter().filter(|line| line["episode"] == number).cloned().collect();
        let (held, trips) = counted(&own)?;
        assert_eq!(episode["held_ticks"], held);
        assert_eq!(episode["gate_trips"], serde_json::to_value(&trips)?);
        assert!(trips.values().sum::<u64>() > 10, "{trips:?}");
    }
    assert!(lines.iter().all(|line| line["episode"].as_u64() < Some(2)));
    Ok(())
}

#[test]
fn a_real_arm_says_where_its_log_is_and_what_is_missing_in_it() -> Outcome {
    let dir = tempfile::tempdir()?;
    let [robot, other] = sessions(dir.path())?;
    let session = open_session(Side::Robot, Some(Path::new(&robot)))?;
    let _arm = Standing::start(&session)?;
    let so101 = Path::new(env!("CARGO_MANIFEST_DIR")).join("configs/robots/so101.toml");
    let (file, state) = (dir.path().join("arm.toml"), dir.path().join("state"));
    let cameras = "[cameras.front]\ntopic = '/front'\n[cameras.wrist]\ntopic = '/wrist'\n";
    std::fs::write(&file, format!("robot = '{}'\nkey = 'vela/kept'\n[ros2]\n{cameras}", text(&so101)))?;
    let args = ["robot", "--config", &text(&file), "--json", "--wait-secs", "3", "--zenoh", &other];
    let output = vela(&args, &state).output()?;
    let log = only(&state, "robot").map_err(|e| format!("{e}: {}", said(&output)))?;
    assert_eq!(said(&output).matches(&text(&log)).count(), 1, "{}", said(&output));
    let answer: Value = serde_json::from_slice(&output.stdout)?;
    assert_eq!((answer["log"].as_str(), &answer["verdicts_dropped"]), (Some(&*text(&log)), &Value::from(0)));
    let (held, trips) = counted(&lines(&log)?)?;
    assert_eq!(
        (&answer["ticks_held"], &answer["trips"]),
        (&Value::from(held), &serde_json::to_value(trips)?)
    );
    assert!(held > 10, "{answer}");
    Ok(())
}

/// Asks for what the gate must not let through: a far target, and sometimes nothing that is a number; or for nothing.
struct Wild(u64);

impl Expert<Recorder<Tabletop>> for Wild {
    fn reset(&mut self) {}

    fn label(&mut self, _: &Recorder<Tabletop>) -> vela_embodiment::Result<Action> {
        self.0 += 1;
        if self.0.is_multiple_of(7) {
            return Err(vela_embodiment::Error::Policy("it sleeps".into()));
        }
        let far = if self.0.is_multiple_of(5) { f64::NAN } else { 9.0 };
        Ok(Action { joint_targets: vec![far; 6] })
    }
}

/// Plays an episode of a dozen ticks.
fn wild(recorder: &mut Recorder<Tabletop>, seed: u64) -> Fallible<Rollout> {
    let options = RolloutOptions { max_ticks: 12, observe_every_tick: true, ..RolloutOptions::default() };
    let episode = Episode { task: "reach".into(), seed, randomise: false };
    Ok(rollout_expert(recorder, &mut Wild(seed), &episode, &options, &mut |_, _| {})?)
}

fn recorder(folder: &Path) -> Fallible<Recorder<Tabletop>> {
    let so101 = Embodiment::so101()?;
    let table = Tabletop::lockstep(&so101, Split::Train)?;
    Ok(Recorder::new(table, DatasetWriter::create(folder, &so101, 30)?)?)
}

/// What a dataset says of an episode, counted as a rollout counts it.
fn ruled(rulings: &BTreeMap<usize, Ruling>) -> (usize, BTreeMap<TripReason, u64>) {
    let mut trips = BTreeMap::new();
    for trip in rulings.values().flat_map(|ruling| &ruling.trips) {
        *trips.entry(trip.reason).or_default() += 1;
    }
    (rulings.values().filter(|ruling| ruling.held).count(), trips)
}

#[test]
fn a_dataset_has_its_frames_verdicts_whatever_becomes_of_it() -> Outcome {
    let dir = tempfile::tempdir()?;
    let set = |name: &str| dir.path().join(name);
    let mut recording = recorder(&set("a"))?;
    let mut played = Vec::new();
    for seed in 0..3 {
        played.push(wild(&mut recording, seed)?);
        recording.end_episode(Value::Null)?;
    }
    // A fourth one that nobody ends.
    played.push(wild(&mut recording, 3)?);
    recording.finish()?;
    let told = |name: &str| -> Fallible<Vec<_>> {
        let dataset = Dataset::open(&set(name))?;
        let rulings = dataset.rulings()?;
        Ok((0..dataset.len()).map(|k| rulings.get(&k).map(ruled).unwrap_or_default()).collect())
    };
    let truth: Vec<_> = played.iter().map(|played| (played.held_ticks, played.trips.clone())).collect();
    assert_eq!(told("a")?, truth[..3]);
    assert!(truth.iter().all(|(held, trips)| *held >= 2 && trips.contains_key(&TripReason::NotFinite)));
    let clipped = Dataset::open(&set("a"))?.rulings()?[&0][&0].clone();
    assert!(
        !clipped.held && clipped.trips.iter().any(|trip| trip.detail.contains("asked 9.0")),
        "{clipped:?}"
    );

    let asleep = Dataset::open(&set("a"))?.rulings()?[&0][&6].clone();
    assert!(asleep.held && asleep.trips[0].detail.contains("it sleeps"), "{asleep:?}");

    // The frames that a kill left bring theirs with them; half a line of one that was not committed is no line.
    let file = set("a").join("meta/vela_verdicts.jsonl");
    let half = "{\"episode\":3,\"frame\":0,\"held\":true,\"trips\":[]}\n{\"episode\":3,\"fra";
    std::fs::write(&file, std::fs::read_to_string(&file)? + half)?;
    assert_eq!(told("a")?, truth[..3]);
    let run = |args: &[&str]| vela(args, dir.path()).output();
    let repaired = run(&["episodes", "check", "--repair", &text(&set("a"))])?;
    assert!(repaired.status.success(), "{repaired:?}");
    assert_eq!(told("a")?, truth);

    // Copies: under the episodes' new numbers.
    let (a, b, c) = (text(&set("a")), text(&set("b")), text(&set("c")));
    assert!(run(&["episodes", "convert", &a, "--video", "h264", "--out", &b])?.status.success());
    assert_eq!(told("b")?, truth);
    assert!(run(&["episodes", "merge", &a, &a, "--out", &c])?.status.success());
    assert_eq!(told("c")?, [&truth[..], &truth[..]].concat());
    let parts = ["episodes", "split", &c, "--out", &text(&set("d")), "--parts", "x=0:3,y=3:8"];
    assert!(run(&parts)?.status.success());
    assert_eq!((told("d/x")?, told("d/y")?.len()), (truth[..3].to_vec(), 5));
    assert_eq!(told("d/y")?[0], truth[3]);
    assert!(run(&["episodes", "check", &c])?.status.success());

    // A frame that is not there is found.
    let file = set("c").join("meta/vela_verdicts.jsonl");
    let more = "{\"episode\":7,\"frame\":12,\"held\":true,\"trips\":[]}\n";
    std::fs::write(&file, std::fs::read_to_string(&file)? + more)?;
    let checked = run(&["episodes", "check", &c])?;
    assert!(!checked.status.success());
    assert!(
        String::from_utf8_lossy(&checked.stdout).contains("frame 12 of episode 7, which has 12"),
        "{checked:?}"
    );
    std::fs::write(&file, "no line of ours\n")?;
    assert!(!run(&["episodes", "check", &c])?.status.success());
    Ok(())
}

/// A policy at work, recorded by the binary.
#[test]
fn a_recording_keeps_what_the_gate_said_of_the_policy() -> Outcome {
    let dir = tempfile::tempdir()?;
    let out = dir.path().join("set");
    let args = [
        "record",
        "--out",
        &text(&out),
        "--policy",
        "builtin",
        "--task",
        "reach",
        "--episodes",
        "1",
        "--json",
    ];
    let output = vela(&args, &dir.path().join("state")).output()?;
    assert!(output.status.success(), "{}", said(&output));
    let (dataset, rulings) = (Dataset::open(&out)?, Dataset::open(&out)?.rulings()?);
    let frames = rulings.get(&0).ok_or("no verdicts")?;
    assert!(!frames.is_empty() && frames.keys().all(|frame| *frame < dataset.total_frames()), "{frames:?}");
    assert!(!dir.path().join("state").exists(), "a dataset is place enough");
    Ok(())
}
