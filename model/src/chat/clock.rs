//! Dates as templates write them: `strftime` in UTC.

/// Seconds of a day.
const DAY: u64 = 86_400;
const MONTHS: [&str; 12] =
    ["January", "February", "March", "April", "May", "June", "July", "August", "September", "October", "November", "December"];
const WEEKDAYS: [&str; 7] = ["Sunday", "Monday", "Tuesday", "Wednesday", "Thursday", "Friday", "Saturday"];

/// Year, month and day from 1, of days since 1970-01-01 (the Gregorian calendar counted from March, in eras of 400 years).
fn date(days: u64) -> (u64, u64, u64) {
    let shifted = days + 719_468;
    let (era, day) = (shifted / 146_097, shifted % 146_097);
    let year = (day - day / 1460 + day / 36_524 - day / 146_096) / 365;
    let day = day - (365 * year + year / 4 - year / 100);
    let month = (5 * day + 2) / 153;
    let of_month = day - (153 * month + 2) / 5 + 1;
    let month = if month < 10 { month + 3 } else { month - 9 };
    (era * 400 + year + u64::from(month <= 2), month, of_month)
}

/// `time.strftime(format)` of a moment in seconds since 1970; the error names the directive that is not known.
pub(super) fn strftime(format: &str, seconds: u64) -> Result<String, String> {
    let (days, second) = (seconds / DAY, seconds % DAY);
    let ((year, month, day), hour) = (date(days), second / 3600);
    let (name, weekday) = (MONTHS[month as usize - 1], WEEKDAYS[((days + 4) % 7) as usize]);
    let first = (0..days).rev().take(366).find(|d| date(*d).0 != year).map_or(0, |d| d + 1);
    let twelve = if hour % 12 == 0 { 12 } else { hour % 12 };
    let mut out = String::new();
    let mut rest = format.chars();
    while let Some(c) = rest.next() {
        if c != '%' {
            out.push(c);
            continue;
        }
        let directive = rest.next();
        let (plain, directive) = if directive == Some('-') { (true, rest.next()) } else { (false, directive) };
        let number = |n: u64, width: usize| if plain { n.to_string() } else { format!("{n:0width$}") };
        out += &match directive {
            Some('Y') => year.to_string(),
            Some('y') => number(year % 100, 2),
            Some('m') => number(month, 2),
            Some('d') => number(day, 2),
            Some('e') => format!("{day:2}"),
            Some('j') => number(days - first + 1, 3),
            Some('B') => name.into(),
            Some('b' | 'h') => name[..3].into(),
            Some('A') => weekday.into(),
            Some('a') => weekday[..3].into(),
            Some('H') => number(hour, 2),
            Some('I') => number(twelve, 2),
            Some('p') => if hour < 12 { "AM" } else { "PM" }.into(),
            Some('M') => number(second / 60 % 60, 2),
            Some('S') => number(second % 60, 2),
            Some('F') => format!("{year}-{month:02}-{day:02}"),
            Some('D') => format!("{month:02}/{day:02}/{:02}", year % 100),
            Some('T') => format!("{hour:02}:{:02}:{:02}", second / 60 % 60, second % 60),
            Some('Z') => "UTC".into(),
            Some('z') => "+0000".into(),
            Some('%') => "%".into(),
            other => return Err(format!("wanted a directive of strftime, got %{}", other.map_or(String::new(), String::from))),
        };
    }
    Ok(out)
}
