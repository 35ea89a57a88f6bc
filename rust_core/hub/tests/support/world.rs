//! A hub with its sockets and its clock.

use std::{
    collections::HashMap,
    hash::RandomState,
    net::{IpAddr, Ipv4Addr},
    sync::Arc,
};

use tidegate_hub::{Command, ConnId, Effect, Event, Group, Hub, Keys, Millis, Payload, Refusal, Sent, Settings, Wire};

use super::client::{self, Frame, Reader};

/// One end of a connection as the system shows it to the hub.
pub struct Socket {
    pub reader: Reader,
    /// Bytes it still takes before it is full.
    pub room: usize,
    /// It was written more than it took, and has not said that it is writable since.
    pub full: bool,
    pub dead: bool,
    pub writes: usize,
}

#[derive(Default)]
pub struct Sockets(pub HashMap<ConnId, Socket>);

impl Wire for Sockets {
    fn write(&mut self, conn: ConnId, parts: &[&[u8]]) -> Sent {
        let socket = self.0.get_mut(&conn).expect("writes go to open sockets only");
        assert!(!socket.full, "no write to a full socket before it is writable");
        assert!(parts.len() <= 64, "{} parts", parts.len());
        assert!(parts.iter().any(|part| !part.is_empty()), "a write of nothing");
        socket.writes += 1;
        if socket.dead {
            return Sent::Dead;
        }
        let mut taken = 0;
        for part in parts {
            let len = part.len().min(socket.room);
            socket.reader.push(&part[..len]);
            socket.room -= len;
            taken += len;
            if len < part.len() {
                socket.full = true;
                break;
            }
        }
        Sent::Bytes(taken)
    }
}

pub struct World {
    pub hub: Hub,
    pub keys: Keys,
    pub now: Millis,
    pub sockets: Sockets,
    pub events: Vec<Event>,
    pub effects: Vec<Effect>,
    /// Sockets that the hub has ended, with what they had received.
    pub shut: HashMap<ConnId, Socket>,
    pub budget: usize,
}

pub const PEER: IpAddr = IpAddr::V4(Ipv4Addr::new(192, 0, 2, 7));

impl World {
    pub fn new(settings: Settings) -> Self {
        let keys = Keys::new(RandomState::new());
        Self {
            hub: Hub::new(3, Arc::new(settings), keys.clone()),
            keys,
            now: 1_000_000,
            sockets: Sockets::default(),
            events: Vec::new(),
            effects: Vec::new(),
            shut: HashMap::new(),
            budget: 1000,
        }
    }

    /// Takes what the hub has to say, as the rule of its use demands.
    pub fn collect(&mut self) {
        while let Some(event) = self.hub.poll_event() {
            self.events.push(event);
        }
        while let Some(effect) = self.hub.poll_effect() {
            if let Effect::Shut { conn, .. } | Effect::HandOver { conn, .. } = effect {
                let socket = self.sockets.0.remove(&conn).expect("shut once");
                self.shut.insert(conn, socket);
            }
            self.effects.push(effect);
        }
    }

    /// Lets the hub write until it has nothing more to write.
    pub fn settle(&mut self) {
        self.collect();
        let mut turns = 0;
        while self.hub.drive_writes(self.budget, &mut self.sockets, self.now) {
            self.collect();
            turns += 1;
            assert!(turns < 1_000_000, "writing never ends");
        }
        self.collect();
    }

    /// Time passes; every deadline on the way is met at its time.
    pub fn pass(&mut self, ms: Millis) {
        let until = self.now + ms;
        while let Some(next) = self.hub.poll_timeout().filter(|next| *next <= until) {
            self.now = self.now.max(next);
            self.hub.handle_timeout(self.now);
            self.settle();
            assert!(self.hub.poll_timeout().is_none_or(|again| again > self.now), "a deadline in the past");
        }
        self.now = until;
    }

    pub fn accept(&mut self) -> ConnId {
        let conn = self.hub.handle_accept(PEER, self.now).expect("a free slot");
        let socket = Socket { reader: Reader::default(), room: usize::MAX, full: false, dead: false, writes: 0 };
        assert!(self.sockets.0.insert(conn, socket).is_none());
        conn
    }

    pub fn receive(&mut self, conn: ConnId, bytes: &[u8]) {
        self.hub.handle_bytes(conn, &mut bytes.to_vec(), self.now);
        self.settle();
    }

    pub fn command(&mut self, command: Command) {
        self.hub.handle_command(command, self.now);
        self.settle();
    }

    /// A connection that waits for the application.
    pub fn upgrade(&mut self, extra: &str) -> ConnId {
        let conn = self.accept();
        self.receive(conn, &client::request("/ws", extra));
        match self.events.pop() {
            Some(Event::Upgrade { conn: asked, .. }) => assert_eq!(asked, conn),
            other => panic!("no upgrade but {other:?}"),
        }
        conn
    }

    /// An admitted connection.
    pub fn open(&mut self, rooms: &[&str]) -> ConnId {
        let conn = self.upgrade("");
        self.command(admit(conn, rooms));
        conn
    }

    pub fn publish(&mut self, room: &str, text: &str) {
        self.publish_except(room, text, None);
        self.settle();
    }

    pub fn publish_except(&mut self, room: &str, text: &str, exclude: Option<ConnId>) {
        let group = Group::encode(room.into(), self.keys.room(room), vec![(text_payload(text), exclude)]);
        self.hub.handle_publish(&Arc::new(group), self.now);
    }

    pub fn socket(&mut self, conn: ConnId) -> &mut Socket {
        match self.sockets.0.get_mut(&conn) {
            Some(socket) => socket,
            None => self.shut.get_mut(&conn).expect("a connection of this world"),
        }
    }

    pub fn frames(&mut self, conn: ConnId) -> Vec<Frame> {
        self.socket(conn).reader.frames()
    }

    pub fn texts(&mut self, conn: ConnId) -> Vec<String> {
        let frames = self.frames(conn);
        frames.iter().filter(|frame| frame.opcode == client::TEXT).map(|frame| frame.text().into()).collect()
    }

    /// The socket takes `bytes` more.
    pub fn make_room(&mut self, conn: ConnId, bytes: usize) {
        if let Some(socket) = self.sockets.0.get_mut(&conn) {
            socket.room = bytes;
            if std::mem::take(&mut socket.full) {
                self.hub.handle_writable(conn);
            }
        }
        self.settle();
    }

    pub fn is_open(&self, conn: ConnId) -> bool {
        self.sockets.0.contains_key(&conn)
    }

    pub fn refused(&self, why: Refusal) -> u64 {
        self.hub.stats().refused(why)
    }

    /// The code with which the application was told that `conn` is over.
    pub fn closed(&self, conn: ConnId) -> Option<u16> {
        self.events.iter().find_map(|event| match event {
            Event::Closed { conn: closed, code, .. } if *closed == conn => Some(*code),
            _ => None,
        })
    }
}

pub fn admit(conn: ConnId, rooms: &[&str]) -> Command {
    Command::Admit {
        conn,
        session: Box::from(*b"session"),
        user: None,
        rooms: rooms.iter().map(|room| Box::from(*room)).collect(),
        payloads: Vec::new(),
        protocol: None,
        close: None,
        dialect: 0,
    }
}

pub fn text_payload(text: &str) -> Payload {
    Payload { bytes: text.as_bytes().into(), text: true }
}
