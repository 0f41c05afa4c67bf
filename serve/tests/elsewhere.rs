//! What stands elsewhere: pictures at addresses, a camera, and who may ask a server on this machine.

mod common;

use common::*;
use serde_json::{Value as Json, json};
use std::net::SocketAddr;
use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::time::{Duration, Instant};
use tokio::io::{AsyncRead, AsyncReadExt, AsyncWrite, AsyncWriteExt};
use tokio::net::TcpListener;
use tokio_rustls::rustls::ServerConfig as TlsConfig;
use tokio_rustls::rustls::crypto::ring;
use tokio_rustls::rustls::pki_types::PrivateKeyDer;
use vela_serve::{Camera, CertificateDer, LinkHost, Links, ServerConfig, Shot};

/// What a server of files says to one request.
async fn tell(mut stream: impl AsyncRead + AsyncWrite + Unpin, file: &[u8], asked: &AtomicUsize) {
    let mut head = Vec::new();
    while !head.ends_with(b"\r\n\r\n") {
        let mut byte = [0];
        if stream.read_exact(&mut byte).await.is_err() {
            return;
        }
        head.push(byte[0]);
    }
    asked.fetch_add(1, Ordering::Relaxed);
    let head = String::from_utf8_lossy(&head).to_lowercase();
    let path = head.split(' ').nth(1).unwrap_or_default().to_owned();
    let length = file.len();
    let (head, body): (String, &[u8]) = match path.as_str() {
        "/a.png" => (format!("200 OK\r\ncontent-length: {length}"), file),
        "/moved" => ("302 Found\r\nlocation: /a.png\r\ncontent-length: 0".into(), b""),
        "/round" => ("307 Temporary\r\nlocation: /round\r\ncontent-length: 0".into(), b""),
        "/away" => ("302 Found\r\nlocation: http://localhost/a.png\r\ncontent-length: 0".into(), b""),
        "/huge" => ("200 OK\r\ncontent-length: 99999999".into(), b""),
        "/endless" => ("200 OK\r\nconnection: close".into(), &[7; 200_000]),
        "/slow" => ("200 OK\r\ncontent-length: 50".into(), b"\x89PNG"),
        "/cut" => (format!("200 OK\r\ncontent-length: {length}"), &file[..length / 2]),
        _ => ("404 Not Found\r\ncontent-length: 0".into(), b""),
    };
    let _ = stream.write_all(format!("HTTP/1.1 {head}\r\n\r\n").as_bytes()).await;
    let _ = stream.write_all(body).await;
    let _ = stream.flush().await;
    if path == "/slow" {
        tokio::time::sleep(Duration::from_secs(30)).await;
    }
    let _ = stream.shutdown().await;
}

/// A server of files on this machine, behind TLS if a certificate is given, and how often it was asked.
async fn files(tls: Option<Arc<TlsConfig>>) -> Outcome<(SocketAddr, Arc<AtomicUsize>, Vec<u8>)> {
    let file = picture(40, 30, 9, image::ImageFormat::Png)?;
    let listener = TcpListener::bind("127.0.0.1:0").await?;
    let (at, asked) = (listener.local_addr()?, Arc::new(AtomicUsize::new(0)));
    let (counted, given) = (asked.clone(), file.clone());
    tokio::spawn(async move {
        while let Ok((stream, _)) = listener.accept().await {
            let (counted, given, tls) = (counted.clone(), given.clone(), tls.clone());
            tokio::spawn(async move {
                match tls {
                    None => tell(stream, &given, &counted).await,
                    Some(tls) => {
                        let Ok(stream) = tokio_rustls::TlsAcceptor::from(tls).accept(stream).await else {
                            return;
                        };
                        tell(stream, &given, &counted).await;
                    }
                }
            });
        }
    });
    Ok((at, asked, file))
}

fn links(hosts: &[String], roots: Vec<CertificateDer<'static>>) -> Outcome<Links> {
    let hosts = hosts.iter().map(|host| host.parse::<LinkHost>()).collect::<Result<_, _>>()?;
    Ok(Links::new(hosts, roots, 100_000, 2)?)
}

async fn served(hosts: &[String], roots: Vec<CertificateDer<'static>>) -> Outcome<Served> {
    let links = links(hosts, roots)?;
    serve_with(small(), ServerConfig::default(), |service| Ok(service.with_links(links))).await
}

fn question(urls: &[&str]) -> Json {
    json!({"messages": [about(urls, "what?")], "max_tokens": 6, "temperature": 0})
}

#[tokio::test(flavor = "multi_thread")]
async fn pictures_are_fetched_from_hosts_that_were_named_and_from_no_others() -> Outcome {
    let (at, asked, file) = files(None).await?;
    let port = at.port();
    let served =
        served(&[at.to_string(), format!("localhost:{port}"), "example.invalid".into()], vec![]).await?;
    let here = |path: &str| format!("http://{at}{path}");
    let sent = chat(served.at, &question(&[&data_url("png", &file)])).await?.json()?;
    for path in ["/a.png", "/moved"] {
        let got = chat(served.at, &question(&[&here(path)])).await?;
        assert_eq!(got.status, 200, "{path}: {}", got.text());
        assert_eq!(got.json()?["choices"], sent["choices"], "{path}");
    }
    // The same picture, wherever it came from.
    assert_eq!(metric(served.at, "pictures_encoded_total").await?, 1.0);
    let before = asked.load(Ordering::Relaxed);
    for (url, why) in [
        (format!("http://127.0.0.2:{port}/a.png"), "is not among the hosts"),
        (format!("http://127.0.0.1:{}/a.png", port.wrapping_add(1).max(1)), "is not among the hosts"),
        ("http://[::1]/a.png".into(), "is not among the hosts"),
        ("http://2130706433/a.png".into(), "is not among the hosts"),
        ("http://example.invalid/a.png".into(), "no address"),
        (format!("http://user@{at}/a.png"), "user's name"),
        ("https://".into(), "expected a URL"),
        ("ftp://127.0.0.1/a.png".into(), "expected data:image/"),
    ] {
        let got = chat(served.at, &question(&[&url])).await?;
        let error = got.error()?;
        assert_eq!(got.status, 400, "{url}: {error}");
        assert!(
            error.starts_with("messages[0].content[0].image_url.url: ") && error.contains(why),
            "{url}: {error}"
        );
    }
    assert_eq!(asked.load(Ordering::Relaxed), before, "nobody was asked for these");
    for (path, why) in [
        ("/away", "another host"),
        ("/round", "more than 3 times"),
        ("/huge", "at most 100000 bytes"),
        ("/endless", "at most 100000 bytes"),
        ("/slow", "within 2 seconds"),
        ("/cut", "broke off"),
        ("/nothing", "status 404"),
    ] {
        let start = Instant::now();
        let got = chat(served.at, &question(&[&here(path)])).await?;
        assert_eq!((got.status, got.error()?.contains(why)), (400, true), "{path}: {}", got.text());
        assert!(start.elapsed() < Duration::from_secs(8), "{path}");
    }
    let many = vec![here("/a.png"); 33];
    let got = chat(served.at, &question(&many.iter().map(String::as_str).collect::<Vec<_>>())).await?;
    assert_eq!((got.status, got.error()?.contains("more pictures than")), (400, true));
    // A name is not the address behind it: that must be named itself, or be of the public internet.
    let by_name = self::served(&[format!("localhost:{port}"), "127.0.0.1:1".into()], vec![]).await?;
    let got = chat(by_name.at, &question(&[&format!("http://localhost:{port}/a.png")])).await?;
    assert_eq!((got.status, got.error()?.contains("private address")), (400, true));
    // Without leave nothing is fetched at all.
    let closed = serve(small(), ServerConfig::default()).await?;
    let got = chat(closed.at, &question(&[&here("/a.png")])).await?;
    assert_eq!((got.status, got.error()?.contains("fetches nothing")), (400, true));
    Ok(())
}

#[tokio::test(flavor = "multi_thread")]
async fn a_server_of_https_must_be_vouched_for() -> Outcome {
    let made = rcgen::generate_simple_self_signed(vec!["127.0.0.1".to_owned()])?;
    let root: CertificateDer<'static> = made.cert.der().clone();
    let key = PrivateKeyDer::try_from(made.signing_key.serialize_der())?;
    let tls = TlsConfig::builder_with_provider(Arc::new(ring::default_provider()))
        .with_safe_default_protocol_versions()?
        .with_no_client_auth()
        .with_single_cert(vec![root.clone()], key)?;
    let (at, ..) = files(Some(Arc::new(tls))).await?;
    let asked = question(&[&format!("https://{at}/a.png")]);
    let trusting = served(&[at.to_string()], vec![root]).await?;
    let got = chat(trusting.at, &asked).await?;
    assert_eq!(got.status, 200, "{}", got.text());
    let strict = served(&[at.to_string()], vec![]).await?;
    let got = chat(strict.at, &asked).await?;
    assert_eq!((got.status, got.error()?.contains("is not trusted")), (400, true), "{}", got.text());
    Ok(())
}

#[tokio::test(flavor = "multi_thread")]
async fn a_camera_is_looked_through() -> Outcome {
    let file = picture(8, 6, 3, image::ImageFormat::Png)?;
    let (looks, png) = (Arc::new(AtomicUsize::new(0)), file.clone());
    let camera = Camera::new(move || match looks.fetch_add(1, Ordering::Relaxed) {
        0 => Err("the camera has no picture yet".to_owned()),
        _ => Ok(Shot { png: png.clone().into(), caption: "pick up the grün cube".to_owned() }),
    });
    let served = serve(small(), ServerConfig { camera: Some(camera), ..ServerConfig::default() }).await?;
    assert_eq!(get(served.at, "/healthz").await?.json()?["camera"], true);
    let early = get(served.at, "/camera").await?;
    assert_eq!((early.status, early.error()?.as_str()), (503, "-: the camera has no picture yet"));
    let got = get(served.at, "/camera").await?;
    assert_eq!((got.status, &got.body), (200, &file));
    assert!(
        got.head.contains("content-type: image/png") && got.head.contains("x-caption: pick up the"),
        "{}",
        got.head
    );
    Ok(())
}

#[tokio::test(flavor = "multi_thread")]
async fn a_page_from_elsewhere_does_not_get_in_by_another_name() -> Outcome {
    let names = vec!["vela.example".to_owned()];
    let served = serve(small(), ServerConfig { names, ..ServerConfig::default() }).await?;
    let body = words("x", 2).to_string();
    for (host, status) in
        [("rebound.example:8080", 403), ("127.0.0.1.evil", 403), ("127.0.0.1:5", 200), ("Vela.Example", 200)]
    {
        for (method, path) in [("GET", "/"), ("GET", "/healthz"), ("POST", "/v1/chat/completions")] {
            let head = format!("{method} {path} HTTP/1.1\r\nhost: {host}\r\nconnection: close\r\n{JSON}");
            let sent = format!("{head}content-length: {}\r\n\r\n{body}", body.len());
            let got = Got::parse(&raw(served.at, sent.as_bytes()).await?)?;
            assert_eq!(got.status, status, "{method} {path} {host}: {}", got.text());
        }
    }
    let old = Got::parse(&raw(served.at, b"GET /healthz HTTP/1.0\r\n\r\n").await?)?;
    assert_eq!(old.status, 200);
    Ok(())
}
