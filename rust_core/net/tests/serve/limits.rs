//! What is refused, with which answer, and that what was taken is given back.

use std::{
    io::{Read, Write},
    net::{Shutdown, TcpStream},
    thread,
};

use tidegate_hub::{Command, ConnId, Event, limits::Caps};
use tidegate_net::{EngineOptions, Order};

use crate::{
    app::{App, admit, events, options, text, until},
    client::{Client, connect, request},
};

fn caps(change: impl FnOnce(&mut Caps)) -> EngineOptions {
    let mut options = options();
    change(&mut options.caps);
    options
}

#[test]
fn over_connections_max_the_answer_is_503_and_a_place_given_back_is_taken_again() {
    let app = App::start(caps(|caps| caps.connections_max = 5));
    for _ in 0..3 {
        let clients: Vec<Client> = (0..5).map(|_| Client::open(app.engine.port(), "")).collect();
        let answer = Client::refused(app.engine.port(), "");
        assert!(answer.starts_with("HTTP/1.1 503 ") && answer.contains("Retry-After: 5\r\n"), "{answer}");
        assert!(answer.ends_with("{\"error\":\"max_connections\"}"), "{answer}");
        drop(clients);
        app.await_stat("connections_now", 0);
    }
    app.await_stat("refused.max_connections", 3);
}

#[test]
fn an_upgrade_given_up_before_the_decision_gives_its_place_back() {
    let app = App::silent(caps(|caps| caps.connections_max = 1));
    for _ in 0..3 {
        let mut stream = connect(app.engine.port());
        stream.write_all(request("").as_bytes()).unwrap();
        until("the upgrade is told", || app.stat("events_queued_now") > 0);
        app.engine.drain_events(10, &mut Vec::new());
        drop(stream);
        app.await_stat("handshakes_now", 0);
    }
    assert_eq!(app.stat("refused.max_connections"), 0);
}

#[test]
fn too_many_connections_of_one_address_are_refused_until_one_ends() {
    let app = App::start(caps(|caps| caps.per_address_max = 3));
    let mut clients: Vec<Client> = (0..3).map(|_| Client::open(app.engine.port(), "")).collect();
    let mut answer = String::new();
    connect(app.engine.port()).read_to_string(&mut answer).unwrap();
    assert!(answer.starts_with("HTTP/1.1 429 ") && answer.contains("max_connections_per_address"), "{answer}");
    drop(clients.pop());
    app.await_stat("connections_now", 2);
    clients.push(Client::open(app.engine.port(), ""));
    app.await_stat("refused.max_connections_per_address", 1);
}

#[test]
fn too_many_connections_of_one_user_are_refused_and_other_users_are_not() {
    let app = App::start(caps(|caps| caps.per_user_max = 2));
    let port = app.engine.port();
    let mut clients = vec![Client::open(port, "user=ann&rooms=chat"), Client::open(port, "user=ann&rooms=chat")];
    let answer = Client::refused(port, "user=ann&rooms=chat");
    assert!(
        answer.starts_with("HTTP/1.1 429 ") && answer.ends_with("{\"error\":\"max_connections_per_user\"}"),
        "{answer}"
    );
    clients.push(Client::open(port, "user=bob"));
    drop(clients.remove(0));
    app.await_stat("connections_now", 2);
    clients.push(Client::open(port, "user=ann"));
    app.await_stat("refused.max_connections_per_user", 1);
    assert_eq!(app.stat("refused.application"), 0, "the application refused nobody");
}

#[test]
fn more_handshakes_than_a_second_may_see_get_503_and_a_second_to_wait() {
    let app = App::start(caps(|caps| caps.handshakes_per_s = 1));
    let mut answers = (0..5).filter_map(|_| Client::over(connect(app.engine.port()), "").err());
    let answer = answers.next().expect("five handshakes in a second were let in");
    assert!(answer.starts_with("HTTP/1.1 503 ") && answer.contains("Retry-After: 1\r\n"), "{answer}");
}

#[test]
fn a_refused_client_that_goes_on_sending_still_reads_its_answer() {
    let mut options = options();
    options.settings.head_bytes_max = 1024;
    let app = App::start(options);
    let mut stream = connect(app.engine.port());
    let endless = format!("GET /ws HTTP/1.1\r\nX: {}", "x".repeat(40_000));
    stream.write_all(endless.as_bytes()).unwrap();
    let mut answer = String::new();
    stream.read_to_string(&mut answer).unwrap();
    assert!(answer.starts_with("HTTP/1.1 431 "), "{answer}");
}

fn proxied(trusted: &str) -> App {
    let mut options = caps(|caps| caps.per_address_max = 1);
    options.settings.proxy_protocol = true;
    options.proxy_trusted = vec![trusted.into()];
    App::start(options)
}

fn from(port: u16, address: &str) -> Result<Client, String> {
    let mut stream = connect(port);
    stream.write_all(format!("PROXY TCP4 {address} 192.0.2.200 40000 443\r\n").as_bytes()).unwrap();
    Client::over(stream, "")
}

#[test]
fn behind_a_trusted_proxy_the_address_it_names_is_what_counts() {
    let app = proxied("127.0.0.0/8");
    let port = app.engine.port();
    let first = from(port, "192.0.2.1").unwrap_or_else(|answer| panic!("the first of its address: {answer}"));
    let _second = from(port, "192.0.2.2").unwrap_or_else(|answer| panic!("another address, same proxy: {answer}"));
    let answer = from(port, "192.0.2.1").err().expect("a second connection of one address");
    assert!(answer.starts_with("HTTP/1.1 429 "), "{answer}");
    drop(first);
    app.await_stat("connections_now", 1);
    assert!(from(port, "192.0.2.1").is_ok());
}

#[test]
fn a_peer_that_is_no_trusted_proxy_is_closed_and_counted() {
    let app = proxied("10.0.0.0/8");
    let mut stream = TcpStream::connect(("127.0.0.1", app.engine.port())).unwrap();
    assert!(matches!(stream.read(&mut [0]), Ok(0) | Err(_)));
    let _ = stream.shutdown(Shutdown::Both);
    app.await_stat("refused.proxy", 1);
}

#[test]
fn options_that_cannot_be_are_named() {
    let mut wrong = options();
    wrong.proxy_trusted = vec!["10.0.0.0/99".into()];
    let error = tidegate_net::Engine::start(wrong).err().unwrap().to_string();
    assert!(error.contains("proxy_trusted") && error.contains("10.0.0.0/99"), "{error}");
    let error = tidegate_net::Engine::start(EngineOptions { shards: 1 << 20, ..options() }).err().unwrap().to_string();
    assert!(error.contains("shards"), "{error}");
}

/// A client whose application is the test, and what the engine calls it.
fn admitted(app: &App) -> (Client, ConnId) {
    let port = app.engine.port();
    let client = thread::spawn(move || Client::open(port, ""));
    loop {
        for event in events(&app.engine) {
            if let Event::Upgrade { conn, target, .. } = event {
                app.engine.submit(vec![admit(&app.engine, conn, &target)]);
                return (client.join().unwrap(), conn);
            }
        }
    }
}

fn order(app: &App, command: Command) {
    app.engine.submit(vec![Order::Command(command)]);
}

#[test]
fn who_becomes_a_user_later_counts_as_one_until_it_ends_or_becomes_another() {
    let app = App::silent(caps(|caps| caps.per_user_max = 1));
    let (client, conn) = admitted(&app);
    let [ann, bob] = ["ann", "bob"].map(|user| app.engine.user_hash(user));
    assert!(app.engine.claim_user(ann) && !app.engine.claim_user(ann));
    order(&app, Command::User { conn, user: ann });
    assert!(app.engine.claim_user(bob));
    order(&app, Command::User { conn, user: bob });
    until("ann is on no connection any more", || app.engine.claim_user(ann));
    drop(client);
    until("bob is on none either", || app.engine.claim_user(bob));
}

#[test]
fn a_claim_for_a_connection_that_is_gone_is_given_back() {
    let app = App::silent(caps(|caps| caps.per_user_max = 1));
    let (client, conn) = admitted(&app);
    drop(client);
    app.await_stat("connections_now", 0);
    let ann = app.engine.user_hash("ann");
    assert!(app.engine.claim_user(ann));
    order(&app, Command::User { conn, user: ann });
    until("the claim is given back", || app.engine.claim_user(ann));
}

#[test]
fn a_held_connection_is_not_read_and_nothing_is_missing_when_it_is_let_go() {
    let app = App::silent(options());
    let (mut client, conn) = admitted(&app);
    order(&app, Command::Hold { conn, on: true });
    let payload = text("held");
    order(&app, Command::Send { conn, payload, ticket: 0 });
    assert_eq!(client.text(), "held", "orders are carried out in order, so the hold was");
    (0..50).for_each(|number| client.say(format!("{number}")));
    let heard = events(&app.engine);
    assert!(heard.is_empty() && app.stat("messages_in") == 0, "{heard:?}");
    order(&app, Command::Hold { conn, on: false });
    let mut said = Vec::new();
    until("all is read", || app.stat("messages_in") == 50);
    while said.len() < 50 {
        for event in events(&app.engine) {
            let Event::Message { payload, .. } = event else { panic!("{event:?}") };
            said.push(String::from_utf8(payload.into()).unwrap());
        }
    }
    assert_eq!(said, (0..50).map(|number| number.to_string()).collect::<Vec<_>>());
}
