//! What would miss a barrier: every barrier, wait, fence and commit of the kernels is taken out of the source, one at a time, and the
//! room's tests of that source run again on the emulated device, up to the first that fails. One must, or the call stands in
//! `barriers.txt` with the reason why none can.

use std::collections::{BTreeMap, BTreeSet};
use std::io::{BufRead, BufReader};
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};
use std::time::Duration;

/// What keeps threads, copies and products in order.
const CALLS: [&str; 15] = [
    "__syncthreads",
    VOTE,
    "__syncwarp",
    "bar_sync",
    "cp_async_commit",
    "cp_async_wait",
    "mbarrier_init",
    "mbarrier_arrive",
    "mbarrier_expect",
    "mbarrier_wait",
    "fence_mbarrier_init",
    "fence_async",
    "wgmma_fence",
    "wgmma_commit",
    "wgmma_wait",
];

/// The one among them that has a value.
const VOTE: &str = "__syncthreads_or";

/// One call in a source.
struct Call {
    room: String,
    /// Its file's name.
    file: String,
    /// For the emulated compiler: file as messages name it, line, column, length, what comes instead.
    place: String,
    /// `room/file: call`, and which of several such it is.
    name: String,
}

/// Length of the call that begins here, its bracket included; None if none does.
fn call(text: &str) -> Option<usize> {
    let name = CALLS.iter().find(|name| text.strip_prefix(**name).is_some_and(|rest| rest.starts_with(['(', '<'])))?;
    let open = name.len() + text[name.len()..].find('(')?;
    let mut depth = 0;
    text[open..].char_indices().find_map(|(i, c)| {
        depth += i32::from(c == '(') - i32::from(c == ')');
        (depth == 0).then_some(open + i + 1)
    })
}

fn calls(room: &str, file: &Path, seen: &mut BTreeMap<String, usize>) -> Vec<Call> {
    let (text, own) = (std::fs::read_to_string(file).unwrap(), file.file_name().unwrap().to_string_lossy().into_owned());
    let full = format!("{room}/{own}");
    // In messages headers bear their room's name, since other rooms include them too.
    let short = if own.ends_with(".cuh") { &full } else { &own };
    let mut all = Vec::new();
    for (row, line) in text.lines().enumerate().filter(|(_, line)| !line.trim_start().starts_with("//")) {
        for (column, _) in line.char_indices().filter(|(i, _)| !line[..*i].ends_with(|c: char| c.is_alphanumeric() || c == '_')) {
            let Some(length) = call(&line[column..]) else { continue };
            let name = format!("{full}: {}", line[column..column + length].trim());
            let count = seen.entry(name.clone()).or_default();
            *count += 1;
            // A vote stays one's own.
            let (length, instead) = match line[column..].starts_with(VOTE) {
                true => (VOTE.len(), ""),
                false => (length, "((void)0)"),
            };
            let place = format!("{short}:{}:{}:{length}:{instead}", row + 1, column + 1);
            all.push(Call { room: room.into(), file: own.clone(), place, name: format!("{name} {count}") });
        }
    }
    all
}

fn folder() -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join("src")
}

/// Every such call of every room.
fn all() -> Vec<Call> {
    let mut rooms: Vec<PathBuf> = folder().read_dir().unwrap().map(|f| f.unwrap().path()).filter(|p| p.is_dir()).collect();
    rooms.sort();
    let mut found = Vec::new();
    for room in rooms {
        let mut files: Vec<PathBuf> = room.read_dir().unwrap().map(|f| f.unwrap().path()).collect();
        files.retain(|f| f.extension().is_some_and(|e| e == "cu" || e == "cuh"));
        files.sort();
        let name = room.file_name().unwrap().to_string_lossy().into_owned();
        found.extend(files.iter().flat_map(|file| calls(&name, file, &mut BTreeMap::new())));
    }
    found
}

/// Rooms with kernels that the file is part of: its own, and for a header those that name it.
fn rooms_with(room: &str, file: &str) -> Vec<String> {
    let named = format!("\"{room}/{file}\"");
    let names = |path: &Path| std::fs::read_to_string(path).is_ok_and(|text| text.contains(&named));
    let sources = |folder: &Path| folder.read_dir().unwrap().any(|f| names(&f.unwrap().path()));
    let rooms = folder().read_dir().unwrap().map(|f| f.unwrap().path()).filter(|p| p.is_dir());
    let names = rooms.filter(|p| p.ends_with(room) || sources(p)).map(|p| p.file_name().unwrap().to_string_lossy().into_owned());
    names.collect()
}

/// Tests on the emulated device that launch what the file is part of: names say whether they are of the form in bf16.
fn tests_of<'a>(all: &'a [String], room: &str, file: &str) -> Vec<&'a str> {
    let bf16 = ["mma.cu", "chunks.cuh"].contains(&file);
    let of = |room: &String| {
        let form = !folder().join(room).join("mma.cu").exists() || file == "forest.cuh";
        let here = format!("{room}::");
        all.iter()
            .filter(move |name| name.starts_with(&here) && name.contains("on_cuda") && (form || name.contains("bf16") == bf16))
    };
    rooms_with(room, file).iter().flat_map(of).map(String::as_str).collect()
}

/// Whether these tests pass without the call at `place` (none: as it is).
fn passes(tests: &[&str], place: &str) -> bool {
    assert!(!tests.is_empty(), "{place}: no test on the emulated device");
    let cache = tempfile::tempdir().unwrap();
    let told = cache.path().join("told");
    let mut child = Command::new(std::env::current_exe().unwrap())
        .args(["--exact", "--test-threads=1", "--nocapture"])
        .args(tests)
        .env("EMULATOR_DELETE", place)
        .env("PLE_CACHE", cache.path())
        .env_remove("PLE_LONG")
        .stdout(Stdio::piped())
        .stderr(std::fs::File::create(&told).unwrap())
        .spawn()
        .unwrap();
    let (lines, said) = std::sync::mpsc::channel();
    let out = BufReader::new(child.stdout.take().unwrap());
    std::thread::spawn(move || out.lines().map_while(Result::ok).try_for_each(|line| lines.send(line)));
    let mut text = String::new();
    // A test that hangs has missed it too.
    while let Ok(line) = said.recv_timeout(Duration::from_secs(120)) {
        text += &line;
        if line.ends_with("FAILED") && !place.is_empty() {
            break;
        }
    }
    // Nothing more is wanted of it, and it may have ended.
    let passed = text.contains("test result: ok") && child.wait().unwrap().success();
    let _ = child.kill();
    child.wait().unwrap();
    let told = std::fs::read_to_string(told).unwrap();
    assert!(!told.contains("nvrtcCompileProgram failed"), "without {place} this is no program: {told}");
    passed
}

/// The checked-in survivors: name and reason.
fn listed() -> BTreeMap<String, String> {
    let text = std::fs::read_to_string(folder().join("barriers.txt")).unwrap();
    let entries = text.lines().filter(|line| !line.is_empty() && !line.starts_with('#'));
    let one = |line: &str| {
        let (name, reason) = line.split_once(" -- ").unwrap_or_else(|| panic!("barriers.txt: {line}: wanted `call -- reason`"));
        (name.to_string(), reason.to_string())
    };
    entries.map(one).collect()
}

#[test]
fn on_cuda_every_listed_survivor_exists_and_has_a_reason() {
    let names: Vec<String> = all().into_iter().map(|c| c.name).collect();
    assert!(names.len() > 20, "{names:?}");
    for (name, reason) in listed() {
        assert!(names.contains(&name) && reason.len() > 20, "barriers.txt: {name}: {reason}");
    }
}

#[test]
fn on_cuda_every_barrier_is_missed_when_it_is_gone() {
    if std::env::var_os("PLE_LONG").is_none() || emulator::cuda().is_none() {
        return println!("skip: barriers: the campaign runs with PLE_LONG and an emulated device");
    }
    let (calls, next) = (all(), std::sync::atomic::AtomicUsize::new(0));
    let survivors = std::sync::Mutex::new(Vec::new());
    let listing = Command::new(std::env::current_exe().unwrap()).args(["--list", "--format=terse"]).output().unwrap();
    let listing = String::from_utf8(listing.stdout).unwrap();
    let tests: Vec<String> = listing.lines().filter_map(|line| Some(line.strip_suffix(": test")?.to_string())).collect();
    for (room, file) in calls.iter().map(|c| (&c.room, &c.file)).collect::<BTreeSet<_>>() {
        assert!(passes(&tests_of(&tests, room, file), ""), "{room}/{file} fails as it is");
    }
    let work = || {
        while let Some(c) = calls.get(next.fetch_add(1, std::sync::atomic::Ordering::Relaxed)) {
            let (start, survived) = (std::time::Instant::now(), passes(&tests_of(&tests, &c.room, &c.file), &c.place));
            println!("{} {} ({}) {:.1?}", if survived { "SURVIVED" } else { "missed" }, c.name, c.place, start.elapsed());
            if survived {
                survivors.lock().unwrap().push(c.name.clone());
            }
        }
    };
    std::thread::scope(|s| (0..2).for_each(|_| drop(s.spawn(work))));
    let (mut survivors, listed) = (survivors.into_inner().unwrap(), listed());
    survivors.sort();
    println!("{} calls, {} survivors", calls.len(), survivors.len());
    let expected: Vec<String> = listed.keys().cloned().collect();
    assert_eq!(survivors, expected, "what the tests do not miss, against barriers.txt");
}
