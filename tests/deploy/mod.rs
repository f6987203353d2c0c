//! How a worker is packed and started: systemd, containers, local processes.

mod systemd;
