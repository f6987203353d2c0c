//! What an address says: `nats://[user:pass@]host:4222[,host:4222]`, `nats+tls://`, `tls://`.

use crate::broker::Error;

/// A parsed address.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Address {
    /// `host:port` of each server.
    pub servers: Vec<String>,
    /// Whether TLS is demanded.
    pub tls: bool,
    /// User and password.
    pub user: Option<(String, String)>,
    /// A token: a name without a password.
    pub token: Option<String>,
}

impl Address {
    /// Parses it.
    pub fn parse(text: &str) -> Result<Self, Error> {
        let usage = |why: &str| {
            let shown = crate::broker::shown_address(text);
            Error::Usage(format!(
                "{shown} is no NATS address: {why}; expected nats://[user:pass@]host:4222[,host:4222]"
            ))
        };
        let (scheme, rest) = text.split_once("://").ok_or_else(|| usage("the scheme is missing"))?;
        let tls = matches!(scheme, "nats+tls" | "tls");
        let rest = rest.strip_suffix('/').unwrap_or(rest);
        let (who, hosts) = match rest.rsplit_once('@') {
            Some((who, hosts)) => (Some(who), hosts),
            None => (None, rest),
        };
        let (user, token) = match who.map(|who| who.split_once(':').ok_or(who)) {
            Some(Ok((user, password))) => (Some((decode(user), decode(password))), None),
            Some(Err(token)) => (None, Some(decode(token))),
            None => (None, None),
        };
        let servers: Vec<String> = hosts
            .split(',')
            .map(|host| server(host.trim()))
            .collect::<Option<_>>()
            .ok_or_else(|| usage("a host or its port is wrong"))?;
        Ok(Self { servers, tls, user, token })
    }

    /// Whether every server is on this machine.
    pub fn is_loopback(&self) -> bool {
        self.servers.iter().all(|server| {
            let host = server.rsplit_once(':').map_or(server.as_str(), |(host, _)| host);
            let host = host.trim_start_matches('[').trim_end_matches(']');
            host == "localhost" || host.parse::<std::net::IpAddr>().is_ok_and(|ip| ip.is_loopback())
        })
    }

    /// As the client wants them.
    pub fn urls(&self) -> Vec<String> {
        let scheme = if self.tls { "tls" } else { "nats" };
        self.servers.iter().map(|server| format!("{scheme}://{server}")).collect()
    }
}

/// `host`, `host:port`, `[v6]`, `[v6]:port`; a repeated scheme is forgiven.
fn server(text: &str) -> Option<String> {
    let text = text.split_once("://").map_or(text, |(_, rest)| rest);
    let (host, port) = match text.rsplit_once(':') {
        Some((host, port)) if !port.contains(']') => (host, port.parse::<u16>().ok().filter(|&port| port > 0)?),
        _ => (text, 4_222),
    };
    let plain = !host.is_empty() && !host.contains(['/', '?', '#', ' ']);
    (plain && (host.starts_with('[') == host.contains(':'))).then(|| format!("{host}:{port}"))
}

fn decode(text: &str) -> String {
    let mut bytes = Vec::with_capacity(text.len());
    let mut rest = text.as_bytes();
    while let Some((&first, tail)) = rest.split_first() {
        let hex = tail.get(..2).filter(|_| first == b'%').and_then(|hex| std::str::from_utf8(hex).ok());
        match hex.and_then(|hex| u8::from_str_radix(hex, 16).ok()) {
            Some(byte) => {
                bytes.push(byte);
                rest = &tail[2..];
            }
            None => {
                bytes.push(first);
                rest = tail;
            }
        }
    }
    String::from_utf8_lossy(&bytes).into_owned()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn several_servers_and_credentials_are_read() {
        let address = Address::parse("nats+tls://u:p%40ss@a.example:4223,b.example,[::1]:5").expect("valid");
        assert_eq!(address.urls(), ["tls://a.example:4223", "tls://b.example:4222", "tls://[::1]:5"]);
        assert_eq!(address.user, Some(("u".to_owned(), "p@ss".to_owned())));
        assert!(!address.is_loopback());
        assert_eq!(Address::parse("tls://t0ken@localhost/").expect("valid").token, Some("t0ken".to_owned()));
    }

    #[test]
    fn loopback_is_recognised() {
        for (text, expected) in [
            ("nats://127.0.0.1:4222", true),
            ("nats://localhost", true),
            ("nats://[::1]:4222", true),
            ("nats://10.0.0.1", false),
            ("nats://127.0.0.1,10.0.0.1", false),
        ] {
            assert_eq!(Address::parse(text).expect("valid").is_loopback(), expected, "{text}");
        }
    }

    #[test]
    fn a_wrong_address_is_a_usage_error_without_the_password() {
        for bad in ["nats://", "nats://u:secret@h:99999", "nats://h:x", "nats://h/path?x"] {
            let error = Address::parse(bad).expect_err("wrong");
            assert_eq!(error.exit_code(), 2);
            assert!(!error.to_string().contains("secret"), "{error}");
        }
    }
}
