//! Who gets what, when, and who pays when a reader is slow.

mod support;

use std::sync::Arc;

use support::{
    client::{self, CLOSE, TEXT},
    world::{World, text_payload},
};
use tidegate_hub::{Command, ConnId, Effect, Group, Refusal, Settings, settings::OutboxPolicy};

fn world() -> World {
    World::new(Settings { message_rate: 0, ..Settings::default() })
}

fn crowd(world: &mut World, count: usize, room: &str) -> Vec<ConnId> {
    (0..count).map(|_| world.open(&[room])).collect()
}

fn numbers(count: usize) -> Vec<String> {
    (0..count).map(|number| number.to_string()).collect()
}

#[test]
fn every_member_of_a_room_of_any_size_gets_a_message_once_and_nobody_else_does() {
    for size in [1, 2, 32, 33, 1000] {
        let mut world = world();
        let members = crowd(&mut world, size, "room");
        let stranger = world.open(&["other"]);
        let written = world.hub.stats().writes;
        world.publish("room", "hello");
        for conn in members {
            assert_eq!(world.texts(conn), ["hello"], "room of {size}");
        }
        assert!(world.texts(stranger).is_empty());
        let stats = world.hub.stats();
        assert_eq!(
            (stats.broadcasts, stats.deliveries, stats.writes - written),
            (size as u64, size as u64, size as u64)
        );
        assert_eq!((stats.outbox_bytes_now, stats.backlog_bytes_now), (0, 0));
    }
}

#[test]
fn a_message_skips_the_connection_it_excludes() {
    for size in [3, 100] {
        let mut world = world();
        let members = crowd(&mut world, size, "room");
        world.publish_except("room", "typing", Some(members[1]));
        world.publish("room", "all");
        for (at, conn) in members.into_iter().enumerate() {
            assert_eq!(world.texts(conn).len(), if at == 1 { 1 } else { 2 });
        }
    }
}

#[test]
fn what_piles_up_while_a_pass_runs_goes_out_together() {
    let mut world = world();
    let members = crowd(&mut world, 300, "giant");
    world.publish_except("giant", "0", None);
    assert!(world.hub.drive_writes(100, &mut world.sockets, world.now), "a part of the first pass");
    let written = world.hub.stats().writes;
    (1..40).for_each(|number| world.publish_except("giant", &number.to_string(), None));
    world.settle();
    assert_eq!(
        world.hub.stats().writes - written,
        200 + 300,
        "the rest of this pass, and one more for all that waited"
    );
    for conn in members {
        assert_eq!(world.texts(conn), numbers(40));
    }
}

#[test]
fn a_small_room_does_not_wait_for_a_giant() {
    let mut world = world();
    crowd(&mut world, 5000, "giant");
    let small = world.open(&["small"]);
    world.publish_except("giant", "big news", None);
    world.hub.drive_writes(100, &mut world.sockets, world.now);
    world.publish_except("small", "hi", None);
    world.hub.drive_writes(100, &mut world.sockets, world.now);
    assert_eq!(world.texts(small), ["hi"]);
}

#[test]
fn a_small_room_waits_for_no_more_of_a_giants_burst_than_of_its_single_messages() {
    let mut world = world();
    let members = crowd(&mut world, 1000, "giant");
    for _ in 0..50 {
        world.publish_except("giant", &"x".repeat(512), None);
    }
    let before = world.hub.stats().writes;
    world.hub.drive_writes(32, &mut world.sockets, world.now);
    // 25 KiB a member are worth seven short writes
    assert_eq!(world.hub.stats().writes - before, 32 / 7 + 1);
    world.settle();
    assert_eq!(world.texts(members[999]).len(), 50);
}

#[test]
fn two_giants_take_turns() {
    let mut world = world();
    crowd(&mut world, 2000, "a");
    let b = crowd(&mut world, 2000, "b");
    world.publish_except("a", "x", None);
    world.publish_except("b", "x", None);
    world.hub.drive_writes(1100, &mut world.sockets, world.now);
    assert!(b.iter().filter(|conn| !world.texts(**conn).is_empty()).count() >= 400);
}

#[test]
fn who_leaves_in_mid_pass_has_what_was_published_before_and_who_joins_has_not() {
    let mut world = world();
    let members = crowd(&mut world, 200, "room");
    let late = world.open(&[]);
    world.publish_except("room", "before", None);
    world.hub.drive_writes(50, &mut world.sockets, world.now);
    let again = members[180];
    for conn in [members[10], members[190], again] {
        world.hub.handle_command(Command::Leave { conn, room: "room".into() }, world.now);
    }
    for conn in [late, again] {
        world.hub.handle_command(Command::Join { conn, room: "room".into() }, world.now);
    }
    world.publish_except("room", "after", None);
    world.settle();
    assert_eq!(world.texts(late), ["after"]);
    assert_eq!(world.texts(again), ["before", "after"]);
    assert_eq!((world.texts(members[10]), world.texts(members[190])), (vec!["before".into()], vec!["before".into()]));
    assert_eq!(world.texts(members[199]), ["before", "after"]);
    world.hub.check_invariants();
}

#[test]
fn a_slot_let_again_in_mid_pass_gets_nothing_that_was_meant_for_its_last_tenant() {
    let mut world = world();
    let members = crowd(&mut world, 100, "room");
    world.publish_except("room", "before", None);
    world.hub.drive_writes(10, &mut world.sockets, world.now);
    world.hub.handle_gone(members[50], None, world.now);
    world.collect();
    let conn = world.hub.handle_accept(support::world::PEER, world.now).unwrap();
    assert_eq!(conn.slot(), members[50].slot());
    let socket = world.shut.remove(&members[50]).unwrap();
    world.sockets.0.insert(conn, support::world::Socket { reader: Default::default(), ..socket });
    world.hub.handle_bytes(conn, &mut client::request("/ws", ""), world.now);
    world.hub.handle_command(support::world::admit(conn, &["room"]), world.now);
    world.settle();
    assert!(world.texts(conn).is_empty());
    world.publish("room", "after");
    assert_eq!(world.texts(conn), ["after"]);
}

#[test]
fn order_holds_while_a_room_grows_and_shrinks() {
    let mut world = world();
    let steady = world.open(&["room"]);
    let mut sent = 0;
    for _ in 0..3 {
        let others = crowd(&mut world, 60, "room");
        for conn in others {
            world.publish_except("room", &sent.to_string(), None);
            world.hub.drive_writes(20, &mut world.sockets, world.now);
            world.hub.handle_command(Command::Leave { conn, room: "room".into() }, world.now);
            sent += 1;
        }
    }
    world.settle();
    assert_eq!(world.texts(steady), numbers(sent));
}

#[test]
fn a_room_that_becomes_small_in_mid_pass_still_keeps_its_order() {
    let mut world = world();
    let members = crowd(&mut world, 40, "room");
    let (last, others) = members.split_last().unwrap();
    world.publish_except("room", "0", None);
    world.hub.drive_writes(5, &mut world.sockets, world.now);
    for conn in &others[5..] {
        world.hub.handle_command(Command::Leave { conn: *conn, room: "room".into() }, world.now);
    }
    world.publish_except("room", "1", None);
    world.settle();
    assert_eq!(world.texts(*last), numbers(2));
    assert_eq!(world.texts(others[0]), numbers(2));
    world.publish("room", "2");
    assert_eq!(world.hub.stats().backlog_bytes_now, 0);
    assert_eq!(world.texts(*last), ["2"]);
}

#[test]
fn a_room_that_empties_in_mid_pass_takes_its_messages_with_it() {
    let mut world = world();
    let members = crowd(&mut world, 100, "room");
    let hash = world.keys.room("room");
    world.publish_except("room", "x", None);
    world.hub.drive_writes(10, &mut world.sockets, world.now);
    members.iter().for_each(|conn| world.hub.handle_gone(*conn, None, world.now));
    world.settle();
    assert_eq!(world.hub.stats().backlog_bytes_now, 0);
    assert!(world.effects.contains(&Effect::RoomEmptied { hash }));
    let next = world.open(&["room"]);
    assert!(world.texts(next).is_empty());
    world.hub.check_invariants();
}

#[test]
fn a_room_whose_members_all_die_in_one_slice_is_forgotten() {
    let mut world = world();
    let members = crowd(&mut world, 100, "room");
    members.iter().for_each(|conn| world.socket(*conn).dead = true);
    world.publish("room", "x");
    assert_eq!((world.hub.stats().rooms_now, world.hub.stats().backlog_bytes_now), (0, 0));
    assert!(world.sockets.0.is_empty());
    world.hub.check_invariants();
}

#[test]
fn a_slow_member_never_delays_the_others_and_gets_the_rest_when_it_reads() {
    for size in [5, 200] {
        let mut world = world();
        let members = crowd(&mut world, size, "room");
        let slow = members[2];
        world.make_room(slow, 2);
        (0..50).for_each(|number| world.publish("room", &number.to_string()));
        for conn in &members {
            assert_eq!(world.texts(*conn).len(), if *conn == slow { 0 } else { 50 });
        }
        let mut texts = Vec::new();
        while texts.len() < 50 {
            world.make_room(slow, 7);
            texts.extend(world.texts(slow));
        }
        assert_eq!(texts, numbers(50));
        assert!(!world.hub.owns_buffers(slow));
    }
}

#[test]
fn who_overruns_its_outbox_gets_the_frame_it_is_in_then_a_close() {
    let settings = Settings { outbox_bytes_max: 1000, ..Settings::default() };
    let mut world = World::new(settings);
    let slow = world.open(&["room"]);
    world.make_room(slow, 150);
    (0..20).for_each(|_| world.publish("room", &"x".repeat(100)));
    assert_eq!((world.refused(Refusal::SlowClose), world.hub.stats().rooms_now), (1, 0));
    assert!(world.hub.stats().outbox_bytes_now < 100, "the rest of one frame and the close");
    world.make_room(slow, 10_000);
    let frames = world.frames(slow);
    assert_eq!(frames.iter().map(|frame| frame.opcode).collect::<Vec<_>>(), [TEXT, TEXT, CLOSE]);
    assert_eq!(frames[2].close_code(), 1013);
    world.pass(10_100);
    assert_eq!((world.is_open(slow), world.closed(slow)), (false, Some(1013)));
}

#[test]
fn a_burst_larger_than_the_outbox_reaches_a_reader_that_keeps_up() {
    let mut world = World::new(Settings { outbox_bytes_max: 1000, ..Settings::default() });
    for size in [1, 100] {
        let room = format!("room of {size}");
        let members = crowd(&mut world, size, &room);
        (0..200).for_each(|number| world.publish_except(&room, &format!("{number:0100}"), None));
        world.settle();
        for conn in members {
            assert_eq!(world.texts(conn).len(), 200);
        }
    }
    assert_eq!(world.refused(Refusal::SlowClose), 0);
}

#[test]
fn all_slow_readers_together_are_bounded_too() {
    let settings = Settings { outbox_total_max: 50_000, ..Settings::default() };
    let mut world = World::new(settings);
    let members = crowd(&mut world, 100, "room");
    members.iter().for_each(|conn| world.make_room(*conn, 0));
    for _ in 0..20 {
        world.publish("room", &"x".repeat(200));
        assert!(world.hub.stats().outbox_bytes_now <= 60_000);
    }
    assert!(world.refused(Refusal::SlowClose) > 0);
}

#[test]
fn what_slow_readers_of_other_shards_are_owed_counts_too() {
    let mut world = World::new(Settings { outbox_total_max: 50_000, ..Settings::default() });
    let slow = world.open(&["room"]);
    world.make_room(slow, 0);
    world.hub.set_owed_elsewhere(49_000);
    (0..4).for_each(|_| world.publish("room", &"x".repeat(200)));
    assert_eq!(world.refused(Refusal::SlowClose), 0);
    world.hub.set_owed_elsewhere(49_900);
    world.publish("room", "one more");
    assert_eq!(world.refused(Refusal::SlowClose), 1);
}

#[test]
fn by_policy_the_newest_messages_are_dropped_and_the_connection_stays() {
    let outbox_policy = OutboxPolicy::Drop { messages_max: 10 };
    for size in [1, 100] {
        let mut world = World::new(Settings { outbox_policy, ..Settings::default() });
        let members = crowd(&mut world, size, "room");
        world.make_room(members[0], 1);
        (0..30).for_each(|number| world.publish("room", &number.to_string()));
        assert_eq!(world.refused(Refusal::QueueFull), 20);
        assert_eq!(world.hub.stats().deliveries, 30 * size as u64 - 20);
        world.make_room(members[0], 10_000);
        assert_eq!(world.texts(members[0]), numbers(10));
        world.publish("room", "again");
        assert_eq!(world.texts(members[0]), ["again"]);
    }
}

#[test]
fn a_reader_that_takes_nothing_for_the_write_time_out_is_told_so_and_dropped_after_another() {
    let mut world = world();
    let (stuck, slow) = (world.open(&["room"]), world.open(&["room"]));
    for conn in [stuck, slow] {
        world.make_room(conn, 5);
    }
    world.publish("room", &"x".repeat(100));
    for _ in 0..3 {
        world.pass(4000);
        world.make_room(slow, 5);
    }
    assert_eq!((world.refused(Refusal::WriteTimeout), world.closed(stuck)), (1, None));
    assert_eq!(world.hub.stats().memberships_now, 1, "it is in no room any more");
    for _ in 0..3 {
        world.pass(4000);
        world.make_room(slow, 5);
    }
    assert_eq!((world.is_open(stuck), world.is_open(slow)), (false, true));
    assert_eq!((world.refused(Refusal::WriteTimeout), world.closed(stuck)), (1, Some(1013)));
}

#[test]
fn a_reader_that_goes_on_after_the_write_time_out_learns_why_it_is_closed() {
    let mut world = world();
    let conn = world.open(&["room"]);
    world.make_room(conn, 5);
    world.publish("room", "begun");
    world.publish("room", "not begun");
    world.pass(10_100);
    world.make_room(conn, usize::MAX);
    let frames = world.frames(conn);
    assert_eq!((frames[0].text(), frames[1].close_code(), frames.len()), ("begun", 1013, 2));
    world.receive(conn, &client::close(1013));
    assert_eq!((world.is_open(conn), world.closed(conn)), (false, Some(1013)));
}

#[test]
fn a_close_comes_after_everything_published_before_it() {
    let mut world = world();
    let members = crowd(&mut world, 100, "room");
    (0..3).for_each(|number| world.publish_except("room", &number.to_string(), None));
    world.hub.drive_writes(10, &mut world.sockets, world.now);
    for conn in &members {
        world.hub.handle_command(Command::Close { conn: *conn, code: 1000, reason: "".into() }, world.now);
    }
    world.settle();
    for conn in members {
        let frames = world.frames(conn);
        assert_eq!(frames.len(), 4);
        assert_eq!(frames[3].close_code(), 1000);
    }
    world.hub.check_invariants();
}

#[test]
fn a_drain_delivers_first_and_closes_everybody_evenly() {
    let mut world = world();
    let members = crowd(&mut world, 1000, "room");
    let undecided = world.upgrade("");
    world.publish_except("room", "last words", None);
    world.hub.handle_command(Command::Drain { within_ms: 10_000 }, world.now);
    world.settle();
    let told =
        |world: &mut World| members.iter().filter(|conn| world.socket(**conn).reader.buf.contains(&0x88)).count();
    assert_eq!(told(&mut world), 1, "the first at once");
    world.command(support::world::admit(undecided, &[]));
    assert!(world.socket(undecided).reader.buf.starts_with(b"HTTP/1.1 503 "));
    let late = world.accept();
    world.receive(late, &client::request("/ws", ""));
    assert!(String::from_utf8_lossy(&world.socket(late).reader.buf).contains("Retry-After: 1"));
    for second in 1..=8usize {
        world.pass(1000);
        assert!(told(&mut world).abs_diff(second * 1000 / 9) <= 30, "{} after {second} s", told(&mut world));
    }
    world.pass(1100);
    for conn in &members {
        let frames = world.frames(*conn);
        assert_eq!((frames[0].text(), frames[1].close_code()), ("last words", 1001));
    }
    assert!(!world.hub.is_drained());
    world.pass(1000);
    assert!(world.hub.is_drained() && world.sockets.0.is_empty());
    assert_eq!(world.hub.poll_timeout(), None);
    assert_eq!(world.refused(Refusal::Draining), 2);
    world.hub.check_invariants();
}

#[test]
fn few_clients_are_told_to_go_within_a_second_whatever_time_there_is() {
    let mut world = world();
    let members = crowd(&mut world, 100, "room");
    world.command(Command::Drain { within_ms: 600_000 });
    world.pass(1100);
    assert!(members.iter().all(|conn| world.frames(*conn)[0].close_code() == 1001));
}

#[test]
fn a_silent_socket_does_not_hold_up_a_drain() {
    let mut world = world();
    let silent = world.accept();
    world.command(Command::Drain { within_ms: 30_000 });
    world.pass(1100);
    assert!(!world.is_open(silent) && world.hub.is_drained());
}

#[test]
fn compressed_and_plain_members_share_a_room() {
    let mut world = World::new(Settings { compression: true, ..Settings::default() });
    let plain = crowd(&mut world, 50, "room");
    let deflating = world.upgrade("Sec-WebSocket-Extensions: permessage-deflate\r\n");
    world.command(support::world::admit(deflating, &["room"]));
    assert_eq!(world.hub.stats().deflate_now, 1);
    world.publish("room", &"again and ".repeat(100));
    assert_eq!(world.texts(plain[0])[0].len(), 1000);
    let socket = world.socket(deflating);
    socket.reader.next();
    assert!(socket.reader.answer.as_ref().unwrap().contains("permessage-deflate"));
    world.hub.handle_gone(deflating, None, world.now);
    world.settle();
    assert_eq!(world.hub.stats().deflate_now, 0);
}

#[test]
fn groups_of_many_messages_keep_their_order_and_their_exclusions() {
    let mut world = world();
    let members = crowd(&mut world, 50, "room");
    let messages =
        (0..500).map(|number| (text_payload(&number.to_string()), (number % 7 == 0).then_some(members[3]))).collect();
    let group = Group::encode("room".into(), world.keys.room("room"), messages);
    world.hub.handle_publish(&Arc::new(group), world.now);
    world.settle();
    assert_eq!(world.texts(members[0]), numbers(500));
    let expected: Vec<String> = (0..500).filter(|number| number % 7 != 0).map(|number| number.to_string()).collect();
    assert_eq!(world.texts(members[3]), expected);
    assert_eq!(world.hub.stats().broadcasts, 50 * 500 - 72);
}
