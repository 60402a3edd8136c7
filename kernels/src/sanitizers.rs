//! Tests on the emulated device again, with the kernels under a sanitizer.

use emulator::{Sanitizer, sanitized};

/// Every kernel and variant, and every kernel that reaches memory by what its operands name, which here is beyond them. The rest goes
/// the same ways on other numbers.
const SHORT: [&str; 12] = [
    "selftest::tests::on_cuda_every_cell_of_the_table_is_filled",
    "conformance::tests::on_cuda_a_dump_is_the_same_in_every_mode_and_in_a_file",
    "attention::tests::bf16::on_cuda_in_bf16_rows_do_not_know_their_company",
    "attention::tests::cuda::on_cuda_any_head_dim_and_group",
    "attention::tests::cuda::on_cuda_segments_that_are_no_forest_stay_within_the_rows",
    "decode_attention::tests::on_cuda_pieces_that_hold_nothing_make_nan",
    "embedding::tests::on_cuda_in_bf16_values_are_rounded_once_and_an_unknown_id_is_nan",
    "kv_store::tests::on_cuda_rows_land_in_their_slots",
    "logprob::tests::cuda::on_cuda_many_tiles_of_stored_logits",
    "logprob::tests::bf16::on_cuda_in_bf16_both_forms_and_what_is_not_there",
    "logprob::tests::cuda::on_cuda_what_is_not_there_is_nan",
    "rope::tests::on_cuda_a_position_beyond_the_table_is_nan",
];

/// These tests, or all on the emulated device.
fn under(which: Sanitizer, tests: Option<&[&str]>) {
    let Some(mut run) = sanitized(which) else { return };
    match tests {
        Some(names) => run.arg("--exact").args(names),
        None => run.args(["on_cuda", "--skip", "sanitizers::", "--skip", "barriers::"]),
    };
    let out = run.arg("--test-threads=1").output().unwrap();
    let (text, told) = (String::from_utf8_lossy(&out.stdout), String::from_utf8_lossy(&out.stderr));
    let last = text.lines().rev().take(40).collect::<Vec<_>>().into_iter().rev().collect::<Vec<_>>().join("\n");
    assert!(out.status.success(), "{which:?}: {}\n{last}\n{:.8000}", out.status, told);
    let passed = |line: &str| line.strip_prefix("test result: ok. ")?.split(' ').next()?.parse::<usize>().ok();
    let count = text.lines().find_map(passed).unwrap_or(0);
    println!("{count} tests under {which:?}");
    assert!(tests.map_or(count > 60, |names| count == names.len()), "{which:?}: {count} tests ran\n{last}");
}

fn long() -> bool {
    std::env::var_os("PLE_LONG").is_some()
}

#[test]
fn on_cuda_the_rooms_keep_to_their_memory() {
    under(Sanitizer::Address, if long() { None } else { Some(&SHORT[..1]) });
}

#[test]
fn on_cuda_what_names_no_memory_touches_none() {
    if long() {
        return println!("with PLE_LONG all tests are run again in one go");
    }
    under(Sanitizer::Address, Some(&SHORT[1..]));
}

#[test]
fn on_cuda_the_rooms_have_no_races() {
    if !long() {
        return println!("skip: races: they are looked for with PLE_LONG");
    }
    under(Sanitizer::Thread, None);
}
