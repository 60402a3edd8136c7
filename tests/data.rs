//! Where the shared data lies, and lines that a test prints whether it passes or not.

use std::io::Write;
use std::path::{Path, PathBuf};

/// Prints a line past the test harness, which keeps back what a passing test prints.
pub fn say(line: &str) {
    let _ = writeln!(std::io::stdout().lock(), "{line}");
}

/// The shared folder: `PLE_SHARED`, or `shared` beside the repository.
pub fn root() -> PathBuf {
    let beside = Path::new(env!("CARGO_MANIFEST_DIR")).join("../../shared");
    std::env::var_os("PLE_SHARED").map_or(beside, PathBuf::from)
}

/// A path of the shared folder; where it is absent the test says so and skips. With `PLE_REQUIRE=shared` an absent fixtures
/// manifest is a failure.
pub fn shared(path: &str) -> Option<PathBuf> {
    let full = root().join(path);
    if full.exists() {
        return Some(full);
    }
    let manifest = root().join("fixtures/manifest.json");
    let required = std::env::var("PLE_REQUIRE").is_ok_and(|list| list.split(',').any(|item| item.trim() == "shared"));
    assert!(!required || manifest.exists(), "PLE_REQUIRE=shared, but {} is not there", manifest.display());
    say(&format!("skip: {} is not there", full.display()));
    None
}
