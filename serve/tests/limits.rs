//! What is refused, what is cut off, and that the server goes on serving.

mod common;

use common::*;
use serde_json::{Value as Json, json};
use std::time::Duration;
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::TcpStream;
use vela_serve::{Keys, ServerConfig};

/// Tokens of an answer that nobody waits for: seconds of work, so that a slow observer still finds it being written.
const MOST: usize = 15_000;

async fn still_serves(served: &Served) -> Outcome {
    let got = chat(served.at, &words("still there?", 3)).await?;
    assert_eq!(got.status, 200, "{}", got.text());
    Ok(())
}

#[tokio::test(flavor = "multi_thread")]
async fn who_leaves_is_not_answered_any_more() -> Outcome {
    let served = serve(small(), ServerConfig::default()).await?;
    for stream in [true, false] {
        let mut asked = long(MOST);
        asked["stream"] = stream.into();
        let before = metric(served.at, "requests_cancelled_total").await?;
        let mut client = TcpStream::connect(served.at).await?;
        let body = asked.to_string();
        client.write_all(&request("POST", "/v1/chat/completions", JSON, body.as_bytes())).await?;
        until(async || Ok(metric(served.at, "requests_running").await? == 1.0)).await?;
        drop(client);
        until(async || Ok(metric(served.at, "requests_cancelled_total").await? == before + 1.0)).await?;
        until(async || Ok(metric(served.at, "requests_running").await? == 0.0)).await?;
    }
    // What it held is free again, but for what the prefix cache remembers.
    let held = metric(served.at, "cache_blocks").await?
        - metric(served.at, "cache_blocks_free").await?
        - metric(served.at, "cache_blocks_evictable").await?;
    assert_eq!((held, metric(served.at, "cache_positions_wasted").await?), (0.0, 0.0));
    still_serves(&served).await
}

#[tokio::test(flavor = "multi_thread")]
async fn who_comes_when_all_is_full_is_told_to_come_again() -> Outcome {
    let mut config = small();
    (config.engine.max_running, config.engine.max_waiting) = (1, 0);
    let served = serve(config, ServerConfig::default()).await?;
    let at = served.at;
    let first = tokio::spawn(async move { chat(at, &long(MOST)).await });
    until(async || Ok(metric(at, "requests_running").await? == 1.0)).await?;
    let refused = chat(at, &words("me too", 3)).await?;
    assert_eq!(refused.status, 429, "{}", refused.text());
    assert!(refused.head.contains("retry-after: 1") && refused.json()?["error"]["code"] == "busy");
    let mut several = long(MOST);
    several["n"] = 2.into();
    first.abort();
    until(async || Ok(metric(at, "requests_running").await? == 0.0)).await?;
    assert_eq!(chat(at, &several).await?.status, 429, "two do not fit where one does");
    // The one of the two that was let in is gone in a moment.
    until(async || Ok(chat(at, &words("still there?", 3)).await?.status == 200)).await?;
    // Connections have an end too.
    let served = serve(small(), ServerConfig { connections: 1, ..ServerConfig::default() }).await?;
    let mut quiet = TcpStream::connect(served.at).await?;
    quiet.write_all(b"GET /healthz HTTP/1.1\r\nhost: localhost\r\n\r\n").await?;
    let mut some = [0; 16];
    quiet.read_exact(&mut some).await?;
    let refused = get(served.at, "/healthz").await?;
    assert_eq!((refused.status, refused.error()?.contains("too many connections")), (503, true));
    drop(quiet);
    until(async || Ok(get(served.at, "/healthz").await?.status == 200)).await
}

#[tokio::test(flavor = "multi_thread")]
async fn hostile_pictures_are_refused_and_odd_ones_answered() -> Outcome {
    use image::ImageFormat::{Gif, Jpeg, Png};
    let mut config = small();
    config.max_pictures = 4;
    let served = serve(config, ServerConfig::default()).await?;
    let ask = async |urls: &[&str]| {
        chat(served.at, &json!({"messages": [about(urls, "?")], "max_tokens": 2})).await
    };
    let jpeg = picture(64, 48, 7, Jpeg)?;
    let mut wide = std::io::Cursor::new(Vec::new());
    image::DynamicImage::new_rgba16(9, 9).write_to(&mut wide, Png)?;
    for (name, url) in [
        ("1x1", data_url("png", &picture(1, 1, 7, Png)?)),
        ("1x10000", data_url("png", &picture(1, 10_000, 7, Png)?)),
        ("10000x1", data_url("jpeg", &picture(10_000, 1, 7, Jpeg)?)),
        ("16 bits", data_url("png", &wide.into_inner())),
        ("wrong kind named", data_url("png", &jpeg)),
    ] {
        let got = ask(&[&url]).await?;
        assert_eq!(got.status, 200, "{name}: {}", got.text());
    }
    // A picture of one colour that unpacks to ten times what is allowed: its size is in the header.
    let bomb = picture_of_one_colour(4000, 2500)?;
    assert!(bomb.len() < 200_000, "{}", bomb.len());
    for (name, url, why) in [
        ("bomb", data_url("png", &bomb), "at most 1000000 pixels, got 4000x2500"),
        ("cut short", data_url("jpeg", &jpeg[..jpeg.len() / 2]), "cut short"),
        ("half a PNG", data_url("png", &picture(64, 48, 7, Png)?[..200]), "picture"),
        ("GIF", data_url("gif", &gif(Gif)?), "expected JPEG, PNG or WebP"),
        ("noise", data_url("png", &[7; 500]), "expected JPEG, PNG or WebP"),
        ("nothing", data_url("png", b""), "expected JPEG, PNG or WebP"),
        ("elsewhere", "http://127.0.0.1:1/a.png".to_owned(), "fetches nothing"),
    ] {
        let got = ask(&[&url]).await?;
        assert_eq!(got.status, 400, "{name}: {}", got.text());
        let error = got.error()?;
        assert!(
            error.starts_with("messages[0].content[0].image_url.url: ") && error.contains(why),
            "{name}: {error}"
        );
    }
    let one = png(1)?;
    let many = ask(&[one.as_str(); 1000]).await?;
    assert_eq!((many.status, many.error()?.contains("at most 4 pictures, got 1000")), (400, true));
    let quoted = chat(served.at, &words("an <image> in words", 2)).await?;
    assert_eq!((quoted.status, quoted.error()?.contains("may not hold <image>")), (400, true));
    still_serves(&served).await
}

fn picture_of_one_colour(width: u32, height: u32) -> Outcome<Vec<u8>> {
    let mut file = std::io::Cursor::new(Vec::new());
    image::GrayImage::new(width, height).write_to(&mut file, image::ImageFormat::Png)?;
    Ok(file.into_inner())
}

/// Enough of a GIF to be known as one.
fn gif(_: image::ImageFormat) -> Outcome<Vec<u8>> {
    Ok(b"GIF89a\x01\x00\x01\x00\x80\x00\x00\x00\x00\x00\xff\xff\xff;".to_vec())
}

#[tokio::test(flavor = "multi_thread")]
async fn wrong_requests_are_one_clear_sentence() -> Outcome {
    let served = serve(small(), ServerConfig { body_bytes: 1_400_000, ..ServerConfig::default() }).await?;
    let base = words("x", 3);
    let edit = |field: &str, value: Json| {
        let mut asked = base.clone();
        asked[field] = value;
        asked
    };
    let format =
        |schema: Json| json!({"type": "json_schema", "json_schema": {"name": "x", "schema": schema}});
    for (asked, why) in [
        (json!([]), "-: expected an object, got a list of 0"),
        (json!({}), "messages: this field is missing"),
        (edit("temperature", json!(3)), "temperature: expected a number from 0 to 2, got 3"),
        (edit("temperature", json!("warm")), "temperature: expected a number from 0 to 2, got \"warm\""),
        (edit("n", json!(0)), "n: expected a whole number from 1 to 16"),
        (edit("n", json!(1e300)), "n: expected a whole number from 1 to 16"),
        (edit("max_tokens", json!(-1)), "max_tokens: expected a whole number of at least 1"),
        (edit("top_logprobs", json!(3)), "top_logprobs: only with"),
        (edit("stop", json!([1])), "stop: expected a text"),
        (edit("seed", json!(1.5)), "seed: expected a whole number"),
        (edit("stream", json!("yes")), "stream: expected true or false"),
        (edit("stream_options", json!({"include_usage": true})), "stream_options: only with"),
        (edit("logit_bias", json!({"5": 1})), "logit_bias: biases on tokens"),
        (edit("teapot", json!(1)), "teapot: this field is not known"),
        (edit("response_format", json!({"type": "teapot"})), "response_format.type: expected text"),
        (edit("response_format", format(json!({"type": "teapot"}))), "response_format: "),
        (edit("response_format", json!({"type": "regex", "regex": "("})), "response_format: "),
        (edit("tools", json!([{"type": "function"}])), "tools[0].function: this field is missing"),
        (
            edit("messages", json!([{"role": "user", "content": "y".repeat(20_000)}])),
            "-: prompt: expected at most 16383 tokens",
        ),
        (
            edit("messages", json!(vec![json!({"role": "user", "content": "y".repeat(200_000)}); 6])),
            "messages: 1200000 bytes of",
        ),
    ] {
        let got = chat(served.at, &asked).await?;
        assert_eq!(got.status, 400, "{:.300}: {}", asked.to_string(), got.text());
        let error = got.error()?;
        assert!(error.contains(why), "{:.300}: {error}", asked.to_string());
    }
    let at = served.at;
    let deep = format!("{{\"messages\": {}{}}}", "[".repeat(50_000), "]".repeat(50_000));
    for (body, kind, status, code) in [
        (b"{".to_vec(), JSON, 400, "invalid_json"),
        (b"".to_vec(), JSON, 400, "invalid_json"),
        (b"\xff\xfe".to_vec(), JSON, 400, "invalid_json"),
        (deep.into_bytes(), JSON, 400, "invalid_json"),
        (b"{}".to_vec(), "", 415, "unsupported_media_type"),
        (b"{}".to_vec(), "content-type: text/plain\r\n", 415, "unsupported_media_type"),
        (vec![b' '; 1_500_000], JSON, 413, "too_large"),
    ] {
        let got = send(at, "POST", "/v1/chat/completions", kind, &body).await?;
        assert_eq!((got.status, &got.json()?["error"]["code"]), (status, &json!(code)), "{}", got.text());
    }
    for (method, path, status) in [
        ("GET", "/v1/chat/completions", 405),
        ("POST", "/v1/models", 405),
        ("GET", "/nowhere", 404),
        ("GET", "/v1/models/another", 404),
    ] {
        let got = send(at, method, path, JSON, b"").await?;
        assert_eq!(got.status, status, "{method} {path}");
        got.error()?;
    }
    let other = chat(at, &edit("model", json!("gpt-9"))).await?;
    assert_eq!((other.status, &other.json()?["error"]["code"]), (404, &json!("model_not_found")));
    for (bytes, start) in
        [("nonsense\r\n\r\n", "HTTP/1.1 400"), ("GET / HTTP/1.1\r\nbroken\r\n\r\n", "HTTP/1.1 400")]
    {
        let got = raw(at, bytes.as_bytes()).await?;
        assert!(got.starts_with(start.as_bytes()), "{}", String::from_utf8_lossy(&got));
    }
    still_serves(&served).await
}

#[tokio::test(flavor = "multi_thread")]
async fn bodies_are_bounded_one_by_one_and_together() -> Outcome {
    let limits = ServerConfig { body_bytes: 300_000, bodies_bytes: 200_000, ..ServerConfig::default() };
    let served = serve(small(), limits).await?;
    let got = send(served.at, "POST", "/v1/chat/completions", JSON, &vec![b' '; 250_000]).await?;
    assert_eq!((got.status, got.head.contains("retry-after: 5")), (503, true), "{}", got.text());
    // In chunks nobody knows the length before.
    let chunked = |body: &str| {
        let head = format!("{JSON}connection: close\r\ntransfer-encoding: chunked");
        let length = body.len();
        format!(
            "POST /v1/chat/completions HTTP/1.1\r\nhost: localhost\r\n{head}\r\n\r\n{length:x}\r\n{body}\r\n0\r\n\r\n"
        )
    };
    let answered = raw(served.at, chunked(&words("in chunks", 3).to_string()).as_bytes()).await?;
    assert_eq!(Got::parse(&answered)?.status, 200);
    let refused = raw(served.at, chunked(&" ".repeat(250_000)).as_bytes()).await?;
    assert_eq!(Got::parse(&refused)?.status, 503);
    let served = serve(small(), ServerConfig { body_bytes: 300_000, ..ServerConfig::default() }).await?;
    let refused = raw(served.at, chunked(&" ".repeat(400_000)).as_bytes()).await?;
    assert_eq!(Got::parse(&refused)?.status, 413);
    still_serves(&served).await
}

#[tokio::test(flavor = "multi_thread")]
async fn slow_clients_are_cut_off() -> Outcome {
    let limits = ServerConfig { head_secs: 1, body_secs: 1, stall_secs: 1, ..ServerConfig::default() };
    let served = serve(small(), limits).await?;
    let patience = Duration::from_secs(8);
    // Half a head; nothing at all; and nothing after an answer: the connection is closed.
    for bytes in [&b"GET / HTT"[..], b"", b"GET /healthz HTTP/1.1\r\nhost: localhost\r\n\r\n"] {
        tokio::time::timeout(patience, raw(served.at, bytes)).await.map_err(|_| "it was kept open")??;
    }
    let head = format!(
        "POST /v1/chat/completions HTTP/1.1\r\nhost: localhost\r\n{JSON}content-length: 900\r\n\r\n{{"
    );
    let got = tokio::time::timeout(patience, raw(served.at, head.as_bytes())).await??;
    assert_eq!(Got::parse(&got)?.status, 408);
    // A body that breaks off is nobody's to answer.
    let mut client = TcpStream::connect(served.at).await?;
    client.write_all(head.as_bytes()).await?;
    drop(client);
    still_serves(&served).await
}

#[tokio::test(flavor = "multi_thread")]
async fn an_answer_has_its_time() -> Outcome {
    let served = serve(small(), ServerConfig { answer_secs: 0, ..ServerConfig::default() }).await?;
    assert_eq!(chat(served.at, &long(MOST)).await?.status, 504);
    until(async || Ok(served.service.engine().metrics().running == 0)).await
}

#[tokio::test(flavor = "multi_thread")]
async fn without_a_key_only_the_page_opens() -> Outcome {
    let limits = ServerConfig { keys: Keys::from_lines("alpha\nbeta\n"), ..ServerConfig::default() };
    let served = serve(small(), limits).await?;
    for path in ["/", "/healthz", "/openapi.json"] {
        assert_eq!(get(served.at, path).await?.status, 200, "{path}");
    }
    let body = words("x", 2).to_string();
    for (path, method) in [("/v1/models", "GET"), ("/metrics", "GET"), ("/v1/chat/completions", "POST")] {
        for key in ["", "authorization: Bearer gamma\r\n", "authorization: Bearer \r\n"] {
            let got = send(served.at, method, path, &format!("{JSON}{key}"), body.as_bytes()).await?;
            assert_eq!((got.status, &got.json()?["error"]["code"]), (401, &json!("invalid_api_key")));
            assert!(got.head.contains("www-authenticate: bearer"));
        }
        let headers = format!("{JSON}authorization: Bearer beta\r\n");
        assert_eq!(send(served.at, method, path, &headers, body.as_bytes()).await?.status, 200, "{path}");
    }
    Ok(())
}

#[tokio::test(flavor = "multi_thread")]
async fn the_end_waits_for_what_is_being_answered() -> Outcome {
    let mut served = serve(small(), ServerConfig::default()).await?;
    let at = served.at;
    let mut asked = long(1000);
    asked["stream"] = true.into();
    let answer = tokio::spawn(async move { chat(at, &asked).await });
    let begun = || served.service.engine().metrics().generated_tokens > 0;
    until(async || Ok(begun())).await?;
    served.ending.take().ok_or("it ended before")?.send(()).map_err(|()| "nobody listens")?;
    let events = answer.await??.events()?;
    let text: String =
        events.iter().filter_map(|event| event["choices"][0]["delta"]["content"].as_str()).collect();
    assert_eq!(text.len(), 1000);
    tokio::time::timeout(Duration::from_secs(10), &mut served.task).await??;
    assert!(TcpStream::connect(at).await.is_err(), "nobody is there any more");
    Ok(())
}

#[tokio::test(flavor = "multi_thread")]
async fn the_document_and_the_page_are_served() -> Outcome {
    let served = serve(small(), ServerConfig::default()).await?;
    let document = get(served.at, "/openapi.json").await?.json()?;
    for (path, methods) in document["paths"].as_object().ok_or("no paths")? {
        for method in methods.as_object().into_iter().flatten().map(|(method, _)| method.to_uppercase()) {
            let got = send(served.at, &method, &path.replace("{model}", "babbler"), JSON, b"{}").await?;
            let known = methods[method.to_lowercase()]["responses"][got.status.to_string()].is_object();
            assert!(known && got.status < 500, "{method} {path}: {}", got.status);
        }
    }
    for path in ["/camera", "/v1/models/nobody"] {
        let got = get(served.at, path).await?;
        let named = if path == "/camera" { path } else { "/v1/models/{model}" };
        assert!(
            got.status == 404 && document["paths"][named]["get"]["responses"]["404"].is_object(),
            "{path}"
        );
    }
    let page = get(served.at, "/").await?;
    assert!(page.head.contains("content-security-policy: default-src 'none'"));
    assert!(
        !page.text().contains("http://") && !page.text().contains("https://"),
        "the page asks nobody else"
    );
    let model = &get(served.at, "/v1/models").await?.json()?["data"][0];
    assert_eq!((&model["id"], &model["input_modalities"]), (&json!("babbler"), &json!(["text", "image"])));
    let metrics = get(served.at, "/metrics").await?.text();
    for name in ["time_to_first_token_seconds_bucket", "time_per_token_seconds_quantile{quantile=\"0.99\"}"] {
        assert!(metrics.contains(name), "{name}");
    }
    Ok(())
}
