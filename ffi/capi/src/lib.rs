//! Roof: the C interface of PLE, for programs in other languages. `include/ple.h` is its contract: owners, threads, statuses.
//! A panic never leaves a function; it becomes [`BUG`], and the model it happened in refuses every further call.

mod scorer;

use ple::Error;
use scorer::Scorer;
use std::cell::RefCell;
use std::ffi::{CStr, CString, OsStr, c_char, c_int};
use std::os::unix::ffi::OsStrExt;
use std::panic::{AssertUnwindSafe, catch_unwind};
use std::path::Path;
use std::sync::Mutex;

/// `PLE_OK`
pub const OK: c_int = 0;
/// `PLE_BUG`: what a panicking program exits with.
pub const BUG: c_int = 101;

/// `ple_model`
#[allow(non_camel_case_types)]
#[derive(Debug)]
pub struct ple_model(Mutex<Scorer>);

/// What the header promises of threads.
const _: fn() = || {
    fn any_thread<T: Send + Sync>() {}
    any_thread::<ple_model>()
};

thread_local! {
    /// Text of `ple_last_error`.
    static LAST: RefCell<CString> = RefCell::default();
}

fn remember(text: &str) {
    let text = CString::new(text.replace('\0', " ")).unwrap_or_default();
    // A thread that is ending has no text any more.
    let _ = LAST.try_with(|last| *last.borrow_mut() = text);
}

/// Why a call failed.
enum Fault {
    Error(Error),
    Bug(String),
}

impl From<Error> for Fault {
    fn from(error: Error) -> Fault {
        Fault::Error(error)
    }
}

fn usage<T>(text: &str) -> Result<T, Fault> {
    Err(Fault::Error(Error::Usage(text.to_string())))
}

/// Runs a function's body; keeps its error's text and returns its status.
fn boundary(body: impl FnOnce() -> Result<(), Fault>) -> c_int {
    // What a panic leaves half done is behind a model's lock, which the panic poisons.
    let outcome = catch_unwind(AssertUnwindSafe(body)).unwrap_or_else(|panic| {
        let said = panic.downcast_ref::<String>().map(String::as_str).or(panic.downcast_ref::<&str>().copied());
        Err(Fault::Bug(format!("a fault of PLE: {}", said.unwrap_or("panic"))))
    });
    let (status, text) = match outcome {
        Ok(()) => (OK, String::new()),
        Err(Fault::Error(error)) => (error.exit_code(), error.to_string()),
        Err(Fault::Bug(text)) => (BUG, text),
    };
    remember(&text);
    status
}

/// # Safety
/// `p` is NULL or a C string that outlives `'a`.
unsafe fn string<'a>(p: *const c_char) -> Option<&'a CStr> {
    // SAFETY: the caller's promise.
    (!p.is_null()).then(|| unsafe { CStr::from_ptr(p) })
}

/// # Safety
/// As for [`string`].
unsafe fn path<'a>(p: *const c_char) -> Option<&'a Path> {
    // SAFETY: the caller's promise.
    unsafe { string(p) }.map(|text| Path::new(OsStr::from_bytes(text.to_bytes())))
}

/// # Safety
/// `p` is NULL, or points to `len` ids that outlive `'a` and are not written meanwhile.
unsafe fn ids<'a>(what: &str, p: *const u32, len: usize) -> Result<&'a [u32], Fault> {
    if len == 0 {
        return Ok(&[]);
    }
    if p.is_null() || !p.is_aligned() || len > isize::MAX as usize / size_of::<u32>() {
        return usage(&format!("{what} is no array of {len} ids"));
    }
    // SAFETY: the caller's promise; neither NULL, misaligned nor longer than memory.
    Ok(unsafe { std::slice::from_raw_parts(p, len) })
}

/// Runs `body` on a model while no other thread does.
///
/// # Safety
/// `model` is NULL or came from [`ple_model_open`] and is not closed before the call returns.
unsafe fn locked(model: *mut ple_model, body: impl FnOnce(&mut Scorer) -> Result<(), Fault>) -> c_int {
    boundary(|| {
        // SAFETY: the caller's promise.
        let Some(model) = (unsafe { model.as_ref() }) else { return usage("model is NULL") };
        let poisoned = |_| Fault::Bug("an earlier call on this model ended in a fault of PLE; close it".to_string());
        body(&mut *model.0.lock().map_err(poisoned)?)
    })
}

/// Version of the library.
#[unsafe(no_mangle)]
pub extern "C" fn ple_version() -> *const c_char {
    const VERSION: &str = concat!(env!("CARGO_PKG_VERSION"), "\0");
    VERSION.as_ptr().cast()
}

/// Text of this thread's last failure.
#[unsafe(no_mangle)]
pub extern "C" fn ple_last_error() -> *const c_char {
    LAST.try_with(|last| last.borrow().as_ptr()).unwrap_or(c"".as_ptr())
}

/// Loads a model.
///
/// # Safety
/// `folder` and `device` are NULL or C strings; `out` is NULL or points to a pointer that may be written.
#[unsafe(no_mangle)]
pub unsafe extern "C" fn ple_model_open(
    folder: *const c_char,
    device: *const c_char,
    threads: c_int,
    out: *mut *mut ple_model,
) -> c_int {
    boundary(|| {
        if out.is_null() {
            return usage("out is NULL");
        }
        // SAFETY: the caller's promise.
        unsafe { *out = std::ptr::null_mut() };
        // SAFETY: the caller's promise.
        let (folder, device) = unsafe { (path(folder), string(device)) };
        let Some(folder) = folder else { return usage("folder is NULL") };
        let device = device.map_or("auto".into(), CStr::to_string_lossy);
        let model = Box::new(ple_model(Mutex::new(Scorer::open(folder, &device, threads)?)));
        // SAFETY: the caller's promise.
        unsafe { *out = Box::into_raw(model) };
        Ok(())
    })
}

/// Makes an adapter the active one.
///
/// # Safety
/// `model` came from [`ple_model_open`] and is not closed; `folder` is NULL or a C string.
#[unsafe(no_mangle)]
pub unsafe extern "C" fn ple_model_adapter(model: *mut ple_model, folder: *const c_char) -> c_int {
    // SAFETY: the caller's promise.
    unsafe { locked(model, |scorer| Ok(scorer.adapter(path(folder))?)) }
}

/// Log-probabilities of ids.
///
/// # Safety
/// `model` came from [`ple_model_open`] and is not closed; `prompt` and `answer` point to as many ids as their lengths say, `out` to
/// as many floats as there are answer ids, and `out` overlaps neither.
#[unsafe(no_mangle)]
pub unsafe extern "C" fn ple_logprob(
    model: *mut ple_model,
    prompt: *const u32,
    prompt_len: usize,
    answer: *const u32,
    answer_len: usize,
    out: *mut f32,
) -> c_int {
    let body = |scorer: &mut Scorer| {
        // SAFETY: the caller's promise.
        let (prompt, answer) = unsafe { (ids("prompt", prompt, prompt_len)?, ids("ids", answer, answer_len)?) };
        let mut logps = vec![0.0; answer.len()];
        scorer.logprob(prompt, answer, &mut logps)?;
        if out.is_null() || !out.is_aligned() {
            return usage("out is no array of floats");
        }
        // SAFETY: the caller's promise: room for `answer_len` floats, overlapping nothing.
        unsafe { std::ptr::copy_nonoverlapping(logps.as_ptr(), out, logps.len()) };
        Ok(())
    };
    // SAFETY: the caller's promise.
    unsafe { locked(model, body) }
}

/// Frees a model.
///
/// # Safety
/// `model` is NULL, or came from [`ple_model_open`] and is used by no other call, now or later.
#[unsafe(no_mangle)]
pub unsafe extern "C" fn ple_model_close(model: *mut ple_model) {
    if !model.is_null() {
        boundary(|| {
            // SAFETY: the caller's promise; the box was made by `ple_model_open`.
            drop(unsafe { Box::from_raw(model) });
            Ok(())
        });
    }
}

#[cfg(test)]
mod tests;
