//! A real `nats-server`: one node, or a cluster of three on loopback.

use std::path::{Path, PathBuf};
use std::process::Command;
use std::time::Duration;

use super::process::Process;
use super::{http, port, tool, wait};

/// Which server; `scripts/versions` says what that is today.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Release {
    /// The newest.
    New,
    /// The oldest line that is supported: 2.10.
    Old,
    /// 2.12, for the long runs.
    V2_12,
    /// 2.14, for the long runs.
    V2_14,
    /// One that is too old and must be refused.
    Refused,
}

impl Release {
    fn names(self) -> (&'static str, &'static str) {
        match self {
            Self::New => ("WINDLASS_TEST_NATS_SERVER", "NATS_SERVER"),
            Self::Old => ("WINDLASS_TEST_NATS_SERVER_OLD", "NATS_SERVER_OLD"),
            Self::V2_12 => ("WINDLASS_TEST_NATS_SERVER_2_12", "NATS_SERVER_2_12"),
            Self::V2_14 => ("WINDLASS_TEST_NATS_SERVER_2_14", "NATS_SERVER_2_14"),
            Self::Refused => ("WINDLASS_TEST_NATS_SERVER_REFUSED", "NATS_SERVER_REFUSED"),
        }
    }

    /// The binary; `None`, reported, where it is not here.
    pub fn binary(self) -> Option<PathBuf> {
        let (variable, name) = self.names();
        let version = tool::version(name);
        tool::find(&format!("nats-server {version}"), variable, &format!("nats-server-{version}/nats-server"))
    }
}

/// A server with JetStream in a folder of its own, on ports that stay its own over restarts.
pub struct Nats {
    binary: PathBuf,
    name: String,
    port: u16,
    monitor: u16,
    dir: Dir,
    process: Option<Process>,
}

enum Dir {
    Own(tempfile::TempDir),
    Shared(PathBuf),
}

impl Nats {
    /// A single server of this release, ready for JetStream. `None`: it is not here.
    pub fn start(release: Release) -> Option<Self> {
        Self::with(release, "")
    }

    /// A single server with further lines of configuration (`max_payload: 1MB`, `authorization {..}`); what stands
    /// in them goes before what stands here. `jetstream { .. }` is here: say more of it with [`Nats::with_jetstream`].
    pub fn with(release: Release, extra: &str) -> Option<Self> {
        Self::with_jetstream(release, "", extra)
    }

    /// [`Nats::with`], with further lines inside `jetstream { .. }` (`sync_interval: always`, `max_file_store: 1MB`).
    pub fn with_jetstream(release: Release, jetstream: &str, extra: &str) -> Option<Self> {
        let binary = release.binary()?;
        let dir = tempfile::tempdir().expect("a temporary folder");
        let mut server = Self {
            binary,
            name: "nats".to_owned(),
            port: port::free(),
            monitor: port::free(),
            dir: Dir::Own(dir),
            process: None,
        };
        server.write(jetstream, extra);
        server.run();
        Some(server)
    }

    fn write(&self, jetstream: &str, extra: &str) {
        let (name, port, monitor) = (&self.name, self.port, self.monitor);
        let store = self.path().join(format!("{name}-store"));
        let text = format!(
            "server_name: {name}\nhost: 127.0.0.1\nport: {port}\nhttp: 127.0.0.1:{monitor}\n\
             lame_duck_duration: 30s\nlame_duck_grace_period: 1s\n\
             jetstream {{\nstore_dir: {store:?}\n{jetstream}\n}}\n{extra}\n"
        );
        std::fs::write(self.config(), text).expect("a temporary file");
    }

    fn config(&self) -> PathBuf {
        self.path().join(format!("{}.conf", self.name))
    }

    fn path(&self) -> &Path {
        match &self.dir {
            Dir::Own(dir) => dir.path(),
            Dir::Shared(path) => path,
        }
    }

    fn spawn(&mut self) {
        let mut command = Command::new(&self.binary);
        command.arg("-c").arg(self.config());
        let process = Process::spawn(&self.name, command, self.path()).expect("nats-server can be started");
        self.process = Some(process);
    }

    /// Starts it again on its port and its folder, and waits until JetStream is ready.
    pub fn run(&mut self) {
        self.spawn();
        self.ready();
    }

    fn ready(&mut self) {
        let monitor = self.monitor;
        let process = self.process.as_mut().expect("it was started");
        process.until("is ready", Duration::from_secs(20), |_| {
            http::get(monitor, "/healthz").is_some_and(|(status, _)| status == 200)
        });
    }

    /// `127.0.0.1:PORT`
    pub fn host(&self) -> String {
        format!("127.0.0.1:{}", self.port)
    }

    /// `nats://127.0.0.1:PORT`
    pub fn url(&self) -> String {
        format!("nats://{}", self.host())
    }

    /// The port that clients connect to.
    pub fn port(&self) -> u16 {
        self.port
    }

    /// The port of its monitoring pages (`/varz`, `/jsz?consumers=true`, `/connz`).
    pub fn monitor(&self) -> u16 {
        self.monitor
    }

    /// A monitoring page as JSON.
    pub fn page(&self, path: &str) -> serde_json::Value {
        let (_, body) = http::get(self.monitor, path).expect("the server answers");
        serde_json::from_str(&body).expect("monitoring pages are JSON")
    }

    /// The process, for signals and memory.
    ///
    /// # Panics
    /// Where it was stopped.
    pub fn process(&mut self) -> &mut Process {
        self.process.as_mut().expect("the server runs")
    }

    /// SIGKILL; what is on its disk stays.
    pub fn kill(&mut self) {
        self.process = None;
    }

    /// SIGTERM, and waits until it has left.
    pub fn stop(&mut self) {
        if let Some(mut process) = self.process.take() {
            process.signal(libc::SIGTERM);
            process.wait(Duration::from_secs(20));
        }
    }

    /// SIGKILL and a new start on the same folder.
    pub fn restart(&mut self) {
        self.kill();
        self.run();
    }

    /// Lame duck: it tells its clients to go, and closes the connections of those that stay,
    /// from a second on, over the half minute that is the least a server admits.
    pub fn lame_duck(&mut self) {
        self.process().signal(libc::SIGUSR2);
    }
}

/// Three servers that make one JetStream.
pub struct Cluster {
    /// The nodes; each can be killed and run again.
    pub nodes: Vec<Nats>,
    _dir: tempfile::TempDir,
}

impl Cluster {
    /// Three nodes with a leader. `None`: the server is not here.
    pub fn start(release: Release) -> Option<Self> {
        let binary = release.binary()?;
        let dir = tempfile::tempdir().expect("a temporary folder");
        let routes: Vec<u16> = (0..3).map(|_| port::free()).collect();
        let listed = routes.iter().map(|port| format!("nats://127.0.0.1:{port}")).collect::<Vec<_>>().join(", ");
        let mut nodes = Vec::new();
        for (index, route) in routes.iter().enumerate() {
            let mut node = Nats {
                binary: binary.clone(),
                name: format!("n{}", index + 1),
                port: port::free(),
                monitor: port::free(),
                dir: Dir::Shared(dir.path().to_owned()),
                process: None,
            };
            node.write("", &format!("cluster {{ name: c, listen: \"127.0.0.1:{route}\", routes: [{listed}] }}"));
            node.spawn();
            nodes.push(node);
        }
        let mut cluster = Self { nodes, _dir: dir };
        cluster.ready();
        Some(cluster)
    }

    /// Waits until each node that runs is healthy and knows the leader.
    pub fn ready(&mut self) {
        for node in self.nodes.iter_mut().filter(|node| node.process.is_some()) {
            node.ready();
        }
        wait::until("the cluster has a leader", Duration::from_secs(20), || self.leader().is_some());
    }

    /// The index of the node that leads the cluster's metadata.
    pub fn leader(&self) -> Option<usize> {
        let alive = self.nodes.iter().find(|node| node.process.is_some())?;
        let (_, body) = http::get(alive.monitor, "/jsz")?;
        let page: serde_json::Value = serde_json::from_str(&body).ok()?;
        let name = page.pointer("/meta_cluster/leader")?.as_str()?;
        self.nodes.iter().position(|node| node.name == name)
    }

    /// `nats://127.0.0.1:A,127.0.0.1:B,127.0.0.1:C`
    pub fn url(&self) -> String {
        format!("nats://{}", self.nodes.iter().map(Nats::host).collect::<Vec<_>>().join(","))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_server_restarts_on_its_port() {
        let Some(mut server) = Nats::start(Release::New) else { return };
        let before = server.page("/varz");
        assert_eq!(before["version"], tool::version("NATS_SERVER"));
        server.restart();
        let after = server.page("/varz");
        assert_eq!(before["port"], after["port"]);
        assert_ne!(before["server_id"], after["server_id"], "it is a new process");
        server.stop();
        assert!(http::get(server.monitor(), "/healthz").is_none());
    }

    #[test]
    fn the_oldest_line_starts() {
        let Some(server) = Nats::start(Release::Old) else { return };
        assert_eq!(server.page("/varz")["version"], tool::version("NATS_SERVER_OLD"));
    }

    #[test]
    fn a_cluster_chooses_another_leader() {
        let Some(mut cluster) = Cluster::start(Release::New) else { return };
        let first = cluster.leader().expect("there is one");
        cluster.nodes[first].kill();
        let changed = || cluster.leader().is_some_and(|leader| leader != first);
        wait::until("another node leads", Duration::from_secs(30), changed);
    }
}
