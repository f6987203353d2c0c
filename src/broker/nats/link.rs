//! The connection: how it is made, what it has noticed, and requests over an inbox of its own.
//!
//! The client library reconnects for ever and says little: a denied permission or credentials that stopped working
//! come as events only. [`Link`] remembers the last such fault until the server takes us again, so that whoever
//! waits in vain can say why. Requests go over one inbox of ours, whose table forgets what was never answered.
//!
//! The client can also stop for good: it panics at a header with a lone carriage return. Its subscriptions end then,
//! which is how it is noticed, and another client takes its place.

use std::collections::HashMap;
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::Duration;

use async_nats::connection::State;
use async_nats::{
    Auth, AuthError, Client, ConnectOptions, Event, HeaderMap, Message, ServerError, Subject, Subscriber,
};
use bytes::Bytes;
use futures_util::StreamExt;
use parking_lot::{Mutex, RwLock};
use tokio::sync::oneshot;
use tokio_util::sync::CancellationToken;

use super::address::Address;
use crate::broker::{Error, NatsOptions, Options};

/// A server that says nothing for so long is asked; two unanswered questions end the connection.
const PING: Duration = Duration::from_secs(10);
/// Commands that wait for the connection's task.
const COMMANDS: usize = 16_384;
/// Messages of a subscription that wait for their reader, beyond which the client drops them: more than any worker has
/// slots, for a message and the answer to its renewal each.
const UNREAD: usize = 1 << 20;

/// Denials that are kept and told.
const DENIALS: usize = 4;
const CREDENTIALS: &str = "the NATS server refuses these credentials";

/// Why a request has no answer.
#[derive(Debug, thiserror::Error)]
pub enum RequestError {
    /// Nobody listens on the subject: no such stream or consumer, or no leader just now.
    #[error("nobody answers on {0}")]
    NoResponders(String),
    /// No answer in time.
    #[error("no answer on {0}")]
    TimedOut(String),
    /// The server does not let us.
    #[error("{0}")]
    Denied(String),
    /// Larger than the server's `max_payload`.
    #[error("{0}")]
    TooLarge(String),
}

/// What the connection's events have told.
#[derive(Debug, Default)]
pub struct Health {
    denied: Mutex<Vec<String>>,
    violations: AtomicU64,
}

/// A connection, shared by everything that uses it.
pub struct Link {
    /// How long a request may take.
    pub timeout: Duration,
    current: RwLock<Current>,
    address: Address,
    shown: String,
    options: Options,
    health: Arc<Health>,
    inbox: String,
    pending: Mutex<HashMap<u64, oneshot::Sender<Message>>>,
    next: AtomicU64,
    closed: CancellationToken,
}

struct Current {
    client: Arc<Client>,
    /// Connections of the clients before it.
    before: u64,
    /// It has stopped, and there is no other yet.
    stopped: bool,
}

impl Link {
    /// Connects, or says whether waiting may help.
    pub async fn connect(address: &Address, shown: &str, options: &Options) -> Result<Arc<Self>, Error> {
        let health = Arc::new(Health::default());
        let client = client(address, shown, options, health.clone()).await?;
        let link = Arc::new(Self {
            inbox: client.new_inbox(),
            current: RwLock::new(Current { client: Arc::new(client), before: 0, stopped: false }),
            address: address.clone(),
            shown: shown.to_owned(),
            timeout: options.timeout,
            options: options.clone(),
            health,
            pending: Mutex::default(),
            next: AtomicU64::new(0),
            closed: CancellationToken::new(),
        });
        let answers = link.answers(&link.client()).await?;
        tokio::spawn(link.clone().serve(answers));
        Ok(link)
    }

    /// The client of now.
    pub fn client(&self) -> Arc<Client> {
        self.current.read().client.clone()
    }

    /// How many connections were made so far: the number of this one.
    pub fn epoch(&self) -> u64 {
        let current = self.current.read();
        current.before + current.client.statistics().connects.load(Ordering::Acquire)
    }

    /// Whether there is a connection now.
    pub fn connected(&self) -> bool {
        let current = self.current.read();
        !current.stopped && current.client.connection_state() == State::Connected
    }

    async fn answers(&self, client: &Client) -> Result<Subscriber, Error> {
        let subscribed = client.subscribe(format!("{}.*", self.inbox)).await;
        subscribed.map_err(|error| Error::Unavailable(format!("failed to subscribe at {}: {error}", self.shown)))
    }

    /// Hands answers to whoever asked, and takes another client where one has stopped.
    async fn serve(self: Arc<Self>, mut answers: Subscriber) {
        loop {
            let message = tokio::select! {
                biased;
                message = answers.next() => message,
                () = self.closed.cancelled() => return,
            };
            if let Some(message) = message {
                self.answered(message);
                continue;
            }
            answers = tokio::select! {
                biased;
                () = self.closed.cancelled() => return,
                answers = self.replace() => answers,
            };
        }
    }

    fn answered(&self, message: Message) {
        let ticket = message.subject.rsplit_once('.').and_then(|(_, ticket)| ticket.parse().ok());
        let waiting = ticket.and_then(|ticket: u64| self.pending.lock().remove(&ticket));
        if let Some(waiting) = waiting {
            // Whoever asked may have given up meanwhile.
            let _ = waiting.send(message);
        }
    }

    /// Puts another client in the place of one that has stopped.
    async fn replace(&self) -> Subscriber {
        self.current.write().stopped = true;
        tracing::error!(
            "the NATS client has stopped, as it does at a header with a lone carriage return; another one is connected"
        );
        let mut attempts = 0;
        loop {
            let made = async {
                let client = client(&self.address, &self.shown, &self.options, self.health.clone()).await?;
                let answers = self.answers(&client).await?;
                Ok((client, answers))
            };
            match made.await {
                Ok((client, answers)) => {
                    // What was sent over the old one and what comes over this one differ by the connection's number.
                    let before = self.epoch();
                    *self.current.write() = Current { client: Arc::new(client), before, stopped: false };
                    return answers;
                }
                Err(error @ Error::Refused(_)) => self.health.refused(error.to_string()),
                Err(error) => tracing::debug!(error = %error, "connecting to NATS failed"),
            }
            attempts += 1;
            tokio::time::sleep(pause(attempts)).await;
        }
    }

    /// What the server refused since the connection was made: a permission, or credentials.
    pub fn denied(&self) -> Option<String> {
        let denied = self.health.denied.lock();
        (!denied.is_empty()).then(|| denied.join("; "))
    }

    /// How many refusals there were.
    pub fn violations(&self) -> u64 {
        self.health.violations.load(Ordering::Acquire)
    }

    /// Sends a request and waits for its answer.
    pub async fn request(
        &self,
        subject: impl Into<String>,
        headers: Option<HeaderMap>,
        payload: Bytes,
        timeout: Duration,
    ) -> Result<Message, RequestError> {
        let subject: Subject = Subject::from(subject.into());
        let ticket = self.next.fetch_add(1, Ordering::Relaxed);
        let (sender, answer) = oneshot::channel();
        self.pending.lock().insert(ticket, sender);
        let forget = Forget { pending: &self.pending, ticket };
        let violations = self.violations();
        let reply = Subject::from(format!("{}.{ticket}", self.inbox));
        let client = self.client();
        let exchange = async {
            let sent = match headers {
                Some(headers) => client.publish_with_reply_and_headers(subject.clone(), reply, headers, payload).await,
                None => client.publish_with_reply(subject.clone(), reply, payload).await,
            };
            if let Err(error) = sent {
                return Err(match error.kind() {
                    async_nats::PublishErrorKind::MaxPayloadExceeded => RequestError::TooLarge(error.to_string()),
                    _ => RequestError::TimedOut(format!("{subject} ({error})")),
                });
            }
            answer.await.map_err(|_| RequestError::TimedOut(subject.to_string()))
        };
        let answer = tokio::time::timeout(timeout, exchange).await;
        drop(forget);
        match answer {
            Ok(Ok(message)) if message.status == Some(async_nats::StatusCode::NO_RESPONDERS) => {
                Err(RequestError::NoResponders(subject.to_string()))
            }
            Ok(answer) => answer,
            Err(_) => match self.denied() {
                Some(denied) if self.violations() != violations || denied.contains(subject.as_str()) => {
                    Err(RequestError::Denied(denied))
                }
                _ => Err(RequestError::TimedOut(subject.to_string())),
            },
        }
    }

    /// Flushes and closes.
    pub async fn close(&self) {
        let client = self.client();
        // What is lost with the connection was not confirmed, and nobody waits for it any more.
        let _ = tokio::time::timeout(Duration::from_secs(1), client.flush()).await;
        self.closed.cancel();
        // Likewise; where it hangs the process ends, and the connection with it.
        let _ = tokio::time::timeout(Duration::from_secs(1), client.drain()).await;
    }
}

struct Forget<'a> {
    pending: &'a Mutex<HashMap<u64, oneshot::Sender<Message>>>,
    ticket: u64,
}

impl Drop for Forget<'_> {
    fn drop(&mut self) {
        self.pending.lock().remove(&self.ticket);
    }
}

/// Before the next try to connect.
fn pause(attempts: usize) -> Duration {
    let base = if attempts <= 1 { 0 } else { (1u64 << attempts.min(11)).min(2_000) };
    Duration::from_millis(base / 2 + fastrand::u64(0..=base / 2))
}

async fn client(address: &Address, shown: &str, options: &Options, health: Arc<Health>) -> Result<Client, Error> {
    let connecting = connect_options(address, options, health)?.connect(address.urls());
    connecting.await.map_err(|error| unreachable(shown, &error))
}

/// Whether the files that the options name are there and hold what they should.
pub fn check(address: &Address, options: &Options) -> Result<(), Error> {
    connect_options(address, options, Arc::default()).map(drop)
}

fn connect_options(address: &Address, options: &Options, health: Arc<Health>) -> Result<ConnectOptions, Error> {
    let secrets = Secrets { address: address.clone(), nats: options.nats.clone() };
    // Read once now, so that a missing file is said at the start and by its name.
    secrets.auth(b"").map_err(Error::Refused)?;
    let nats = &options.nats;
    let mut connect = ConnectOptions::with_auth_callback(move |nonce| {
        std::future::ready(secrets.auth(&nonce).map_err(AuthError::new))
    })
    .name(format!("windlass {}", options.worker))
    .ping_interval(PING)
    .connection_timeout(options.timeout.min(Duration::from_secs(5)))
    .request_timeout(Some(options.timeout))
    .client_capacity(COMMANDS)
    .subscription_capacity(UNREAD)
    .skip_subject_validation(true)
    .retain_servers_order()
    .reconnect_delay_callback(pause)
    .event_callback(move |event| {
        health.note(&event);
        std::future::ready(())
    });
    for file in [&nats.tls.ca_file, &nats.tls.cert_file, &nats.tls.key_file].into_iter().flatten() {
        std::fs::metadata(file)
            .map_err(|error| Error::Refused(format!("failed to read {}: {error}", file.display())))?;
    }
    if address.tls || nats.tls.first || nats.tls.ca_file.is_some() || nats.tls.cert_file.is_some() {
        connect = connect.require_tls(true);
    }
    if nats.tls.first {
        connect = connect.tls_first();
    }
    if let Some(file) = &nats.tls.ca_file {
        connect = connect.add_root_certificates(file.clone());
    }
    if let (Some(cert), Some(key)) = (&nats.tls.cert_file, &nats.tls.key_file) {
        connect = connect.add_client_certificate(cert.clone(), key.clone());
    }
    Ok(connect)
}

impl Health {
    fn note(&self, event: &Event) {
        match event {
            Event::Connected => {
                self.denied.lock().clear();
                tracing::info!("connected to NATS");
            }
            Event::Disconnected => tracing::warn!("the connection to NATS is lost; connecting again"),
            Event::LameDuckMode => tracing::info!("the NATS server is about to leave; another one will be used"),
            Event::ServerError(ServerError::Other(text)) if text.to_lowercase().contains("permissions violation") => {
                self.refused(format!("the NATS server denies it: {text}"));
                self.violations.fetch_add(1, Ordering::AcqRel);
            }
            Event::ServerError(ServerError::AuthorizationViolation) => self.refused(CREDENTIALS.to_owned()),
            Event::ServerError(error) => tracing::warn!(error = %error, "the NATS server reports an error"),
            Event::ClientError(error) => {
                let text = error.to_string();
                if text.contains("authorization") || text.contains("signing nonce") {
                    self.refused(format!("{CREDENTIALS}: {text}"));
                } else {
                    tracing::debug!(error = %text, "connecting to NATS failed");
                }
            }
            Event::SlowConsumer(_) => tracing::error!("messages were dropped by the NATS client: a bug in windlass"),
            Event::Draining | Event::Closed => {}
        }
    }

    /// Logged once, and kept until the server takes us anew.
    fn refused(&self, text: String) {
        let mut denied = self.denied.lock();
        if denied.len() < DENIALS && !denied.contains(&text) {
            tracing::error!(error = %text, "a permission or credentials are missing");
            denied.push(text);
        }
    }
}

/// Where secrets lie; read again at each connection.
struct Secrets {
    address: Address,
    nats: NatsOptions,
}

impl Secrets {
    fn auth(&self, nonce: &[u8]) -> Result<Auth, String> {
        let read = |file: &std::path::Path| {
            std::fs::read_to_string(file).map_err(|error| format!("failed to read {}: {error}", file.display()))
        };
        let mut auth = Auth::new();
        if let Some((user, password)) = &self.address.user {
            auth.username = Some(user.clone());
            auth.password = Some(password.clone());
        }
        auth.token = self.address.token.clone();
        if let Some(user) = &self.nats.user {
            auth.username = Some(user.clone());
        }
        if let Some(file) = &self.nats.password_file {
            auth.password = Some(read(file)?.trim_end_matches(['\r', '\n']).to_owned());
        }
        if let Some(file) = &self.nats.token_file {
            auth.token = Some(read(file)?.trim().to_owned());
        }
        if let Some(file) = &self.nats.nkey_file {
            let text = read(file)?;
            let seed = text.lines().map(str::trim).find(|line| line.starts_with('S'));
            let pair = seed.and_then(|seed| nkeys::KeyPair::from_seed(seed).ok());
            let pair = pair.ok_or_else(|| format!("{} holds no nkey seed (a line SU...)", file.display()))?;
            auth.signature = Some(pair.sign(nonce).map_err(|error| format!("failed to sign: {error}"))?);
            auth.nkey = Some(pair.public_key());
        }
        if let Some(file) = &self.nats.credentials_file {
            let text = read(file)?;
            let block = |name: &str| {
                let mut lines =
                    text.lines().map(str::trim).skip_while(|line| !(line.starts_with("---") && line.contains(name)));
                lines.nth(1).filter(|line| !line.is_empty()).map(str::to_owned)
            };
            let (jwt, seed) = (block("BEGIN NATS USER JWT"), block("BEGIN USER NKEY SEED"));
            let pair = seed.as_deref().and_then(|seed| nkeys::KeyPair::from_seed(seed).ok());
            let (Some(jwt), Some(pair)) = (jwt, pair) else {
                return Err(format!(
                    "{} is no credentials file: a user JWT and an nkey seed are expected",
                    file.display()
                ));
            };
            auth.signature = Some(pair.sign(nonce).map_err(|error| format!("failed to sign: {error}"))?);
            auth.jwt = Some(jwt);
        }
        Ok(auth)
    }
}

fn unreachable(shown: &str, error: &async_nats::ConnectError) -> Error {
    use async_nats::ConnectErrorKind as Kind;
    let mut text = error.to_string();
    let mut source = std::error::Error::source(error);
    while let Some(inner) = source {
        if !text.contains(&inner.to_string()) {
            text = format!("{text}: {inner}");
        }
        source = inner.source();
    }
    match error.kind() {
        Kind::Authentication | Kind::AuthorizationViolation => Error::Refused(format!(
            "{shown} refuses these credentials: {text}; set user, password_file, token_file, nkey_file or credentials_file under [nats]"
        )),
        Kind::Tls => Error::Refused(format!("failed to secure the connection to {shown}: {text}")),
        Kind::ServerParse => Error::Usage(format!("{shown} is no NATS address: {text}")),
        _ if text.contains("ertificate") => {
            Error::Refused(format!("failed to secure the connection to {shown}: {text}"))
        }
        _ => Error::Unavailable(format!("failed to connect to {shown}: {text}")),
    }
}
