//! The file behind an address: where it is, whether it may be there, and connections to it.

use std::path::{Path, PathBuf};
use std::time::{Duration, Instant};

use sqlx::ConnectOptions;
use sqlx::sqlite::{SqliteConnectOptions, SqliteConnection};

use super::super::{Error, Options, Role};
use super::{fault, patience, schema};

/// Where a database is, and what may be done there.
#[derive(Clone, Debug)]
pub struct Target {
    /// The path as the address gives it.
    pub path: PathBuf,
    /// Whether the file may be created.
    pub may_create: bool,
    /// `synchronous = "normal"`.
    pub normal: bool,
    /// How long to wait for a lock.
    pub timeout: Duration,
}

/// Pages kept by the writer's connection, in KiB.
const WRITER_CACHE: &str = "-8000";
/// Pages kept by a reader's connection, in KiB.
const READER_CACHE: &str = "-2000";

impl Target {
    /// Reads `sqlite://PATH`; the path is taken as it stands.
    pub fn parse(address: &str, options: &Options) -> Result<Self, Error> {
        let path = address.strip_prefix("sqlite://").unwrap_or_default();
        if path.is_empty() {
            return Err(Error::Usage(
                "sqlite:// needs a path: sqlite://windlass.db, or sqlite:///var/lib/windlass.db".to_owned(),
            ));
        }
        if path == ":memory:" {
            return Err(Error::Usage(
                "sqlite://:memory: would lose every job; for a broker in this process use memory://".to_owned(),
            ));
        }
        Ok(Self {
            path: PathBuf::from(path),
            may_create: options.role != Role::Reader,
            normal: options.sqlite.synchronous_normal,
            timeout: options.timeout,
        })
    }

    /// Nothing is there, and we may not create it.
    pub fn missing(&self) -> Error {
        self.refused(&format!(
            "{} does not exist yet; `windlass run`, `publish` and `enqueue` create it",
            self.path.display()
        ))
    }

    /// A refusal, with the spelling that was perhaps meant.
    fn refused(&self, sentence: &str) -> Error {
        let beside_root = self.path.parent() == Some(Path::new("/"));
        match self.path.strip_prefix("/") {
            Ok(name) if beside_root && !self.path.exists() => Error::Refused(format!(
                "{sentence}; for a file in the working directory write sqlite://{}",
                name.display()
            )),
            _ => Error::Refused(sentence.to_owned()),
        }
    }

    /// What can be said before SQLite touches the file.
    pub fn check(&self) -> Result<(), Error> {
        let shown = self.path.display();
        let parent = match self.path.parent() {
            Some(parent) if !parent.as_os_str().is_empty() => parent,
            _ => Path::new("."),
        };
        match std::fs::metadata(&self.path) {
            Ok(meta) if meta.is_dir() => return Err(self.refused(&format!("{shown} is a directory; name a file"))),
            Ok(meta) if !meta.is_file() => return Err(self.refused(&format!("{shown} is no ordinary file"))),
            Ok(meta) if meta.len() == 0 && !self.may_create => return Err(self.missing()),
            Ok(_) => {}
            Err(error) if error.kind() == std::io::ErrorKind::NotFound => {
                if !parent.is_dir() {
                    return Err(self.refused(&format!(
                        "the directory {} for {shown} does not exist; create it",
                        parent.display()
                    )));
                }
                if !self.may_create {
                    return Err(self.missing());
                }
            }
            Err(error) => return Err(self.refused(&format!("{shown} cannot be opened ({error})"))),
        }
        let there = if self.path.exists() { self.path.as_path() } else { parent };
        if let Some(kind) = network_file_system(there) {
            return Err(Error::Refused(format!(
                "{shown} is on a network file system ({kind}), where SQLite's locks do not hold; put it on a local disk"
            )));
        }
        if there != self.path && !writable(parent) {
            return Err(
                self.refused(&format!("{shown} cannot be created: {} is not writable for this user", parent.display()))
            );
        }
        if there == self.path && !(writable(there) && writable(parent)) {
            return Err(self.refused(&format!(
                "{shown} cannot be written; give this user permission to write the file and its directory"
            )));
        }
        Ok(())
    }

    /// A connection for writing to a file that is ours and of our form.
    pub async fn open_writer(&self) -> Result<SqliteConnection, Error> {
        self.check()?;
        let deadline = Instant::now() + self.timeout;
        let said = |error: sqlx::Error| match fault::explain(&error, &self.path) {
            Error::Refused(sentence) if !self.path.exists() => self.refused(&sentence),
            other => other,
        };
        loop {
            let result = match self.options().pragma("cache_size", WRITER_CACHE).connect().await {
                Ok(mut connection) => match self.set_up(&mut connection).await {
                    Ok(()) => return Ok(connection),
                    Err(error) => Err(error),
                },
                Err(error) => Err(said(error)),
            };
            // Turning a new file into WAL cannot wait for a lock by itself: two first processes meet there.
            match result {
                Err(error) if error.is_transient() && Instant::now() < deadline => {
                    tokio::time::sleep(Duration::from_millis(10)).await;
                }
                Err(error) => return Err(error),
                Ok(()) => {}
            }
        }
    }

    async fn set_up(&self, connection: &mut SqliteConnection) -> Result<(), Error> {
        let said = |error: sqlx::Error| fault::explain(&error, &self.path);
        patience::wait_evenly(connection, self.timeout).await.map_err(said)?;
        let new = std::fs::metadata(&self.path).map_or(true, |meta| meta.len() == 0);
        if new {
            if !self.may_create {
                return Err(self.missing());
            }
            // Counts only before the first page is written.
            sqlx::query("PRAGMA auto_vacuum = INCREMENTAL").execute(&mut *connection).await.map_err(said)?;
        } else {
            // Before anything is changed: whose is it?
            schema::examine(connection, self, self.may_create, &schema::MIGRATIONS).await?;
        }
        let mode: String =
            sqlx::query_scalar("PRAGMA journal_mode = WAL").fetch_one(&mut *connection).await.map_err(said)?;
        if mode != "wal" {
            return Err(Error::Refused(format!(
                "{} is where SQLite cannot keep a write-ahead log (it stays in mode {mode}); put it on a local disk",
                self.path.display()
            )));
        }
        schema::prepare(connection, self, self.may_create, &schema::MIGRATIONS).await
    }

    /// Options of a connection for reading.
    pub fn reader_options(&self) -> SqliteConnectOptions {
        self.options().pragma("cache_size", READER_CACHE).pragma("query_only", "1")
    }

    fn options(&self) -> SqliteConnectOptions {
        SqliteConnectOptions::new()
            .filename(&self.path)
            .create_if_missing(self.may_create)
            .busy_timeout(self.timeout)
            .foreign_keys(false)
            .pragma("synchronous", if self.normal { "1" } else { "2" })
            .pragma("temp_store", "MEMORY")
            .pragma("journal_size_limit", "16777216")
            .pragma("wal_autocheckpoint", "1000")
            .row_buffer_size(256)
            .disable_statement_logging()
    }
}

#[cfg(unix)]
fn writable(path: &Path) -> bool {
    use std::os::unix::ffi::OsStrExt;
    let Ok(path) = std::ffi::CString::new(path.as_os_str().as_bytes()) else { return false };
    // SAFETY: a valid C string for the length of the call.
    unsafe { libc::access(path.as_ptr(), libc::W_OK) == 0 }
}

/// The name of the network file system that a path is on, if it is on one (statfs(2), linux/magic.h).
#[cfg(target_os = "linux")]
fn network_file_system(path: &Path) -> Option<&'static str> {
    use std::os::unix::ffi::OsStrExt;
    let c_path = std::ffi::CString::new(path.as_os_str().as_bytes()).ok()?;
    // SAFETY: statfs is plain integers, for which zeroes are a value.
    let mut stat: libc::statfs = unsafe { std::mem::zeroed() };
    // SAFETY: both pointers are valid for the length of the call.
    if unsafe { libc::statfs(c_path.as_ptr(), &raw mut stat) } != 0 {
        return None;
    }
    remote(stat.f_type as u32, || mount_type(path))
}

#[cfg(not(target_os = "linux"))]
fn network_file_system(_path: &Path) -> Option<&'static str> {
    None
}

fn remote(magic: u32, mount_type: impl FnOnce() -> String) -> Option<&'static str> {
    Some(match magic {
        0x6969 => "NFS",
        0x517b => "SMB",
        0xfe53_4d42 => "SMB2",
        0xff53_4d42 => "CIFS",
        0x00c3_6400 => "Ceph",
        0x5346_414f | 0x6b41_4653 => "AFS",
        0x0102_1997 => "9p",
        0x0bd0_0bd0 => "Lustre",
        0x564c => "NCP",
        0x7375_7245 => "Coda",
        0x6573_5546 => {
            // FUSE is also what local disks are mounted by (ntfs-3g, overlays), so the name decides.
            let kind = mount_type();
            let remote = [
                "sshfs",
                "s3fs",
                "rclone",
                "gcsfuse",
                "gluster",
                "ceph",
                "davfs",
                "curlftpfs",
                "goofys",
                "juicefs",
                "mount-s3",
                "blobfuse",
                "seaweed",
                "nfs",
                "smb",
            ];
            return remote.iter().any(|name| kind.contains(name)).then_some("FUSE");
        }
        _ => return None,
    })
}

/// The type of the mount that holds a path, from `/proc/self/mountinfo`: the longest mount point that begins it.
#[cfg(target_os = "linux")]
fn mount_type(path: &Path) -> String {
    let path = path.canonicalize().unwrap_or_else(|_| path.to_owned());
    let table = std::fs::read_to_string("/proc/self/mountinfo").unwrap_or_default();
    let mounts = table.lines().filter_map(|line| {
        let (left, right) = line.split_once(" - ")?;
        Some((left.split(' ').nth(4)?, right))
    });
    mounts
        .filter(|(point, _)| path.starts_with(point))
        .max_by_key(|(point, _)| point.len())
        .map(|(_, kind)| kind.to_owned())
        .unwrap_or_default()
}
