//! What an event of epoll is about, in the 64 bits that the kernel carries for us.
//!
//! Rule: a connection's token is its id. What is no connection uses shard numbers that no shard has.

use tidegate_hub::ConnId;

use crate::{capacity::SHARDS_MAX, numbered::Number};

#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Token {
    Conn(ConnId),
    Listener,
    Mailbox,
    Relay(Number),
    Linger(Number),
}

impl Token {
    pub fn bits(self) -> u64 {
        match self {
            Token::Conn(conn) => conn.0,
            Token::Listener => ConnId::new(LISTENER, 0, 0).0,
            Token::Mailbox => ConnId::new(MAILBOX, 0, 0).0,
            Token::Relay(number) => ConnId::new(RELAY, number.place, number.generation).0,
            Token::Linger(number) => ConnId::new(LINGER, number.place, number.generation).0,
        }
    }

    pub fn of(bits: u64) -> Self {
        let id = ConnId(bits);
        let number = Number { place: id.slot(), generation: id.generation() };
        match id.shard() {
            LISTENER => Token::Listener,
            MAILBOX => Token::Mailbox,
            RELAY => Token::Relay(number),
            LINGER => Token::Linger(number),
            _ => Token::Conn(id),
        }
    }
}

const LISTENER: u16 = SHARDS_MAX as u16;
const MAILBOX: u16 = LISTENER + 1;
const RELAY: u16 = LISTENER + 2;
const LINGER: u16 = LISTENER + 3;

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_token_survives_its_way_through_the_kernel() {
        let number = Number { place: 1023, generation: u32::MAX };
        let last = ConnId::new(SHARDS_MAX as u16 - 1, ConnId::SLOTS_MAX as u32 - 1, u32::MAX);
        let first = ConnId::new(0, 0, 0);
        let relay = Token::Relay(number);
        for token in
            [Token::Conn(first), Token::Conn(last), Token::Listener, Token::Mailbox, relay, Token::Linger(number)]
        {
            assert_eq!(Token::of(token.bits()), token);
        }
    }
}
