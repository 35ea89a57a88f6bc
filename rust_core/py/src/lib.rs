//! Translates: the only crate that knows Python. No logic.
use pyo3::prelude::*;

#[pymodule]
mod _core {}
