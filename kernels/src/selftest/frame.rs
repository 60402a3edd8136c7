//! One case on one device: operands between bands in one allocation, the call, and everything read back.

use super::case::{Case, Limit, Operand, Role, Truth};
use super::{Row, compare};
use runtime::{Arena, Plan, Region, Result, Stream};
use std::ops::Range;

/// Untouched words between operands: 4 KiB.
const BAND: usize = 1024;
/// What they hold.
const CANARY: u32 = 0xc0ff_ee5a;
/// What outputs hold before a call: NaN, then a number in every format.
const POISON: [u8; 2] = [0xff, 0x5a];

/// An allocation with a case's operands, and its image on the host.
struct Placed {
    regions: Vec<Region>,
    words: Vec<u32>,
}

impl Placed {
    /// The operands, or the rows of a cut, between bands, outputs filled with `poison`.
    fn new(operands: &[Operand], cut: Option<&Range<usize>>, poison: u8) -> Placed {
        let mut plan = Plan::default();
        let band = |plan: &mut Plan| plan.region(BAND, runtime::DType::U32);
        band(&mut plan);
        let regions: Vec<Region> = operands
            .iter()
            .map(|o| {
                let region = plan.region(o.part(cut).len() / o.dtype.size(), o.dtype);
                band(&mut plan);
                region
            })
            .collect();
        let mut words = vec![CANARY; plan.bytes() / 4];
        for (operand, region) in operands.iter().zip(&regions) {
            let to = &mut bytemuck::cast_slice_mut::<u32, u8>(&mut words)[bytes(operand, region)];
            match operand.role {
                Role::Output => to.fill(poison),
                Role::Input | Role::Both => to.copy_from_slice(&operand.bytes[operand.part(cut)]),
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

/// What a call wrote: the bytes of each written operand, and what it touched besides.
struct Written {
    outputs: Vec<Vec<u8>>,
    touched: Option<String>,
}

fn call(case: &Case, s: &Stream, cut: Option<&Range<usize>>, poison: u8) -> Result<Written> {
    place(case, &case.operands, s, cut, poison)
}

/// The case's call on these operands.
fn place(case: &Case, operands: &[Operand], s: &Stream, cut: Option<&Range<usize>>, poison: u8) -> Result<Written> {
    let placed = Placed::new(operands, cut, poison);
    let arena = Arena::new(s, 4 * placed.words.len())?;
    arena.flat().write(s, bytemuck::cast_slice::<u32, f32>(&placed.words))?;
    let views: Vec<_> = placed.regions.iter().map(|region| arena.view(*region)).collect::<Result<_>>()?;
    (case.call)(s, &views)?;
    let mut after = vec![0f32; placed.words.len()];
    arena.flat().read(s, &mut after)?;
    let (before, after) = (bytemuck::cast_slice::<u32, u8>(&placed.words), bytemuck::cast_slice::<f32, u8>(&after));
    let places = || operands.iter().zip(&placed.regions);
    let written = places().filter(|(o, _)| o.is_written());
    let mut outputs = Vec::new();
    let mut rest = after.to_vec();
    for (operand, region) in written {
        let place = bytes(operand, region);
        outputs.push(after[place.clone()].to_vec());
        rest[place.clone()].copy_from_slice(&before[place]);
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
    let outputs = place(case, &operands, portable, None, POISON[0])?.outputs;
    let stored = case.operands.iter().zip(&operands).filter(|(o, _)| o.is_written());
    let one = |((operand, wide), bytes): ((&Operand, &Operand), Vec<u8>)| match operand.limit.unwrap_or(case.limit) {
        Limit::Bits => compare::Wanted::Bytes(compare::narrowed(operand, bytes)),
        Limit::Norm { .. } => compare::Wanted::Values(compare::widened(wide, &bytes)),
    };
    Ok(stored.zip(outputs).map(one).collect())
}

/// Checks everything of one case and counts it in the row.
pub fn check(case: &Case, s: &Stream, portable: &Stream, repeats: usize, row: &mut Row) -> Result<()> {
    let whole = call(case, s, None, POISON[0])?;
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
        let again = call(case, s, None, POISON[i % 2])?;
        match (compare::bits(&written, &again.outputs, &whole.outputs), i) {
            // The first with other bytes in the outputs beforehand.
            (Some(text), 1) => wrong(format!("filled with {:#x} beforehand: {text}", POISON[1])),
            (Some(text), _) => wrong(format!("repetition {}: {text}", i + 1)),
            (None, 1) => (row.poison, row.repeat) = (row.poison + written.len(), row.repeat + 1),
            (None, _) => row.repeat += 1,
        }
    }
    let Some(law) = &mut row.law else { return Ok(()) };
    for cut in cuts(case.rows) {
        let part = call(case, s, Some(&cut), POISON[1])?.outputs;
        let wanted: Vec<Vec<u8>> =
            written.iter().zip(&whole.outputs).map(|(o, bytes)| bytes[o.part(Some(&cut))].to_vec()).collect();
        match compare::bits(&written, &part, &wanted) {
            Some(text) => row.failures.push(format!("{}: rows {cut:?} alone: {text}", case.name)),
            None => *law += 1,
        }
    }
    Ok(())
}
