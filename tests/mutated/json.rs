//! JSON changed as JSON: what comes out parses, so that the checks behind the parser are what it meets; now and then bytes are damaged.

use ple_tests::tiny::Random;
use serde_json::{Map, Number, Value, json};

/// A value at random among those that readers trip over.
fn odd(random: &mut Random) -> Value {
    match random.below(22) {
        0 => Value::Null,
        1 => json!(true),
        2 => json!(false),
        3 => json!(0),
        4 => json!(1),
        5 => json!(-1),
        6 => json!(1u64 << random.below(64)),
        7 => json!(u64::MAX),
        8 => json!(i64::MIN),
        9 => json!(1e308),
        10 => json!(-0.0),
        11 => json!(5e-324),
        12 => json!(f64::from(random.below(1000)) / 8.0),
        13 => json!(""),
        14 => json!("auto"),
        15 => json!(["a\u{0}b", "\u{fdd0}", "é😀", "\\", "../x", "(((", "a{9999}"][random.below(7) as usize]),
        16 => json!("x".repeat(random.below(3000) as usize)),
        17 => json!([]),
        18 => json!({}),
        19 => (0..random.below(100)).fold(json!(1), |inner, _| json!([inner])),
        20 => json!(vec![random.below(5); random.below(20) as usize]),
        _ => json!(random.below(64)),
    }
}

/// A number near another, in value or in kind.
fn near(n: &Number, random: &mut Random) -> Value {
    let x = n.as_f64().unwrap_or(0.0);
    match (random.below(8), n.as_i64()) {
        (0, Some(i)) => json!(i.wrapping_add(1)),
        (1, Some(i)) => json!(i.wrapping_sub(1)),
        (2, Some(i)) => json!(i.wrapping_mul(2)),
        (3, Some(i)) => json!(i / 2),
        (4, _) => json!(-x),
        (5, _) => json!(x + 0.5),
        (6, _) => json!(n.to_string()),
        _ => json!([x]),
    }
}

/// Every place of a value that can be changed, as a path of indices.
fn places(value: &Value, at: &mut Vec<usize>, out: &mut Vec<Vec<usize>>) {
    out.push(at.clone());
    let children: Vec<&Value> = match value {
        Value::Array(list) => list.iter().collect(),
        Value::Object(map) => map.values().collect(),
        _ => Vec::new(),
    };
    for (i, child) in children.into_iter().enumerate() {
        at.push(i);
        places(child, at, out);
        at.pop();
    }
}

fn place<'a>(value: &'a mut Value, path: &[usize]) -> Option<&'a mut Value> {
    path.iter().try_fold(value, |value, i| match value {
        Value::Array(list) => list.get_mut(*i),
        Value::Object(map) => map.values_mut().nth(*i),
        _ => None,
    })
}

fn somewhere<'a>(value: &'a mut Value, random: &mut Random) -> Option<&'a mut Value> {
    let mut all = Vec::new();
    places(value, &mut Vec::new(), &mut all);
    let path = all[random.below(all.len() as u32) as usize].clone();
    place(value, &path)
}

/// One change; `others` lend their keys and values.
fn change(value: &mut Value, others: &[Value], random: &mut Random) {
    let lent = others[random.below(others.len() as u32) as usize].clone();
    let Some(here) = somewhere(value, random) else { return };
    match here {
        Value::Object(map) if !map.is_empty() => {
            let at = random.below(map.len() as u32) as usize;
            let key = map.keys().nth(at).cloned().unwrap_or_default();
            match (random.below(5), &lent) {
                (0, _) => drop(map.shift_remove(&key)),
                (1, _) => {
                    let value = map.shift_remove(&key).unwrap_or_default();
                    map.insert(format!("{key}{}", ["_", " ", "s", ""][random.below(4) as usize]), value);
                }
                (2, Value::Object(lent)) if !lent.is_empty() => {
                    let at = random.below(lent.len() as u32) as usize;
                    map.extend(lent.iter().nth(at).map(|(key, value)| (key.clone(), value.clone())));
                }
                (3, Value::Object(lent)) if lent.contains_key(&key) => drop(map.insert(key.clone(), lent[&key].clone())),
                _ => drop(map.insert(key, odd(random))),
            }
        }
        Value::Array(list) if !list.is_empty() => {
            let at = random.below(list.len() as u32) as usize;
            match random.below(4) {
                0 => drop(list.remove(at)),
                1 => list.push(list[at].clone()),
                2 => list.reverse(),
                _ => list[at] = odd(random),
            }
        }
        Value::Number(n) if random.below(2) == 0 => *here = near(n, random),
        Value::String(text) if random.below(2) == 0 => {
            let cut = text.floor_char_boundary(random.below(text.len() as u32 + 1) as usize);
            match random.below(3) {
                0 => text.truncate(cut),
                1 => text.insert_str(cut, ["é", "\n", "*", "\u{fdd1}", "("][random.below(5) as usize]),
                _ => *text = text.repeat(2),
            }
        }
        other => *other = odd(random),
    }
}

/// One to three changes of a value.
pub fn mutated(seed: &Value, others: &[Value], random: &mut Random) -> Value {
    let mut value = seed.clone();
    (0..1 + random.below(3)).for_each(|_| change(&mut value, others, random));
    value
}

/// Its text; one in eight is damaged as bytes, one in eight has a key twice.
pub fn text(value: &Value, random: &mut Random) -> Vec<u8> {
    let text = if random.below(2) == 0 { value.to_string() } else { format!("{value:#}") };
    match (random.below(8), value) {
        (0, _) => bytes(text.as_bytes(), random),
        (1, Value::Object(map)) if !map.is_empty() => {
            let at = random.below(map.len() as u32) as usize;
            let twice: Map<String, Value> =
                map.iter().nth(at).map(|(key, value)| (key.clone(), value.clone())).into_iter().collect();
            let inner = Value::Object(twice).to_string();
            let inner = &inner[1..inner.len() - 1];
            text.replacen('{', &format!("{{{inner},"), 1).into_bytes()
        }
        _ => text.into_bytes(),
    }
}

/// One to four bytes changed, inserted, removed, or the end cut off.
pub fn bytes(seed: &[u8], random: &mut Random) -> Vec<u8> {
    let mut out = seed.to_vec();
    for _ in 0..1 + random.below(4) {
        let at = random.below(out.len().max(1) as u32) as usize;
        let special = b"{}[]\":,\\\n\t -#&*!|>'%@`\xff\x00\xc3?0e";
        let byte =
            if random.below(2) == 0 { special[random.below(special.len() as u32) as usize] } else { random.below(256) as u8 };
        match random.below(8) {
            _ if out.is_empty() => out.push(byte),
            0 => out.truncate(at),
            1 | 2 => drop(out.remove(at)),
            3 | 4 => out.insert(at, byte),
            _ => out[at] = byte,
        }
    }
    out
}
