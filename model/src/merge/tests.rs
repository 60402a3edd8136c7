use super::*;
use crate::adapter::SavedTensor;
use crate::shared::{Lcg, folders, shared};
use crate::weights::write_safetensors;
use crate::{AdapterConfig, Targets};

/// The nearest number of a 16-bit type, ties to even, by trying the neighbours of a first guess: no arithmetic in common with [`odd`].
fn nearest(value: f64, guess: u16, widen: impl Fn(u16) -> f64) -> u16 {
    let near = (-2..=2i32).map(|d| (i32::from(guess & 0x7fff) + d).clamp(0, 0x7fff) as u16 | guess & 0x8000);
    let distance = |bits: u16| (widen(bits) - value).abs();
    let better = |a: u16, b: u16| if (distance(b), b & 1) < (distance(a), a & 1) { b } else { a };
    near.filter(|bits| widen(*bits).is_finite()).reduce(better).unwrap()
}

fn nearest_bf16(value: f64) -> u16 {
    nearest(value, bf16::from_f32(value as f32).to_bits(), |bits| bf16::from_bits(bits).to_f64())
}

#[test]
fn sixteen_bits_are_rounded_once() {
    let mut random = Lcg(5);
    let mut twice = 0;
    for i in 0..200_000 {
        // A value close to a tie of bf16: a bf16 number, half a step and a little.
        let base = f64::from(f32::from_bits((random.below(0x7f00) as u32) << 16));
        let step = f64::from(f32::from_bits(base.to_string().parse::<f32>().unwrap().to_bits() + 0x1_0000)) - base;
        let little = [0.0, 1e-9, -1e-9, 1e-12, -1e-12, 3e-17, -0.3][i % 7];
        let value = (base + step * (0.5 + little)) * if i % 2 == 0 { 1.0 } else { -1.0 };
        if !value.is_finite() || value.abs() > 3e38 {
            continue;
        }
        let once = bf16::from_f32(odd(value)).to_bits();
        assert_eq!(once, nearest_bf16(value), "{value:e}");
        twice += usize::from(bf16::from_f32(value as f32).to_bits() != once);
        let half = value / base.max(1e-300) * (random.below(1000) as f64 + 0.1);
        if half.abs() < 60_000.0 {
            let guess = f16::from_f64(half).to_bits();
            assert_eq!(f16::from_f32(odd(half)).to_bits(), nearest(half, guess, |b| f16::from_bits(b).to_f64()), "{half:e}");
        }
    }
    assert!(twice > 1000, "{twice} values would have been other ones if rounded by way of f32");
    assert_eq!((odd(0.0), odd(-1e-60).to_bits(), odd(1e300)), (0.0, 0x8000_0001, f32::INFINITY));
}

/// Merges a folder, and compares every tensor with what an own sum in f64 gives, `round`ed once.
fn compare(model: &Path, adapter: &Adapter, dtype: Option<DType>, round: &dyn Fn(f64) -> f32) -> (Merged, tempfile::TempDir) {
    let dir = tempfile::tempdir().unwrap();
    let (config, base) = (Config::from_folder(model).unwrap(), Checkpoint::open(model).unwrap());
    let merged = merge(&base, &config, adapter, dtype, dir.path(), &mut |_| ControlFlow::Continue(())).unwrap();
    std::fs::copy(model.join("config.json"), dir.path().join("config.json")).unwrap();
    let result = Checkpoint::open(dir.path()).unwrap();
    result.check(&config.tensors()).unwrap();
    let mut shares = merged.modules.iter();
    for name in base.names() {
        let (before, after) = (base.tensor(name).unwrap(), result.tensor(name).unwrap());
        assert_eq!((after.dtype, after.shape), (dtype.unwrap_or(before.dtype), before.shape), "{name}");
        let Some(m) = adapter.modules.iter().find(|m| name == format!("{}.weight", m.path)) else {
            assert_eq!(before.to_f32(), after.to_f32(), "{name}");
            assert!(before.dtype != after.dtype || before.bytes == after.bytes, "{name}");
            continue;
        };
        let (w, got) = (before.to_f32(), after.to_f32());
        let mut unchanged = 0;
        for (i, (w, got)) in w.iter().zip(&got).enumerate() {
            let (o, k) = (i / m.in_features, i % m.in_features);
            let mut sum = f64::from(*w);
            for j in 0..m.r {
                sum += f64::from(m.scale) * f64::from(m.b[o * m.r + j]) * f64::from(m.a[j * m.in_features + k]);
            }
            assert_eq!(got.to_bits(), round(sum).to_bits(), "{name}[{o}, {k}]: {sum:e}");
            unchanged += usize::from(got.to_bits() == w.to_bits());
        }
        let share = merged.modules.iter().find(|s| s.path == m.path).unwrap();
        assert_eq!((share.elements, share.unchanged), (w.len(), unchanged), "{name}");
    }
    assert!(shares.all(|s| adapter.modules.iter().any(|m| m.path == s.path)) && merged.modules.len() == adapter.modules.len());
    (merged, dir)
}

fn adapter_of(folder: &Path, model: &Path) -> Adapter {
    Adapter::load(folder, &Config::from_folder(model).unwrap().modules()).unwrap()
}

#[test]
fn f32_bases_are_summed_and_rounded_once() {
    for case in folders("fixtures/lm", "llama_") {
        let (model, adapter) = (case.join("model"), case.join("adapter"));
        if !adapter.exists() {
            continue;
        }
        let (merged, dir) = compare(&model, &adapter_of(&adapter, &model), None, &|x| x as f32);
        assert!(merged.replaced.is_empty() && !merged.untied && !merged.headed);
        // Files are the base's, and so is the index, to the byte.
        let names = |folder: &Path| -> Vec<String> {
            let files = std::fs::read_dir(folder).unwrap().map(|e| e.unwrap().file_name().to_string_lossy().into_owned());
            let mut names: Vec<String> = files.filter(|n| n.contains("safetensors")).collect();
            names.sort();
            names
        };
        assert_eq!(names(&model), names(dir.path()));
        let index = "model.safetensors.index.json";
        if model.join(index).exists() {
            assert_eq!(std::fs::read(model.join(index)).unwrap(), std::fs::read(dir.path().join(index)).unwrap());
            assert_eq!(merged.files.len(), 4);
        }
    }
}

#[test]
fn a_bf16_base_is_rounded_once_and_says_what_it_kept() {
    let (Some(model), Some(folder)) = (shared("data/models/stories260k-bf16"), shared("data/adapters/stories260k-imdb-pos-r8"))
    else {
        return;
    };
    let mut adapter = adapter_of(&folder, &model);
    let round = |x: f64| f32::from_bits(u32::from(nearest_bf16(x)) << 16);
    let share = |merged: &Merged| {
        let sum = |f: fn(&Share) -> usize| merged.modules.iter().map(f).sum::<usize>() as f64;
        sum(|s| s.unchanged) / sum(|s| s.elements)
    };
    let whole = share(&compare(&model, &adapter, None, &round).0);
    compare(&model, &adapter, Some(DType::F32), &|x| x as f32);
    // A thousandth of the update is mostly lost in bf16, and none of it in f32.
    adapter.modules.iter_mut().for_each(|m| m.b.iter_mut().for_each(|b| *b /= 1000.0));
    let small = share(&compare(&model, &adapter, None, &round).0);
    let wide = share(&compare(&model, &adapter, Some(DType::F32), &|x| x as f32).0);
    println!("unchanged in bf16: {:.4}; of a thousandth: {small:.4}; of that in f32: {wide:.4}", whole);
    assert!(whole < 0.2 && small > 0.8 && wide < 0.05, "{whole} {small} {wide}");
}

/// A model of one layer, 4 wide, and an adapter on one of its modules.
fn tiny(folder: &Path, tied: bool, dtype: DType) -> (Config, Checkpoint, Adapter) {
    let config = json!({
        "model_type": "llama", "hidden_size": 4, "intermediate_size": 4, "num_hidden_layers": 1, "num_attention_heads": 1,
        "vocab_size": 3, "tie_word_embeddings": tied
    });
    let config = Config::parse(&folder.join("config.json"), &config.to_string()).unwrap();
    let bytes = |n: usize| (0..n).flat_map(|i| f16::from_f32(i as f32 / 8.0).to_le_bytes()).collect::<Vec<u8>>();
    let tensors: Vec<_> = config.tensors().into_iter().map(|s| (bytes(s.shape.iter().product()), s)).collect();
    let rows: Vec<_> = tensors.iter().map(|(bytes, s)| (s.name.clone(), dtype, s.shape.clone(), bytes.as_slice())).collect();
    write_safetensors(&folder.join("model.safetensors"), &rows).unwrap();
    let base = Checkpoint::open(folder).unwrap();
    let targets = AdapterConfig::new(1, 2.0, Targets::List(vec!["q_proj".into()]));
    let mut adapter = Adapter::fresh(targets, &config.modules(), 1, kernels::sample::philox).unwrap();
    adapter.modules[0].b = vec![0.0, 1.0, 0.0, -1.0];
    (config, base, adapter)
}

#[test]
fn dora_rows_have_their_lengths() {
    let (folder, out) = (tempfile::tempdir().unwrap(), tempfile::tempdir().unwrap());
    let (config, base, mut adapter) = tiny(folder.path(), false, DType::F16);
    adapter.modules[0].magnitude = Some(vec![1.0, 2.0, 3.0, 0.5]);
    merge(&base, &config, &adapter, Some(DType::F32), out.path(), &mut |_| ControlFlow::Continue(())).unwrap();
    let result = Checkpoint::open(out.path()).unwrap();
    let (name, m) = ("model.layers.0.self_attn.q_proj.weight", &adapter.modules[0]);
    let (before, after) = (base.tensor(name).unwrap().to_f32(), result.tensor(name).unwrap().to_f32());
    for (o, length) in [1.0, 2.0, 3.0, 0.5].into_iter().enumerate() {
        let sum: Vec<f64> = (0..4).map(|i| f64::from(before[o * 4 + i]) + 2.0 * f64::from(m.b[o]) * f64::from(m.a[i])).collect();
        let norm = sum.iter().map(|v| v * v).sum::<f64>().sqrt();
        for (i, v) in sum.iter().enumerate() {
            assert!((f64::from(after[o * 4 + i]) - v / norm * length).abs() < 1e-7 * length, "[{o}, {i}]");
        }
    }
}

#[test]
fn heads_are_untied_only_when_they_differ() {
    let values = |from: f32| SavedTensor {
        spec: TensorSpec { name: String::new(), shape: vec![3, 4] },
        values: (0..12).map(|i| from + i as f32).collect(),
    };
    let named = |name: &str, mut t: SavedTensor| {
        t.spec.name = name.into();
        t
    };
    let embedding = "model.embed_tokens.weight";
    let cases = [
        (vec![], false, None),
        (vec![named(HEAD, values(1.0))], true, Some(1.0)),
        (vec![named(embedding, values(1.0))], true, Some(0.0)),
        (vec![named(embedding, values(1.0)), named(HEAD, values(1.0))], false, None),
        (vec![named(embedding, values(1.0)), named(HEAD, values(2.0))], true, Some(2.0)),
    ];
    for (saved, untied, head) in cases {
        let (folder, out) = (tempfile::tempdir().unwrap(), tempfile::tempdir().unwrap());
        let (config, base, mut adapter) = tiny(folder.path(), true, DType::F16);
        assert_eq!(whole(&config).iter().map(|s| s.name.as_str()).collect::<Vec<_>>(), [embedding, HEAD]);
        adapter.saved = saved;
        let merged = merge(&base, &config, &adapter, None, out.path(), &mut |_| ControlFlow::Continue(())).unwrap();
        assert_eq!((merged.untied, merged.replaced.len()), (untied, adapter.saved.len()));
        let result = Checkpoint::open(out.path()).unwrap();
        let first = |name: &str| result.tensor(name).ok().map(|t| t.to_f32()[0]);
        assert_eq!(first(HEAD), head);
        let touched = adapter.saved.iter().find(|t| t.spec.name == embedding);
        assert_eq!(first(embedding), Some(touched.map_or(0.0, |t| t.values[0])));
    }
}

#[test]
fn a_scalar_head_takes_the_place_of_the_vocabulary() {
    for tied in [false, true] {
        let (folder, out) = (tempfile::tempdir().unwrap(), tempfile::tempdir().unwrap());
        let (mut config, base, mut adapter) = tiny(folder.path(), tied, DType::F16);
        adapter.score = Some(vec![0.25, -0.5, 1.0, 2.0]);
        let merged = merge(&base, &config, &adapter, None, out.path(), &mut |_| ControlFlow::Continue(())).unwrap();
        assert!(merged.headed && !merged.untied && merged.replaced == [SCORE]);
        config.scalar_head = true;
        let result = Checkpoint::open(out.path()).unwrap();
        result.check(&config.tensors()).unwrap();
        assert_eq!(result.tensor(SCORE).unwrap().to_f32(), [0.25, -0.5, 1.0, 2.0]);
        adapter.score = Some(vec![0.5; 3]);
        let text =
            merge(&result, &config, &adapter, None, folder.path(), &mut |_| ControlFlow::Continue(())).unwrap_err().to_string();
        assert!(text.contains("tensor \"score.weight\": shape: wanted [1, 3], got [1, 4]"), "{text}");
    }
}

#[test]
fn what_does_not_fit_is_not_written() {
    let (folder, out) = (tempfile::tempdir().unwrap(), tempfile::tempdir().unwrap());
    let (config, base, good) = tiny(folder.path(), false, DType::F16);
    let mut adapter = good.clone();
    adapter.modules[0].b[1] = 1e5;
    adapter.modules[0].a.fill(1.0);
    let text = merge(&base, &config, &adapter, None, out.path(), &mut |_| ControlFlow::Continue(())).unwrap_err().to_string();
    assert!(
        text.contains("not written: tensor \"model.layers.0.self_attn.q_proj.weight\"") && text.contains("not finite in f16"),
        "{text}"
    );
    assert!(!out.path().join("model.safetensors").exists());
    let mut adapter = good.clone();
    adapter.modules[0].path = "model.layers.7.self_attn.q_proj".into();
    let text = merge(&base, &config, &adapter, None, out.path(), &mut |_| ControlFlow::Continue(())).unwrap_err().to_string();
    assert!(text.contains("tensor \"model.layers.7.self_attn.q_proj.weight\": wanted for the adapter, got none"), "{text}");
    let mut adapter = good;
    (adapter.modules[0].out_features, adapter.modules[0].b) = (5, vec![0.0; 5]);
    let text = merge(&base, &config, &adapter, None, out.path(), &mut |_| ControlFlow::Continue(())).unwrap_err().to_string();
    assert!(text.contains("q_proj.weight\": shape: wanted [5, 4], got [4, 4]"), "{text}");
}
