//! A template's source as minijinja takes it. Four things differ from what transformers' Jinja2 means by the same text:
//!
//! - `{% generation %}` is a tag of transformers: it becomes a filter block that marks what is inside, whitespace marks kept;
//! - `for x in none` is an error there and no turn here: what is iterated goes through a filter that refuses;
//! - a text that is added to one marked `safe` is escaped there whatever the output's own escaping: such outputs are enclosed;
//! - `a ~ true` writes `True` there and `true` here: operands of `~` go through a filter that writes them as Python does.
//!
//! Comments, raw blocks, texts and strings are left alone.

/// The filter around what `{% generation %}` encloses.
pub(super) const ASSISTANT: &str = "_assistant";
/// The filter around what a loop iterates.
pub(super) const EACH: &str = "_each";
/// The filter around outputs that call `safe`.
pub(super) const PRINT: &str = "_print";
/// The filter around operands of `~`.
pub(super) const TEXT: &str = "_text";

/// The source rewritten, and whether it has a `{% generation %}` tag.
pub(super) fn rewrite(source: &str) -> (String, bool) {
    // Jinja2 reads every line break as one.
    let source = source.replace("\r\n", "\n").replace('\r', "\n");
    let (mut out, mut rest, mut marked, mut raw) = (String::with_capacity(source.len()), source.as_str(), false, false);
    while let Some(at) = rest.find('{') {
        let (before, tag) = rest.split_at(at);
        out.push_str(before);
        let (end, close) = match tag.as_bytes().get(1) {
            Some(b'%') if raw && name(tag) != "endraw" => (Some(2), ""),
            Some(b'#') if !raw => (tag.find("#}").map(|i| i + 2), ""),
            Some(b'%') => (end_of(tag, "%}"), "%}"),
            Some(b'{') if !raw => (end_of(tag, "}}"), "}}"),
            _ => (Some(1), ""),
        };
        // A tag without an end is for the parser to refuse.
        let Some(end) = end else {
            out.push_str(tag);
            return (out, marked);
        };
        let piece = &tag[..end];
        rest = &tag[end..];
        if close.is_empty() {
            out.push_str(piece);
            continue;
        }
        let block = close == "%}";
        let word = if block { name(piece) } else { "" };
        raw = word == "raw";
        marked |= word == "generation";
        match word {
            "generation" => out.push_str(&piece.replacen("generation", &format!("filter {ASSISTANT}"), 1)),
            "endgeneration" => out.push_str(&piece.replacen("endgeneration", "endfilter", 1)),
            "raw" | "endraw" => out.push_str(piece),
            _ => {
                // Marks for white space are no operators.
                let start = 2 + usize::from(piece[2..].starts_with(['-', '+']));
                let end = piece.len() - 2;
                let end = end - usize::from(end > start && piece[..end].ends_with(['-', '+']));
                let body = expression(&piece[start..end], block, word == "for");
                if !block && is_marked_safe(&body) {
                    out.push_str(&escaping(&body, &piece[2..start], &piece[end..piece.len() - 2]));
                } else {
                    out.push_str(&format!("{}{body}{}", &piece[..start], &piece[end..]));
                }
            }
        }
    }
    out.push_str(rest);
    (out, marked)
}

/// Whether an output calls the filter `safe`.
fn is_marked_safe(body: &str) -> bool {
    body.match_indices('|').any(|(at, _)| name(&format!("{{{{{}", &body[at + 1..])) == "safe")
}

/// An output in which what is added to a safe text is escaped; the result is written as it is.
fn escaping(body: &str, before: &str, after: &str) -> String {
    let mark = |given: &str| if given == "-" { "-" } else { "+" }.to_string();
    let (before, after) = (mark(before), mark(after));
    format!("{{%{before} autoescape true %}}{{{{ ({})|{PRINT} }}}}{{% endautoescape {after}%}}", body.trim())
}

/// The first word of a tag.
fn name(tag: &str) -> &str {
    let body = tag[2..].trim_start_matches(['-', '+']).trim_start();
    &body[..body.find(|c: char| !c.is_alphanumeric() && c != '_').unwrap_or(body.len())]
}

/// Where a tag ends: `close` outside of strings and, for `}}`, of braces.
fn end_of(tag: &str, close: &str) -> Option<usize> {
    let (mut at, mut depth) = (2, 0usize);
    while at < tag.len() {
        let rest = &tag[at..];
        if depth == 0 && rest.starts_with(close) {
            return Some(at + close.len());
        }
        let token = token(rest);
        match token {
            "(" | "[" | "{" => depth += 1,
            ")" | "]" | "}" => depth = depth.saturating_sub(1),
            _ => {}
        }
        at += token.len();
    }
    None
}

/// The first token of an expression: a string, a word, a run of spaces, or one or two characters. Never empty.
fn token(text: &str) -> &str {
    let Some(first) = text.chars().next() else { return text };
    let run = |of: fn(char) -> bool| text.find(|c| !of(c)).unwrap_or(text.len());
    let end = match first {
        '"' | '\'' => {
            let mut escaped = true;
            let closing = |c: char| {
                let literal = std::mem::replace(&mut escaped, false);
                escaped = c == '\\' && !literal;
                c == first && !literal
            };
            text.find(closing).map_or(text.len(), |at| at + 1)
        }
        c if c.is_whitespace() => run(char::is_whitespace),
        c if c.is_alphanumeric() || c == '_' => run(|c| c.is_alphanumeric() || c == '_'),
        _ if ["==", "!=", "<=", ">=", "//", "**"].iter().any(|op| text.starts_with(op)) => 2,
        c => c.len_utf8(),
    };
    &text[..end]
}

/// Words that are operators where an operand stands before them, and names elsewhere.
const WORDS: [&str; 6] = ["if", "else", "in", "and", "or", "is"];

/// One level of brackets.
#[derive(Default)]
struct Level {
    /// The bracket that opened it.
    open: String,
    /// What is finished.
    out: String,
    /// The operand that is being read.
    operand: String,
    /// Whether a `~` stands before it.
    tilde: bool,
    /// The last token that is no space.
    last: String,
}

impl Level {
    /// Ends the operand; `next` is what ends it.
    fn end(&mut self, next: &str) {
        let operand = std::mem::take(&mut self.operand);
        let trimmed = operand.trim();
        if (self.tilde || next == "~") && !trimmed.is_empty() {
            let lead = operand.len() - operand.trim_start().len();
            let tail = &operand[lead + trimmed.len()..];
            self.out += &format!("{}({trimmed})|{TEXT}{tail}", &operand[..lead]);
        } else {
            self.out += &operand;
        }
        self.tilde = next == "~";
    }

    /// Whether what was read last can end an operand.
    fn has_operand(&self) -> bool {
        let last = self.last.as_str();
        !WORDS.contains(&last) && last != "not" && last.ends_with(|c: char| c.is_alphanumeric() || "_)]}\"'".contains(c))
    }

    /// Whether a token binds less tightly than `~`, so that an operand ends before it.
    fn is_border(&self, token: &str) -> bool {
        match token {
            "~" | "," | ":" | "=" | "==" | "!=" | "<" | ">" | "<=" | ">=" => true,
            "in" | "and" | "or" | "if" | "else" => true,
            "not" => self.last != "is",
            "+" | "-" => self.has_operand(),
            _ => false,
        }
    }
}

/// The inside of a tag. `block`: its first word is the tag's name; `each`: it is a `for`.
fn expression(body: &str, block: bool, each: bool) -> String {
    let (mut levels, mut at) = (vec![Level::default()], 0);
    let (mut named, mut looping) = (!block, false);
    while at < body.len() {
        let token = token(&body[at..]);
        at += token.len();
        let outer = levels.len() == 1;
        let Some(level) = levels.last_mut() else { break };
        if !named && token.starts_with(|c: char| c.is_alphanumeric()) {
            level.end(token);
            level.out += token;
            named = true;
            continue;
        } else if WORDS.contains(&token) && !level.has_operand() && ![".", "not", "is"].contains(&level.last.as_str()) {
            // minijinja has no such names.
            level.operand += &format!("_{token}_");
            level.last = "_".into();
            continue;
        } else if outer && each && !looping && token == "in" {
            level.end(token);
            level.out += "in (";
            looping = true;
        } else if outer && looping && matches!(token, "if" | "recursive") {
            close_each(level, token);
            looping = false;
        } else if matches!(token, "(" | "[" | "{") {
            levels.push(Level { open: token.into(), ..Level::default() });
        } else if matches!(token, ")" | "]" | "}") && !outer {
            close(&mut levels, token);
        } else if level.is_border(token) {
            level.end(token);
            level.out += token;
        } else {
            level.operand += token;
        }
        if let Some(level) = levels.last_mut().filter(|_| !token.trim().is_empty()) {
            level.last = token.into();
        }
    }
    while levels.len() > 1 {
        close(&mut levels, "");
    }
    let Some(mut level) = levels.pop() else { return body.into() };
    if looping {
        close_each(&mut level, "");
    }
    level.end("");
    level.out
}

fn close_each(level: &mut Level, next: &str) {
    level.end("");
    let spaces = level.out.len() - level.out.trim_end().len();
    level.out.truncate(level.out.len() - spaces);
    level.out += &format!(")|{EACH} {next}");
}

/// Puts a finished level into the operand of the one around it.
fn close(levels: &mut Vec<Level>, token: &str) {
    let Some(mut inner) = levels.pop() else { return };
    inner.end("");
    if let Some(level) = levels.last_mut() {
        level.operand += &format!("{}{}{token}", inner.open, inner.out);
    }
}
