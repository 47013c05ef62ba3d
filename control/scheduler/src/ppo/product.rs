//! Matrix products for learning.
//!
//! Candle splits a product over the machine's cores whatever its size, and counts these anew each
//! time. A batch is a few milliseconds of products of some 100 µs, and the threads of the learner
//! have a batch each: the splitting took four times as long as the products. These stay on the
//! thread that asks for them, and take no gradient of what is constant.

use candle_core::{CpuStorage, CustomOp2, Layout, Result, Shape, Tensor, bail};
use ndarray::linalg::general_mat_mul;
use ndarray::{ArrayView2, ArrayViewMut2, ShapeBuilder as _};

/// `a · b` of matrices, or of each matrix of two stacks of them.
pub(super) fn product(a: &Tensor, b: &Tensor) -> Result<Tensor> {
    a.apply_op2(b, Product { constant: false })
}

/// The same where `a` is data, which no gradient is taken of.
pub(super) fn product_of_data(a: &Tensor, b: &Tensor) -> Result<Tensor> {
    a.apply_op2(b, Product { constant: true })
}

struct Product {
    constant: bool,
}

/// A stack of matrices of one shape in one slice.
struct Stack<'a> {
    values: &'a [f32],
    count: usize,
    skip: usize,
    shape: (usize, usize),
    strides: (usize, usize),
}

impl<'a> Stack<'a> {
    fn new(storage: &'a CpuStorage, layout: &Layout) -> Result<Self> {
        let values = &storage.as_slice::<f32>()?[layout.start_offset()..];
        let (count, skip, shape, strides) = match (layout.dims(), layout.stride()) {
            ([rows, columns], [s, t]) => (1, 0, (*rows, *columns), (*s, *t)),
            ([count, rows, columns], [u, s, t]) => (*count, *u, (*rows, *columns), (*s, *t)),
            (dims, _) => bail!("a product of {dims:?}"),
        };
        Ok(Self {
            values,
            count,
            skip,
            shape,
            strides,
        })
    }

    fn matrix(&self, number: usize) -> Result<ArrayView2<'a, f32>> {
        let values = self.values.get(number * self.skip..).unwrap_or_default();
        ArrayView2::from_shape(self.shape.strides(self.strides), values)
            .map_err(candle_core::Error::wrap)
    }
}

impl CustomOp2 for Product {
    fn name(&self) -> &'static str {
        "product"
    }

    fn cpu_fwd(
        &self,
        s1: &CpuStorage,
        l1: &Layout,
        s2: &CpuStorage,
        l2: &Layout,
    ) -> Result<(CpuStorage, Shape)> {
        let (a, b) = (Stack::new(s1, l1)?, Stack::new(s2, l2)?);
        let ((rows, inner), (inner_too, columns)) = (a.shape, b.shape);
        if inner != inner_too || a.count != b.count || l1.dims().len() != l2.dims().len() {
            bail!("a product of {:?} and {:?}", l1.dims(), l2.dims());
        }
        let size = rows * columns;
        let mut out = vec![0.0_f32; a.count * size];
        for number in 0..a.count {
            let part = &mut out[number * size..(number + 1) * size];
            let mut part = ArrayViewMut2::from_shape((rows, columns), part)
                .map_err(candle_core::Error::wrap)?;
            general_mat_mul(1.0, &a.matrix(number)?, &b.matrix(number)?, 0.0, &mut part);
        }
        let mut dims = l1.dims().to_vec();
        if let Some(last) = dims.last_mut() {
            *last = columns;
        }
        Ok((CpuStorage::F32(out), dims.into()))
    }

    fn bwd(
        &self,
        a: &Tensor,
        b: &Tensor,
        _: &Tensor,
        gradient: &Tensor,
    ) -> Result<(Option<Tensor>, Option<Tensor>)> {
        let of_a = if self.constant {
            None
        } else {
            Some(gradient.apply_op2_no_bwd(&b.t()?, self)?)
        };
        Ok((of_a, Some(a.t()?.apply_op2_no_bwd(gradient, self)?)))
    }
}

#[cfg(test)]
mod tests {
    use candle_core::{Device, Var};

    use super::*;

    fn numbers(dims: &[usize], seed: u64) -> Var {
        let mut random =
            super::super::random::Stream::new(seed, super::super::random::Purpose::Weights, 0, 0);
        let count = dims.iter().product();
        let values: Vec<f32> = (0..count).map(|_| random.normal() as f32).collect();
        Var::from_slice(&values, dims, &Device::Cpu).unwrap()
    }

    fn flat(tensor: &Tensor) -> Vec<f32> {
        tensor.flatten_all().unwrap().to_vec1().unwrap()
    }

    fn assert_close(a: &Tensor, b: &Tensor) {
        assert_eq!(a.dims(), b.dims());
        for (a, b) in flat(a).iter().zip(flat(b)) {
            assert!((a - b).abs() < 1e-4, "{a} {b}");
        }
    }

    #[test]
    fn products_and_their_gradients_are_those_of_candle() {
        for (left, right) in [
            (vec![70, 33], vec![33, 9]),
            (vec![5, 7, 48], vec![5, 48, 1]),
        ] {
            let (a, b) = (numbers(&left, 1), numbers(&right, 2));
            let (ours, theirs) = (product(&a, &b).unwrap(), a.matmul(&b).unwrap());
            assert_close(&ours, &theirs);
            let ours = ours.sqr().unwrap().backward().unwrap();
            let theirs = theirs.sqr().unwrap().backward().unwrap();
            for variable in [&a, &b] {
                assert_close(ours.get(variable).unwrap(), theirs.get(variable).unwrap());
            }
        }
    }

    #[test]
    fn transposed_and_cut_matrices_are_read_by_their_strides() {
        let (a, b) = (numbers(&[9, 12], 3), numbers(&[5, 8], 4));
        let a = a.narrow(1, 2, 8).unwrap();
        let b = b.t().unwrap();
        assert_close(&product(&a, &b).unwrap(), &a.matmul(&b).unwrap());
    }

    #[test]
    fn data_has_no_gradient_and_shapes_must_fit() {
        let (a, b) = (numbers(&[4, 3], 5), numbers(&[3, 2], 6));
        let gradients = product_of_data(&a, &b).unwrap().backward().unwrap();
        assert!(gradients.get(&a).is_none() && gradients.get(&b).is_some());
        assert!(product(&b, &a).is_err());
    }
}
