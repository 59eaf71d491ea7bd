//! Finds the examples, and builds one where it is missing or older than its source.

use std::{
    fs,
    path::{Path, PathBuf},
    process::Command,
    sync::OnceLock,
    time::SystemTime,
};

/// Environment variable with the path of a `worker` to use instead.
const OVERRIDE: &str = "DIVIDER_WORKER";

/// The `worker` example.
///
/// # Panics
/// As [`example`].
pub(super) fn worker() -> &'static Path {
    static PATH: OnceLock<PathBuf> = OnceLock::new();
    PATH.get_or_init(|| std::env::var_os(OVERRIDE).map_or_else(|| example("worker"), PathBuf::from))
}

/// A built example, of the same profile as the running test.
///
/// # Panics
/// With one line that says what to do, where it cannot be built.
pub fn example(name: &str) -> PathBuf {
    let test = std::env::current_exe().expect("a test knows its own path");
    // …/target/PROFILE/deps/TEST
    let profile = test.parent().and_then(Path::parent).expect("cargo puts tests into target/PROFILE/deps");
    let path = profile.join("examples").join(format!("{name}{}", std::env::consts::EXE_SUFFIX));
    let workspace = Path::new(env!("CARGO_MANIFEST_DIR")).parent().expect("the crate lies in the workspace");
    let sources = ["examples", "divider-core", "divider-postgres", "divider-raft", "divider-redis"]
        .map(|crate_| newest(&workspace.join(crate_)));
    let built = fs::metadata(&path).and_then(|file| file.modified());
    if built.is_ok_and(|built| sources.iter().all(|source| *source <= built)) {
        return path;
    }
    let mut cargo = Command::new(std::env::var_os("CARGO").unwrap_or_else(|| "cargo".into()));
    cargo.current_dir(workspace).args(["build", "-p", "divider-examples", "--example", name]);
    cargo.arg("--target-dir").arg(profile.parent().expect("a profile lies in the target directory"));
    match profile.file_name().and_then(|name| name.to_str()) {
        Some("debug") | None => {}
        Some(name) => _ = cargo.args(["--profile", name]),
    }
    eprintln!("building an example: {cargo:?}");
    let built = cargo.status().is_ok_and(|status| status.success()) && path.exists();
    assert!(built, "{path:?} cannot be built; build it by hand with {cargo:?}");
    path
}

/// When a source file in the directory was changed last.
fn newest(directory: &Path) -> SystemTime {
    let entries = fs::read_dir(directory).into_iter().flatten().flatten();
    let times = entries.map(|entry| {
        let path = entry.path();
        if path.is_dir() {
            return newest(&path);
        }
        let is_source =
            path.extension().is_some_and(|extension| extension == "rs" || extension == "lua" || extension == "sql");
        let changed = is_source.then(|| entry.metadata().and_then(|file| file.modified()).ok()).flatten();
        changed.unwrap_or(SystemTime::UNIX_EPOCH)
    });
    times.max().unwrap_or(SystemTime::UNIX_EPOCH)
}
