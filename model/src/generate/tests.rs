use super::*;
use crate::{CacheLimits, Parent};
use runtime::Isa;

fn stream() -> Stream {
    Stream::cpu(1, Isa::detect())
}

/// A model of one layer without training.
fn tiny(s: &Stream) -> Transformer {
    let folder = tempfile::tempdir().unwrap();
    let config = serde_json::json!({"model_type": "llama", "vocab_size": 32, "hidden_size": 16, "intermediate_size": 24,
        "num_hidden_layers": 1, "num_attention_heads": 2, "num_key_value_heads": 1, "max_position_embeddings": 512});
    std::fs::write(folder.path().join("config.json"), config.to_string()).unwrap();
    Transformer::fresh(s, folder.path(), 1).unwrap()
}

const LIMITS: CacheLimits = CacheLimits { pages: 40, prefill_tokens: 300, batch: 8, positions: 256 };
const NEW: usize = 10;

/// What the waves of some prompts compute: per wave, length and first position of each segment; and the sequences that run then.
fn waves(kv: &mut KvCache, prompts: &[Vec<u32>]) -> (Vec<Vec<(u32, u32)>>, usize) {
    let s = stream();
    let model = tiny(&s);
    let settings = Settings { max_new_tokens: NEW, ..Settings::default() };
    let waiting = prompts.iter().enumerate().map(|(id, prompt)| Sequence::new(id, SampleKey::default(), prompt)).collect();
    let run = DecodeRun::new(settings, Adapter::Off).unwrap();
    let mut schedule = Schedule::new(&s, &model, kv, run, waiting);
    let mut computed = Vec::new();
    while let Some(wave) = wave::next(&mut schedule).unwrap() {
        assert!(wave.batch.segments.iter().all(|segment| !matches!(segment.parent, Parent::Segment(_))));
        computed.push(wave.batch.segments.iter().map(|segment| (segment.len, segment.pos0)).collect());
        schedule.prefill(wave).unwrap();
    }
    let running = schedule.run.running();
    let stopped = schedule.run(prompts.len(), &mut |_, _| ControlFlow::Break(()));
    assert!(matches!(stopped, Err(Error::Interrupted)));
    (computed, running)
}

fn cache(limits: CacheLimits) -> KvCache {
    let s = stream();
    KvCache::new(&s, &tiny(&s), limits, false, None).unwrap()
}

/// A common beginning and what each prompt has of its own.
fn prompts(common: usize, own: &[(u32, usize)]) -> Vec<Vec<u32>> {
    own.iter().map(|&(id, n)| [vec![1; common], vec![id; n]].concat()).collect()
}

#[test]
fn a_common_beginning_is_computed_once() {
    let mut kv = cache(LIMITS);
    let (computed, running) = waves(&mut kv, &prompts(150, &[(2, 9), (3, 5), (4, 1), (5, 20)]));
    assert_eq!((computed, running), (vec![vec![(158, 0)], vec![(4, 150), (19, 150)]], 4));
    assert_eq!(kv.free_pages(), LIMITS.pages);
}

#[test]
fn samples_of_a_prompt_compute_it_once() {
    let mut kv = cache(LIMITS);
    let (computed, running) = waves(&mut kv, &prompts(30, &[(2, 9), (2, 9), (2, 9), (3, 2), (3, 2)]));
    assert_eq!((computed, running), (vec![vec![(38, 0), (31, 0)]], 5));
    // Two pages of the prompt and one for each sample's own tokens.
    let mut few = cache(CacheLimits { pages: 10, ..LIMITS });
    let (computed, running) = waves(&mut few, &prompts(30, &[(2, 90); 7]));
    assert_eq!((computed, running), (vec![vec![(119, 0)]], 7));
    assert_eq!((kv.free_pages(), few.free_pages()), (LIMITS.pages, 10));
}

#[test]
fn long_prompts_are_computed_in_parts() {
    let mut kv = cache(CacheLimits { prefill_tokens: 7, ..LIMITS });
    let (computed, running) = waves(&mut kv, &prompts(16, &[(2, 2), (3, 1)]));
    assert_eq!((computed, running), (vec![vec![(7, 0)], vec![(7, 7)], vec![(3, 14)], vec![]], 2));
    assert_eq!(kv.free_pages(), LIMITS.pages);
}

#[test]
fn the_newest_waits_again_and_goes_on() {
    let (s, limits) = (stream(), CacheLimits { pages: 5, ..LIMITS });
    let model = tiny(&s);
    let mut kv = KvCache::new(&s, &model, limits, false, None).unwrap();
    let settings = Settings { max_new_tokens: 100, ..Settings::default() };
    let waiting = (0..2).map(|id| Sequence::new(id, SampleKey::default(), &[3 + id as u32; 50])).collect();
    let mut schedule = Schedule::new(&s, &model, &mut kv, DecodeRun::new(settings, Adapter::Off).unwrap(), waiting);
    let mut drawn: Vec<usize> = Vec::new();
    while drawn.is_empty() {
        while let Some(wave) = wave::next(&mut schedule).unwrap() {
            schedule.prefill(wave).unwrap();
        }
        schedule.make_room();
        model.decode(&s, schedule.kv, &mut schedule.run, 4).unwrap();
        drawn = schedule.waiting.iter().map(Sequence::drawn).collect();
    }
    assert_eq!((drawn, schedule.run.running[0].tokens[0]), (vec![76], 3), "the second one kept what it had drawn");
    let out = schedule.run(2, &mut |_, _| ControlFlow::Continue(())).unwrap();
    assert!(out.iter().all(|f| f.ids.len() == 100));
    assert_eq!(kv.free_pages(), 5);
}
