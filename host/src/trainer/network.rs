use burn::tensor::{DType, Device, Tensor, TensorData, activation::relu};

use super::optimizer::OptimizerState;
use super::{BatchNorm, DenseWeights, TrainError};

/// The weights being trained, and the computations that need matrix products.
///
/// The layers hold the only handle to their tensors between steps. So the backend hands out its
/// buffers instead of copies (two megabytes for a head of 2048 to 256), and a step can change them
/// in place.
pub(super) struct Network {
    layers: Vec<Layer>,
    device: Device,
}

struct Layer {
    /// `[inputs, outputs]`
    kernel: Tensor<2>,
    /// `[1, outputs]`, so that it can be added to a batch as it is.
    bias: Tensor<2>,
    norm: Option<Norm>,
}

/// [`BatchNorm`] with the trained part as a tensor, `[1, outputs]`.
struct Norm {
    gamma: Tensor<2>,
    mean: Vec<f32>,
    variance: Vec<f32>,
}

/// The gradients of a batch, in the order kernel, bias, gamma (if any) of the first layer, then of the next; and for each layer with batch
/// normalisation mean and variance of the batch.
pub(super) struct Gradients {
    tensors: Vec<Tensor<2>>,
    moments: Vec<[Tensor<2>; 2]>,
}

impl Network {
    pub(super) fn new(layers: &[DenseWeights]) -> Self {
        // The CPU and f32, whatever other code of this process makes the default of the library.
        let device = Device::flex();
        let layers = layers
            .iter()
            .map(|layer| Layer {
                kernel: tensor(&device, layer.kernel.clone(), [layer.inputs, layer.outputs]),
                bias: tensor(&device, layer.bias.clone(), [1, layer.outputs]),
                norm: layer.norm.clone().map(|BatchNorm { gamma, mean, variance }| Norm {
                    gamma: tensor(&device, gamma, [1, layer.outputs]),
                    mean,
                    variance,
                }),
            })
            .collect();
        Self { layers, device }
    }

    /// The number of weights in each tensor, in the order of [`Gradients`].
    pub(super) fn lengths(&self) -> Vec<usize> {
        let tensors = self.layers.iter().flat_map(Layer::tensors);
        tensors.map(|tensor| tensor.dims().iter().product()).collect()
    }

    /// The logits, `[rows, outputs]`, for `features`, `[rows, dim]`.
    pub(super) fn logits(&self, features: Vec<f32>, rows: usize) -> Result<Vec<f32>, TrainError> {
        let input = self.input(features, rows);
        let mut hidden = input;
        for (index, layer) in self.layers.iter().enumerate() {
            if index > 0 {
                hidden = relu(hidden);
            }
            hidden = hidden.matmul(layer.kernel.clone());
            if let Some(Norm { gamma, mean, variance }) = &layer.norm {
                let (mean, variance) = (mean.clone(), variance.clone());
                let norm = BatchNorm { gamma: read(gamma.clone())?, mean, variance };
                let factors: Vec<f32> = norm.factors().map(|factor| factor as f32).collect();
                let shape = [1, factors.len()];
                hidden = (hidden - tensor(&self.device, norm.mean, shape))
                    * tensor(&self.device, factors, shape);
            }
            hidden = hidden + layer.bias.clone();
        }
        read(hidden)
    }

    /// The gradients of a batch and what `loss` made of its logits.
    ///
    /// `masks`, one of `[rows, units]` for each hidden layer, are multiplied with the outputs of these; there are none without dropout.
    /// Batch normalisation goes by mean and variance of the batch. `loss` maps the
    /// logits to their gradient, which is propagated back, and anything else it wants to return.
    pub(super) fn gradients<T>(
        &self,
        features: Vec<f32>,
        rows: usize,
        masks: Vec<Vec<f32>>,
        loss: impl FnOnce(Vec<f32>) -> Result<(Vec<f32>, T), TrainError>,
    ) -> Result<(Gradients, T), TrainError> {
        let tracked = |tensor: &Tensor<2>| tensor.clone().autodiff().require_grad();
        let layers: Vec<Layer> = self
            .layers
            .iter()
            .map(|layer| Layer {
                kernel: tracked(&layer.kernel),
                bias: tracked(&layer.bias),
                norm: layer.norm.as_ref().map(|norm| Norm {
                    gamma: tracked(&norm.gamma),
                    mean: Vec::new(),
                    variance: Vec::new(),
                }),
            })
            .collect();
        // The features do not require gradients, which spares a product as large as the two that
        // are needed.
        let input = self.input(features, rows).autodiff();
        let mut masks = masks.into_iter().map(|mask| {
            let units = mask.len() / rows;
            tensor(&self.device, mask, [rows, units]).autodiff()
        });
        let mut moments = Vec::new();
        let mut logits = input;
        for (index, layer) in layers.iter().enumerate() {
            if index > 0 {
                logits = relu(logits);
                if let Some(mask) = masks.next() {
                    logits = logits * mask;
                }
            }
            logits = logits.matmul(layer.kernel.clone());
            if let Some(norm) = &layer.norm {
                let mean = |tensor: Tensor<2>| tensor.sum_dim(0).div_scalar(rows as f32);
                let centre = mean(logits.clone());
                let centred = logits - centre.clone();
                let variance = mean(centred.clone() * centred.clone());
                moments.push([centre.inner(), variance.clone().inner()]);
                let deviation = variance.add_scalar(BatchNorm::EPSILON as f32).sqrt();
                logits = centred * (norm.gamma.clone() / deviation);
            }
            logits = logits + layer.bias.clone();
        }
        let shape = logits.dims();
        let (upstream, outcome) = loss(read(logits.clone().inner())?)?;
        // The gradient of sum(logits * upstream) by the logits is `upstream`.
        let upstream = tensor(&self.device, upstream, shape).autodiff();
        let mut gradients = (logits * upstream).sum().backward();
        let tensors = layers
            .iter()
            .flat_map(Layer::tensors)
            .map(|weights| weights.grad_remove(&mut gradients))
            .collect::<Option<Vec<_>>>()
            .ok_or_else(|| TrainError::backend("a tensor of weights has no gradient"))?;
        Ok((Gradients { tensors, moments }, outcome))
    }

    /// Steps all weights, and moves the moving means of batch normalisation.
    ///
    /// Gives the penalty on the kernels before the step: `l2` times the sum of their squares, whose gradient is added to that of the loss.
    pub(super) fn update(
        self,
        gradients: Gradients,
        optimizer: &mut OptimizerState,
        l2: f64,
    ) -> Result<(Self, f64), TrainError> {
        let Self { layers, device } = self;
        optimizer.begin_step();
        let mut moments = gradients.moments.into_iter();
        let mut gradients = gradients.tensors.into_iter().enumerate();
        let mut penalty = 0.0;
        let mut step = |weights: Tensor<2>, l2: f64| {
            let (index, gradient) =
                gradients.next().ok_or_else(|| TrainError::backend("gradients are missing"))?;
            let mut weights = data(weights)?;
            let mut gradient = data(gradient)?;
            let values = weights.as_mut_slice().map_err(TrainError::backend)?;
            let slopes = gradient.as_mut_slice::<f32>().map_err(TrainError::backend)?;
            if l2 > 0.0 {
                penalty += l2 * sum_of_squares(values);
                let factor = (2.0 * l2) as f32;
                slopes
                    .iter_mut()
                    .zip(&*values)
                    .for_each(|(slope, weight)| *slope += factor * weight);
            }
            optimizer.update(index, values, slopes);
            Ok::<_, TrainError>(Tensor::from_data(weights, (&device, DType::F32)))
        };
        let layers = layers
            .into_iter()
            .map(|Layer { kernel, bias, norm }| {
                let (kernel, bias) = (step(kernel, l2)?, step(bias, 0.0)?);
                let norm = match norm {
                    Some(Norm { gamma, mut mean, mut variance }) => {
                        let gamma = step(gamma, 0.0)?;
                        let batch = moments
                            .next()
                            .ok_or_else(|| TrainError::backend("moments are missing"))?;
                        for (moving, batch) in [&mut mean, &mut variance].into_iter().zip(batch) {
                            for (moving, value) in moving.iter_mut().zip(read(batch)?) {
                                *moving = *moving * BatchNorm::MOMENTUM as f32
                                    + value * (1.0 - BatchNorm::MOMENTUM) as f32;
                            }
                        }
                        Some(Norm { gamma, mean, variance })
                    }
                    None => None,
                };
                Ok(Layer { kernel, bias, norm })
            })
            .collect::<Result<_, TrainError>>()?;
        Ok((Self { layers, device }, penalty))
    }

    /// A copy of the weights.
    pub(super) fn weights(&self) -> Result<Vec<DenseWeights>, TrainError> {
        self.layers
            .iter()
            .map(|layer| {
                let [inputs, outputs] = layer.kernel.dims();
                let norm = match &layer.norm {
                    Some(Norm { gamma, mean, variance }) => {
                        let (mean, variance) = (mean.clone(), variance.clone());
                        Some(BatchNorm { gamma: read(gamma.clone())?, mean, variance })
                    }
                    None => None,
                };
                let (kernel, bias) = (read(layer.kernel.clone())?, read(layer.bias.clone())?);
                Ok(DenseWeights { inputs, outputs, kernel, bias, norm })
            })
            .collect()
    }

    fn input(&self, features: Vec<f32>, rows: usize) -> Tensor<2> {
        let dim = features.len() / rows;
        tensor(&self.device, features, [rows, dim])
    }
}

impl Layer {
    fn tensors(&self) -> impl Iterator<Item = &Tensor<2>> {
        [&self.kernel, &self.bias].into_iter().chain(self.norm.as_ref().map(|norm| &norm.gamma))
    }
}

/// In eight interleaved sums, so that it is vectorised and always adds in the same order.
pub(super) fn sum_of_squares(values: &[f32]) -> f64 {
    let mut sums = [0.0f64; 8];
    for chunk in values.chunks(8) {
        for (sum, &value) in sums.iter_mut().zip(chunk) {
            *sum += f64::from(value) * f64::from(value);
        }
    }
    sums.iter().sum()
}

fn tensor(device: &Device, values: Vec<f32>, shape: [usize; 2]) -> Tensor<2> {
    Tensor::from_data(TensorData::new(values, shape), (device, DType::F32))
}

fn data(tensor: Tensor<2>) -> Result<TensorData, TrainError> {
    tensor.try_into_data().map_err(TrainError::backend)
}

fn read(tensor: Tensor<2>) -> Result<Vec<f32>, TrainError> {
    let data = data(tensor)?;
    Ok(data.as_slice().map_err(TrainError::backend)?.to_vec())
}
