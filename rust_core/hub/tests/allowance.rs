//! What a client may send where only some messages count in full: those with the mark in them.

mod support;

use support::{
    client::{self, BINARY, PING, PONG, TEXT},
    world::World,
};
use tidegate_hub::{ConnId, Notice, Notices, Refusal, Settings};

const CHAT: &[u8] = br#"{"type":"send_msg","content":"hi"}"#;
const ACK: &[u8] = br#"{"type":"ack"}"#;

fn marked_world(excess: Option<&[u8]>) -> World {
    World::new(Settings {
        message_rate: 10,
        message_burst: 20,
        rate_mark: Some(br#""send_msg""#.as_slice().into()),
        notices: vec![Notices { excess: excess.map(Notice::new), ..Notices::default() }],
        ..Settings::default()
    })
}

fn say(world: &mut World, conn: ConnId, payload: &[u8], count: usize) {
    world.receive(conn, &client::frame(TEXT, payload).repeat(count));
}

#[test]
fn acknowledgements_and_heartbeats_leave_a_user_what_it_may_send() {
    let mut world = marked_world(None);
    let conn = world.open(&[]);
    for _ in 0..10 {
        say(&mut world, conn, ACK, 5);
        world.receive(conn, &[client::frame(PING, b"1"), client::frame(PONG, b"")].concat());
        world.pass(10);
    }
    say(&mut world, conn, CHAT, 20);
    assert_eq!((world.hub.stats().messages_in, world.refused(Refusal::MessageRate)), (70, 0));
    say(&mut world, conn, CHAT, 1);
    assert_eq!(world.refused(Refusal::MessageRate), 1);
}

#[test]
fn a_message_is_marked_wherever_the_mark_is_and_of_either_kind() {
    for (opcode, payload) in [(TEXT, CHAT), (BINARY, CHAT), (TEXT, br#"{"content":"hi","type":"send_msg"}"#)] {
        let mut world = marked_world(None);
        let conn = world.open(&[]);
        world.receive(conn, &client::frame(opcode, payload).repeat(21));
        assert_eq!((world.hub.stats().messages_in, world.refused(Refusal::MessageRate)), (20, 1));
    }
}

#[test]
fn a_message_in_fragments_is_judged_as_a_whole() {
    let mut world = marked_world(None);
    let conn = world.open(&[]);
    let mut begin = client::frame(TEXT, &CHAT[..12]);
    begin[0] &= 0x7f;
    let end = client::frame(0, &CHAT[12..]);
    world.receive(conn, &[begin, end].concat().repeat(21));
    assert_eq!((world.hub.stats().messages_in, world.refused(Refusal::MessageRate)), (20, 1));
}

#[test]
fn a_flood_of_what_is_not_marked_is_bounded_too() {
    let mut world = marked_world(None);
    let [acks, pings] = [0; 2].map(|_| world.open(&[]));
    say(&mut world, acks, ACK, 2200);
    world.receive(pings, &client::frame(PING, b"").repeat(2200));
    assert_eq!(world.refused(Refusal::MessageRate), 0);
    say(&mut world, acks, ACK, 1);
    world.receive(pings, &client::frame(PING, b""));
    assert_eq!(world.refused(Refusal::MessageRate), 2);
    assert_eq!(world.frames(pings).last().map(client::Frame::close_code), Some(1008));
}

#[test]
fn who_has_used_up_what_it_may_send_can_still_acknowledge() {
    let mut world = marked_world(Some(b"slow down"));
    let conn = world.open(&[]);
    say(&mut world, conn, CHAT, 40);
    say(&mut world, conn, ACK, 200);
    assert_eq!((world.hub.stats().messages_in, world.texts(conn).len()), (220, 20));
    say(&mut world, conn, ACK, 1);
    say(&mut world, conn, CHAT, 1);
    assert_eq!(world.texts(conn).len(), 2);
}

#[test]
fn the_marked_beyond_the_rate_are_answered_and_the_others_go_on() {
    let mut world = marked_world(Some(b"slow down"));
    let conn = world.open(&[]);
    say(&mut world, conn, CHAT, 22);
    assert_eq!(world.texts(conn), ["slow down", "slow down"]);
    world.pass(100);
    say(&mut world, conn, ACK, 50);
    assert_eq!((world.events.len(), world.texts(conn).len(), world.is_open(conn)), (70, 0, true));
}
