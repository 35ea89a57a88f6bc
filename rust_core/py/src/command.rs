//! Commands from Python as orders for the engine; their shapes are in `python/tidegate/engine.py`.
//!
//! Rule: a malformed command is the caller's exception before anything of its batch is carried out.

use pyo3::{
    exceptions::PyValueError,
    prelude::*,
    types::{PyBytes, PyInt, PyTuple},
};
use tidegate_hub::{Command, ConnId, Payload};
use tidegate_net::{Exclude, Order};

const ADMIT: u8 = 1;
const REFUSE: u8 = 2;
const SEND: u8 = 3;
const PUBLISH: u8 = 4;
const JOIN: u8 = 5;
const LEAVE: u8 = 6;
const SESSION: u8 = 7;
const CLOSE: u8 = 8;
const PUBLISH_ROOMS: u8 = 9;
const USER: u8 = 10;
const HOLD: u8 = 11;

pub const NAMES: [(&str, u8); 11] = [
    ("ADMIT", ADMIT),
    ("REFUSE", REFUSE),
    ("SEND", SEND),
    ("PUBLISH", PUBLISH),
    ("JOIN", JOIN),
    ("LEAVE", LEAVE),
    ("SESSION", SESSION),
    ("CLOSE", CLOSE),
    ("PUBLISH_ROOMS", PUBLISH_ROOMS),
    ("USER", USER),
    ("HOLD", HOLD),
];

/// `user_hash` names a user to the engine.
pub fn from_python(command: &Bound<'_, PyAny>, user_hash: impl Fn(&str) -> u64) -> PyResult<Order> {
    let fields = Fields::of(command)?;
    if fields.kind == PUBLISH {
        return publish(&fields);
    }
    if fields.kind == PUBLISH_ROOMS {
        return publish_rooms(&fields);
    }
    let conn = ConnId(fields.at(1)?);
    let command = match fields.kind {
        ADMIT => admit(&fields, conn, user_hash)?,
        REFUSE => Command::Refuse { conn, status: fields.at(2)?, body: fields.bytes(3)?, retry_after_s: fields.at(4)? },
        SEND => Command::Send { conn, payload: fields.payload(2)?, ticket: fields.at(4)? },
        JOIN => Command::Join { conn, room: fields.text(2)? },
        LEAVE => Command::Leave { conn, room: fields.text(2)? },
        SESSION => Command::Session { conn, session: fields.bytes(2)? },
        USER => Command::User { conn, user: user_hash(&fields.text(2)?) },
        HOLD => Command::Hold { conn, on: fields.at(2)? },
        // `Fields::of` lets no other number through
        _ => Command::Close { conn, code: fields.at(2)?, reason: fields.text(3)? },
    };
    Ok(Order::Command(command))
}

fn admit(fields: &Fields<'_, '_>, conn: ConnId, user_hash: impl Fn(&str) -> u64) -> PyResult<Command> {
    let user: Option<String> = fields.at(3)?;
    let rooms: Vec<String> = fields.at(4)?;
    let payloads = fields
        .item(5)?
        .try_iter()?
        .map(|text| Ok(Payload { bytes: text?.cast::<PyBytes>()?.as_bytes().into(), text: true }));
    let protocol: Option<String> = fields.at(6)?;
    let close: Option<(u16, String)> = fields.at(7)?;
    Ok(Command::Admit {
        conn,
        session: fields.bytes(2)?,
        user: user.as_deref().map(user_hash),
        rooms: rooms.into_iter().map(String::into_boxed_str).collect(),
        payloads: payloads.collect::<PyResult<_>>()?,
        protocol: protocol.map(String::into_boxed_str),
        close: close.map(|(code, reason)| (code, reason.into_boxed_str())),
        dialect: fields.at(8)?,
    })
}

fn publish(fields: &Fields<'_, '_>) -> PyResult<Order> {
    let who = fields.item(4)?;
    let exclude = if who.is_none() {
        Exclude::None
    } else if who.is_instance_of::<PyInt>() {
        Exclude::Conn(ConnId(who.extract()?))
    } else {
        Exclude::Uuid(who.extract()?)
    };
    Ok(Order::Publish { room: fields.text(1)?, payload: fields.payload(2)?, exclude })
}

fn publish_rooms(fields: &Fields<'_, '_>) -> PyResult<Order> {
    let rooms: Vec<String> = fields.at(1)?;
    let rooms = rooms.into_iter().map(String::into_boxed_str).collect();
    Ok(Order::PublishRooms { rooms, payload: fields.payload(2)? })
}

/// A command's tuple of the length that its kind has.
struct Fields<'a, 'py> {
    kind: u8,
    tuple: &'a Bound<'py, PyTuple>,
}

impl<'a, 'py> Fields<'a, 'py> {
    fn of(command: &'a Bound<'py, PyAny>) -> PyResult<Self> {
        let tuple = command.cast::<PyTuple>()?;
        if tuple.is_empty() {
            return Err(PyValueError::new_err("a command begins with its number"));
        }
        let kind: u8 = tuple.get_item(0)?.extract()?;
        let length = match kind {
            ADMIT => 9,
            REFUSE | SEND | PUBLISH => 5,
            CLOSE | PUBLISH_ROOMS => 4,
            JOIN | LEAVE | SESSION | USER | HOLD => 3,
            _ => {
                return Err(PyValueError::new_err(format!("no command begins with {kind}")));
            }
        };
        if tuple.len() != length {
            let (name, _) = NAMES[usize::from(kind) - 1];
            return Err(PyValueError::new_err(format!("{name} has {length} fields, not {}", tuple.len())));
        }
        Ok(Self { kind, tuple })
    }

    fn item(&self, index: usize) -> PyResult<Bound<'py, PyAny>> {
        self.tuple.get_item(index)
    }

    fn at<T: FromPyObjectOwned<'py>>(&self, index: usize) -> PyResult<T> {
        self.item(index)?.extract().map_err(Into::into)
    }

    fn bytes(&self, index: usize) -> PyResult<Box<[u8]>> {
        Ok(self.item(index)?.cast::<PyBytes>()?.as_bytes().into())
    }

    fn text(&self, index: usize) -> PyResult<Box<str>> {
        self.at::<String>(index).map(String::into_boxed_str)
    }

    /// Bytes, and in the next field whether they are text.
    fn payload(&self, index: usize) -> PyResult<Payload> {
        Ok(Payload { bytes: self.bytes(index)?, text: self.at(index + 1)? })
    }
}
