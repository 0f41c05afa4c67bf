//! Tensors as slices, and new values without a first pass of zeros.

use crate::{Error, Result};
use candle_core::{CpuStorage, Device, Shape, Storage, StorageRef, Tensor};
use std::mem::MaybeUninit;
use std::ops::Deref;

/// The float32 values of a tensor in row-major order: borrowed if it is contiguous, else gathered.
pub struct Values<'a> {
    storage: Option<StorageRef<'a>>,
    start: usize,
    end: usize,
    gathered: Vec<f32>,
}

impl<'a> Values<'a> {
    /// The values of `tensor`, row-major.
    pub fn of(tensor: &'a Tensor) -> Result<Self> {
        let (storage, layout) = tensor.storage_and_layout();
        match (&*storage, layout.contiguous_offsets()) {
            (Storage::Cpu(CpuStorage::F32(_)), Some((start, end))) => {
                Ok(Self { storage: Some(storage), start, end, gathered: Vec::new() })
            }
            (Storage::Cpu(CpuStorage::F32(_)), None) => {
                drop(storage);
                let gathered = tensor.flatten_all()?.to_vec1::<f32>()?;
                Ok(Self { storage: None, start: 0, end: gathered.len(), gathered })
            }
            _ => Err(not_float(tensor)),
        }
    }

    /// The whole storage behind `tensor`, whatever its layout: index it by the layout's offset and strides.
    pub fn storage_of(tensor: &'a Tensor) -> Result<Self> {
        let (storage, _) = tensor.storage_and_layout();
        let end = match &*storage {
            Storage::Cpu(CpuStorage::F32(values)) => values.len(),
            _ => return Err(not_float(tensor)),
        };
        Ok(Self { storage: Some(storage), start: 0, end, gathered: Vec::new() })
    }
}

impl Deref for Values<'_> {
    type Target = [f32];

    fn deref(&self) -> &[f32] {
        match self.storage.as_deref() {
            Some(Storage::Cpu(CpuStorage::F32(values))) => &values[self.start..self.end],
            _ => &self.gathered,
        }
    }
}

fn not_float(tensor: &Tensor) -> Error {
    Error::invalid(format!(
        "expected a float32 tensor on the CPU, got {:?} on {:?}",
        tensor.dtype(),
        tensor.device()
    ))
}

/// A tensor of `values`, `shape`.
pub fn tensor(values: Vec<f32>, shape: impl Into<Shape>) -> Result<Tensor> {
    Ok(Tensor::from_vec(values, shape.into(), &Device::Cpu)?)
}

/// New values written by `write`.
///
/// # Safety
/// `write` must initialise every element that it is given.
pub unsafe fn written(count: usize, write: impl FnOnce(&mut [MaybeUninit<f32>])) -> Vec<f32> {
    let mut values = Vec::with_capacity(count);
    write(&mut values.spare_capacity_mut()[..count]);
    // SAFETY: the capacity is there, and the caller promises that `write` initialised it.
    unsafe { values.set_len(count) };
    values
}

/// A mutable slice that several tasks write disjoint parts of.
pub struct Shared<T>(*mut T, usize);

// SAFETY: a `Shared` only hands out ranges through `range`, whose caller promises that they do not overlap.
unsafe impl<T: Send> Sync for Shared<T> {}

impl<T> Shared<T> {
    /// Shares `slice` for as long as the caller keeps it borrowed.
    pub fn new(slice: &mut [T]) -> Self {
        Self(slice.as_mut_ptr(), slice.len())
    }

    /// Its elements.
    pub fn len(&self) -> usize {
        self.1
    }

    /// Part of the slice.
    ///
    /// # Safety
    /// The slice must still be borrowed mutably by whoever made this, and no two live ranges may overlap.
    #[allow(clippy::mut_from_ref)]
    pub unsafe fn range(&self, start: usize, len: usize) -> &mut [T] {
        assert!(start.checked_add(len).is_some_and(|end| end <= self.1));
        // SAFETY: in bounds by the assertion, unique by the caller's promise.
        unsafe { std::slice::from_raw_parts_mut(self.0.add(start), len) }
    }

    /// The element at `start`, for kernels that write with a stride from there.
    pub fn pointer(&self, start: usize) -> *mut T {
        assert!(start <= self.1);
        self.0.wrapping_add(start)
    }
}
