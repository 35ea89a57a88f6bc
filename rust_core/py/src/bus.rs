//! What comes from the bus without a Python object a message: `Intake`, `Messages`, `Rule`. No logic.

use pyo3::{prelude::*, types::PyBytes};

#[pyclass(frozen, module = "tidegate._core")]
pub struct Messages {
    pub inner: tidegate_bus::Messages,
}

#[pymethods]
impl Messages {
    fn __len__(&self) -> usize {
        self.inner.len()
    }

    #[getter]
    fn payload_bytes(&self) -> usize {
        self.inner.payload_bytes()
    }

    #[getter]
    fn last(&self) -> u64 {
        self.inner.last().unwrap_or(0)
    }

    /// Subject, payload and sequence of one.
    fn get<'py>(&self, py: Python<'py>, index: usize) -> Option<(String, Bound<'py, PyBytes>, u64)> {
        let message = self.inner.get(index)?;
        let subject = String::from_utf8_lossy(message.subject).into_owned();
        Some((subject, PyBytes::new(py, message.payload), message.sequence))
    }

    fn acknowledgements<'py>(&self, py: Python<'py>) -> Bound<'py, PyBytes> {
        PyBytes::new(py, &self.inner.acknowledgements())
    }
}

#[pyclass(frozen, module = "tidegate._core")]
pub struct Rule {
    pub inner: tidegate_bus::Rule,
}

#[pymethods]
impl Rule {
    #[new]
    fn new(room: &str, user: &str, exclude: &str, user_rooms: Vec<String>) -> Self {
        Self { inner: tidegate_bus::Rule::new(room, user, exclude, &user_rooms) }
    }
}

type Seen = (Vec<Messages>, u64, u64, u64, u64, Option<u64>);

#[pyclass(module = "tidegate._core")]
#[derive(Default)]
pub struct Intake {
    inner: tidegate_bus::Intake,
}

#[pymethods]
impl Intake {
    #[new]
    fn new() -> Self {
        Self::default()
    }

    fn watch(&mut self, sid: u64, first: u64, last: u64) {
        self.inner.watch(sid, first, last);
    }

    fn forget(&mut self, sid: u64) {
        self.inner.forget(sid);
    }

    fn take<'py>(&mut self, py: Python<'py>, data: &[u8]) -> (Bound<'py, PyBytes>, Vec<u64>) {
        let mut rest = Vec::new();
        self.inner.take(data, &mut rest);
        (PyBytes::new(py, &rest), self.inner.touched().collect())
    }

    /// The batches, then what the fields of `State` say.
    fn arrived(&mut self, sid: u64) -> Option<Seen> {
        let state = self.inner.state(sid)?;
        let batches = std::iter::from_fn(|| self.inner.next(sid)).map(|inner| Messages { inner }).collect();
        Some((batches, state.received, state.expected, state.pending, state.unreadable, state.gap))
    }
}
