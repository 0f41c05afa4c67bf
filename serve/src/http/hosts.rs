//! By which name a server on this machine is asked: a page from elsewhere whose name was pointed at this machine (DNS
//! rebinding) names itself, and is turned away.

use crate::Fault;
use hyper::header;
use hyper::http::request::Parts;
use std::net::IpAddr;
use std::str::FromStr;

/// Refuses a request to a server that listens to this machine alone if it was sent to another name than this
/// machine's or one of `known`.
pub(super) fn check(head: &Parts, known: &[String]) -> Result<(), Fault> {
    let named = head.headers.get(header::HOST).map(|host| host.to_str().unwrap_or("?"));
    let Some(named) = named.or(head.uri.authority().map(hyper::http::uri::Authority::as_str)) else {
        // Browsers always say.
        return Ok(());
    };
    let name = without_port(named).to_ascii_lowercase();
    let address = IpAddr::from_str(name.trim_start_matches('[').trim_end_matches(']'));
    let here =
        name == "localhost" || name.ends_with(".localhost") || address.is_ok_and(|at| at.is_loopback());
    if here || known.iter().any(|known| known.eq_ignore_ascii_case(&name)) {
        return Ok(());
    }
    let name: String = name.chars().take(80).collect();
    let message =
        format!("this server is asked as localhost; '{name}' is not a name that it was told to answer to");
    Err(Fault::refused(403, "unknown_host", message))
}

fn without_port(named: &str) -> &str {
    match named.rsplit_once(':') {
        Some((name, port)) if port.bytes().all(|b| b.is_ascii_digit()) && !name.is_empty() => name,
        _ => named,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn only_this_machine_s_names_are_known() -> Result<(), hyper::http::Error> {
        let sent = |host: &str| -> Result<bool, hyper::http::Error> {
            let (head, ()) = hyper::Request::get("/").header("host", host).body(())?.into_parts();
            Ok(check(&head, &["vela.example".to_owned()]).is_ok())
        };
        for known in [
            "localhost",
            "LocalHost:8080",
            "127.0.0.1:1",
            "127.9.9.9",
            "[::1]:80",
            "a.localhost",
            "vela.example:443",
        ] {
            assert!(sent(known)?, "{known}");
        }
        for other in [
            "evil.example",
            "evil.example:8080",
            "localhost.evil.example",
            "10.0.0.1",
            "",
            "[::2]",
            "127.0.0.1.evil",
        ] {
            assert!(!sent(other)?, "{other}");
        }
        Ok(())
    }
}
