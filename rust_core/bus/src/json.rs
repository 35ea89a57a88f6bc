//! One pass over a JSON text that must be valid: strings without escapes are read, any other value is only checked.
//!
//! Rule: it accepts a subset of what the profile's parser (orjson, RFC 8259) accepts. Odd things that are valid (half a surrogate pair,
//! very long numbers, deep nesting) are refused too, since refusing costs a slower path and accepting could cost a wrong one.

pub struct Scan<'a> {
    text: &'a [u8],
    at: usize,
}

/// The value of a key that is looked for.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Value<'a> {
    Null,
    Text(&'a str),
    /// Decimal digits, as Python would write them.
    Digits(&'a str),
}

impl<'a> Scan<'a> {
    /// `text` must be UTF-8.
    pub fn new(text: &'a str) -> Self {
        Self { text: text.as_bytes(), at: 0 }
    }

    /// Calls `key` with each key of the one object that the text is; it says whether the value is wanted and gets it through `value`.
    pub fn object(
        mut self,
        wanted: impl Fn(&[u8]) -> Option<usize>,
        mut found: impl FnMut(usize, Value<'a>) -> Option<()>,
    ) -> Option<()> {
        self.token(b'{')?;
        if self.peek()? == b'}' {
            self.at += 1;
            return self.end();
        }
        loop {
            self.token(b'"')?;
            let key = self.plain_text()?;
            self.token(b':')?;
            match wanted(key.as_bytes()) {
                Some(index) => found(index, self.simple()?)?,
                None => self.value(0)?,
            }
            match self.next()? {
                b',' => {}
                b'}' => return self.end(),
                _ => return None,
            }
        }
    }

    fn end(&mut self) -> Option<()> {
        self.blanks();
        (self.at == self.text.len()).then_some(())
    }

    fn blanks(&mut self) {
        while let Some(b' ' | b'\t' | b'\n' | b'\r') = self.text.get(self.at) {
            self.at += 1;
        }
    }

    fn peek(&mut self) -> Option<u8> {
        self.blanks();
        self.text.get(self.at).copied()
    }

    fn next(&mut self) -> Option<u8> {
        let byte = self.peek()?;
        self.at += 1;
        Some(byte)
    }

    fn token(&mut self, byte: u8) -> Option<()> {
        (self.next()? == byte).then_some(())
    }

    /// The rest of a string that has no escape.
    fn plain_text(&mut self) -> Option<&'a str> {
        let begin = self.at;
        let rest = &self.text[begin..];
        let length = rest.iter().position(|byte| matches!(byte, b'"' | b'\\' | 0..0x20))?;
        self.at += length + 1;
        (rest[length] == b'"').then(|| std::str::from_utf8(&rest[..length]).ok())?
    }

    fn simple(&mut self) -> Option<Value<'a>> {
        match self.peek()? {
            b'"' => {
                self.at += 1;
                self.plain_text().map(Value::Text)
            }
            b'n' => self.word(b"null").map(|()| Value::Null),
            b'1'..=b'9' => {
                let begin = self.at;
                let length = self.text[begin..].iter().take_while(|byte| byte.is_ascii_digit()).count();
                self.at += length;
                let is_integer = !matches!(self.text.get(self.at), Some(b'.' | b'e' | b'E'));
                let digits = std::str::from_utf8(&self.text[begin..self.at]).ok()?;
                (is_integer && length <= INTEGER_DIGITS_MAX).then_some(Value::Digits(digits))
            }
            _ => None,
        }
    }

    fn value(&mut self, depth: usize) -> Option<()> {
        match self.next()? {
            b'"' => self.text(),
            b'{' if depth < DEPTH_MAX => self.members(depth),
            b'[' if depth < DEPTH_MAX => self.items(depth),
            b't' => self.word(b"rue"),
            b'f' => self.word(b"alse"),
            b'n' => self.word(b"ull"),
            b'-' => {
                self.at += usize::from(self.text.get(self.at)?.is_ascii_digit());
                self.number(self.text[self.at - 1])
            }
            digit => self.number(digit),
        }
    }

    fn members(&mut self, depth: usize) -> Option<()> {
        if self.peek()? == b'}' {
            self.at += 1;
            return Some(());
        }
        loop {
            self.token(b'"')?;
            self.text()?;
            self.token(b':')?;
            self.value(depth + 1)?;
            match self.next()? {
                b',' => {}
                b'}' => return Some(()),
                _ => return None,
            }
        }
    }

    fn items(&mut self, depth: usize) -> Option<()> {
        if self.peek()? == b']' {
            self.at += 1;
            return Some(());
        }
        loop {
            self.value(depth + 1)?;
            match self.next()? {
                b',' => {}
                b']' => return Some(()),
                _ => return None,
            }
        }
    }

    /// The rest of any string.
    fn text(&mut self) -> Option<()> {
        loop {
            let length = self.text[self.at..].iter().position(|byte| matches!(byte, b'"' | b'\\' | 0..0x20))?;
            self.at += length + 1;
            match self.text[self.at - 1] {
                b'"' => return Some(()),
                b'\\' => self.escape()?,
                _ => return None,
            }
        }
    }

    fn escape(&mut self) -> Option<()> {
        let kind = *self.text.get(self.at)?;
        self.at += 1;
        match kind {
            b'"' | b'\\' | b'/' | b'b' | b'f' | b'n' | b'r' | b't' => Some(()),
            b'u' => {
                let digits = self.text.get(self.at..self.at + 4)?;
                self.at += 4;
                // half of a pair, maybe without the other half
                let is_surrogate = matches!(digits, [b'd' | b'D', b'8' | b'9' | b'a'..=b'f' | b'A'..=b'F', ..]);
                (digits.iter().all(u8::is_ascii_hexdigit) && !is_surrogate).then_some(())
            }
            _ => None,
        }
    }

    /// The rest of a number whose first digit was `first`.
    fn number(&mut self, first: u8) -> Option<()> {
        let begin = self.at;
        match first {
            b'0' => {}
            b'1'..=b'9' => self.digits(),
            _ => return None,
        }
        if self.text.get(self.at) == Some(&b'.') {
            self.at += 1;
            self.some_digits()?;
        }
        let is_short = self.at - begin <= NUMBER_BYTES_MAX;
        if let Some(b'e' | b'E') = self.text.get(self.at) {
            self.at += 1;
            self.at += usize::from(matches!(self.text.get(self.at), Some(b'+' | b'-')));
            let exponent = self.at;
            self.some_digits()?;
            return (is_short && self.at - exponent <= EXPONENT_DIGITS_MAX).then_some(());
        }
        is_short.then_some(())
    }

    fn digits(&mut self) {
        self.at += self.text[self.at..].iter().take_while(|byte| byte.is_ascii_digit()).count();
    }

    fn some_digits(&mut self) -> Option<()> {
        let begin = self.at;
        self.digits();
        (self.at > begin).then_some(())
    }

    fn word(&mut self, word: &[u8]) -> Option<()> {
        self.text[self.at..].starts_with(word).then(|| self.at += word.len())
    }
}

/// Far below what the profile's parser takes (1,024), and deeper than events are.
const DEPTH_MAX: usize = 64;
/// Below 2^63, so it is an integer for everybody.
const INTEGER_DIGITS_MAX: usize = 18;
/// With two digits of exponent still far from infinity.
const NUMBER_BYTES_MAX: usize = 64;
const EXPONENT_DIGITS_MAX: usize = 2;
