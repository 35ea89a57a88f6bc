//! Clients that say who they are by a message, and what the hub does for profiles that answer instead of closing.

mod support;

use support::{
    client::{self, PING, PONG, TEXT},
    world::{World, admit},
};
use tidegate_hub::{Command, Event, Notice, Notices, Refusal, Settings, settings::OutboxPolicy};

fn login_world() -> World {
    World::new(Settings { auth_ms: 10_000, ping_interval_ms: 54_000, ..Settings::default() })
}

fn overdue(world: &World) -> usize {
    world.events.iter().filter(|event| matches!(event, Event::Overdue { .. })).count()
}

#[test]
fn who_has_no_user_in_time_is_told_of_once_and_pinged_from_then_on() {
    let mut world = login_world();
    let conn = world.open(&[]);
    world.pass(9_900);
    assert_eq!((overdue(&world), world.frames(conn).len()), (0, 0));
    world.pass(200);
    assert!(matches!(&world.events[..], [Event::Overdue { session, .. }] if **session == *b"session"));
    world.pass(54_100);
    assert_eq!(overdue(&world), 1);
    assert_eq!(world.frames(conn)[0].opcode, PING);
}

#[test]
fn who_gets_a_user_in_time_is_not_told_of() {
    let mut world = login_world();
    let conn = world.open(&[]);
    world.command(Command::User { conn, user: 7 });
    world.pass(53_000);
    assert_eq!((overdue(&world), world.frames(conn).len()), (0, 0));
    world.pass(2_000);
    assert_eq!(world.frames(conn)[0].opcode, PING);
}

#[test]
fn who_is_admitted_with_a_user_needs_no_other() {
    let mut world = login_world();
    let conn = world.upgrade("");
    let Command::Admit { conn, session, rooms, payloads, protocol, close, .. } = admit(conn, &[]) else {
        unreachable!()
    };
    world.command(Command::Admit { conn, session, user: Some(1), rooms, payloads, protocol, close, dialect: 0 });
    world.pass(20_000);
    assert_eq!(overdue(&world), 0);
}

#[test]
fn who_breaks_a_rule_before_it_has_a_user_is_closed_in_time() {
    let mut world = login_world();
    let conn = world.open(&[]);
    world.receive(conn, &[&client::frame(TEXT, b"asks")[..], b"\x81\x02no"].concat());
    world.pass(5_100);
    assert_eq!((overdue(&world), world.frames(conn)[0].close_code()), (0, 1002));
}

#[test]
fn one_unanswered_ping_is_enough_where_the_settings_say_so() {
    let settings =
        Settings { ping_interval_ms: 54_000, pong_timeout_ms: 6_000, unanswered_pings: 1, ..Settings::default() };
    let mut world = World::new(settings);
    let conn = world.open(&[]);
    // the first ping comes after half an interval
    world.pass(27_100);
    assert_eq!(world.frames(conn)[0].opcode, PING);
    world.receive(conn, &client::frame(PONG, b""));
    world.pass(54_000);
    assert!(world.is_open(conn), "it answered");
    assert_eq!(world.frames(conn)[0].opcode, PING);
    world.pass(6_100);
    assert_eq!((world.is_open(conn), world.refused(Refusal::PongTimeout)), (false, 1));
}

fn answering_world(outbox_policy: OutboxPolicy) -> World {
    let notices = vec![Notices { excess: Some(Notice::new(b"slow down")), ..Notices::default() }];
    World::new(Settings { message_rate: 10, message_burst: 3, notices, outbox_policy, ..Settings::default() })
}

fn flood(world: &mut World, count: usize) -> tidegate_hub::ConnId {
    let conn = world.open(&[]);
    world.receive(conn, &client::frame(TEXT, b"x").repeat(count));
    world.settle();
    conn
}

#[test]
fn messages_beyond_the_rate_are_answered_and_never_reach_the_application() {
    let mut world = answering_world(OutboxPolicy::Close);
    let conn = flood(&mut world, 5);
    assert_eq!(world.events.len(), 3);
    assert_eq!(world.texts(conn), ["slow down", "slow down"]);
    assert_eq!((world.is_open(conn), world.refused(Refusal::MessageRate)), (true, 2));
    world.pass(1_000);
    world.receive(conn, &client::frame(TEXT, b"again"));
    assert_eq!(world.events.len(), 4, "later it may go on");
}

#[test]
fn pings_beyond_the_rate_get_no_answer() {
    let mut world = answering_world(OutboxPolicy::Close);
    let conn = world.open(&[]);
    world.receive(conn, &client::frame(PING, b"?").repeat(9));
    world.settle();
    let opcodes: Vec<u8> = world.frames(conn).iter().map(|frame| frame.opcode).collect();
    assert_eq!((opcodes, world.is_open(conn)), (vec![PONG; 3], true));
}

#[test]
fn answers_to_a_flood_are_bounded_like_all_that_is_owed() {
    let mut world = answering_world(OutboxPolicy::Drop { messages_max: 256 });
    let conn = world.open(&[]);
    world.make_room(conn, 0);
    for _ in 0..20 {
        world.receive(conn, &client::frame(TEXT, b"x").repeat(500));
        world.settle();
    }
    assert!(world.hub.stats().outbox_bytes_now < 300 * 20, "{}", world.hub.stats().outbox_bytes_now);
    assert!(world.refused(Refusal::QueueFull) > 9_000);
}
