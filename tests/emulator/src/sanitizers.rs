//! The test binary again, under a sanitizer of the C++ compiler: it is preloaded, and the kernels, nothing else, are instrumented.

use std::process::Command;

/// Which.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Sanitizer {
    /// AddressSanitizer and UndefinedBehaviorSanitizer.
    Address,
    /// ThreadSanitizer: threads of a block that touch the same memory without an order.
    Thread,
}

/// This test binary, to be run with arguments of the caller's; None, said aloud, without a compiler that has the sanitizer (a failure if
/// `PLE_REQUIRE` names `cuda`), and inside such a run.
pub fn sanitized(which: Sanitizer) -> Option<Command> {
    crate::libraries()?;
    if std::env::var_os("EMULATOR_SANITIZE").is_some() {
        return None;
    }
    let (name, names) = match which {
        Sanitizer::Address => ("address", &["libasan.so", "libubsan.so"][..]),
        Sanitizer::Thread => ("thread", &["libtsan.so"][..]),
    };
    let find = |library: &&str| {
        let found = Command::new(env!("EMULATOR_CXX")).arg(format!("-print-file-name={library}")).output().ok()?;
        let path = String::from_utf8(found.stdout).ok()?.trim().to_string();
        path.contains('/').then_some(path)
    };
    let Some(paths) = names.iter().map(find).collect::<Option<Vec<String>>>() else {
        let required = std::env::var("PLE_REQUIRE").is_ok_and(|names| names.split(',').any(|name| name == "cuda"));
        assert!(!required, "PLE_REQUIRE names cuda: {} has no {names:?}", env!("EMULATOR_CXX"));
        eprintln!("skip: sanitizer {name}: {} has no {names:?}", env!("EMULATOR_CXX"));
        return None;
    };
    let mut command = Command::new(std::env::current_exe().ok()?);
    command
        .env("EMULATOR_SANITIZE", name)
        .env("LD_PRELOAD", paths.join(":"))
        .env("ASAN_OPTIONS", "detect_leaks=0:use_sigaltstack=0:handle_segv=0:handle_sigbus=0:exitcode=99")
        .env("UBSAN_OPTIONS", "print_stacktrace=0:exitcode=99")
        .env("TSAN_OPTIONS", "ignore_noninstrumented_modules=1:handle_segv=0:handle_sigbus=0:report_signal_unsafe=0:exitcode=99")
        .env_remove("PLE_LONG");
    Some(command)
}
