/// Loss, hits and gradient of one batch.
pub(super) struct BatchLoss {
    /// The samples' losses, added up.
    pub(super) sum: f64,
    /// How many samples were classified correctly.
    pub(super) correct: usize,
    /// The gradient of the batch's mean loss by the logits, of the logits' shape.
    pub(super) gradient: Vec<f32>,
}

/// What a loss is computed with beside logits and classes.
#[derive(Clone, Copy, Default)]
pub(super) struct LossRule<'a> {
    /// Share of the target that is spread over all classes, in `[0, 1)`.
    pub(super) smoothing: f64,
    /// A factor for each class; empty if all are 1.
    pub(super) weights: &'a [f64],
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
/// With smoothing `s` the targets are `y (1 - s) + s / 2` and `onehot(y) (1 - s) + s / K`. Loss and gradient of a sample are
/// multiplied by the weight of its class; the mean still divides by the number of samples, as Keras does.
///
/// Both forms neither overflow nor lose digits. Everything is computed in `f64`, which costs nothing
/// at these sizes. The gradient is written down rather than derived by autodiff since it is this
/// simple, and since autodiff of the stable forms is wrong at the kinks of `max` and `abs`.
pub(super) fn cross_entropy(
    logits: &[f32],
    labels: &[usize],
    outputs: usize,
    rule: LossRule,
) -> BatchLoss {
    let mut loss = BatchLoss { sum: 0.0, correct: 0, gradient: Vec::with_capacity(logits.len()) };
    let samples = labels.len() as f64;
    let smooth =
        |target: f64, classes: f64| target * (1.0 - rule.smoothing) + rule.smoothing / classes;
    for (row, &label) in logits.chunks_exact(outputs).zip(labels) {
        let weight = rule.weights.get(label).copied().unwrap_or(1.0);
        if let &[logit] = row {
            let z = f64::from(logit);
            let target = smooth(if label == 1 { 1.0 } else { 0.0 }, 2.0);
            let exponential = (-z.abs()).exp();
            let probability = if z >= 0.0 { 1.0 } else { exponential } / (1.0 + exponential);
            loss.sum += weight * (z.max(0.0) - target * z + exponential.ln_1p());
            loss.correct += usize::from((z > 0.0) == (label == 1));
            loss.gradient.push((weight * (probability - target) / samples) as f32);
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
        let target = |class: usize| smooth(if class == label { 1.0 } else { 0.0 }, outputs as f64);
        let expected: f64 = row
            .iter()
            .zip(0..)
            .map(|(&logit, class)| target(class) * (f64::from(logit) - largest))
            .sum();
        loss.sum += weight * (total.ln() - expected);
        loss.correct += usize::from(predicted == label);
        loss.gradient.extend(row.iter().enumerate().map(|(class, &logit)| {
            (weight * (exponential(logit) / total - target(class)) / samples) as f32
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
        let loss = cross_entropy(&[0.5, -2.0, 0.0], &[1, 0, 1], 1, LossRule::default());
        let sigmoid = |z: f64| 1.0 / (1.0 + (-z).exp());
        close(loss.sum, -(sigmoid(0.5).ln() + (1.0 - sigmoid(-2.0)).ln() + 0.5_f64.ln()));
        // A probability of exactly 1/2 is class 0.
        assert_eq!(loss.correct, 2);
        let expected = [sigmoid(0.5) - 1.0, sigmoid(-2.0), -0.5].map(|g| (g / 3.0) as f32);
        assert_eq!(loss.gradient, expected);
    }

    #[test]
    fn categorical_matches_the_definition() {
        let loss = cross_entropy(&[1.0, 2.0, 3.0, 5.0, 5.0, 0.0], &[2, 1], 3, LossRule::default());
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
        let loss = cross_entropy(&[3e38, -3e38], &[0, 1], 1, LossRule::default());
        assert!(loss.sum.is_finite() && loss.sum > 5e38);
        assert_eq!(loss.gradient, [0.5, -0.5]);
        let loss = cross_entropy(&[3e38, -3e38, 0.0], &[1], 3, LossRule::default());
        assert!(loss.sum.is_finite());
        assert_eq!(loss.gradient, [1.0, -1.0, 0.0]);
    }

    #[test]
    fn weights_and_smoothing_match_the_definition() {
        let rule = LossRule { smoothing: 0.2, weights: &[0.5, 3.0, 1.0] };
        let loss = cross_entropy(&[0.5], &[1], 1, rule);
        let p = 1.0 / (1.0 + (-0.5_f64).exp());
        close(loss.sum, -3.0 * (0.9 * p.ln() + 0.1 * (1.0 - p).ln()));
        assert_eq!(loss.gradient, [(3.0 * (p - 0.9)) as f32]);
        let loss = cross_entropy(&[1.0, 2.0, 3.0], &[0], 3, rule);
        let total: f64 = (1..4).map(|z| f64::from(z).exp()).sum();
        let target = [0.8 + 0.2 / 3.0, 0.2 / 3.0, 0.2 / 3.0];
        let expected: f64 =
            (1..4).zip(target).map(|(z, y)| -y * (f64::from(z).exp() / total).ln()).sum();
        close(loss.sum, 0.5 * expected);
        for (g, (z, y)) in loss.gradient.iter().zip((1..4).zip(target)) {
            assert!((f64::from(*g) - 0.5 * (f64::from(z).exp() / total - y)).abs() < 1e-7);
        }
    }
}
