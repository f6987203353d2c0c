//! Who may connect and what they may do: every way in, and a denial that has a name.

use futures_util::StreamExt;
use windlass::broker::{self, Disposition, NatsOptions, Trouble};

use super::kit::{connect, open, options, publish, queue, refusal, run};
use crate::support::nats::{Nats, Release};
use crate::support::wait;

fn file(dir: &tempfile::TempDir, name: &str, text: &str) -> std::path::PathBuf {
    let path = dir.path().join(name);
    std::fs::write(&path, text).expect("a temporary file");
    path
}

#[test]
fn passwords_tokens_and_seeds_are_read_from_files() {
    let dir = tempfile::tempdir().expect("a temporary folder");
    let pair = nkeys::KeyPair::new_user();
    let seed = pair.seed().expect("a seed");
    let ways = [
        (
            "authorization { user: bob, password: s3cret }".to_owned(),
            NatsOptions {
                user: Some("bob".to_owned()),
                password_file: Some(file(&dir, "password", "s3cret\n")),
                ..NatsOptions::default()
            },
        ),
        (
            "authorization { token: t0ken }".to_owned(),
            NatsOptions { token_file: Some(file(&dir, "token", "t0ken\n")), ..NatsOptions::default() },
        ),
        (
            format!("authorization {{ users: [ {{ nkey: {} }} ] }}", pair.public_key()),
            NatsOptions { nkey_file: Some(file(&dir, "seed", &seed)), ..NatsOptions::default() },
        ),
    ];
    for (server, nats) in ways {
        let Some(server) = Nats::with(Release::New, &server) else { return };
        run(async {
            let stranger = refusal(&server.url(), NatsOptions::default()).await;
            assert_eq!(stranger.exit_code(), 78, "{stranger}");
            assert!(stranger.to_string().contains("credentials"), "{stranger}");
            let broker = broker::connect(&server.url(), options(nats, &[])).await.expect("it is let in");
            publish(&broker, "orders", &["1"]).await;
            broker.close().await;
        });
    }
}

#[test]
fn a_password_in_the_address_works_and_is_never_shown() {
    let Some(server) = Nats::with(Release::New, "authorization { user: bob, password: s3cret }") else { return };
    run(async {
        let url = format!("nats://bob:s3cret@{}", server.host());
        let broker = connect(&url, &[]).await;
        assert_eq!(broker.address(), format!("nats://bob@{}", server.host()));
        broker.close().await;
        let wrong = refusal(&format!("nats://bob:wr0ng@{}", server.host()), NatsOptions::default()).await;
        assert_eq!(wrong.exit_code(), 78);
        assert!(!wrong.to_string().contains("wr0ng"), "{wrong}");
    });
}

#[test]
fn what_is_missing_or_not_there_says_so() {
    run(async {
        let nats = NatsOptions { token_file: Some("/nowhere/token".into()), ..NatsOptions::default() };
        let error = refusal("nats://127.0.0.1:1", nats).await;
        assert_eq!(error.exit_code(), 78);
        assert!(error.to_string().contains("/nowhere/token"), "{error}");
        let error = refusal("nats://127.0.0.1:1", NatsOptions::default()).await;
        assert_eq!(error.exit_code(), 69, "{error}");
        let unset = broker::Options { namespace_set: false, ..options(NatsOptions::default(), &[]) };
        let error = broker::connect("nats://10.255.255.1:4222", unset).await.err().expect("refused");
        assert_eq!(error.exit_code(), 78);
        assert!(error.to_string().contains("namespace"), "{error}");
    });
}

#[test]
fn the_first_server_of_an_address_may_be_dead() {
    let Some(server) = Nats::start(Release::New) else { return };
    run(async {
        let broker = connect(&format!("nats://127.0.0.1:1,{}", server.host()), &[]).await;
        publish(&broker, "orders", &["1"]).await;
        broker.close().await;
    });
}

#[test]
fn a_certificate_of_ours_is_checked() {
    let dir = tempfile::tempdir().expect("a temporary folder");
    let made = rcgen::generate_simple_self_signed(vec!["localhost".to_owned(), "127.0.0.1".to_owned()]);
    let made = made.expect("a certificate");
    let cert = file(&dir, "cert.pem", &made.cert.pem());
    let key = file(&dir, "key.pem", &made.signing_key.serialize_pem());
    let tls = format!("tls {{ cert_file: {cert:?}, key_file: {key:?} }}");
    let Some(server) = Nats::with(Release::New, &tls) else { return };
    run(async {
        // A test has no main that would have chosen it.
        let _ = rustls::crypto::ring::default_provider().install_default();
        let url = format!("nats+tls://localhost:{}", server.port());
        let stranger = refusal(&url, NatsOptions::default()).await;
        assert_eq!(stranger.exit_code(), 78, "{stranger}");
        let mut nats = NatsOptions::default();
        nats.tls.ca_file = Some(cert);
        let broker = broker::connect(&url, options(nats, &[])).await.expect("its certificate is known");
        publish(&broker, "orders", &["1"]).await;
        broker.close().await;
    });
}

#[test]
fn a_denied_permission_has_a_name() {
    let denied = "authorization { users: [ { user: a, password: a, \
                  permissions: { publish: { deny: [\"$JS.API.CONSUMER.MSG.NEXT.>\"] } } } ] }";
    let Some(server) = Nats::with(Release::New, denied) else { return };
    run(async {
        let invoice = queue("invoice", &["orders"]);
        let broker = connect(&format!("nats://a:a@{}", server.host()), std::slice::from_ref(&invoice)).await;
        publish(&broker, "orders", &["1"]).await;
        let mut work = open(&broker, &invoice).await;
        assert!(work.within(1, std::time::Duration::from_secs(1)).await.is_empty());
        wait::until(
            "the denial is visible",
            super::kit::SOON,
            || matches!(work.settler.trouble(), Some(Trouble::Broker(why)) if why.contains("MSG.NEXT.t_events.t_invoice")),
        );
        broker.close().await;
    });
}

/// What the documentation says that a worker of the queue `invoice` needs, in the namespace of these tests.
pub fn permissions() -> String {
    let docs = include_str!("../../docs/nats.md");
    let block = docs.split("```\n").find(|block| block.contains("publish: {")).expect("the docs show permissions");
    block.replace("NAMESPACE", "t")
}

#[test]
fn the_permissions_of_the_docs_are_enough() {
    let config = format!("authorization {{ users: [ {{ user: a, password: a, {} }} ] }}", permissions());
    let Some(server) = Nats::with(Release::New, &config) else { return };
    run(async {
        let invoice = queue("invoice", &["orders"]);
        let broker = connect(&format!("nats://a:a@{}", server.host()), std::slice::from_ref(&invoice)).await;
        let mut work = open(&broker, &invoice).await;
        publish(&broker, "orders", &["1", "2"]).await;
        let mut deliveries = work.take(2).await;
        work.stored(deliveries.remove(0), super::kit::retry(2)).await;
        work.stored(deliveries.remove(0), super::kit::dead("invoice")).await;
        let retried = work.one().await;
        assert_eq!(retried.attempt().get(), 2);
        work.stored(retried, Disposition::Ack).await;
        let letters = super::kit::letters(&broker).await;
        assert_eq!(letters.len(), 1);
        let dead = broker.dead_letters();
        let guard = dead.begin_replay(&invoice.name).await.expect("the right to replay");
        assert!(dead.replay(&letters, &Default::default()).await.into_iter().all(|done| matches!(done, Ok(true))));
        drop(guard);
        let replayed = work.one().await;
        work.stored(replayed, Disposition::Ack).await;
        broker.inspect().present(&[(invoice.name.clone(), 1)]).await.expect("presence");
        broker.inspect().status(&[]).await.expect("a status");
        broker.inspect().doctor().await.expect("findings");
        assert_eq!(work.settler.trouble(), None);
        broker.close().await;
    });
}

/// A token of the decentralised kind (NATS' JWT: ed25519, base64 without padding).
fn signed(signer: &nkeys::KeyPair, subject: &nkeys::KeyPair, expires: Option<u64>, nats: serde_json::Value) -> String {
    use base64::Engine as _;
    let encode = |bytes: &[u8]| base64::engine::general_purpose::URL_SAFE_NO_PAD.encode(bytes);
    let mut claims = serde_json::json!({
        "jti": format!("{}", fastrand::u64(..)), "iat": seconds(), "iss": signer.public_key(),
        "sub": subject.public_key(), "name": "test", "nats": nats,
    });
    if let Some(expires) = expires {
        claims["exp"] = serde_json::json!(expires);
    }
    let head = encode(br#"{"typ":"JWT","alg":"ed25519-nkey"}"#);
    let text = format!("{head}.{}", encode(claims.to_string().as_bytes()));
    let signature = encode(&signer.sign(text.as_bytes()).expect("signed"));
    format!("{text}.{signature}")
}

fn seconds() -> u64 {
    std::time::UNIX_EPOCH.elapsed().expect("after 1970").as_secs()
}

#[test]
fn a_credentials_file_is_read_again_at_each_connection() {
    let (operator, account, system) =
        (nkeys::KeyPair::new_operator(), nkeys::KeyPair::new_account(), nkeys::KeyPair::new_account());
    let limits = serde_json::json!({
        "type": "account", "version": 2, "limits": {
            "subs": -1, "conn": -1, "leaf": -1, "imports": -1, "exports": -1, "data": -1, "payload": -1,
            "wildcards": true, "mem_storage": -1, "disk_storage": -1, "streams": -1, "consumer": -1,
        },
    });
    let nothing = serde_json::json!({ "type": "account", "version": 2, "limits": {
        "subs": -1, "conn": -1, "leaf": -1, "imports": -1, "exports": -1, "data": -1, "payload": -1, "wildcards": true,
    }});
    let config = format!(
        "operator: \"{}\"\nsystem_account: {}\nresolver: MEMORY\nresolver_preload: {{ {}: \"{}\", {}: \"{}\" }}",
        signed(&operator, &operator, None, serde_json::json!({ "type": "operator", "version": 2 })),
        system.public_key(),
        account.public_key(),
        signed(&operator, &account, None, limits),
        system.public_key(),
        signed(&operator, &system, None, nothing),
    );
    let Some(server) = Nats::with(Release::New, &config) else { return };
    let user = nkeys::KeyPair::new_user();
    let credentials = |expires: Option<u64>| {
        let claims = serde_json::json!({ "type": "user", "version": 2, "subs": -1, "data": -1, "payload": -1 });
        format!(
            "-----BEGIN NATS USER JWT-----\n{}\n------END NATS USER JWT------\n\n-----BEGIN USER NKEY SEED-----\n{}\n\
             ------END USER NKEY SEED------\n",
            signed(&account, &user, expires, claims),
            user.seed().expect("a seed"),
        )
    };
    let dir = tempfile::tempdir().expect("a temporary folder");
    run(async {
        let stranger = refusal(&server.url(), NatsOptions::default()).await;
        assert_eq!(stranger.exit_code(), 78, "{stranger}");
        let nats = NatsOptions {
            credentials_file: Some(file(&dir, "user.creds", &credentials(Some(seconds() + 3)))),
            ..NatsOptions::default()
        };
        let invoice = queue("invoice", &["orders"]);
        let broker = broker::connect(&server.url(), options(nats, std::slice::from_ref(&invoice))).await;
        let broker = broker.expect("it is let in");
        let mut work = open(&broker, &invoice).await;
        let connection = || {
            let page = server.page("/connz");
            page["connections"].as_array().and_then(|all| all.first()).and_then(|first| first["cid"].as_u64())
        };
        let before = connection().expect("it is connected");
        file(&dir, "user.creds", &credentials(None));
        wait::until("the first credentials have expired and the second let it in", super::kit::SOON, || {
            connection().is_some_and(|now| now != before)
        });
        wait::until("it is connected", super::kit::SOON, || broker.connected());
        publish(&broker, "orders", &["1"]).await;
        let delivery = work.one().await;
        work.stored(delivery, Disposition::Ack).await;
        broker.close().await;
    });
}

#[test]
fn both_sides_may_ask_for_certificates_and_before_a_word_is_said() {
    let dir = tempfile::tempdir().expect("a temporary folder");
    let made = |name: &str| {
        let made = rcgen::generate_simple_self_signed(vec!["localhost".to_owned(), "127.0.0.1".to_owned()]);
        let made = made.expect("a certificate");
        let cert = file(&dir, &format!("{name}.pem"), &made.cert.pem());
        (cert, file(&dir, &format!("{name}-key.pem"), &made.signing_key.serialize_pem()))
    };
    let ((cert, key), (client, client_key)) = (made("server"), made("client"));
    for first in [false, true] {
        let tls = format!(
            "tls {{ cert_file: {cert:?}, key_file: {key:?}, ca_file: {client:?}, verify: true, handshake_first: {first} }}"
        );
        let Some(server) = Nats::with(Release::New, &tls) else { return };
        run(async {
            // A test has no main that would have chosen it.
            let _ = rustls::crypto::ring::default_provider().install_default();
            let url = format!("nats+tls://localhost:{}", server.port());
            let mut nats = NatsOptions::default();
            nats.tls.ca_file = Some(cert.clone());
            nats.tls.first = first;
            let stranger = refusal(&url, nats.clone()).await;
            assert!(matches!(stranger.exit_code(), 69 | 78), "{stranger}");
            nats.tls.cert_file = Some(client.clone());
            nats.tls.key_file = Some(client_key.clone());
            let broker = broker::connect(&url, options(nats, &[])).await.expect("both are known");
            publish(&broker, "orders", &["1"]).await;
            broker.close().await;
        });
    }
}

/// All that a worker does: works, retries, buries, replays, renews, looks. The first error that it met.
async fn everything(url: &str) -> Result<(), String> {
    let invoice = queue("invoice", &["orders"]);
    let said = |error: broker::Error| error.to_string();
    let quick = broker::Options {
        timeout: std::time::Duration::from_millis(1_500),
        ..options(NatsOptions::default(), std::slice::from_ref(&invoice))
    };
    let broker = broker::connect(url, quick).await.map_err(said)?;
    let opened = broker.open(&invoice).await.map_err(said)?;
    let mut work = super::kit::Work { source: opened.source, settler: opened.settler, notes: opened.notes };
    let done = async {
        for body in ["1", "2"] {
            super::kit::try_publish(&broker, "orders", body.into()).await.map_err(said)?;
        }
        let one = async |work: &mut super::kit::Work| {
            let trouble = || work.settler.trouble().map(|trouble| format!("{trouble:?}"));
            for _ in 0..60 {
                if let Some(trouble) = trouble() {
                    return Err(trouble);
                }
                let came = work.source.receive(super::kit::credit(1));
                if let Ok(came) = tokio::time::timeout(std::time::Duration::from_millis(200), came).await
                    && let Some(delivery) = came.map_err(said)?.pop()
                {
                    return Ok(delivery);
                }
            }
            Err("nothing came, and nobody said why".to_owned())
        };
        let settle = async |work: &super::kit::Work, delivery: broker::Delivery, disposition: Disposition| {
            let settling = work.settler.settle(vec![delivery.settle(disposition)]);
            let settled = tokio::time::timeout(std::time::Duration::from_secs(20), settling).await;
            let trouble = work.settler.trouble();
            match settled {
                Ok(settled) if settled == [broker::Settled::Stored] && trouble.is_none() => Ok(()),
                settled => Err(format!("{settled:?} {trouble:?}")),
            }
        };
        let delivery = one(&mut work).await?;
        settle(&work, delivery, super::kit::retry(2)).await?;
        let delivery = one(&mut work).await?;
        settle(&work, delivery, super::kit::dead("invoice")).await?;
        let delivery = one(&mut work).await?;
        settle(&work, delivery, Disposition::Ack).await?;
        let listed: Vec<_> = broker.dead_letters().list(Default::default()).collect().await;
        let letters = listed.into_iter().collect::<Result<Vec<_>, _>>().map_err(said)?;
        let dead = broker.dead_letters();
        drop(dead.begin_replay(&invoice.name).await.map_err(said)?);
        for replayed in dead.replay(&letters, &Default::default()).await {
            replayed.map_err(said)?;
        }
        let delivery = one(&mut work).await?;
        settle(&work, delivery, Disposition::Ack).await?;
        broker.inspect().present(&[(invoice.name.clone(), 1)]).await.map_err(said)?;
        broker.inspect().status(&[]).await.map_err(said)?;
        broker.inspect().doctor().await.map_err(said)?;
        // What is not asked for an answer is seen at the connection.
        match work.settler.trouble() {
            Some(trouble) => Err(format!("{trouble:?}")),
            None => Ok(()),
        }
    };
    let done = done.await;
    broker.close().await;
    done
}

#[test]
fn one_permission_less_has_a_name() {
    let block = permissions();
    let subjects: Vec<&str> = block.split('"').skip(1).step_by(2).filter(|subject| *subject != "_INBOX.>").collect();
    // What is never asked of a fresh server of the newest kind.
    let spared = |subject: &str| {
        subject.contains("STREAM.UPDATE")
            || subject.contains("STREAM.LIST")
            || subject.contains("STREAM.PURGE")
            || subject.contains("DIRECT.GET")
            || subject == "$JS.ACK.*.*.*.t_invoice.>"
    };
    let swept: Vec<&str> = subjects.into_iter().filter(|subject| !spared(subject)).collect();
    assert!(swept.len() >= 15, "{swept:?}");
    let sample = if crate::support::tool::full() { swept.len() } else { 3 };
    let offset = fastrand::usize(..swept.len());
    for subject in swept.iter().cycle().skip(offset).take(sample) {
        let less = block.replace(&format!("\"{subject}\","), "").replace(&format!("\"{subject}\""), "");
        assert_ne!(less, block);
        let config = format!("authorization {{ users: [ {{ user: a, password: a, {less} }} ] }}");
        let Some(server) = Nats::with(Release::New, &config) else { return };
        run(async {
            let error = everything(&format!("nats://a:a@{}", server.host())).await;
            let error = error.err().unwrap_or_else(|| panic!("without {subject} nothing was said"));
            assert!(error.to_lowercase().contains("permissions violation"), "without {subject}: {error}");
        });
    }
}
