//! Raw dialogues of "\n\nHuman: …\n\nAssistant: …" turns (ALGORITHMS §5.1).

/// Begins a turn of the human.
pub const HUMAN: &str = "\n\nHuman:";
/// Begins a turn of the assistant.
pub const ASSISTANT: &str = "\n\nAssistant:";

/// Why a pair of dialogues is left out.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Unpaired {
    /// They have no prompt in common that both answer at once.
    OtherPrompt,
    /// One of the replies is empty.
    EmptyReply,
}

/// Prompt, chosen reply and rejected reply: the common beginning, cut back to the last "\n\nAssistant:", is the prompt; both
/// replies must have something in them and no further turn of the human.
pub fn split<'a>(chosen: &'a str, rejected: &'a str) -> Result<(&'a str, &'a str, &'a str), Unpaired> {
    let common = chosen.bytes().zip(rejected.bytes()).take_while(|(a, b)| a == b).count();
    let mut marks = chosen.match_indices(ASSISTANT).map(|(at, mark)| at + mark.len());
    let end = marks.by_ref().take_while(|end| *end <= common).last().ok_or(Unpaired::OtherPrompt)?;
    let (prompt, chosen, rejected) = (&chosen[..end], &chosen[end..], &rejected[end..]);
    if chosen.contains(HUMAN) || rejected.contains(HUMAN) {
        return Err(Unpaired::OtherPrompt);
    }
    if chosen.trim().is_empty() || rejected.trim().is_empty() {
        return Err(Unpaired::EmptyReply);
    }
    Ok((prompt, chosen, rejected))
}

/// What is left of a dialogue when its first turns are cut off: it begins at each turn of the human but the first, in order.
pub fn later_starts(dialogue: &str) -> impl Iterator<Item = &str> {
    dialogue.match_indices(HUMAN).map(|(at, _)| at).filter(|at| *at > 0).map(|at| &dialogue[at..])
}
