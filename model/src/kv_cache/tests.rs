use super::*;
use crate::transformer::Adapter;
use crate::{Finished, Lora, Request, Settings, generate};
use runtime::Isa;
use std::ops::ControlFlow;

const LIMITS: CacheLimits = CacheLimits { pages: 3, prefill_tokens: 256, batch: 3, positions: 192 };

/// A model of one layer without training.
fn tiny(s: &Stream) -> Transformer {
    let folder = tempfile::tempdir().unwrap();
    let config = serde_json::json!({"model_type": "llama", "vocab_size": 32, "hidden_size": 16, "intermediate_size": 24,
        "num_hidden_layers": 1, "num_attention_heads": 2, "num_key_value_heads": 1, "max_position_embeddings": 256});
    std::fs::write(folder.path().join("config.json"), config.to_string()).unwrap();
    Transformer::fresh(s, folder.path(), runtime::DType::F32, 1).unwrap()
}

fn stream() -> Stream {
    Stream::cpu(1, Isa::detect())
}

/// Prompts of so many tokens, as roots.
fn roots(lengths: &[usize]) -> Batch {
    let mut b = Batch::default();
    for &n in lengths {
        b.segment(&vec![1; n], Parent::Root, 0);
    }
    b
}

fn draw(s: &Stream, model: &Transformer, kv: &mut KvCache, prompt: usize, new: usize) -> Result<Vec<Finished>> {
    let settings = Settings { max_new_tokens: new, seed: 1, ..Settings::default() };
    let requests = vec![Request { prompt: vec![1; prompt], ..Default::default() }; 3];
    generate(s, model, kv, &requests, &settings, Adapter::Off, &mut |_, _| ControlFlow::Continue(()))
}

#[test]
fn a_prefill_that_fails_holds_no_pages() {
    let s = stream();
    let model = tiny(&s);
    let mut kv = KvCache::new(&s, &model, LIMITS, false, None).unwrap();
    model.prefill(&s, &mut kv, &roots(&[64]), Adapter::Off).unwrap();
    assert_eq!(kv.free_pages(), 2);
    let text = model.prefill(&s, &mut kv, &roots(&[64, 150]), Adapter::Off).unwrap_err().to_string();
    assert!(text.contains("all 3 KV pages are in use"), "{text}");
    assert_eq!(kv.free_pages(), 3);
    let mut gap = roots(&[10, 5]);
    (gap.segments[1].pos0, gap.segments[1].parent) = (3, Parent::Segment(0));
    gap.pos[10..].copy_from_slice(&[3, 4, 5, 6, 7]);
    let text = model.prefill(&s, &mut kv, &gap, Adapter::Off).unwrap_err().to_string();
    assert!(text.contains("segment at position 3 after a path of 10"), "{text}");
    let body = model.prefill(&s, &mut kv, &roots(&[5]), Adapter::Slot(9));
    assert_eq!((body.is_err(), kv.free_pages()), (true, 3));
}

#[test]
fn pages_that_others_hold_are_not_promised() {
    let s = stream();
    let model = tiny(&s);
    let mut kv = KvCache::new(&s, &model, LIMITS, false, None).unwrap();
    let want = draw(&s, &model, &mut kv, 3, 60).unwrap();
    model.prefill(&s, &mut kv, &roots(&[40]), Adapter::Off).unwrap();
    let held = kv.take_paths();
    assert_eq!(draw(&s, &model, &mut kv, 3, 60).unwrap(), want);
    let text = draw(&s, &model, &mut kv, 100, 60).unwrap_err().to_string();
    assert!(text.contains("request 0: wanted 3 KV pages, got 2 free ones of 3"), "{text}");
    held.into_iter().for_each(|path| kv.release(path));
    assert_eq!(kv.free_pages(), 3);
}

#[test]
fn a_run_that_fails_gives_its_pages_back() {
    let s = stream();
    let model = tiny(&s);
    let mut kv = KvCache::new(&s, &model, LIMITS, false, None).unwrap();
    let weights = model.base().arena().flat();
    weights.write(&s, &vec![f32::NAN; weights.len()]).unwrap();
    let text = draw(&s, &model, &mut kv, 3, 20).unwrap_err().to_string();
    assert!(text.contains("row 0 has a NaN logit"), "{text}");
    assert_eq!(kv.free_pages(), 3);
}

#[test]
fn paths_in_more_pieces_than_planned_are_refused() {
    let s = stream();
    let model = tiny(&s);
    let mut kv = KvCache::new(&s, &model, CacheLimits { batch: 1, ..LIMITS }, false, None).unwrap();
    let piece = |from| Piece { page: 0, block: 0, from, to: from + 1 };
    let path = |n: u32| Path { pieces: (0..n).map(piece).collect(), len: n };
    kv.upload_step(&s, &[0], [&path(12)].into_iter()).unwrap();
    let text = kv.upload_step(&s, &[0], [&path(13)].into_iter()).unwrap_err().to_string();
    assert!(text.contains("1 paths in 13 pieces, planned for 1 in 12"), "{text}");
    let text = kv.upload_step(&s, &[0], [&path(1), &path(1)].into_iter()).unwrap_err().to_string();
    assert!(text.contains("2 paths in 2 pieces, planned for 1 in 12"), "{text}");
}

#[test]
fn a_slot_is_replaced() {
    let s = stream();
    let mut model = tiny(&s);
    let lora = |model: &Transformer, r: usize| {
        let config = crate::AdapterConfig::new(r, 1.0, crate::Targets::AllLinear);
        let adapter = crate::adapter::Adapter::fresh(config, &model.modules(), 1, kernels::sample::philox).unwrap();
        Lora::upload(&s, model.base(), adapter).unwrap()
    };
    let text = model.replace_slot(Adapter::Slot(0), lora(&model, 2)).unwrap_err().to_string();
    assert!(text.contains("wanted one of 0 adapter slots, got Slot(0)"), "{text}");
    let slot = model.add_slot(lora(&model, 2)).unwrap();
    for r in 1..300 {
        model.replace_slot(slot, lora(&model, r % 5 + 1)).unwrap();
    }
    assert_eq!(model.slot(slot).unwrap().unwrap().rank(0, 0), 299 % 5 + 1);
    assert!(model.replace_slot(Adapter::Off, lora(&model, 2)).is_err());
}
