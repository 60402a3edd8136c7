//! The principle: a text p that guides one of the two answers, and where it stands in a query x (ALGORITHMS §6.3).
//!
//! - a raw dialogue: p and a line break before its first "\n\nHuman:";
//! - everything else: p, a blank line, x.

use crate::config::Config;
use crate::data::hh::HUMAN;
use crate::data::{RowKind, tldr};
use crate::{Error, Result};

const HH: &str = "Answer ethically, informatively and helpfully. Refuse harmful, illegal or hateful requests politely and say why; \
be accurate; admit what you do not know; be complete but concise.";
const IMDB: &str = "Write a sincere, enthusiastic and positive movie review.";
const TLDR: &str = "Write a one or two sentence summary that is faithful to the post, keeps its main point and question, and leaves \
out details.";

/// One constant text per run.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Principle {
    /// p, without line breaks at its ends.
    pub text: String,
}

impl Principle {
    /// The text or file of the settings; else that of the last task preset; else the one for the kind of `rows`, of which
    /// `example` is a query.
    pub fn choose(config: &Config, rows: RowKind, example: &str) -> Result<Principle> {
        let text = match (&config.ple_principle, &config.ple_principle_file) {
            (Some(text), _) => text.clone(),
            (None, Some(path)) => {
                let bytes = std::fs::read(path).map_err(|e| Error::file(path, format!("cannot read: {e}")))?;
                let text = String::from_utf8(bytes).map_err(|_| Error::file(path, "wanted UTF-8, got other bytes"))?;
                if text.trim().is_empty() {
                    return Err(Error::file(path, "wanted the text of a principle, got an empty file"));
                }
                text
            }
            (None, None) => {
                let preset = config.preset.iter().rev().find(|p| p.as_str() != "literal").map(String::as_str);
                let by_rows = || match rows {
                    RowKind::Text => IMDB,
                    _ if tldr::post(example).is_some() => TLDR,
                    _ => HH,
                };
                let shipped = match preset {
                    Some("hh") => HH,
                    Some("imdb") => IMDB,
                    Some("tldr") => TLDR,
                    _ => by_rows(),
                };
                shipped.to_string()
            }
        };
        let text = text.trim_matches(['\n', '\r']).to_string();
        if text.trim().is_empty() {
            Err(Error::Usage("ple_principle: wanted a text, got an empty one".into()))
        } else {
            Ok(Principle { text })
        }
    }

    /// The guided query.
    pub fn guide(&self, query: &str) -> String {
        match query.find(HUMAN) {
            Some(at) => format!("{}{}\n{}", &query[..at], self.text, &query[at..]),
            None => format!("{}\n\n{query}", self.text),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::config::Command;

    #[test]
    fn stands_before_the_first_turn_or_the_text() {
        let p = Principle { text: "Be kind.".into() };
        assert_eq!(p.guide("\n\nHuman: Hi\n\nAssistant:"), "Be kind.\n\n\nHuman: Hi\n\nAssistant:");
        assert_eq!(p.guide("x\n\nHuman: a\n\nHuman: b"), "xBe kind.\n\n\nHuman: a\n\nHuman: b");
        assert_eq!(p.guide("This film"), "Be kind.\n\nThis film");
    }

    #[test]
    fn chosen_by_settings_then_preset_then_rows() -> Result<()> {
        let mut c = Config::defaults(Command::Train);
        assert_eq!(Principle::choose(&c, RowKind::Dialogue, "")?.text, HH);
        assert_eq!(Principle::choose(&c, RowKind::Text, "")?.text, IMDB);
        assert_eq!(Principle::choose(&c, RowKind::Prompt, "TITLE: a\n\nPOST: b\n\nTL;DR:")?.text, TLDR);
        assert_eq!(Principle::choose(&c, RowKind::Prompt, "hello")?.text, HH);
        c.preset = vec!["tldr".into(), "literal".into()];
        assert_eq!(Principle::choose(&c, RowKind::Text, "")?.text, TLDR);
        let folder = tempfile::tempdir().map_err(|e| Error::Usage(e.to_string()))?;
        let file = folder.path().join("p.txt");
        c.ple_principle_file = Some(file.clone());
        assert!(Principle::choose(&c, RowKind::Text, "").is_err_and(|e| e.to_string().contains("p.txt")));
        for (bytes, want) in [(&b"\n\n"[..], "empty"), (b"\xff", "UTF-8")] {
            std::fs::write(&file, bytes).map_err(|e| Error::Usage(e.to_string()))?;
            assert!(Principle::choose(&c, RowKind::Text, "").is_err_and(|e| e.to_string().contains(want)));
        }
        std::fs::write(&file, "Be brief.\n").map_err(|e| Error::Usage(e.to_string()))?;
        assert_eq!(Principle::choose(&c, RowKind::Text, "")?.text, "Be brief.");
        c.ple_principle_file = None;
        c.ple_principle = Some("Be bold.".into());
        assert_eq!(Principle::choose(&c, RowKind::Text, "")?.text, "Be bold.");
        Ok(())
    }
}
