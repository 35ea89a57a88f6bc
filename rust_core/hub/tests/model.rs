//! Random operations against a model that is too simple to be wrong.
//!
//! Few connections and fewer rooms, so that every operation meets every other: joins and leaves in mid-pass, slots let again, members that die
//! while they are visited, sockets that take a byte at a time. Every connection that lives must have received exactly what was published
//! to its rooms while it was in them, room by room in order; every connection that was closed politely, all of it before the close. And what
//! became of a direct message is told once, truly; the end of whoever was admitted as well, also of who had left by then.

mod support;

use std::collections::{BTreeMap, BTreeSet};

use support::{
    client::{CLOSE, TEXT},
    random::{Random, for_each_seed},
    world::{World, admit, text_payload},
};
use tidegate_hub::{Command, ConnId, Effect, Event, Fate, Settings};

const ROOMS: [&str; 6] = ["everybody", "many", "half", "some", "pair", "alone"];
const STEPS: usize = 1500;

/// What one connection should have, by room; "" for messages to itself.
#[derive(Default)]
struct Client {
    rooms: BTreeSet<&'static str>,
    expected: BTreeMap<String, Vec<u64>>,
    received: BTreeMap<String, Vec<u64>>,
    /// It was told to go: everything expected comes before the close frame.
    closing: bool,
    close_seen: bool,
    /// Its socket died: it may have missed the end.
    dead: bool,
}

struct Model {
    world: World,
    random: Random,
    clients: BTreeMap<ConnId, Client>,
    number: u64,
    joins: usize,
    /// What a direct message must be told as, by its ticket; `None`: a dead socket may not have been noticed.
    fates: BTreeMap<u64, Option<Fate>>,
}

impl Model {
    fn new(seed: u64) -> Self {
        // time stands still: deadlines have tests of their own
        let settings = Settings { rooms_max: 4, outbox_bytes_max: 1 << 20, ..Settings::default() };
        let mut world = World::new(settings);
        let mut random = Random::new(seed);
        world.budget = 1 + random.below(60);
        Self { world, random, clients: BTreeMap::new(), number: 0, joins: 0, fates: BTreeMap::new() }
    }

    fn step(&mut self) {
        let conn = self.pick();
        match self.random.below(100) {
            0..8 => self.open(),
            8..18 => self.join(conn),
            18..26 => self.leave(conn),
            26..28 => self.close(conn),
            28..30 => self.kill(conn),
            30..55 => self.publish(),
            55..61 => self.send(conn),
            61 => self.send_to_anybody(),
            62..80 => self.drive(),
            _ => self.stretch(conn),
        }
        self.world.collect();
        if self.random.one_in(20) {
            self.world.hub.check_invariants();
        }
    }

    /// Anybody who has been told nothing yet.
    fn pick(&mut self) -> ConnId {
        let alive: Vec<ConnId> = self.alive();
        self.random.pick(&alive).copied().unwrap_or(ConnId(0))
    }

    fn alive(&self) -> Vec<ConnId> {
        let alive = self.clients.iter().filter(|(_, client)| !client.closing && !client.dead);
        alive.map(|(conn, _)| *conn).collect()
    }

    fn open(&mut self) {
        if self.alive().len() >= 60 {
            return;
        }
        let conn = self.world.accept();
        let mut request = support::client::request("/ws", "");
        self.world.hub.handle_bytes(conn, &mut request, self.world.now);
        let rooms: Vec<&'static str> = match self.random.below(3) {
            0 => vec!["everybody"],
            1 => vec!["everybody", "many"],
            _ => vec!["everybody", ROOMS[self.random.below(ROOMS.len())]],
        };
        self.joins += rooms.len();
        if self.random.one_in(10) {
            self.world.hub.handle_gone(conn, None, self.world.now);
            self.world.hub.handle_command(admit(conn, &rooms), self.world.now);
            self.clients.insert(conn, Client { dead: true, ..Client::default() });
            return;
        }
        self.world.hub.handle_command(admit(conn, &rooms), self.world.now);
        let socket = self.world.sockets.0.get_mut(&conn).unwrap();
        socket.room = if self.random.one_in(2) { usize::MAX } else { self.random.below(300) };
        self.clients.insert(conn, Client { rooms: rooms.into_iter().collect(), ..Client::default() });
    }

    fn join(&mut self, conn: ConnId) {
        let room = ROOMS[self.random.below(ROOMS.len())];
        self.joins += 1;
        self.world.hub.handle_command(Command::Join { conn, room: room.into() }, self.world.now);
        if let Some(client) = self.clients.get_mut(&conn) {
            if client.rooms.len() >= 4 && !client.rooms.contains(room) {
                client.closing = true;
            } else {
                client.rooms.insert(room);
            }
        }
    }

    fn leave(&mut self, conn: ConnId) {
        let room = ROOMS[self.random.below(ROOMS.len())];
        self.world.hub.handle_command(Command::Leave { conn, room: room.into() }, self.world.now);
        if let Some(client) = self.clients.get_mut(&conn) {
            client.rooms.remove(room);
        }
    }

    fn close(&mut self, conn: ConnId) {
        self.world.hub.handle_command(Command::Close { conn, code: 4000, reason: "".into() }, self.world.now);
        if let Some(client) = self.clients.get_mut(&conn) {
            client.closing = true;
        }
    }

    /// By a reset, noticed at once or at the next write.
    fn kill(&mut self, conn: ConnId) {
        let Some(client) = self.clients.get_mut(&conn) else {
            return;
        };
        client.dead = true;
        if self.random.one_in(2) {
            self.world.hub.handle_gone(conn, None, self.world.now);
        } else {
            self.world.socket(conn).dead = true;
            self.world.make_room_quietly(conn);
        }
    }

    fn publish(&mut self) {
        let room = ROOMS[self.random.below(ROOMS.len())];
        let excluded = if self.random.one_in(3) { Some(self.pick()) } else { None };
        self.number += 1;
        let padding = "x".repeat(self.random.below(200));
        self.world.publish_except(room, &format!("{room}:{}:{padding}", self.number), excluded);
        for (conn, client) in &mut self.clients {
            if client.rooms.contains(room) && !client.closing && !client.dead && Some(*conn) != excluded {
                client.expected.entry(room.into()).or_default().push(self.number);
            }
        }
    }

    fn send(&mut self, conn: ConnId) {
        self.number += 1;
        let payload = text_payload(&format!(":{}:", self.number));
        self.world.hub.handle_command(Command::Send { conn, payload, ticket: self.number }, self.world.now);
        let client = self.clients.get_mut(&conn).filter(|client| !client.closing && !client.dead);
        let fate = if client.is_some() { Fate::Queued } else { Fate::Gone };
        self.fates.insert(self.number, Some(fate));
        if let Some(client) = client {
            client.expected.entry(String::new()).or_default().push(self.number);
        }
    }

    /// Also to who is closing, dead or gone.
    fn send_to_anybody(&mut self) {
        let all: Vec<ConnId> = self.clients.keys().copied().collect();
        let Some(conn) = self.random.pick(&all).copied() else {
            return;
        };
        let unnoticed = self.clients[&conn].dead && self.world.is_open(conn);
        self.send(conn);
        if unnoticed {
            self.fates.insert(self.number, None);
        }
    }

    fn drive(&mut self) {
        let budget = self.random.below(40);
        self.world.hub.drive_writes(budget, &mut self.world.sockets, self.world.now);
    }

    /// A socket takes a little more, or all there is.
    fn stretch(&mut self, conn: ConnId) {
        let room = if self.random.one_in(4) { usize::MAX } else { self.random.below(400) };
        if let Some(socket) = self.world.sockets.0.get_mut(&conn) {
            socket.room = room;
            if room > 0 && std::mem::take(&mut socket.full) {
                self.world.hub.handle_writable(conn);
            }
        }
    }

    /// Everybody reads everything.
    fn finish(&mut self) {
        let conns: Vec<ConnId> = self.world.sockets.0.keys().copied().collect();
        for conn in conns {
            self.world.make_room(conn, usize::MAX);
        }
        self.world.settle();
        self.world.hub.check_invariants();
        for (conn, client) in &mut self.clients {
            let frames = self.world.socket(*conn).reader.frames();
            for frame in frames {
                assert!(!client.close_seen, "{conn:?} got something after the close");
                client.close_seen |= frame.opcode == CLOSE;
                if frame.opcode == TEXT {
                    let mut words = frame.text().split(':');
                    let room = words.next().unwrap().to_string();
                    client.received.entry(room).or_default().push(words.next().unwrap().parse().unwrap());
                }
            }
        }
    }

    fn check(&mut self) {
        self.finish();
        for (conn, client) in &self.clients {
            assert!(client.dead || client.close_seen == client.closing, "{conn:?}: close frame");
            let rooms = client.expected.keys().chain(client.received.keys());
            for room in rooms {
                let expected = client.expected.get(room).map_or(&[][..], Vec::as_slice);
                let received = client.received.get(room).map_or(&[][..], Vec::as_slice);
                if client.dead {
                    assert!(expected.starts_with(received), "{conn:?} in {room:?}: {received:?} of {expected:?}");
                } else {
                    assert_eq!(received, expected, "{conn:?} in {room:?}");
                }
            }
        }
        self.check_directory();
        self.check_events();
    }

    /// Replays what the directory was told.
    fn check_directory(&self) {
        let (mut open, mut joined) = (BTreeSet::new(), 0);
        for effect in &self.world.effects {
            match effect {
                Effect::RoomOpened { hash } => assert!(open.insert(*hash), "opened twice"),
                Effect::RoomEmptied { hash } => {
                    assert!(open.remove(hash), "emptied and was not open")
                }
                Effect::Joined { .. } => joined += 1,
                _ => {}
            }
        }
        let rooms =
            self.clients.values().filter(|client| !client.closing && !client.dead).flat_map(|client| &client.rooms);
        let expected: BTreeSet<u64> = rooms.map(|room| self.world.keys.room(room)).collect();
        // a dead socket nobody wrote to still counts as a member
        assert!(open.is_superset(&expected));
        assert_eq!(open.len() as u64, self.world.hub.stats().rooms_now);
        assert_eq!(joined, self.joins);
    }

    fn check_events(&self) {
        let mut closed = BTreeSet::new();
        for event in &self.world.events {
            if let Event::Closed { conn, .. } = event {
                assert!(closed.insert(*conn), "closed twice");
            }
        }
        let mut told = BTreeSet::new();
        for event in &self.world.events {
            if let Event::Told { ticket, fate, .. } = event {
                assert!(told.insert(*ticket), "told twice");
                assert!(self.fates[ticket].is_none_or(|expected| expected == *fate), "{ticket}: {fate:?}");
            }
        }
        assert_eq!(told.len(), self.fates.len());
        for conn in self.clients.keys() {
            assert_ne!(closed.contains(conn), self.world.is_open(*conn), "{conn:?}: closed and open");
        }
    }
}

impl World {
    fn make_room_quietly(&mut self, conn: ConnId) {
        if let Some(socket) = self.sockets.0.get_mut(&conn)
            && std::mem::take(&mut socket.full)
        {
            self.hub.handle_writable(conn);
        }
    }
}

#[test]
fn every_member_gets_exactly_what_was_published_while_it_was_one() {
    for_each_seed(60, |seed| {
        let mut model = Model::new(seed);
        for _ in 0..STEPS {
            model.step();
        }
        model.check();
    });
}
