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
    Transformer::fresh(s, folder.path(), runtime::DType::F32, 1).unwrap()
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

/// Streamed completions of prompts that go on from each other, with what is held of the last one or without.
fn streamed(prompts: &[Vec<u32>], holds: bool) -> (Vec<Finished>, usize) {
    let s = stream();
    let model = tiny(&s);
    let mut kv = KvCache::new(&s, &model, LIMITS, false, None).unwrap();
    let settings = Settings { max_new_tokens: NEW, seed: 3, ..Settings::default() };
    let (mut held, mut out, mut computed) = (Held::default(), Vec::new(), 0);
    for (row, prompt) in prompts.iter().enumerate() {
        let request = Request { prompt: prompt.clone(), key: SampleKey { row: row as u32, ..SampleKey::default() } };
        let (mut told, free) = (Vec::new(), kv.free_pages());
        let done = super::stream(&s, &model, &mut kv, &request, &settings, Adapter::Off, &mut held, &mut |new| {
            told.extend_from_slice(new);
            ControlFlow::Continue(())
        });
        let done = done.unwrap();
        assert_eq!(told, done.ids);
        computed += usize::from(kv.free_pages() < free);
        out.push(done);
        if !holds {
            held.forget(&mut kv);
            assert_eq!(kv.free_pages(), LIMITS.pages);
        }
    }
    held.forget(&mut kv);
    assert_eq!(kv.free_pages(), LIMITS.pages);
    (out, computed)
}

#[test]
fn a_stream_is_what_generate_draws() {
    let prompts: Vec<Vec<u32>> = [5, 70, 63, 200, 1].map(|n| (0..n).map(|i| i % 31).collect()).to_vec();
    let s = stream();
    let model = tiny(&s);
    let mut kv = cache(LIMITS);
    let settings = Settings { max_new_tokens: NEW, seed: 3, ..Settings::default() };
    let key = |row: usize| SampleKey { row: row as u32, ..SampleKey::default() };
    let requests: Vec<Request> = prompts.iter().enumerate().map(|(i, p)| Request { prompt: p.clone(), key: key(i) }).collect();
    let wanted =
        generate(&s, &model, &mut kv, &requests, &settings, Adapter::Off, &mut |_, _| ControlFlow::Continue(())).unwrap();
    let ids = |all: &[Finished]| all.iter().map(|f| (f.ids.clone(), f.logps.clone())).collect::<Vec<_>>();
    let (held, kept) = streamed(&prompts, true);
    assert_eq!((ids(&held), kept > 0), (ids(&wanted), true));
    assert_eq!(ids(&streamed(&prompts, false).0), ids(&wanted));
}

#[test]
fn a_stream_that_is_broken_off_is_handed_out() {
    let s = stream();
    let model = tiny(&s);
    let mut kv = cache(LIMITS);
    let settings = Settings { max_new_tokens: NEW, ..Settings::default() };
    let (mut held, mut looks) = (Held::default(), 0);
    let request = Request { prompt: vec![1; 70], key: SampleKey::default() };
    let done = super::stream(&s, &model, &mut kv, &request, &settings, Adapter::Off, &mut held, &mut |_| {
        looks += 1;
        if looks == 3 { ControlFlow::Break(()) } else { ControlFlow::Continue(()) }
    });
    assert!(done.is_ok_and(|f| f.ids.len() == 3 && f.logps.len() == 3 && !f.stopped));
    let long = Request { prompt: vec![1; 300], ..request };
    let refused =
        super::stream(&s, &model, &mut kv, &long, &settings, Adapter::Off, &mut held, &mut |_| ControlFlow::Continue(()));
    assert!(matches!(refused, Err(Error::Batch(_))));
    assert_eq!(kv.free_pages(), LIMITS.pages, "after an error nothing is held");
}
