//! A dense layer in training: `input * kernel + bias`, with batch normalization of the product if
//! it has any.
//!
//! Each elementwise expression keeps the order in which it was first released: the bits of trained
//! heads depend on it.

use super::network::{Parameter, broadcast_backward, sum_rows};
use super::product::{Matrix, product};
use super::{BatchNorm, DenseWeights};

/// A dense layer.
pub(super) struct Dense {
    pub(super) inputs: usize,
    pub(super) outputs: usize,
    /// `[inputs, outputs]`
    pub(super) kernel: Parameter,
    /// `[outputs]`
    pub(super) bias: Parameter,
    norm: Option<Norm>,
}

/// [`BatchNorm`] with its trained part as a parameter.
struct Norm {
    gamma: Parameter,
    mean: Vec<f32>,
    variance: Vec<f32>,
    /// Values of the latest forward pass in training.
    tape: NormTape,
}

/// Values of the forward pass that the backward pass of batch normalization uses.
#[derive(Default)]
struct NormTape {
    /// Products less their mean.
    centered: Vec<f32>,
    /// Variance of the batch plus epsilon.
    variance: Vec<f32>,
    /// Its square root.
    deviation: Vec<f32>,
    /// `gamma / deviation`
    factors: Vec<f32>,
}

impl Dense {
    pub(super) fn new(weights: &DenseWeights) -> Self {
        let norm = weights.norm.clone().map(|BatchNorm { gamma, mean, variance }| Norm {
            gamma: Parameter::offset(gamma),
            mean,
            variance,
            tape: NormTape::default(),
        });
        Self {
            inputs: weights.inputs,
            outputs: weights.outputs,
            kernel: Parameter::kernel(weights.kernel.clone()),
            bias: Parameter::offset(weights.bias.clone()),
            norm,
        }
    }

    /// A copy of the weights.
    pub(super) fn weights(&self) -> DenseWeights {
        DenseWeights {
            inputs: self.inputs,
            outputs: self.outputs,
            kernel: self.kernel.values.clone(),
            bias: self.bias.values.clone(),
            norm: self.norm.as_ref().map(|norm| BatchNorm {
                gamma: norm.gamma.values.clone(),
                mean: norm.mean.clone(),
                variance: norm.variance.clone(),
            }),
        }
    }

    /// Kernel, bias, then gamma if there is one.
    pub(super) fn parameters(&self) -> impl Iterator<Item = &Parameter> {
        [&self.kernel, &self.bias].into_iter().chain(self.norm.as_ref().map(|norm| &norm.gamma))
    }

    /// As [`parameters`](Self::parameters).
    pub(super) fn parameters_mut(&mut self) -> impl Iterator<Item = &mut Parameter> {
        let gamma = self.norm.as_mut().map(|norm| &mut norm.gamma);
        [&mut self.kernel, &mut self.bias].into_iter().chain(gamma)
    }

    /// The sums after training: batch normalization uses the moving means.
    pub(super) fn infer(&self, input: &[f32], rows: usize) -> Vec<f32> {
        let mut sums = self.multiply(input, rows);
        if let Some(Norm { gamma, mean, variance, .. }) = &self.norm {
            let factors: Vec<f32> =
                BatchNorm::factors(&gamma.values, variance).map(|factor| factor as f32).collect();
            for row in sums.chunks_exact_mut(self.outputs) {
                for ((value, mean), factor) in row.iter_mut().zip(mean).zip(&factors) {
                    *value = (*value - mean) * factor;
                }
            }
        }
        self.add_bias(&mut sums);
        sums
    }

    /// The sums in training: batch normalization uses mean and variance of the batch, and moves its
    /// moving means towards them.
    pub(super) fn forward(&mut self, input: &[f32], rows: usize) -> Vec<f32> {
        let mut sums = self.multiply(input, rows);
        if let Some(norm) = &mut self.norm {
            sums = norm.forward(sums, rows);
        }
        self.add_bias(&mut sums);
        sums
    }

    /// Replaces the gradients by those of the latest [`forward`](Self::forward), whose `input` is
    /// given again; `upstream` is the gradient by its sums. Returns the gradient by the product,
    /// which [`input_gradient`](Self::input_gradient) takes.
    pub(super) fn backward(&mut self, input: &[f32], upstream: Vec<f32>, rows: usize) -> Vec<f32> {
        self.bias.gradient = broadcast_backward(&upstream, self.outputs);
        let upstream = match &mut self.norm {
            Some(norm) => norm.backward(&upstream, rows),
            None => upstream,
        };
        let input = Matrix::new(input, rows).transposed();
        product(input, Matrix::new(&upstream, rows), &mut self.kernel.gradient);
        upstream
    }

    /// The gradient by the input, from what [`backward`](Self::backward) returned.
    pub(super) fn input_gradient(&self, upstream: &[f32], rows: usize) -> Vec<f32> {
        let mut gradient = vec![0.0; rows * self.inputs];
        let kernel = Matrix::new(&self.kernel.values, self.inputs).transposed();
        product(Matrix::new(upstream, rows), kernel, &mut gradient);
        gradient
    }

    fn multiply(&self, input: &[f32], rows: usize) -> Vec<f32> {
        let mut sums = vec![0.0; rows * self.outputs];
        let kernel = Matrix::new(&self.kernel.values, self.inputs);
        product(Matrix::new(input, rows), kernel, &mut sums);
        sums
    }

    fn add_bias(&self, sums: &mut [f32]) {
        for row in sums.chunks_exact_mut(self.outputs) {
            row.iter_mut().zip(&self.bias.values).for_each(|(value, bias)| *value += bias);
        }
    }
}

impl Norm {
    /// Normalizes the products of a batch; the bias, Keras's beta, is not added yet.
    fn forward(&mut self, products: Vec<f32>, rows: usize) -> Vec<f32> {
        let outputs = self.mean.len();
        let mean = |values: &[f32]| {
            let mut sums = sum_rows(values, outputs);
            sums.iter_mut().for_each(|sum| *sum /= rows as f32);
            sums
        };
        let center = mean(&products);
        let mut centered = products;
        for row in centered.chunks_exact_mut(outputs) {
            row.iter_mut().zip(&center).for_each(|(value, center)| *value -= center);
        }
        let squares: Vec<f32> = centered.iter().map(|value| value * value).collect();
        let mut variance = mean(&squares);
        for (moving, batch) in [(&mut self.mean, &center), (&mut self.variance, &variance)] {
            let (past, new) = (BatchNorm::MOMENTUM as f32, (1.0 - BatchNorm::MOMENTUM) as f32);
            for (moving, batch) in moving.iter_mut().zip(batch) {
                *moving = *moving * past + batch * new;
            }
        }
        variance.iter_mut().for_each(|value| *value += BatchNorm::EPSILON as f32);
        let deviation: Vec<f32> = variance.iter().map(|variance| variance.sqrt()).collect();
        let factors: Vec<f32> =
            self.gamma.values.iter().zip(&deviation).map(|(gamma, d)| gamma / d).collect();
        let mut out = centered.clone();
        for row in out.chunks_exact_mut(outputs) {
            row.iter_mut().zip(&factors).for_each(|(value, factor)| *value *= factor);
        }
        self.tape = NormTape { centered, variance, deviation, factors };
        out
    }

    /// Replaces the gradient of gamma and returns that of the products.
    ///
    /// ```text
    /// out      = centered * factor        factor    = gamma / deviation
    /// variance = mean(centered^2)         deviation = sqrt(variance + epsilon)
    /// centered = product - center         center    = mean(product)
    /// ```
    fn backward(&mut self, upstream: &[f32], rows: usize) -> Vec<f32> {
        let NormTape { centered, variance, deviation, factors } = &self.tape;
        let outputs = factors.len();
        let per_row = 1.0 / rows as f32;

        let by_factor: Vec<f32> = upstream.iter().zip(centered).map(|(g, c)| g * c).collect();
        let by_factor = broadcast_backward(&by_factor, outputs);
        let gammas = self.gamma.values.iter();
        // The factor of each centered value in its gradient through the variance; added twice,
        // since the variance is a product of that value with itself.
        let by_square: Vec<f32> = (gammas.zip(deviation).zip(variance).zip(&by_factor))
            .map(|(((gamma, deviation), variance), by_factor)| {
                let by_deviation = by_factor * (-gamma / (deviation * deviation));
                let by_variance = by_deviation * (variance.powf(-0.5) / 2.0);
                0.0 + by_variance * per_row
            })
            .collect();
        for ((gradient, by_factor), deviation) in
            self.gamma.gradient.iter_mut().zip(&by_factor).zip(deviation)
        {
            *gradient = by_factor * (1.0 / deviation);
        }

        let mut gradient = upstream.to_vec();
        let rows_of_both = gradient.chunks_exact_mut(outputs).zip(centered.chunks_exact(outputs));
        for (gradient, centered) in rows_of_both {
            for (((gradient, centered), factor), by_square) in
                gradient.iter_mut().zip(centered).zip(factors).zip(&by_square)
            {
                let square = by_square * centered;
                *gradient = square + (square + *gradient * factor);
            }
        }

        let negated: Vec<f32> = gradient.iter().map(|gradient| -gradient).collect();
        let by_center = broadcast_backward(&negated, outputs);
        for row in gradient.chunks_exact_mut(outputs) {
            for (gradient, by_center) in row.iter_mut().zip(&by_center) {
                *gradient += 0.0 + by_center * per_row;
            }
        }
        gradient
    }
}
