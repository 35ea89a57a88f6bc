//! Commands for connections that are not there: what the application learns of them, over threads and shards.

use std::{
    io::Write,
    net::TcpStream,
    time::{Duration, Instant},
};

use tidegate_hub::{Command, ConnId, Event, Fate, Notice, Notices, event::ABNORMAL};
use tidegate_net::Order;

use crate::{
    app::{App, admit, events, options, text},
    client::{CLOSE, Client, TEXT, connect, read_head, request},
};

/// Events until one is as wanted; they are bounded in time, not in number.
fn await_event<T>(app: &App, wanted: impl Fn(&Event) -> Option<T>) -> T {
    let deadline = Instant::now() + Duration::from_secs(20);
    while Instant::now() < deadline {
        if let Some(found) = events(&app.engine).iter().find_map(&wanted) {
            return found;
        }
    }
    panic!("the event never came");
}

/// A client that has asked to be upgraded.
fn asking(app: &App, query: &str) -> (TcpStream, ConnId) {
    let mut stream = connect(app.engine.port());
    stream.write_all(request(query).as_bytes()).unwrap();
    let conn = await_event(app, |event| match event {
        Event::Upgrade { conn, .. } => Some(*conn),
        _ => None,
    });
    (stream, conn)
}

fn end_of(app: &App, conn: ConnId) -> (Box<[u8]>, u16) {
    await_event(app, |event| match event {
        Event::Closed { conn: of, session, code } if *of == conn => Some((session.clone(), *code)),
        _ => None,
    })
}

fn order_admit(app: &App, conn: ConnId, target: &str) {
    app.engine.submit(vec![admit(&app.engine, conn, target.as_bytes())]);
}

#[test]
fn who_left_before_it_was_admitted_is_told_as_closed() {
    let app = App::silent(options());
    let (stream, conn) = asking(&app, "");
    drop(stream);
    app.await_stat("handshakes_now", 0);
    order_admit(&app, conn, "/ws?rooms=chat");
    assert_eq!(end_of(&app, conn), (Box::from(*b"/ws?rooms=chat"), ABNORMAL));
    assert_eq!((app.stat("connections_now"), app.stat("rooms_now")), (0, 0));
}

#[test]
fn who_is_refused_for_its_user_is_told_as_closed_and_the_room_keeps_nobody() {
    let mut options = options();
    options.caps.per_user_max = 1;
    let app = App::silent(options);
    let [(mut first, one), (mut second, two)] = [0; 2].map(|_| asking(&app, ""));
    order_admit(&app, one, "/ws?user=ann");
    assert!(read_head(&mut first).starts_with("HTTP/1.1 101 "));
    order_admit(&app, two, "/ws?user=ann&rooms=chat");
    assert!(read_head(&mut second).starts_with("HTTP/1.1 429 "));
    assert_eq!(end_of(&app, two), (Box::from(*b"/ws?user=ann&rooms=chat"), ABNORMAL));
    assert_eq!((app.stat("refused.max_connections_per_user"), app.stat("rooms_now")), (1, 0));
    drop(first);
    assert_eq!(end_of(&app, one).1, ABNORMAL);
}

#[test]
fn a_connection_of_no_shard_is_told_as_gone_and_as_closed() {
    let app = App::silent(options());
    for conn in [ConnId(u64::MAX), ConnId::new(1, 7, 7)] {
        let send = |ticket| Order::Command(Command::Send { conn, payload: text("x"), ticket });
        app.engine.submit(vec![send(0), send(5)]);
        let told = await_event(&app, |event| match event {
            Event::Told { conn: of, ticket, fate } => Some((*of, *ticket, *fate)),
            _ => None,
        });
        assert_eq!(told, (conn, 5, Fate::Gone));
        order_admit(&app, conn, "/ws");
        assert_eq!(end_of(&app, conn), (Box::from(*b"/ws"), ABNORMAL));
    }
}

#[test]
fn a_message_that_is_sent_is_told_as_queued() {
    let app = App::silent(options());
    let (mut stream, conn) = asking(&app, "");
    order_admit(&app, conn, "/ws");
    app.engine.submit(vec![Order::Command(Command::Send { conn, payload: text("hello"), ticket: 9 })]);
    let told = await_event(&app, |event| match event {
        Event::Told { ticket, fate, .. } => Some((*ticket, *fate)),
        _ => None,
    });
    assert_eq!(told, (9, Fate::Queued));
    assert!(read_head(&mut stream).starts_with("HTTP/1.1 101 "));
}

#[test]
fn a_farewell_reaches_the_clients_of_every_shard_before_their_close_frames() {
    let mut options = options();
    let farewell = Some(Notice::new(b"we are going"));
    options.settings.notices = vec![Notices { farewell, ..Notices::default() }];
    let app = App::start(options);
    let mut clients: Vec<Client> = (0..10).map(|_| Client::open(app.engine.port(), "")).collect();
    app.engine.begin_drain(500);
    for client in &mut clients {
        assert_eq!(client.frame(), (TEXT, b"we are going".to_vec()));
        assert_eq!(client.frame().0, CLOSE);
    }
}

#[test]
fn a_close_code_for_silence_that_must_not_be_sent_is_refused_by_name() {
    let mut wrong = options();
    wrong.settings.silence_code = 1006;
    let error = tidegate_net::Engine::start(wrong).err().unwrap().to_string();
    assert!(error.contains("silence_code 1006"), "{error}");
}
