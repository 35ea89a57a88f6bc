//! The class `Engine` for Python. Rule: each method converts, releases the GIL where the engine may lock or wait, converts back.

use pyo3::{
    exceptions::PyValueError,
    prelude::*,
    types::{PyDict, PyList},
};
use tidegate_bus::ForRoom;
use tidegate_hub::ConnId;
use tidegate_net::Publish;

use crate::{bus, command, error, event, options};

#[pyclass(frozen, module = "tidegate._core")]
pub struct Engine {
    inner: tidegate_net::Engine,
}

#[pymethods]
impl Engine {
    #[new]
    fn new(py: Python<'_>, options: &Bound<'_, PyDict>) -> PyResult<Self> {
        let options = options::from_python(options)?;
        let inner = py.detach(|| tidegate_net::Engine::start(options)).map_err(error::from_start)?;
        Ok(Self { inner })
    }

    #[getter]
    fn port(&self) -> u16 {
        self.inner.port()
    }

    fn fileno(&self) -> i32 {
        self.inner.event_fd()
    }

    fn drain<'py>(&self, py: Python<'py>, limit: usize) -> PyResult<Bound<'py, PyList>> {
        let events = py.detach(|| {
            let mut events = Vec::new();
            self.inner.drain_events(limit, &mut events);
            events
        });
        let list = PyList::empty(py);
        for event in events {
            list.append(event::to_python(py, event)?)?;
        }
        Ok(list)
    }

    fn submit(&self, py: Python<'_>, commands: &Bound<'_, PyAny>) -> PyResult<bool> {
        let mut orders = Vec::with_capacity(commands.len()?);
        for command in commands.try_iter()? {
            let order = command::from_python(&command?, |user| self.inner.user_hash(user))?;
            orders.push(order);
        }
        Ok(py.detach(|| self.inner.submit(orders)))
    }

    /// How many publishes were handed over, which messages are the profile's, and whether the engine is pressed.
    fn publish(
        &self,
        py: Python<'_>,
        messages: &bus::Messages,
        first: usize,
        rule: &bus::Rule,
    ) -> (usize, usize, usize, bool) {
        py.detach(|| {
            let mut found = Vec::with_capacity(messages.inner.len());
            let odd = rule.inner.apply(&messages.inner, first, &mut found);
            let publishes: Vec<Publish<'_>> = found
                .into_iter()
                .map(|ForRoom { room, payload, exclude }| Publish { room, payload, exclude })
                .collect();
            (publishes.len(), odd.start, odd.end, self.inner.publish(&publishes))
        })
    }

    fn pressed(&self) -> bool {
        self.inner.pressed()
    }

    fn claim_user(&self, py: Python<'_>, user: &str) -> bool {
        py.detach(|| self.inner.claim_user(self.inner.user_hash(user)))
    }

    fn uuid(&self, conn: u64) -> String {
        self.inner.uuid(ConnId(conn))
    }

    fn stats<'py>(&self, py: Python<'py>) -> PyResult<Bound<'py, PyDict>> {
        let stats = PyDict::new(py);
        for (name, value) in py.detach(|| self.inner.stats()) {
            stats.set_item(name, value)?;
        }
        Ok(stats)
    }

    fn set_tls(&self, py: Python<'_>, certificate_pem: &[u8], key_pem: &[u8]) -> PyResult<()> {
        py.detach(|| self.inner.set_tls(certificate_pem, key_pem)).map_err(PyValueError::new_err)
    }

    fn begin_drain(&self, py: Python<'_>, within_ms: u64) {
        py.detach(|| self.inner.begin_drain(within_ms));
    }

    fn is_drained(&self, py: Python<'_>) -> bool {
        py.detach(|| self.inner.is_drained())
    }

    fn stop(&self, py: Python<'_>) {
        py.detach(|| self.inner.stop());
    }
}

/// An engine that Python forgets must not serve on.
impl Drop for Engine {
    fn drop(&mut self) {
        self.inner.stop();
    }
}
