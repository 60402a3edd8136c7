//! One case on one device: operands between bands in one allocation, the call, and everything read back.

use super::case::{Case, Limit, Operand, Role, Truth};
use super::{Row, compare};
use runtime::{Arena, Plan, Region, Result, Stream};
use std::ops::Range;

/// Untouched words between operands: 4 KiB.
const BAND: usize = 1024;
/// What they hold.
const CANARY: u32 = 0xc0ff_ee5a;
/// Elements between rows that lie apart.
const GAP: usize = 24;
/// What outputs hold before a call: NaN, then a number in every format.
const POISON: [u8; 2] = [0xff, 0x5a];

/// How a case's operands lie: a cut of the rows, what outputs hold before, and whether rows lie apart that may.
#[derive(Clone, Copy)]
struct Lie<'a> {
    cut: Option<&'a Range<usize>>,
    poison: u8,
    apart: bool,
}

impl Lie<'_> {
    /// All rows side by side.
    fn whole(poison: u8) -> Lie<'static> {
        Lie { cut: None, poison, apart: false }
    }

    /// Elements of a row, and from row to row.
    fn pitch(self, operand: &Operand) -> Option<[usize; 2]> {
        operand.apart.filter(|_| self.apart).map(|width| [width, width + GAP])
    }
}

/// An allocation with a case's operands, and its image on the host.
struct Placed {
    regions: Vec<Region>,
    words: Vec<u32>,
}

impl Placed {
    /// The operands between bands.
    fn new(operands: &[Operand], lie: Lie<'_>) -> Placed {
        let mut plan = Plan::default();
        let band = |plan: &mut Plan| plan.region(BAND, runtime::DType::U32);
        band(&mut plan);
        let regions: Vec<Region> = operands
            .iter()
            .map(|o| {
                let len = o.part(lie.cut).len() / o.dtype.size();
                let region = plan.region(lie.pitch(o).map_or(len, |[width, pitch]| len / width * pitch), o.dtype);
                band(&mut plan);
                region
            })
            .collect();
        let mut words = vec![CANARY; plan.bytes() / 4];
        for (operand, region) in operands.iter().zip(&regions) {
            let (image, mut from) = (bytemuck::cast_slice_mut::<u32, u8>(&mut words), &operand.bytes[operand.part(lie.cut)]);
            for piece in pieces(operand, region, lie) {
                let (own, rest) = from.split_at(piece.len());
                match operand.role {
                    Role::Output => image[piece].fill(lie.poison),
                    Role::Input | Role::Both => image[piece].copy_from_slice(own),
                }
                from = rest;
            }
        }
        Placed { regions, words }
    }
}

/// Where the operand's bytes lie in the image.
fn bytes(operand: &Operand, region: &Region) -> Range<usize> {
    let start = 4 * region.words().start;
    start..start + region.len() * operand.dtype.size()
}

/// The same row by row where rows lie apart, else in one piece.
fn pieces(operand: &Operand, region: &Region, lie: Lie<'_>) -> Vec<Range<usize>> {
    let (place, size) = (bytes(operand, region), operand.dtype.size());
    match lie.pitch(operand) {
        Some([width, pitch]) => place.step_by(pitch * size).map(|at| at..at + width * size).collect(),
        None => vec![place],
    }
}

/// What a call wrote: the bytes of each written operand, and what it touched besides.
struct Written {
    outputs: Vec<Vec<u8>>,
    touched: Option<String>,
}

fn call(case: &Case, s: &Stream, lie: Lie<'_>) -> Result<Written> {
    place(case, &case.operands, s, lie)
}

/// The case's call on these operands.
fn place(case: &Case, operands: &[Operand], s: &Stream, lie: Lie<'_>) -> Result<Written> {
    let placed = Placed::new(operands, lie);
    let arena = Arena::new(s, 4 * placed.words.len())?;
    arena.flat().write(s, bytemuck::cast_slice::<u32, f32>(&placed.words))?;
    let view = |(o, region): (&Operand, &Region)| {
        let view = arena.view(*region)?;
        lie.pitch(o).map_or(Ok(view), |[width, pitch]| view.apart(width, pitch))
    };
    let views: Vec<_> = operands.iter().zip(&placed.regions).map(view).collect::<Result<_>>()?;
    (case.call)(s, &views)?;
    let mut after = vec![0f32; placed.words.len()];
    arena.flat().read(s, &mut after)?;
    let (before, after) = (bytemuck::cast_slice::<u32, u8>(&placed.words), bytemuck::cast_slice::<f32, u8>(&after));
    let places = || operands.iter().zip(&placed.regions);
    let written = places().filter(|(o, _)| o.is_written());
    let mut outputs = Vec::new();
    let mut rest = after.to_vec();
    for (operand, region) in written {
        let pieces = pieces(operand, region, lie);
        outputs.push(pieces.iter().flat_map(|piece| &after[piece.clone()]).copied().collect());
        pieces.into_iter().for_each(|piece| rest[piece.clone()].copy_from_slice(&before[piece]));
    }
    let touched = rest.iter().zip(before).position(|(a, b)| a != b).map(|at| {
        let near = places().min_by_key(|(o, region)| {
            let place = bytes(o, region);
            place.start.saturating_sub(at).max(at.saturating_sub(place.end))
        });
        let name = near.map_or("an operand", |(o, _)| o.name);
        let offset = near.map_or(0, |(o, region)| at as i64 - bytes(o, region).start as i64);
        format!("{name}: byte {offset} of it or its surroundings was written")
    });
    Ok(Written { outputs, touched })
}

/// Cuts of a batch of `n` rows.
fn cuts(n: usize) -> Vec<Range<usize>> {
    let all = [0..1, 1..4, 4..21, n.saturating_sub(1)..n, n / 2..n];
    all.into_iter().filter(|cut| cut.end <= n && !cut.is_empty() && cut.len() < n).collect()
}

/// What the portable CPU makes of the same values in f32: rounded once where bits are compared, as it is where norms are.
fn truth(case: &Case, portable: &Stream) -> Result<Vec<compare::Wanted>> {
    let operands: Vec<Operand> = case.operands.iter().map(Operand::widened).collect();
    let outputs = place(case, &operands, portable, Lie::whole(POISON[0]))?.outputs;
    let stored = case.operands.iter().zip(&operands).filter(|(o, _)| o.is_written());
    let one = |((operand, wide), bytes): ((&Operand, &Operand), Vec<u8>)| match operand.limit.unwrap_or(case.limit) {
        Limit::Bits => compare::Wanted::Bytes(compare::narrowed(operand, bytes)),
        Limit::Norm { .. } => compare::Wanted::Values(compare::widened(wide, &bytes)),
    };
    Ok(stored.zip(outputs).map(one).collect())
}

/// Checks everything of one case and counts it in the row.
pub fn check(case: &Case, s: &Stream, portable: &Stream, repeats: usize, row: &mut Row) -> Result<()> {
    let whole = call(case, s, Lie::whole(POISON[0]))?;
    let mut wrong = |what: String| row.failures.push(format!("{}: {what}", case.name));
    match whole.touched {
        Some(text) => wrong(text),
        None => row.canaries += case.operands.len(),
    }
    let written: Vec<&Operand> = case.operands.iter().filter(|o| o.is_written()).collect();
    let truth = match &case.truth {
        Truth::Cpu => truth(case, portable)?,
        Truth::Values(values) => values.iter().cloned().map(compare::Wanted::Values).collect(),
    };
    match compare::outputs(&written, &whole.outputs, &truth, case.limit) {
        Ok(share) => (row.shapes, row.worst) = (row.shapes + 1, row.worst.max(share)),
        Err(text) => wrong(text),
    }
    for i in 0..repeats {
        let again = call(case, s, Lie::whole(POISON[i % 2]))?;
        match (compare::bits(&written, &again.outputs, &whole.outputs), i) {
            // The first with other bytes in the outputs beforehand.
            (Some(text), 1) => wrong(format!("filled with {:#x} beforehand: {text}", POISON[1])),
            (Some(text), _) => wrong(format!("repetition {}: {text}", i + 1)),
            (None, 1) => (row.poison, row.repeat) = (row.poison + written.len(), row.repeat + 1),
            (None, _) => row.repeat += 1,
        }
    }
    let loose = case.operands.iter().filter(|o| o.apart.is_some()).count();
    if loose > 0 && s.host().is_none() {
        let lain = call(case, s, Lie { apart: true, ..Lie::whole(POISON[0]) })?;
        match compare::bits(&written, &lain.outputs, &whole.outputs).or(lain.touched) {
            Some(text) => wrong(format!("rows apart: {text}")),
            None => row.canaries += loose,
        }
    }
    let Some(law) = &mut row.law else { return Ok(()) };
    for cut in cuts(case.rows) {
        let part = call(case, s, Lie { cut: Some(&cut), ..Lie::whole(POISON[1]) })?.outputs;
        let wanted: Vec<Vec<u8>> =
            written.iter().zip(&whole.outputs).map(|(o, bytes)| bytes[o.part(Some(&cut))].to_vec()).collect();
        match compare::bits(&written, &part, &wanted) {
            Some(text) => row.failures.push(format!("{}: rows {cut:?} alone: {text}", case.name)),
            None => *law += 1,
        }
    }
    Ok(())
}
