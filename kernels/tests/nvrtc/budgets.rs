//! The budgets of kernels (`kernels/budgets.txt`), and what breaks one.

use super::cubin::Usage;
use runtime::Defines;

/// One line of the file: what a kernel's variant may take on an architecture, and the instructions it must have.
#[derive(Clone, Debug, PartialEq)]
pub struct Budget {
    /// Kernel, variant, architecture.
    pub of: [String; 3],
    pub registers: u32,
    pub shared: u64,
    pub instructions: Vec<String>,
}

/// A variant as the file writes it: `TABLE=1,ROWS=2`, or `-`.
pub fn variant(defines: &Defines) -> String {
    let one = |(name, value): &(&str, i64)| format!("{name}={value}");
    let all: Vec<String> = defines.0.iter().map(one).collect();
    if all.is_empty() { "-".into() } else { all.join(",") }
}

/// Reads the file; a `#` begins a comment.
pub fn parse(text: &str) -> Result<Vec<Budget>, String> {
    let lines = text.lines().enumerate().filter(|(_, line)| !line.trim().is_empty() && !line.starts_with('#'));
    let budget = |(i, line): (usize, &str)| {
        let wrong =
            || format!("budgets.txt line {}: wanted kernel, variant, arch, registers, shared, instructions: {line}", i + 1);
        let [kernel, variant, arch, registers, shared, instructions] =
            line.split_whitespace().collect::<Vec<_>>().try_into().map_err(|_| wrong())?;
        Ok(Budget {
            of: [kernel, variant, arch].map(String::from),
            registers: registers.parse().map_err(|_| wrong())?,
            shared: shared.parse().map_err(|_| wrong())?,
            instructions: instructions.split(',').filter(|i| *i != "-").map(String::from).collect(),
        })
    };
    lines.map(budget).collect()
}

/// The line that would just allow what the kernel takes: registers rounded up to whole groups of eight, in which they are given out.
pub fn line(of: &[String; 3], usage: &Usage) -> String {
    let [kernel, variant, arch] = of;
    let tensor = usage.instructions.iter().filter(|name| !matches!(**name, "FFMA" | "SHFL" | "LDL" | "STL"));
    let needed: Vec<&str> = tensor.copied().collect();
    let needed = if needed.is_empty() { "-".into() } else { needed.join(",") };
    format!("{kernel} {variant} {arch} {} {} {needed}", usage.registers.next_multiple_of(8), usage.shared)
}

/// What is wrong with a kernel, empty if nothing is.
pub fn faults(budget: &Budget, usage: &Usage) -> Vec<String> {
    let what = budget.of.join(" ");
    let mut found = Vec::new();
    let local = ["LDL", "STL"].iter().any(|name| usage.instructions.contains(name));
    if usage.stack > 0 || local {
        found.push(format!("{what}: {} bytes of stack: registers are spilled or an array lies in local memory", usage.stack));
    }
    if usage.registers > budget.registers {
        found.push(format!("{what}: {} registers, its budget has {}", usage.registers, budget.registers));
    }
    if usage.shared > budget.shared {
        found.push(format!("{what}: {} bytes of shared memory, its budget has {}", usage.shared, budget.shared));
    }
    for needed in budget.instructions.iter().filter(|i| !usage.instructions.contains(i.as_str())) {
        found.push(format!("{what}: no {needed} in its code"));
    }
    found
}
