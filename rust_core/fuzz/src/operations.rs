//! Sequences of everything a hub may be told, read from the fuzzer's bytes.
//!
//! Two bytes an operation, then its data. After each operation the hub's own invariants must hold; at the end, with everybody gone, all
//! sums must be zero.

use std::{
    collections::{BTreeMap, BTreeSet},
    hash::RandomState,
    net::{IpAddr, Ipv4Addr},
    sync::Arc,
};

use tidegate_hub::{
    Command, ConnId, Effect, Event, Group, Hub, Keys, Notice, Notices, Payload, Sent, Settings, Wire, settings::OutboxPolicy,
};

const ROOMS: [&str; 4] = ["a", "b", "c", "d"];
const REQUEST: &[u8] = b"GET /ws HTTP/1.1\r\nHost: a\r\nUpgrade: websocket\r\nConnection: Upgrade\r\n\
    Sec-WebSocket-Extensions: permessage-deflate\r\nSec-WebSocket-Key: dGhlIHNhbXBsZSBub25jZQ==\r\n\
    Sec-WebSocket-Version: 13\r\n\r\n";
/// Rooms become bitmaps beyond 32 members.
const SLOTS_MAX: usize = 40;

/// What each open socket still takes.
#[derive(Default)]
struct Sockets {
    takes: BTreeMap<ConnId, usize>,
    full: BTreeSet<ConnId>,
}

impl Wire for Sockets {
    fn write(&mut self, conn: ConnId, parts: &[&[u8]]) -> Sent {
        assert!(!self.full.contains(&conn), "a write to a full socket");
        let offered: usize = parts.iter().map(|part| part.len()).sum();
        assert!(offered > 0, "a write of nothing");
        let takes = self.takes.get_mut(&conn).expect("a write to a socket that was shut");
        if *takes == 13 {
            return Sent::Dead;
        }
        let taken = offered.min(*takes);
        *takes -= taken;
        if taken < offered {
            self.full.insert(conn);
        }
        Sent::Bytes(taken)
    }
}

struct Fuzz<'a> {
    hub: Hub,
    keys: Keys,
    sockets: Sockets,
    conns: Vec<ConnId>,
    /// Who was told, and who was let in and has not ended.
    asked: BTreeSet<ConnId>,
    admitted: BTreeSet<ConnId>,
    /// Tickets of messages of which nothing was told.
    untold: BTreeSet<u64>,
    tickets: u64,
    now: u64,
    data: &'a [u8],
}

pub fn hub(data: &[u8]) {
    let Some((&choice, data)) = data.split_first() else {
        return;
    };
    let keys = Keys::new(RandomState::new());
    let hub = Hub::new(1, Arc::new(settings(choice)), keys.clone());
    let mut fuzz = Fuzz {
        hub,
        keys,
        sockets: Sockets::default(),
        conns: Vec::new(),
        asked: BTreeSet::new(),
        admitted: BTreeSet::new(),
        untold: BTreeSet::new(),
        tickets: 0,
        now: 0,
        data,
    };
    while let Some((what, argument)) = fuzz.take_two() {
        fuzz.step(what, argument);
        fuzz.collect();
        fuzz.hub.check_invariants();
    }
    fuzz.finish();
}

/// Of one dialect: who speaks another gets none.
fn notices() -> Notices {
    let notice = |text: &[u8]| Some(Notice::new(text));
    Notices { excess: notice(b"slow $UNIX_SECONDS down"), silence: notice(b"silent"), farewell: notice(b"$UNIX_MILLIS") }
}

fn settings(choice: u8) -> Settings {
    let drop = OutboxPolicy::Drop { messages_max: 4 };
    Settings {
        slots_max: SLOTS_MAX,
        rooms_max: 3,
        outbox_bytes_max: 300,
        outbox_total_max: 1500,
        message_bytes_max: 500,
        message_burst: 50,
        outbox_policy: if choice & 1 == 0 { OutboxPolicy::Close } else { drop },
        compression: choice & 2 != 0,
        proxy_protocol: choice & 4 != 0,
        silence_code: if choice & 8 == 0 { 0 } else { 4408 },
        notices: vec![notices()],
        rate_mark: (choice & 16 != 0).then(|| b"x".as_slice().into()),
        ..Settings::default()
    }
}

impl Fuzz<'_> {
    fn take_two(&mut self) -> Option<(u8, u8)> {
        let (two, rest) = self.data.split_first_chunk::<2>()?;
        self.data = rest;
        Some((two[0], two[1]))
    }

    fn take(&mut self, len: usize) -> Vec<u8> {
        let (taken, rest) = self.data.split_at(len.min(self.data.len()));
        self.data = rest;
        taken.to_vec()
    }

    fn step(&mut self, what: u8, argument: u8) {
        let conn = self.conns.get(usize::from(argument) % self.conns.len().max(1));
        let conn = conn.copied().unwrap_or(ConnId(u64::from(argument)));
        let room = ROOMS[usize::from(argument) % ROOMS.len()];
        match what % 20 {
            0 => self.accept(),
            1 => self.accept_and_open(argument),
            2 => self.bytes(conn, REQUEST.to_vec()),
            3 => {
                let bytes = self.take(usize::from(what) / 4);
                self.bytes(conn, bytes);
            }
            4 | 5 => {
                let payload = self.take(usize::from(what) / 3);
                self.bytes(conn, frame(argument, &payload));
            }
            6 => self.admit(conn, argument),
            7 => self.command(Command::Refuse { conn, status: 403, body: Box::default(), retry_after_s: None }),
            8 => self.command(Command::Join { conn, room: ROOMS[usize::from(what / 20) % 4].into() }),
            9 => self.command(Command::Leave { conn, room: ROOMS[usize::from(what / 20) % 4].into() }),
            10 => self.send(conn, usize::from(what)),
            11 => self.command(Command::Close { conn, code: 900 + u16::from(what) * 2, reason: "bye".into() }),
            12 => self.hub.handle_eof(conn, self.now),
            13 => self.hub.handle_gone(conn, None, self.now),
            14 | 15 => self.publish(room, usize::from(what / 20) + 1, conn),
            16 => self.pass(u64::from(argument) * 100),
            17 => self.writable(conn, usize::from(what) * 3),
            18 => drop(self.hub.drive_writes(usize::from(argument % 16), &mut self.sockets, self.now)),
            _ if what > 200 => self.drain(argument),
            _ if what > 180 => self.command(Command::User { conn, user: u64::from(argument) }),
            _ => self.command(Command::Session { conn, session: Box::default() }),
        }
    }

    fn command(&mut self, command: Command) {
        self.hub.handle_command(command, self.now);
    }

    fn accept(&mut self) {
        match self.hub.handle_accept(IpAddr::V4(Ipv4Addr::LOCALHOST), self.now) {
            Some(conn) => {
                assert!(self.sockets.takes.insert(conn, 10_000).is_none(), "an id used twice");
                self.conns.push(conn);
            }
            None => assert_eq!(self.sockets.takes.len(), SLOTS_MAX),
        }
    }

    fn accept_and_open(&mut self, argument: u8) {
        self.accept();
        if let Some(&conn) = self.conns.last() {
            self.bytes(conn, REQUEST.to_vec());
            self.admit(conn, argument);
        }
    }

    fn bytes(&mut self, conn: ConnId, mut bytes: Vec<u8>) {
        self.hub.handle_bytes(conn, &mut bytes, self.now);
    }

    fn admit(&mut self, conn: ConnId, argument: u8) {
        let rooms = ROOMS.iter().enumerate().filter(|(at, _)| argument & (1 << at) != 0);
        let close = (argument > 250).then(|| (4000, "no".into()));
        self.collect();
        self.admitted.insert(conn);
        self.command(Command::Admit {
            conn,
            session: Box::from(*b"s"),
            user: Some(u64::from(argument)),
            rooms: rooms.map(|(_, room)| Box::from(*room)).collect(),
            payloads: vec![payload(usize::from(argument)); usize::from(argument & 1)],
            protocol: None,
            close,
            dialect: argument & 1,
        });
        // one that lives and has not asked has nothing to be answered, so its end need not be told
        if self.sockets.takes.contains_key(&conn) && !self.asked.contains(&conn) {
            self.collect();
            self.admitted.remove(&conn);
        }
    }

    /// Every other one asks what becomes of it.
    fn send(&mut self, conn: ConnId, len: usize) {
        self.tickets += 1;
        let ticket = self.tickets * (self.tickets % 2);
        if ticket > 0 {
            self.untold.insert(ticket);
        }
        self.command(Command::Send { conn, payload: payload(len), ticket });
    }

    fn drain(&mut self, argument: u8) {
        self.command(Command::Drain { within_ms: u64::from(argument) * 100 });
    }

    fn publish(&mut self, room: &str, count: usize, excluded: ConnId) {
        let messages = (0..count).map(|at| (payload(at * 20), (at % 3 == 1).then_some(excluded))).collect();
        let group = Group::encode(room.into(), self.keys.room(room), messages);
        self.hub.handle_publish(&Arc::new(group), self.now);
    }

    fn pass(&mut self, ms: u64) {
        self.now += ms;
        self.hub.handle_timeout(self.now);
        assert!(self.hub.poll_timeout().is_none_or(|next| next > self.now), "a deadline in the past");
    }

    fn writable(&mut self, conn: ConnId, takes: usize) {
        if let Some(socket) = self.sockets.takes.get_mut(&conn) {
            *socket = takes;
            self.sockets.full.remove(&conn);
            self.hub.handle_writable(conn);
        }
    }

    fn collect(&mut self) {
        while let Some(event) = self.hub.poll_event() {
            match event {
                Event::Upgrade { conn, .. } => {
                    assert!(self.asked.insert(conn), "asked twice");
                }
                Event::Message { conn, .. } | Event::Failed { conn, .. } | Event::Overdue { conn, .. } => {
                    assert!(self.admitted.contains(&conn), "an event of a stranger or after Closed");
                }
                Event::Closed { conn, .. } => assert!(self.admitted.remove(&conn), "an end too many"),
                Event::Told { ticket, .. } => assert!(self.untold.remove(&ticket), "told twice"),
            }
        }
        while let Some(effect) = self.hub.poll_effect() {
            if let Effect::Shut { conn, .. } | Effect::HandOver { conn, .. } = effect {
                assert!(self.sockets.takes.remove(&conn).is_some(), "shut twice");
                self.sockets.full.remove(&conn);
                self.conns.retain(|open| *open != conn);
            }
        }
    }

    fn finish(mut self) {
        for conn in std::mem::take(&mut self.conns) {
            self.hub.handle_gone(conn, None, self.now);
        }
        self.collect();
        self.hub.check_invariants();
        assert!(!self.hub.drive_writes(1000, &mut self.sockets, self.now), "writes for nobody");
        assert!(self.sockets.takes.is_empty());
        assert!(self.admitted.is_empty(), "let in, and no end was told");
        assert!(self.untold.is_empty(), "nothing was told of a message");
        let stats = self.hub.stats();
        let left = [stats.connections_now, stats.handshakes_now, stats.rooms_now, stats.memberships_now];
        assert_eq!(left, [0; 4]);
        assert_eq!((self.hub.backlog_bytes(), stats.deflate_now), (0, 0));
    }
}

fn payload(len: usize) -> Payload {
    Payload { bytes: vec![b'x'; len].into(), text: true }
}

/// A client's frame: its first byte as the fuzzer likes it, its mask all zero.
fn frame(first: u8, payload: &[u8]) -> Vec<u8> {
    [&[first, 0x80 | payload.len() as u8, 0, 0, 0, 0], payload].concat()
}
