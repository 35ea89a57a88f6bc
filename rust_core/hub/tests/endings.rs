//! Last words: to who is silent, and to everybody when the node goes.

mod support;

use std::collections::BTreeSet;

use support::{
    client::{self, CLOSE, PING, TEXT},
    world::{World, admit, text_payload},
};
use tidegate_hub::{Command, ConnId, Event, Notice, Notices, Refusal, Settings, settings::OutboxPolicy};

/// Pinged every ten seconds, and closed two after a ping without an answer.
fn watchful_settings() -> Settings {
    Settings {
        ping_interval_ms: 10_000,
        pong_timeout_ms: 2_000,
        unanswered_pings: 1,
        silence_code: 4408,
        ..Settings::default()
    }
}

fn watchful_world() -> World {
    World::new(watchful_settings())
}

fn opcodes(world: &mut World, conn: ConnId) -> Vec<u8> {
    world.frames(conn).iter().map(|frame| frame.opcode).collect()
}

#[test]
fn who_is_silent_gets_a_close_frame_and_its_time_to_answer() {
    let mut world = watchful_world();
    let (silent, answering) = (world.open(&["room"]), world.open(&[]));
    while world.refused(Refusal::PongTimeout) == 0 {
        world.pass(100);
        if world.frames(answering).iter().any(|frame| frame.opcode == PING) {
            world.receive(answering, &client::frame(client::PONG, b""));
        }
    }
    let frames = world.frames(silent);
    let last = frames.last().unwrap();
    assert_eq!((last.close_code(), &last.payload[2..]), (4408, &b"heartbeat timeout"[..]));
    assert_eq!((world.is_open(silent), world.hub.stats().rooms_now), (true, 0));
    assert!(world.frames(answering).iter().all(|frame| frame.opcode == PING), "who answers is not closed");
    world.pass(5_200);
    assert_eq!((world.is_open(silent), world.closed(silent)), (false, Some(4408)));
}

#[test]
fn who_answers_the_close_frame_after_its_silence_is_gone_at_once() {
    let mut world = watchful_world();
    let conn = world.open(&[]);
    while world.refused(Refusal::PongTimeout) == 0 {
        world.pass(100);
    }
    world.receive(conn, &client::close(4408));
    assert_eq!((world.is_open(conn), world.closed(conn)), (false, Some(4408)));
}

#[test]
fn who_is_silent_and_reads_nothing_either_is_gone_after_the_time_outs() {
    let mut world = watchful_world();
    let conn = world.open(&[]);
    while world.hub.stats().pings == 0 {
        world.pass(100);
    }
    world.make_room(conn, 3);
    world.command(Command::Send { conn, payload: text_payload("never read"), ticket: 0 });
    world.pass(20_000);
    assert_eq!((world.is_open(conn), world.refused(Refusal::PongTimeout), world.closed(conn)), (false, 1, Some(4408)));
    world.hub.check_invariants();
}

fn polite_world(farewell: &str, settings: Settings) -> World {
    let farewell = Some(Notice::new(farewell.as_bytes()));
    World::new(Settings { notices: vec![Notices { farewell, ..Notices::default() }], ..settings })
}

fn drain(world: &mut World, within_ms: u64) {
    world.command(Command::Drain { within_ms });
}

#[test]
fn a_farewell_comes_right_before_the_close_frame_and_after_all_that_was_published() {
    let mut world = polite_world("goodbye", Settings::default());
    let members: Vec<ConnId> = (0..100).map(|_| world.open(&["room"])).collect();
    world.publish_except("room", "last words", None);
    world.hub.handle_command(Command::Drain { within_ms: 10_000 }, world.now);
    world.settle();
    assert_eq!(members.iter().filter(|conn| !world.frames(**conn).is_empty()).count(), 100, "the publish");
    assert!(world.hub.stats().deliveries > 100, "the first is told at once");
    let before = world.hub.stats().broadcasts;
    world.publish("room", "after");
    world.pass(1_100);
    let mut heard = BTreeSet::new();
    for conn in &members[1..] {
        let frames = world.frames(*conn);
        assert_eq!(frames.iter().map(|frame| frame.opcode).collect::<Vec<_>>(), [TEXT, TEXT, CLOSE]);
        heard.insert([0, 1].map(|at| frames[at].text().to_string()));
        assert_eq!(frames[2].close_code(), 1001);
    }
    assert_eq!(heard, BTreeSet::from([["after", "goodbye"].map(String::from)]));
    let stats = world.hub.stats();
    assert_eq!((stats.broadcasts - before, stats.deliveries), (99, 100 + 99 + 100), "a farewell is no broadcast");
}

#[test]
fn each_dialect_has_its_own_last_words_with_the_time_of_the_moment() {
    let notices = |place: &str| {
        let notice = |what: &str| Some(Notice::new(format!("{what} $UNIX_{place}").as_bytes()));
        Notices { excess: notice("excess"), silence: notice("silence"), farewell: notice("farewell") }
    };
    let mut world = World::new(Settings {
        notices: vec![notices("SECONDS"), notices("MILLIS")],
        began_unix_ms: 1_767_225_600_000,
        message_rate: 1,
        message_burst: 1,
        ..watchful_settings()
    });
    let conns = [0, 1, 2].map(|dialect| {
        let conn = world.upgrade("");
        let Command::Admit { conn, session, user, rooms, payloads, protocol, close, .. } = admit(conn, &[]) else {
            unreachable!()
        };
        world.command(Command::Admit { conn, session, user, rooms, payloads, protocol, close, dialect });
        conn
    });
    let began = world.now;
    conns.iter().for_each(|conn| world.receive(*conn, &client::frame(TEXT, b"x").repeat(2)));
    world.settle();
    let at = |now: u64| 1_767_225_600_000 + now;
    assert_eq!(world.texts(conns[0]), [format!("excess {}", at(began) / 1000)]);
    assert_eq!(world.texts(conns[1]), [format!("excess {}", at(began))]);
    let failed = world.events.iter().any(|event| matches!(event, Event::Failed { code: 1008, .. }));
    assert!(failed, "a dialect without notices");

    let silent = conns[0];
    while world.refused(Refusal::PongTimeout) == 0 {
        world.pass(100);
        if world.frames(conns[1]).iter().any(|frame| frame.opcode == PING) {
            world.receive(conns[1], &client::frame(client::PONG, b""));
        }
    }
    let said = world.frames(silent);
    let [.., notice, close] = &said[..] else { panic!("{said:?}") };
    assert_eq!(notice.text(), format!("silence {}", at(world.now) / 1000));
    assert_eq!(close.close_code(), 4408);

    drain(&mut world, 1_000);
    let last = world.frames(conns[1]);
    assert_eq!((last[0].text(), last[1].close_code()), (&*format!("farewell {}", at(world.now)), 1001));
}

#[test]
fn a_farewell_is_bounded_like_all_that_is_owed() {
    let long = "x".repeat(600);
    let mut world = polite_world(&long, Settings { outbox_bytes_max: 1000, ..Settings::default() });
    let slow = world.open(&["room"]);
    world.make_room(slow, 0);
    world.publish("room", &long);
    drain(&mut world, 1_000);
    world.pass(100);
    world.make_room(slow, usize::MAX);
    assert_eq!((world.refused(Refusal::SlowClose), world.frames(slow)[0].close_code()), (1, 1013));

    let outbox_policy = OutboxPolicy::Drop { messages_max: 1 };
    let mut world = polite_world("no room for it", Settings { outbox_policy, ..Settings::default() });
    let slow = world.open(&["room"]);
    world.make_room(slow, 0);
    world.publish("room", "first");
    drain(&mut world, 1_000);
    world.make_room(slow, usize::MAX);
    assert_eq!(world.refused(Refusal::QueueFull), 1);
    assert_eq!(opcodes(&mut world, slow), [TEXT, CLOSE]);
}

#[test]
fn who_is_closing_already_or_not_admitted_gets_no_farewell() {
    let mut world = polite_world("goodbye", Settings::default());
    let (closing, undecided, silent) = (world.open(&[]), world.upgrade(""), world.accept());
    world.command(Command::Close { conn: closing, code: 4000, reason: "".into() });
    drain(&mut world, 1_000);
    world.pass(950);
    assert_eq!(opcodes(&mut world, closing), [CLOSE]);
    for conn in [undecided, silent] {
        assert!(!String::from_utf8_lossy(&world.socket(conn).reader.buf).contains("goodbye"));
    }
}
