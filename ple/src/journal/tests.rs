//! Bits that come back, order that does not matter, duplicates, damage of every kind.

use super::*;
use crate::data::tests::Random;

fn head() -> Head {
    Head {
        iteration: 3,
        adapter: crate::digest::sha256(b"adapter"),
        answers: crate::digest::sha256(b"answers"),
        rewards: crate::digest::sha256(b"rewards"),
        seed: u64::MAX,
    }
}

fn samples() -> Vec<Sampled> {
    let mut random = Random::new(5);
    let mut of = |i: u32| {
        let n = random.below(5);
        let bits = |random: &mut Random| (0..n).map(|_| f32::from_bits(random.below(1 << 32) as u32)).collect();
        Sampled {
            key: Key { row: 9 - i / 4, side: i / 2 % 2, sample: i % 2 },
            ids: (0..n).map(|_| random.below(1 << 32) as u32).collect(),
            logps: bits(&mut random),
            sampling_logps: bits(&mut random),
            finished: i.is_multiple_of(3),
        }
    };
    (0..20).map(&mut of).collect()
}

fn rewards() -> Vec<Rewarded> {
    let odd = [f64::NAN, f64::INFINITY, f64::NEG_INFINITY, -0.0, 0.1 + 0.2, f64::MIN_POSITIVE / 3.0, f64::MAX, 5.0];
    let of = |(i, s): (usize, &Sampled)| {
        let reward = odd[i % odd.len()];
        Rewarded { key: s.key, reward, parts: vec![reward, 1.0 / (i + 1) as f64] }
    };
    samples().iter().enumerate().map(of).collect()
}

fn open(folder: &Path) -> Result<(Journal, Held, Found)> {
    Journal::open(folder, &head())
}

fn path(folder: &Path) -> PathBuf {
    folder.join("iter-00003.jsonl")
}

fn written(folder: &Path) -> Vec<u8> {
    std::fs::read(path(folder)).unwrap()
}

/// Adds what is missing and finishes: what a run does that goes on.
fn go_on(mut journal: Journal, held: &Held) -> Result<Held> {
    let samples: Vec<_> = samples().into_iter().filter(|s| !held.samples.contains_key(&s.key)).collect();
    let rewards: Vec<_> = rewards().into_iter().filter(|r| !held.rewards.contains_key(&r.key)).collect();
    journal.append_samples(&samples)?;
    journal.append_rewards(&rewards)?;
    journal.sync()?;
    journal.finish()
}

/// The bytes before and after the end of a run without a stop.
fn straight() -> (Vec<u8>, Vec<u8>) {
    let folder = tempfile::tempdir().unwrap();
    let (mut journal, ..) = open(folder.path()).unwrap();
    journal.append_samples(&samples()).unwrap();
    journal.append_rewards(&rewards()).unwrap();
    let grown = written(folder.path());
    journal.finish().unwrap();
    (grown, written(folder.path()))
}

#[test]
fn a_line_is_closed_by_its_checksum() {
    let key = Key { row: 7, side: 1, sample: 0 };
    let reward = Rewarded { key, reward: 0.5, parts: vec![f64::NAN, 2.0] }.line();
    let body = "{\"row\":7,\"side\":1,\"sample\":0,\"reward\":0.5,\"parts\":[\"nan\",2.0]}";
    // CRC-32 of "123456789" is cbf43926.
    assert_eq!(format!("{:08x}", crc32fast::hash(b"123456789")), "cbf43926");
    assert_eq!(reward, format!("{},\"crc\":\"{:08x}\"}}\n", &body[..body.len() - 1], crc32fast::hash(body.as_bytes())));
    let sample = Sampled { key, ids: vec![3], logps: vec![-1.0], sampling_logps: vec![-0.0], finished: true }.line();
    assert!(sample.starts_with(
        "{\"row\":7,\"side\":1,\"sample\":0,\"ids\":[3],\"logps\":[3212836864],\"sampling_logps\":[2147483648],\"finished\":true,\"crc\":\""
    ));
}

#[test]
fn everything_comes_back_bit_for_bit_in_order() {
    let folder = tempfile::tempdir().unwrap();
    let (mut journal, held, found) = open(folder.path()).unwrap();
    assert_eq!((held, found), (Held::default(), Found::Nothing));
    let (mut given, scores) = (samples(), rewards());
    journal.append_samples(&given).unwrap();
    journal.append_rewards(&scores).unwrap();
    let held = journal.finish().unwrap();
    assert_eq!(read(&path(folder.path())).unwrap().0, head());
    given.sort_by_key(|s| s.key);
    let lines = |list: Vec<&Sampled>| list.iter().map(|s| s.line()).collect::<Vec<_>>();
    assert_eq!(lines(held.samples.values().collect()), lines(given.iter().collect()));
    for wanted in scores {
        let got = &held.rewards[&wanted.key];
        let bits = |r: &Rewarded| [r.reward, r.parts[0], r.parts[1]].map(f64::to_bits);
        assert_eq!(bits(got), bits(&wanted));
    }
    // A finished journal opens like any other, and finishing it again changes nothing.
    let before = written(folder.path());
    let (journal, again, found) = open(folder.path()).unwrap();
    assert_eq!(found, Found::Same { cut: 0 });
    assert_eq!(lines(again.samples.values().collect()), lines(held.samples.values().collect()));
    journal.finish().unwrap();
    assert_eq!(written(folder.path()), before);
}

/// Cut anywhere, gone on, finished: the same bytes, and nothing that was whole is lost.
#[test]
fn a_file_cut_anywhere_goes_on_to_the_same_bytes() {
    let ((grown, finished), folder) = (straight(), tempfile::tempdir().unwrap());
    let file = path(folder.path());
    let least = grown.iter().position(|b| *b == b'\n').unwrap() + 1;
    for end in (0..grown.len()).step_by(13).chain([least - 1, least, least + 1]) {
        std::fs::write(&file, &grown[..end]).unwrap();
        let (journal, held, found) = open(folder.path()).unwrap();
        let whole = grown[..end].iter().rposition(|b| *b == b'\n').map_or(0, |at| at + 1);
        if end < least {
            assert!(matches!(&found, Found::Stale(stale) if std::fs::read(stale).unwrap() == grown[..end]), "{end}: {found:?}");
        } else {
            assert_eq!(found, Found::Same { cut: (end - whole) as u64 }, "{end}");
            let lines = grown[..whole].iter().filter(|b| **b == b'\n').count();
            assert_eq!(held.samples.len() + held.rewards.len(), lines - 1, "{end}");
            assert_eq!(written(folder.path()), grown[..whole], "{end}");
        }
        go_on(journal, &held).unwrap();
        assert_eq!(written(folder.path()), finished, "{end}");
    }
}

#[test]
fn another_policy_seed_or_iteration_starts_anew() {
    let folder = tempfile::tempdir().unwrap();
    let other = crate::digest::sha256(b"other");
    let others = [Head { adapter: other.clone(), ..head() }, Head { answers: other, ..head() }, Head { seed: 1, ..head() }];
    for other in others {
        let (mut journal, ..) = open(folder.path()).unwrap();
        journal.append_samples(&samples()[..2]).unwrap();
        let before = written(folder.path());
        let (journal, held, found) = Journal::open(folder.path(), &other).unwrap();
        let stale = folder.path().join("iter-00003.jsonl.stale");
        assert_eq!((held, &found), (Held::default(), &Found::Stale(stale.clone())));
        assert_eq!(std::fs::read(stale).unwrap(), before);
        assert_eq!(read(journal.path()).unwrap().0, other);
        std::fs::remove_file(journal.path()).unwrap();
    }
}

#[test]
fn other_rewards_leave_the_answers() {
    let (folder, (grown, _)) = (tempfile::tempdir().unwrap(), straight());
    let other = Head { rewards: crate::digest::sha256(b"other"), ..head() };
    for end in [grown.len(), grown.len() - 3, grown.len() / 3] {
        std::fs::write(path(folder.path()), &grown[..end]).unwrap();
        let before = read(&path(folder.path())).unwrap().1;
        let (journal, held, found) = Journal::open(folder.path(), &other).unwrap();
        let stale = folder.path().join("iter-00003.jsonl.stale");
        assert_eq!(found, Found::Rewarded(stale.clone()));
        assert_eq!(std::fs::read(stale).unwrap(), grown[..end]);
        assert!(held.rewards.is_empty() && held.samples.keys().eq(before.samples.keys()), "{end}");
        let (head, again) = read(journal.path()).unwrap();
        assert!(head == other && again.rewards.is_empty() && again.samples.keys().eq(before.samples.keys()), "{end}");
        let held = go_on(journal, &held).unwrap();
        assert_eq!((held.samples.len(), held.rewards.len()), (20, 20));
    }
}

#[track_caller]
fn refused<T: std::fmt::Debug>(outcome: Result<T>, words: &[&str]) {
    let error = outcome.unwrap_err();
    let text = error.to_string();
    words.iter().for_each(|word| assert!(text.contains(word), "`{text}` should name `{word}`"));
    assert_eq!(error.exit_code(), 3, "{text}");
}

#[test]
fn lines_that_contradict_each_other_are_refused_by_name() {
    let folder = tempfile::tempdir().unwrap();
    let (sample, reward) = (samples().remove(1), rewards().remove(1));
    let write = |lines: &[String]| std::fs::write(path(folder.path()), head().line() + &lines.concat()).unwrap();
    write(&[sample.line(), sample.line(), reward.line(), reward.line()]);
    let (journal, held, _) = open(folder.path()).unwrap();
    assert_eq!((held.samples.len(), held.rewards.len()), (1, 1));
    journal.finish().unwrap();
    let other = Sampled { finished: !sample.finished, ..sample.clone() };
    let name = sample.key.to_string();
    write(&[sample.line(), other.line()]);
    refused(open(folder.path()), &["iter-00003.jsonl: line 3", &name, "another"]);
    write(&[sample.line(), reward.line(), Rewarded { reward: 7.0, ..reward.clone() }.line()]);
    refused(open(folder.path()), &["iter-00003.jsonl: line 4", &name, "another"]);
    write(&[reward.line()]);
    refused(open(folder.path()), &["iter-00003.jsonl: line 2", &name, "answer"]);
    write(&[sample.line(), head().line()]);
    refused(open(folder.path()), &["line 3", "second head"]);
    write(&[sample.line()]);
    refused(open(folder.path()).unwrap().0.finish(), &["iter-00003.jsonl", &name, "a reward"]);
}

/// Bytes changed, lines lost, doubled, exchanged, taken from another journal: what is returned was written so, and going on
/// leads to the same bytes; else the file is refused by name.
#[test]
fn mutated_journals() {
    let ((grown, finished), folder) = (straight(), tempfile::tempdir().unwrap());
    let (whole, mut random) = (read_bytes(&finished), Random::new(11));
    let mut counts = [0; 4];
    for round in 0..if std::env::var_os("PLE_LONG").is_some() { 2000 } else { 240 } {
        let source = if round % 2 == 0 { &grown } else { &finished };
        std::fs::write(path(folder.path()), damage(source, &mut random)).unwrap();
        let (journal, held, found) = match open(folder.path()) {
            Ok(opened) => opened,
            Err(error) => {
                counts[0] += 1;
                assert!(error.to_string().contains("iter-00003.jsonl: line "), "{error}");
                continue;
            }
        };
        counts[match found {
            Found::Nothing | Found::Rewarded(_) => panic!("the file is there, and its rewards are"),
            Found::Same { .. } => 1,
            Found::Stale(_) => 2,
        }] += 1;
        counts[3] += usize::from(held.samples.len() == whole.samples.len());
        held.samples.iter().for_each(|(key, s)| assert_eq!(s.line(), whole.samples[key].line(), "round {round}"));
        held.rewards.iter().for_each(|(key, r)| assert_eq!(r.line(), whole.rewards[key].line(), "round {round}"));
        go_on(journal, &held).unwrap();
        assert_eq!(written(folder.path()), finished, "round {round}");
    }
    assert!(counts.iter().all(|n| *n >= 5), "refused, the same, stale, nothing lost: {counts:?}");
}

fn read_bytes(bytes: &[u8]) -> Held {
    contents(Path::new("memory"), bytes, None).unwrap().held
}

fn damage(bytes: &[u8], random: &mut Random) -> Vec<u8> {
    let mut lines: Vec<Vec<u8>> = bytes.split_inclusive(|b| *b == b'\n').map(<[u8]>::to_vec).collect();
    let (at, other) = (random.below(lines.len()), random.below(lines.len()));
    match random.below(8) {
        0 => drop(lines.remove(at)),
        1 => lines.insert(at, lines[other].clone()),
        2 => lines.swap(at, other),
        3 => lines.insert(at, Head { seed: 1, ..head() }.line().into_bytes()),
        // A block that the disk has lost.
        4 => {
            let (mut out, start) = (bytes.to_vec(), random.below(bytes.len()));
            out[start..].iter_mut().take(64).for_each(|b| *b = 0);
            return out;
        }
        5 => lines[at][0] ^= 1 << random.below(8),
        _ => return random.mutate(bytes),
    }
    lines.concat()
}

/// Lines whose checksum holds and whose contents are something else: an error that names the line, or a journal; no panic.
#[test]
fn mutated_objects_under_a_right_checksum() {
    let ((grown, _), folder) = (straight(), tempfile::tempdir().unwrap());
    let mut random = Random::new(12);
    let (mut refusals, mut rounds) = (0, 0);
    while rounds < 300 {
        let mut lines: Vec<Vec<u8>> = grown.split_inclusive(|b| *b == b'\n').map(<[u8]>::to_vec).collect();
        let at = 1 + random.below(lines.len() - 1);
        let mutated = random.mutate(&line::checked(&lines[at]).unwrap());
        let Some(text) = mutated.strip_suffix(b"}").filter(|text| !text.contains(&b'\n')) else { continue };
        rounds += 1;
        let crc = format!(",\"crc\":\"{:08x}\"}}\n", crc32fast::hash(&mutated));
        lines[at] = [text, crc.as_bytes()].concat();
        std::fs::write(path(folder.path()), lines.concat()).unwrap();
        if let Err(error) = open(folder.path()) {
            refusals += 1;
            assert!(error.to_string().contains("iter-00003.jsonl: line "), "{error}");
        }
    }
    assert!(refusals > 200, "{refusals} of {rounds}");
}

/// A write that fails half-way leaves whole lines.
#[test]
#[cfg(target_os = "linux")]
fn a_full_disk_is_an_error_and_nothing_is_lost() {
    let folder = tempfile::tempdir().unwrap();
    let (journal, ..) = open(folder.path()).unwrap();
    let full = File::options().append(true).open("/dev/full").unwrap();
    let mut full = Journal { path: journal.path.clone(), file: full, len: journal.len };
    let text = full.append_samples(&samples()).unwrap_err().to_string();
    assert!(text.contains("iter-00003.jsonl: cannot write: No space left"), "{text}");
    assert_eq!(full.len, journal.len);
}
