//! Motion detection: whether a frame differs from the last one that was classified.

/// Side of the compared blocks, in pixels of the base's input.
const BLOCK: usize = 8;

/// A gate that passes a frame if some block of it has changed.
pub struct MotionGate {
    level: f32,
    last: Vec<u8>,
}

impl MotionGate {
    /// Creates a gate that passes the first frame. `level` is the least mean difference of an 8x8
    /// block, in steps of the quantized input (about gray levels, of 255).
    pub fn new(level: f32) -> Self {
        Self { level, last: Vec::new() }
    }

    /// Whether the input `[3, size, size]` differs from the last one that passed. Slow drift adds
    /// up, since the comparison is not with the frame before but with the one that passed.
    pub fn moves(&mut self, input: &[u8], size: usize) -> bool {
        let moves = self.last.len() != input.len() || self.largest(input, size) >= self.level;
        if moves {
            self.last.clear();
            self.last.extend_from_slice(input);
        }
        moves
    }

    /// Returns the largest mean difference of a block.
    fn largest(&self, input: &[u8], size: usize) -> f32 {
        let across = size.div_ceil(BLOCK).max(1);
        let mut sums = vec![0u32; across * across];
        let planes = input.chunks_exact(size * size).zip(self.last.chunks_exact(size * size));
        for (plane, last) in planes {
            for (y, (row, last)) in
                plane.chunks_exact(size).zip(last.chunks_exact(size)).enumerate()
            {
                let blocks =
                    row.chunks(BLOCK).zip(last.chunks(BLOCK)).zip(&mut sums[y / BLOCK * across..]);
                for ((row, last), sum) in blocks {
                    *sum +=
                        row.iter().zip(last).map(|(a, b)| u32::from(a.abs_diff(*b))).sum::<u32>();
                }
            }
        }
        sums.into_iter().max().unwrap_or_default() as f32 / (3 * BLOCK * BLOCK) as f32
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn motion_gate_ignores_noise_and_sees_a_small_object() {
        let still = vec![100u8; 3 * 64 * 64];
        let mut gate = MotionGate::new(6.0);
        assert!(gate.moves(&still, 64), "the first frame always passes");
        let noise: Vec<u8> = (0..still.len()).map(|i| 97 + (i * 7 % 7) as u8).collect();
        assert!(!gate.moves(&still, 64) && !gate.moves(&noise, 64));
        // A quarter of one block of 64 moves by 60.
        let mut object = still.clone();
        for plane in 0..3 {
            for y in 20..24 {
                object[plane * 4096 + y * 64 + 40..][..4].fill(160);
            }
        }
        assert!(gate.moves(&object, 64));
        assert!(!gate.moves(&object, 64) && gate.moves(&still, 64));
    }

    #[test]
    fn motion_gate_adds_up_drift() {
        let mut gate = MotionGate::new(6.0);
        let moved = (0..=12u8).filter(|&v| gate.moves(&vec![100 + v; 3 * 32 * 32], 32)).count();
        assert_eq!(moved, 3, "at the start and after every six steps");
    }
}
