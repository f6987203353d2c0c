//! What every integration test stands on: real servers, a proxy that breaks connections, and control of processes.
//!
//! Everything started here is a child that dies with its owner: killed by pid when dropped, and by the kernel when
//! the test process itself is killed. Nothing sleeps: [`wait`] asks for a condition until a deadline.

// Suites use what they need of this kit; what none needs yet is still part of it.
#![allow(dead_code)]

pub mod wait;

pub mod port;

pub mod process;

pub mod tool;

pub mod http;

pub mod nats;

pub mod kafka;

pub mod proxy;

pub mod worker;
