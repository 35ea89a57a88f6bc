//! Publishing: to members wherever they are, to nobody else, each message once and in order.

use std::sync::atomic::{AtomicU32, Ordering};

use tidegate_net::{Exclude, Order};

use crate::{
    app::{App, options, publish, text},
    client::Client,
};

fn open_many(app: &App, count: usize, query: &str) -> Vec<Client> {
    (0..count).map(|_| Client::open(app.engine.port(), query)).collect()
}

/// Every client hears something for sure, so that what it did not hear before that did not come.
fn mark(app: &App, clients: &mut [Client]) {
    static NUMBER: AtomicU32 = AtomicU32::new(0);
    let mark = format!("mark {}", NUMBER.fetch_add(1, Ordering::Relaxed));
    app.engine.submit(vec![publish("all", mark.as_bytes())]);
    for client in clients {
        assert_eq!(client.text(), mark);
    }
}

#[test]
fn a_publish_reaches_every_member_on_every_shard_and_nobody_else() {
    let app = App::start(options());
    let mut members = open_many(&app, 20, "rooms=all,chat");
    let mut others = open_many(&app, 20, "rooms=all,other");
    app.engine.submit(vec![publish("chat", "one"), publish("nobody is here", "x"), publish("chat", "two")]);
    for member in &mut members {
        assert_eq!((member.text(), member.text()), ("one".into(), "two".into()));
    }
    mark(&app, &mut others);
    mark(&app, &mut members[..0]);
    assert_eq!(app.stat("rooms_now"), 3, "a room on two shards is one room");
}

#[test]
fn who_joins_hears_and_who_leaves_does_not() {
    let app = App::start(options());
    let mut clients = open_many(&app, 8, "rooms=all");
    for client in &mut clients {
        client.say("join chat");
        client.say("done");
        assert_eq!(client.text(), "done");
    }
    app.engine.submit(vec![publish("chat", "hello")]);
    clients.iter_mut().for_each(|client| assert_eq!(client.text(), "hello"));
    for client in &mut clients {
        client.say("leave chat");
        client.say("done");
        assert_eq!(client.text(), "done");
    }
    app.engine.submit(vec![publish("chat", "gone")]);
    mark(&app, &mut clients);
}

#[test]
fn an_excluded_member_hears_nothing_by_its_id_or_its_uuid() {
    let app = App::start(options());
    let mut clients = open_many(&app, 4, "rooms=all,chat");
    clients[0].say("others chat typing");
    for client in &mut clients[1..] {
        assert_eq!(client.text(), "typing");
    }
    let exclude = Exclude::Uuid(clients[1].uuid.clone());
    let stranger = Exclude::Uuid("0f6e3c1a-7a0e-4a0e-9f0e-6a7d2b1c9d10".into());
    app.engine.submit(vec![
        Order::Publish { room: "chat".into(), payload: text("from one"), exclude },
        Order::Publish { room: "chat".into(), payload: text("from a stranger"), exclude: stranger },
    ]);
    for (number, client) in clients.iter_mut().enumerate() {
        if number != 1 {
            assert_eq!(client.text(), "from one");
        }
        assert_eq!(client.text(), "from a stranger");
    }
    mark(&app, &mut clients);
}

#[test]
fn a_room_keeps_the_order_of_its_publishes_over_many_batches() {
    let app = App::start(options());
    let mut members = open_many(&app, 6, "rooms=chat");
    for batch in 0..200 {
        app.engine.submit((0..10).map(|number| publish("chat", format!("{}", batch * 10 + number))).collect());
    }
    for member in &mut members {
        for number in 0..2000 {
            assert_eq!(member.text(), number.to_string());
        }
    }
}

#[test]
fn a_group_larger_than_its_bound_arrives_whole() {
    let app = App::start(options());
    let mut member = Client::open(app.engine.port(), "rooms=chat");
    app.engine.submit((0..20).map(|number| publish("chat", format!("{number:032768}"))).collect());
    for number in 0..20 {
        assert_eq!(member.text(), format!("{number:032768}"));
    }
}
