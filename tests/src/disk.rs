//! A small disk of one's own, which can be filled up.

use std::{
    fs::{self, File},
    io::{self, Write},
    os::unix::process::CommandExt,
    path::{Path, PathBuf},
    process::{Child, Command, Stdio},
    sync::atomic::{AtomicU32, Ordering},
};

/// A file system in memory that everybody may write to. Dropping it removes it, and so does the end of this process.
#[derive(Debug)]
pub struct SmallDisk {
    path: PathBuf,
    /// Removes it when its input is closed.
    guard: Child,
}

impl SmallDisk {
    /// One of so many megabytes.
    ///
    /// # Errors
    /// Where the system does not let us mount one.
    pub fn new(megabytes: u32) -> io::Result<Self> {
        static SERIAL: AtomicU32 = AtomicU32::new(0);
        let name = format!("divider-disk-{}-{}", std::process::id(), SERIAL.fetch_add(1, Ordering::Relaxed));
        let path = std::env::temp_dir().join(name);
        fs::create_dir(&path)?;
        // In a group of its own, so that it outlives the signal with which a runner ends a test and all that belongs to it.
        let mut guard = Command::new("sh");
        guard.args(["-c", "read _; umount -l \"$1\"; rmdir \"$1\"", "guard"]).arg(&path).process_group(0);
        let guard = guard.stdin(Stdio::piped()).stdout(Stdio::null()).stderr(Stdio::null()).spawn()?;
        let disk = Self { path, guard };
        let mut mount = Command::new("mount");
        mount.args(["-t", "tmpfs", "-o", &format!("size={megabytes}m,mode=1777"), "tmpfs"]).arg(&disk.path);
        let output = mount.stdin(Stdio::null()).output()?;
        if !output.status.success() {
            return Err(io::Error::other(String::from_utf8_lossy(&output.stderr).trim().to_owned()));
        }
        Ok(disk)
    }

    /// Where it is.
    pub fn path(&self) -> &Path {
        &self.path
    }

    /// Leaves no room on it.
    ///
    /// # Panics
    /// Where that fails for any other reason than that there is no room.
    pub fn fill(&self) {
        let mut ballast = File::create(self.ballast()).expect("a file can be made");
        for size in [1 << 20, 1 << 12, 1] {
            let bytes = vec![0; size];
            let full = loop {
                if let Err(error) = ballast.write_all(&bytes) {
                    break error;
                }
            };
            assert_eq!(full.kind(), io::ErrorKind::StorageFull, "{full}");
        }
    }

    /// Makes room again.
    pub fn free(&self) {
        // Without it there is nothing to make room of.
        _ = fs::remove_file(self.ballast());
    }

    fn ballast(&self) -> PathBuf {
        self.path.join("ballast")
    }
}

impl Drop for SmallDisk {
    fn drop(&mut self) {
        drop(self.guard.stdin.take());
        _ = self.guard.wait();
    }
}
