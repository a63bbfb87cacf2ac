/// Loss, hits and gradient of one batch.
pub(super) struct BatchLoss {
    /// The samples' losses, added up.
    pub(super) sum: f64,
    /// How many samples were classified correctly.
    pub(super) correct: usize,
    /// The gradient of the batch's mean loss by the logits, of the logits' shape.
    pub(super) gradient: Vec<f32>,
}

/// Cross-entropy of `logits`, `[labels, outputs]` row by row, against the classes in `labels`.
///
/// If the logits are finite, so is the loss.
///
/// With one output `z` it is binary cross-entropy of `p = sigmoid(z)`, and class 1 is predicted
/// where `p > 1/2`, that is `z > 0`:
///
/// ```text
/// loss = -y ln p - (1 - y) ln(1 - p) = max(z, 0) - y z + ln(1 + exp(-|z|)),   dloss/dz = p - y
/// ```
///
/// With more it is categorical cross-entropy of `p = softmax(z)`, and the class of the largest
/// logit is predicted (the first of equals, as numpy's `argmax`):
///
/// ```text
/// loss = -ln p_y = ln sum_j exp(z_j - max z) - (z_y - max z),                 dloss/dz = p - onehot(y)
/// ```
///
/// Both forms neither overflow nor lose digits. Everything is computed in `f64`, which costs nothing
/// at these sizes. The gradient is written down rather than derived by autodiff since it is this
/// simple, and since autodiff of the stable forms is wrong at the kinks of `max` and `abs`.
pub(super) fn cross_entropy(logits: &[f32], labels: &[usize], outputs: usize) -> BatchLoss {
    let mut loss = BatchLoss { sum: 0.0, correct: 0, gradient: Vec::with_capacity(logits.len()) };
    let samples = labels.len() as f64;
    for (row, &label) in logits.chunks_exact(outputs).zip(labels) {
        if let &[logit] = row {
            let z = f64::from(logit);
            let target = if label == 1 { 1.0 } else { 0.0 };
            let exponential = (-z.abs()).exp();
            let probability = if z >= 0.0 { 1.0 } else { exponential } / (1.0 + exponential);
            loss.sum += z.max(0.0) - target * z + exponential.ln_1p();
            loss.correct += usize::from((z > 0.0) == (label == 1));
            loss.gradient.push(((probability - target) / samples) as f32);
            continue;
        }
        let (mut predicted, mut largest) = (0, f64::NEG_INFINITY);
        for (class, &logit) in row.iter().enumerate() {
            if f64::from(logit) > largest {
                (predicted, largest) = (class, f64::from(logit));
            }
        }
        let exponential = |logit: f32| (f64::from(logit) - largest).exp();
        let total: f64 = row.iter().map(|&logit| exponential(logit)).sum();
        loss.sum += total.ln() - (f64::from(row[label]) - largest);
        loss.correct += usize::from(predicted == label);
        loss.gradient.extend(row.iter().enumerate().map(|(class, &logit)| {
            let target = if class == label { 1.0 } else { 0.0 };
            ((exponential(logit) / total - target) / samples) as f32
        }));
    }
    loss
}

#[cfg(test)]
mod tests {
    use super::*;

    fn close(a: f64, b: f64) {
        assert!((a - b).abs() < 1e-9, "{a} and {b}");
    }

    #[test]
    fn binary_matches_the_definition() {
        let loss = cross_entropy(&[0.5, -2.0, 0.0], &[1, 0, 1], 1);
        let sigmoid = |z: f64| 1.0 / (1.0 + (-z).exp());
        close(loss.sum, -(sigmoid(0.5).ln() + (1.0 - sigmoid(-2.0)).ln() + 0.5_f64.ln()));
        // A probability of exactly 1/2 is class 0.
        assert_eq!(loss.correct, 2);
        let expected = [sigmoid(0.5) - 1.0, sigmoid(-2.0), -0.5].map(|g| (g / 3.0) as f32);
        assert_eq!(loss.gradient, expected);
    }

    #[test]
    fn categorical_matches_the_definition() {
        let loss = cross_entropy(&[1.0, 2.0, 3.0, 5.0, 5.0, 0.0], &[2, 1], 3);
        let e = std::f64::consts::E;
        let first = e.powi(3) / (e + e.powi(2) + e.powi(3));
        let second = e.powi(5) / (2.0 * e.powi(5) + 1.0);
        close(loss.sum, -(first.ln() + second.ln()));
        assert_eq!(loss.correct, 1, "the first of equal logits is predicted");
        close(f64::from(loss.gradient[2]), ((first - 1.0) / 2.0) as f32 as f64);
        close(f64::from(loss.gradient[3]), (second / 2.0) as f32 as f64);
    }

    #[test]
    fn huge_logits_stay_finite() {
        let loss = cross_entropy(&[3e38, -3e38], &[0, 1], 1);
        assert!(loss.sum.is_finite() && loss.sum > 5e38);
        assert_eq!(loss.gradient, [0.5, -0.5]);
        let loss = cross_entropy(&[3e38, -3e38, 0.0], &[1], 3);
        assert!(loss.sum.is_finite());
        assert_eq!(loss.gradient, [1.0, -1.0, 0.0]);
    }
}
