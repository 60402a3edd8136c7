//! What a CUBIN says of its kernels: registers, stack, static shared memory, and which instructions stand in them. Read from the
//! file itself: an ELF of 64 bits, the attributes of its section `.nv.info`, and code whose instructions have 16 bytes each.

use std::collections::{BTreeMap, BTreeSet};

/// One kernel.
#[derive(Clone, Debug, Default, PartialEq)]
pub struct Usage {
    /// Of a thread.
    pub registers: u32,
    /// Bytes of a thread's stack, that of called functions included: spilled registers and arrays that are indexed.
    pub stack: u32,
    /// Bytes of static shared memory, without what the driver reserves.
    pub shared: u64,
    /// Those of [`MNEMONICS`] that occur.
    pub instructions: BTreeSet<&'static str>,
}

/// Instructions by the low nine bits of their first word; the three bits above tell register, constant and immediate forms apart. The
/// same from sm_80 to sm_100.
const MNEMONICS: [(u64, &str); 9] = [
    (0x023, "FFMA"),
    (0x03b, "LDSM"),
    (0x03c, "HMMA"),
    (0x183, "LDL"),
    (0x187, "STL"),
    (0x189, "SHFL"),
    (0x1ae, "LDGSTS"),
    (0x1b4, "UTMALDG"),
    (0x1f0, "HGMMA"),
];

/// From 9.0 on the driver keeps this much of every block's shared memory, and the section counts it.
const RESERVED: u64 = 1024;

/// Attributes of `.nv.info` with a symbol and a number: the function's own frame, and the stack that it needs with its callees.
const FRAME_SIZE: u8 = 0x11;
const STACK_SIZE: u8 = 0x12;
const REGISTERS: u8 = 0x2f;

/// Types of sections.
const SYMBOLS: u32 = 2;
const NO_BITS: u32 = 8;

struct Elf<'a> {
    image: &'a [u8],
    sections: Vec<Section>,
}

#[derive(Clone, Default)]
struct Section {
    name: String,
    kind: u32,
    at: usize,
    size: usize,
    link: usize,
}

fn number(bytes: &[u8], at: usize, len: usize) -> Result<u64, String> {
    let part = at.checked_add(len).and_then(|end| bytes.get(at..end)).ok_or(format!("ends before byte {at} + {len}"))?;
    Ok(part.iter().rev().fold(0, |n, b| n << 8 | u64::from(*b)))
}

fn text(bytes: &[u8], at: usize) -> Result<String, String> {
    let rest = bytes.get(at..).ok_or(format!("a name at {at}, beyond its table"))?;
    let end = rest.iter().position(|b| *b == 0).ok_or("a name without an end")?;
    Ok(String::from_utf8_lossy(&rest[..end]).into_owned())
}

impl<'a> Elf<'a> {
    fn parse(image: &'a [u8]) -> Result<Elf<'a>, String> {
        if !image.starts_with(b"\x7fELF\x02\x01") {
            return Err("wanted an ELF of 64 bits".into());
        }
        let (start, size) = (number(image, 40, 8)? as usize, number(image, 58, 2)? as usize);
        let (count, names) = (number(image, 60, 2)? as usize, number(image, 62, 2)? as usize);
        let field = |i: usize, at: usize, len: usize| number(image, start.saturating_add(i * size + at), len);
        let section = |i: usize| -> Result<Section, String> {
            let (kind, link) = (field(i, 4, 4)? as u32, field(i, 40, 4)? as usize);
            Ok(Section { name: String::new(), kind, at: field(i, 24, 8)? as usize, size: field(i, 32, 8)? as usize, link })
        };
        let mut elf = Elf { image, sections: (0..count).map(section).collect::<Result<_, _>>()? };
        let table = elf.body(elf.sections.get(names).ok_or("no table of section names")?)?;
        for i in 0..count {
            elf.sections[i].name = text(table, field(i, 0, 4)? as usize)?;
        }
        Ok(elf)
    }

    fn body(&self, section: &Section) -> Result<&'a [u8], String> {
        let end = section.at.checked_add(section.size).ok_or("a section without an end")?;
        self.image.get(section.at..end).ok_or(format!("{} lies beyond the file", section.name))
    }

    fn named(&self, name: &str) -> Option<&Section> {
        self.sections.iter().find(|s| s.name == name)
    }

    /// Names of the symbols, by index.
    fn symbols(&self) -> Result<Vec<String>, String> {
        let table = self.sections.iter().find(|s| s.kind == SYMBOLS).ok_or("no symbols")?;
        let names = self.body(self.sections.get(table.link).ok_or("symbols without names")?)?;
        self.body(table)?.chunks_exact(24).map(|entry| text(names, number(entry, 0, 4)? as usize)).collect()
    }
}

/// Every kernel of a CUBIN for `arch`, by its name.
pub fn kernels(image: &[u8], arch: &str) -> Result<BTreeMap<String, Usage>, String> {
    let elf = Elf::parse(image)?;
    let symbols = elf.symbols()?;
    let mut found: BTreeMap<String, Usage> = BTreeMap::new();
    let info = elf.body(elf.named(".nv.info").ok_or("no .nv.info")?)?;
    let mut at = 0;
    while at < info.len() {
        let (format, attribute) = (number(info, at, 1)?, number(info, at + 1, 1)? as u8);
        // Format 4 has a payload of that length; the others hold their value in the word itself.
        let payload = if format == 4 { number(info, at + 2, 2)? as usize } else { 0 };
        if matches!(attribute, FRAME_SIZE | STACK_SIZE | REGISTERS) {
            let (symbol, value) = (number(info, at + 4, 4)? as usize, number(info, at + 8, 4)? as u32);
            let usage = found.entry(symbols.get(symbol).ok_or("an attribute of no symbol")?.clone()).or_default();
            let field = if attribute == REGISTERS { &mut usage.registers } else { &mut usage.stack };
            *field = value.max(*field);
        }
        at += 4 + payload;
    }
    // A slow path of a division is a function within the kernel's code.
    found.retain(|name, _| elf.named(&format!(".text.{name}")).is_some());
    let reserved = if arch.starts_with("sm_8") { 0 } else { RESERVED };
    for (name, usage) in &mut found {
        let shared = elf.named(&format!(".nv.shared.{name}")).filter(|s| s.kind == NO_BITS);
        usage.shared = shared.map_or(0, |s| (s.size as u64).saturating_sub(reserved));
        let code = elf.body(elf.named(&format!(".text.{name}")).ok_or(format!("{name} has no code"))?)?;
        for instruction in code.chunks_exact(16) {
            let word = number(instruction, 0, 8)? & 0x1ff;
            usage.instructions.extend(MNEMONICS.iter().find(|(opcode, _)| *opcode == word).map(|(_, name)| *name));
        }
    }
    Ok(found)
}
