//! Where the queue is: a file of the demonstration's own, a server that was given, or one that was found and started.

use std::error::Error;
use std::fs;
use std::net::{Ipv4Addr, TcpListener};
use std::path::{Path, PathBuf};
use std::process::Stdio;
use std::time::{Duration, Instant};

use tokio::process::{Child, Command};

/// The broker, as the configuration says it.
pub struct Address {
    /// Its address.
    pub url: String,
    /// Begins the names of everything, topics included, where the server may have those of an earlier time.
    pub prefix: Option<String>,
    /// A short one, where only its end tells that a worker was killed.
    pub lease: Option<&'static str>,
    /// In words.
    pub said: String,
    /// The server, where it was started for this.
    pub started: Option<Child>,
}

/// Long enough to start a server.
const PATIENCE: Duration = Duration::from_secs(60);

impl Address {
    /// A file in this folder.
    pub fn file(folder: &Path) -> Self {
        let url = format!("sqlite://{}", folder.join("queue.db").display());
        Self { url, prefix: None, lease: None, said: "a file, and no server runs".to_owned(), started: None }
    }

    /// `demo nats [URL]`, `demo kafka [URL]`: `WINDLASS_BROKER` is a URL too.
    pub async fn server(kind: &str, url: Option<String>, folder: &Path) -> Result<Self, Box<dyn Error>> {
        let given = url.or_else(|| std::env::var("WINDLASS_BROKER").ok()).filter(|url| url.starts_with(kind));
        // Kafka's groups know no shorter one than 6 s.
        let lease = Some(if kind == "kafka" { "6s" } else { "3s" });
        if let Some(url) = given {
            let prefix =
                format!("demo-{}-{}", windlass::time::Clock::System.now().as_millis() / 1_000, std::process::id());
            let said = format!("{}; everything of it begins with {prefix}", windlass::config::shown_address(&url));
            return Ok(Self { url, prefix: Some(prefix), lease, said, started: None });
        }
        let home = folder.join("server");
        fs::create_dir_all(&home)?;
        let port = free()?;
        let (started, program) = match kind {
            "nats" => nats(&home, port)?,
            "kafka" => kafka(&home, port, free()?).await?,
            _ => return Err(format!("{kind} is no broker of the demonstration: nats, kafka, or nothing").into()),
        };
        let said = format!("a server on port {port} that was started for this: {}", program.display());
        let mut address =
            Self { url: format!("{kind}://127.0.0.1:{port}"), prefix: None, lease, said, started: Some(started) };
        address.wait(&home).await?;
        Ok(address)
    }

    /// Until it has answered once.
    async fn wait(&mut self, home: &Path) -> Result<(), Box<dyn Error>> {
        let began = Instant::now();
        let ready = ["Server is ready", "Kafka Server started"];
        loop {
            let log = fs::read_to_string(home.join("log")).unwrap_or_default();
            if ready.iter().any(|line| log.contains(line)) {
                return Ok(());
            }
            let ended = self.started.as_mut().is_some_and(|server| !matches!(server.try_wait(), Ok(None)));
            if ended || began.elapsed() > PATIENCE {
                return Err(format!("the server did not start; see {}", home.join("log").display()).into());
            }
            tokio::time::sleep(Duration::from_millis(20)).await;
        }
    }
}

fn free() -> std::io::Result<u16> {
    Ok(TcpListener::bind((Ipv4Addr::LOCALHOST, 0))?.local_addr()?.port())
}

/// Its output in a file; it dies with the demonstration.
fn start(mut command: Command, home: &Path) -> std::io::Result<Child> {
    let log = fs::File::create(home.join("log"))?;
    command.stdin(Stdio::null()).stdout(log.try_clone()?).stderr(log).kill_on_drop(true).process_group(0).spawn()
}

fn nats(home: &Path, port: u16) -> Result<(Child, PathBuf), Box<dyn Error>> {
    let found = on_path("nats-server").or_else(|| cached("nats-server-", "nats-server"));
    let program = found.ok_or(
        "no nats-server is on the PATH or in .cache (scripts/test fetches one); install it, \
         or name a server: cargo demo-nats nats://HOST:4222",
    )?;
    let mut command = Command::new(&program);
    command.args(["--jetstream", "--addr", "127.0.0.1", "--port", &port.to_string()]);
    command.arg("--store_dir").arg(home);
    Ok((start(command, home)?, program))
}

async fn kafka(home: &Path, port: u16, controller: u16) -> Result<(Child, PathBuf), Box<dyn Error>> {
    let libs = cached("kafka-", "libs").filter(|_| on_path("java").is_some()).ok_or(
        "no Kafka is in .cache (scripts/test fetches it), or no java is on the PATH; \
         name a server: cargo demo-kafka kafka://HOST:9092",
    )?;
    let properties = format!(
        "process.roles=broker,controller\nnode.id=1\ncontroller.quorum.voters=1@127.0.0.1:{controller}\n\
         listeners=PLAINTEXT://127.0.0.1:{port},CONTROLLER://127.0.0.1:{controller}\n\
         controller.listener.names=CONTROLLER\nlistener.security.protocol.map=CONTROLLER:PLAINTEXT,PLAINTEXT:PLAINTEXT\n\
         log.dirs={}\nnum.partitions=4\noffsets.topic.num.partitions=4\noffsets.topic.replication.factor=1\n\
         transaction.state.log.replication.factor=1\ntransaction.state.log.num.partitions=4\n\
         transaction.state.log.min.isr=1\ngroup.initial.rebalance.delay.ms=0\n",
        home.join("data").display()
    );
    fs::write(home.join("server.properties"), properties)?;
    let logging = "status=error\nappenders=out\nappender.out.type=Console\nappender.out.name=out\n\
        appender.out.layout.type=PatternLayout\nappender.out.layout.pattern=[%d] %p %m%n\n\
        rootLogger.level=INFO\nrootLogger.appenderRefs=out\nrootLogger.appenderRef.out.ref=out\n";
    fs::write(home.join("log4j2.properties"), logging)?;
    let java = || {
        let mut command = Command::new("java");
        command.args(["-Xmx512m", "-XX:+UseSerialGC", "-XX:TieredStopAtLevel=1", "-cp"]).arg(libs.join("*"));
        command.arg(format!("-Dlog4j2.configurationFile={}", home.join("log4j2.properties").display()));
        command
    };
    // Any 16 bytes do as a cluster's id, in base64.
    let mut format = java();
    format.args(["kafka.tools.StorageTool", "format", "-t", "d2luZGxhc3MtZGVtby0wMQ", "-c"]);
    let formatted = format.arg(home.join("server.properties")).output().await?;
    if !formatted.status.success() {
        return Err(format!("Kafka's folder: {}", String::from_utf8_lossy(&formatted.stderr)).into());
    }
    let mut command = java();
    command.arg("kafka.Kafka").arg(home.join("server.properties"));
    Ok((start(command, home)?, libs))
}

fn on_path(program: &str) -> Option<PathBuf> {
    let folders = std::env::var_os("PATH")?;
    std::env::split_paths(&folders).map(|folder| folder.join(program)).find(|path| path.is_file())
}

/// The newest of what `scripts/test` fetched: `PREFIX<version>/WHAT`.
fn cached(prefix: &str, what: &str) -> Option<PathBuf> {
    let root = Path::new(env!("CARGO_MANIFEST_DIR")).parent()?;
    let caches = [
        std::env::var_os("WINDLASS_TEST_CACHE").map(PathBuf::from),
        std::env::var_os("XDG_CACHE_HOME").map(|cache| Path::new(&cache).join("windlass-test")),
        Some(root.join(".cache")),
    ];
    let version = |path: &PathBuf| -> Vec<u32> {
        let name = path.parent().and_then(Path::file_name).unwrap_or_default().to_string_lossy().into_owned();
        name.trim_start_matches(prefix).split('.').filter_map(|part| part.parse().ok()).collect()
    };
    let folders = caches.into_iter().flatten().filter_map(|cache| fs::read_dir(cache).ok()).flatten().flatten();
    let fits = folders.filter(|entry| entry.file_name().to_string_lossy().starts_with(prefix));
    fits.map(|entry| entry.path().join(what)).filter(|path| path.exists()).max_by_key(version)
}
