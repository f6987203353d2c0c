//! Raw client loops: what a broker's own client gives without a worker, for [`windlass bench`](crate::cli) to hold the
//! worker against.
//!
//! A loop is the honest best of its client: the settings and the shape that were measured to be fastest, the same
//! acknowledgements as the worker, and nothing else. Each lies in its adapter's folder, because a client library
//! never leaves it.

use bytes::Bytes;
use futures_util::future::BoxFuture;

use super::{Error, Options, memory};

/// Is given the body of each message that a loop has read.
pub type Seen<'a> = &'a (dyn Fn(&[u8]) + Sync);

/// The raw loops of one broker, and what a measurement needs made and removed there.
///
/// A topic here is `RUN.rN`: `RUN` is a namespace of the measurement's own, `N` the number of a round. Everything that
/// is made for it bears a name that begins with it, or with `RUN`.
pub trait Yardstick: Send + Sync {
    /// What the loops are called. The first gives the guarantee that the worker gives, and is what it is held against.
    fn loops(&self) -> &'static [&'static str];

    /// The address at which a worker finds `topic`.
    fn address(&self, topic: &str) -> String;

    /// Makes what `topic` is stored in, where a worker does not make it by itself.
    fn create<'a>(&'a self, topic: &'a str) -> BoxFuture<'a, Result<(), Error>>;

    /// Stores bodies for the loops, where they cannot read what was published for the worker; else nothing.
    fn fill<'a>(&'a self, _topic: &'a str, _bodies: Vec<Bytes>) -> BoxFuture<'a, Result<(), Error>> {
        Box::pin(std::future::ready(Ok(())))
    }

    /// Reads and acknowledges `count` messages by the loop of this index. Called once a loop and topic; may block the
    /// thread that polls it.
    fn consume<'a>(
        &'a self,
        topic: &'a str,
        index: usize,
        count: usize,
        seen: Seen<'a>,
    ) -> BoxFuture<'a, Result<(), Error>>;

    /// The runs whose names are here and begin with `prefix`, each once.
    fn runs<'a>(&'a self, prefix: &'a str) -> BoxFuture<'a, Result<Vec<String>, Error>>;

    /// Removes all that was made for a run or for one of its topics.
    fn remove<'a>(&'a self, name: &'a str) -> BoxFuture<'a, Result<(), Error>>;
}

/// The raw loops of the broker at `address`.
pub async fn connect(address: &str, options: &Options) -> Result<Box<dyn Yardstick>, Error> {
    let scheme = address.split_once("://").map_or("", |(scheme, _)| scheme);
    match scheme {
        "memory" => Ok(Box::new(memory::yardstick(options))),
        #[cfg(feature = "sqlite")]
        "sqlite" => Ok(Box::new(super::sqlite::yardstick(address, options)?)),
        #[cfg(feature = "nats")]
        "nats" | "nats+tls" | "tls" => Ok(Box::new(super::nats::yardstick(address, options).await?)),
        #[cfg(feature = "kafka")]
        "kafka" | "kafka+tls" => Ok(Box::new(super::kafka::yardstick(address, options)?)),
        // Says what is wrong with it: a scheme that there is not, or that was not compiled in.
        _ => Err(super::connect(address, options.clone())
            .await
            .err()
            .unwrap_or_else(|| Error::Usage(format!("{} cannot be measured", super::shown_address(address))))),
    }
}

/// Whether everything behind an address is on this machine.
pub fn is_local(address: &str) -> bool {
    let Some((scheme, rest)) = address.split_once("://") else { return true };
    if !matches!(scheme, "nats" | "nats+tls" | "tls" | "kafka" | "kafka+tls") {
        return true;
    }
    let hosts = rest.rsplit_once('@').map_or(rest, |(_, hosts)| hosts).trim_end_matches('/');
    hosts.split(',').filter(|host| !host.is_empty()).all(|host| {
        let bare = if host.contains("]") { host.split(']').next() } else { host.split(':').next() };
        let bare = bare.unwrap_or_default().trim_start_matches('[');
        bare == "localhost" || bare.parse::<std::net::IpAddr>().is_ok_and(|ip| ip.is_loopback())
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn machines_are_told_apart() {
        for local in [
            "memory://",
            "sqlite://far.example/x.db",
            "nats://127.0.0.1:4222",
            "nats://u:p@localhost",
            "tls://[::1]:4222",
            "kafka://127.0.0.1:9092,127.0.0.2:9092",
        ] {
            assert!(is_local(local), "{local}");
        }
        for far in ["nats://10.0.0.1:4222", "kafka://127.0.0.1:9092,b:9092", "nats://localhost@far.example"] {
            assert!(!is_local(far), "{far}");
        }
    }
}
