//! Orders become mail: each to the shard it is for, publishes encoded once for all.
//!
//! Rule: what a connection is told, and what a room is told, happens in the order it was submitted. Publishes to one room are
//! gathered over the whole batch, so what changes who is in a room (join, leave, admit, close) ends the gathering for it first; only
//! a direct send may overtake a publish of the same batch.

use std::sync::Arc;

use hashbrown::HashMap;
use tidegate_hub::{Command, ConnId, Event, Fate, Group, GroupBuilder, Payload, event::ABNORMAL};

use crate::{Exclude, Order, Publish, mailbox::Mail, shared::Shared};

/// Sorts a batch and posts it.
pub fn submit(shared: &Shared, orders: Vec<Order>) {
    let mut batch = Batch::new(shared);
    for order in orders {
        match order {
            Order::Command(command) => batch.command(command),
            Order::Publish { room, payload, exclude } => {
                let exclude = batch.excluded(&exclude);
                batch.publish(&room, payload.text, &payload.bytes, exclude);
            }
            Order::PublishRooms { rooms, payload } => batch.publish_rooms(rooms, &payload),
        }
    }
    batch.post();
}

/// The same for texts to rooms that nobody has copied yet.
pub fn publish(shared: &Shared, publishes: &[Publish<'_>]) {
    let mut batch = Batch::new(shared);
    for publish in publishes {
        let exclude = publish.exclude.and_then(|uuid| shared.keys.conn(uuid));
        batch.publish(&publish.room, true, publish.payload, exclude);
    }
    batch.post();
}

struct Batch<'a> {
    shared: &'a Shared,
    /// By shard.
    mail: Vec<Vec<Mail>>,
    /// In the order of their first message. A finished one leaves an empty place.
    open: Vec<Option<GroupBuilder>>,
    places: HashMap<u64, usize>,
    shards: Vec<u16>,
}

impl<'a> Batch<'a> {
    fn new(shared: &'a Shared) -> Self {
        let mail = shared.mailboxes.iter().map(|_| Vec::new()).collect();
        Self { shared, mail, open: Vec::new(), places: HashMap::new(), shards: Vec::new() }
    }

    fn command(&mut self, command: Command) {
        let Some(conn) = conn_of(&command) else {
            return self.for_all(&command);
        };
        let shard = conn.shard();
        if usize::from(shard) >= self.mail.len() {
            return self.answer_stranger(command);
        }
        match &command {
            Command::Admit { rooms, .. } => rooms.iter().for_each(|room| self.joins(room, shard)),
            Command::Join { room, .. } => self.joins(room, shard),
            Command::Leave { room, .. } => self.finish(self.shared.keys.room(room)),
            Command::Close { .. } => self.finish_all(),
            _ => {}
        }
        self.mail[usize::from(shard)].push(Mail::Command(command));
    }

    /// It names no connection that ever was, so there is no shard that could say so.
    fn answer_stranger(&self, command: Command) {
        let event = match command {
            Command::Admit { conn, session, .. } => Event::Closed { conn, session, code: ABNORMAL },
            Command::Send { conn, ticket: ticket @ 1.., .. } => Event::Told { conn, ticket, fate: Fate::Gone },
            _ => return,
        };
        self.shared.events.push(&mut vec![event]);
    }

    fn excluded(&self, exclude: &Exclude) -> Option<ConnId> {
        match exclude {
            Exclude::None => None,
            Exclude::Conn(conn) => Some(*conn),
            Exclude::Uuid(uuid) => self.shared.keys.conn(uuid),
        }
    }

    fn publish(&mut self, room: &str, text: bool, payload: &[u8], exclude: Option<ConnId>) {
        let hash = self.shared.keys.room(room);
        let group = self.gathering(room, hash);
        group.push(text, payload, exclude);
        if group.len_bytes() >= GROUP_BYTES_MAX {
            self.finish(hash);
        }
    }

    fn publish_rooms(&mut self, rooms: Vec<Box<str>>, payload: &Payload) {
        let mut builder = GroupBuilder::new("".into(), 0);
        builder.push(payload.text, &payload.bytes, None);
        let frames = builder.frames();
        for room in rooms {
            let hash = self.shared.keys.room(&room);
            self.finish(hash);
            self.send_to_shards(hash, || Group::of_frames(room, hash, &frames));
        }
    }

    fn gathering(&mut self, room: &str, hash: u64) -> &mut GroupBuilder {
        let other_room = |place: &usize| self.open[*place].as_ref().is_none_or(|open| open.room() != room);
        if self.places.get(&hash).is_some_and(other_room) {
            self.finish(hash);
        }
        let place = *self.places.entry(hash).or_insert(self.open.len());
        if place == self.open.len() {
            self.open.push(None);
        }
        self.open[place].get_or_insert_with(|| GroupBuilder::new(room.into(), hash))
    }

    /// Marks the join before the shard can see it; see `directory`.
    fn joins(&mut self, room: &str, shard: u16) {
        let hash = self.shared.keys.room(room);
        self.finish(hash);
        self.shared.directory.join_submitted(hash, shard);
    }

    fn finish(&mut self, hash: u64) {
        if let Some(gathering) = self.places.remove(&hash).and_then(|place| self.open[place].take()) {
            self.send_out(gathering);
        }
    }

    fn finish_all(&mut self) {
        self.places.clear();
        for gathering in std::mem::take(&mut self.open).into_iter().flatten() {
            self.send_out(gathering);
        }
    }

    fn send_out(&mut self, gathering: GroupBuilder) {
        self.send_to_shards(gathering.hash(), || gathering.finish());
    }

    /// Makes the group only if somebody is in a room of this hash.
    fn send_to_shards(&mut self, hash: u64, group: impl FnOnce() -> Group) {
        self.shared.directory.lookup(hash, &mut self.shards);
        if self.shards.is_empty() {
            return;
        }
        let group = Arc::new(group());
        for shard in &self.shards {
            self.mail[usize::from(*shard)].push(Mail::Publish(group.clone()));
        }
    }

    fn post(mut self) {
        self.finish_all();
        for (shard, mail) in self.mail.iter_mut().enumerate() {
            self.shared.mailboxes[shard].post(mail);
        }
    }

    /// `Drain` is the one command that is for every shard.
    fn for_all(&mut self, command: &Command) {
        self.finish_all();
        if let Command::Drain { within_ms } = command {
            for mail in &mut self.mail {
                mail.push(Mail::Command(Command::Drain { within_ms: *within_ms }));
            }
        }
    }
}

/// Whom a command is about.
pub fn conn_of(command: &Command) -> Option<ConnId> {
    match command {
        Command::Admit { conn, .. }
        | Command::Refuse { conn, .. }
        | Command::Send { conn, .. }
        | Command::Join { conn, .. }
        | Command::Leave { conn, .. }
        | Command::Session { conn, .. }
        | Command::User { conn, .. }
        | Command::Hold { conn, .. }
        | Command::Close { conn, .. } => Some(*conn),
        Command::Drain { .. } => None,
    }
}

/// A member that is slow keeps the whole group alive: small enough that its outbox's bound means something.
const GROUP_BYTES_MAX: usize = 256 * 1024;

#[cfg(test)]
mod tests {
    use std::collections::VecDeque;

    use tidegate_hub::{Settings, limits::Caps};

    use super::*;
    use crate::{EngineOptions, capacity::Capacity, networks::Networks};

    fn shared() -> Shared {
        let options = EngineOptions {
            host: String::new(),
            port: 0,
            shards: 3,
            http_socket: String::new(),
            caps: Caps { connections_max: 1, per_address_max: 0, per_user_max: 0, handshakes_per_s: 0 },
            proxy_trusted: Vec::new(),
            backlog_bytes_max: 1 << 20,
            tls: None,
            settings: Settings::default(),
        };
        Shared::new(options, Networks::default(), None, Capacity::of(1024).unwrap(), 3).unwrap()
    }

    fn on_shard(shard: u16) -> ConnId {
        ConnId::new(shard, 0, 0)
    }

    fn join(shard: u16, room: &str) -> Order {
        Order::Command(Command::Join { conn: on_shard(shard), room: room.into() })
    }

    fn leave(shard: u16, room: &str) -> Order {
        Order::Command(Command::Leave { conn: on_shard(shard), room: room.into() })
    }

    fn close(shard: u16) -> Order {
        Order::Command(Command::Close { conn: on_shard(shard), code: 1000, reason: "".into() })
    }

    fn publish(room: &str, bytes: &str) -> Order {
        let payload = Payload { bytes: bytes.as_bytes().into(), text: true };
        Order::Publish { room: room.into(), payload, exclude: Exclude::None }
    }

    /// What a shard got, in words: `join`, `leave`, `close`, `drain`, or a room and how many messages.
    fn got(shared: &Shared, shard: usize) -> Vec<String> {
        let mut inbox = VecDeque::new();
        shared.mailboxes[shard].take(&mut inbox);
        let word = |mail: &Mail| match mail {
            Mail::Publish(group) => format!("{} {}", group.room, group.messages()),
            Mail::Command(Command::Join { .. }) => "join".into(),
            Mail::Command(Command::Leave { .. }) => "leave".into(),
            Mail::Command(Command::Close { .. }) => "close".into(),
            Mail::Command(Command::Drain { .. }) => "drain".into(),
            other => panic!("{other:?}"),
        };
        inbox.iter().map(word).collect()
    }

    #[test]
    fn publishes_are_grouped_by_room_and_go_only_where_members_are() {
        let shared = shared();
        submit(&shared, vec![join(0, "a"), join(2, "a"), join(2, "b")]);
        (0..3).for_each(|shard| drop(got(&shared, shard)));
        submit(&shared, vec![publish("a", "1"), publish("b", "2"), publish("a", "3"), publish("c", "4")]);
        assert_eq!(got(&shared, 0), ["a 2"]);
        assert!(got(&shared, 1).is_empty());
        assert_eq!(got(&shared, 2), ["a 2", "b 1"]);
    }

    #[test]
    fn a_join_before_a_publish_of_the_same_batch_takes_effect_before() {
        let shared = shared();
        submit(&shared, vec![join(1, "a"), publish("a", "1")]);
        assert_eq!(got(&shared, 1), ["join", "a 1"]);
    }

    #[test]
    fn who_joins_after_a_publish_does_not_hear_it_and_who_leaves_after_does() {
        let shared = shared();
        let orders =
            vec![join(1, "a"), publish("a", "1"), join(1, "a"), publish("a", "2"), publish("a", "3"), leave(1, "a")];
        submit(&shared, orders);
        assert_eq!(got(&shared, 1), ["join", "a 1", "join", "a 2", "leave"]);
    }

    #[test]
    fn what_was_published_before_a_close_comes_before_it() {
        let shared = shared();
        submit(&shared, vec![join(1, "a"), publish("a", "1"), close(1), publish("a", "2")]);
        assert_eq!(got(&shared, 1), ["join", "a 1", "close", "a 1"]);
    }

    #[test]
    fn many_bytes_for_one_room_become_several_groups_in_order() {
        let shared = shared();
        let large = "x".repeat(GROUP_BYTES_MAX / 2);
        let mut orders = vec![join(1, "a")];
        orders.extend((0..5).map(|_| publish("a", &large)));
        submit(&shared, orders);
        assert_eq!(got(&shared, 1), ["join", "a 2", "a 2", "a 1"]);
    }

    #[test]
    fn one_message_for_many_rooms_is_encoded_once_and_keeps_each_rooms_order() {
        let shared = shared();
        submit(&shared, vec![join(0, "a"), join(1, "b")]);
        (0..3).for_each(|shard| drop(got(&shared, shard)));
        let payload = Payload { bytes: b"2".as_slice().into(), text: true };
        let rooms = ["a", "b", "nobody"].map(Into::into).into();
        submit(&shared, vec![publish("a", "1"), Order::PublishRooms { rooms, payload }, publish("a", "3")]);
        let [a, b] = [0, 1].map(|shard| {
            let mut inbox = VecDeque::new();
            shared.mailboxes[shard].take(&mut inbox);
            let groups = inbox.into_iter().map(|mail| if let Mail::Publish(group) = mail { group } else { panic!() });
            groups.collect::<Vec<_>>()
        });
        let mut deflater = tidegate_hub::ws::deflate::Deflater::default();
        let mut bytes = |group: &Group| group.frames(tidegate_hub::group::Encoding::Plain, &mut deflater).bytes.clone();
        assert_eq!((a.len(), b.len()), (3, 1));
        assert!(Arc::ptr_eq(&bytes(&a[1]), &bytes(&b[0])));
        assert_eq!(&bytes(&a[1])[2..], b"2");
        assert!(got(&shared, 2).is_empty());
    }

    #[test]
    fn a_drain_is_for_every_shard_and_a_shard_that_is_not_gets_nothing() {
        let shared = shared();
        submit(&shared, vec![join(7, "a"), Order::Command(Command::Drain { within_ms: 1 }), publish("a", "x")]);
        (0..3).for_each(|shard| assert_eq!(got(&shared, shard), ["drain"]));
    }
}
