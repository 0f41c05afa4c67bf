//! `vela ask` and `vela serve` over the built binary, on a tiny VLM that babbles letters.

use serde_json::{Map, Value, json};
use std::io::{BufRead, BufReader, Read, Write};
use std::net::TcpStream;
use std::path::Path;
use std::process::{Child, Command, Output, Stdio};

type Outcome<T = ()> = Result<T, Box<dyn std::error::Error>>;

const TEMPLATE: &str = "{% for m in messages %}{{ m.role }}: {% for c in m.content %}\
    {% if c.type == 'image' %}<image>{% else %}{{ c.text }}{% endif %}{% endfor %}</s>{% endfor %}assistant: ";

/// The reference model of `tests/golden/llava` with a letter for each of its 160 tokens, and a picture.
fn model() -> Outcome<tempfile::TempDir> {
    let from = Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/golden/llava");
    let dir = tempfile::tempdir()?;
    for file in ["config.json", "model.safetensors", "preprocessor_config.json"] {
        std::fs::copy(from.join(file), dir.path().join(file))?;
    }
    let named = [(0, "<pad>"), (1, "<s>"), (2, "</s>"), (155, "<image>")];
    let name = |id: u32| match named.iter().find(|(of, _)| *of == id) {
        Some((_, name)) => (*name).to_owned(),
        None if id < 97 => char::from(30 + id as u8).to_string(),
        None => char::from_u32(0x120 + id - 97).map(String::from).unwrap_or_default(),
    };
    let vocab: Map<String, Value> = (0..160).map(|id| (name(id), json!(id))).collect();
    let special = |(id, name): &(u32, &str)| {
        json!({"id": id, "content": name, "single_word": false, "lstrip": false, "rstrip": false,
            "normalized": false, "special": true})
    };
    let bytes =
        json!({"type": "ByteLevel", "add_prefix_space": false, "trim_offsets": true, "use_regex": false});
    let tokenizer = json!({"version": "1.0", "truncation": null, "padding": null,
        "added_tokens": named.iter().map(special).collect::<Vec<_>>(), "normalizer": null, "pre_tokenizer": bytes,
        "post_processor": null, "decoder": bytes, "model": {"type": "BPE", "vocab": vocab, "merges": []}});
    std::fs::write(dir.path().join("tokenizer.json"), tokenizer.to_string())?;
    let config = json!({"eos_token": "</s>", "bos_token": "<s>", "chat_template": TEMPLATE});
    std::fs::write(dir.path().join("tokenizer_config.json"), config.to_string())?;
    image::RgbImage::from_fn(40, 30, |x, y| image::Rgb([9, (x * 3) as u8, (y * 5) as u8]))
        .save(dir.path().join("photo.png"))?;
    Ok(dir)
}

fn vela(args: &[&str]) -> Outcome<Output> {
    Ok(Command::new(env!("CARGO_BIN_EXE_vela")).args(args).stdin(Stdio::null()).output()?)
}

fn complaint(args: &[&str]) -> Outcome<String> {
    let output = vela(args)?;
    let words = String::from_utf8_lossy(&output.stderr).into_owned();
    assert_eq!(output.status.code(), Some(1), "{args:?}: {words}");
    assert!(words.starts_with("vela: ") && words.trim_end().lines().count() == 1, "{words}");
    Ok(words)
}

#[test]
fn a_question_about_a_picture_is_answered() -> Outcome {
    let dir = model()?;
    let (path, photo) =
        (dir.path().display().to_string(), dir.path().join("photo.png").display().to_string());
    let ask = |more: &[&str]| -> Outcome<Value> {
        let args =
            [&["ask", &photo, &photo, "what?", "--model", &path, "--max-tokens", "12", "--json"], more];
        let output = vela(&args.concat())?;
        assert!(output.status.success(), "{}", String::from_utf8_lossy(&output.stderr));
        Ok(serde_json::from_slice(&output.stdout)?)
    };
    let plain = ask(&[])?;
    // Two pictures of sixteen tokens, "user: what?" with the end of the turn, and "assistant: ".
    assert_eq!(plain["prompt_tokens"], 32 + 12 + 11);
    assert!(plain["tokens"].as_u64().is_some_and(|n| n > 0), "{plain}");
    assert_eq!(ask(&["--threads", "1"])?["text"], plain["text"]);
    let warm = |seed| ask(&["--temperature", "1.5", "--seed", seed]);
    assert_eq!(warm("1")?["text"], warm("1")?["text"]);
    assert_ne!(warm("1")?["text"], warm("2")?["text"]);
    let shown = vela(&["ask", &photo, &photo, "what?", "--model", &path, "--max-tokens", "12"])?;
    let text = plain["text"].as_str().unwrap_or_default();
    assert_eq!(String::from_utf8(shown.stdout)?, format!("{text}\n"));
    assert!(String::from_utf8(shown.stderr)?.contains("55 prompt tokens"));
    Ok(())
}

#[test]
fn bad_questions_are_one_sentence_each() -> Outcome {
    let dir = model()?;
    let (path, photo) =
        (dir.path().display().to_string(), dir.path().join("photo.png").display().to_string());
    let config = dir.path().join("config.json").display().to_string();
    for (words, said) in [
        (vec!["/nowhere.png", "what?"], "/nowhere.png"),
        (vec![&config, "what?"], "expected JPEG, PNG or WebP"),
        (vec![&photo], "expected a question after the pictures"),
        (vec!["an <image> here"], "may not hold <image>"),
    ] {
        let got = complaint(&[&["ask", "--model", &path][..], &words].concat())?;
        assert!(got.contains(said), "{got}");
    }
    let text = Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/golden/llama").display().to_string();
    assert!(complaint(&["ask", &photo, "what?", "--model", &text])?.contains("tokenizer.json"));
    assert!(
        complaint(&["serve", "--model", "/nowhere"])?
            .contains("/nowhere: expected a GGUF file or a model folder")
    );
    let empty = dir.path().join("keys");
    std::fs::write(&empty, "# none\n")?;
    let keys = empty.display().to_string();
    assert!(complaint(&["serve", "--model", &path, "--api-key-file", &keys])?.contains("at least one key"));
    let adapter = format!("mine={path}");
    assert!(
        complaint(&["serve", "--model", &path, "--port", "0", "--adapter", &adapter])?
            .contains("adapter_config.json")
    );
    for wrong in [["--adapter", "mine"], ["--allow-image-urls", "http://a/"], ["--allow-image-urls", "a:0"]] {
        let output = vela(&[&["serve", "--model", &path][..], &wrong].concat())?;
        assert_eq!(output.status.code(), Some(2), "{wrong:?}");
        assert!(String::from_utf8(output.stderr)?.contains("expected"), "{wrong:?}");
    }
    Ok(())
}

/// A server that is ended with the test.
struct Server(Child, String);

impl Server {
    fn start(args: &[&str]) -> Outcome<Self> {
        let mut child = Command::new(env!("CARGO_BIN_EXE_vela"))
            .args([&["serve", "--port", "0"], args].concat())
            .stdout(Stdio::piped())
            .stderr(Stdio::null())
            .spawn()?;
        let mut line = String::new();
        BufReader::new(child.stdout.take().ok_or("no stdout")?).read_line(&mut line)?;
        let at = line.trim().rsplit("http://").next().unwrap_or_default().to_owned();
        Ok(Self(child, at))
    }

    fn send(&self, method: &str, path: &str, headers: &str, body: &str) -> Outcome<(TcpStream, String)> {
        let stream = TcpStream::connect(&self.1)?;
        let length = body.len();
        write!(
            &stream,
            "{method} {path} HTTP/1.1\r\nhost: localhost\r\nconnection: close\r\ncontent-type: application/json\r\n"
        )?;
        write!(&stream, "{headers}content-length: {length}\r\n\r\n{body}")?;
        Ok((stream, String::new()))
    }

    fn ask(&self, method: &str, path: &str, headers: &str, body: &str) -> Outcome<String> {
        let (mut stream, mut got) = self.send(method, path, headers, body)?;
        stream.read_to_string(&mut got)?;
        Ok(got)
    }
}

impl Drop for Server {
    fn drop(&mut self) {
        // It may have ended.
        let _ = self.0.kill();
        let _ = self.0.wait();
    }
}

#[test]
fn a_server_answers_with_its_key_and_ends_after_its_last_answer() -> Outcome {
    let dir = model()?;
    let (path, keys) = (dir.path().display().to_string(), dir.path().join("keys"));
    std::fs::write(&keys, "alpha\n")?;
    let mut server = Server::start(&[
        "--model",
        &path,
        "--name",
        "babbler",
        "--api-key-file",
        &keys.display().to_string(),
    ])?;
    assert!(server.ask("GET", "/healthz", "", "")?.starts_with("HTTP/1.1 200"));
    assert!(server.ask("GET", "/v1/models", "", "")?.starts_with("HTTP/1.1 401"));
    let key = "authorization: Bearer alpha\r\n";
    assert!(server.ask("GET", "/v1/models", key, "")?.contains("\"id\":\"babbler\""));
    let body = json!({"messages": [{"role": "user", "content": "go on"}], "stream": true, "max_tokens": 460,
        "response_format": {"type": "regex", "regex": "[ab]{450}"}});
    let (mut stream, mut got) = server.send("POST", "/v1/chat/completions", key, &body.to_string())?;
    let mut first = [0u8; 12];
    stream.read_exact(&mut first)?;
    assert_eq!(&first, b"HTTP/1.1 200");
    let ended = Command::new("kill").args(["-TERM", &server.0.id().to_string()]).status()?;
    assert!(ended.success());
    stream.read_to_string(&mut got)?;
    assert!(got.contains("data: [DONE]"), "it was cut off");
    assert_eq!(server.0.wait()?.code(), Some(0));
    Ok(())
}

#[test]
fn the_arm_s_camera_is_watched_while_it_works() -> Outcome {
    let mut demo = Command::new(env!("CARGO_BIN_EXE_vela"))
        .args(["demo", "--serve", "--port", "0", "--task", "reach", "--json"])
        .stdout(Stdio::piped())
        .stderr(Stdio::piped())
        .spawn()?;
    let mut line = String::new();
    let mut said = BufReader::new(demo.stderr.take().ok_or("no stderr")?);
    said.read_line(&mut line)?;
    let at = line.trim().rsplit("http://").next().unwrap_or_default().to_owned();
    let server = Server(demo, at);
    let look = || -> Outcome<Vec<u8>> {
        let (mut stream, _) = server.send("GET", "/camera", "", "")?;
        let mut got = Vec::new();
        stream.read_to_end(&mut got)?;
        Ok(got)
    };
    assert!(server.ask("GET", "/healthz", "", "")?.contains("\"camera\":true"));
    let mut shots = Vec::new();
    for _ in 0..600 {
        let got = look()?;
        if got.starts_with(b"HTTP/1.1 200") && shots.last() != Some(&got) {
            shots.push(got);
        }
        if shots.len() == 2 {
            break;
        }
        std::thread::sleep(std::time::Duration::from_millis(50));
    }
    let [first, second] = shots.as_slice() else { return Err(format!("{} pictures", shots.len()).into()) };
    let png = |shot: &[u8]| shot.windows(8).any(|bytes| bytes == b"\x89PNG\r\n\x1a\n");
    assert!(png(first) && png(second) && first != second);
    let head = String::from_utf8_lossy(first).into_owned();
    assert!(head.contains("x-caption: ") && head.contains("content-type: image/png"));
    // Without an end of its own, it ends when it is told to, and says how it went.
    let mut server = server;
    assert!(Command::new("kill").args(["-TERM", &server.0.id().to_string()]).status()?.success());
    let mut told = String::new();
    server.0.stdout.take().ok_or("no stdout")?.read_to_string(&mut told)?;
    assert!(serde_json::from_str::<Value>(&told)?["episodes"].is_array(), "{told}");
    assert_eq!(server.0.wait()?.code(), Some(0));
    let mut rest = String::new();
    said.read_to_string(&mut rest)?;
    assert!(rest.contains("finishing"), "{rest}");
    Ok(())
}

/// A frame from the server: its kind and its bytes.
fn frame(stream: &mut TcpStream) -> Outcome<(u8, Vec<u8>)> {
    let mut head = [0; 2];
    stream.read_exact(&mut head)?;
    let mut length = usize::from(head[1]);
    if length == 126 {
        let mut long = [0; 2];
        stream.read_exact(&mut long)?;
        length = usize::from(u16::from_be_bytes(long));
    }
    let mut bytes = vec![0; length];
    stream.read_exact(&mut bytes)?;
    Ok((head[0] & 0x0f, bytes))
}

#[test]
fn the_built_in_policy_is_served_to_openpi_clients() -> Outcome {
    let server = Server::start(&["--openpi", "--model", "builtin"])?;
    let address =
        server.1.rsplit("builtin is served to openpi clients at ws://").next().ok_or("no address")?;
    let mut health = TcpStream::connect(address)?;
    write!(health, "GET /healthz HTTP/1.1\r\nhost: localhost\r\n\r\n")?;
    let mut answer = String::new();
    health.read_to_string(&mut answer)?;
    assert!(answer.starts_with("HTTP/1.1 200 OK") && answer.ends_with("OK\n"), "{answer}");

    let mut robot = TcpStream::connect(address)?;
    write!(
        robot,
        "GET / HTTP/1.1\r\nhost: localhost\r\nconnection: Upgrade\r\nupgrade: websocket\r\n\
         sec-websocket-version: 13\r\nsec-websocket-key: dGhlIHNhbXBsZSBub25jZQ==\r\n\r\n"
    )?;
    let mut head = Vec::new();
    while !head.ends_with(b"\r\n\r\n") {
        let mut byte = [0];
        robot.read_exact(&mut byte)?;
        head.push(byte[0]);
    }
    let head = String::from_utf8_lossy(&head).to_lowercase();
    // The key's answer is the standard's own example.
    assert!(head.starts_with("http/1.1 101") && head.contains("s3pplmbitxaq9kygzzhzrbk+xoo="), "{head}");
    let (kind, metadata) = frame(&mut robot)?;
    let metadata = String::from_utf8_lossy(&metadata).into_owned();
    assert!(
        kind == 2 && metadata.contains("joint_positions") && metadata.contains("shoulder_pan"),
        "{metadata}"
    );
    // A text message, masked with zeros: one sentence, then a close with 1011.
    robot.write_all(&[0x81, 0x82, 0, 0, 0, 0, b'h', b'i'])?;
    let (kind, words) = frame(&mut robot)?;
    assert!(kind == 1 && words.starts_with(b"expected a binary message"), "{words:?}");
    let (kind, close) = frame(&mut robot)?;
    assert_eq!((kind, &close[..2]), (8, &1011u16.to_be_bytes()[..]));
    assert!(complaint(&["serve", "--openpi", "--model", "nowhere"])?.contains("unknown policy 'nowhere'"));
    Ok(())
}
