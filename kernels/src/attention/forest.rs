//! The forest of segments, read in place from `[S, 4]` words.

use super::ROOT;
use super::block::KEYS;
use runtime::{Result, ensure};
use std::ops::Range;

/// A run of consecutive rows and positions.
#[derive(Clone, Copy, Debug)]
pub struct Segment {
    /// Row of its first token.
    pub start: usize,
    /// Rows.
    pub len: usize,
    /// Position of its first token on the path from the root.
    pub pos0: usize,
    /// Index of the segment before it on the path.
    pub parent: Option<usize>,
}

impl Segment {
    /// One past its last row.
    pub fn end(self) -> usize {
        self.start + self.len
    }
    /// One past its last position.
    pub fn past(self) -> usize {
        self.pos0 + self.len
    }
}

/// Segments in row order that together are the N rows; trees follow each other, a parent comes before its children.
#[derive(Clone, Copy, Debug)]
pub struct Forest<'a> {
    words: &'a [u32],
}

impl<'a> Forest<'a> {
    /// Checks the words: rows cover 0…`rows` in order, a tree's segments follow each other, parents come earlier,
    /// positions go on where the parent ends.
    pub fn new(words: &'a [u32], rows: usize) -> Result<Forest<'a>> {
        let forest = Forest::cut(words, rows)?;
        let behind = |i: &usize| forest.get(*i).parent.is_none() && forest.get(*i).pos0 != 0;
        if let Some(i) = (0..forest.len()).find(behind) {
            let pos0 = forest.get(i).pos0;
            ensure!(pos0 == 0, "attention: segment {i}: wanted pos0 0 without a parent, got {pos0}");
        }
        Ok(forest)
    }

    /// As [`Forest::new`], but a segment without a parent may begin anywhere: what comes before it is not among the rows.
    pub fn cut(words: &'a [u32], rows: usize) -> Result<Forest<'a>> {
        ensure!(words.len().is_multiple_of(4), "attention: segments: wanted [S, 4], got {} words", words.len());
        let forest = Forest { words };
        let (mut row, mut tree) = (0, 0);
        for i in 0..forest.len() {
            let s = forest.get(i);
            ensure!(
                s.start == row && s.len <= rows - row,
                "attention: segment {i}: rows {}+{} after {row} of {rows}",
                s.start,
                s.len
            );
            row += s.len;
            let Some(parent) = s.parent else {
                tree = i;
                continue;
            };
            ensure!(parent < i, "attention: segment {i}: parent {parent} does not come earlier");
            ensure!(parent >= tree, "attention: segment {i}: parent {parent} is of the tree before {tree}");
            let pos0 = forest.get(parent).past();
            ensure!(s.pos0 == pos0, "attention: segment {i}: wanted pos0 {pos0}, got {}", s.pos0);
        }
        ensure!(row == rows, "attention: segments cover {row} of {rows} rows");
        Ok(forest)
    }

    /// Segments.
    pub fn len(self) -> usize {
        self.words.len() / 4
    }

    /// Segment `i`.
    pub fn get(self, i: usize) -> Segment {
        let w = &self.words[4 * i..4 * i + 4];
        let parent = (w[3] != ROOT).then_some(w[3] as usize);
        Segment { start: w[0] as usize, len: w[1] as usize, pos0: w[2] as usize, parent }
    }

    /// Index of the first segment that ends behind `row`.
    pub fn at(self, row: usize) -> usize {
        let (mut low, mut high) = (0, self.len());
        while low < high {
            let middle = (low + high) / 2;
            if self.get(middle).end() <= row { low = middle + 1 } else { high = middle }
        }
        low
    }

    /// Rows of the tree whose root is segment `i`.
    pub fn tree(self, i: usize) -> Range<usize> {
        let next = (i + 1..self.len()).find(|&j| self.get(j).parent.is_none());
        self.get(i).start..next.map_or(self.get(self.len() - 1).end(), |j| self.get(j).start)
    }

    /// Index of the root of segment `i`'s tree.
    pub fn root(self, mut i: usize) -> usize {
        while let Some(parent) = self.get(i).parent {
            i = parent;
        }
        i
    }

    /// Whether segment `above` is on the path of segment `i`.
    pub fn on_path(self, above: usize, mut i: usize) -> bool {
        while let Some(parent) = self.get(i).parent.filter(|_| i > above) {
            i = parent;
        }
        i == above
    }

    /// Calls `run(slots, first row)` for the parts of block `block` that lie on the path of segment `i`, last part first.
    pub fn runs(self, mut i: usize, block: usize, mut run: impl FnMut(Range<usize>, usize)) {
        let first = block * KEYS;
        loop {
            let s = self.get(i);
            let (from, to) = (s.pos0.max(first), s.past().min(first + KEYS));
            if from < to {
                run(from - first..to - first, s.start + from - s.pos0);
            }
            match s.parent {
                Some(parent) if s.pos0 > first => i = parent,
                _ => return,
            }
        }
    }
}
