//! Whether anything panicked, on a thread of its own for each run.
//!
//! tokio keeps the panic of a task for whoever joins it, and most tasks of a member are joined by nobody: what one of them
//! should have done is then just not done, and often enough done by the next one.

use std::{cell::RefCell, panic, sync::Once};

thread_local! {
    static HEARD: RefCell<Option<String>> = const { RefCell::new(None) };
}

/// Forgets what this thread's panics were, and listens.
pub(crate) fn listen() {
    static ONCE: Once = Once::new();
    ONCE.call_once(|| {
        let before = panic::take_hook();
        panic::set_hook(Box::new(move |info| {
            let text = info.to_string();
            // A panic while the thread ends is nobody's any more.
            let _ = HEARD.try_with(|heard| _ = heard.borrow_mut().get_or_insert(text));
            before(info);
        }));
    });
    HEARD.take();
}

/// The first panic of this thread since it [listens](listen).
pub(crate) fn heard() -> Option<String> {
    HEARD.take()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_panic_in_a_task_that_nobody_joins_is_heard_and_one_of_another_thread_is_not() {
        listen();
        let runtime = tokio::runtime::Builder::new_current_thread().build().unwrap();
        runtime.block_on(async {
            tokio::spawn(async { panic!("in a task") });
            tokio::task::yield_now().await;
        });
        assert!(heard().unwrap().contains("in a task"));
        std::thread::spawn(|| panic!("elsewhere")).join().unwrap_err();
        assert_eq!(heard(), None);
    }
}
