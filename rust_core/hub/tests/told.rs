//! What the application is told of what it asked for: where its messages are, and that what it let in has ended.

mod support;

use support::{
    client::{self, TEXT},
    world::{World, admit, text_payload},
};
use tidegate_hub::{Command, ConnId, Effect, Event, Fate, Refusal, Settings, settings::OutboxPolicy};

fn send(world: &mut World, conn: ConnId, ticket: u64) {
    world.command(Command::Send { conn, payload: text_payload("0123456789"), ticket });
}

fn fates(world: &World) -> Vec<(u64, Fate)> {
    let fate = |event: &Event| match event {
        Event::Told { ticket, fate, .. } => Some((*ticket, *fate)),
        _ => None,
    };
    world.events.iter().filter_map(fate).collect()
}

#[test]
fn a_send_with_a_ticket_tells_and_one_without_does_not() {
    let mut world = World::new(Settings::default());
    let conn = world.open(&[]);
    send(&mut world, conn, 0);
    send(&mut world, conn, 7);
    assert!(matches!(&world.events[..], [Event::Told { conn: of, ticket: 7, fate: Fate::Queued }] if *of == conn));
    assert_eq!(world.texts(conn).len(), 2);
}

#[test]
fn who_is_closing_is_gone_or_never_was_is_told_as_gone() {
    let mut world = World::new(Settings::default());
    let (closing, undecided, gone) = (world.open(&[]), world.upgrade(""), world.open(&[]));
    world.command(Command::Close { conn: closing, code: 4000, reason: "".into() });
    world.hub.handle_gone(gone, None, world.now);
    let never = [ConnId::new(3, 999, 5), ConnId(u64::MAX)];
    for (ticket, conn) in (1..).zip([closing, undecided, gone].into_iter().chain(never)) {
        send(&mut world, conn, ticket);
    }
    assert_eq!(fates(&world), (1..=5).map(|ticket| (ticket, Fate::Gone)).collect::<Vec<_>>());
}

#[test]
fn a_message_dropped_from_a_full_outbox_is_told_as_such_and_the_next_that_fits_is_not() {
    let outbox_policy = OutboxPolicy::Drop { messages_max: 2 };
    let mut world = World::new(Settings { outbox_policy, ..Settings::default() });
    let conn = world.open(&[]);
    world.make_room(conn, 0);
    (1..=3).for_each(|ticket| send(&mut world, conn, ticket));
    world.make_room(conn, usize::MAX);
    send(&mut world, conn, 4);
    use Fate::{Full, Queued};
    assert_eq!(fates(&world), [(1, Queued), (2, Queued), (3, Full), (4, Queued)]);
    assert_eq!((world.texts(conn).len(), world.refused(Refusal::QueueFull)), (3, 1));
}

#[test]
fn a_message_dropped_for_its_bytes_is_told_as_such() {
    let outbox_policy = OutboxPolicy::Drop { messages_max: 100 };
    let mut world = World::new(Settings { outbox_policy, outbox_bytes_max: 30, ..Settings::default() });
    let conn = world.open(&[]);
    world.make_room(conn, 0);
    (1..=3).for_each(|ticket| send(&mut world, conn, ticket));
    assert_eq!(fates(&world), [(1, Fate::Queued), (2, Fate::Queued), (3, Fate::Full)]);
}

#[test]
fn a_message_that_makes_its_reader_too_slow_is_told_as_such_and_the_next_as_gone() {
    let mut world = World::new(Settings { outbox_bytes_max: 30, ..Settings::default() });
    let conn = world.open(&[]);
    world.make_room(conn, 0);
    (1..=4).for_each(|ticket| send(&mut world, conn, ticket));
    use Fate::{Full, Gone, Queued};
    assert_eq!(fates(&world), [(1, Queued), (2, Queued), (3, Full), (4, Gone)]);
    world.make_room(conn, usize::MAX);
    assert_eq!(world.frames(conn)[0].close_code(), 1013);
}

fn ends(world: &World, conn: ConnId) -> Vec<(u16, &[u8])> {
    let end = |event: &'_ Event| matches!(event, Event::Closed { conn: of, .. } if *of == conn);
    let told = world.events.iter().filter(|event| end(event));
    told.map(|event| match event {
        Event::Closed { session, code, .. } => (*code, &**session),
        _ => unreachable!(),
    })
    .collect()
}

const MISSED: [(u16, &[u8]); 1] = [(1006, b"session")];

#[test]
fn an_admit_for_one_that_is_gone_is_followed_by_its_end_and_gives_its_joins_back() {
    let mut world = World::new(Settings::default());
    let (left, never) = (world.upgrade(""), ConnId::new(3, 999, 5));
    world.hub.handle_eof(left, world.now);
    world.settle();
    for conn in [left, never] {
        world.effects.clear();
        world.command(admit(conn, &["room"]));
        assert_eq!(ends(&world, conn), MISSED);
        assert_eq!(world.effects, [Effect::Joined { hash: world.keys.room("room") }]);
    }
    world.hub.check_invariants();
}

#[test]
fn an_admit_after_the_time_for_the_handshake_is_followed_by_the_end_while_the_answer_is_still_owed() {
    let mut world = World::new(Settings::default());
    let conn = world.upgrade("");
    world.make_room(conn, 0);
    world.pass(10_100);
    assert!(world.is_open(conn), "the 503 is not read");
    world.command(admit(conn, &[]));
    assert_eq!(ends(&world, conn), MISSED);
    world.pass(20_000);
    assert_eq!((world.is_open(conn), ends(&world, conn).len()), (false, 1));
}

#[test]
fn an_admit_that_the_drain_refuses_is_followed_by_the_end() {
    let mut world = World::new(Settings::default());
    let conn = world.upgrade("");
    world.command(Command::Drain { within_ms: 10_000 });
    world.command(admit(conn, &["room"]));
    assert_eq!(ends(&world, conn), MISSED);
    assert!(world.socket(conn).reader.buf.starts_with(b"HTTP/1.1 503 "));
    world.pass(10_100);
    assert_eq!(ends(&world, conn).len(), 1);
}

#[test]
fn an_admit_that_is_carried_out_is_followed_by_one_end_whichever_way_it_comes() {
    for end in 0..4 {
        let mut world = World::new(Settings::default());
        let conn = world.open(&["room"]);
        match end {
            0 => world.hub.handle_eof(conn, world.now),
            1 => world.hub.handle_gone(conn, Some(Refusal::Panic), world.now),
            2 => world.receive(conn, &client::close(1000)),
            _ => world.command(Command::Drain { within_ms: 100 }),
        }
        world.settle();
        world.pass(20_000);
        assert_eq!(ends(&world, conn).len(), 1, "end {end}");
    }
}

#[test]
fn an_admit_that_answers_no_upgrade_tells_nothing_of_a_connection_that_lives() {
    let mut world = World::new(Settings::default());
    let (early, open) = (world.accept(), world.open(&[]));
    for conn in [early, open] {
        world.command(admit(conn, &[]));
    }
    assert!(world.events.is_empty());
    world.receive(open, &client::frame(TEXT, b"still here"));
    assert!(matches!(world.events[..], [Event::Message { .. }]));
}
