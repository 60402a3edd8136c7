//! `model.safetensors` and shards: headers that lie, tensors that do not fit, numbers that are none.

use super::{Case, MODEL, POINTER, Spoil, Stage, absent, assemble, bytes, cut, folder, refuse, rewrite};
use anyhow::{Context, Result};
use serde_json::{Map, Value, json};

const NORM: &str = "model.norm.weight";
const INDEX: &str = "model/model.safetensors.index.json";

/// The header is another.
fn header(change: impl Fn(&mut Map<String, Value>) + 'static) -> Spoil {
    Box::new(move |stage| rewrite(stage, MODEL, |header, _| change(header)))
}

/// The place of a tensor is another.
fn place(change: fn(u64, u64) -> [u64; 2]) -> Spoil {
    header(move |header| {
        let offset = |i: usize| header[NORM]["data_offsets"][i].as_u64().unwrap_or_default();
        header[NORM]["data_offsets"] = json!(change(offset(0), offset(1)));
    })
}

/// One f32 of a tensor is another.
fn element(value: f32) -> Spoil {
    Box::new(move |stage| {
        rewrite(stage, MODEL, |header, data| {
            let start = header[NORM]["data_offsets"][0].as_u64().unwrap_or_default() as usize + 4 * 11;
            data[start..start + 4].copy_from_slice(&value.to_le_bytes());
        })
    })
}

/// The eight bytes before the header are others.
fn length(value: u64) -> Spoil {
    Box::new(move |stage| {
        let file = stage.read(MODEL)?;
        stage.write(MODEL, [&value.to_le_bytes(), &file[8..]].concat())
    })
}

#[test]
fn files_of_tensors() -> Result<()> {
    let twice = r#"{"a": {"dtype": "F32", "shape": [0], "data_offsets": [0, 0]}, "a": {"dtype": "F32", "shape": [0], "data_offsets": [0, 0]}}"#;
    let cases: Vec<Case> = vec![
        ("a header beyond the file", length(u64::MAX), &["model.safetensors: header length", "18446744073709551615"]),
        ("a header of the file's length", length(1 << 20), &["model.safetensors: header length", "1048576"]),
        ("a header that ends early", length(50), &["model.safetensors: not valid JSON"]),
        ("a header of nothing", length(0), &["model.safetensors: not valid JSON"]),
        ("seven bytes", cut(MODEL, 7), &["model.safetensors: header length", "file of 7"]),
        ("nothing", bytes(MODEL, ""), &["model.safetensors"]),
        ("data that ends early", cut(MODEL, 60_000), &["model.safetensors: ", "data_offsets"]),
        (
            "bytes behind the data",
            Box::new(|stage| rewrite(stage, MODEL, |_, data| data.push(0))),
            &["model.safetensors: wanted", "bytes of data"],
        ),
        ("no JSON", bytes(MODEL, assemble("{{{{{{{{", b"")), &["model.safetensors: not valid JSON"]),
        ("a name twice", bytes(MODEL, assemble(twice, b"")), &["model.safetensors", "twice"]),
        ("a pointer", bytes(MODEL, POINTER), &["model.safetensors", "git-LFS pointer"]),
        (
            "out of range",
            place(|start, end| [start, end + (1 << 40)]),
            &["model.safetensors: tensor \"model.norm.weight\": data_offsets", "within"],
        ),
        ("backwards", place(|start, end| [end, start]), &["tensor \"model.norm.weight\": data_offsets"]),
        (
            "over another",
            place(|start, end| [start - 4, end - 4]),
            &["model.safetensors: tensor ", "data_offsets", "wanted a start"],
        ),
        ("longer than its shape", place(|start, end| [start - 4, end]), &["tensor \"model.norm.weight\": data_offsets", "160"]),
        (
            "a shape beyond any file",
            header(|h| h[NORM]["shape"] = json!([u64::MAX, u64::MAX])),
            &["tensor \"model.norm.weight\"", "data_offsets"],
        ),
        ("a shape of text", header(|h| h[NORM]["shape"] = json!("40")), &["tensor \"model.norm.weight\""]),
        ("a dtype that is none", header(|h| h[NORM]["dtype"] = json!("F33")), &["tensor \"model.norm.weight\"", "F33"]),
        (
            "integers",
            header(|h| h[NORM]["dtype"] = json!("I32")),
            &["tensor \"model.norm.weight\": dtype", "F32, BF16 or F16", "I32"],
        ),
        (
            "a missing tensor",
            renamed("lm_head.weight", "head.weight"),
            &["model.safetensors: tensor \"lm_head.weight\"", "not there"],
        ),
        ("one more", Box::new(one_more), &["tensor \"model.extra\": wanted no such tensor", "[1]"]),
        (
            "another shape",
            header(|h| h[NORM]["shape"] = json!([20, 2])),
            &["tensor \"model.norm.weight\": shape: wanted [40], got [20, 2]"],
        ),
        ("NaN", element(f32::NAN), &["model.safetensors: tensor \"model.norm.weight\"", "finite", "element 11"]),
        ("infinity", element(f32::NEG_INFINITY), &["model.safetensors: tensor \"model.norm.weight\"", "finite", "element 11"]),
        ("absent", absent(MODEL), &["model.safetensors: cannot open"]),
        ("a folder", folder(MODEL), &["model.safetensors: cannot map: not a regular file"]),
        ("a pickle", Box::new(pickle), &["model.safetensors", "pytorch_model.bin", "pickle"]),
    ];
    refuse(&Stage::new()?, cases)
}

fn renamed(from: &'static str, to: &'static str) -> Spoil {
    header(move |header| {
        if let Some(tensor) = header.shift_remove(from) {
            header.insert(to.into(), tensor);
        }
    })
}

fn one_more(stage: &Stage) -> Result<()> {
    rewrite(stage, MODEL, |header, data| {
        header.insert("model.extra".into(), json!({"dtype": "F32", "shape": [1], "data_offsets": [data.len(), data.len() + 4]}));
        data.extend([0; 4]);
    })
}

fn pickle(stage: &Stage) -> Result<()> {
    std::fs::remove_file(stage.path(MODEL))?;
    stage.write("model/pytorch_model.bin", "PK")
}

/// The one file as a shard, with an index over it that `change` spoils.
fn index(change: impl Fn(&mut Map<String, Value>) + 'static) -> Spoil {
    Box::new(move |stage| {
        let mut map = Map::new();
        rewrite(stage, MODEL, |header, _| {
            map.extend(header.keys().filter(|name| *name != "__metadata__").map(|name| (name.clone(), json!("one.safetensors"))));
        })?;
        std::fs::rename(stage.path(MODEL), stage.path("model/one.safetensors"))?;
        change(&mut map);
        stage.write(INDEX, json!({"metadata": {"total_size": 1}, "weight_map": map}).to_string())
    })
}

#[test]
fn shards() -> Result<()> {
    let to = |shard: &'static str| index(move |map| drop(map.insert(NORM.into(), json!(shard))));
    const OUTSIDE: &[&str] = &["model.safetensors.index.json: weight_map.model.norm.weight", "in the same folder"];
    let cases: Vec<Case> = vec![
        ("up and away", to("../model/one.safetensors"), OUTSIDE),
        ("below", to("sub/one.safetensors"), OUTSIDE),
        ("from the root", to("/etc/passwd"), OUTSIDE),
        ("backslashes", to("..\\one.safetensors"), OUTSIDE),
        ("the folder itself", to("."), OUTSIDE),
        ("no name", to(""), OUTSIDE),
        ("a number", index(|m| drop(m.insert(NORM.into(), json!(1)))), OUTSIDE),
        (
            "a shard that is not there",
            to("two.safetensors"),
            &["weight_map.model.norm.weight", "in the folder", "two.safetensors"],
        ),
        (
            "a tensor that is not in it",
            index(|m| drop(m.insert("more".into(), json!("one.safetensors")))),
            &["weight_map.more", "holds this tensor"],
        ),
        (
            "a tensor that the index lacks",
            index(|m| drop(m.shift_remove(NORM))),
            &["one.safetensors: tensor \"model.norm.weight\"", "weight_map"],
        ),
        (
            "no map",
            Box::new(|stage| index(|_| ())(stage).and_then(|()| stage.write(INDEX, "{}"))),
            &["index.json: weight_map", "got nothing"],
        ),
        (
            "no JSON",
            Box::new(|stage| index(|_| ())(stage).and_then(|()| stage.write(INDEX, "{"))),
            &["index.json: not valid JSON"],
        ),
    ];
    let stage = Stage::new()?;
    let whole = stage.copy()?;
    index(|_| ())(&whole)?;
    whole.score().succeed().context("one shard in order")?;
    refuse(&stage, cases)
}
