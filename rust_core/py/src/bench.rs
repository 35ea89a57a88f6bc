//! The limit program and the load generator, for `tidegate bench`: whoever has the wheel can measure, with no compiler and no source.
//!
//! Rule: each is meant for a process of its own (`python -m tidegate.bench.limit`), because it sets an alarm that ends the process.

use pyo3::{exceptions::PyRuntimeError, prelude::*};

#[pyfunction]
pub fn run_limit(py: Python<'_>, arguments: Vec<String>) -> PyResult<()> {
    py.detach(|| tidegate_limit::run(arguments.into_iter())).map_err(PyRuntimeError::new_err)
}

#[pyfunction]
pub fn run_loadgen(py: Python<'_>, arguments: Vec<String>) -> PyResult<()> {
    py.detach(|| tidegate_loadgen::run(arguments.into_iter())).map_err(PyRuntimeError::new_err)
}
