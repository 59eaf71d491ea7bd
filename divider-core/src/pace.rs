//! In what parts keys change hands where many do at the same time.
//!
//! A key that is stopped waits for a batch to free it and for another to give it out. So the fewer keys are in a batch, the
//! shorter is each without an owner; and while the next part is being stopped, the last one is given out.

use std::time::Duration;

/// The fewest keys that are asked to stop at a time, and into how many parts a large number of them is divided.
const LEAST: usize = 32;
const PARTS: usize = 32;

/// How long a part is waited for before the next one follows. Work that takes longer to stop stops side by side.
pub(crate) const PATIENCE: Duration = Duration::from_millis(20);

/// How many keys of so many are asked to stop at a time.
pub(crate) fn part(keys: usize) -> usize {
    LEAST.max(keys / PARTS)
}
