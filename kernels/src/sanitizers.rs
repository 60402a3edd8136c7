//! Every test on the emulated device again, with the kernels under a sanitizer.

use emulator::{Sanitizer, sanitized};

fn all_under(which: Sanitizer) {
    let Some(mut run) = sanitized(which) else { return };
    let out = run.args(["on_cuda", "--skip", "sanitizers::", "--skip", "barriers::", "--test-threads=1"]).output().unwrap();
    let (text, told) = (String::from_utf8_lossy(&out.stdout), String::from_utf8_lossy(&out.stderr));
    let last = text.lines().rev().take(40).collect::<Vec<_>>().into_iter().rev().collect::<Vec<_>>().join("\n");
    assert!(out.status.success(), "{which:?}: {}\n{last}\n{:.8000}", out.status, told);
    let count = text.lines().filter(|line| line.ends_with("... ok")).count();
    println!("{count} tests under {which:?}");
    assert!(count > 10, "{which:?}: {count} tests ran\n{last}");
}

#[test]
fn on_cuda_the_rooms_keep_to_their_memory() {
    all_under(Sanitizer::Address);
}

#[test]
fn on_cuda_the_rooms_have_no_races() {
    if std::env::var_os("PLE_LONG").is_none() {
        return println!("skip: races: they are looked for with PLE_LONG");
    }
    all_under(Sanitizer::Thread);
}
