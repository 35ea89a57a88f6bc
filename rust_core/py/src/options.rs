//! The dict of options as the engine's own struct. Rule: a missing, unknown or mistyped option is named in the ValueError.

use std::cell::Cell;

use pyo3::{exceptions::PyValueError, prelude::*, types::PyDict};
use tidegate_hub::{
    Notice, Notices,
    limits::Caps,
    settings::{OutboxPolicy, Settings},
};
use tidegate_net::{EngineOptions, TlsPem};

pub fn from_python(options: &Bound<'_, PyDict>) -> PyResult<EngineOptions> {
    let named = Named { options, taken: Cell::new(0) };
    let converted = EngineOptions {
        host: named.take("host")?,
        port: named.take("port")?,
        shards: named.take("shards")?,
        http_socket: named.take("http_socket")?,
        caps: caps(&named)?,
        proxy_trusted: named.take("proxy_trusted")?,
        backlog_bytes_max: named.take("backlog_bytes_max")?,
        tls: tls(&named)?,
        settings: settings(&named)?,
    };
    named.refuse_unknown()?;
    Ok(converted)
}

fn caps(named: &Named<'_, '_>) -> PyResult<Caps> {
    Ok(Caps {
        connections_max: named.take("connections_max")?,
        per_address_max: named.take("connections_per_address_max")?,
        per_user_max: named.take("connections_per_user_max")?,
        handshakes_per_s: named.take("handshakes_per_s")?,
    })
}

fn tls(named: &Named<'_, '_>) -> PyResult<Option<TlsPem>> {
    let certificate: Option<Vec<u8>> = named.take("tls_certificate_pem")?;
    let key: Option<Vec<u8>> = named.take("tls_key_pem")?;
    match (certificate, key) {
        (Some(certificate), Some(key)) => Ok(Some(TlsPem { certificate, key })),
        (None, None) => Ok(None),
        _ => Err(PyValueError::new_err("tls_certificate_pem and tls_key_pem come together or not at all")),
    }
}

fn settings(named: &Named<'_, '_>) -> PyResult<Settings> {
    Ok(Settings {
        ws_paths: named.take("ws_paths")?,
        headers: named.take("headers")?,
        upgrade_required_status: named.take("upgrade_required_status")?,
        head_bytes_max: named.take("head_bytes_max")?,
        headers_max: named.take("headers_max")?,
        handshake_ms: named.take("handshake_ms")?,
        proxy_protocol: named.take("proxy_protocol")?,
        message_bytes_max: named.take("message_bytes_max")?,
        fragments_max: named.take("fragments_max")?,
        message_rate: named.take("message_rate")?,
        message_burst: named.take("message_burst")?,
        rate_mark: named.take::<Option<Vec<u8>>>("rate_mark")?.map(Vec::into_boxed_slice),
        auth_ms: named.take("auth_ms")?,
        rooms_max: named.take("rooms_max")?,
        ping_interval_ms: named.take("ping_interval_ms")?,
        pong_timeout_ms: named.take("pong_timeout_ms")?,
        unanswered_pings: named.take("unanswered_pings")?,
        silence_code: named.take("silence_code")?,
        notices: notices(named)?,
        write_timeout_ms: named.take("write_timeout_ms")?,
        close_timeout_ms: named.take("close_timeout_ms")?,
        outbox_bytes_max: named.take("outbox_bytes_max")?,
        outbox_total_max: named.take("outbox_total_max")?,
        outbox_policy: match named.take("outbox_messages_max")? {
            0 => OutboxPolicy::Close,
            messages_max => OutboxPolicy::Drop { messages_max },
        },
        compression: named.take("compression")?,
        compression_bytes_min: named.take("compression_bytes_min")?,
        ..Settings::default()
    })
}

fn notices(named: &Named<'_, '_>) -> PyResult<Vec<Notices>> {
    let dialects: Vec<[Option<Vec<u8>>; 3]> = named.take("notices")?;
    let of = |templates: [Option<Vec<u8>>; 3]| {
        let [excess, silence, farewell] = templates.map(|template| template.map(|bytes| Notice::new(&bytes)));
        Notices { excess, silence, farewell }
    };
    Ok(dialects.into_iter().map(of).collect())
}

struct Named<'a, 'py> {
    options: &'a Bound<'py, PyDict>,
    taken: Cell<usize>,
}

impl<'py> Named<'_, 'py> {
    fn take<T: FromPyObjectOwned<'py>>(&self, name: &str) -> PyResult<T> {
        let value =
            self.options.get_item(name)?.ok_or_else(|| PyValueError::new_err(format!("option {name} is missing")))?;
        self.taken.set(self.taken.get() + 1);
        value.extract().map_err(Into::<PyErr>::into).map_err(|error| {
            let what = error.value(self.options.py());
            PyValueError::new_err(format!("option {name}: {what}"))
        })
    }

    /// Every name was taken once, so a longer dict has a name that nobody knows.
    fn refuse_unknown(&self) -> PyResult<()> {
        if self.options.len() == self.taken.get() {
            return Ok(());
        }
        let names: Vec<String> = self.options.keys().iter().map(|key| key.to_string()).collect();
        Err(PyValueError::new_err(format!(
            "{} options are known, and one of these is not: {}",
            self.taken.get(),
            names.join(", ")
        )))
    }
}
