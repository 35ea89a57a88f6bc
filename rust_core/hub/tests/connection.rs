//! One client from its first byte to its last.

mod support;

use support::{
    client::{self, CLOSE, PING, PONG, TEXT},
    world::{PEER, World, admit, text_payload},
};
use tidegate_hub::{Command, Effect, Event, Refusal, Settings};

fn world() -> World {
    World::new(Settings::default())
}

#[test]
fn an_upgrade_waits_for_the_application_and_is_admitted_with_its_payloads() {
    let mut world = world();
    let conn = world.accept();
    world.receive(conn, &client::request("/ws?token=x", "Origin: https://a.example\r\n"));
    match world.events.pop() {
        Some(Event::Upgrade { peer, target, headers, .. }) => {
            assert_eq!((peer, &*target), (PEER, &b"/ws?token=x"[..]));
            assert_eq!(headers, [None, Some(Box::from(*b"https://a.example"))]);
        }
        other => panic!("{other:?}"),
    }
    assert!(world.hub.awaits_decision(conn));
    let Command::Admit { conn, session, rooms, .. } = admit(conn, &["a", "b"]) else { unreachable!() };
    world.command(Command::Admit {
        conn,
        session,
        user: Some(9),
        rooms,
        payloads: vec![text_payload("hello")],
        protocol: None,
        close: None,
        dialect: 0,
    });
    assert_eq!(world.texts(conn), ["hello"]);
    let stats = world.hub.stats();
    assert_eq!((stats.connections_now, stats.handshakes_now, stats.rooms_now, stats.memberships_now), (1, 0, 2, 2));
    assert_eq!(world.socket(conn).writes, 1, "101 and payload leave together");
    assert!(!world.hub.owns_buffers(conn));
    world.hub.check_invariants();
}

#[test]
fn a_handshake_may_come_byte_by_byte_and_the_first_message_with_it() {
    let mut world = world();
    let conn = world.accept();
    for byte in client::request("/ws", "") {
        world.receive(conn, &[byte]);
    }
    world.receive(conn, &client::frame(TEXT, b"early"));
    world.command(admit(conn, &[]));
    assert!(matches!(&world.events[1], Event::Message { payload, session, .. }
        if **payload == *b"early" && **session == *b"session"));
}

#[test]
fn too_much_before_the_decision_ends_the_connection() {
    let mut world = world();
    let conn = world.upgrade("");
    world.receive(conn, &client::frame(TEXT, &[b'x'; 20_000]));
    assert!(!world.is_open(conn));
    world.command(admit(conn, &["room"]));
    let hash = world.keys.room("room");
    assert_eq!(world.effects.last(), Some(&Effect::Joined { hash }), "a join that comes too late is given back");
}

#[test]
fn what_is_no_websocket_is_handed_over_untouched() {
    let mut world = world();
    let conn = world.accept();
    let request = b"POST /api/publish HTTP/1.1\r\nHost: a\r\nContent-Length: 2\r\n\r\n{}";
    world.receive(conn, &request[..10]);
    world.receive(conn, &request[10..]);
    assert_eq!(world.effects, [Effect::HandOver { conn, bytes: request.to_vec() }]);
    assert_eq!(world.hub.stats().handshakes_now, 0);
    world.hub.handle_bytes(conn, &mut b"more".to_vec(), world.now);
    assert!(world.hub.poll_effect().is_none() && world.hub.poll_timeout().is_none());
}

#[test]
fn a_head_that_never_ends_is_refused_at_its_bound() {
    let mut world = world();
    let conn = world.accept();
    world.receive(conn, b"GET /ws HTTP/1.1\r\nHost: a\r\nX: ");
    for _ in 0..20 {
        world.receive(conn, &[b'x'; 1000]);
    }
    assert!(world.socket(conn).reader.buf.starts_with(b"HTTP/1.1 431 "));
    assert_eq!((world.refused(Refusal::HeadTooLarge), world.is_open(conn)), (1, false));
}

#[test]
fn a_refused_client_gets_one_answer_and_is_the_socket_layers_from_then_on() {
    let mut world = world();
    let conn = world.upgrade("");
    let refuse = Command::Refuse { conn, status: 403, body: Box::from(*b"{}"), retry_after_s: None };
    world.command(refuse);
    assert!(world.socket(conn).reader.buf.starts_with(b"HTTP/1.1 403 "));
    let answered = world.socket(conn).reader.buf.len();
    world.receive(conn, &client::request("/ws", ""));
    assert_eq!((world.socket(conn).reader.buf.len(), world.events.len()), (answered, 0), "no second request");
    assert_eq!(world.effects, [Effect::Refused { conn }, Effect::Shut { conn, admitted: false }]);
}

#[test]
fn a_handshake_has_one_deadline_however_slowly_it_trickles() {
    let mut world = world();
    let (silent, slow, undecided) = (world.accept(), world.accept(), world.upgrade(""));
    for byte in b"GET /ws HTTP/1.1\r\nHost: a\r\n" {
        world.receive(slow, &[*byte]);
        world.pass(300);
    }
    world.pass(2000);
    assert!(!world.is_open(silent) && world.socket(silent).reader.buf.is_empty());
    assert!(world.socket(slow).reader.buf.starts_with(b"HTTP/1.1 408 "));
    assert!(world.socket(undecided).reader.buf.starts_with(b"HTTP/1.1 503 "));
    assert_eq!(world.refused(Refusal::HandshakeTimeout), 3);
    world.pass(5100);
    assert!(world.sockets.0.is_empty());
    world.hub.check_invariants();
}

#[test]
fn a_proxy_header_comes_first_and_names_the_peer() {
    let settings = Settings { proxy_protocol: true, ..Settings::default() };
    let mut world = World::new(settings);
    let (good, bad) = (world.accept(), world.accept());
    world.receive(good, b"PROXY TCP4 198.51.100.9 192.0.2.1 4000 443\r\nGET /ws HT");
    let peer = "198.51.100.9".parse().unwrap();
    assert_eq!(world.effects, [Effect::Peer { conn: good, peer }]);
    world.receive(good, &client::request("/ws", "")[10..]);
    assert!(matches!(world.events[..], [Event::Upgrade { peer: named, .. }] if named == peer));
    world.receive(bad, &client::request("/ws", ""));
    assert!(!world.is_open(bad));
    assert_eq!(world.refused(Refusal::Proxy), 1);
}

#[test]
fn pings_are_answered_and_a_close_is_echoed() {
    let mut world = world();
    let conn = world.open(&["room"]);
    world.receive(conn, &[client::frame(PING, b"1"), client::frame(PING, b"2"), client::close(4001)].concat());
    let frames: Vec<(u8, Vec<u8>)> =
        world.frames(conn).into_iter().map(|frame| (frame.opcode, frame.payload)).collect();
    assert_eq!(frames, [(PONG, b"1".to_vec()), (PONG, b"2".to_vec()), (CLOSE, 4001u16.to_be_bytes().to_vec())]);
    assert_eq!((world.closed(conn), world.is_open(conn)), (Some(4001), false));
    assert_eq!(world.hub.stats().rooms_now, 0);
}

#[test]
fn a_close_without_a_code_is_answered_in_kind() {
    let mut world = world();
    let conn = world.open(&[]);
    world.receive(conn, &client::frame(CLOSE, b""));
    assert_eq!(world.frames(conn)[0].payload, b"");
    assert_eq!(world.closed(conn), Some(1005));
}

#[test]
fn pongs_for_a_full_socket_are_gathered_into_the_latest() {
    let mut world = world();
    let conn = world.open(&[]);
    world.make_room(conn, 3);
    world.receive(conn, &client::frame(PING, b"first"));
    for number in 0..1000u32 {
        world.hub.handle_bytes(
            conn,
            &mut client::frame(PING, &number.to_be_bytes()),
            world.now + u64::from(number) * 10,
        );
    }
    assert!(world.hub.stats().outbox_bytes_now < 20);
    world.make_room(conn, 1000);
    let payloads: Vec<Vec<u8>> = world.frames(conn).into_iter().map(|frame| frame.payload).collect();
    assert_eq!(payloads, [b"first".to_vec(), 999u32.to_be_bytes().to_vec()]);
}

#[test]
fn a_broken_frame_costs_its_sender_the_connection_and_is_not_read_further() {
    let mut world = world();
    let conn = world.open(&["room"]);
    world
        .receive(conn, &[&client::frame(TEXT, b"good")[..], b"\x81\x02no", &client::frame(TEXT, b"late")[..]].concat());
    assert!(
        matches!(&world.events[..], [Event::Message { .. }, Event::Failed { code: 1002, .. }]),
        "the application answers what was good first"
    );
    world.receive(conn, &client::frame(TEXT, b"later"));
    assert_eq!((world.events.len(), world.refused(Refusal::Protocol)), (2, 1));
    assert!(world.frames(conn).is_empty());
    world.command(Command::Close { conn, code: 1002, reason: "".into() });
    assert_eq!(world.frames(conn)[0].close_code(), 1002);
    assert!(world.is_open(conn));
    world.pass(5100);
    assert_eq!((world.is_open(conn), world.closed(conn)), (false, Some(1002)));
}

#[test]
fn a_broken_frame_is_answered_by_the_hub_if_the_application_never_does() {
    let mut world = world();
    let conn = world.open(&[]);
    world.receive(conn, &[&client::frame(TEXT, b"good")[..], b"\x81\x02no"].concat());
    assert!(world.frames(conn).is_empty());
    world.pass(5100);
    assert_eq!(world.frames(conn)[0].close_code(), 1002);
}

#[test]
fn a_client_that_answers_the_close_after_a_violation_need_not_wait() {
    let mut world = world();
    let conn = world.open(&[]);
    world.receive(conn, b"\xff\xff");
    world.receive(conn, &client::close(1002));
    assert!(!world.is_open(conn));
}

#[test]
fn each_kind_of_bad_message_has_its_code() {
    for (bytes, code, why) in [
        (client::frame(TEXT, b"\xff"), 1007, Refusal::Utf8),
        (client::frame(TEXT, &[b'x'; 65_537]), 1009, Refusal::TooBig),
        (client::frame(3, b""), 1002, Refusal::Protocol),
    ] {
        let mut world = world();
        let conn = world.open(&[]);
        world.receive(conn, &bytes);
        assert_eq!((world.frames(conn)[0].close_code(), world.refused(why)), (code, 1));
    }
}

#[test]
fn who_sends_more_than_its_allowance_is_closed() {
    let settings = Settings { message_rate: 10, message_burst: 20, ..Settings::default() };
    let mut world = World::new(settings);
    let (flood, calm) = (world.open(&[]), world.open(&[]));
    for _ in 0..50 {
        world.receive(calm, &client::frame(TEXT, b"x"));
        world.pass(100);
    }
    world.receive(flood, &client::frame(PING, b"").repeat(21));
    assert_eq!(world.frames(flood).last().unwrap().close_code(), 1008);
    assert_eq!((world.refused(Refusal::MessageRate), world.hub.stats().messages_in), (1, 50));
    assert!(world.closed(calm).is_none() && world.is_open(calm));
}

#[test]
fn more_rooms_than_allowed_close_the_connection() {
    let mut world = World::new(Settings { rooms_max: 2, ..Settings::default() });
    let greedy = world.open(&["a", "b", "c"]);
    let later = world.open(&["a", "b"]);
    world.command(Command::Join { conn: later, room: "a".into() });
    assert!(world.is_open(later) && world.frames(later).is_empty(), "a join repeated is no further room");
    world.command(Command::Join { conn: later, room: "c".into() });
    for conn in [greedy, later] {
        assert_eq!(world.frames(conn)[0].close_code(), 1008);
    }
    let joined = world.effects.iter().filter(|effect| matches!(effect, Effect::Joined { .. })).count();
    assert_eq!((joined, world.refused(Refusal::Rooms)), (7, 2));
}

#[test]
fn our_close_waits_for_the_answer_and_then_for_nobody() {
    let mut world = world();
    let (polite, rude) = (world.open(&[]), world.open(&[]));
    for conn in [polite, rude] {
        world.command(Command::Close { conn, code: 4002, reason: "over".into() });
        world.receive(conn, &client::frame(TEXT, b"ignored"));
        let frame = &world.frames(conn)[0];
        assert_eq!((frame.close_code(), &frame.payload[2..]), (4002, &b"over"[..]));
        assert!(world.is_open(conn));
    }
    world.receive(polite, &client::close(4002));
    assert!(!world.is_open(polite));
    world.pass(5100);
    assert!(!world.is_open(rude));
    assert_eq!((world.closed(polite), world.closed(rude)), (Some(4002), Some(4002)));
    assert_eq!(world.hub.stats().messages_in, 0);
}

#[test]
fn a_code_that_must_not_be_sent_becomes_an_internal_error() {
    let mut world = world();
    let conn = world.open(&[]);
    world.command(Command::Close { conn, code: 1006, reason: "".into() });
    assert_eq!(world.frames(conn)[0].close_code(), 1011);
}

#[test]
fn a_client_that_answers_pings_stays_and_one_that_does_not_is_dead_after_interval_and_time_out() {
    let mut world = world();
    let (alive, mute) = (world.open(&[]), world.open(&[]));
    let mut first_ping = None;
    for _ in 0..1200 {
        world.pass(100);
        if world.frames(alive).iter().any(|frame| frame.opcode == PING) {
            world.receive(alive, &client::frame(PONG, b""));
        }
        if first_ping.is_none() && !world.frames(mute).is_empty() {
            first_ping = Some(world.now);
        }
        if !world.is_open(mute) {
            break;
        }
    }
    let waited = world.now - first_ping.expect("a ping within the interval");
    assert!((39_900..=40_200).contains(&waited), "{waited} ms");
    assert_eq!((world.closed(mute), world.refused(Refusal::PongTimeout)), (Some(1006), 1));
    world.pass(15_000);
    assert!(world.is_open(alive));
}

#[test]
fn pings_come_every_interval_and_any_byte_counts_as_a_sign_of_life() {
    let mut world = world();
    let conn = world.open(&[]);
    let mut pings = 0;
    for _ in 0..10 {
        world.pass(30_000);
        pings += world.frames(conn).iter().filter(|frame| frame.opcode == PING).count();
        world.receive(conn, &client::frame(TEXT, b"x")[..3]);
        world.receive(conn, &client::frame(TEXT, b"x")[3..]);
    }
    assert_eq!((pings, world.hub.stats().pings), (10, 10));
}

#[test]
fn first_pings_are_spread_over_half_an_interval() {
    let mut world = world();
    for _ in 0..1000 {
        world.open(&[]);
    }
    world.pass(14_900);
    assert_eq!(world.hub.stats().pings, 0);
    for tenth in 1..=10 {
        world.pass(if tenth == 1 { 1600 } else { 1500 });
        let pings = world.hub.stats().pings;
        assert!(pings.abs_diff(tenth * 100) <= 30, "{pings} pings after {tenth} tenths");
    }
}

#[test]
fn a_session_can_be_replaced_and_comes_with_each_event() {
    let mut world = world();
    let conn = world.open(&[]);
    world.command(Command::Session { conn, session: Box::from(*b"next") });
    world.receive(conn, &client::frame(TEXT, b"x"));
    world.hub.handle_eof(conn, world.now);
    world.settle();
    assert!(matches!(&world.events[..],
        [Event::Message { session: a, .. }, Event::Closed { session: b, code: 1006, .. }] if **a == *b"next" && a == b));
}

#[test]
fn the_user_and_the_place_are_given_back_once() {
    let mut world = world();
    let conn = world.upgrade("");
    let Command::Admit { conn, session, rooms, payloads, protocol, close, .. } = admit(conn, &[]) else {
        unreachable!()
    };
    world.command(Command::Admit { conn, session, user: Some(0), rooms, payloads, protocol, close, dialect: 0 });
    world.hub.handle_gone(conn, Some(Refusal::Panic), world.now);
    world.hub.handle_gone(conn, Some(Refusal::Panic), world.now);
    world.settle();
    assert_eq!(world.effects, [Effect::Shut { conn, admitted: true }]);
    assert_eq!(world.refused(Refusal::Panic), 1);
}

#[test]
fn a_command_for_a_connection_that_is_gone_is_ignored() {
    let mut world = world();
    let gone = world.open(&["room"]);
    world.hub.handle_eof(gone, world.now);
    world.settle();
    let next = world.open(&[]);
    assert_eq!(gone.slot(), next.slot());
    world.effects.clear();
    for command in [
        Command::Send { conn: gone, payload: text_payload("x"), ticket: 0 },
        Command::Join { conn: gone, room: "room".into() },
        Command::Leave { conn: gone, room: "room".into() },
        Command::Session { conn: gone, session: Box::default() },
        Command::Refuse { conn: gone, status: 403, body: Box::default(), retry_after_s: None },
        Command::Close { conn: gone, code: 1000, reason: "".into() },
    ] {
        world.command(command);
    }
    assert_eq!(world.effects, [Effect::Joined { hash: world.keys.room("room") }]);
    assert!(world.frames(next).is_empty() && world.is_open(next));
    world.hub.check_invariants();
}
