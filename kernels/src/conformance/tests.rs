//! Twins against plain loops over whole matrices.

use super::*;
use crate::check::on_cuda;

fn wide(bits: u32) -> f32 {
    f32::from_bits(bits << 16)
}

/// A, B and C as matrices, dealt out to lanes by the layout that NVIDIA's manual gives.
#[test]
fn on_cuda_mma_is_the_law_s_chain() {
    on_cuda("conformance", |s| {
        let (a, b) = (words(1, 16 * 8).into_iter().map(bf16_pair).collect::<Vec<_>>(), words(2, 8 * 8));
        let b: Vec<u32> = b.into_iter().map(bf16_pair).collect();
        let a_at = |row: usize, k: usize| a[row * 8 + k / 2] >> (16 * (k % 2)) & 0xffff;
        let b_at = |k: usize, column: usize| b[column * 8 + k / 2] >> (16 * (k % 2)) & 0xffff;
        let c = |row: usize, column: usize| (row as f32 - 7.5) * 0.37 + column as f32;
        let pair = |low: u32, high: u32| low | high << 16;
        let (mut d, mut fa, mut fb) = (vec![], vec![], vec![]);
        for lane in 0..32 {
            let (g, t) = (lane / 4, lane % 4 * 2);
            d.extend([c(g, t), c(g, t + 1), c(g + 8, t), c(g + 8, t + 1)].map(f32::to_bits));
            for (row, k) in [(g, t), (g + 8, t), (g, t + 8), (g + 8, t + 8)] {
                fa.push(pair(a_at(row, k), a_at(row, k + 1)));
            }
            fb.extend([t, t + 8].map(|k| pair(b_at(k, g), b_at(k + 1, g))));
        }
        let got = steps::run(s, &[d, fa, fb].concat(), false)?;
        for lane in 0..32 {
            let (g, t) = (lane / 4, lane % 4 * 2);
            for (i, (row, column)) in [(g, t), (g, t + 1), (g + 8, t), (g + 8, t + 1)].into_iter().enumerate() {
                let chain = |acc: f32, k| wide(a_at(row, k)).mul_add(wide(b_at(k, column)), acc);
                let want = (0..16).fold(c(row, column), chain);
                assert_eq!(f32::from_bits(got[lane * 4 + i]), want, "D[{row}][{column}]");
            }
        }
        Ok::<(), runtime::Error>(())
    });
}

#[test]
fn on_cuda_copies_and_matrices_lie_where_they_should() {
    on_cuda("conformance", |s| {
        let input = words(3, 128);
        let element = |m: usize, r: usize, c: usize| input[m * 32 + r * 4 + c / 2] >> (16 * (c % 2)) & 0xffff;
        let got = run(s, "dump_ldmatrix", 32, 0, &input, 448, &[])?;
        for (first, count) in [(0, 1), (32, 2), (96, 4)] {
            for lane in 0..32 {
                for m in 0..count {
                    let (r, c) = (lane / 4, lane % 4 * 2);
                    let at = first + lane * count + m;
                    assert_eq!(got[at], element(m, r, c) | element(m, r, c + 1) << 16);
                    assert_eq!(got[224 + at], element(m, c, r) | element(m, c + 1, r) << 16);
                }
            }
        }
        let got = run(s, "dump_cp_async", 32, 1024, &input, 256, &[])?;
        assert_eq!(got[..128], input);
        let bytes = |w: &[u32]| w.iter().flat_map(|w| w.to_le_bytes()).collect::<Vec<u8>>();
        for (lane, (got, want)) in bytes(&got[128..]).chunks(16).zip(bytes(&input).chunks(16)).enumerate() {
            let copied = lane % 17;
            assert!(got[..copied] == want[..copied] && got[copied..].iter().all(|&b| b == 0), "lane {lane}");
        }
        let got = run(s, "dump_bar_sync", 96, 0, &input[..96], 96, &[])?;
        assert!((0..96).all(|i| got[i] == input[if i < 64 { 63 - i } else { i }]));
        let got = run(s, "dump_shuffle", 32, 0, &input[..64], 96, &[])?;
        for lane in 0..32 {
            let down = if lane + 5 < 32 { lane + 5 } else { lane };
            assert_eq!(got[lane], input[down]);
            assert_eq!(got[32 + lane], input[lane ^ 9]);
            assert_eq!(got[64 + lane], input[(input[32 + lane] % 32) as usize]);
        }
        Ok::<(), runtime::Error>(())
    });
}

#[test]
fn on_cuda_rounding_to_bf16_is_half_s() {
    on_cuda("conformance", |s| {
        let special = [0x3f808000, 0x3f818000, 0x7f7fffff, 0xff800000, 0x80000001, 0x007fffff, 0x00018000, 0x80000000];
        let input = [&words(4, 504)[..], &special].concat();
        let got = run(s, "dump_cvt", 32, 0, &input, 1024, &[Arg::U32(512)])?;
        for (i, &x) in input.iter().enumerate() {
            let want = |x: u32| match f32::from_bits(x) {
                v if v.is_nan() => 0x7fff,
                v => u32::from(half::bf16::from_f32(v).to_bits()),
            };
            assert_eq!(got[i], want(x), "{x:#x}");
            assert_eq!(got[512 + i], want(x) | want(input[i ^ 1]) << 16, "{x:#x}");
        }
        Ok::<(), runtime::Error>(())
    });
}

#[test]
fn on_cuda_matrices_are_stored_as_they_are_loaded() {
    on_cuda("conformance", |s| {
        let input = words(5, 128);
        let got = run(s, "dump_stmatrix", 32, 0, &input, 256, &[])?;
        for lane in 0..32 {
            for m in 0..4 {
                let (r, c, pair) = (lane / 4, lane % 4 * 2, input[lane * 4 + m]);
                let element = |first: usize, r: usize, c: usize| got[first + m * 32 + r * 4 + c / 2] >> (16 * (c % 2)) & 0xffff;
                assert_eq!(element(0, r, c) | element(0, r, c + 1) << 16, pair);
                assert_eq!(element(128, c, r) | element(128, c + 1, r) << 16, pair);
            }
        }
        Ok::<(), runtime::Error>(())
    });
}

#[test]
fn on_cuda_tensor_copies_swizzle_and_fill_with_zeros() {
    on_cuda("conformance", |s| {
        let memory = words(6, 20 * 64);
        for (x, y) in [(0, 0), (40, 7), (90, 12)] {
            let got = tensor_load(s, &memory, x, y)?;
            let element = |row: usize, column: usize| match row < 20 && column < 128 {
                true => memory[row * 64 + column / 2] >> (16 * (column % 2)) & 0xffff,
                false => 0,
            };
            let (x, y) = (x as usize, y as usize);
            for row in 0..16 {
                for column in 0..64 {
                    let at = row * 128 + ((column * 2) ^ (row % 8 * 16));
                    let stored = |first: usize| got[first + at / 4] >> (8 * (at % 4)) & 0xffff;
                    assert_eq!(stored(0), element(y + row, x + column), "flat ({row}, {column}) at ({x}, {y})");
                    assert_eq!(stored(512), element(y + row % 8, row / 8 * 64 + column), "deep ({row}, {column}) at {y}");
                }
            }
        }
        Ok::<(), runtime::Error>(())
    });
}

/// D [64, n] of A [64, 64] and B [n, 64] by the law's chain, against every way in which the warps may take their operands.
#[test]
fn on_cuda_wgmma_is_the_law_s_chain() {
    on_cuda("conformance", |s| {
        for n in [8, 64, 128, 256] {
            let input: Vec<u32> = words(7 + n as u64, (64 + n) * 32).into_iter().map(bf16_pair).collect();
            let at = |row: usize, k: usize| wide(input[row * 32 + k / 2] >> (16 * (k % 2)) & 0xffff);
            let got = wgmma(s, &input, n)?;
            assert_eq!(run(s, "dump_chain", 128, 0, &input, 64 * n, &[Arg::U32(n as u32)])?, got[..64 * n]);
            for thread in 0..128 {
                let (warp, lane) = (thread / 32, thread % 32);
                for i in 0..n / 2 {
                    let row = warp * 16 + lane / 4 + i / 2 % 2 * 8;
                    let column = i / 4 * 8 + lane % 4 * 2 + i % 2;
                    let plain = (0..64).fold(0f32, |acc, k| at(row, k).mul_add(at(64 + column, k), acc));
                    let of = |which: usize| f32::from_bits(got[which * 64 * n + i * 128 + thread]);
                    assert_eq!((of(0), of(1), of(2)), (plain, plain, plain), "n {n} D[{row}][{column}]");
                    if n == 64 {
                        let turned = (0..64).fold(0f32, |acc, k| at(k, row).mul_add(at(64 + k, column), acc));
                        assert_eq!(of(3), turned, "transposed D[{row}][{column}]");
                    }
                }
            }
        }
        Ok::<(), runtime::Error>(())
    });
}

/// What a schedule must not show in.
#[test]
fn on_cuda_a_dump_is_the_same_in_every_mode_and_in_a_file() {
    let first = std::cell::RefCell::new(Vec::new());
    on_cuda("conformance", |s| {
        let got = dump(s)?;
        let mut first = first.borrow_mut();
        if first.is_empty() {
            *first = got.clone();
        }
        assert_eq!(differences(&got, &first), Vec::<String>::new());
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("dump.json");
        write(&path, s, &got)?;
        assert_eq!(read(&path)?, got);
        Ok::<(), runtime::Error>(())
    });
}

/// The other order of adding is one: nothing that leans on the law's chain survives it.
#[test]
fn on_cuda_the_hostile_order_is_another() {
    let Some(cuda) = emulator::cuda() else { return };
    let plain = dump(&cuda.stream).unwrap();
    cuda.hostile(true);
    let hostile = dump(&cuda.stream).unwrap();
    cuda.hostile(false);
    let names: Vec<String> = differences(&hostile, &plain).iter().map(|d| d.split(':').next().unwrap().to_string()).collect();
    for name in ["mma wide", "mma crafted", "step wide", "chain n=8", "wgmma n=8"] {
        assert!(names.iter().any(|n| n == name), "{name} is not among {names:?}");
    }
    assert!(names.iter().all(|n| n.contains("mma") || n.contains("chain") || n.contains("step")), "{names:?}");
}

/// A chain of fma is not what a permuted or split sum is; every question is asked of a device that has the instructions.
#[test]
fn on_cuda_every_question_has_an_answer() {
    let Some(cuda) = emulator::cuda() else { return };
    let records = dump(&cuda.stream).unwrap();
    let answers = answers(&records);
    for answer in &answers {
        println!("{answer}");
        assert!(answer.of > 0, "{answer}");
    }
    let yes = |part: &str| answers.iter().find(|a| a.question.contains(part)).map(|a| a.unequal == 0).unwrap();
    for part in ["two steps of 8", "sign", "16", "roles", "zeros", "memory", "width", "registers", "+0", "mma.sync", "CPU"] {
        assert!(yes(part), "{part}");
    }
    assert!(!yes("permuted"), "the twin's chain depends on its order");
    let other = conformance_of(&records, "step permuted", |bits| bits[0] ^= 1);
    let count = |records: &[Record]| answers_of(records, "permuted").unequal;
    assert_ne!(count(&other), 0);
    let lacking: Vec<Record> = records.into_iter().filter(|r| !r.name.starts_with("wgmma")).collect();
    assert!(super::answers(&lacking).iter().all(|a| !a.question.contains("wgmma")), "no answer without its records");
}

fn answers_of(records: &[Record], part: &str) -> Answer {
    super::answers(records).into_iter().find(|a| a.question.contains(part)).unwrap()
}

fn conformance_of(records: &[Record], name: &str, change: impl Fn(&mut Vec<u32>)) -> Vec<Record> {
    let mut records = records.to_vec();
    records.iter_mut().filter(|r| r.name == name).for_each(|r| change(&mut r.bits));
    records
}

/// Every answer of hardware that is committed, held against the twins.
#[test]
fn on_cuda_the_twins_answer_as_the_hardware_did() {
    let Some(cuda) = emulator::cuda() else { return };
    let folder = std::path::Path::new(env!("CARGO_MANIFEST_DIR")).join("conformance");
    let files: Vec<_> = std::fs::read_dir(&folder).into_iter().flatten().map(|f| f.unwrap().path()).collect();
    if files.is_empty() {
        println!("skip: conformance: no golden files in {}: the twins are emulated, not conformed", folder.display());
        return;
    }
    let got = dump(&cuda.stream).unwrap();
    for file in files {
        assert_eq!(differences(&got, &read(&file).unwrap()), Vec::<String>::new(), "{}", file.display());
    }
}

#[test]
fn a_golden_file_that_is_wrong_is_named() {
    let folder = tempfile::tempdir().unwrap();
    let path = folder.path().join("golden.json");
    for (text, part) in [
        ("{", "golden.json: "),
        ("{}", "records: wanted a list"),
        (r#"{"records": [{}]}"#, "records[0].name: wanted a text, got null"),
        (r#"{"records": [{"name": "a", "seed": -1}]}"#, "records[0].seed: wanted a number, got -1"),
        (r#"{"records": [{"name": "a", "seed": 1, "bits": "123"}]}"#, "records[0].bits: wanted eight"),
        (r#"{"records": [{"name": "a", "seed": 1, "bits": "0000000g"}]}"#, "records[0].bits: wanted hex"),
    ] {
        std::fs::write(&path, text).unwrap();
        let said = read(&path).unwrap_err().to_string();
        assert!(said.contains(part), "{said}");
    }
    let record = |name: &str, bits: &[u32]| Record { name: name.into(), seed: 1, bits: bits.to_vec() };
    let lines =
        differences(&[record("a", &[1, 2]), record("b", &[1])], &[record("a", &[1, 3]), record("b", &[]), record("c", &[])]);
    let wanted =
        ["a: 1 of 2 words differ; word 1: wanted 00000003, got 00000002", "b: wanted 0 words, got 1", "c (seed 1): missing"];
    assert_eq!(lines, wanted);
}
