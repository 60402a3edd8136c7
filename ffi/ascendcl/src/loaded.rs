//! Which file a loaded function came from.

use std::path::PathBuf;

/// The file mapped at `address` in this process.
pub(crate) fn file_of(address: usize) -> Option<PathBuf> {
    let maps = std::fs::read_to_string("/proc/self/maps").ok()?;
    maps.lines().find_map(|line| line_file(line, address))
}

/// The file of one line `start-end rights offset device inode path`, if the range holds `address`.
fn line_file(line: &str, address: usize) -> Option<PathBuf> {
    let (start, rest) = line.split_once('-')?;
    let (end, _) = rest.split_once(' ')?;
    let range = usize::from_str_radix(start, 16).ok()?..usize::from_str_radix(end, 16).ok()?;
    let path = line.find('/').map(|at| PathBuf::from(&line[at..]));
    path.filter(|_| range.contains(&address))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn lines_are_read_as_the_kernel_writes_them() {
        let line = "7f00a000-7f00b000 r-xp 00001000 08:01 77   /opt/with space/libx.so";
        assert_eq!(line_file(line, 0x7f00a010), Some(PathBuf::from("/opt/with space/libx.so")));
        assert_eq!(line_file(line, 0x7f00b000), None);
        assert_eq!(line_file("7f00a000-7f00b000 rw-p 00000000 00:00 0 ", 0x7f00a010), None);
        assert_eq!(line_file("no line", 1), None);
        let here = file_of(line_file as *const () as usize).expect("this test is mapped from a file");
        assert_eq!(here, std::env::current_exe().expect("a test has a path"));
    }
}
