//! The table of instructions (`ptx.cuh`) against what their twins on the emulated device say that they stand for: op, shape, types,
//! layout, and as many operands as these ask for. And no instruction text stands anywhere else.

use std::collections::{BTreeMap, BTreeSet};
use std::path::{Path, PathBuf};

/// A row: the text of the hardware, and the operand macros in order.
struct Row {
    twin: String,
    text: String,
    operands: Vec<String>,
}

/// What a twin declares: op, shape, types, layout.
type Twin = [String; 4];

fn source(path: &str) -> String {
    let path = Path::new(env!("CARGO_MANIFEST_DIR")).join(path);
    std::fs::read_to_string(&path).unwrap_or_else(|e| panic!("{}: {e}", path.display()))
}

/// The text up to the bracket that closes the one before it.
fn inside(text: &str) -> &str {
    let (mut depth, mut quoted) = (1, false);
    for (i, c) in text.char_indices() {
        quoted ^= c == '"';
        match c {
            '(' if !quoted => depth += 1,
            ')' if !quoted => depth -= 1,
            _ => {}
        }
        if depth == 0 {
            return &text[..i];
        }
    }
    panic!("a bracket that nothing closes: {text:.80}");
}

/// String literals and, between them, macros that stand for some, put together.
fn literal(text: &str, registers: &BTreeMap<String, String>) -> String {
    let mut all = String::new();
    for (i, part) in text.split('"').enumerate() {
        match i % 2 {
            1 => all += &part.replace("\\n", "\n"),
            _ => part.split_whitespace().filter(|word| *word != "\\").for_each(|word| all += &registers[word]),
        }
    }
    all
}

fn table() -> Vec<Row> {
    let text = source("src/ptx.cuh");
    let mut registers = BTreeMap::new();
    for definition in text.split("#define REGISTERS_").skip(1) {
        let (count, rest) = definition.split_once(' ').unwrap();
        let mut lines = rest.lines();
        let mut value = lines.next().unwrap().to_string();
        while value.ends_with('\\') {
            value = value.trim_end_matches('\\').to_string() + lines.next().unwrap();
        }
        let value = literal(&value, &registers);
        registers.insert(format!("REGISTERS_{count}"), value);
    }
    let rows = text.lines().skip_while(|line| !line.starts_with("// ----")).collect::<Vec<_>>().join("\n");
    let row = |at: &str| {
        let row = inside(&at[at.find('(').unwrap() + 1..]);
        let (twin, rest) = row.split_once(',').unwrap();
        // The text ends where the first list of operands begins.
        let open = rest.char_indices().scan(false, |quoted, (i, c)| {
            *quoted ^= c == '"';
            Some((i, c == '(' && !*quoted))
        });
        let open = open.filter(|(_, found)| *found).map(|(i, _)| i).next().unwrap();
        // A macro is the word before a bracket; the brackets around lists have none.
        let words = rest[open..].split('(').map(|part| part.rsplit([' ', ',', ')']).next().unwrap());
        let operands = words.filter(|w| w.starts_with(char::is_uppercase)).map(str::to_string).collect();
        Row { twin: twin.trim().into(), text: literal(rest[..open].trim().trim_end_matches(','), &registers), operands }
    };
    let starts = rows.match_indices("  PTX").chain(rows.match_indices("{ PTX"));
    starts.map(|(i, _)| row(&rows[i..])).collect()
}

fn twins() -> BTreeMap<String, Twin> {
    let text = source("../tests/emulator/host/twins.hpp") + &source("../tests/emulator/host/hopper.hpp");
    let declared = text.lines().filter_map(|line| line.strip_prefix("TWIN("));
    let one = |line: &str| {
        let (name, rest) = inside(line).split_once(',').unwrap();
        let fields: Vec<String> = rest.split('"').skip(1).step_by(2).map(str::to_string).collect();
        (name.to_string(), fields.try_into().unwrap_or_else(|f| panic!("{name}: wanted op, shape, types, layout, got {f:?}")))
    };
    declared.map(one).collect()
}

/// What the text says: the statement of the op, its modifiers sorted into shape, types and layout, every other one known.
fn said(row: &Row, op: &str) -> (String, Twin) {
    let begins = |s: &&str| s.trim().strip_prefix(op).is_some_and(|rest| rest.is_empty() || rest.starts_with(['.', ' ']));
    let statement = row.text.split([';', '\n']).find(begins).unwrap_or_else(|| panic!("{}: no {op} in {}", row.twin, row.text));
    let (mnemonic, operands) = statement.trim().split_once(' ').unwrap_or((statement.trim(), ""));
    let (mut shape, mut types, mut layout) = (vec![], vec![], vec![]);
    for part in mnemonic[op.len()..].split('.').filter(|p| !p.is_empty()) {
        match part {
            "f32" | "bf16" | "bf16x2" | "b16" | "b64" => types.push(part),
            "row" | "col" | "trans" | "tile" | "rn" => layout.push(part),
            "x1" | "x2" | "x4" | "2d" | "3d" => shape.push(part),
            "sync" | "aligned" | "cg" | "global" | "shared" | "shared::cta" | "shared::cluster" | "release" | "cluster" => {}
            "mbarrier::complete_tx::bytes" => {}
            _ if part.starts_with('m') && part[1..].starts_with(|c: char| c.is_ascii_digit()) => shape.push(part),
            _ => panic!("{}: {part} in {mnemonic} is unknown here", row.twin),
        }
    }
    // A copy's size is an operand.
    shape.extend(operands.split(", ").filter(|o| op == "cp.async" && o.chars().all(|c| c.is_ascii_digit())));
    (operands.to_string(), [op.into(), shape.join("."), types.join("."), layout.join(".")])
}

/// Registers of a lane that an operand macro stands for.
fn registers(operand: &str) -> usize {
    operand.rsplit('_').next().and_then(|n| n.parse().ok()).unwrap_or(1)
}

/// The lists in braces that the shape asks for: accumulators, then fragments of 16-bit elements, two a register.
fn lists(twin: &str, shape: &str) -> Option<Vec<usize>> {
    if let Some(matrices) = shape.strip_prefix("m8n8.x") {
        return Some(vec![matrices.parse().unwrap()]);
    }
    let [m, n, k] = shape.split(['m', 'n', 'k']).skip(1).map(|v| v.parse::<usize>().unwrap()).collect::<Vec<_>>()[..] else {
        return None;
    };
    let lanes = if m == 64 { 128 } else { 32 };
    let fragment = |elements: usize| elements / lanes / 2;
    Some(match (lanes, twin.contains("_ss_")) {
        (32, _) => vec![m * n / lanes, fragment(m * k), fragment(n * k), m * n / lanes],
        (_, false) => vec![m * n / lanes, fragment(m * k)],
        (_, true) => vec![m * n / lanes],
    })
}

#[test]
fn on_cuda_every_row_is_what_its_twin_stands_for() {
    let (rows, twins) = (table(), twins());
    for row in &rows {
        let twin = twins.get(&row.twin).unwrap_or_else(|| panic!("{}: no such twin", row.twin));
        let (operands, got) = said(row, &twin[0]);
        assert_eq!(&got, twin, "{}: {}", row.twin, row.text);
        let used: BTreeSet<usize> = row
            .text
            .split('%')
            .skip(1)
            .map(|t| t.split(|c: char| !c.is_ascii_digit()).next().unwrap().parse().unwrap())
            .collect();
        let given: usize = row.operands.iter().map(|o| registers(o)).sum();
        assert!(used.iter().copied().eq(0..given), "{}: {given} operands, the text names {used:?}", row.twin);
        if let Some(wanted) = lists(&row.twin, &twin[1]) {
            let braces = operands.split('{').skip(1).map(|list| list.split('}').next().unwrap().split(',').count());
            assert_eq!(braces.collect::<Vec<_>>(), wanted, "{}: {operands}", row.twin);
        }
    }
    let named: BTreeSet<&String> = rows.iter().map(|r| &r.twin).collect();
    assert_eq!(named.len(), rows.len(), "a twin has one row");
    assert_eq!(named, twins.keys().collect(), "every twin has a row");
    println!("{} instructions, each with its twin", rows.len());
    assert!(rows.len() >= 30, "{} rows were found", rows.len());
}

#[test]
fn on_cuda_instruction_text_stands_in_one_file() {
    let mut folders = vec![Path::new(env!("CARGO_MANIFEST_DIR")).join("src")];
    let mut seen: Vec<PathBuf> = Vec::new();
    while let Some(folder) = folders.pop() {
        for path in std::fs::read_dir(folder).unwrap().map(|f| f.unwrap().path()) {
            match path.extension().and_then(|e| e.to_str()) {
                _ if path.is_dir() => folders.push(path),
                Some("cu" | "cuh") => seen.push(path),
                _ => {}
            }
        }
    }
    assert!(seen.len() > 5, "{seen:?}");
    for path in seen.iter().filter(|p| !p.ends_with("ptx.cuh")) {
        let text = std::fs::read_to_string(path).unwrap();
        let mut words = text.split(|c: char| !c.is_alphanumeric() && c != '_');
        assert!(!words.any(|w| w == "asm" || w == "__asm__"), "{}: instruction text belongs in ptx.cuh", path.display());
    }
}
