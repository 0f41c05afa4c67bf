//! Pictures that stand at an address: fetched from hosts that were allowed by name, and from nowhere else.
//!
//! No host is allowed unless the server was started with it. Names are looked up once and the address that was found is
//! the one that is connected to; addresses that are not public (loopback, private, link-local and so on) are used only
//! if they stand in the list themselves. A redirect may lead to another path of the same host, three times. A file has
//! a most size and a most time.

use crate::Fault;
use hyper::body::{Body as _, Incoming};
use hyper::header::{self, HeaderValue};
use hyper::{Request, Response, Uri};
use hyper_util::rt::TokioIo;
use std::future::poll_fn;
use std::net::{IpAddr, Ipv6Addr, SocketAddr};
use std::pin::Pin;
use std::str::FromStr;
use std::sync::Arc;
use std::time::Duration;
use tokio::io::{AsyncRead, AsyncWrite};
use tokio::net::{TcpStream, lookup_host};
use tokio::sync::{OwnedSemaphorePermit, Semaphore};
use tokio_rustls::TlsConnector;
use tokio_rustls::rustls::crypto::ring;
use tokio_rustls::rustls::pki_types::{CertificateDer, ServerName};
use tokio_rustls::rustls::{ClientConfig, RootCertStore};

/// So many times may a host send us on.
const REDIRECTS: usize = 3;

/// A host that pictures may be fetched from: `example.org`, `example.org:8080`, `192.168.0.7`, `[::1]:9000`.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct LinkHost {
    /// In small letters, without brackets.
    name: String,
    /// Only this port; without one, 80 for http and 443 for https.
    port: Option<u16>,
}

impl FromStr for LinkHost {
    type Err = String;

    fn from_str(text: &str) -> Result<Self, String> {
        let wrong = || format!("expected a host such as example.org or example.org:8080, got '{text}'");
        if let Ok(address) = IpAddr::from_str(text) {
            return Ok(Self { name: address.to_string(), port: None });
        }
        let (name, port) = match text.rsplit_once(':') {
            Some((name, port)) if !port.ends_with(']') => {
                (name, Some(port.parse().ok().filter(|port| *port > 0).ok_or_else(wrong)?))
            }
            _ => (text, None),
        };
        let name = plain(name);
        let known = |c: char| c.is_ascii_alphanumeric() || "-._:".contains(c);
        let address = IpAddr::from_str(&name).is_ok();
        if name.is_empty() || !name.chars().all(known) || (name.contains(':') && !address) {
            return Err(wrong());
        }
        Ok(Self { name, port })
    }
}

/// A host's name in one spelling.
fn plain(host: &str) -> String {
    let inner = host.strip_prefix('[').and_then(|host| host.strip_suffix(']')).unwrap_or(host);
    let name = inner.strip_suffix('.').unwrap_or(inner).to_ascii_lowercase();
    IpAddr::from_str(&name).map_or(name, |address| address.to_string())
}

/// What may be fetched, and how.
pub struct Links {
    hosts: Vec<LinkHost>,
    /// KiB of files that are held at once.
    room: Arc<Semaphore>,
    most_bytes: usize,
    secs: u64,
    tls: TlsConnector,
}

impl std::fmt::Debug for Links {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Links").field("hosts", &self.hosts).finish_non_exhaustive()
    }
}

/// Where a URL leads.
#[derive(Clone, Debug, PartialEq, Eq)]
struct Target {
    tls: bool,
    host: String,
    port: u16,
    path: String,
}

impl Target {
    fn of(url: &str) -> Result<Self, String> {
        let uri: Uri = url.parse().map_err(|e| format!("expected a URL: {e}"))?;
        let tls = match uri.scheme_str() {
            Some(scheme) if scheme.eq_ignore_ascii_case("https") => true,
            Some(scheme) if scheme.eq_ignore_ascii_case("http") => false,
            _ => return Err("expected a URL that begins with http:// or https://".to_owned()),
        };
        let authority = uri.authority().map(hyper::http::uri::Authority::as_str).unwrap_or_default();
        if authority.contains('@') {
            return Err("a URL with a user's name in it is not fetched".to_owned());
        }
        let host = plain(uri.host().unwrap_or_default());
        if host.is_empty() {
            return Err("expected a URL with a host".to_owned());
        }
        let port = uri.port_u16().unwrap_or(if tls { 443 } else { 80 });
        let path = uri.path_and_query().map_or("/", hyper::http::uri::PathAndQuery::as_str).to_owned();
        Ok(Self { tls, host, port, path })
    }

    /// The `Host` header.
    fn authority(&self) -> String {
        let host = if self.host.contains(':') { format!("[{}]", self.host) } else { self.host.clone() };
        let usual = if self.tls { 443 } else { 80 };
        if self.port == usual { host } else { format!("{host}:{}", self.port) }
    }

    /// Where it sends us on.
    fn next(&self, location: &str) -> Result<Self, String> {
        let next = match location.strip_prefix('/') {
            Some(rest) if !rest.starts_with('/') => Self::of(&format!(
                "{}://{}{location}",
                if self.tls { "https" } else { "http" },
                self.authority()
            ))?,
            _ => Self::of(location).map_err(|_| "it sends us on to no URL that is followed".to_owned())?,
        };
        match next.host == self.host && (next.tls || !self.tls) {
            true => Ok(next),
            false => Err("it sends us on to another host, which is not followed".to_owned()),
        }
    }
}

/// Whether an address is one of the public internet.
fn is_public(address: IpAddr) -> bool {
    match address {
        IpAddr::V4(v4) => {
            let [a, b, c, _] = v4.octets();
            let special = matches!(
                (a, b, c),
                (0 | 127 | 240.., ..) | (100, 64..=127, _) | (192, 0, 0) | (192, 88, 99) | (198, 18..=19, _)
            );
            !(special
                || v4.is_private()
                || v4.is_link_local()
                || v4.is_multicast()
                || v4.is_broadcast()
                || v4.is_documentation())
        }
        IpAddr::V6(v6) => {
            let first = v6.segments()[0];
            // Those that carry an IPv4 address are as public as it is.
            match v6.to_ipv4_mapped() {
                Some(inner) => is_public(inner.into()),
                // Global unicast; without 6to4, documentation, and Teredo and its like.
                None => first & 0xe000 == 0x2000 && first != 0x2002 && !reserved(v6),
            }
        }
    }
}

fn reserved(v6: Ipv6Addr) -> bool {
    let [first, second, ..] = v6.segments();
    (first == 0x2001 && (second < 0x200 || second == 0xdb8)) || (first == 0x3fff && second < 0x1000)
}

trait Stream: AsyncRead + AsyncWrite + Send + Unpin {}
impl<S: AsyncRead + AsyncWrite + Send + Unpin> Stream for S {}

impl Links {
    /// Files of at most `most_bytes` from these hosts, each within `secs` seconds; `roots` are whom https servers must
    /// be vouched for by (DER). All files that are held at once may have 256 MiB.
    ///
    /// # Errors
    /// What the TLS library refuses.
    pub fn new(
        hosts: Vec<LinkHost>,
        roots: impl IntoIterator<Item = CertificateDer<'static>>,
        most_bytes: usize,
        secs: u64,
    ) -> Result<Self, Fault> {
        let mut store = RootCertStore::empty();
        store.add_parsable_certificates(roots);
        let tls = ClientConfig::builder_with_provider(Arc::new(ring::default_provider()))
            .with_safe_default_protocol_versions()
            .map_err(Fault::internal)?
            .with_root_certificates(store)
            .with_no_client_auth();
        let (room, tls) = (Arc::new(Semaphore::new(256 << 10)), TlsConnector::from(Arc::new(tls)));
        Ok(Self { hosts, room, most_bytes, secs, tls })
    }

    /// The bytes at a URL, and their share of the memory for files.
    pub(crate) async fn fetch(&self, url: &str) -> Result<(Vec<u8>, OwnedSemaphorePermit), Fault> {
        let fetching = async {
            let mut target = Target::of(url)?;
            for _ in 0..=REDIRECTS {
                let response = self.ask(&target).await?;
                match response.status().as_u16() {
                    200 => return self.receive(response.into_body()).await,
                    301 | 302 | 303 | 307 | 308 => {
                        let location = response.headers().get(header::LOCATION);
                        let location = location.and_then(|l| l.to_str().ok()).unwrap_or_default();
                        target = target.next(location)?;
                    }
                    status => return Err(format!("{} answered with status {status}", target.authority())),
                }
            }
            Err(format!("it sends us on more than {REDIRECTS} times"))
        };
        let fetched = tokio::time::timeout(Duration::from_secs(self.secs), fetching).await;
        let late = || Err(format!("the picture did not come within {} seconds", self.secs));
        fetched.unwrap_or_else(|_| late()).map_err(|why| Fault::invalid("", why))
    }

    /// The addresses of a target that may be connected to.
    async fn addresses(&self, target: &Target) -> Result<Vec<SocketAddr>, String> {
        let usual = if target.tls { 443 } else { 80 };
        let lists = |name: &str| {
            let fits = |host: &LinkHost| host.name == name && host.port.unwrap_or(usual) == target.port;
            self.hosts.iter().any(fits)
        };
        if !lists(&target.host) {
            let here = target.authority();
            return Err(format!("{here} is not among the hosts that pictures may be fetched from"));
        }
        let found: Vec<SocketAddr> = match IpAddr::from_str(&target.host) {
            Ok(address) => vec![(address, target.port).into()],
            Err(_) => match lookup_host((target.host.as_str(), target.port)).await {
                Ok(found) => found.collect(),
                Err(_) => return Err(format!("{} has no address that can be found", target.host)),
            },
        };
        let may = |at: &SocketAddr| is_public(at.ip()) || lists(&at.ip().to_string());
        let open: Vec<SocketAddr> = found.into_iter().filter(may).collect();
        match open.is_empty() {
            true => Err(format!("{} has a private address, which is not among the hosts", target.host)),
            false => Ok(open),
        }
    }

    async fn ask(&self, target: &Target) -> Result<Response<Incoming>, String> {
        let mut connected = None;
        for address in self.addresses(target).await? {
            if let Ok(stream) = TcpStream::connect(address).await {
                connected = Some(stream);
                break;
            }
        }
        let unreached = || format!("{} cannot be reached", target.authority());
        let stream = connected.ok_or_else(unreached)?;
        let stream: Box<dyn Stream> = if target.tls {
            let name = ServerName::try_from(target.host.clone()).map_err(|_| unreached())?;
            let secured = self.tls.connect(name, stream).await;
            Box::new(secured.map_err(|e| format!("{} is not trusted: {e}", target.authority()))?)
        } else {
            Box::new(stream)
        };
        let broken = |e: hyper::Error| format!("{} broke off: {e}", target.authority());
        let (mut sender, connection) =
            hyper::client::conn::http1::handshake(TokioIo::new(stream)).await.map_err(broken)?;
        // Ends with the sender and the body.
        tokio::spawn(connection);
        let request = Request::get(&target.path)
            .header(header::HOST, target.authority())
            .header(header::ACCEPT, HeaderValue::from_static("image/png, image/jpeg, image/webp"))
            .header(header::USER_AGENT, HeaderValue::from_static("vela"))
            .body(crate::http::Body::Whole(hyper::body::Bytes::new()))
            .map_err(|e| format!("expected a URL: {e}"))?;
        sender.send_request(request).await.map_err(broken)
    }

    async fn receive(&self, mut body: Incoming) -> Result<(Vec<u8>, OwnedSemaphorePermit), String> {
        let large = || format!("expected a file of at most {} bytes, got more", self.most_bytes);
        if body.size_hint().lower() > self.most_bytes as u64 {
            return Err(large());
        }
        let full = || "too many pictures are being fetched at once".to_owned();
        let take = |kib: usize| self.room.clone().try_acquire_many_owned(kib as u32).map_err(|_| full());
        let (mut bytes, mut share) = (Vec::new(), take(1)?);
        while let Some(frame) = poll_fn(|context| Pin::new(&mut body).poll_frame(context)).await {
            let Ok(data) = frame.map_err(|e| format!("the picture broke off: {e}"))?.into_data() else {
                continue;
            };
            if bytes.len() + data.len() > self.most_bytes {
                return Err(large());
            }
            bytes.extend_from_slice(&data);
            let wanted = (bytes.len() >> 10) + 1;
            if wanted > share.num_permits() {
                share.merge(take(wanted - share.num_permits())?);
            }
        }
        Ok((bytes, share))
    }
}

/// The pictures of one request.
#[derive(Debug, Default)]
pub struct Fetching<'a> {
    links: Option<&'a Links>,
    left: usize,
    held: Vec<OwnedSemaphorePermit>,
}

impl<'a> Fetching<'a> {
    /// At most so many files by `links`.
    pub fn new(links: Option<&'a Links>, most: usize) -> Self {
        Self { links, left: most, held: Vec::new() }
    }

    /// The file at a URL. Waits on this thread, of a runtime, and not inside an async task.
    pub(crate) fn fetch(&mut self, url: &str, field: &str) -> Result<Vec<u8>, Fault> {
        let Some(links) = self.links else {
            return Err(Fault::invalid(
                field,
                "this server fetches nothing from elsewhere: send the picture itself, as data:image/png;base64,…",
            ));
        };
        let Some(left) = self.left.checked_sub(1) else {
            return Err(Fault::invalid(field, "there are more pictures than a question may have"));
        };
        let fetched = tokio::runtime::Handle::current().block_on(links.fetch(url));
        let named = |fault: Fault| Fault { param: Some(field.to_owned()), ..fault };
        let (bytes, share) = fetched.map_err(named)?;
        self.left = left;
        self.held.push(share);
        Ok(bytes)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn hosts_are_named_exactly() -> Result<(), String> {
        let host = |text: &str| LinkHost::from_str(text);
        assert_eq!(host("Example.org.")?, LinkHost { name: "example.org".into(), port: None });
        assert_eq!(host("[::1]:9000")?, LinkHost { name: "::1".into(), port: Some(9000) });
        assert_eq!(host("0:0::1")?, host("[::1]")?);
        for wrong in ["", "http://a", "a/b", "a:0", "a:99999", "a b", "*", "a:b:c"] {
            assert!(host(wrong).is_err_and(|e| e.contains("expected a host")), "{wrong}");
        }
        Ok(())
    }

    #[test]
    fn only_the_public_internet_is_public() -> Result<(), std::net::AddrParseError> {
        for private in [
            "127.0.0.1",
            "10.1.2.3",
            "172.16.0.1",
            "192.168.1.1",
            "169.254.169.254",
            "100.64.0.1",
            "0.0.0.0",
            "224.0.0.1",
            "255.255.255.255",
            "192.0.0.1",
            "198.18.0.1",
            "240.0.0.1",
            "::1",
            "::",
            "fe80::1",
            "fd00::1",
            "ff02::1",
            "::ffff:127.0.0.1",
            "64:ff9b::7f00:1",
            "2002:7f00:1::",
            "2001:db8::1",
            "2001::1",
        ] {
            assert!(!is_public(private.parse()?), "{private}");
        }
        for public in ["93.184.216.34", "8.8.8.8", "2606:4700::1111", "::ffff:8.8.8.8"] {
            assert!(is_public(public.parse()?), "{public}");
        }
        Ok(())
    }

    #[test]
    fn a_redirect_stays_with_its_host() -> Result<(), String> {
        let at = Target::of("https://Example.org/a.png?x=1")?;
        assert_eq!((at.host.as_str(), at.port, at.path.as_str()), ("example.org", 443, "/a.png?x=1"));
        assert_eq!(at.next("/b.png")?.path, "/b.png");
        assert_eq!(Target::of("http://example.org/")?.next("https://example.org/c")?.port, 443);
        for away in ["https://other.org/b", "//other.org/b", "http://example.org/b", "file:///etc/passwd", ""]
        {
            assert!(at.next(away).is_err(), "{away}");
        }
        for wrong in ["ftp://a/b", "http://", "http://user@a/b", "http://a b/", "/only/a/path"] {
            assert!(Target::of(wrong).is_err(), "{wrong}");
        }
        Ok(())
    }
}
