//! The opening handshake, requirement by requirement, and what broke other servers there.

use tidegate_hub::{
    Refusal, Settings,
    ws::{
        deflate::Negotiated,
        upgrade::{Rejection, Request, Upgrade, find_head_end, offers, parse},
    },
};

const KEY: &str = "dGhlIHNhbXBsZSBub25jZQ==";

/// The headers of a good upgrade, those named in `changes` replaced (or, with an empty value, left out).
fn head(changes: &[(&str, &str)]) -> Vec<u8> {
    let good = [
        ("Host", "chat.example.com"),
        ("Upgrade", "websocket"),
        ("Connection", "Upgrade"),
        ("Sec-WebSocket-Key", KEY),
        ("Sec-WebSocket-Version", "13"),
    ];
    let mut lines = vec!["GET /ws?token=x HTTP/1.1".to_owned()];
    let changed = |name: &str| changes.iter().any(|(other, _)| *other == name);
    let kept = good.iter().filter(|(name, _)| !changed(name));
    let added = changes.iter().filter(|(_, value)| !value.is_empty());
    lines.extend(kept.chain(added).map(|(name, value)| format!("{name}: {value}")));
    format!("{}\r\n\r\n", lines.join("\r\n")).into_bytes()
}

fn accepted(head: &[u8], settings: &Settings) -> Upgrade {
    match parse(head, settings) {
        Ok(Request::WebSocket(upgrade)) => upgrade,
        other => panic!("{other:?} for {:?}", String::from_utf8_lossy(head)),
    }
}

fn rejected(head: &[u8]) -> Rejection {
    match parse(head, &Settings::default()) {
        Err(rejection) => rejection,
        other => panic!("{other:?} for {:?}", String::from_utf8_lossy(head)),
    }
}

fn status(changes: &[(&str, &str)]) -> u16 {
    rejected(&head(changes)).status
}

fn with_line(line: &str, by: &str) -> Vec<u8> {
    let head = String::from_utf8(head(&[])).unwrap();
    assert!(head.contains(line));
    head.replace(line, by).into_bytes()
}

#[test]
fn the_example_of_rfc_6455_section_1_3_is_accepted() {
    let upgrade = accepted(&head(&[("Sec-WebSocket-Protocol", "chat, superchat")]), &Settings::default());
    assert_eq!(&upgrade.accept, b"s3pPLMBiTxaQ9kYGzzhZRbK+xOo=");
    assert_eq!(&*upgrade.target, b"/ws?token=x");
    assert!(offers(&upgrade.protocols, "chat") && offers(&upgrade.protocols, "superchat"));
    assert!(!offers(&upgrade.protocols, "Chat") && !offers(&upgrade.protocols, "") && !offers(b"", ""));
}

#[test]
fn names_and_tokens_are_found_in_any_case_and_among_others() {
    for changes in [
        [("Upgrade", "WebSocket"), ("Connection", "keep-alive, UPGRADE")],
        [("Upgrade", "h2c, websocket"), ("Connection", "upgrade,close")],
    ] {
        accepted(&head(&changes), &Settings::default());
    }
    accepted(&with_line("Sec-WebSocket-Key:", "sec-websocket-KEY:  \t"), &Settings::default());
}

#[test]
fn the_headers_asked_for_come_in_order_and_repeated_ones_joined() {
    let settings =
        Settings { headers: ["origin", "authorization", "x-tag"].map(String::from).to_vec(), ..Settings::default() };
    let head = head(&[("X-Tag", "a"), ("Origin", "https://a.example"), ("x-tag", "b\u{e9}")]);
    let values = accepted(&head, &settings).headers;
    assert_eq!(values[0].as_deref(), Some(&b"https://a.example"[..]));
    assert_eq!(values[1], None);
    assert_eq!(values[2].as_deref(), Some("a, b\u{e9}".as_bytes()));
}

#[test]
fn other_paths_belong_to_the_http_app() {
    for target in ["/", "/health", "/wss", "/ws/", "/WS", "/%77s", "//ws", "*", "/x?/ws", "ftp://h/ws", "http://h"] {
        let head = with_line("/ws?token=x", target);
        assert_eq!(parse(&head, &Settings::default()), Ok(Request::Http), "{target}");
    }
    let post = b"POST /api/publish HTTP/1.1\r\nHost: a\r\nContent-Length: 2\r\n\r\n";
    assert_eq!(parse(post, &Settings::default()), Ok(Request::Http));
    assert_eq!(parse(b"GET / HTTP/1.0\r\n\r\n", &Settings::default()), Ok(Request::Http));
}

#[test]
fn a_target_with_scheme_and_authority_is_the_same_path() {
    let upgrade = accepted(&with_line("/ws?token=x", "http://other.example/ws?token=x"), &Settings::default());
    assert_eq!(&*upgrade.target, b"/ws?token=x");
}

#[test]
fn a_request_that_is_no_upgrade_is_told_how_to_upgrade() {
    let plain = b"GET /ws HTTP/1.1\r\nHost: a\r\n\r\n";
    assert_eq!(rejected(plain).status, 426);
    let settings = Settings { upgrade_required_status: 400, ..Settings::default() };
    assert_eq!(parse(plain, &settings).unwrap_err().status, 400);
    assert_eq!(status(&[("Upgrade", "")]), 426);
    assert_eq!(status(&[("Upgrade", "h2c")]), 426);
    for version in ["", "12", "14", "8", "013", "13x", "13, 8"] {
        assert_eq!(status(&[("Sec-WebSocket-Version", version)]), 426, "{version}");
    }
    let answer = String::from_utf8(rejected(&head(&[("Sec-WebSocket-Version", "8")])).response()).unwrap();
    assert!(answer.starts_with("HTTP/1.1 426 ") && answer.contains("\r\nSec-WebSocket-Version: 13\r\n"));
}

#[test]
fn method_and_version_of_http_must_fit() {
    for method in ["POST", "HEAD", "OPTIONS", "get"] {
        assert_eq!(rejected(&with_line("GET ", &format!("{method} "))).status, 405, "{method}");
    }
    for (version, status) in
        [("HTTP/1.0", 505), ("HTTP/2.0", 505), ("HTTP/0.9", 505), ("HTTP/11", 400), ("HTTQ/1.1", 400)]
    {
        assert_eq!(rejected(&with_line("HTTP/1.1", version)).status, status, "{version}");
    }
    assert_eq!(rejected(b"PRI * HTTP/2.0\r\n\r\n").status, 505);
}

#[test]
fn what_must_come_once_comes_once() {
    assert_eq!(status(&[("Host", "")]), 400);
    for (name, value) in [("Host", "chat.example.com"), ("Sec-WebSocket-Key", KEY), ("Sec-WebSocket-Version", "13")] {
        assert_eq!(status(&[(name, value), (name, value)]), 400, "{name} twice");
    }
    for host in ["a b", "a/b", "u@a", "a,b", "\u{e9}"] {
        assert_eq!(status(&[("Host", host)]), 400, "{host}");
    }
    assert_eq!(rejected(&with_line("Host: chat.example.com", "Host:")).status, 400);
}

#[test]
fn the_key_is_sixteen_bytes_of_base64() {
    for key in [
        "",
        "dGhlIHNhbXBsZSBub25jZQ",
        "dGhlIHNhbXBsZSBub25jZQ=",
        "dGhlIHNhbXBsZSBub25jZTE=",
        "dGhlIHNhbXBsZSBub25jZTEy",
        "dGhlIHNhbXBsZSBub25jZ===",
        "dGhlIHNhbXBsZSBub25-ZQ==",
        "dGhlIHNhbXBsZSBub2 jZQ==",
        "c2hvcnQ=",
        "AAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAA=",
    ] {
        assert_eq!(status(&[("Sec-WebSocket-Key", key)]), 400, "{key}");
    }
    accepted(&head(&[("Sec-WebSocket-Key", "dGhlIHNhbXBsZSBub25jZR==")]), &Settings::default());
}

#[test]
fn an_upgrade_names_itself_in_connection_and_has_no_body() {
    for connection in ["", "close", "upgraded", "keep-alive"] {
        assert_eq!(status(&[("Connection", connection)]), 400, "{connection}");
    }
    for (name, value) in [("Content-Length", "0"), ("Content-Length", "5"), ("Transfer-Encoding", "chunked")] {
        assert_eq!(status(&[(name, value)]), 400, "{name}");
    }
}

#[test]
fn malformed_lines_are_refused() {
    for (line, by) in [
        ("Upgrade: websocket\r\n", "Upgrade: websocket\n"),
        ("Upgrade: websocket\r\n", "Upgrade: web\rsocket\r\n"),
        ("Upgrade: websocket\r\n", "Upgrade: websocket\r\r\n"),
        ("Upgrade: websocket\r\n", "Upgrade: web\0socket\r\n"),
        ("Upgrade: websocket\r\n", "Upgrade: websocket\r\n folded\r\n"),
        ("Upgrade: websocket\r\n", "Upgrade: websocket\r\n\tfolded\r\n"),
        ("Upgrade: websocket\r\n", "Upgrade : websocket\r\n"),
        ("Upgrade: websocket\r\n", " Upgrade: websocket\r\n"),
        ("Upgrade: websocket\r\n", "Upgrade: websocket\r\nno colon\r\n"),
        ("Upgrade: websocket\r\n", "Upgrade: websocket\r\n: no name\r\n"),
        ("Upgrade: websocket\r\n", "Upgrade: websocket\r\nX-\u{e9}: a\r\n"),
        ("Upgrade: websocket\r\n", "Upgrade: websocket\r\nX: \x7f\r\n"),
        ("GET /ws", "GET  /ws"),
        ("GET /ws", "\u{e9}ET /ws"),
        ("token=x", "token=\u{e9}"),
        ("token=x", "token=x#y"),
        (" HTTP/1.1", "  HTTP/1.1"),
        (" HTTP/1.1", ""),
    ] {
        assert_eq!(rejected(&with_line(line, by)).status, 400, "{by:?}");
    }
}

#[test]
fn what_is_not_http_is_refused_as_soon_as_that_shows() {
    for bytes in [&b"\x16\x03\x01\x02\x00\x01\x00\x01\xfc\x03\x03"[..], b"\0", b"\xff\xfe\xfd", b" GET / HTTP/1.1"] {
        assert_eq!(find_head_end(bytes, &mut 0), Some(bytes.len()));
        assert_eq!(rejected(bytes).status, 400);
    }
    assert_eq!(rejected(b"\r\n\r\n").status, 400);
    assert_eq!(rejected(b"hello\r\n\r\n").status, 400);
    assert_eq!(rejected(b"").status, 400);
}

#[test]
fn too_much_head_is_refused() {
    let settings = Settings::default();
    let many: Vec<String> = (0..96).map(|n| format!("x-{n}: y")).collect();
    let with = |count: usize| {
        with_line("Upgrade: websocket", &format!("Upgrade: websocket\r\n{}", many[..count].join("\r\n")))
    };
    accepted(&with(95), &settings);
    assert_eq!(rejected(&with(96)), Rejection::HEAD_TOO_LARGE);
    let padded = |size: usize| head(&[("X-Padding", &"x".repeat(size))]);
    let room = settings.head_bytes_max - padded(1).len() + 1;
    accepted(&padded(room), &settings);
    assert_eq!(rejected(&padded(room + 1)), Rejection::HEAD_TOO_LARGE);
    assert_eq!((Rejection::HEAD_TOO_LARGE.status, Rejection::HEAD_TOO_LARGE.why), (431, Refusal::HeadTooLarge));
}

#[test]
fn no_byte_in_any_header_panics_or_comes_back() {
    let settings = Settings { compression: true, ..Settings::default() };
    for name in [
        "Host",
        "Upgrade",
        "Connection",
        "Sec-WebSocket-Key",
        "Sec-WebSocket-Version",
        "Sec-WebSocket-Protocol",
        "Sec-WebSocket-Extensions",
        "Origin",
        "Authorization",
        "Cookie",
        "Content-Length",
        "X-Forwarded-For",
    ] {
        for byte in 0..=u8::MAX {
            let marked = String::from_utf8(head(&[(name, "MARK")])).unwrap();
            let (before, after) = marked.split_once("MARK").unwrap();
            let bytes = [before.as_bytes(), b"evil", &[byte], b"evil", after.as_bytes()].concat();
            if let Err(rejection) = parse(&bytes, &settings) {
                let answer = rejection.response();
                assert!(!answer.windows(4).any(|part| part == b"evil"), "{name} {byte}");
                assert!(answer.windows(19).any(|part| part == b"\r\nConnection: close"));
            }
        }
    }
}

#[test]
fn lists_are_grammar_checked_and_long_ones_are_no_trouble() {
    let settings = Settings { head_bytes_max: 1 << 20, compression: true, ..Settings::default() };
    for (list, good) in
        [("a, b", true), (",a,,", true), ("a b", false), ("\u{e9}", false), ("a;b", false), ("\"a\"", false)]
    {
        let head = head(&[("Sec-WebSocket-Protocol", list)]);
        assert_eq!(parse(&head, &settings).is_ok(), good, "{list}");
    }
    let blanks = " ".repeat(7_000);
    for value in [
        format!("a{blanks}b"),
        format!("a,{blanks},b"),
        "a,".repeat(100_000),
        ";".repeat(200_000),
        "\"\\".repeat(100_000),
    ] {
        for name in ["Sec-WebSocket-Protocol", "Sec-WebSocket-Extensions"] {
            let _ = parse(&head(&[(name, &value)]), &settings);
        }
    }
}

#[test]
fn compression_is_agreed_when_it_is_on_and_offered() {
    let on = Settings { compression: true, ..Settings::default() };
    let offer = head(&[("Sec-WebSocket-Extensions", "permessage-deflate; server_max_window_bits=10")]);
    assert_eq!(accepted(&offer, &on).deflate, Some(Negotiated { server_max_window_bits: Some(10) }));
    assert_eq!(accepted(&offer, &Settings::default()).deflate, None);
    assert_eq!(accepted(&head(&[]), &on).deflate, None);
    assert_eq!(status(&[("Sec-WebSocket-Extensions", "permessage-deflate; =")]), 400);
}

#[test]
fn the_end_of_a_head_is_found_however_it_is_cut() {
    for (head, end) in [
        (&b"GET / HTTP/1.1\r\nHost: a\r\n\r\nrest\r\n\r\n"[..], 27),
        (b"\r\nGET / HTTP/1.1\r\n\r\n", 20),
        (b"GET / HTTP/1.1\n\nrest", 16),
        (b"GET / HTTP/1.1\r\n\n", 17),
        (b"GET / HTTP/1.1\n\r\n", 17),
    ] {
        for step in 1..=head.len() {
            let mut scanned = 0;
            let cuts = (step..head.len()).step_by(step).chain([head.len()]);
            let found = cuts.filter_map(|cut| find_head_end(&head[..cut], &mut scanned)).next();
            assert_eq!(found, Some(end), "{step} bytes at a time");
        }
    }
    assert_eq!(find_head_end(b"GET / HTTP/1.1\r\nHost: a\r\n\r", &mut 0), None);
    assert_eq!(find_head_end(b"", &mut 0), None);
}

/// CVE-2023-43669: a head that grows is searched where it grew, not from its beginning.
#[test]
fn a_head_sent_byte_by_byte_is_searched_once() {
    let endless = b"GET / HTTP/1.1\r\nX: y\r\n".iter().chain(b"x-y: z\r\n".iter().cycle());
    let mut buf = Vec::new();
    let mut scanned = 0;
    for &byte in endless.take(1 << 20) {
        buf.push(byte);
        assert_eq!(find_head_end(&buf, &mut scanned), None);
        assert!(buf.len() - scanned <= 2, "{} bytes would be searched again", buf.len() - scanned);
    }
}
