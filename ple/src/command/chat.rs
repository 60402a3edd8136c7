//! `ple chat`: a conversation with a model on a terminal, or over a pipe, a message a line.

use crate::config::Config;
use crate::open::Opened;
use crate::{Error, Result, interrupt, log, rollout};
use conversation::Conversation;
use kernels::kv_store::PAGE;
use model::generate::{Held, stream};
use model::{CacheLimits, KvCache, Request, SampleKey, Settings, TextStream};
use std::io::{BufRead, IsTerminal, stdin, stdout};
use std::ops::ControlFlow;
use std::path::Path;

mod conversation;

/// Positions of a conversation where the settings name none: caches of whole long-context models would not fit.
const WINDOW: usize = 4096;

const HELP: &str = "/reset begins anew, /system TEXT too, under that system message, /save FILE adds the conversation to a file of rows, \
/quit ends; Ctrl-C breaks an answer off";

/// What a line asks for.
#[derive(Debug, PartialEq, Eq)]
enum Asked<'a> {
    Message(&'a str),
    Reset,
    System(&'a str),
    Save(&'a str),
    Help,
    Quit,
    Nothing,
}

impl Asked<'_> {
    /// A command is a slash and a word; the error names those there are.
    fn of(line: &str) -> std::result::Result<Asked<'_>, String> {
        let line = line.trim_end_matches(['\n', '\r']);
        let Some(rest) = line.strip_prefix('/') else {
            return Ok(if line.trim().is_empty() { Asked::Nothing } else { Asked::Message(line) });
        };
        let (name, rest) = rest.split_once(char::is_whitespace).map_or((rest, ""), |(name, rest)| (name, rest.trim()));
        match (name, rest) {
            ("reset", "") => Ok(Asked::Reset),
            ("system", text) => Ok(Asked::System(text)),
            ("save", "") => Err("/save: wanted a file, got nothing".into()),
            ("save", file) => Ok(Asked::Save(file)),
            ("help", "") => Ok(Asked::Help),
            ("quit" | "exit", "") => Ok(Asked::Quit),
            _ => Err(format!("wanted /reset, /system TEXT, /save FILE, /help or /quit, got {line:?}")),
        }
    }
}

/// A conversation and what it runs on.
struct Chat<'a> {
    c: &'a Config,
    opened: &'a Opened,
    conversation: Conversation,
    kv: KvCache,
    held: Held,
    settings: Settings,
    /// Positions of prompt and answer.
    window: usize,
    /// Answers so far: each has random numbers of its own.
    turns: u32,
    /// Whether somebody sits in front of it.
    terminal: bool,
}

/// Runs the command. A message a line; the answer follows as it is drawn. Without a chat template in the model's folder a message is a
/// text that the model continues, by itself. The n-th answer has the random numbers of row n of `ple generate`. A file that cannot be
/// read or written, and a message that does not fit, end the program unless somebody sits in front of it.
pub fn run(c: &Config) -> Result<()> {
    let opened = Opened::for_scoring(c)?;
    let terminal = stdin().is_terminal() && stdout().is_terminal() && !c.quiet;
    let limits = limits(c, opened.model()?.positions());
    if c.dry_run {
        let plan = opened.model()?.cache_plan(limits, c.repetition_penalty != 1.0);
        return log::print(&format!("{} positions; {plan} bytes of cache\n", limits.positions));
    }
    let mut chat = Chat::new(c, &opened, limits, terminal)?;
    if terminal {
        opened.notes.iter().for_each(|note| log::tell(&format!("note  {note}")));
        let from = if chat.conversation.has_template() { "" } else { "no chat template: a message is continued as a text. " };
        log::tell(&format!("{}: {from}{HELP}", opened.folder.display()));
    }
    let (mut input, mut line) = (stdin().lock(), Vec::new());
    loop {
        if terminal {
            log::print("> ")?;
        }
        line.clear();
        interrupt::idle(true);
        let read = input.read_until(b'\n', &mut line);
        interrupt::idle(false);
        if read.map_err(|e| Error::file(Path::new("standard input"), format!("cannot read: {e}")))? == 0 {
            break;
        }
        match chat.take(&line) {
            Ok(ControlFlow::Continue(())) => {}
            Ok(ControlFlow::Break(())) => break,
            Err(error) if terminal && !matches!(error, Error::Interrupted) => log::tell(&error.to_string()),
            Err(error) => return Err(error),
        }
    }
    Ok(())
}

/// Of a model with so many positions.
fn limits(c: &Config, positions: usize) -> CacheLimits {
    let asked = if c.kv_cache_tokens > 0 { c.kv_cache_tokens as usize } else { WINDOW };
    let window = positions.min(asked);
    // The last prompt is held while the next one, which may have nothing in common with it, is answered.
    let pages = 2 * window.div_ceil(PAGE) + 1;
    CacheLimits { pages, prefill_tokens: window.min(1024), batch: 1, positions: window }
}

impl<'a> Chat<'a> {
    fn new(c: &'a Config, opened: &'a Opened, limits: CacheLimits, terminal: bool) -> Result<Chat<'a>> {
        let (model, window) = (opened.model()?, limits.positions);
        let kv = KvCache::new(&opened.stream, model, limits, c.repetition_penalty != 1.0, None)?;
        let mut settings = rollout::settings(c, opened, model);
        settings.sampling = rollout::sampling(&crate::method::Sampling::of(c));
        let conversation = Conversation::new(opened, c.system.as_deref())?;
        Ok(Chat { c, opened, conversation, kv, held: Held::default(), settings, window, turns: 0, terminal })
    }

    /// A line of the input; a break ends the program.
    fn take(&mut self, line: &[u8]) -> Result<ControlFlow<()>> {
        let wrong = |text: String| Error::file(Path::new("standard input"), text);
        let line = std::str::from_utf8(line).map_err(|_| wrong("wanted UTF-8, got other bytes".into()))?;
        match Asked::of(line).map_err(wrong)? {
            Asked::Nothing => {}
            Asked::Message(text) => self.answer(text)?,
            Asked::Reset => self.conversation.reset(),
            Asked::System(text) => self.conversation.system(text)?,
            Asked::Save(file) => self.conversation.save(Path::new(file))?,
            Asked::Help => log::tell(HELP),
            Asked::Quit => return Ok(ControlFlow::Break(())),
        }
        Ok(ControlFlow::Continue(()))
    }

    /// Asks and prints the answer; what was said of one that was broken off stays.
    fn answer(&mut self, message: &str) -> Result<()> {
        let prompt = self.conversation.prompt(self.opened, message)?;
        let Some(room) = self.window.checked_sub(prompt.len()).filter(|room| *room > 0) else {
            let (n, most) = (prompt.len(), self.window);
            let text =
                format!("a conversation of {n} tokens, which leaves an answer no room in {most} positions; /reset begins anew");
            return Err(Error::file(Path::new("standard input"), text));
        };
        let settings = Settings { max_new_tokens: room.min(self.c.max_completion_length as usize), ..self.settings.clone() };
        let request = Request { prompt, key: SampleKey { row: self.turns, ..SampleKey::default() } };
        let (mut text, mut answer, mut failed, mut broken) = (TextStream::default(), String::new(), None, false);
        let tokenizer = &self.opened.tokenizer;
        let (model, policy) = (self.opened.model()?, self.opened.policy);
        let done = stream(&self.opened.stream, model, &mut self.kv, &request, &settings, policy, &mut self.held, &mut |new| {
            let told = new.iter().try_for_each(|id| say(&text.push(*id, tokenizer)?, &mut answer));
            failed = told.err();
            broken = interrupt::taken();
            if broken || failed.is_some() { ControlFlow::Break(()) } else { ControlFlow::Continue(()) }
        })?;
        if let Some(error) = failed {
            return Err(error);
        }
        say(&text.finish(tokenizer)?, &mut answer)?;
        log::print("\n")?;
        if self.terminal && !done.stopped {
            log::tell(&if broken { "(broken off)".to_string() } else { format!("(cut off at {} tokens)", done.ids.len()) });
        }
        self.turns += 1;
        self.conversation.answered(message, answer);
        Ok(())
    }
}

/// Prints a piece of the answer at once.
fn say(piece: &str, answer: &mut String) -> Result<()> {
    answer.push_str(piece);
    if piece.is_empty() { Ok(()) } else { log::print(piece) }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn lines_are_messages_or_commands() {
        for (line, wanted) in [
            ("hi\r\n", Asked::Message("hi")),
            (" a /b \n", Asked::Message(" a /b ")),
            (" \n", Asked::Nothing),
            ("/reset\n", Asked::Reset),
            ("/system  Be kind. \n", Asked::System("Be kind.")),
            ("/system\n", Asked::System("")),
            ("/save a b.jsonl\n", Asked::Save("a b.jsonl")),
            ("/help", Asked::Help),
            ("/exit", Asked::Quit),
        ] {
            assert_eq!(Asked::of(line), Ok(wanted), "{line:?}");
        }
        for line in ["/save", "/resets", "/", "/quit now", "/usr/bin"] {
            assert!(Asked::of(line).is_err_and(|text| text.contains("wanted")), "{line:?}");
        }
    }
}
