//! What an adapter was trained with beside its base's weights: `base.json` in its folder names tokenizer and chat template, and whoever
//! uses the adapter on a folder with others is refused. Adapters of other tools have no such file and are taken as they are.

use crate::digest::{sha256, sha256_file};
use crate::{Error, Result};
use model::Template;
use runtime::host;
use serde_json::{Value, json};
use std::path::Path;

const NAME: &str = "base.json";

/// The sources of a folder's chat template as one text; empty where it has none. One that cannot be parsed counts as none: it cannot
/// have been used.
pub(crate) fn template(base: &Path) -> String {
    let found = Template::open(base, 0).ok().flatten();
    let all = found.iter().flat_map(|t| t.sources()).map(|(name, source)| format!("{name}\n{source}"));
    all.collect::<Vec<_>>().join("\n")
}

fn tokenizer(base: &Path) -> Result<Option<String>> {
    let path = base.join("tokenizer.json");
    path.is_file().then(|| sha256_file(&path)).transpose()
}

/// Writes what `base` has beside an adapter in `folder`.
pub fn write(base: &Path, folder: &Path) -> Result<()> {
    let template = template(base);
    let value = json!({ "tokenizer_sha256": tokenizer(base)?, "chat_template_sha256": sha256(template.as_bytes()),
        "chat_template": template });
    Ok(host::write_file(&folder.join(NAME), |out| writeln!(out, "{value:#}"))?)
}

/// What the folder of an adapter says that it was trained with; None where it does not say.
pub fn kept(folder: &Path) -> Result<Option<Value>> {
    let path = folder.join(NAME);
    if !path.is_file() {
        return Ok(None);
    }
    let bytes = std::fs::read(&path).map_err(|e| Error::file(&path, format!("cannot read: {e}")))?;
    serde_json::from_slice(&bytes).map(Some).map_err(|e| Error::file(&path, format!("wanted JSON, got {e}")))
}

/// Whether `base` has what the adapter in `folder` was trained with; the error says where they part.
pub fn check(base: &Path, folder: &Path) -> Result<()> {
    let path = folder.join(NAME);
    let Some(value) = kept(folder)? else { return Ok(()) };
    let text = |name: &str| value[name].as_str();
    let wrong = |what: &str| Err(Error::file(&path, format!("{what} (in {})", base.display())));
    if let (Some(wanted), Some(got)) = (text("tokenizer_sha256"), tokenizer(base)?)
        && wanted != got
    {
        return wrong(&format!("tokenizer_sha256: wanted the tokenizer that the adapter was trained with, {wanted}, got {got}"));
    }
    let Some(wanted) = text("chat_template") else { return Ok(()) };
    let got = template(base);
    if wanted == got {
        return Ok(());
    }
    let line = wanted.lines().zip(got.lines()).take_while(|(a, b)| a == b).count();
    let of = |text: &str| {
        text.lines().nth(line).map_or("nothing".to_string(), |l| format!("{:?}", l.chars().take(80).collect::<String>()))
    };
    wrong(&format!(
        "chat_template: wanted the one that the adapter was trained with, got another: line {}: wanted {}, got {}",
        line + 1,
        of(wanted),
        of(&got)
    ))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn another_tokenizer_or_template_is_refused() -> Result<()> {
        let failed = |e: std::io::Error| Error::Usage(e.to_string());
        let folder = tempfile::tempdir().map_err(failed)?;
        let (base, adapter) = (folder.path().join("base"), folder.path().join("adapter"));
        std::fs::create_dir_all(&base).and_then(|()| std::fs::create_dir_all(&adapter)).map_err(failed)?;
        let put = |name: &str, text: &str| std::fs::write(base.join(name), text).map_err(failed);
        put("tokenizer.json", "{}")?;
        put("chat_template.jinja", "a\n{{ b }}")?;
        assert!(check(&base, &adapter).is_ok(), "an adapter of another tool");
        write(&base, &adapter)?;
        assert!(check(&base, &adapter).is_ok());
        put("chat_template.jinja", "a\n{{ c }}")?;
        let error = check(&base, &adapter).map_err(|e| (e.exit_code(), e.to_string()));
        let wanted = "line 3: wanted \"{{ b }}\", got \"{{ c }}\"";
        assert!(error.as_ref().is_err_and(|(code, text)| *code == 3 && text.contains(wanted)), "{error:?}");
        put("chat_template.jinja", "a\n{{ b }}")?;
        put("tokenizer.json", "{ }")?;
        assert!(check(&base, &adapter).is_err_and(|e| e.to_string().contains("tokenizer_sha256")));
        Ok(())
    }
}
