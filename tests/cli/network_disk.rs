//! A SQLite file on a network file system, where its locks do not hold. None is to be had in a test, so the kernel's
//! answer is: a few lines of C stand before `statfs` and say what a mount would.

use std::path::{Path, PathBuf};
use std::process::Command;

use super::{CONFIG, Left, Place, run};
use crate::support::tool;

/// Says for what lies in `SHIM_FOLDER` that its file system is `SHIM_MAGIC`, and gives `SHIM_MOUNTS` for the table of
/// mounts. Leaves the file `SHIM_HERE` where it was loaded.
const SHIM: &str = r#"
#define _GNU_SOURCE
#include <dlfcn.h>
#include <fcntl.h>
#include <limits.h>
#include <stdarg.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/vfs.h>
#include <unistd.h>

__attribute__((constructor)) static void here(void) {
    const char *mark = getenv("SHIM_HERE");
    if (mark) { FILE *file = fopen(mark, "w"); if (file) fclose(file); }
}

static long magic_of(const char *path) {
    const char *folder = getenv("SHIM_FOLDER"), *magic = getenv("SHIM_MAGIC");
    char real[PATH_MAX];
    if (!folder || !magic || !realpath(path, real)) return 0;
    return strncmp(real, folder, strlen(folder)) == 0 ? strtol(magic, NULL, 16) : 0;
}

static long magic_at(int fd) {
    char link[64], real[PATH_MAX];
    snprintf(link, sizeof link, "/proc/self/fd/%d", fd);
    ssize_t length = readlink(link, real, sizeof real - 1);
    if (length <= 0) return 0;
    real[length] = 0;
    return magic_of(real);
}

#define BEFORE(name, what, type, magic) \
    int name(what, struct type *stat) { \
        int (*next)(what, struct type *) = dlsym(RTLD_NEXT, #name); \
        int result = next(at, stat); \
        long found = result ? 0 : magic(at); \
        if (found) stat->f_type = found; \
        return result; \
    }
BEFORE(statfs, const char *at, statfs, magic_of)
BEFORE(statfs64, const char *at, statfs64, magic_of)
BEFORE(fstatfs, int at, statfs, magic_at)
BEFORE(fstatfs64, int at, statfs64, magic_at)

#define OPEN(name) \
    int name(const char *path, int flags, ...) { \
        va_list rest; va_start(rest, flags); mode_t mode = va_arg(rest, mode_t); va_end(rest); \
        int (*next)(const char *, int, ...) = dlsym(RTLD_NEXT, #name); \
        const char *mounts = getenv("SHIM_MOUNTS"); \
        return next(mounts && strcmp(path, "/proc/self/mountinfo") == 0 ? mounts : path, flags, mode); \
    }
OPEN(open)
OPEN(open64)
"#;

/// The shim, loaded before the binary.
struct Shim {
    dir: tempfile::TempDir,
    library: PathBuf,
}

impl Shim {
    /// `None`, reported: there is no C compiler, or nothing can be loaded before the binary.
    fn build() -> Option<Self> {
        let dir = tempfile::tempdir().expect("a folder");
        let (source, library) = (dir.path().join("shim.c"), dir.path().join("shim.so"));
        std::fs::write(&source, SHIM).expect("written");
        let mut compiler = Command::new("cc");
        compiler.args(["-shared", "-fPIC", "-w", "-o"]).args([&library, &source]).arg("-ldl");
        match compiler.output() {
            Ok(output) if output.status.success() => {}
            Ok(output) => panic!("cc refuses the shim: {}", String::from_utf8_lossy(&output.stderr)),
            Err(error) => return tool::missing(&format!("a C compiler is not here (cc: {error})")),
        }
        let shim = Self { dir, library };
        let mark = shim.dir.path().join("here");
        let place = Place::empty();
        let mut command = place.command(["--version"]);
        command.env("LD_PRELOAD", &shim.library).env("SHIM_HERE", &mark);
        run(command, b"");
        if mark.exists() { Some(shim) } else { tool::missing("LD_PRELOAD loads nothing before the binary here") }
    }

    /// Runs a verb in `place`, whose folder is on a file system of this kind.
    fn run(&self, place: &Place, magic: &str, mount: &str, arguments: &[&str]) -> Left {
        let folder = place.path().canonicalize().expect("it is there");
        let mounts = self.dir.path().join("mounts");
        let of = |point: &Path, kind: &str| format!("36 35 98:0 / {} rw - {kind} rw\n", point.display());
        std::fs::write(&mounts, of(Path::new("/"), "ext4 /dev/sda1") + &of(&folder, mount)).expect("written");
        let mut command = place.command(arguments);
        command.env("LD_PRELOAD", &self.library).env("SHIM_FOLDER", &folder);
        command.env("SHIM_MAGIC", magic).env("SHIM_MOUNTS", &mounts);
        run(command, b"")
    }
}

fn names(place: &Place) -> Vec<String> {
    let entries = std::fs::read_dir(place.path()).expect("readable");
    let mut names: Vec<_> =
        entries.map(|entry| entry.expect("readable").file_name().to_string_lossy().into_owned()).collect();
    names.sort();
    names
}

#[test]
fn a_file_on_a_network_file_system_is_refused_and_left_alone() {
    let Some(shim) = Shim::build() else { return };
    let publish = &["publish", "reports.finalized", "1"][..];
    for (magic, mount, name) in [
        ("6969", "nfs4 server:/export", "NFS"),
        ("ff534d42", "cifs //server/share", "CIFS"),
        ("fe534d42", "smb3 //server/share", "SMB"),
        ("517b", "smbfs //server/share", "SMB"),
        ("c36400", "ceph server:/", "Ceph"),
        ("01021997", "9p share", "9p"),
        ("65735546", "fuse.sshfs user@server:/", "FUSE"),
    ] {
        let place = Place::with(CONFIG);
        let left = shim.run(&place, magic, mount, publish);
        assert_eq!((left.code, left.out.as_str()), (78, ""), "{magic}: {left:?}");
        let said = format!("error: windlass.db is on a network file system ({name}");
        assert!(left.err.starts_with(&said) && left.err.contains("local disk"), "{magic}: {left:?}");
        assert_eq!(left.err.lines().count(), 1, "{left:?}");
        assert_eq!(names(&place), ["windlass.toml"], "nothing was written");
    }
    // A file that was there before is not touched by any verb, and can be read again on a local disk.
    let place = Place::with(CONFIG);
    place.ok(publish);
    let before = std::fs::read(place.path().join("windlass.db")).expect("readable");
    let files = names(&place);
    for verb in [publish, &["run", "--burst", "--set", "admin.listen=none"], &["status"], &["dlq", "list"], &["doctor"]]
    {
        let left = shim.run(&place, "6969", "nfs4 server:/export", verb);
        assert_eq!(left.code, 78, "{verb:?}: {left:?}");
        assert!(left.err.contains("network file system (NFS)"), "{verb:?}: {left:?}");
        assert_eq!(names(&place), files, "{verb:?}");
        assert!(std::fs::read(place.path().join("windlass.db")).expect("readable") == before, "{verb:?} wrote");
    }
    // Local ones are taken, FUSE's among them: ext4, and what ntfs-3g mounts.
    for (magic, mount) in [("ef53", "ext4 /dev/sda1"), ("65735546", "fuseblk /dev/sdb1")] {
        let left = shim.run(&place, magic, mount, publish);
        assert_eq!(left.code, 0, "{magic}: {left:?}");
    }
    assert_eq!(place.figure("invoice", "ready"), 3);
}
