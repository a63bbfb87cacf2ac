//! Pooling of maps in training, channels last. A gradient goes to the first of equal maxima, as in
//! TensorFlow.

use vgg_edge::head::Pool;

use super::conv::MapShape;

/// 2x2 max pooling with stride 2 of any number of images; an odd last row or column is left out.
/// Returns the maxima and which of the four each is, in the order of reading.
pub(super) fn max_pool(map: &[f32], shape: MapShape) -> (Vec<f32>, Vec<u8>) {
    let channels = shape[2];
    let windows = windows(map.len(), shape);
    let mut out = vec![0.0; windows.len() * channels];
    let mut largest = vec![0; out.len()];
    let cells = out.chunks_exact_mut(channels).zip(largest.chunks_exact_mut(channels));
    for ((out, largest), window) in cells.zip(windows) {
        out.copy_from_slice(&map[window[0]..window[0] + channels]);
        for (number, &first) in (1..).zip(&window[1..]) {
            let values = &map[first..first + channels];
            for ((out, largest), &value) in out.iter_mut().zip(&mut *largest).zip(values) {
                if value > *out || value.is_nan() {
                    (*out, *largest) = (value, number);
                }
            }
        }
    }
    (out, largest)
}

/// The gradient by the map that [`max_pool`] was given.
pub(super) fn max_pool_backward(upstream: &[f32], largest: &[u8], shape: MapShape) -> Vec<f32> {
    let [height, width, channels] = shape;
    let images = upstream.len() / ((height / 2) * (width / 2) * channels).max(1);
    let mut gradient = vec![0.0; images * height * width * channels];
    let windows = windows(gradient.len(), shape);
    let cells = upstream.chunks_exact(channels).zip(largest.chunks_exact(channels));
    for ((upstream, largest), window) in cells.zip(windows) {
        for (channel, (value, &number)) in upstream.iter().zip(largest).enumerate() {
            gradient[window[usize::from(number)] + channel] = *value;
        }
    }
    gradient
}

/// For each window of 2x2 pixels where their first channels are.
fn windows(
    values: usize,
    [height, width, channels]: MapShape,
) -> impl ExactSizeIterator<Item = [usize; 4]> {
    let (rows, columns) = (height / 2, width / 2);
    let images = values / (height * width * channels);
    (0..images * rows * columns).map(move |window| {
        let (image, place) = (window / (rows * columns), window % (rows * columns));
        let (y, x) = (place / columns * 2, place % columns * 2);
        let first = (image * height + y) * width + x;
        [first, first + 1, first + width, first + width + 1].map(|pixel| pixel * channels)
    })
}

/// The features that a head takes from the maps of a batch.
pub(super) struct Pooled {
    /// `[images, features]`
    pub(super) features: Vec<f32>,
    /// For [`Pool::Max`]: the place of each.
    largest: Vec<usize>,
}

/// Values of a map that a head takes.
pub(super) fn features_of(pool: Pool, [height, width, channels]: MapShape) -> usize {
    match pool {
        Pool::Flatten => height * width * channels,
        Pool::Avg | Pool::Max => channels,
    }
}

/// Pools whole maps.
pub(super) fn pool_all(map: Vec<f32>, pool: Pool, [height, width, channels]: MapShape) -> Pooled {
    let places = height * width;
    let images = map.len() / (places * channels);
    let mut features = vec![0.0; images * channels];
    let mut largest = Vec::new();
    let pairs = features.chunks_exact_mut(channels).zip(map.chunks_exact(places * channels));
    match pool {
        // The order of Keras is the order in memory.
        Pool::Flatten => return Pooled { features: map, largest },
        Pool::Avg => {
            for (features, map) in pairs {
                for pixel in map.chunks_exact(channels) {
                    features.iter_mut().zip(pixel).for_each(|(sum, value)| *sum += value);
                }
                features.iter_mut().for_each(|sum| *sum /= places as f32);
            }
        }
        Pool::Max => {
            largest = vec![0; images * channels];
            for ((features, map), largest) in pairs.zip(largest.chunks_exact_mut(channels)) {
                features.copy_from_slice(&map[..channels]);
                for (place, pixel) in map.chunks_exact(channels).enumerate() {
                    for ((best, at), &value) in features.iter_mut().zip(&mut *largest).zip(pixel) {
                        if value > *best || value.is_nan() {
                            (*best, *at) = (value, place);
                        }
                    }
                }
            }
        }
    }
    Pooled { features, largest }
}

/// The gradient by the maps that [`pool_all`] was given.
pub(super) fn pool_all_backward(
    upstream: Vec<f32>,
    pooled: &Pooled,
    pool: Pool,
    [height, width, channels]: MapShape,
) -> Vec<f32> {
    if pool == Pool::Flatten {
        return upstream;
    }
    let places = height * width;
    let mut gradient = vec![0.0; upstream.len() * places];
    let images = gradient.chunks_exact_mut(places * channels);
    for (image, (gradient, upstream)) in images.zip(upstream.chunks_exact(channels)).enumerate() {
        if pool == Pool::Max {
            let largest = &pooled.largest[image * channels..][..channels];
            for (channel, (value, place)) in upstream.iter().zip(largest).enumerate() {
                gradient[place * channels + channel] = *value;
            }
        } else {
            for pixel in gradient.chunks_exact_mut(channels) {
                for (gradient, value) in pixel.iter_mut().zip(upstream) {
                    *gradient = value / places as f32;
                }
            }
        }
    }
    gradient
}
