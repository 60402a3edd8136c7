//! Which path holds which page. A page only grows: its holders read what each of them knows of it, and one that stands at its end may
//! go on in it.

use crate::{Error, Result};
use kernels::kv_store::PAGE;

/// Pieces of one block that a path may take over from another.
const SHARED: usize = 2;
/// Most pieces of one block: those, the end of its prompt, and what follows where a twin goes on behind the prompt first.
pub const MOST_PIECES: usize = SHARED + 2;

/// A run of positions inside one page: `64·block + from .. 64·block + to`.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Piece {
    /// Which page.
    pub page: u32,
    /// Which block of positions it belongs to.
    pub block: u32,
    /// First offset, in the block as in the page.
    pub from: u32,
    /// One past the last offset.
    pub to: u32,
}

/// The pages of one path from its root, in position order.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Path {
    pub(crate) pieces: Vec<Piece>,
    pub(crate) len: u32,
}

impl Path {
    /// The longest prefix of at most `most` positions that another path may go on from.
    pub(crate) fn sharable(&self, most: usize) -> u32 {
        let most = (most as u32).min(self.len);
        let block = most / PAGE as u32;
        let mut of_block = self.pieces.iter().filter(|p| p.block == block);
        of_block.nth(SHARED).map_or(most, |piece| most.min(block * PAGE as u32 + piece.from))
    }

    /// The first `len` positions.
    pub(crate) fn prefix(&self, len: u32) -> Path {
        let cut = |p: &Piece| Piece { to: p.to.min(len.saturating_sub(p.block * PAGE as u32)), ..*p };
        Path { pieces: self.pieces.iter().map(cut).take_while(|p| p.from < p.to).collect(), len }
    }
}

/// Holders of every page, and the pages that have none.
#[derive(Debug)]
pub(crate) struct PageTable {
    holders: Vec<u32>,
    /// One past the last offset that any path has in each page.
    filled: Vec<u32>,
    free: Vec<u32>,
}

impl PageTable {
    pub fn new(pages: usize) -> PageTable {
        PageTable { holders: vec![0; pages], filled: vec![0; pages], free: (0..pages as u32).rev().collect() }
    }

    /// Pages that nobody holds.
    pub fn free(&self) -> usize {
        self.free.len()
    }

    /// Adds one position to a path and returns its slot (page·64 + offset).
    pub fn append(&mut self, path: &mut Path) -> Result<u32> {
        let (block, offset) = (path.len / PAGE as u32, path.len % PAGE as u32);
        let own = offset > 0 && self.goes_on(path);
        let page = match path.pieces.last_mut().filter(|_| own) {
            Some(piece) => {
                piece.to += 1;
                piece.page
            }
            None => {
                let all = self.holders.len();
                let page = self.free.pop().ok_or_else(|| Error::Batch(format!("all {all} KV pages are in use")))?;
                self.holders[page as usize] = 1;
                path.pieces.push(Piece { page, block, from: offset, to: offset + 1 });
                page
            }
        };
        self.filled[page as usize] = offset + 1;
        path.len += 1;
        Ok(page * PAGE as u32 + offset)
    }

    /// Whether the page in which a path ends may take its next position: no other path has anything there.
    fn goes_on(&self, path: &Path) -> bool {
        path.pieces.last().is_some_and(|p| self.holders[p.page as usize] == 1 || self.filled[p.page as usize] == p.to)
    }

    /// Most pages that `more` positions of a path take; `sure`: also if all others who stand at the end of its page come first.
    pub fn wanted(&self, path: &Path, more: usize, sure: bool) -> usize {
        if more == 0 {
            return 0;
        }
        let len = path.len as usize;
        let alone = path.pieces.last().is_some_and(|p| self.holders[p.page as usize] == 1);
        let inside = alone || (!sure && len > 0 && self.goes_on(path));
        (len + more).div_ceil(PAGE) - if inside { len.div_ceil(PAGE) } else { len / PAGE }
    }

    /// Another holder of a path's pages.
    pub fn share(&mut self, path: &Path) -> Path {
        path.pieces.iter().for_each(|p| self.holders[p.page as usize] += 1);
        path.clone()
    }

    /// Gives a path's pages back.
    pub fn release(&mut self, path: Path) {
        for piece in path.pieces {
            let holders = &mut self.holders[piece.page as usize];
            *holders -= 1;
            if *holders == 0 {
                self.free.push(piece.page);
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn grown(table: &mut PageTable, path: &mut Path, more: usize) -> Vec<u32> {
        (0..more).map(|_| table.append(path).unwrap()).collect()
    }

    #[test]
    fn who_stands_at_the_end_of_a_page_goes_on_in_it() {
        let mut table = PageTable::new(4);
        let mut a = Path::default();
        grown(&mut table, &mut a, 70);
        let mut b = table.share(&a);
        assert_eq!((table.wanted(&b, 1, false), table.wanted(&b, 1, true), table.free()), (0, 1, 2));
        assert_eq!(grown(&mut table, &mut b, 1), [64 + 6]);
        // The other end of the page is taken now: a forks, and comes back to one page a block when b is gone.
        assert_eq!(table.wanted(&a, 1, false), 1);
        assert_eq!(grown(&mut table, &mut a, 2), [2 * 64 + 6, 2 * 64 + 7]);
        assert_eq!(a.pieces.len(), 3);
        let mut c = table.share(&a.prefix(65));
        table.release(b);
        table.release(a);
        assert_eq!((table.free(), table.wanted(&c, 63, true), table.wanted(&c, 64, true)), (2, 0, 1));
        assert_eq!(grown(&mut table, &mut c, 1), [64 + 1]);
        table.release(c);
        assert_eq!(table.free(), 4);
    }

    #[test]
    fn a_block_is_in_few_pieces() {
        let mut table = PageTable::new(64);
        let mut paths = vec![Path::default()];
        grown(&mut table, &mut paths[0], 10);
        for round in 0..50u32 {
            let from = &paths[(round * 7 % 13) as usize % paths.len()];
            let len = from.sharable((from.len - round % 3) as usize);
            let mut child = table.share(&from.prefix(len));
            assert_eq!(child.len, len);
            grown(&mut table, &mut child, 1 + round as usize % 4);
            paths.push(child);
        }
        for path in &paths {
            let mut past = 0;
            for p in &path.pieces {
                assert_eq!(p.block * 64 + p.from, past, "{path:?}");
                past = p.block * 64 + p.to;
                assert!(path.pieces.iter().filter(|q| q.block == p.block).count() <= MOST_PIECES, "{path:?}");
            }
            assert_eq!(past, path.len);
        }
        paths.into_iter().for_each(|path| table.release(path));
        assert_eq!(table.free(), 64);
    }
}
