use burn::tensor::{DType, Device, Tensor, TensorData, activation::relu};

use super::optimizer::OptimizerState;
use super::{DenseWeights, TrainError};

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
}

/// The gradients of a batch, in the order kernel, bias of the first layer, then of the next.
pub(super) struct Gradients(Vec<Tensor<2>>);

impl Network {
    pub(super) fn new(layers: &[DenseWeights]) -> Self {
        // The CPU and f32, whatever other code of this process makes the default of the library.
        let device = Device::flex();
        let layers = layers
            .iter()
            .map(|layer| Layer {
                kernel: tensor(&device, layer.kernel.clone(), [layer.inputs, layer.outputs]),
                bias: tensor(&device, layer.bias.clone(), [1, layer.outputs]),
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
        let logits = forward(&self.layers, input, None);
        read(logits)
    }

    /// The gradients of a batch and what `loss` made of its logits.
    ///
    /// `mask`, `[rows, units]`, is multiplied with the output of the hidden layer. `loss` maps the
    /// logits to their gradient, which is propagated back, and anything else it wants to return.
    pub(super) fn gradients<T>(
        &self,
        features: Vec<f32>,
        rows: usize,
        mask: Option<Vec<f32>>,
        loss: impl FnOnce(Vec<f32>) -> Result<(Vec<f32>, T), TrainError>,
    ) -> Result<(Gradients, T), TrainError> {
        let tracked = |tensor: &Tensor<2>| tensor.clone().autodiff().require_grad();
        let layers: Vec<Layer> = self
            .layers
            .iter()
            .map(|layer| Layer { kernel: tracked(&layer.kernel), bias: tracked(&layer.bias) })
            .collect();
        // The features do not require gradients, which spares a product as large as the two that
        // are needed.
        let input = self.input(features, rows).autodiff();
        let mask = mask.map(|mask| {
            let units = mask.len() / rows;
            tensor(&self.device, mask, [rows, units]).autodiff()
        });
        let logits = forward(&layers, input, mask);
        let shape = logits.dims();
        let (upstream, outcome) = loss(read(logits.clone().inner())?)?;
        // The gradient of sum(logits * upstream) by the logits is `upstream`.
        let upstream = tensor(&self.device, upstream, shape).autodiff();
        let mut gradients = (logits * upstream).sum().backward();
        let gradients = layers
            .iter()
            .flat_map(Layer::tensors)
            .map(|weights| weights.grad_remove(&mut gradients))
            .collect::<Option<Vec<_>>>()
            .ok_or_else(|| TrainError::backend("a tensor of weights has no gradient"))?;
        Ok((Gradients(gradients), outcome))
    }

    /// Steps all weights.
    pub(super) fn update(self, gradients: Gradients, optimizer: &mut OptimizerState) -> Result<Self, TrainError> {
        let Self { layers, device } = self;
        optimizer.begin_step();
        let mut gradients = gradients.0.into_iter().enumerate();
        let mut step = |weights: Tensor<2>| {
            let (index, gradient) = gradients.next().ok_or_else(|| TrainError::backend("gradients are missing"))?;
            let mut weights = data(weights)?;
            let gradient = data(gradient)?;
            optimizer.update(
                index,
                weights.as_mut_slice().map_err(TrainError::backend)?,
                gradient.as_slice().map_err(TrainError::backend)?,
            );
            Ok::<_, TrainError>(Tensor::from_data(weights, (&device, DType::F32)))
        };
        let layers = layers
            .into_iter()
            .map(|layer| Ok(Layer { kernel: step(layer.kernel)?, bias: step(layer.bias)? }))
            .collect::<Result<_, TrainError>>()?;
        Ok(Self { layers, device })
    }

    /// A copy of the weights.
    pub(super) fn weights(&self) -> Result<Vec<DenseWeights>, TrainError> {
        self.layers
            .iter()
            .map(|layer| {
                let [inputs, outputs] = layer.kernel.dims();
                Ok(DenseWeights {
                    inputs,
                    outputs,
                    kernel: read(layer.kernel.clone())?,
                    bias: read(layer.bias.clone())?,
                })
            })
            .collect()
    }

    fn input(&self, features: Vec<f32>, rows: usize) -> Tensor<2> {
        let dim = features.len() / rows;
        tensor(&self.device, features, [rows, dim])
    }
}

impl Layer {
    fn tensors(&self) -> [&Tensor<2>; 2] {
        [&self.kernel, &self.bias]
    }

    fn forward(&self, input: Tensor<2>) -> Tensor<2> {
        input.matmul(self.kernel.clone()) + self.bias.clone()
    }
}

fn forward(layers: &[Layer], input: Tensor<2>, mask: Option<Tensor<2>>) -> Tensor<2> {
    let mut hidden = input;
    for (index, layer) in layers.iter().enumerate() {
        if index > 0 {
            hidden = relu(hidden);
            if let Some(mask) = &mask {
                hidden = hidden * mask.clone();
            }
        }
        hidden = layer.forward(hidden);
    }
    hidden
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
