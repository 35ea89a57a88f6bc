//! Comma-separated lists of RFC 9110 section 5.6: tokens and quoted strings.
//!
//! Rule: every byte is looked at a bounded number of times, whatever it is (CVE-2021-32640 was a pattern that was not).

/// The parts between separators that stand outside quotes, without the blanks around them.
pub(super) fn split(value: &[u8], separator: u8) -> impl Iterator<Item = &[u8]> {
    let (mut quoted, mut escaped) = (false, false);
    value
        .split(move |&byte| {
            if escaped {
                escaped = false;
                return false;
            }
            match byte {
                b'"' => quoted = !quoted,
                b'\\' if quoted => escaped = true,
                _ => return byte == separator && !quoted,
            }
            false
        })
        .map(<[u8]>::trim_ascii)
}

/// Whether a list of tokens has `token` in it, in any case of letters.
pub(super) fn has_token(value: &[u8], token: &str) -> bool {
    value.split(|&byte| byte == b',').any(|part| part.trim_ascii().eq_ignore_ascii_case(token.as_bytes()))
}

/// RFC 9110 section 5.6.2.
pub(super) fn is_token(bytes: &[u8]) -> bool {
    !bytes.is_empty() && bytes.iter().all(|&byte| is_token_byte(byte))
}

pub(super) fn is_token_byte(byte: u8) -> bool {
    byte.is_ascii_alphanumeric() || b"!#$%&'*+-.^_`|~".contains(&byte)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn parts(value: &str) -> Vec<&str> {
        split(value.as_bytes(), b',').map(|part| std::str::from_utf8(part).unwrap()).collect()
    }

    #[test]
    fn a_separator_in_quotes_does_not_separate() {
        assert_eq!(parts("a , b,,c"), ["a", "b", "", "c"]);
        assert_eq!(parts(r#"a="x,y", b"#), [r#"a="x,y""#, "b"]);
        assert_eq!(parts(r#"a="x\",y", b"#), [r#"a="x\",y""#, "b"]);
        assert_eq!(parts(r#"a="never ends, b"#), [r#"a="never ends, b"#]);
    }

    #[test]
    fn a_token_is_found_in_any_case_and_only_as_a_whole() {
        assert!(has_token(b"keep-alive, Upgrade", "upgrade"));
        assert!(!has_token(b"upgrades, not-upgrade", "upgrade"));
        assert!(!has_token(b"", "upgrade"));
    }

    #[test]
    fn blanks_controls_and_bytes_above_ascii_are_in_no_token() {
        assert!(is_token(b"chat.v1-2"));
        for bad in [&b""[..], b"a b", b"a\x00", b"\xff", b"\"a\"", b"a/b"] {
            assert!(!is_token(bad), "{bad:?}");
        }
    }
}
