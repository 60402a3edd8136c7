//! `tests golden`: the golden cases of `$PLE_SHARED` by themselves, one line each. `tests checkpoints FOLDER STEPS`: a tiny run that
//! writes checkpoints, for whoever wants to kill it.

mod golden;

fn main() -> anyhow::Result<()> {
    let arguments: Vec<String> = std::env::args().skip(1).collect();
    match arguments.iter().map(String::as_str).collect::<Vec<_>>()[..] {
        ["golden"] => golden::all(),
        ["checkpoints", folder, steps] => ple_tests::tuning::go_on(folder.as_ref(), steps.parse()?, ple_tests::data::say),
        _ => anyhow::bail!("wanted `tests golden` or `tests checkpoints FOLDER STEPS`, got {arguments:?}"),
    }
}
