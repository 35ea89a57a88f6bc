//! TLS on the same port: WebSocket, plain HTTP, a new certificate, and those who do not speak it.

use std::{
    io::{Read, Write},
    net::TcpStream,
    sync::Arc,
};

use rustls::{
    ClientConfig, ClientConnection, RootCertStore, StreamOwned,
    crypto::ring,
    pki_types::{CertificateDer, pem::PemObject},
};
use tidegate_net::{EngineOptions, TlsPem};

use crate::{
    app::{App, options, publish},
    client::{Client, connect, read_head},
    http::{app_socket, respond},
};

type TlsStream = StreamOwned<ClientConnection, TcpStream>;

fn pem() -> TlsPem {
    let made = rcgen::generate_simple_self_signed(["localhost".to_owned()]).unwrap();
    TlsPem { certificate: made.cert.pem().into_bytes(), key: made.signing_key.serialize_pem().into_bytes() }
}

fn start(pem: &TlsPem) -> App {
    let http_socket = app_socket(|_, stream| respond(stream, "fine"));
    App::start(EngineOptions { tls: Some(pem.clone()), http_socket, ..options() })
}

/// A client that trusts this certificate and no other.
fn trusting(pem: &TlsPem, stream: TcpStream) -> TlsStream {
    let mut roots = RootCertStore::empty();
    roots.add(CertificateDer::from_pem_slice(&pem.certificate).unwrap()).unwrap();
    let builder = ClientConfig::builder_with_provider(Arc::new(ring::default_provider()));
    let config =
        builder.with_safe_default_protocol_versions().unwrap().with_root_certificates(roots).with_no_client_auth();
    StreamOwned::new(ClientConnection::new(Arc::new(config), "localhost".try_into().unwrap()).unwrap(), stream)
}

fn open(app: &App, pem: &TlsPem, query: &str) -> Client<TlsStream> {
    Client::over(trusting(pem, connect(app.engine.port())), query).unwrap_or_else(|answer| panic!("refused: {answer}"))
}

#[test]
fn a_websocket_works_over_tls_whatever_the_size_of_its_messages() {
    let pem = pem();
    let app = start(&pem);
    let mut client = open(&app, &pem, "rooms=chat");
    for len in [0, 1, 16_384, 65_536] {
        let message = "t".repeat(len);
        client.say(&message);
        assert_eq!(client.text(), message);
    }
    app.engine.submit((0..100).map(|number| publish("chat", format!("{number:010000}"))).collect());
    for number in 0..100 {
        assert_eq!(client.text(), format!("{number:010000}"));
    }
}

#[test]
fn a_close_over_tls_is_told_by_tls_too() {
    let pem = pem();
    let app = start(&pem);
    let mut client = open(&app, &pem, "");
    client.say("close 4002");
    assert_eq!(client.close_code(), 4002);
    client.stream.write_all(&crate::client::frame(8, &4002u16.to_be_bytes())).unwrap();
    // without a close_notify rustls calls this an error
    assert_eq!(client.stream.read(&mut [0]).unwrap(), 0);
}

#[test]
fn plain_http_requests_over_tls_reach_the_app() {
    let pem = pem();
    let app = start(&pem);
    let mut stream = trusting(&pem, connect(app.engine.port()));
    for _ in 0..2 {
        stream.write_all(b"GET /health HTTP/1.1\r\nHost: x\r\n\r\n").unwrap();
        assert!(read_head(&mut stream).starts_with("HTTP/1.1 200 OK"));
        let mut body = [0; 4];
        stream.read_exact(&mut body).unwrap();
        assert_eq!(&body, b"fine");
    }
}

#[test]
fn who_does_not_speak_tls_is_counted_and_costs_nobody_else() {
    let pem = pem();
    let app = start(&pem);
    let mut client = open(&app, &pem, "");
    let mut stream = connect(app.engine.port());
    stream.write_all(b"GET /ws HTTP/1.1\r\n\r\n").unwrap();
    let mut answer = Vec::new();
    drop(stream.read_to_end(&mut answer));
    assert!(!answer.starts_with(b"HTTP"));
    app.await_stat("refused.tls", 1);
    client.say("still here");
    assert_eq!(client.text(), "still here");
}

#[test]
fn a_new_certificate_is_shown_to_newcomers_and_old_connections_live_on() {
    let (old, new) = (pem(), pem());
    let app = start(&old);
    let mut early = open(&app, &old, "");
    let error = app.engine.set_tls(&new.certificate, &old.key).unwrap_err();
    assert!(error.contains("does not belong"), "{error}");
    drop(open(&app, &old, ""));
    app.engine.set_tls(&new.certificate, &new.key).unwrap();
    drop(open(&app, &new, ""));
    early.say("still here");
    assert_eq!(early.text(), "still here");
}

#[test]
fn tls_cannot_be_switched_on_while_clients_are_served() {
    let app = App::start(options());
    let pem = pem();
    assert!(app.engine.set_tls(&pem.certificate, &pem.key).unwrap_err().contains("restart"));
}

#[test]
fn a_proxy_header_comes_before_tls() {
    let pem = pem();
    let mut options = EngineOptions { tls: Some(pem.clone()), proxy_trusted: vec!["127.0.0.1".into()], ..options() };
    options.settings.proxy_protocol = true;
    let app = App::start(options);
    let mut stream = connect(app.engine.port());
    for part in [&b"PROXY TCP4 192.0.2.1 "[..], b"192.0.2.2 1 2\r\n"] {
        stream.write_all(part).unwrap();
    }
    let mut client = Client::over(trusting(&pem, stream), "").unwrap_or_else(|answer| panic!("refused: {answer}"));
    client.say("hello");
    assert_eq!(client.text(), "hello");
    let mut stream = connect(app.engine.port());
    stream.write_all(b"\x16\x03\x01 no header").unwrap();
    drop(stream.read(&mut [0]));
    app.await_stat("refused.proxy", 1);
}
