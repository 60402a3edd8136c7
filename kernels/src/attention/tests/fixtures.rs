//! The shared operator cases: f32 inputs, results evaluated in f64.

use super::*;
use std::path::PathBuf;

/// The folder `fixtures/` of the shared data, or a loud skip.
pub(crate) fn folder() -> Option<PathBuf> {
    let shared = std::env::var_os("PLE_SHARED")
        .map_or_else(|| PathBuf::from(concat!(env!("CARGO_MANIFEST_DIR"), "/../../shared")), PathBuf::from);
    let folder = shared.join("fixtures");
    if folder.join("manifest.json").is_file() {
        return Some(folder);
    }
    eprintln!("skip: no fixtures in {}", folder.display());
    None
}

/// The operator cases of the manifest whose name starts with `prefix`.
pub(crate) fn cases(folder: &std::path::Path, prefix: &str) -> Vec<serde_json::Value> {
    let text = std::fs::read_to_string(folder.join("manifest.json")).expect("manifest");
    let manifest: serde_json::Value = serde_json::from_str(&text).expect("manifest");
    let ops = manifest["ops"].as_array().expect("ops").iter();
    ops.filter(|op| op["name"].as_str().is_some_and(|name| name.starts_with(prefix))).cloned().collect()
}

/// The heads and parameters of a case.
pub(crate) fn settings(case: &serde_json::Value) -> (Heads, Params) {
    let number = |name: &str| case[name].as_u64().unwrap_or(0);
    let heads = Heads { h: number("heads") as usize, k: number("kv_heads") as usize, d: number("head_dim") as usize };
    let params = Params {
        scale: case["scale"].as_f64().expect("scale") as f32,
        softcap: case["softcap"].as_f64().unwrap_or(0.0) as f32,
        window: number("window") as u32,
        causal: case["causal"].as_bool().unwrap_or(true),
    };
    (heads, params)
}

/// A safetensors file's tensors by name.
pub(crate) struct File(Vec<u8>);

impl File {
    pub(crate) fn open(folder: &std::path::Path, name: &str) -> File {
        File(std::fs::read(folder.join(name)).expect(name))
    }
    fn bytes<const W: usize>(&self, name: &str) -> Vec<[u8; W]> {
        let tensors = safetensors::SafeTensors::deserialize(&self.0).expect("safetensors");
        tensors.tensor(name).expect(name).data().as_chunks().0.to_vec()
    }
    pub(crate) fn f32(&self, name: &str) -> Vec<f32> {
        self.bytes(name).into_iter().map(f32::from_le_bytes).collect()
    }
    pub(crate) fn i32(&self, name: &str) -> Vec<i32> {
        self.bytes(name).into_iter().map(i32::from_le_bytes).collect()
    }
}

/// Rows of q, k and v side by side.
pub(crate) fn interleave(q: &[f32], k: &[f32], v: &[f32], heads: Heads) -> Vec<f32> {
    let (wide, narrow) = (heads.h * heads.d, heads.k * heads.d);
    let rows = q.chunks(wide).zip(k.chunks(narrow).zip(v.chunks(narrow)));
    rows.flat_map(|(q, (k, v))| [q, k, v].concat()).collect()
}

fn check(name: &str, got: &[f32], want: &[f32]) {
    let error = relative(got, &wide(want));
    println!("{name}: {error:.1e}");
    assert!(error < LIMIT, "{name}: {error:e}");
}

#[test]
fn packed_cases() -> Result<()> {
    let Some(folder) = folder() else { return Ok(()) };
    let kinds = ["attn_causal", "attn_window", "attn_softcap", "attn_bidirectional"];
    let found: Vec<_> = kinds.iter().flat_map(|kind| cases(&folder, kind)).collect();
    assert!(found.len() >= 10, "{} cases", found.len());
    for case in found {
        let name = case["name"].as_str().unwrap_or("?");
        let (heads, params) = settings(&case);
        let file = File::open(&folder, case["file"].as_str().expect("file"));
        let lens: Vec<(u32, i32)> = file.i32("cu_seqlens").windows(2).map(|w| ((w[1] - w[0]) as u32, -1)).collect();
        let segments = forest_of(&lens);
        let qkv = interleave(&file.f32("q"), &file.f32("k"), &file.f32("v"), heads);
        let want = interleave(&file.f32("d_q"), &file.f32("d_k"), &file.f32("d_v"), heads);
        for s in Isa::all().into_iter().map(|isa| Stream::cpu(2, isa)) {
            let saved = run_forward(&s, &qkv, &segments, heads, params)?;
            check(&format!("{name} out"), &saved.out, &file.f32("out"));
            check(&format!("{name} lse"), &saved.lse(), &file.f32("lse"));
            check(&format!("{name} dqkv"), &run_backward(&s, &file.f32("g"), &saved, &qkv, &segments, heads, params)?, &want);
        }
    }
    Ok(())
}

#[test]
fn shared_prefix_cases() -> Result<()> {
    let Some(folder) = folder() else { return Ok(()) };
    let s = Stream::cpu(2, Isa::detect());
    let (heads, params) = (Heads { h: 4, k: 2, d: 16 }, CAUSAL);
    let case = &cases(&folder, "attn_shared_prefix")[0];
    let file = File::open(&folder, case["file"].as_str().expect("file"));
    for cut in case["cuts"].as_array().expect("cuts").iter().filter_map(|c| c.as_u64()) {
        let of = |name: &str| ["p", "a", "b"].map(|part| file.f32(&format!("cut{cut}/{name}{part}"))).concat();
        let len = |part: &str| (file.f32(&format!("cut{cut}/q{part}")).len() / (heads.h * heads.d)) as u32;
        let segments = forest_of(&[(len("p"), -1), (len("a"), 0), (len("b"), 0)]);
        let qkv = interleave(&of("q"), &of("k"), &of("v"), heads);
        let saved = run_forward(&s, &qkv, &segments, heads, params)?;
        check(&format!("cut {cut} out"), &saved.out, &of("out_"));
        check(&format!("cut {cut} lse"), &saved.lse(), &of("lse_"));
        let want = interleave(&of("dq"), &of("dk"), &of("dv"), heads);
        check(&format!("cut {cut} dqkv"), &run_backward(&s, &of("g"), &saved, &qkv, &segments, heads, params)?, &want);
    }
    Ok(())
}
