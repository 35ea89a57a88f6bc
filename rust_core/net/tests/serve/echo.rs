//! One client at a time: what it sends comes back, and its end is noticed.

use std::io::{Read, Write};

use tidegate_hub::Event;
use tidegate_net::Engine;

use crate::{
    app::{App, events, options, until},
    client::{CLOSE, Client, connect, frame, read_head, request},
};

#[test]
fn a_message_comes_back_whole_whatever_its_size() {
    let app = App::start(options());
    let mut client = Client::open(app.engine.port(), "");
    for len in [0, 1, 125, 126, 65_535, 65_536] {
        let message = "x".repeat(len);
        client.say(&message);
        assert_eq!(client.text(), message);
    }
}

#[test]
fn messages_that_come_byte_by_byte_or_many_at_once_come_back_in_order() {
    let app = App::start(options());
    let mut client = Client::open(app.engine.port(), "");
    for byte in frame(1, b"slow") {
        client.stream.write_all(&[byte]).unwrap();
    }
    let many: Vec<u8> = (0..2000).flat_map(|number| frame(1, format!("number {number}").as_bytes())).collect();
    client.stream.write_all(&many).unwrap();
    assert_eq!(client.text(), "slow");
    for number in 0..2000 {
        assert_eq!(client.text(), format!("number {number}"));
    }
}

#[test]
fn many_clients_are_spread_over_the_shards_and_each_gets_its_own() {
    let app = App::start(options());
    let mut clients: Vec<Client> = (0..100).map(|_| Client::open(app.engine.port(), "")).collect();
    clients.iter_mut().enumerate().for_each(|(number, client)| client.say(format!("I am {number}")));
    for (number, client) in clients.iter_mut().enumerate() {
        assert_eq!(client.text(), format!("I am {number}"));
    }
    app.await_stat("connections_now", 100);
}

#[test]
fn a_close_by_the_application_reaches_the_client_with_its_code() {
    let app = App::start(options());
    let mut client = Client::open(app.engine.port(), "");
    client.say("close 4001");
    assert_eq!(client.close_code(), 4001);
    client.stream.write_all(&frame(CLOSE, &4001u16.to_be_bytes())).unwrap();
    assert_eq!(client.stream.read(&mut [0]).unwrap(), 0, "then the connection ends");
    app.await_stat("connections_now", 0);
}

#[test]
fn a_client_that_vanishes_is_told_to_the_application_once() {
    let app = App::silent(options());
    let mut stream = connect(app.engine.port());
    stream.write_all(request("session=mine").as_bytes()).unwrap();
    let conn = loop {
        if let Some(Event::Upgrade { conn, target, .. }) = events(&app.engine).pop() {
            app.engine.submit(vec![crate::app::admit(&app.engine, conn, &target)]);
            break conn;
        }
    };
    assert!(read_head(&mut stream).starts_with("HTTP/1.1 101 "));
    drop(stream);
    let mut seen = Vec::new();
    until("closed", || app.stat("connections_now") == 0);
    while seen.is_empty() {
        seen = events(&app.engine);
    }
    assert!(
        matches!(&seen[..], [Event::Closed { conn: of, code: 1006, session }] if *of == conn && session.ends_with(b"session=mine"))
    );
}

#[test]
fn a_draining_engine_closes_everybody_with_1001_and_is_then_drained() {
    let app = App::start(options());
    let mut clients: Vec<Client> = (0..10).map(|_| Client::open(app.engine.port(), "")).collect();
    assert!(!app.engine.is_drained());
    app.engine.begin_drain(100);
    for client in &mut clients {
        assert_eq!(client.close_code(), 1001);
        client.stream.write_all(&frame(CLOSE, &1001u16.to_be_bytes())).unwrap();
    }
    assert!(Client::refused(app.engine.port(), "").starts_with("HTTP/1.1 503 "));
    drop(clients);
    until("drained", || app.engine.is_drained());
}

#[test]
fn a_stopped_engine_frees_its_port_and_ignores_orders() {
    let app = App::start(options());
    let port = app.engine.port();
    let mut client = Client::open(port, "");
    app.engine.stop();
    assert!(client.try_frame().is_err());
    assert!(!app.engine.submit(vec![crate::app::publish("room", "x")]));
    let again = Engine::start(tidegate_net::EngineOptions { port, ..options() });
    assert_eq!(again.unwrap().port(), port);
}

#[test]
fn a_port_in_use_is_an_error_although_shards_share_theirs() {
    let app = App::start(options());
    let port = app.engine.port();
    let error = Engine::start(tidegate_net::EngineOptions { port, ..options() }).err().unwrap().to_string();
    assert!(error.contains(&format!("port {port} is in use")), "{error}");
}
