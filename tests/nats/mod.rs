//! What only NATS has: streams of others, credentials, limits of the server, moves that were cut in two.

mod kit;

mod streams;

mod security;

mod moves;

mod cluster;

mod order;

mod foreign;

mod outage;

mod killed;

mod scale;
