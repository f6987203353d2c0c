//! Who may connect and what they may do: every way in, and a denial that has a name.

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

#[test]
fn the_permissions_of_the_docs_are_enough() {
    let docs = include_str!("../../docs/nats.md");
    let block = docs.split("```\n").find(|block| block.contains("publish: {")).expect("the docs show permissions");
    let config =
        format!("authorization {{ users: [ {{ user: a, password: a, {} }} ] }}", block.replace("NAMESPACE", "t"));
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
