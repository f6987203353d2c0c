//! Connections by TLS: whom we trust, who we are, and what those hear who are not trusted.

use std::path::{Path, PathBuf};

use windlass::broker::{self, Disposition, Settled};

use super::desk::{Desk, body, take};
use crate::support::kafka::Kafka;
use crate::support::port;

/// A certificate that signs itself, and its key; and both in one file, as a broker reads them.
struct Identity {
    cert: PathBuf,
    key: PathBuf,
    both: PathBuf,
}

impl Identity {
    fn new(dir: &Path, name: &str) -> Self {
        let made = rcgen::generate_simple_self_signed(vec!["localhost".to_owned(), "127.0.0.1".to_owned()]).unwrap();
        let (cert, key) = (made.cert.pem(), made.signing_key.serialize_pem());
        let file = |name: String, text: &str| {
            let path = dir.join(name);
            std::fs::write(&path, text).unwrap();
            path
        };
        Self {
            both: file(format!("{name}-both.pem"), &format!("{key}{cert}")),
            cert: file(format!("{name}.pem"), &cert),
            key: file(format!("{name}-key.pem"), &key),
        }
    }
}

async fn works(desk: &mut Desk, name: &str) {
    let queue = desk.queue(name, &["a"]);
    let broker = desk.connect().await;
    desk.publish(&broker, "a", &[("in", None), ("bad", None)]).await;
    let mut opened = broker.open(&queue).await.unwrap();
    for delivery in take(&mut opened, 2).await {
        // A dead letter goes by a client of its own.
        let now = windlass::time::Clock::System.now();
        let disposition = if body(&delivery) == "in" {
            Disposition::Ack
        } else {
            Disposition::DeadLetter {
                reason: windlass::message::Reason::Permanent,
                failure: windlass::message::Failure::new("E", "no", now, now),
                attempts: 1,
                event_id: None,
                job: windlass::message::JobName::new("q").unwrap(),
            }
        };
        assert_eq!(opened.settler.settle(vec![delivery.settle(disposition)]).await, [Settled::Stored]);
    }
    broker.close().await;
}

async fn refused(desk: &Desk) -> broker::Error {
    let options = desk.options();
    broker::connect(&desk.address, options).await.err().expect("it is not let in")
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn certificates_are_checked_on_either_side_and_passwords_go_under_them() {
    let dir = tempfile::tempdir().unwrap();
    let (server, client, other) =
        (Identity::new(dir.path(), "server"), Identity::new(dir.path(), "client"), Identity::new(dir.path(), "other"));
    let [tls, mutual, sasl] = [port::free(), port::free(), port::free()];
    let listener = |name: &str| {
        format!(
            "listener.name.{name}.ssl.keystore.type=PEM\nlistener.name.{name}.ssl.keystore.location={}\n\
             listener.name.{name}.ssl.truststore.type=PEM\nlistener.name.{name}.ssl.truststore.location={}\n",
            server.both.display(),
            client.cert.display()
        )
    };
    let lines = format!(
        "listeners=PLAINTEXT://127.0.0.1:PORT,TLS://127.0.0.1:{tls},MUTUAL://127.0.0.1:{mutual},\
         SASL://127.0.0.1:{sasl},CONTROLLER://127.0.0.1:CONTROLLER_AT\n\
         advertised.listeners=PLAINTEXT://127.0.0.1:PORT,TLS://127.0.0.1:{tls},MUTUAL://127.0.0.1:{mutual},\
         SASL://127.0.0.1:{sasl}\n\
         listener.security.protocol.map=CONTROLLER:PLAINTEXT,PLAINTEXT:PLAINTEXT,TLS:SSL,MUTUAL:SSL,SASL:SASL_SSL\n\
         {}{}{}listener.name.mutual.ssl.client.auth=required\nsasl.enabled.mechanisms=PLAIN\n\
         listener.name.sasl.plain.sasl.jaas.config=org.apache.kafka.common.security.plain.PlainLoginModule required \
         user_alice=\"of-alice\";\n",
        listener("tls"),
        listener("mutual"),
        listener("sasl"),
    );
    let Some(_kafka) = Kafka::with(1, &lines) else { return };
    let at = |port: u16, login: &str, ca: &Identity, me: Option<&Identity>| {
        let mut desk = Desk::at(format!("kafka+tls://{login}127.0.0.1:{port}"));
        desk.kafka.tls.ca_file = Some(ca.cert.clone());
        desk.kafka.tls.cert_file = me.map(|me| me.cert.clone());
        desk.kafka.tls.key_file = me.map(|me| me.key.clone());
        desk
    };
    works(&mut at(tls, "", &server, None), "tls").await;
    works(&mut at(mutual, "", &server, Some(&client)), "mutual").await;
    works(&mut at(sasl, "alice:of-alice@", &server, None), "sasl").await;

    let stranger = refused(&at(tls, "", &other, None)).await;
    assert_eq!(stranger.exit_code(), 78, "{stranger}");
    assert!(stranger.to_string().contains("TLS"), "{stranger}");
    for me in [None, Some(&other)] {
        let unknown = refused(&at(mutual, "", &server, me)).await;
        assert_eq!(unknown.exit_code(), 78, "{unknown}");
        assert!(unknown.to_string().contains("TLS"), "{unknown}");
    }
    let wrong = refused(&at(sasl, "alice:wrong@", &server, None)).await.to_string();
    assert!(wrong.contains("the broker does not let us in") && wrong.lines().count() == 1, "{wrong}");
    let mut plain = at(tls, "", &server, None);
    plain.address = format!("kafka://127.0.0.1:{tls}");
    let plain = refused(&plain).await.to_string();
    assert!(plain.contains("kafka+tls://"), "{plain}");
}
