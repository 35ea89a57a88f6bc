//! Which Python exception an engine error becomes: the caller's mistakes are ValueError, the machine's refusals OSError.

use pyo3::{
    PyErr,
    exceptions::{PyOSError, PyValueError},
};
use tidegate_net::StartError;

pub fn from_start(error: StartError) -> PyErr {
    match error {
        StartError::Option(what) => PyValueError::new_err(what),
        // errno first, as OSError wants it: Python picks the subclass by it
        StartError::Os { what, error } => {
            let errno = error.raw_os_error().unwrap_or(0);
            PyOSError::new_err((errno, format!("{what}: {error}")))
        }
    }
}
