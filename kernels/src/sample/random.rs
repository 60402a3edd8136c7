//! Philox4x32-10 (Salmon et al., SC'11) and the counter layout of LAW "Random numbers".

/// What a stream of random numbers is for; goes into the key.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[repr(u32)]
pub enum Tag {
    /// Fresh weights.
    Init = 1,
    /// Order of the data.
    Shuffle = 2,
    /// Draws of the sampler.
    Sample = 3,
    /// Dropout masks.
    Dropout = 4,
    /// Where a completion is cut into a prefix.
    PrefixLength = 5,
}

/// (seed_lo, seed_hi ^ tag)
pub fn key(seed: u64, tag: Tag) -> [u32; 2] {
    [seed as u32, (seed >> 32) as u32 ^ tag as u32]
}

/// Ten rounds of Philox4x32: four words for one counter.
pub fn philox(mut key: [u32; 2], mut counter: [u32; 4]) -> [u32; 4] {
    for _ in 0..10 {
        let [a, b, c, d] = counter;
        let (even, odd) = (0xd251_1f53 * u64::from(a), 0xcd9e_8d57 * u64::from(c));
        counter = [(odd >> 32) as u32 ^ b ^ key[0], odd as u32, (even >> 32) as u32 ^ d ^ key[1], even as u32];
        key = [key[0].wrapping_add(0x9e37_79b9), key[1].wrapping_add(0xbb67_ae85)];
    }
    counter
}

/// Sides, and samples of a side, are below this: the two share a word of the counter.
pub const SAMPLES: u32 = 1 << 16;

/// The sampler's draw: x0 | x1·2^32 of the block at (row, side·2^16 | sample, position, iteration). `row` is the index in the
/// input before any filter, `position` the index in the completion. Side and sample are below [`SAMPLES`]: beyond it two of
/// them would share their numbers, so callers refuse it.
pub fn draw(seed: u64, row: u32, side: u32, sample: u32, position: u32, iteration: u32) -> u64 {
    debug_assert!(side < SAMPLES && sample < SAMPLES, "side {side}, sample {sample}: wanted below {SAMPLES}");
    let x = philox(key(seed, Tag::Sample), [row, side << 16 | sample, position, iteration]);
    u64::from(x[0]) | u64::from(x[1]) << 32
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn known_answers_of_random123() {
        let hex = |text: &str| -> Vec<u32> { text.split(' ').map(|w| u32::from_str_radix(w, 16).unwrap()).collect() };
        for (counter, key, want) in [
            ("00000000 00000000 00000000 00000000", "00000000 00000000", "6627e8d5 e169c58d bc57ac4c 9b00dbd8"),
            ("ffffffff ffffffff ffffffff ffffffff", "ffffffff ffffffff", "408f276d 41c83b0e a20bc7c6 6d5451fd"),
            ("243f6a88 85a308d3 13198a2e 03707344", "a4093822 299f31d0", "d16cfe09 94fdcceb 5001e420 24126ea1"),
        ] {
            let (counter, key) = (hex(counter).try_into().unwrap(), hex(key).try_into().unwrap());
            assert_eq!(philox(key, counter).to_vec(), hex(want));
        }
    }

    #[test]
    fn a_draw_is_the_low_half_of_its_block() {
        let seed = 0x0123_4567_89ab_cdef;
        assert_eq!(key(seed, Tag::PrefixLength), [0x89ab_cdef, 0x0123_4567 ^ 5]);
        let block = philox([0x89ab_cdef, 0x0123_4567 ^ 3], [7, 1 << 16 | 2, 40, 9]);
        assert_eq!(draw(seed, 7, 1, 2, 40, 9), u64::from(block[1]) << 32 | u64::from(block[0]));
    }
}
