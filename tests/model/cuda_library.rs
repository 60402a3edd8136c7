//! Training whose products the vendor's library makes, on the emulated CUDA device, whose library adds in an order of its own.

use super::cuda::{Run, run_of};
use super::cuda_bf16::{LOGP, TAME, TIMES, apart, cpu, farthest, losses, values};
use anyhow::{Result, ensure};
use model::{Adapter, Keep, Lora, Transformer, Tune};
use ple_tests::data::say;
use ple_tests::{pass, tiny};
use runtime::{DType, Stream};
use std::path::Path;

/// Optimizer steps.
const STEPS: usize = 3;

/// The folder with an adapter of this rank on every module, through the library if it is wanted.
pub(super) fn loaded(s: &Stream, folder: &Path, dtype: DType, r: usize, library: bool) -> Result<Transformer> {
    let disk = tiny::adapter_on(&model::Config::from_folder(folder)?.modules(), r, 11);
    let mut model = Transformer::load_for(s, folder, Some(dtype), &disk)?;
    if library {
        model.through_library(s)?;
    }
    let lora = Lora::upload(s, model.base(), disk)?;
    ensure!(model.add_slot(lora)? == Adapter::Slot(0), "another slot than the first");
    Ok(model)
}

/// Llama; LayerNorm; with `PLE_LONG` a llama with biases, and norms of heads and after a layer's halves, GeGLU. Held to what steps by own products are held to: the
/// CPU's in f32 on the same weights. A repeat has the same bits, from the second step on nothing is allocated (`run_of` counts).
#[test]
fn on_cuda_steps_through_the_library_are_the_cpu_s_within_tolerance() -> Result<()> {
    let Some(cuda) = emulator::cuda() else { return Ok(()) };
    let families = tiny::families();
    let cases = [(&tiny::config(false), 8), (&tiny::family("gpt2")?, 11), (&families[0], 3), (&families[6], 8)];
    let some = if std::env::var_os("PLE_LONG").is_some() { cases.len() } else { 2 };
    for (i, (config, r)) in cases.into_iter().enumerate().take(some) {
        let what = format!("{} rank {r}", config["model_type"]);
        let (exact, rounded) = (tiny::of(config, DType::F32)?, tiny::of(config, DType::Bf16)?);
        let on_cpu = |folder: &Path| {
            run_of(Keep::Backward, cpu().backend(), |s| loaded(s, folder, DType::F32, r, false), Tune::Lora(0), STEPS)
        };
        let (want, other) = (on_cpu(rounded.path())?, on_cpu(exact.path())?);
        let (own_loss, own) = (farthest(&losses(&other), &losses(&want)), apart(&values(&other), &values(&want)).0);
        cuda.mode(emulator::Mode::PAIRS[i]);
        cuda.hostile(true);
        let through = |library: bool| -> Result<Run> {
            let load = |s: &Stream| loaded(s, rounded.path(), DType::Bf16, r, library);
            run_of(Keep::Backward, cuda.stream.backend(), load, Tune::Lora(0), STEPS)
        };
        let (got, again, room) = (through(true)?, through(true)?, through(false)?);
        cuda.hostile(false);
        let (worst, (far, cosine)) = (farthest(&losses(&got), &losses(&want)), apart(&values(&got), &values(&want)));
        let beside = (farthest(&losses(&got), &losses(&room)), apart(&values(&got), &values(&room)).0);
        say(&format!(
            "  cuda:0 (emulated) {what}: through the library, loss off by {worst:.1e} (weights rounded {own_loss:.1e}), adapter by {far:.1e} \
             (weights rounded {own:.1e}; cosine {cosine:.6}); beside own products {:.1e}, {:.1e}",
            beside.0, beside.1
        ));
        ensure!(got == again, "{what}: a repeat has other bits");
        ensure!(got != room, "{what}: the library's products have the room's bits");
        ensure!(worst <= LOGP, "{what}: losses {:?}, the CPU's {:?}", losses(&got), losses(&want));
        ensure!(far <= TIMES * own, "{what}: the adapter is off by {far} of its norm, by rounded weights {own}");
    }
    Ok(())
}

/// An adapter's passes and those without it, between which rows lie as they lay.
#[test]
fn on_cuda_passes_without_the_adapter_go_through_the_library_too() -> Result<()> {
    let Some(cuda) = emulator::cuda() else { return Ok(()) };
    cuda.mode(emulator::Mode::PAIRS[3]);
    let folder = tiny::scaled(&tiny::config(true), DType::Bf16, TAME)?;
    let b = pass::batch(&[(vec![5, 6, 7], vec![vec![8, 9], vec![10]])])?;
    let logps = |s: &Stream, dtype: DType, library: bool| -> Result<Vec<Vec<f32>>> {
        let model = loaded(s, folder.path(), dtype, 8, library)?;
        let adapters = [Adapter::Slot(0), Adapter::Off, Adapter::Slot(0)];
        adapters.iter().map(|adapter| pass::logps(s, &model, &b, *adapter, Keep::Nothing)).collect()
    };
    let (got, want) = (logps(&cuda.stream, DType::Bf16, true)?, logps(cpu(), DType::F32, false)?);
    ensure!(got[0] == got[2] && got[0] != got[1], "the adapter's pass after one without it");
    let wide = |v: &[Vec<f32>]| v.concat().into_iter().map(f64::from).collect::<Vec<_>>();
    let worst = farthest(&wide(&got), &wide(&want));
    ensure!(worst <= LOGP, "log-probabilities off by {worst}");
    Ok(())
}

/// Without an adapter rows lie side by side, and what the library does not take is said before anything runs.
#[test]
fn on_cuda_what_cannot_go_through_the_library_is_said() -> Result<()> {
    let Some(cuda) = emulator::cuda() else { return Ok(()) };
    cuda.mode(emulator::Mode::PAIRS[0]);
    let (s, folder) = (&cuda.stream, tiny::folder(true, DType::Bf16)?);
    let said = |folder: &Path, dtype: DType| -> Result<String> {
        let mut model = Transformer::load(s, folder, Some(dtype))?;
        Ok(model.through_library(s).map_or_else(|e| e.to_string(), |()| "taken".into()))
    };
    ensure!(said(folder.path(), DType::Bf16)? == "taken", "a plain base");
    let f32 = said(folder.path(), DType::F32)?;
    ensure!(f32.contains("want bf16 activations"), "{f32}");
    let odd = tiny::of(&tiny::families()[4], DType::Bf16)?;
    let odd = said(odd.path(), DType::Bf16)?;
    ensure!(odd.contains("c_attn is [132, 44]") && odd.contains("multiples of 8"), "{odd}");
    Ok(())
}
