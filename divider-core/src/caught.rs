//! Panics of the program's code, which must not become the node's.

use std::{any::Any, panic::AssertUnwindSafe};

/// What a panic said: "panicked", or "panicked: " and its words.
pub(crate) fn words(panic: Box<dyn Any + Send>) -> String {
    let said = panic.downcast_ref::<&str>().copied().or_else(|| panic.downcast_ref::<String>().map(String::as_str));
    let said = said.map_or_else(|| "panicked".into(), |said| format!("panicked: {said}"));
    // What was thrown is the program's as well, and may panic in its turn; what that throws is left alone.
    if let Err(again) = std::panic::catch_unwind(AssertUnwindSafe(|| drop(panic))) {
        std::mem::forget(again);
    }
    said
}
