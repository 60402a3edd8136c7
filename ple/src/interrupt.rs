//! Ctrl-C and SIGTERM: the first one asks the run to stop at the next place where nothing is lost, the second ends the process.

use crate::{Error, Result};
use std::ops::ControlFlow;
use std::sync::atomic::{AtomicBool, Ordering};

/// A signal reaches the process, not a value of ours: the one place where that is true.
static ASKED: AtomicBool = AtomicBool::new(false);
/// Whether nothing runs that could stop at a better place: then the first one ends the process too.
static IDLE: AtomicBool = AtomicBool::new(false);

/// Catches the signals from now on. Only the binary calls this: a program that embeds the library keeps its own handlers.
pub fn install() {
    let _ = ctrlc::set_handler(|| {
        if ASKED.swap(true, Ordering::AcqRel) || IDLE.load(Ordering::Acquire) {
            std::process::exit(Error::Interrupted.exit_code());
        }
    });
}

/// Whether a signal came.
pub fn asked() -> bool {
    ASKED.load(Ordering::Acquire)
}

/// Whether a signal came, which is then done with: for what breaks off a part and goes on.
pub fn taken() -> bool {
    ASKED.swap(false, Ordering::AcqRel)
}

/// From now on the process waits for input and a signal ends it at once, or it does not any more.
pub fn idle(waits: bool) {
    IDLE.store(waits, Ordering::Release);
}

/// [`Error::Interrupted`] once a signal came.
pub fn check() -> Result<()> {
    if asked() { Err(Error::Interrupted) } else { Ok(()) }
}

/// The same for callbacks that break off.
pub fn watch() -> ControlFlow<()> {
    if asked() { ControlFlow::Break(()) } else { ControlFlow::Continue(()) }
}
