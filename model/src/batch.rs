//! A packed micro-batch: a forest of segments, and the loss rows in it. No padding exists anywhere.

use crate::{Error, Result};

/// Where a segment goes on from.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Parent {
    /// Position 0 of a tree.
    Root,
    /// The end of an earlier segment of the same batch.
    Segment(u32),
    /// The end of a prefix kept in the KV cache.
    Cached(PrefixId),
}

/// A prefix whose keys and values the KV cache keeps.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct PrefixId(pub u32);

/// A run of consecutive positions on one path.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Segment {
    /// Row of its first token.
    pub start: u32,
    /// Tokens.
    pub len: u32,
    /// Position of its first token on the path from the root.
    pub pos0: u32,
    /// What comes before it.
    pub parent: Parent,
}

/// A half-open range of indices.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Span {
    /// First index.
    pub start: u32,
    /// One past the last.
    pub end: u32,
}

impl Span {
    /// As a range of indices.
    pub fn range(self) -> std::ops::Range<usize> {
        self.start as usize..self.end as usize
    }
    /// Indices in it.
    pub fn len(self) -> usize {
        (self.end - self.start) as usize
    }
    /// Whether there are none.
    pub fn is_empty(self) -> bool {
        self.start == self.end
    }
}

/// What a method knows of the loss rows beside their log-probabilities; a column is empty if unused.
#[derive(Clone, Debug, Default, PartialEq)]
pub struct Columns {
    /// `[M]` log-probability under the reference.
    pub ref_logp: Vec<f32>,
    /// `[M]` log-probability at sampling time.
    pub old_logp: Vec<f32>,
    /// `[M]`
    pub advantage: Vec<f32>,
    /// `[M]`
    pub value_target: Vec<f32>,
    /// `[sequences]`
    pub weight: Vec<f32>,
}

/// A packed micro-batch of N tokens and M loss rows, built on the host.
#[derive(Clone, Debug, Default, PartialEq)]
pub struct Batch {
    /// `[N]` token ids.
    pub tokens: Vec<u32>,
    /// `[N]` positions on the path from the root.
    pub pos: Vec<u32>,
    /// Segments in row order; a parent comes before its children.
    pub segments: Vec<Segment>,
    /// `[M]` the row that predicts; order: example, sequence, position. Rows repeat where answers share a prompt.
    pub rows: Vec<u32>,
    /// `[M]` the id predicted.
    pub targets: Vec<u32>,
    /// Per sequence: its part of `rows`.
    pub sequences: Vec<Span>,
    /// Per example: its part of `sequences`.
    pub examples: Vec<Span>,
    /// Per example: its part of the N rows (a tree is contiguous).
    pub trees: Vec<Span>,
    /// Per example: the method's own branch; the model never reads it.
    pub tags: Vec<u32>,
    /// What the method knows of rows and sequences.
    pub side: Columns,
}

impl Batch {
    /// Makes an empty batch again and keeps the memory.
    pub fn clear(&mut self) {
        self.tokens.clear();
        self.pos.clear();
        self.segments.clear();
        self.rows.clear();
        self.targets.clear();
        self.sequences.clear();
        self.examples.clear();
        self.trees.clear();
        self.tags.clear();
        let side = &mut self.side;
        [&mut side.ref_logp, &mut side.old_logp, &mut side.advantage, &mut side.value_target, &mut side.weight]
            .into_iter()
            .for_each(Vec::clear);
    }

    /// N.
    pub fn tokens(&self) -> usize {
        self.tokens.len()
    }

    /// M.
    pub fn loss_rows(&self) -> usize {
        self.rows.len()
    }

    /// Whether a segment goes on from a prefix in the KV cache.
    pub fn cached(&self) -> bool {
        self.segments.iter().any(|segment| matches!(segment.parent, Parent::Cached(_)))
    }

    /// Adds a segment of tokens after `parent`; returns its index.
    pub fn segment(&mut self, tokens: &[u32], parent: Parent, pos0: u32) -> u32 {
        let start = self.tokens.len() as u32;
        self.tokens.extend_from_slice(tokens);
        self.pos.extend((0..tokens.len() as u32).map(|i| pos0 + i));
        self.segments.push(Segment { start, len: tokens.len() as u32, pos0, parent });
        self.segments.len() as u32 - 1
    }

    /// Adds one example: a prompt computed once and its answers, each a child of it. Every answer token is a loss row; with an
    /// empty prompt the first token of the (single) answer is not. The last token of an answer predicts nothing and is left out.
    pub fn example(&mut self, prompt: &[u32], answers: &[&[u32]], tag: u32) -> Result<()> {
        let invalid = |text: String| Err(Error::Batch(text));
        if answers.is_empty() || answers.iter().any(|a| a.is_empty()) {
            return invalid("an example needs at least one answer, and every answer at least one token".into());
        }
        if prompt.is_empty() && (answers.len() > 1 || answers[0].len() < 2) {
            return invalid("without a prompt an example is one text of at least two tokens".into());
        }
        let (first_row, first_sequence) = (self.tokens.len() as u32, self.sequences.len() as u32);
        let (prompt, skip) = if prompt.is_empty() { (&answers[0][..1], 1) } else { (prompt, 0) };
        let root = self.segment(prompt, Parent::Root, 0);
        let last = self.tokens.len() as u32 - 1;
        for answer in answers {
            let (answer, first_loss) = (&answer[skip..], self.rows.len() as u32);
            let start = self.tokens.len() as u32;
            if answer.len() > 1 {
                self.segment(&answer[..answer.len() - 1], Parent::Segment(root), prompt.len() as u32);
            }
            self.rows.push(last);
            self.rows.extend((1..answer.len() as u32).map(|i| start + i - 1));
            self.targets.extend_from_slice(answer);
            self.sequences.push(Span { start: first_loss, end: self.rows.len() as u32 });
        }
        self.examples.push(Span { start: first_sequence, end: self.sequences.len() as u32 });
        self.trees.push(Span { start: first_row, end: self.tokens.len() as u32 });
        self.tags.push(tag);
        Ok(())
    }
}
