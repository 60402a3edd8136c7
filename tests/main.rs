//! `tests golden`: the golden cases of `$PLE_SHARED` by themselves, one line each.

mod golden;

fn main() -> anyhow::Result<()> {
    match std::env::args().nth(1).as_deref() {
        Some("golden") => golden::all(),
        other => anyhow::bail!("wanted `tests golden`, got {other:?}"),
    }
}
