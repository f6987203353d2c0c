//! A broker's address: `sqlite://PATH`, `memory://`, `nats://HOST:4222`, `kafka://HOST:9092`; what becomes of it, and how
//! it is shown.

use std::sync::Arc;

#[cfg(feature = "kafka")]
use super::kafka;
#[cfg(feature = "nats")]
use super::nats;
#[cfg(feature = "sqlite")]
use super::sqlite;
use super::{Broker, Error, Options, memory};

/// Connects to the broker at `address`.
pub async fn connect(address: &str, options: Options) -> Result<Arc<dyn Broker>, Error> {
    let scheme = address.split_once("://").map_or("", |(scheme, _)| scheme);
    match scheme {
        "memory" => Ok(memory::connect(address, options)),
        #[cfg(feature = "sqlite")]
        "sqlite" => sqlite::connect(address, options).await,
        #[cfg(not(feature = "sqlite"))]
        "sqlite" => Err(absent("sqlite")),
        #[cfg(feature = "nats")]
        "nats" | "nats+tls" | "tls" => nats::connect(address, options).await,
        #[cfg(not(feature = "nats"))]
        "nats" | "nats+tls" | "tls" => Err(absent("nats")),
        #[cfg(feature = "kafka")]
        "kafka" | "kafka+tls" => kafka::connect(address, options).await,
        #[cfg(not(feature = "kafka"))]
        "kafka" | "kafka+tls" => Err(absent("kafka")),
        _ => Err(Error::Usage(format!(
            "{:?} is no broker's address; expected sqlite://PATH, nats://HOST:4222, kafka://HOST:9092 or memory://",
            shown_address(address)
        ))),
    }
}

/// What [`connect`] would refuse of an address and its options before it asks anybody: how they fit together, and what
/// is in the files that they name.
#[cfg_attr(not(any(feature = "nats", feature = "kafka")), allow(unused_variables, reason = "they alone have any"))]
pub(crate) fn check(address: &str, options: &Options) -> Result<(), Error> {
    match address.split_once("://").map_or("", |(scheme, _)| scheme) {
        #[cfg(feature = "nats")]
        "nats" | "nats+tls" | "tls" => nats::check(address, options),
        #[cfg(feature = "kafka")]
        "kafka" | "kafka+tls" => kafka::check(address, options),
        _ => Ok(()),
    }
}

/// What is wrong with a property that is passed on to the Kafka client, if this binary has it and it says so.
pub(crate) fn kafka_option_fault(name: &str, value: &str) -> Option<String> {
    #[cfg(feature = "kafka")]
    return kafka::option_fault(name, value);
    #[cfg(not(feature = "kafka"))]
    {
        let _ = (name, value); // Nobody is here who knows them.
        None
    }
}

#[cfg(not(all(feature = "sqlite", feature = "nats", feature = "kafka")))]
fn absent(feature: &str) -> Error {
    Error::Refused(format!("this binary was built without {feature}; build it with --features {feature}"))
}

/// The address without its password, and without what stands for one: on NATS a name alone is a token.
pub fn shown_address(address: &str) -> String {
    let Some((scheme, rest)) = address.split_once("://") else { return address.to_owned() };
    match rest.rsplit_once('@') {
        Some((user, host)) if scheme != "sqlite" => match user.split_once(':') {
            Some((name, _)) => format!("{scheme}://{name}@{host}"),
            None if matches!(scheme, "nats" | "nats+tls" | "tls") => format!("{scheme}://***@{host}"),
            None => format!("{scheme}://{user}@{host}"),
        },
        _ => address.to_owned(),
    }
}

/// Whether the address's hosts are all on this machine; true where it has none.
pub(crate) fn is_loopback(address: &str) -> bool {
    let Some((scheme, rest)) = address.split_once("://") else { return true };
    if matches!(scheme, "sqlite" | "memory") {
        return true;
    }
    let hosts = rest.rsplit_once('@').map_or(rest, |(_, hosts)| hosts);
    hosts.trim_end_matches('/').split(',').all(|host| {
        let name = match host.strip_prefix('[') {
            Some(rest) => rest.split(']').next().unwrap_or(rest),
            None => host.rsplit_once(':').map_or(host, |(name, _)| name),
        };
        name == "localhost" || name.parse::<std::net::IpAddr>().is_ok_and(|address| address.is_loopback())
    })
}
