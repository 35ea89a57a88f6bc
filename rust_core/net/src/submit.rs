//! Orders become mail: each to the shard it is for, publishes encoded once for all.
//!
//! Rule: what a connection is told, and what a room is told, happens in the order it was submitted. Publishes to one room are
//! gathered over the whole batch, so what changes who is in a room (join, leave, admit, close) ends the gathering for it first; only
//! a direct send may overtake a publish of the same batch.

use std::sync::Arc;

use hashbrown::HashMap;
use tidegate_hub::{Command, ConnId, Group, Payload};

use crate::{Exclude, Order, mailbox::Mail, shared::Shared};

/// Sorts a batch and posts it.
pub fn submit(shared: &Shared, orders: Vec<Order>) {
    let mut batch = Batch::new(shared);
    for order in orders {
        match order {
            Order::Command(command) => batch.command(command),
            Order::Publish {
                room,
                payload,
                exclude,
            } => batch.publish(room, payload, exclude),
        }
    }
    batch.finish_all();
    for (shard, mail) in batch.mail.iter_mut().enumerate() {
        shared.mailboxes[shard].post(mail);
    }
}

struct Batch<'a> {
    shared: &'a Shared,
    /// By shard.
    mail: Vec<Vec<Mail>>,
    /// In the order of their first message. A finished one leaves an empty place.
    open: Vec<Option<Gathering>>,
    places: HashMap<u64, usize>,
    shards: Vec<u16>,
}

/// Publishes to one room, not encoded yet.
struct Gathering {
    room: Box<str>,
    hash: u64,
    messages: Vec<(Payload, Option<ConnId>)>,
    bytes: usize,
}

impl<'a> Batch<'a> {
    fn new(shared: &'a Shared) -> Self {
        let mail = shared.mailboxes.iter().map(|_| Vec::new()).collect();
        Self {
            shared,
            mail,
            open: Vec::new(),
            places: HashMap::new(),
            shards: Vec::new(),
        }
    }

    fn command(&mut self, command: Command) {
        let Some(conn) = conn_of(&command) else {
            return self.to_all(&command);
        };
        let shard = conn.shard();
        if usize::from(shard) >= self.mail.len() {
            // it names no connection that ever was
            return;
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

    fn publish(&mut self, room: Box<str>, payload: Payload, exclude: Exclude) {
        let hash = self.shared.keys.room(&room);
        let exclude = match exclude {
            Exclude::None => None,
            Exclude::Conn(conn) => Some(conn),
            Exclude::Uuid(uuid) => self.shared.keys.conn(&uuid),
        };
        let gathering = self.gathering(room, hash);
        gathering.bytes += payload.bytes.len();
        gathering.messages.push((payload, exclude));
        if gathering.bytes >= GROUP_BYTES_MAX {
            self.finish(hash);
        }
    }

    fn gathering(&mut self, room: Box<str>, hash: u64) -> &mut Gathering {
        let other_room = |place: &usize| {
            self.open[*place]
                .as_ref()
                .is_none_or(|open| open.room != room)
        };
        if self.places.get(&hash).is_some_and(other_room) {
            self.finish(hash);
        }
        let place = *self.places.entry(hash).or_insert(self.open.len());
        if place == self.open.len() {
            self.open.push(None);
        }
        self.open[place].get_or_insert_with(|| Gathering {
            room,
            hash,
            messages: Vec::new(),
            bytes: 0,
        })
    }

    /// Marks the join before the shard can see it; see `directory`.
    fn joins(&mut self, room: &str, shard: u16) {
        let hash = self.shared.keys.room(room);
        self.finish(hash);
        self.shared.directory.join_submitted(hash, shard);
    }

    fn finish(&mut self, hash: u64) {
        if let Some(gathering) = self
            .places
            .remove(&hash)
            .and_then(|place| self.open[place].take())
        {
            self.send_out(gathering);
        }
    }

    fn finish_all(&mut self) {
        self.places.clear();
        for gathering in std::mem::take(&mut self.open).into_iter().flatten() {
            self.send_out(gathering);
        }
    }

    fn send_out(&mut self, gathering: Gathering) {
        self.shared
            .directory
            .lookup(gathering.hash, &mut self.shards);
        if self.shards.is_empty() {
            return;
        }
        let group = Arc::new(Group::encode(
            gathering.room,
            gathering.hash,
            gathering.messages,
        ));
        for shard in &self.shards {
            self.mail[usize::from(*shard)].push(Mail::Publish(group.clone()));
        }
    }

    /// `Drain` is the one command that is for every shard.
    fn to_all(&mut self, command: &Command) {
        self.finish_all();
        if let Command::Drain { within_ms } = *command {
            self.mail
                .iter_mut()
                .for_each(|mail| mail.push(Mail::Command(Command::Drain { within_ms })));
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
        | Command::Close { conn, .. } => Some(*conn),
        Command::Drain { .. } => None,
    }
}

/// A member that is slow keeps the whole group alive: small enough that its outbox's bound means something.
const GROUP_BYTES_MAX: usize = 256 * 1024;
