//! Whom a plain event is for: what the profile would decide, where there is nothing to decide.
//!
//! An event is plain when it is one JSON object that names its target in a string at the top. Rule: `read` answers as the profile's
//! `on_bus` would, or not at all; then the profile is asked. `tests/unit/test_bus_rule.py` holds the two against each other.

use std::{borrow::Cow, ops::Range};

use crate::{
    Messages,
    json::{Scan, Value},
};

/// The keys of the routing fields, at the top of an event.
#[derive(Clone, Debug)]
pub struct Rule {
    /// Keys of the room, the user and the connection that must not get it.
    keys: [Box<str>; 3],
    /// Rooms of a user: each of these with the user's name behind it.
    user_rooms: Vec<Box<str>>,
}

#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct Plain<'a> {
    pub target: Target<'a>,
    /// A connection's UUID.
    pub exclude: Option<&'a str>,
}

#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Target<'a> {
    Room(&'a str),
    User(&'a str),
}

/// One text for one room.
#[derive(PartialEq, Eq, Debug)]
pub struct ForRoom<'a> {
    pub room: Cow<'a, str>,
    pub payload: &'a [u8],
    pub exclude: Option<&'a str>,
}

const ROOM: usize = 0;
const USER: usize = 1;
const EXCLUDE: usize = 2;

impl Rule {
    pub fn new(room: &str, user: &str, exclude: &str, user_rooms: &[String]) -> Self {
        Self {
            keys: [room.into(), user.into(), exclude.into()],
            user_rooms: user_rooms.iter().map(|prefix| prefix.as_str().into()).collect(),
        }
    }

    /// Adds what the plain events from `first` on are for, up to one that is not plain. Returns the events that the profile must be
    /// asked about; behind them is a plain one, or the end.
    pub fn apply<'a>(&self, messages: &'a Messages, first: usize, out: &mut Vec<ForRoom<'a>>) -> Range<usize> {
        let payload = |index: usize| messages.get(index).map_or(&[][..], |message| message.payload);
        let mut at = first;
        while let Some(plain) = self.read(payload(at)) {
            self.address(plain, payload(at), out);
            at += 1;
        }
        let end = (at..messages.len()).find(|index| self.read(payload(*index)).is_some());
        at..end.unwrap_or(messages.len())
    }

    fn address<'a>(&self, plain: Plain<'a>, payload: &'a [u8], out: &mut Vec<ForRoom<'a>>) {
        let exclude = plain.exclude;
        match plain.target {
            Target::Room(room) => out.push(ForRoom { room: room.into(), payload, exclude }),
            Target::User(user) => {
                let rooms = self.user_rooms.iter().map(|prefix| format!("{prefix}{user}").into());
                out.extend(rooms.map(|room| ForRoom { room, payload, exclude }));
            }
        }
    }

    /// `None`: ask the profile.
    pub fn read<'a>(&self, event: &'a [u8]) -> Option<Plain<'a>> {
        let mut values = [None; 3];
        let wanted = |key: &[u8]| self.keys.iter().position(|name| name.as_bytes() == key);
        Scan::new(simdutf8::basic::from_utf8(event).ok()?).object(wanted, |index, value| {
            // which of two values counts is the profile's to say
            let is_first = values[index].replace(value).is_none();
            let is_known = index == USER || !matches!(value, Value::Digits(_));
            (is_first && is_known).then_some(())
        })?;
        let [room, user, exclude] = [ROOM, USER, EXCLUDE].map(|index| match values[index] {
            Some(Value::Text(text) | Value::Digits(text)) if !text.is_empty() => Some(text),
            _ => None,
        });
        let target = room.map(Target::Room).or(user.map(Target::User))?;
        Some(Plain { target, exclude })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn read(event: &str) -> Option<Plain<'_>> {
        Rule::new("room", "user_id", "exclude_conn_id", &[]).read(event.as_bytes())
    }

    fn room(name: &str) -> Option<Plain<'_>> {
        Some(Plain { target: Target::Room(name), exclude: None })
    }

    fn user(name: &str) -> Option<Plain<'_>> {
        Some(Plain { target: Target::User(name), exclude: None })
    }

    #[test]
    fn a_room_comes_before_a_user_and_empty_counts_as_absent() {
        assert_eq!(read(r#"{"type":"m","room":"chat:1","user_id":"7"}"#), room("chat:1"));
        assert_eq!(read(r#" { "room" : "" , "user_id" : "7" } "#), user("7"));
        assert_eq!(read(r#"{"room":null,"user_id":12345}"#), user("12345"));
        let excluding = Plain { target: Target::Room("r"), exclude: Some("uuid") };
        assert_eq!(read(r#"{"exclude_conn_id":"uuid","room":"r"}"#), Some(excluding));
        assert_eq!(read(r#"{"exclude_conn_id":"","room":"r"}"#), room("r"));
    }

    #[test]
    fn plain_events_are_addressed_up_to_those_that_the_profile_must_see() {
        let rule = Rule::new("room", "user", "not", &["user:".into(), "@".into()]);
        let mut messages = Messages::default();
        let events = [r#"{"room":"a","not":"x"}"#, r#"{"user":7}"#, "odd", "[]", r#"{"room":"b"}"#];
        events.iter().for_each(|event| messages.push(b"s", b"r", event.as_bytes(), 1));
        let mut out = Vec::new();
        assert_eq!(rule.apply(&messages, 0, &mut out), 2..4);
        let rooms: Vec<_> = out.iter().map(|one| (&*one.room, one.payload, one.exclude)).collect();
        let [first, second] = [events[0].as_bytes(), events[1].as_bytes()];
        assert_eq!(rooms, [("a", first, Some("x")), ("user:7", second, None), ("@7", second, None)]);
        out.clear();
        assert_eq!(rule.apply(&messages, 4, &mut out), 5..5);
        assert_eq!(out.len(), 1);
        assert_eq!(rule.apply(&messages, 5, &mut out), 5..5);
    }

    #[test]
    fn only_the_top_of_the_event_is_looked_at_and_all_of_it_is_checked() {
        let event = r#"{"payload":{"room":"x","list":[1,-0.5e+10,true,false,null,"\u00e9\n",{}]},"room":"r"}"#;
        assert_eq!(read(event), room("r"));
        assert_eq!(read(r#"{"payload":{"room":"x"}}"#), None);
        (1..event.len()).for_each(|cut| assert_eq!(read(&event[..cut]), None, "cut at {cut}"));
    }

    #[test]
    fn what_needs_a_decision_is_left_to_the_profile() {
        for event in [
            r#"{"room":"a","room":"b"}"#,
            r#"{"room":"a\u0062"}"#,
            r#"{"\u0072oom":"a"}"#,
            r#"{"room":5}"#,
            r#"{"room":"a","user_id":[]}"#,
            r#"{"room":"a","exclude_conn_id":7}"#,
            r#"{"user_id":0}"#,
            r#"{"user_id":-1}"#,
            r#"{"user_id":1.5}"#,
            r#"{"user_id":1234567890123456789}"#,
            r#"{"type":"only"}"#,
            "{}",
            "[]",
            r#""room""#,
        ] {
            assert_eq!(read(event), None, "{event}");
        }
    }

    #[test]
    fn invalid_json_is_never_plain() {
        for value in [
            "tru",
            "nul",
            "01",
            "-",
            "1.",
            "1e",
            ".5",
            "+1",
            "NaN",
            "'x'",
            "\"\t\"",
            r#""\x""#,
            r#""\u12g4""#,
            r#""\ud800""#,
            r#""\uDFff""#,
            "[1,]",
            "{\"a\"}",
            "{\"a\":1,}",
            "{a:1}",
            "1e400",
            "[1 2]",
            "\"",
            "[",
            "{",
        ] {
            assert_eq!(read(&format!(r#"{{"room":"r","x":{value}}}"#)), None, "{value}");
        }
        assert_eq!(read(r#"{"room":"r"} x"#), None);
        assert_eq!(Rule::new("room", "u", "e", &[]).read(b"{\"room\":\"r\",\"x\":\"\xff\"}"), None);
        assert_eq!(read(&format!(r#"{{"room":"r","x":{}1{}}}"#, "[".repeat(100), "]".repeat(100))), None);
        assert_eq!(read("\u{feff}{\"room\":\"r\"}"), None);
    }
}
