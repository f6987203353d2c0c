//! A real Kafka broker (KRaft, no ZooKeeper) from its Java archives: one node, or three.

use std::collections::BTreeMap;
use std::io::{Read, Write};
use std::net::{SocketAddr, TcpStream};
use std::path::{Path, PathBuf};
use std::process::Command;
use std::sync::{Mutex, PoisonError};
use std::time::Duration;

use super::process::{self, Process};
use super::{port, tool, wait};

/// The folder with the archives; `None`, reported, where it is not here.
pub fn libs() -> Option<PathBuf> {
    let version = tool::version("KAFKA");
    tool::find(&format!("Kafka {version}"), "WINDLASS_TEST_KAFKA_LIBS", &format!("kafka-{version}/libs"))
}

/// Brokers that make one cluster. Each is broker and controller; ports and folders stay over restarts.
pub struct Kafka {
    /// The nodes; each can be killed and run again.
    pub nodes: Vec<Node>,
    _dir: tempfile::TempDir,
}

/// One broker.
pub struct Node {
    id: usize,
    port: u16,
    dir: PathBuf,
    libs: PathBuf,
    process: Option<Process>,
}

impl Kafka {
    /// One broker. `None`: Kafka is not here.
    pub fn start() -> Option<Self> {
        Self::with(1, "")
    }

    /// So many brokers, each with further lines of `server.properties`. A later line wins over an earlier one;
    /// `CONTROLLER_AT` in a line stands for the node's controller port, `PORT` for that of its clients.
    pub fn with(nodes: usize, extra: &str) -> Option<Self> {
        Self::formatted(nodes, extra, &[])
    }

    /// The same, with further arguments for the formatting of its folders (`--add-scram` and one).
    pub fn formatted(nodes: usize, extra: &str, format: &[&str]) -> Option<Self> {
        let libs = libs()?;
        let dir = tempfile::tempdir().expect("a temporary folder");
        let controllers: Vec<u16> = (0..nodes).map(|_| port::free()).collect();
        let voters = controllers.iter().enumerate().map(|(index, port)| format!("{}@127.0.0.1:{port}", index + 1));
        let voters = voters.collect::<Vec<_>>().join(",");
        let copies = nodes.min(3);
        let mut started = Vec::new();
        for (index, controller) in controllers.iter().enumerate() {
            let (id, port) = (index + 1, port::free());
            let home = dir.path().join(format!("k{id}"));
            std::fs::create_dir(&home).expect("a temporary folder");
            let extra = extra.replace("CONTROLLER_AT", &controller.to_string()).replace("PORT", &port.to_string());
            let text = format!(
                "process.roles=broker,controller\nnode.id={id}\ncontroller.quorum.voters={voters}\n\
                 listeners=PLAINTEXT://127.0.0.1:{port},CONTROLLER://127.0.0.1:{controller}\n\
                 advertised.listeners=PLAINTEXT://127.0.0.1:{port}\n\
                 inter.broker.listener.name=PLAINTEXT\ncontroller.listener.names=CONTROLLER\n\
                 listener.security.protocol.map=CONTROLLER:PLAINTEXT,PLAINTEXT:PLAINTEXT\n\
                 log.dirs={data}\nnum.partitions=4\noffsets.topic.num.partitions=4\n\
                 offsets.topic.replication.factor={copies}\ntransaction.state.log.replication.factor={copies}\n\
                 transaction.state.log.num.partitions=4\ntransaction.state.log.min.isr=1\n\
                 share.coordinator.state.topic.replication.factor={copies}\nshare.coordinator.state.topic.min.isr=1\n\
                 share.coordinator.state.topic.num.partitions=1\ngroup.initial.rebalance.delay.ms=0\n\
                 auto.create.topics.enable=false\nlog.cleaner.dedupe.buffer.size=2097152\n{extra}\n",
                data = home.join("data").display(),
            );
            std::fs::write(home.join("server.properties"), text).expect("a temporary file");
            std::fs::write(home.join("log4j2.properties"), LOGGING).expect("a temporary file");
            Formatted::by(&libs, &home.join("server.properties"), &home.join("data"), format)
                .lay(&home.join("data"), id);
            started.push(Node { id, port, dir: home, libs: libs.clone(), process: None });
        }
        let mut kafka = Self { nodes: started, _dir: dir };
        kafka.nodes.iter_mut().for_each(Node::spawn);
        kafka.nodes.iter_mut().for_each(Node::ready);
        Some(kafka)
    }

    /// `127.0.0.1:PORT[,127.0.0.1:PORT]`
    pub fn servers(&self) -> String {
        self.nodes.iter().map(Node::host).collect::<Vec<_>>().join(",")
    }

    /// `kafka://127.0.0.1:PORT[,127.0.0.1:PORT]`
    pub fn url(&self) -> String {
        format!("kafka://{}", self.servers())
    }
}

impl Node {
    fn spawn(&mut self) {
        let mut command = java(&self.libs);
        command.arg(format!("-Dlog4j2.configurationFile={}", self.dir.join("log4j2.properties").display()));
        command.arg("kafka.Kafka").arg(self.dir.join("server.properties")).current_dir(&self.dir);
        let process = Process::spawn(&format!("kafka-{}", self.id), command, &self.dir);
        self.process = Some(process.expect("java can be started"));
    }

    fn ready(&mut self) {
        let port = self.port;
        let process = self.process.as_mut().expect("it was started");
        process.until("says that it has started", PATIENCE, |process| {
            // Since this start, not an earlier one: the output is one file.
            process
                .stdout()
                .rsplit("Starting controller")
                .next()
                .is_some_and(|text| text.contains("Kafka Server started"))
        });
        wait::until("the broker answers", PATIENCE, || answers(port));
    }

    /// Starts it again on its port and its folder, and waits until it answers.
    pub fn run(&mut self) {
        self.spawn();
        self.ready();
    }

    /// `127.0.0.1:PORT`
    pub fn host(&self) -> String {
        format!("127.0.0.1:{}", self.port)
    }

    /// The port that clients connect to.
    pub fn port(&self) -> u16 {
        self.port
    }

    /// The process, for signals and memory.
    ///
    /// # Panics
    /// Where it was stopped.
    pub fn process(&mut self) -> &mut Process {
        self.process.as_mut().expect("the broker runs")
    }

    /// SIGKILL; what is on its disk stays.
    pub fn kill(&mut self) {
        self.process = None;
    }

    /// SIGTERM, and waits until it has left.
    pub fn stop(&mut self) {
        if let Some(mut process) = self.process.take() {
            process.signal(libc::SIGTERM);
            process.wait(Duration::from_secs(60));
        }
    }

    /// SIGKILL and a new start on the same folder.
    pub fn restart(&mut self) {
        self.kill();
        self.run();
    }
}

/// Java with the archives, in little memory and quick to start: where `scripts/test` has left an archive of the classes
/// that a broker loads, with that. One of another Java is not taken.
pub fn java(libs: &Path) -> Command {
    let mut command = Command::new(std::env::var_os("WINDLASS_TEST_JAVA").unwrap_or_else(|| "java".into()));
    command.args(["-Xmx512m", "-Xms128m", "-XX:+UseSerialGC", "-XX:TieredStopAtLevel=1"]);
    if let Some(classes) = libs.parent().map(|home| home.join("classes.jsa")).filter(|classes| classes.exists()) {
        command.arg(format!("-XX:SharedArchiveFile={}", classes.display())).arg("-Xlog:disable");
    }
    command.arg("-cp").arg(libs.join("*"));
    command
}

/// What formatting leaves in a broker's folder. It takes a Java of its own, and is the same for all but two lines, so that
/// a process does it once for the same arguments.
#[derive(Clone)]
struct Formatted {
    properties: String,
    checkpoint: Vec<u8>,
}

impl Formatted {
    fn by(libs: &Path, config: &Path, data: &Path, arguments: &[&str]) -> Self {
        static KNOWN: Mutex<BTreeMap<Vec<String>, Formatted>> = Mutex::new(BTreeMap::new());
        let key: Vec<String> = arguments.iter().map(|&argument| argument.to_owned()).collect();
        let mut known = KNOWN.lock().unwrap_or_else(PoisonError::into_inner);
        let formatted = known.entry(key).or_insert_with(|| {
            let mut command = java(libs);
            command.args(["kafka.tools.StorageTool", "format", "-t", CLUSTER, "-c"]).arg(config).args(arguments);
            process::output(command);
            let read = |name| std::fs::read(data.join(name)).expect("formatting has written it");
            let properties = String::from_utf8(read(PROPERTIES)).expect("properties are text");
            let formatted = Self { properties, checkpoint: read(CHECKPOINT) };
            std::fs::remove_dir_all(data).expect("what formatting made");
            formatted
        });
        formatted.clone()
    }

    fn lay(&self, data: &Path, id: usize) {
        let own = |line: &str| match line.split_once('=') {
            Some(("node.id", _)) => format!("node.id={id}\n"),
            // 16 bytes, of which brokers of one cluster have different ones; not all of the last character counts.
            Some(("directory.id", _)) => format!("directory.id=windlass{id:02}WINDLASS0000\n"),
            _ => format!("{line}\n"),
        };
        std::fs::create_dir(data).expect("a temporary folder");
        let properties: String = self.properties.lines().map(own).collect();
        std::fs::write(data.join(PROPERTIES), properties).expect("a temporary file");
        std::fs::write(data.join(CHECKPOINT), &self.checkpoint).expect("a temporary file");
    }
}

/// The id of every cluster, 16 bytes: none knows of another.
const CLUSTER: &str = "windlass-WINDLASS-0000";
const PROPERTIES: &str = "meta.properties";
const CHECKPOINT: &str = "bootstrap.checkpoint";

/// Whether somebody answers an ApiVersions request (version 0, no client id), which needs no login.
fn answers(port: u16) -> bool {
    let ask = || -> std::io::Result<()> {
        let limit = Duration::from_secs(2);
        let mut stream = TcpStream::connect_timeout(&SocketAddr::from(([127, 0, 0, 1], port)), limit)?;
        stream.set_read_timeout(Some(limit))?;
        // Length 10: api key 18, version 0, correlation 7, a null client id.
        stream.write_all(&[0, 0, 0, 10, 0, 18, 0, 0, 0, 0, 0, 7, 0xff, 0xff])?;
        let mut answer = [0; 8];
        stream.read_exact(&mut answer)?;
        if answer[4..] == [0, 0, 0, 7] { Ok(()) } else { Err(std::io::ErrorKind::InvalidData.into()) }
    };
    ask().is_ok()
}

/// How long a start may take, on a machine that does much else.
const PATIENCE: Duration = Duration::from_secs(180);

const LOGGING: &str = "status=error\nappenders=out\nappender.out.type=Console\nappender.out.name=out\n\
    appender.out.layout.type=PatternLayout\nappender.out.layout.pattern=[%d] %p %m (%c)%n\n\
    rootLogger.level=INFO\nrootLogger.appenderRefs=out\nrootLogger.appenderRef.out.ref=out\n";

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_broker_restarts_on_its_port() {
        let Some(mut kafka) = Kafka::start() else { return };
        let port = kafka.nodes[0].port();
        assert!(answers(port));
        kafka.nodes[0].kill();
        assert!(!answers(port));
        kafka.nodes[0].run();
        assert!(answers(port));
    }
}
