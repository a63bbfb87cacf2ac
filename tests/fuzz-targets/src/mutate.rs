//! Reproducible mutations: a bounded stand-in for libFuzzer, which needs a nightly compiler.

/// A generator of mutated copies, determined by its seed.
pub(crate) struct Mutator(fastrand::Rng);

/// Numbers at the limits of integer types.
const EDGES: [u64; 12] = [
    0,
    1,
    0x7f,
    0x80,
    0xff,
    0x7fff,
    0xffff,
    0x7fff_ffff,
    0x8000_0000,
    0xffff_ffff,
    1 << 40,
    u64::MAX,
];

impl Mutator {
    /// Creates a generator.
    pub fn new(seed: u64) -> Self {
        Self(fastrand::Rng::with_seed(seed))
    }

    /// Returns a random number below `bound`, which must not be 0.
    pub fn below(&mut self, bound: usize) -> usize {
        self.0.usize(..bound)
    }

    /// Returns a copy of `bytes` with one to eight mutations; pieces are taken from `other`.
    pub fn damaged(&mut self, bytes: &[u8], other: &[u8]) -> Vec<u8> {
        let mut bytes = bytes.to_vec();
        for _ in 0..1 + self.below(8) * self.below(2) {
            self.damage(&mut bytes, other);
        }
        bytes
    }

    fn damage(&mut self, bytes: &mut Vec<u8>, other: &[u8]) {
        let at = self.below(bytes.len() + 1);
        let length = (1 + self.below(16)).min(bytes.len() - at);
        match self.below(8) {
            0 if at < bytes.len() => bytes[at] ^= 1 << self.below(8),
            1 if at < bytes.len() => bytes[at] = self.below(256) as u8,
            2 => {
                // A number in either byte order.
                let value = EDGES[self.below(EDGES.len())];
                let width = [1, 2, 4, 8][self.below(4)].min(bytes.len() - at);
                let (little, big) = (value.to_le_bytes(), value.to_be_bytes());
                let number = if self.below(2) == 0 { &little[..width] } else { &big[8 - width..] };
                bytes[at..at + width].copy_from_slice(number);
            }
            3 => bytes.truncate(at),
            4 => drop(bytes.drain(at..at + length)),
            5 => {
                let piece = bytes[at..at + length].repeat(1 + self.below(4));
                bytes.splice(at..at, piece);
            }
            6 if !other.is_empty() => {
                let from = self.below(other.len());
                let length = (1 + self.below(64)).min(other.len() - from);
                let end = (at + length * self.below(2)).min(bytes.len());
                bytes.splice(at..end, other[from..from + length].iter().copied());
            }
            _ => {
                let digits =
                    ["0", "-1", "99999999999999999999", "1e999", "\n", "\0", "="][self.below(7)];
                bytes.splice(at..at + length, digits.bytes());
            }
        }
    }
}
