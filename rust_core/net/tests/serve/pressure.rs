//! More than somebody can take: members, Python, one client; the others go on and nothing is lost in silence.

use std::{io::Write, thread};

use tidegate_hub::Event;

use crate::{
    app::{App, events, options, publish, text, until},
    client::{Client, TEXT, connect, frame, read_head, request},
};

#[test]
fn a_member_that_never_reads_is_closed_and_the_others_get_everything() {
    let mut options = options();
    options.settings.outbox_bytes_max = 256 * 1024;
    // it does not read the close frame either
    options.settings.write_timeout_ms = 500;
    let app = App::start(options);
    let _stalled = Client::open(app.engine.port(), "rooms=chat");
    let mut reader = Client::open(app.engine.port(), "rooms=chat");
    let message = "x".repeat(16 * 1024);
    for _ in 0..2000 {
        app.engine.submit(vec![publish("chat", message.as_bytes())]);
        assert_eq!(reader.text().len(), message.len());
    }
    app.await_stat("refused.slow_close", 1);
    app.await_stat("connections_now", 1);
    reader.say("still here");
    assert_eq!(reader.text(), "still here");
}

#[test]
fn pressure_is_told_while_a_shard_is_behind_and_the_eventfd_tells_its_end() {
    let mut options = options();
    options.backlog_bytes_max = 1024 * 1024;
    // nobody is too slow, however often the shards are done before this thread has asked
    options.settings.outbox_bytes_max = 1 << 40;
    options.settings.outbox_total_max = 1 << 40;
    options.settings.write_timeout_ms = 60_000;
    let app = App::start(options);
    let clients: Vec<Client> = (0..20).map(|_| Client::open(app.engine.port(), "rooms=chat")).collect();
    let batch = || (0..64).map(|_| publish("chat", vec![b'x'; 64 * 1024])).collect();
    let mut batches = 1;
    while !app.engine.submit(batch()) {
        batches += 1;
        assert!(batches < 200, "pressure was never told");
    }
    let readers: Vec<_> = clients
        .into_iter()
        .map(|mut client| {
            thread::spawn(move || (0..batches * 64).for_each(|_| assert_eq!(client.text().len(), 64 * 1024)))
        })
        .collect();
    until("the pressure ends", || !app.engine.pressed());
    readers.into_iter().for_each(|reader| reader.join().unwrap());
}

#[test]
fn when_python_is_behind_clients_wait_and_no_message_is_lost() {
    let app = App::silent(options());
    let mut stream = connect(app.engine.port());
    stream.write_all(request("").as_bytes()).unwrap();
    let mut told = Vec::new();
    while told.is_empty() {
        told = events(&app.engine);
    }
    let Some(Event::Upgrade { conn, target, .. }) = told.pop() else { panic!("no upgrade") };
    app.engine.submit(vec![crate::app::admit(&app.engine, conn, &target)]);
    assert!(read_head(&mut stream).starts_with("HTTP/1.1 101 "));
    const MESSAGES: usize = 300_000;
    let sender = thread::spawn(move || {
        for number in 0..MESSAGES {
            stream.write_all(&frame(TEXT, &(number as u32).to_be_bytes().map(|byte| byte & 0x7f))).unwrap();
        }
        stream
    });
    until("the queue is full", || app.stat("events_queued_now") >= 16_384);
    let mut next = 0;
    while next < MESSAGES {
        for event in events(&app.engine) {
            let Event::Message { payload, .. } = event else { panic!("{event:?}") };
            assert_eq!(payload[..], (next as u32).to_be_bytes().map(|byte| byte & 0x7f));
            next += 1;
        }
    }
    drop(sender.join());
}

#[test]
fn a_giant_room_does_not_keep_a_small_one_waiting_for_all_of_it() {
    let app = App::start(options());
    let giants: Vec<Client> = (0..300).map(|_| Client::open(app.engine.port(), "rooms=giant")).collect();
    let mut small = Client::open(app.engine.port(), "rooms=small");
    let mut orders: Vec<_> = (0..50).map(|_| publish("giant", vec![b'x'; 2000])).collect();
    orders.push(publish("small", "me too"));
    app.engine.submit(orders);
    assert_eq!(small.text(), "me too");
    for mut client in giants {
        (0..50).for_each(|_| assert_eq!(client.text().len(), 2000));
    }
}

#[test]
fn messages_for_a_client_that_is_gone_are_ignored() {
    let app = App::silent(options());
    let mut stream = connect(app.engine.port());
    stream.write_all(request("").as_bytes()).unwrap();
    let mut told = Vec::new();
    while told.is_empty() {
        told = events(&app.engine);
    }
    let Some(Event::Upgrade { conn, target, .. }) = told.pop() else { panic!("no upgrade") };
    drop(stream);
    app.await_stat("handshakes_now", 0);
    let mut orders = vec![crate::app::admit(&app.engine, conn, &target)];
    orders.push(tidegate_net::Order::Command(tidegate_hub::Command::Send { conn, payload: text("late"), ticket: 0 }));
    orders.push(tidegate_net::Order::Command(tidegate_hub::Command::Leave {
        conn: tidegate_hub::ConnId(u64::MAX),
        room: "x".into(),
    }));
    app.engine.submit(orders);
    assert_eq!(app.stat("connections_now"), 0);
}
