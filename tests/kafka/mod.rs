//! The Kafka adapter on a real broker: what the conformance suite cannot ask of every broker.

mod desk;

mod path;

mod start;

mod outage;

mod rebalance;

mod inspect;

mod letters;

mod head;

mod foreign;

mod delay;

mod loss;

mod security;

mod modes;

mod killed;

mod behind;

mod storm;

mod protocol;

mod tls;
