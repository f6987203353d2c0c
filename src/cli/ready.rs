//! `ready [URL]`: for container health checks.

use std::process::ExitCode;

use clap::Args;

use super::Done;
use super::fault::{FAILED, Fault};
use super::session::{Session, runtime};
use super::shape::Ready;

/// Flags of `ready`.
#[derive(Args, Debug)]
#[command(after_help = "\
Examples:
  windlass ready                             # http://127.0.0.1:7464, or what admin.listen says
  windlass ready http://10.0.0.7:7464
  HEALTHCHECK CMD [\"windlass\", \"ready\", \"--timeout\", \"2s\"]      # in a Dockerfile

Leaves with 0 where the worker is ready, else with 1.")]
pub struct Arguments {
    /// Where to ask; else /ready of the configuration's admin.listen
    url: Option<String>,
}

/// Asks.
pub fn run(session: Session, arguments: Arguments) -> Done {
    let url = match arguments.url {
        Some(url) => complete(&url),
        None => default_url(&session)?,
    };
    let answer = runtime()?.block_on(ask(&url, session.global.timeout));
    let ready = answer.is_ok();
    if session.json() {
        let mut out = session.output();
        out.json(&Ready { url: &url, ready })?;
        out.flush()?;
    }
    match answer {
        Ok(()) => {
            if !session.json() {
                session.note("ready");
            }
            Ok(ExitCode::SUCCESS)
        }
        Err(text) => Err(Fault::new(FAILED, text)),
    }
}

/// `10.0.0.7:7464` and `http://10.0.0.7:7464` mean `http://10.0.0.7:7464/ready`.
fn complete(url: &str) -> String {
    let url = if url.contains("://") { url.to_owned() } else { format!("http://{url}") };
    let after_scheme = url.find("://").map_or(0, |at| at + 3);
    match url[after_scheme..].split_once('/') {
        Some((_, path)) if !path.is_empty() => url,
        _ => format!("{}/ready", url.trim_end_matches('/')),
    }
}

fn default_url(session: &Session) -> Result<String, Fault> {
    let mut listen = session.load()?.admin.listen.ok_or_else(|| {
        Fault::usage("the admin port is off (admin.listen = \"none\"); give the address of a worker that has one")
    })?;
    // Where it listens on every address, it can be asked on this machine's own.
    if listen.ip().is_unspecified() {
        listen.set_ip(match listen {
            std::net::SocketAddr::V4(_) => std::net::Ipv4Addr::LOCALHOST.into(),
            std::net::SocketAddr::V6(_) => std::net::Ipv6Addr::LOCALHOST.into(),
        });
    }
    Ok(format!("http://{listen}/ready"))
}

async fn ask(url: &str, timeout: std::time::Duration) -> Result<(), String> {
    // reqwest asks for the process's provider of cryptography; that one is set already is fine.
    let _ = rustls::crypto::ring::default_provider().install_default();
    let client =
        reqwest::Client::builder().timeout(timeout).no_proxy().redirect(reqwest::redirect::Policy::none()).build();
    let client = client.map_err(|error| format!("{url}: {}", causes(&error)))?;
    let response = client.get(url).send().await.map_err(|error| format!("{url}: {}", causes(&error.without_url())))?;
    let status = response.status();
    let body = response.text().await.unwrap_or_default();
    match serde_json::from_str::<Body>(&body) {
        Ok(_) if status.is_success() => Ok(()),
        Ok(body) => Err(format!("{url}: {}{}", status.as_u16(), failed_checks(body))),
        Err(_) => Err(format!(
            "{url}: {}, which is no worker's answer: has another program this port? A worker that finds its default port \
             taken logs which one it took instead; `windlass ready URL` asks there",
            status.as_u16()
        )),
    }
}

/// What a worker answers.
#[derive(serde::Deserialize)]
struct Body {
    checks: Vec<Check>,
}

#[derive(serde::Deserialize)]
struct Check {
    name: String,
    status: String,
    #[serde(default)]
    detail: Option<String>,
}

/// The failed checks that a worker names.
fn failed_checks(body: Body) -> String {
    let failed: Vec<String> = body
        .checks
        .into_iter()
        .filter(|check| check.status != "ok")
        .map(|check| match check.detail {
            Some(detail) if !detail.is_empty() => format!("{} ({detail})", check.name),
            _ => check.name,
        })
        .collect();
    if failed.is_empty() { String::new() } else { format!(", not ready: {}", failed.join(", ")) }
}

fn causes(error: &reqwest::Error) -> String {
    if error.is_timeout() {
        return "no answer in time".to_owned();
    }
    let mut deepest: &dyn std::error::Error = error;
    while let Some(inner) = deepest.source() {
        deepest = inner;
    }
    let text = deepest.to_string();
    text.split(" (os error").next().unwrap_or(&text).to_lowercase()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn addresses_are_completed() {
        for (given, meant) in [
            ("10.0.0.7:7464", "http://10.0.0.7:7464/ready"),
            ("http://h:1/", "http://h:1/ready"),
            ("http://h:1", "http://h:1/ready"),
            ("http://h:1/readyz", "http://h:1/readyz"),
        ] {
            assert_eq!(complete(given), meant);
        }
    }

    #[test]
    fn failed_checks_are_named() {
        let body = r#"{"status":"not ready","checks":[{"name":"broker","status":"failed","detail":"down"},{"name":"x","status":"ok"}]}"#;
        let body = serde_json::from_str(body).expect("an answer");
        assert_eq!(failed_checks(body), ", not ready: broker (down)");
    }
}
