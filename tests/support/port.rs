//! Free ports on loopback that stay free until they are used.

use std::net::TcpListener;
use std::sync::atomic::{AtomicU32, Ordering};

/// Below the range that the kernel gives to outgoing connections, so that none of those takes a port between
/// choosing it and listening on it, or while a server is being restarted.
const FIRST: u32 = 11_000;
const COUNT: u32 = 20_000;

/// A port that nobody listens on. Never the same twice in one process; processes begin at places of their own.
pub fn free() -> u16 {
    static NEXT: AtomicU32 = AtomicU32::new(0);
    let start = std::process::id().wrapping_mul(641);
    for _ in 0..COUNT {
        let step = NEXT.fetch_add(1, Ordering::Relaxed);
        let port = (FIRST + start.wrapping_add(step) % COUNT) as u16;
        if TcpListener::bind(("127.0.0.1", port)).is_ok() {
            return port;
        }
    }
    panic!("no free port on loopback among {COUNT}");
}

#[test]
fn ports_differ() {
    let ports: std::collections::HashSet<u16> = (0..50).map(|_| free()).collect();
    assert_eq!(ports.len(), 50);
}
