//! The directories that a recovery leaves beside this one, and what an empty one means then.

use std::path::{Path, PathBuf};

use crate::error::DataError;

/// How the directory is called that a recovery makes,
pub(crate) const NEW: &str = ".recovering";
/// and what was the survivor's.
pub(crate) const FORMER: &str = ".before-recovery";

/// The directory of that name beside this one.
pub(crate) fn beside(directory: &Path, ending: &str) -> PathBuf {
    let mut name = directory.file_name().unwrap_or_default().to_owned();
    name.push(ending);
    directory.with_file_name(name)
}

/// Why nobody may begin with an empty directory here: it is gone only because a recovery was cut short.
pub(crate) fn objection(directory: &Path) -> Result<(), DataError> {
    if directory.exists() || !beside(directory, NEW).exists() || !beside(directory, FORMER).exists() {
        return Ok(());
    }
    Err(DataError::Unrecovered { path: directory.to_owned() })
}
