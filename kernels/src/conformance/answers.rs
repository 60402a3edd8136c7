//! What the records say to the questions that the law's device grain rests on.

use super::{Record, WIDTHS, elementary};
use crate::math;
use std::fmt;

/// How many words differ where a yes means that none does.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Answer {
    /// The question.
    pub question: String,
    /// Words that differ.
    pub unequal: usize,
    /// Of so many.
    pub of: usize,
}

impl fmt::Display for Answer {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let said = if self.unequal == 0 { "yes" } else { "no" };
        write!(f, "{}: {said} ({} of {} differ)", self.question, self.unequal, self.of)
    }
}

/// Records that are the same if the answer is yes.
const SAME: [(&str, &str, &str); 7] = [
    ("one step of 16 is two steps of 8", "step wide", "step of eights"),
    ("the products of a step may be permuted", "step wide", "step permuted"),
    ("a step commutes with the sign", "step wide", "step negated"),
    ("a step commutes with a factor of 16", "step wide", "step scaled"),
    ("the roles of A and B may be exchanged", "step wide, rows 0 to 7", "step exchanged"),
    ("a step of zeros changes nothing", "step wide", "step of zeros"),
    ("accumulators may lie in memory between steps", "chain n=8", "chain in memory n=8"),
];

/// One for each question whose records are there.
pub fn answers(records: &[Record]) -> Vec<Answer> {
    let find = |name: &str| records.iter().find(|r| r.name == name).map(|r| &r.bits[..]);
    let compare = |question: String, a: &[u32], b: &[u32]| {
        let unequal = a.iter().zip(b).filter(|(a, b)| a != b).count() + a.len().abs_diff(b.len());
        Answer { question, unequal, of: a.len() }
    };
    let mut all = Vec::new();
    for (question, a, b) in SAME {
        all.extend(find(a).zip(find(b)).map(|(a, b)| compare(question.into(), a, b)));
    }
    for n in WIDTHS {
        let Some(ways) = find(&format!("wgmma n={n}")).filter(|bits| bits.len() >= 3 * 64 * n) else { continue };
        let [memory, registers, serial] = [0, 1, 2].map(|way| &ways[way * 64 * n..(way + 1) * 64 * n]);
        let chain = find(&format!("chain n={n}")).unwrap_or_default();
        all.push(compare(format!("wgmma of {n} columns has the bits of a chain of mma.sync"), memory, chain));
        all.push(compare(format!("wgmma of {n} columns takes A from registers or memory alike"), memory, registers));
        all.push(compare(format!("wgmma of {n} columns may begin at +0 and wait at every step"), memory, serial));
        let narrow = find("wgmma n=8").and_then(|bits| bits.get(..512)).unwrap_or_default();
        all.push(compare(format!("the first columns of wgmma do not know its width {n}"), &memory[..512], narrow));
    }
    if let Some(bits) = find("elementary") {
        let names = ["exp2", "exp", "log1p", "log", "log2", "tanh", "erf", "sigmoid", "sqrt", "division", "fma", "maximum"];
        for (i, (name, want)) in names.iter().zip(on_the_host()).enumerate() {
            let got = bits.get(i * 512..(i + 1) * 512).unwrap_or_default();
            all.push(compare(format!("{name} has the CPU's bits"), got, &want));
        }
    }
    all
}

/// The functions of `dump_elementary` on the CPU.
fn on_the_host() -> [Vec<u32>; 12] {
    let input = elementary();
    let (x, y) = input.split_at(512);
    let of =
        |f: &dyn Fn(f32, f32) -> f32| x.iter().zip(y).map(|(x, y)| f(f32::from_bits(*x), f32::from_bits(*y)).to_bits()).collect();
    [
        of(&|x, _| math::exp2(x)),
        of(&|x, _| math::exp(x)),
        of(&|x, _| math::log1p(x.abs())),
        of(&|x, _| math::log(x.abs())),
        of(&|x, _| math::log2(x.abs())),
        of(&|x, _| math::tanh(x)),
        of(&|x, _| math::erf(x)),
        of(&|x, _| math::sigmoid(x)),
        of(&|x, _| x.abs().sqrt()),
        of(&|x, y| x / y),
        of(&|x, y| x.mul_add(y, x)),
        of(&|x, y| if x > y { x } else { y }),
    ]
}
