//! Texts token by token.

use crate::Result;
use crate::data::Tokens;
use model::Tokenizer;
use serde_json::{Value, json};
use std::io::IsTerminal;

/// A token of a row.
pub(super) struct Token {
    id: u32,
    piece: String,
    /// `prompt`, `answer`, ..
    part: &'static str,
    /// Whether it is marked: in the loss, or written by the assistant.
    marked: bool,
}

/// The ids of a part, marked where `marked` says so.
pub(super) fn tokens(
    tokenizer: &Tokenizer,
    part: &'static str,
    ids: &[u32],
    marked: impl Fn(usize) -> bool,
) -> Result<Vec<Token>> {
    let one = |(i, id): (usize, &u32)| Ok(Token { id: *id, piece: piece(tokenizer, *id)?, part, marked: marked(i) });
    ids.iter().enumerate().map(one).collect()
}

/// The text of a token by itself, or its name where it is none: a special token, a part of a character.
fn piece(tokenizer: &Tokenizer, id: u32) -> Result<String> {
    let text = Tokens::decode(tokenizer, &[id], true)?;
    let name = tokenizer.token(id).unwrap_or_else(|| "(no token)".into());
    // Names of word pieces show the space that a lone token's text may lose.
    let lost = name.starts_with('\u{2581}') && !text.starts_with(' ');
    Ok(if text.is_empty() || text.contains('\u{fffd}') || lost { name } else { text })
}

pub(super) fn value(tokens: &[Token]) -> Value {
    tokens.iter().map(|t| json!({ "id": t.id, "piece": t.piece, "part": t.part, "marked": t.marked })).collect()
}

/// Whether marks are colours: on a terminal that may have some.
pub(super) fn coloured() -> bool {
    std::io::stdout().is_terminal() && std::env::var_os("NO_COLOR").is_none_or(|v| v.is_empty())
}

/// A line a token: place, id, part, mark, piece.
pub(super) fn table(tokens: &[Token], coloured: bool) -> String {
    let mut text = String::new();
    for (i, Token { id, piece, part, marked }) in tokens.iter().enumerate() {
        let mark = if *marked { '+' } else { ' ' };
        let line = format!("{i:>6} {id:>7}  {part:<9} {mark} {piece:?}");
        text += &if coloured && *marked { format!("\u{1b}[32m{line}\u{1b}[0m\n") } else { line + "\n" };
    }
    text
}
