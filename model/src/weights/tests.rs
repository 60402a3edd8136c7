use super::*;
use crate::Config;
use crate::shared::{Lcg, folders, shared};
use serde_json::{Value, json};

/// A file with this header over so many bytes of data.
fn file(header: &str, data: usize) -> Vec<u8> {
    let mut bytes = (header.len() as u64).to_le_bytes().to_vec();
    bytes.extend(header.as_bytes());
    bytes.extend((0..data).map(|i| i as u8));
    bytes
}

fn written(folder: &Path, name: &str, bytes: &[u8]) -> PathBuf {
    let path = folder.join(name);
    std::fs::write(&path, bytes).unwrap();
    path
}

fn specs(list: &[(&str, &[usize])]) -> Vec<TensorSpec> {
    list.iter().map(|(name, shape)| TensorSpec { name: name.to_string(), shape: shape.to_vec() }).collect()
}

#[test]
fn fixtures_and_stories_hold_what_their_configs_ask() {
    let mut cases: Vec<_> = folders("fixtures/lm", "llama_").into_iter().map(|c| c.join("model")).collect();
    cases.extend(
        ["data/models/stories260k", "data/models/stories260k-bf16", "fixtures/reward/rm_llama/model"]
            .into_iter()
            .filter_map(shared),
    );
    for folder in &cases {
        let (config, checkpoint) = (Config::from_folder(folder).unwrap(), Checkpoint::open(folder).unwrap());
        checkpoint.check(&config.tensors()).unwrap();
        assert_eq!(checkpoint.names().count(), config.tensors().len(), "{}", folder.display());
        for spec in config.tensors() {
            let tensor = checkpoint.tensor(&spec.name).unwrap();
            let tensor_dtype = if folder.ends_with("stories260k-bf16") { tensor.dtype } else { config.dtype.unwrap() };
            assert_eq!(tensor.dtype, tensor_dtype);
            tensor.check_finite().unwrap();
            assert_eq!(tensor.to_f32().len(), spec.shape.iter().product::<usize>());
        }
    }
    let (Some(wide), Some(narrow)) = (shared("data/models/stories260k"), shared("data/models/stories260k-bf16")) else { return };
    let (wide, narrow) = (Checkpoint::open(&wide).unwrap(), Checkpoint::open(&narrow).unwrap());
    for name in wide.names() {
        let rounded: Vec<f32> =
            wide.tensor(name).unwrap().to_f32().into_iter().map(|x| half::bf16::from_f32(x).to_f32()).collect();
        assert_eq!(rounded, narrow.tensor(name).unwrap().to_f32(), "{name}");
    }
}

#[test]
fn the_writer_writes_pytorchs_bytes() {
    let temporary = tempfile::tempdir().unwrap();
    for path in ["data/models/stories260k/model.safetensors", "data/adapters/stories260k-imdb-pos-r8/adapter_model.safetensors"] {
        let Some(path) = shared(path) else { return };
        let checkpoint = Checkpoint::open_file(&path).unwrap();
        let tensors = checkpoint
            .names()
            .map(|n| checkpoint.tensor(n).unwrap())
            .map(|t| (t.name.to_string(), t.dtype, t.shape.to_vec(), t.bytes));
        let mut tensors: Vec<Tensor> = tensors.collect();
        tensors.reverse();
        let copy = temporary.path().join("copy.safetensors");
        write_safetensors(&copy, &tensors).unwrap();
        assert!(std::fs::read(&copy).unwrap() == std::fs::read(&path).unwrap(), "{}", path.display());
    }
}

#[test]
fn the_writer_refuses_what_does_not_fit() {
    let temporary = tempfile::tempdir().unwrap();
    let path = temporary.path().join("m.safetensors");
    let one = |name: &str, shape: &[usize], bytes| (name.to_string(), DType::F32, shape.to_vec(), bytes);
    let data = [0u8; 8];
    for (tensors, wanted) in [
        (vec![one("a", &[1], &data[..])], "tensor \"a\": wanted 4 bytes for f32 [1], got 8"),
        (vec![one("a", &[usize::MAX, 2], &data[..])], "tensor \"a\": wanted more bytes"),
        (vec![one("a", &[2], &data[..]), one("a", &[1], &data[..4])], "tensor \"a\": wanted once, got twice"),
    ] {
        let text = write_safetensors(&path, &tensors).unwrap_err().to_string();
        assert!(text.contains("m.safetensors") && text.contains(wanted), "{text}");
        assert!(!path.exists());
    }
    let text = write_safetensors(&temporary.path().join("none/m.safetensors"), &[]).unwrap_err().to_string();
    assert!(text.contains("none/m.safetensors: cannot create"), "{text}");
    write_safetensors(&path, &[one("quote\" \n", &[0, 3], &[]), one("z", &[], &data[..4])]).unwrap();
    let checkpoint = Checkpoint::open_file(&path).unwrap();
    assert_eq!(checkpoint.names().collect::<Vec<_>>(), ["quote\" \n", "z"]);
    assert_eq!((checkpoint.tensor("z").unwrap().shape.len(), checkpoint.tensor("quote\" \n").unwrap().to_f32().len()), (0, 0));
}

#[test]
fn widening_is_exact_at_any_alignment() {
    let temporary = tempfile::tempdir().unwrap();
    let halves: Vec<u8> = (0..=u16::MAX).flat_map(u16::to_le_bytes).collect();
    let floats: Vec<u8> = [1.5f32, -0.0, f32::MIN_POSITIVE, f32::MAX, 1e-40].into_iter().flat_map(f32::to_le_bytes).collect();
    // Offsets 0, 131072 and 262144 from the end of a header whose length is odd.
    let tensor = |dtype: &str, n: usize, start: usize, end: usize| {
        format!(r#"{{"dtype":"{dtype}","shape":[{n}],"data_offsets":[{start},{end}]}}"#)
    };
    let (b, h, f) = (tensor("BF16", 65536, 0, 131072), tensor("F16", 65536, 131072, 262144), tensor("F32", 5, 262144, 262164));
    let mut header = format!(r#"{{"b":{b},"h":{h},"f":{f}}}"#);
    header += if header.len() % 2 == 0 { " " } else { "" };
    let mut bytes = file(&header, 0);
    bytes.extend(halves.iter().chain(&halves).chain(&floats));
    let checkpoint = Checkpoint::open_file(&written(temporary.path(), "odd.safetensors", &bytes)).unwrap();
    let (b, h) = (checkpoint.tensor("b").unwrap(), checkpoint.tensor("h").unwrap());
    assert_eq!(b.bytes.as_ptr() as usize % 2, 1);
    for (i, (x, y)) in b.to_f32().into_iter().zip(h.to_f32()).enumerate() {
        let (bf, hf) = (half::bf16::from_bits(i as u16), f16::from_bits(i as u16));
        assert!(bf.is_nan() && x.is_nan() || x.to_bits() == bf.to_f32().to_bits(), "{i}");
        assert!(hf.is_nan() && y.is_nan() || y.to_bits() == hf.to_f32().to_bits(), "{i}");
    }
    assert_eq!(checkpoint.tensor("f").unwrap().to_f32().into_iter().flat_map(f32::to_le_bytes).collect::<Vec<_>>(), floats);
    assert!(
        b.check_finite()
            .unwrap_err()
            .to_string()
            .ends_with("tensor \"b\": wanted finite numbers, got NaN or infinity at element 32640")
    );
    assert!(h.check_finite().unwrap_err().to_string().ends_with("at element 31744"));
    checkpoint.tensor("f").unwrap().check_finite().unwrap();
}

#[test]
fn numbers_that_are_not_finite_are_found() {
    let temporary = tempfile::tempdir().unwrap();
    for (at, bad) in [(0, f32::NAN), (5000, f32::INFINITY), (9999, f32::NEG_INFINITY)] {
        let mut values = vec![f32::MAX; 10000];
        values[at] = bad;
        let path = temporary.path().join("model.safetensors");
        write_safetensors(&path, &[("w".into(), DType::F32, vec![100, 100], bytemuck::cast_slice(&values))]).unwrap();
        let text = Checkpoint::open(temporary.path()).unwrap().tensor("w").unwrap().check_finite().unwrap_err().to_string();
        assert!(text.contains("model.safetensors: tensor \"w\"") && text.ends_with(&format!("at element {at}")), "{text}");
    }
}

#[test]
fn bad_files_name_file_and_tensor() {
    let temporary = tempfile::tempdir().unwrap();
    let one = |info: &str| file(&format!(r#"{{"a":{info}}}"#), 8);
    let two = |a: [usize; 2], b: [usize; 2]| {
        let info = |r: [usize; 2]| json!({"dtype": "F32", "shape": [(r[1] - r[0]) / 4], "data_offsets": r});
        file(&json!({"a": info(a), "b": info(b)}).to_string(), 8)
    };
    let mut lying = one("{}");
    lying[..8].copy_from_slice(&1000u64.to_le_bytes());
    let mut huge = one("{}");
    huge[..8].copy_from_slice(&u64::MAX.to_le_bytes());
    let cases = [
        (vec![], "header length: wanted 8 bytes, got a file of 0"),
        (vec![1, 2, 3], "header length: wanted 8 bytes, got a file of 3"),
        (lying, "header length: wanted at most 16 in a file of 24 bytes, got 1000"),
        (huge, "header length: wanted at most 16"),
        (b"version https://git-lfs.github.com/spec/v1\noid sha256:0\nsize 1\n".to_vec(), "git-LFS pointer"),
        (b"PK\x03\x04\0\0\0\0 a zip of a pickle".to_vec(), "header length: wanted at most 18"),
        (file("\u{7f}{}", 0), "not valid JSON"),
        (file("[]", 0), "wanted a JSON object, got []"),
        (file(r#"{"__metadata__":{"format":1}}"#, 0), "__metadata__: wanted an object of strings"),
        (file(r#"{"a":1}"#, 0), "tensor \"a\": invalid type"),
        (one(r#"{"dtype":"Q4","shape":[2],"data_offsets":[0,8]}"#), "tensor \"a\": unknown variant `Q4`"),
        (one(r#"{"dtype":"F32","shape":[2]}"#), "tensor \"a\": missing field `data_offsets`"),
        (one(r#"{"dtype":"F32","shape":[-2],"data_offsets":[0,8]}"#), "tensor \"a\": invalid value"),
        (
            one(r#"{"dtype":"F32","shape":[2],"data_offsets":[0,12]}"#),
            "tensor \"a\": data_offsets: wanted a range within the 8 bytes",
        ),
        (
            one(r#"{"dtype":"F32","shape":[2],"data_offsets":[8,0]}"#),
            "tensor \"a\": data_offsets: wanted a range within the 8 bytes",
        ),
        (
            one(r#"{"dtype":"F32","shape":[3],"data_offsets":[0,8]}"#),
            "tensor \"a\": data_offsets: wanted 12 bytes for F32 [3], got 8",
        ),
        (one(r#"{"dtype":"F32","shape":[4294967296,4294967297],"data_offsets":[0,8]}"#), "wanted another count of bytes"),
        (
            one(r#"{"dtype":"F32","shape":[1],"data_offsets":[0,4]}"#),
            "wanted 4 bytes of data after the header, as its tensors say, got 8",
        ),
        (two([0, 4], [0, 8]), "tensor \"b\": data_offsets: wanted a start at 4, got 0: it overlaps"),
        (two([0, 0], [4, 8]), "tensor \"b\": data_offsets: wanted a start at 0, got 4: it leaves a hole"),
        (file(r#"{"a":{"dtype":"F32","shape":[2],"data_offsets":[0,8]},"a":{}}"#, 8), "the key \"a\" stands twice"),
    ];
    for (bytes, wanted) in cases {
        written(temporary.path(), "model.safetensors", &bytes);
        let text = Checkpoint::open(temporary.path()).expect_err(wanted).to_string();
        assert!(text.contains("model.safetensors: ") && text.contains(wanted), "{wanted}: {text}");
    }
    let integers = one(r#"{"dtype":"I64","shape":[1],"data_offsets":[0,8]}"#);
    written(temporary.path(), "model.safetensors", &integers);
    let text = Checkpoint::open(temporary.path()).unwrap().tensor("a").unwrap_err().to_string();
    assert!(text.contains("tensor \"a\": dtype: wanted F32, BF16 or F16, got I64"), "{text}");
}

#[test]
fn missing_extra_and_misshapen_tensors() {
    let temporary = tempfile::tempdir().unwrap();
    let path = temporary.path().join("model.safetensors");
    let bytes = [0u8; 24];
    let tensor = |name: &str| (name.to_string(), DType::F32, vec![2, 3], &bytes[..]);
    write_safetensors(&path, &[tensor("a"), tensor("lm_head.weight"), tensor("model.layers.0.self_attn.rotary_emb.inv_freq")])
        .unwrap();
    let checkpoint = Checkpoint::open(temporary.path()).unwrap();
    checkpoint.check(&specs(&[("a", &[2, 3])])).unwrap();
    checkpoint.check(&specs(&[("a", &[2, 3]), ("lm_head.weight", &[2, 3])])).unwrap();
    let head: &[usize] = &[2, 3];
    for (wanted, text) in [
        (specs(&[("a", &[3, 2])]), "tensor \"a\": shape: wanted [3, 2], got [2, 3]"),
        (specs(&[("a", &[6])]), "tensor \"a\": shape: wanted [6], got [2, 3]"),
        (specs(&[("a", head), ("b", &[1])]), "tensor \"b\": wanted, but it is not there"),
        (specs(&[]), "tensor \"a\": wanted no such tensor, got one of shape [2, 3]"),
        (specs(&[("a", head), ("lm_head.weight", &[1])]), "tensor \"lm_head.weight\": shape: wanted [1]"),
    ] {
        let error = checkpoint.check(&wanted).unwrap_err().to_string();
        assert!(error.contains("model.safetensors: ") && error.contains(text), "{error}");
    }
    write_safetensors(&path, &[tensor("score.weight"), tensor("lm_head.weight")]).unwrap();
    let error = Checkpoint::open(temporary.path()).unwrap().check(&specs(&[("score.weight", head)])).unwrap_err().to_string();
    assert!(error.contains("tensor \"lm_head.weight\": wanted no such tensor"), "{error}");
}

#[test]
fn bad_shards_name_the_index() {
    let temporary = tempfile::tempdir().unwrap();
    let folder = temporary.path();
    let bytes = [0u8; 4];
    write_safetensors(
        &folder.join("one.safetensors"),
        &[("a".into(), DType::F32, vec![1], &bytes), ("b".into(), DType::F32, vec![1], &bytes)],
    )
    .unwrap();
    let open = |map: Value| {
        std::fs::write(folder.join("model.safetensors.index.json"), json!({"metadata": {}, "weight_map": map}).to_string())
            .unwrap();
        Checkpoint::open(folder)
    };
    let good = open(json!({"b": "one.safetensors", "a": "one.safetensors"})).unwrap();
    assert_eq!((good.names().collect::<Vec<_>>(), good.tensor("b").unwrap().to_f32()), (vec!["a", "b"], vec![0.0]));
    for shard in
        ["/etc/passwd", "../one.safetensors", "sub/one.safetensors", "sub\\one.safetensors", "C:one", "", ".", "..", "a..b"]
    {
        let text = open(json!({"a": shard})).unwrap_err().to_string();
        assert!(text.contains("index.json: weight_map.a: wanted the name of a file in the same folder"), "{text}");
    }
    for (map, wanted) in [
        (json!({"a": 1}), "index.json: weight_map.a: wanted the name of a file"),
        (
            json!({"a": "two.safetensors"}),
            "index.json: weight_map.a: wanted a file that is in the folder, got \"two.safetensors\"",
        ),
        (json!({"c": "one.safetensors"}), "index.json: weight_map.c: wanted a shard that holds this tensor"),
        (json!({"a": "one.safetensors"}), "one.safetensors: tensor \"b\": wanted it at this file in the weight_map"),
        (json!(null), "index.json: weight_map: wanted an object of tensor -> file, got null"),
        (json!([]), "index.json: weight_map: wanted an object, got []"),
    ] {
        let text = open(map).unwrap_err().to_string();
        assert!(text.contains(wanted), "{text}");
    }
    std::fs::remove_file(folder.join("model.safetensors.index.json")).unwrap();
    assert!(Checkpoint::open(folder).unwrap_err().to_string().contains("model.safetensors: cannot open"));
    std::fs::write(folder.join("pytorch_model.bin"), "x").unwrap();
    assert!(Checkpoint::open(folder).unwrap_err().to_string().contains("got pytorch_model.bin only"));
    std::fs::create_dir(folder.join("model.safetensors")).unwrap();
    assert!(Checkpoint::open(folder).unwrap_err().to_string().contains("model.safetensors: cannot"));
}

#[test]
fn damaged_files_never_panic() {
    let temporary = tempfile::tempdir().unwrap();
    let path = temporary.path().join("small.safetensors");
    let bytes: Vec<u8> = (0..36).collect();
    write_safetensors(
        &path,
        &[("a".into(), DType::F32, vec![2, 3], &bytes[..24]), ("b".into(), DType::Bf16, vec![6], &bytes[..12])],
    )
    .unwrap();
    let (good, mut random, mut read) = (std::fs::read(&path).unwrap(), Lcg(2), 0);
    for _ in 0..3000 {
        let damaged = random.damage(&good);
        let Ok(header::Header { entries, .. }) = header::read(&path, &damaged) else { continue };
        assert!(entries.values().all(|e| e.bytes.end <= damaged.len()));
        read += 1;
    }
    assert!(read > 50 && read < 2950, "{read}");
    for _ in 0..300 {
        std::fs::write(&path, random.damage(&good)).unwrap();
        let Ok(checkpoint) = Checkpoint::open_file(&path) else { continue };
        for name in checkpoint.names() {
            let Ok(tensor) = checkpoint.tensor(name) else { continue };
            assert_eq!(tensor.to_f32().len() * tensor.dtype.size(), tensor.bytes.len());
        }
    }
}
