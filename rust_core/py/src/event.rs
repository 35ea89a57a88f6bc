//! Events from the engine as tuples for Python; their shapes are in `python/tidegate/engine.py`.

use pyo3::{
    IntoPyObjectExt,
    prelude::*,
    types::{PyBytes, PyTuple},
};
use tidegate_hub::Event;

const UPGRADE: u8 = 1;
const MESSAGE: u8 = 2;
const CLOSED: u8 = 3;
const FAILED: u8 = 4;
const OVERDUE: u8 = 5;
const TOLD: u8 = 6;

pub const NAMES: [(&str, u8); 6] = [
    ("UPGRADE", UPGRADE),
    ("MESSAGE", MESSAGE),
    ("CLOSED", CLOSED),
    ("FAILED", FAILED),
    ("OVERDUE", OVERDUE),
    ("TOLD", TOLD),
];

pub fn to_python<'py>(py: Python<'py>, event: Event) -> PyResult<Bound<'py, PyAny>> {
    match event {
        Event::Message { conn, session, payload, text } => {
            let session = PyBytes::new(py, &session);
            let payload = PyBytes::new(py, &payload);
            (MESSAGE, conn.0, session, payload, text).into_bound_py_any(py)
        }
        Event::Upgrade { conn, peer, target, headers } => {
            let values = headers.iter().map(|value| value.as_ref().map(|bytes| PyBytes::new(py, bytes)));
            let values = PyTuple::new(py, values)?;
            let target = PyBytes::new(py, &target);
            (UPGRADE, conn.0, peer.to_string(), target, values).into_bound_py_any(py)
        }
        Event::Closed { conn, session, code } => {
            (CLOSED, conn.0, PyBytes::new(py, &session), code).into_bound_py_any(py)
        }
        Event::Overdue { conn, session } => (OVERDUE, conn.0, PyBytes::new(py, &session)).into_bound_py_any(py),
        Event::Failed { conn, code, reason } => (FAILED, conn.0, code, reason).into_bound_py_any(py),
        Event::Told { conn, ticket, fate } => (TOLD, conn.0, ticket, fate as u8).into_bound_py_any(py),
    }
}
