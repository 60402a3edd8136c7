//! Numbers that stop being finite while a command runs: exit code 5, the place named, no result.

use super::{MODEL, NUMERIC, Stage, rewrite};
use anyhow::{Result, ensure};

/// Every weight of the head is as large as f32 can be: finite in the file, not in a sum.
fn overflow(stage: &Stage) -> Result<()> {
    rewrite(stage, MODEL, |header, data| {
        let offset = |i: usize| header["lm_head.weight"]["data_offsets"][i].as_u64().unwrap_or_default() as usize;
        let (start, end) = (offset(0), offset(1));
        data[start..end].as_chunks_mut::<4>().0.iter_mut().for_each(|element| *element = f32::MAX.to_le_bytes());
    })
}

#[test]
fn while_training() -> Result<()> {
    let stage = Stage::new()?;
    stage.sft().and("--max_steps 4 --learning_rate 1e30").refuse(NUMERIC, &["not finite at step 2", "micro-batch of rows ["])?;
    stage.left_clean()?;
    stage.sft().and("--tune full --max_steps 4 --learning_rate 1e30").refuse(NUMERIC, &["at step 2"])?;
    stage.left_clean()?;
    // The last step breaks the weights: nothing is left to notice it but the file.
    stage.sft().and("--max_steps 1 --learning_rate 1e300").refuse(NUMERIC, &["lora_A.weight", "finite", "nothing was saved"])?;
    stage.left_clean()?;
    stage
        .sft()
        .and("--tune full --max_steps 1 --learning_rate 1e300")
        .refuse(NUMERIC, &["model.embed_tokens.weight", "finite", "nothing was saved"])?;
    ensure!(!stage.path("out/model.safetensors").exists(), "weights that are no numbers were written");
    stage.train().and("--ple_iters 3 --learning_rate 1e30 --max_completion_length 8").refuse(NUMERIC, &["finite"])?;
    stage.left_clean()
}

#[test]
fn in_a_model_that_overflows() -> Result<()> {
    let stage = Stage::new()?;
    overflow(&stage)?;
    stage.score().refuse(NUMERIC, &["row 0", "finite log-probabilities", "NaN"])?;
    stage.sft().refuse(NUMERIC, &["not finite at step 1", "micro-batch of rows ["])?;
    stage.train().refuse(NUMERIC, &["finite"])?;
    stage.left_clean()
}
