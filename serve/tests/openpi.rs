//! openpi's WebSocket over real connections: what a robot gets, and what a hostile one gets.

use futures_util::{SinkExt, StreamExt};
use std::net::SocketAddr;
use std::sync::mpsc::{Receiver, Sender, channel};
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::{TcpListener, TcpStream};
use tokio::sync::oneshot;
use tokio::task::JoinHandle;
use tokio_tungstenite::tungstenite::client::IntoClientRequest;
use tokio_tungstenite::tungstenite::{Error as WsError, Message};
use tokio_tungstenite::{WebSocketStream, client_async};
use vela_embodiment::{
    ActionChunk, ActionSpace, Embodiment, Error, InferOptions, Observation, Policy, PolicySpec,
};
use vela_serve::Keys;
use vela_serve::openpi::value::{Value, Writer, read};
use vela_serve::openpi::{OpenpiConfig, OpenpiEvent, openpi};

type Outcome<T = ()> = Result<T, Box<dyn std::error::Error + Send + Sync>>;
type Robot = WebSocketStream<TcpStream>;

/// Says what it saw: joint targets are the state, then the seed, then how many observations it was given.
struct Echo {
    spec: PolicySpec,
    /// One permit a question, where there is a gate.
    gate: Option<Receiver<()>>,
}

impl Policy for Echo {
    fn spec(&self) -> &PolicySpec {
        &self.spec
    }

    fn infer(&mut self, history: &[Observation], options: &InferOptions) -> Result<ActionChunk, Error> {
        if let Some(gate) = &self.gate {
            let _ = gate.recv();
        }
        let newest = history.last().ok_or_else(|| Error::Policy("nothing".into()))?;
        if newest.instruction == "fail" {
            return Err(Error::Policy("it has a headache".into()));
        }
        let first = history[0].joint_positions[0];
        let other = vec![options.seed as f64, history.len() as f64, first, 0.0, 0.0, 0.0];
        Ok(ActionChunk {
            space: ActionSpace::JointPositions,
            actions: vec![newest.joint_positions.clone(), other],
            period_secs: 0.1,
            observation_stamp: newest.stamp,
            seed: options.seed,
            checkpoint: "echo".into(),
        })
    }
}

struct Server {
    address: SocketAddr,
    ending: Option<oneshot::Sender<()>>,
    running: JoinHandle<()>,
    thinking: std::thread::JoinHandle<Vec<OpenpiEvent>>,
    gate: Sender<()>,
}

async fn serve(config: OpenpiConfig, history: usize, gated: bool) -> Outcome<Server> {
    let mut embodiment = Embodiment::so101()?;
    embodiment.cameras.truncate(1);
    (embodiment.cameras[0].width, embodiment.cameras[0].height) = (3, 2);
    let spec = PolicySpec {
        embodiment,
        space: ActionSpace::JointPositions,
        horizon: 2,
        execute: 1,
        history,
        checkpoint: "echo".into(),
    };
    let (gate, permits) = channel();
    let policy = Echo { spec, gate: gated.then_some(permits) };
    let (server, thinker) = openpi(Box::new(policy), config);
    let thinking = std::thread::spawn(move || {
        let mut events = Vec::new();
        thinker.run(&mut |event| events.push(event));
        events
    });
    let listener = TcpListener::bind(("127.0.0.1", 0)).await?;
    let address = listener.local_addr()?;
    let (ending, ended) = oneshot::channel::<()>();
    let running = tokio::spawn(server.run(listener, async move { drop(ended.await) }));
    Ok(Server { address, ending: Some(ending), running, thinking, gate })
}

impl Server {
    async fn robot(&self) -> Outcome<Robot> {
        let stream = TcpStream::connect(self.address).await?;
        let (mut robot, _) = client_async(format!("ws://{}/", self.address), stream).await?;
        let first = answer(&mut robot).await?;
        assert!(matches!(field(&read(&first)?, "robot"), Value::Text("so101")));
        Ok(robot)
    }

    /// Ends it; what the policy was asked.
    async fn end(mut self) -> Outcome<Vec<OpenpiEvent>> {
        drop(self.ending.take());
        self.running.await?;
        drop(self.gate);
        self.thinking.join().map_err(|_| "the thinker died".into())
    }
}

fn field<'a, 'b>(value: &'b Value<'a>, name: &str) -> &'b Value<'a> {
    match value {
        Value::Map(map) => map.iter().find(|(key, _)| *key == name).map_or(&Value::Nil, |(_, value)| value),
        _ => &Value::Nil,
    }
}

/// An observation as a robot sends it; the picture is `[2, 3, 3]` of uint8.
fn observation(first: f64, prompt: &str) -> Vec<u8> {
    let mut writer = Writer::default();
    writer.map(3).text("state").list(6).number(first);
    (1..6).for_each(|_| {
        writer.number(0.5);
    });
    writer.text("prompt").text(prompt).text("observation/images/front");
    let mut bytes = writer.done();
    bytes.extend(b"\x84\xc4\x0b__ndarray__\xc3\xc4\x04data\xc4\x12");
    bytes.extend(0..18);
    bytes.extend(b"\xc4\x05dtype\xa3|u1\xc4\x05shape\x93\x02\x03\x03");
    bytes
}

async fn answer(robot: &mut Robot) -> Outcome<Vec<u8>> {
    loop {
        match robot.next().await.ok_or("the server hung up")?? {
            Message::Binary(bytes) => return Ok(bytes.to_vec()),
            Message::Text(text) => return Err(text.to_string().into()),
            Message::Close(close) => return Err(format!("closed: {close:?}").into()),
            _ => {}
        }
    }
}

/// Asks; the numbers of the answer's actions and the names in its `server_timing`.
async fn ask(robot: &mut Robot, question: Vec<u8>) -> Outcome<(Vec<f64>, usize)> {
    robot.send(Message::binary(question)).await?;
    let bytes = answer(robot).await?;
    let value = read(&bytes)?;
    let Value::Array(actions) = field(&value, "actions") else { return Err("no actions".into()) };
    assert_eq!(actions.shape, [2, 6]);
    let Value::Map(timing) = field(&value, "server_timing") else { return Err("no timing".into()) };
    assert_eq!(timing[0].0, "infer_ms");
    Ok((actions.numbers().collect(), timing.len()))
}

/// The words of a refusal; a close with 1011 must follow.
async fn refusal(robot: &mut Robot) -> Outcome<String> {
    let words = match answer(robot).await {
        Ok(_) => return Err("expected a refusal, got an answer".into()),
        Err(error) => error.to_string(),
    };
    match robot.next().await {
        Some(Ok(Message::Close(Some(close)))) if u16::from(close.code) == 1011 => Ok(words),
        other => Err(format!("expected a close with 1011 after '{words}', got {other:?}").into()),
    }
}

/// A plain HTTP request, as it is written; the answer.
async fn http(address: SocketAddr, request: &str) -> Outcome<String> {
    let mut stream = TcpStream::connect(address).await?;
    stream.write_all(request.as_bytes()).await?;
    let mut answer = String::new();
    stream.read_to_string(&mut answer).await?;
    Ok(answer)
}

#[tokio::test]
async fn a_robot_asks_and_gets_chunks_and_the_same_talk_again() -> Outcome {
    let server = serve(OpenpiConfig::default(), 2, false).await?;
    for _ in 0..2 {
        let mut robot = server.robot().await?;
        let (actions, timing) = ask(&mut robot, observation(0.25, "go")).await?;
        assert_eq!(
            (actions, timing),
            (vec![0.25, 0.5, 0.5, 0.5, 0.5, 0.5, 0.0, 2.0, 0.25, 0.0, 0.0, 0.0], 1)
        );
        // Now the oldest of two observations is the first one, and the time of the last answer is known.
        let (actions, timing) = ask(&mut robot, observation(0.75, "go")).await?;
        assert_eq!((actions[0], actions[6], actions[7], actions[8], timing), (0.75, 1.0, 2.0, 0.25, 2));
        robot.close(None).await?;
    }
    let health = http(server.address, "GET /healthz HTTP/1.1\r\nhost: x\r\n\r\n").await?;
    assert!(health.starts_with("HTTP/1.1 200 OK") && health.ends_with("\r\n\r\nOK\n"), "{health}");
    let other = http(server.address, "GET / HTTP/1.1\r\nhost: x\r\n\r\n").await?;
    assert!(other.starts_with("HTTP/1.1 426") && other.contains("expected a WebSocket"), "{other}");
    let events = server.end().await?;
    assert_eq!(events.iter().filter(|event| matches!(event, OpenpiEvent::Answered(_))).count(), 4);
    Ok(())
}

#[tokio::test]
async fn hostile_messages_get_one_sentence_and_the_server_goes_on() -> Outcome {
    let config = OpenpiConfig { message_bytes: 100_000, ..OpenpiConfig::default() };
    let server = serve(config, 1, false).await?;
    let good = observation(0.25, "go");
    let changed = |from: &[u8], to: &[u8]| {
        let place = good.windows(from.len()).position(|part| part == from).unwrap_or(0);
        let mut bytes = good.clone();
        bytes.splice(place..place + from.len(), to.iter().copied());
        Message::binary(bytes)
    };
    let cases = [
        (
            Message::text("{\"state\": []}"),
            "expected a binary message of MessagePack, got a text message of 13",
        ),
        (Message::binary(&b""[..]), "torn"),
        (Message::binary(good[..100].to_vec()), "torn"),
        (Message::binary(vec![0x91; 50_000]), "dicts and lists in one another"),
        (Message::binary(vec![0xdd, 0xff, 0xff, 0xff, 0xff]), "torn"),
        (Message::binary(vec![0xc0; 100_001]), "expected messages of at most 100000 bytes, got more"),
        (changed(b"\xa3|u1", b"\xa2|O"), "got '|O'"),
        (changed(b"\xa3|u1", b"\xa3<f4"), "expected the bytes of [2, 3, 3] of float32, got 18 bytes"),
        (
            changed(&[0x93, 2, 3, 3], &[0x92, 9, 2]),
            "camera 'front': expected [2, 3, 3] or [3, 2, 3], got [9, 2]",
        ),
        (changed(b"\xa5state", b"\xa5shape"), "'state' is missing; 'shape' is not of this policy"),
        (changed(b"\xa2go", b"\xa4fail"), "it has a headache"),
    ];
    for (message, expected) in cases {
        let mut robot = server.robot().await?;
        robot.send(message).await?;
        let words = refusal(&mut robot).await.map_err(|e| format!("{expected}: {e}"))?;
        assert!(words.contains(expected), "{expected}: {words}");
        let mut next = server.robot().await?;
        assert_eq!(ask(&mut next, observation(0.5, "go")).await?.0[0], 0.5, "after '{expected}'");
    }
    // What is no WebSocket frame at all: reserved bits, and a client that does not mask.
    for bytes in [&[0xf2, 0x80, 0, 0, 0, 0][..], &[0x82, 0x01, 0xc0][..]] {
        let mut robot = server.robot().await?;
        robot.get_mut().write_all(bytes).await?;
        assert!(refusal(&mut robot).await?.contains("no WebSocket frame"));
    }
    // One that breaks off in the middle of a message.
    let mut robot = server.robot().await?;
    robot.get_mut().write_all(&[0x82, 0xfe, 0x10, 0x00, 1, 2, 3, 4, 5]).await?;
    drop(robot);
    assert_eq!(ask(&mut server.robot().await?, good).await?.0[0], 0.25);
    server.end().await?;
    Ok(())
}

async fn refused_at_the_door(server: &Server, name: &'static str, value: &'static str) -> Outcome<u16> {
    let mut request = format!("ws://{}/", server.address).into_client_request()?;
    request.headers_mut().insert(name, value.parse()?);
    match client_async(request, TcpStream::connect(server.address).await?).await {
        Err(WsError::Http(response)) => Ok(response.status().as_u16()),
        Err(error) => Err(error.into()),
        Ok(_) => Ok(101),
    }
}

#[tokio::test]
async fn keys_browsers_and_one_robot_too_many_are_turned_away() -> Outcome {
    let keys = Keys::from_lines("secret\n");
    let server = serve(OpenpiConfig { keys, ..OpenpiConfig::default() }, 1, false).await?;
    assert_eq!(refused_at_the_door(&server, "authorization", "Api-Key wrong").await?, 401);
    assert_eq!(refused_at_the_door(&server, "x-nothing", "x").await?, 401);
    assert_eq!(refused_at_the_door(&server, "authorization", "Api-Key secret").await?, 101);
    server.end().await?;
    let server = serve(OpenpiConfig { robots: 1, ..OpenpiConfig::default() }, 1, false).await?;
    assert_eq!(refused_at_the_door(&server, "origin", "http://evil.example").await?, 403);
    let mut first = server.robot().await?;
    assert_eq!(refused_at_the_door(&server, "x-nothing", "x").await?, 503);
    assert_eq!(ask(&mut first, observation(0.5, "go")).await?.0[0], 0.5);
    first.close(None).await?;
    drop(first);
    // The place is free again in a moment.
    let mut tries = 0;
    while refused_at_the_door(&server, "x-nothing", "x").await? != 101 {
        tries += 1;
        assert!(tries < 2000);
        tokio::time::sleep(std::time::Duration::from_millis(5)).await;
    }
    server.end().await?;
    Ok(())
}

#[tokio::test]
async fn while_the_policy_thinks_pings_are_answered_and_a_second_question_waits() -> Outcome {
    let server = serve(OpenpiConfig::default(), 1, true).await?;
    let mut robot = server.robot().await?;
    robot.send(Message::binary(observation(0.25, "go"))).await?;
    robot.send(Message::Ping("a".into())).await?;
    // The policy has not been let go: only the pong can come.
    let pong = robot.next().await.ok_or("hung up")??;
    assert!(matches!(&pong, Message::Pong(bytes) if bytes.as_ref() == b"a"), "{pong:?}");
    robot.send(Message::binary(observation(0.75, "go"))).await?;
    for expected in [0.25, 0.75] {
        server.gate.send(())?;
        let bytes = answer(&mut robot).await?;
        let value = read(&bytes)?;
        let Value::Array(actions) = field(&value, "actions") else { return Err("no actions".into()) };
        assert_eq!(actions.numbers().next(), Some(expected));
    }
    // A robot that leaves in the middle of a thought costs nobody else anything.
    robot.send(Message::binary(observation(0.5, "go"))).await?;
    drop(robot);
    server.gate.send(())?;
    let mut next = server.robot().await?;
    server.gate.send(())?;
    assert_eq!(ask(&mut next, observation(0.125, "go")).await?.0[0], 0.125);
    // The end of the server is told.
    let end = tokio::spawn(server.end());
    match next.next().await {
        Some(Ok(Message::Close(Some(close)))) => assert_eq!(u16::from(close.code), 1001),
        other => return Err(format!("expected a close, got {other:?}").into()),
    }
    drop(next);
    end.await??;
    Ok(())
}
