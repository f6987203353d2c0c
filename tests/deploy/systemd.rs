//! The unit file, and what a worker tells its manager.

use std::os::unix::net::UnixDatagram;
use std::path::Path;
use std::process::Command;
use std::time::Duration;

use crate::support::worker::{self, Worker};

const UNIT: &str = "deploy/windlass.service";

fn read(socket: &UnixDatagram) -> String {
    let mut buffer = [0; 64];
    let length = socket.recv(&mut buffer).expect("a datagram within a minute");
    String::from_utf8_lossy(&buffer[..length]).into_owned()
}

#[test]
fn a_worker_tells_its_manager_how_it_does() {
    let dir = tempfile::tempdir().expect("a temporary folder");
    let text = "broker = \"sqlite://q.db\"\nqueues.q.job = \"log\"\n";
    std::fs::write(dir.path().join("windlass.toml"), text).expect("a temporary file");
    let path = dir.path().join("notify");
    let socket = UnixDatagram::bind(&path).expect("a socket");
    socket.set_read_timeout(Some(Duration::from_secs(60))).expect("a timeout");

    let mut command = worker::command(dir.path());
    command.arg("run").env("NOTIFY_SOCKET", &path).env("WATCHDOG_USEC", "100000").env_remove("WATCHDOG_PID");
    let mut worker = Worker::spawn(dir.path(), "worker", command);
    let until = |what: &str| {
        let mut heard = Vec::new();
        while heard.last().is_none_or(|last| last != what) {
            heard.push(read(&socket));
        }
        heard
    };
    until("READY=1");
    // Ready is true: whoever waits for it can rely on it.
    worker.ready();
    assert_eq!(until("WATCHDOG=1"), ["WATCHDOG=1"], "ready is told once");
    worker.process.signal(libc::SIGTERM);
    until("STOPPING=1");
    assert_eq!(worker.process.code(Duration::from_secs(60)), 0);
}

#[test]
fn the_unit_is_one_that_systemd_understands() {
    let unit = std::fs::read_to_string(Path::new(env!("CARGO_MANIFEST_DIR")).join(UNIT)).expect("the unit is there");
    for needed in ["Type=notify", "WatchdogSec=", "RestartPreventExitStatus=2 78", "TimeoutStopSec=40"] {
        assert!(unit.contains(needed), "{UNIT} has no {needed}");
    }
    let dir = tempfile::tempdir().expect("a temporary folder");
    // It looks whether the program is there.
    let unit = unit.replace("/usr/local/bin/windlass", worker::BINARY);
    let path = dir.path().join("windlass.service");
    std::fs::write(&path, unit).expect("a temporary file");
    match Command::new("systemd-analyze").args(["verify", "--man=no"]).arg(&path).output() {
        Ok(output) => {
            let said = String::from_utf8_lossy(&output.stderr);
            // What it says of other units of this machine is no matter of ours.
            let ours: Vec<&str> = said.lines().filter(|line| line.contains("windlass")).collect();
            assert!(ours.is_empty(), "{}", ours.join("\n"));
        }
        Err(_) => eprintln!("not here: systemd-analyze, to read {UNIT}"),
    }
}
