//! Whom to connect to, and the request that client number i sends.
//!
//! The URL is a template: `{i}` is the client's number, `{i%N}` and `{i/N}` that number taken modulo or divided by N (which room, which
//! brand), `{token}` line i of the token file, round robin. Rule: pure but for reading the file once.

use std::fmt::Write;
use std::net::SocketAddrV4;

pub struct Target {
    pub address: SocketAddrV4,
    path: Template,
    tokens: Vec<String>,
}

/// A text with a client's number, or what follows from it, in places.
pub struct Template(Vec<Piece>);

#[derive(Debug, PartialEq)]
enum Piece {
    Text(String),
    Index,
    Modulo(u32),
    Divided(u32),
    Token,
}

/// The sample key of RFC 6455; a client that checks the answer needs no secret one.
const KEY: &str = "dGhlIHNhbXBsZSBub25jZQ==";

/// What a server must answer to `KEY`.
pub const ACCEPT: &[u8] = b"s3pPLMBiTxaQ9kYGzzhZRbK+xOo=";

impl Target {
    pub fn parse(url: &str, token_file: Option<&str>) -> Result<Self, String> {
        let rest = url.strip_prefix("ws://").ok_or("--url begins with ws://")?;
        let (address, path) = rest.split_once('/').ok_or("--url needs a path")?;
        let tokens = match token_file {
            Some(file) => read_tokens(file)?,
            None => Vec::new(),
        };
        let path = Template::strict(&format!("/{path}"))?;
        if path.0.contains(&Piece::Token) && tokens.is_empty() {
            return Err("the URL has {token}: name a file with --tokens, one token a line".to_owned());
        }
        let address = address.parse().map_err(|_| format!("{address}: an IPv4 address and port are needed"))?;
        Ok(Self { address, path, tokens })
    }

    /// `extensions` is what the client offers, `""` = none.
    pub fn request(&self, index: u32, extensions: &str) -> Vec<u8> {
        let mut request = String::from("GET ");
        request.push_str(&self.fill(&self.path, index));
        let address = self.address;
        request.push_str(" HTTP/1.1\r\nHost: ");
        let host = write!(request, "{address}");
        debug_assert!(host.is_ok(), "writing to a String cannot fail");
        request.push_str(
            "\r\nUpgrade: websocket\r\nConnection: Upgrade\r\nSec-WebSocket-Version: 13\r\nSec-WebSocket-Key: ",
        );
        request.push_str(KEY);
        if !extensions.is_empty() {
            request.push_str("\r\nSec-WebSocket-Extensions: ");
            request.push_str(extensions);
        }
        request.push_str("\r\n\r\n");
        request.into_bytes()
    }

    pub fn fill(&self, template: &Template, index: u32) -> String {
        let mut text = String::new();
        for piece in &template.0 {
            self.write(piece, index, &mut text);
        }
        text
    }

    fn write(&self, piece: &Piece, index: u32, request: &mut String) {
        match piece {
            Piece::Text(text) => request.push_str(text),
            Piece::Index => request.push_str(&index.to_string()),
            Piece::Modulo(divisor) => request.push_str(&(index % divisor).to_string()),
            Piece::Divided(divisor) => request.push_str(&(index / divisor).to_string()),
            Piece::Token => request.push_str(&self.tokens[index as usize % self.tokens.len()]),
        }
    }
}

fn read_tokens(file: &str) -> Result<Vec<String>, String> {
    let text = std::fs::read_to_string(file).map_err(|error| format!("{file}: {error}"))?;
    Ok(text.lines().map(str::to_owned).collect())
}

impl Template {
    /// Every brace must belong to a placeholder.
    fn strict(text: &str) -> Result<Self, String> {
        let mut pieces = Vec::new();
        let mut rest = text;
        while let Some((before, after)) = rest.split_once('{') {
            let (name, after) = after.split_once('}').ok_or("the URL has { without }")?;
            pieces.push(Piece::Text(before.to_owned()));
            pieces.push(placeholder(name)?);
            rest = after;
        }
        pieces.push(Piece::Text(rest.to_owned()));
        Ok(Self(pieces))
    }

    /// Braces that belong to none are text, as in JSON.
    pub fn loose(text: &str) -> Self {
        let (mut pieces, mut plain, mut rest) = (Vec::new(), String::new(), text);
        while let Some((before, after)) = rest.split_once('{') {
            plain.push_str(before);
            match after.split_once('}').and_then(|(name, after)| Some((placeholder(name).ok()?, after))) {
                Some((piece, after)) => {
                    pieces.push(Piece::Text(std::mem::take(&mut plain)));
                    pieces.push(piece);
                    rest = after;
                }
                None => {
                    plain.push('{');
                    rest = after;
                }
            }
        }
        pieces.push(Piece::Text(plain + rest));
        Self(pieces)
    }
}

fn placeholder(name: &str) -> Result<Piece, String> {
    let number = |text: &str| text.parse().ok().filter(|divisor| *divisor > 0);
    let piece = match name {
        "i" => Some(Piece::Index),
        "token" => Some(Piece::Token),
        _ => (name.strip_prefix("i%").and_then(number).map(Piece::Modulo))
            .or_else(|| name.strip_prefix("i/").and_then(number).map(Piece::Divided)),
    };
    piece.ok_or_else(|| format!("{{{name}}} in the URL; use {{i}}, {{i%N}}, {{i/N}} or {{token}}"))
}

#[cfg(test)]
mod tests {
    use super::{Target, Template};

    #[test]
    fn client_numbers_are_filled_in() {
        let target = Target::parse("ws://127.0.0.1:80/ws?u={i}&r={i%10}&b={i/10}", None).expect("valid");
        let request = String::from_utf8(target.request(37, "")).expect("text");
        assert!(request.starts_with("GET /ws?u=37&r=7&b=3 HTTP/1.1\r\nHost: 127.0.0.1:80\r\n"), "{request}");
    }

    #[test]
    fn in_json_only_placeholders_are_filled_in() {
        let target = Target::parse("ws://127.0.0.1:80/ws", None).expect("valid");
        let text = Template::loose(r#"{"event":"subscribe","data":{"channel":"user.{i}.{i%10}"},"x":"{"#);
        assert_eq!(target.fill(&text, 37), r#"{"event":"subscribe","data":{"channel":"user.37.7"},"x":"{"#);
    }

    #[test]
    fn a_wrong_placeholder_or_a_missing_token_file_is_refused() {
        assert!(Target::parse("ws://127.0.0.1:80/{j}", None).is_err());
        assert!(Target::parse("ws://127.0.0.1:80/{i%0}", None).is_err());
        assert!(Target::parse("ws://127.0.0.1:80/{token}", None).is_err());
    }
}
