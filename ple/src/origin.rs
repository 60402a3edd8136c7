//! Where a measurement comes from: the day, and the commit of the program.

use std::process::Command;
use std::time::{SystemTime, UNIX_EPOCH};

/// `2026-11-25T10:04:00Z`; the epoch if the clock is before it.
pub fn date() -> String {
    let seconds = SystemTime::now().duration_since(UNIX_EPOCH).map_or(0, |d| d.as_secs());
    at(seconds)
}

fn at(seconds: u64) -> String {
    let [year, month, day] = civil(seconds / 86_400);
    let (hour, minute, second) = (seconds / 3600 % 24, seconds / 60 % 60, seconds % 60);
    format!("{year:04}-{month:02}-{day:02}T{hour:02}:{minute:02}:{second:02}Z")
}

/// Year, month and day of a day since 1970-01-01. Years are counted from March, so that a leap day ends one.
fn civil(days: u64) -> [u64; 3] {
    let days = days + 719_468;
    let (era, day) = (days / 146_097, days % 146_097);
    let year = (day - day / 1460 + day / 36_524 - day / 146_096) / 365;
    let day = day - (365 * year + year / 4 - year / 100);
    let month = (5 * day + 2) / 153;
    let (day, month) = (day - (153 * month + 2) / 5 + 1, if month < 10 { month + 3 } else { month - 9 });
    [era * 400 + year + u64::from(month <= 2), month, day]
}

/// `PLE_COMMIT`, else the commit of the checkout that the program lies in, with `-dirty` if files have changed; None without either.
pub fn commit() -> Option<String> {
    if let Some(given) = std::env::var("PLE_COMMIT").ok().filter(|given| !given.is_empty()) {
        return Some(given);
    }
    let program = std::env::current_exe().ok()?;
    let mut git = Command::new("git");
    let out = git.arg("-C").arg(program.parent()?).args(["describe", "--always", "--dirty", "--abbrev=12"]).output().ok()?;
    let name = String::from_utf8(out.stdout).ok()?.trim().to_string();
    (out.status.success() && !name.is_empty()).then_some(name)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn days_have_their_dates() {
        for (seconds, date) in [
            (0, "1970-01-01T00:00:00Z"),
            (951_782_399, "2000-02-28T23:59:59Z"),
            (951_782_400, "2000-02-29T00:00:00Z"),
            (951_868_800, "2000-03-01T00:00:00Z"),
            (1_735_689_599, "2024-12-31T23:59:59Z"),
            (4_107_542_400, "2100-03-01T00:00:00Z"),
        ] {
            assert_eq!(at(seconds), date);
        }
    }
}
