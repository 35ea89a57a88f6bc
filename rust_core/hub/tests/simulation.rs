//! Ten thousand clients on one shard, in virtual time.
//!
//! Sockets take what they like, when they like; clients stop reading, stop answering, vanish, come back, join, leave and talk, while rooms
//! of one and of everybody are published to. Odd seeds close who is silent, even ones drop it. What must hold: each member gets each message at
//! most once and in room order; who keeps up gets all; what is owed stays bounded; an idle connection owns no buffer; in the end everything
//! drains.

mod support;

use support::{
    client::{self, CLOSE, PING, TEXT},
    random::{Random, for_each_seed},
    world::{World, admit},
};
use tidegate_hub::{Command, ConnId, Effect, Event, Notice, Notices, Refusal, Settings};

const CLIENTS: usize = 10_000;
/// Everybody is in the first; the others have a tenth, a hundredth, a thousandth of all.
const SHARED_ROOMS: [&str; 4] = ["everybody", "tenth", "hundredth", "few"];
const STEPS: usize = 80;
/// Messages of a burst: together more than an outbox holds, less than an outbox and a socket that is read.
const BURST: usize = 60;
const OUTBOX_BYTES_MAX: usize = 4 * 1024;
const OUTBOX_TOTAL_MAX: usize = 8 << 20;

#[derive(Clone, Copy, PartialEq, Eq, Debug)]
enum Habit {
    /// Reads and answers.
    Healthy,
    /// Reads a little at a time: everything gets there, later.
    Slow,
    /// Never reads again.
    Stuck,
    /// Reads, but answers no ping.
    Mute,
}

struct Client {
    conn: ConnId,
    habit: Habit,
    /// Shared rooms it has been in since it came.
    rooms: Vec<&'static str>,
    /// The last number of each shared room that it has seen, or that was published before it came.
    last: [u64; 4],
    /// It was told that it is not heard any more.
    told_to_go: bool,
    last_word: bool,
}

const LAST_WORDS: [&[u8]; 2] = [b"silent", b"goodbye"];

struct Simulation {
    world: World,
    random: Random,
    clients: Vec<Client>,
    published: [u64; 4],
    came: u64,
    gone: u64,
}

impl Simulation {
    fn new(seed: u64) -> Self {
        let notice = |text| Some(Notice::new(text));
        let settings = Settings {
            outbox_bytes_max: OUTBOX_BYTES_MAX,
            outbox_total_max: OUTBOX_TOTAL_MAX,
            slots_max: CLIENTS + 500,
            silence_code: if seed % 2 == 1 { 4408 } else { 0 },
            notices: vec![Notices { excess: None, silence: notice(LAST_WORDS[0]), farewell: notice(LAST_WORDS[1]) }],
            ..Settings::default()
        };
        let mut world = World::new(settings);
        world.budget = 512;
        Self { world, random: Random::new(seed), clients: Vec::new(), published: [0; 4], came: 0, gone: 0 }
    }

    fn arrive(&mut self) {
        let conn = self.world.accept();
        let request = client::request("/ws", "");
        let cut = self.random.below(request.len());
        for part in [&request[..cut], &request[cut..]] {
            self.world.hub.handle_bytes(conn, &mut part.to_vec(), self.world.now);
        }
        let own = format!("user:{}", self.came);
        self.came += 1;
        let mut rooms = vec!["everybody"];
        rooms.extend(
            [(10, "tenth"), (100, "hundredth"), (1000, "few")]
                .iter()
                .filter(|(n, _)| self.came.is_multiple_of(*n))
                .map(|(_, room)| room),
        );
        let all: Vec<&str> = rooms.iter().copied().chain([own.as_str()]).collect();
        self.world.hub.handle_command(admit(conn, &all), self.world.now);
        let habit = match self.random.below(100) {
            0..90 => Habit::Healthy,
            90..95 => Habit::Slow,
            95..98 => Habit::Stuck,
            _ => Habit::Mute,
        };
        self.clients.push(Client { conn, habit, rooms, last: self.published, told_to_go: false, last_word: false });
    }

    fn step(&mut self) {
        for at in 0..SHARED_ROOMS.len() {
            for _ in 0..self.random.below(3) {
                self.publish(at);
            }
        }
        for _ in 0..50 {
            let own = format!("user:{}", self.random.below(self.came as usize));
            self.world.publish_except(&own, "for you", None);
        }
        self.churn();
        self.talk();
        // the publishes above meet passes under way
        self.world.hub.drive_writes(2000, &mut self.world.sockets, self.world.now);
        self.publish(0);
        if self.random.one_in(8) {
            (0..BURST).for_each(|_| self.publish(0));
        }
        self.world.settle();
        self.read();
        self.check_bounds();
        self.world.pass(1700);
    }

    fn publish(&mut self, at: usize) {
        self.published[at] += 1;
        let text = format!("{at}:{}:{}", self.published[at], "x".repeat(self.random.below(120)));
        self.world.publish_except(SHARED_ROOMS[at], &text, None);
    }

    /// Some vanish without a word, some say goodbye, and as many come.
    fn churn(&mut self) {
        for _ in 0..20 {
            let at = self.random.below(self.clients.len());
            self.read_one(at);
            let client = self.clients.swap_remove(at);
            if !self.world.is_open(client.conn) {
                continue;
            }
            match self.random.below(3) {
                0 => self.world.hub.handle_gone(client.conn, None, self.world.now),
                1 => self.world.hub.handle_eof(client.conn, self.world.now),
                _ => self.world.hub.handle_bytes(client.conn, &mut client::close(1001), self.world.now),
            }
            self.world.collect();
        }
        let missing = CLIENTS.saturating_sub(self.clients.len());
        (0..missing).for_each(|_| self.arrive());
    }

    /// Messages cut anywhere, joins and leaves of rooms that nobody counts.
    fn talk(&mut self) {
        for _ in 0..200 {
            let Some(client) = self.random.pick(&self.clients).filter(|client| self.world.is_open(client.conn)) else {
                continue;
            };
            let conn = client.conn;
            let mut bytes = client::frame(TEXT, &vec![b'm'; self.random.below(300)]);
            let (first, rest) = bytes.split_at_mut(self.random.below(7));
            self.world.hub.handle_bytes(conn, first, self.world.now);
            self.world.hub.handle_bytes(conn, rest, self.world.now);
            let room: Box<str> = format!("chat:{}", self.random.below(50)).into();
            let command = match self.random.below(2) {
                0 => Command::Join { conn, room },
                _ => Command::Leave { conn, room },
            };
            self.world.hub.handle_command(command, self.world.now);
        }
    }

    fn read(&mut self) {
        let mut at = 0;
        while at < self.clients.len() {
            self.read_one(at);
            let Client { conn, habit, .. } = self.clients[at];
            if self.world.is_open(conn) {
                self.make_room(conn, habit);
                at += 1;
            } else {
                self.gone += 1;
                self.check_gone(at);
                self.clients.swap_remove(at);
            }
        }
        self.world.settle();
    }

    /// Who keeps up has read everything before the next step, and again has room for most of a burst.
    fn make_room(&mut self, conn: ConnId, habit: Habit) {
        match habit {
            Habit::Stuck => self.restock(conn, 0),
            Habit::Slow => self.restock(conn, 1500),
            Habit::Healthy | Habit::Mute => {
                while self.world.sockets.0.get(&conn).is_some_and(|socket| socket.full) {
                    let room = 1 + self.random.below(3000);
                    self.restock(conn, room);
                    self.world.settle();
                }
                let room = 4000 + self.random.below(4000);
                self.restock(conn, room);
            }
        }
    }

    fn restock(&mut self, conn: ConnId, room: usize) {
        let Some(socket) = self.world.sockets.0.get_mut(&conn) else {
            return;
        };
        socket.room = room;
        if room > 0 && std::mem::take(&mut socket.full) {
            self.world.hub.handle_writable(conn);
        }
    }

    /// Reads what came, checks it, answers pings.
    fn read_one(&mut self, at: usize) {
        let client = &mut self.clients[at];
        let mut pings = 0;
        for frame in self.world.socket(client.conn).reader.frames() {
            pings += usize::from(frame.opcode == PING);
            client.told_to_go |= frame.opcode == CLOSE;
            // a last word follows who was heard no more, and nothing but the close frame follows that
            assert!(!client.last_word || frame.opcode == CLOSE, "{frame:?} after the last word");
            client.last_word |= LAST_WORDS.contains(&&frame.payload[..]);
            if frame.opcode != TEXT || client.last_word || frame.payload == b"for you" {
                continue;
            }
            let mut words = frame.text().split(':');
            let room: usize = words.next().unwrap().parse().unwrap();
            let number: u64 = words.next().unwrap().parse().unwrap();
            assert!(client.rooms.contains(&SHARED_ROOMS[room]), "a message of a room it is not in");
            // one more than the last: nothing twice, nothing out of order, no silent gap, nothing from before it came
            assert_eq!(number, client.last[room] + 1, "{:?} in {room}", client.conn);
            client.last[room] = number;
        }
        if pings > 0 && client.habit != Habit::Mute && self.world.is_open(client.conn) {
            let (conn, now) = (client.conn, self.world.now);
            self.world.hub.handle_bytes(conn, &mut client::frame(client::PONG, b""), now);
        }
    }

    /// Only who gave a reason is ended by the hub.
    fn check_gone(&self, at: usize) {
        let habit = self.clients[at].habit;
        assert!(matches!(habit, Habit::Stuck | Habit::Mute | Habit::Slow), "a healthy client was ended");
    }

    fn check_bounds(&self) {
        let owed = self.world.hub.stats().outbox_bytes_now as usize;
        assert!(owed <= OUTBOX_TOTAL_MAX + OUTBOX_BYTES_MAX, "{owed} bytes owed");
        assert_eq!(self.world.hub.stats().backlog_bytes_now, 0);
    }

    /// Who keeps up has everything since it came.
    fn check_complete(&mut self) {
        for at in 0..self.clients.len() {
            self.read_one(at);
            let client = &self.clients[at];
            let kept_up = matches!(client.habit, Habit::Healthy | Habit::Mute) && !client.told_to_go;
            if !kept_up || !self.world.is_open(client.conn) {
                continue;
            }
            for (at, room) in SHARED_ROOMS.iter().enumerate() {
                let complete = client.last[at] == self.published[at];
                assert!(complete || !client.rooms.contains(room), "{:?} in {room}", client.conn);
            }
            assert!(!self.world.hub.owns_buffers(client.conn), "an idle client owns a buffer");
        }
    }

    fn drain(&mut self) {
        self.world.command(Command::Drain { within_ms: 20_000 });
        for _ in 0..21 {
            self.world.pass(1000);
            self.world.settle();
        }
        assert!(self.world.hub.is_drained() && self.world.sockets.0.is_empty());
        let stats = self.world.hub.stats();
        assert_eq!((stats.connections_now, stats.rooms_now, stats.memberships_now), (0, 0, 0));
        assert_eq!((stats.outbox_bytes_now, stats.backlog_bytes_now, stats.handshakes_now), (0, 0, 0));
    }

    fn check_totals(&self) {
        let count =
            |wanted: fn(&Effect) -> bool| self.world.effects.iter().filter(|effect| wanted(effect)).count() as u64;
        assert_eq!(count(|effect| matches!(effect, Effect::Shut { .. })), self.came);
        assert_eq!(
            count(|effect| matches!(effect, Effect::RoomOpened { .. })),
            count(|effect| matches!(effect, Effect::RoomEmptied { .. }))
        );
        let closed = self.world.events.iter().filter(|event| matches!(event, Event::Closed { .. })).count();
        assert_eq!(closed as u64, self.came);
        for why in [Refusal::PongTimeout, Refusal::WriteTimeout, Refusal::SlowClose] {
            assert!(self.world.refused(why) > 0, "no {} in all that time", why.label());
        }
        assert_eq!(self.world.refused(Refusal::Protocol), 0);
        assert!(self.gone > 100);
    }
}

#[test]
fn ten_thousand_clients_are_served_and_the_slow_ones_pay_for_themselves() {
    for_each_seed(1, |seed| {
        let mut simulation = Simulation::new(seed);
        (0..CLIENTS).for_each(|_| simulation.arrive());
        simulation.world.settle();
        for step in 0..STEPS {
            simulation.step();
            if step % 10 == 0 {
                simulation.world.hub.check_invariants();
            }
        }
        simulation.read();
        simulation.check_complete();
        simulation.world.hub.check_invariants();
        simulation.drain();
        simulation.check_totals();
    });
}
