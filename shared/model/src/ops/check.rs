//! Gradients against finite differences, for the tests of operations.

use candle_core::{Device, Tensor, Var};

/// Compares d(Σ f(x)·w)/dx with central differences; x and f(x) are `[3, 4]`.
#[track_caller]
pub(crate) fn assert_gradient(f: impl Fn(&Tensor) -> Tensor) {
    let start: Vec<f32> = (0..12).map(|i| (i as f32 * 0.7).sin() * 2.0).collect();
    let weights = Tensor::from_vec((0..12).map(|i| (i as f32 * 1.3).cos()).collect(), (3, 4), &Device::Cpu).unwrap();
    assert_slope(&Tensor::from_vec(start, (3, 4), &Device::Cpu).unwrap(), |x| {
        (f(x) * &weights).unwrap().sum_all().unwrap()
    });
}

/// Compares the gradient of a scalar function at `start` with central differences, value by value.
#[track_caller]
pub(crate) fn assert_slope(start: &Tensor, total: impl Fn(&Tensor) -> Tensor) {
    let x = Var::from_tensor(start).unwrap();
    let gradients = total(x.as_tensor()).backward().unwrap();
    let gradient = gradients.get(x.as_tensor()).expect("a gradient").flatten_all().unwrap();
    let start_values = start.flatten_all().unwrap().to_vec1::<f32>().unwrap();
    for (index, ours) in gradient.to_vec1::<f32>().unwrap().into_iter().enumerate() {
        let moved = |by: f32| {
            let mut values = start_values.clone();
            values[index] += by;
            let moved = Tensor::from_vec(values, start.shape(), &Device::Cpu).unwrap();
            f64::from(total(&moved).to_scalar::<f32>().unwrap())
        };
        let slope = (moved(1e-2) - moved(-1e-2)) / 2e-2;
        assert!((f64::from(ours) - slope).abs() < 2e-3, "{index}: {ours} against {slope}");
    }
}
