//! The generator against a server that misbehaves on purpose: what it says must be what was on the wire.

use std::io::{BufRead, BufReader, Lines, Read, Write};
use std::net::{TcpListener, TcpStream};
use std::process::{Child, ChildStdin, ChildStdout, Command, Stdio};

struct Crowd {
    child: Child,
    commands: ChildStdin,
    answers: Lines<BufReader<ChildStdout>>,
}

impl Crowd {
    fn start(port: u16, options: &[&str]) -> Self {
        let mut child = Command::new(env!("CARGO_BIN_EXE_tidegate-loadgen"))
            .args(["--seconds-max", "30", "--url", &format!("ws://127.0.0.1:{port}/ws?u={{i}}")])
            .args(options)
            .stdin(Stdio::piped())
            .stdout(Stdio::piped())
            .spawn()
            .expect("the program starts");
        let commands = child.stdin.take().expect("a pipe");
        let answers = BufReader::new(child.stdout.take().expect("a pipe")).lines();
        Self { child, commands, answers }
    }

    fn ask(&mut self, command: &str) -> String {
        writeln!(self.commands, "{command}").expect("it reads");
        self.answers.next().expect("an answer").expect("text")
    }
}

impl Drop for Crowd {
    fn drop(&mut self) {
        let _ = self.child.kill();
        let _ = self.child.wait();
    }
}

fn accept(listener: &TcpListener) -> TcpStream {
    accept_request(listener).0
}

fn accept_request(listener: &TcpListener) -> (TcpStream, String) {
    let (mut stream, _) = listener.accept().expect("a client");
    let mut request = Vec::new();
    while !request.ends_with(b"\r\n\r\n") {
        let mut byte = [0];
        stream.read_exact(&mut byte).expect("a request");
        request.push(byte[0]);
    }
    (stream, String::from_utf8(request).expect("text"))
}

fn upgrade(listener: &TcpListener) -> TcpStream {
    let mut stream = accept(listener);
    stream.write_all(format!("{SWITCHED}\r\n").as_bytes()).expect("sent");
    stream
}

const SWITCHED: &str = "HTTP/1.1 101 Ok\r\nSec-WebSocket-Accept: s3pPLMBiTxaQ9kYGzzhZRbK+xOo=\r\n";

fn listen() -> (TcpListener, u16) {
    let listener = TcpListener::bind("127.0.0.1:0").expect("a port");
    let port = listener.local_addr().expect("an address").port();
    (listener, port)
}

fn numbered(number: u32) -> Vec<u8> {
    let payload = format!(r#"{{"n":{number},"t":1,"x":""}}"#);
    [&[0x81, payload.len() as u8], payload.as_bytes()].concat()
}

fn assert_has(answer: &str, parts: &[&str]) {
    for part in parts {
        assert!(answer.contains(part), "{part} is not in {answer}");
    }
}

#[test]
fn a_client_is_in_after_its_last_welcome_and_says_hello_after_the_first() {
    let (listener, port) = listen();
    let mut crowd = Crowd::start(port, &["--welcome", "2", "--hello", "{\"join\":\"r{i}\"}\nhi"]);
    crowd.ask("open 1");
    let mut client = upgrade(&listener);
    client.write_all(b"\x81\x02{}").expect("sent");
    let mut hello = [0; 6 + 13 + 6 + 2];
    client.read_exact(&mut hello).expect("both messages");
    assert_eq!([hello[1], hello[20]], [0x80 | 13, 0x80 | 2]);
    assert_has(&crowd.ask("stats"), &["\"open\":0"]);
    client.write_all(b"\x81\x02{}").expect("sent");
    assert_has(&crowd.ask("wait open 1 10"), &["\"open\":1", "\"reached\":true"]);
}

#[test]
fn gaps_repeats_and_cut_frames_are_told_apart() {
    let (listener, port) = listen();
    let mut crowd = Crowd::start(port, &[]);
    crowd.ask("open 1");
    let mut client = upgrade(&listener);
    assert_has(&crowd.ask("wait open 1 10"), &["\"open\":1", "\"reached\":true"]);
    let frames = [numbered(1), numbered(4), numbered(4), b"\x81\x02{}".to_vec()].concat();
    let (begin, end) = frames.split_at(frames.len() - 3);
    client.write_all(begin).expect("sent");
    assert_has(&crowd.ask("wait received 3 10"), &["\"reached\":true"]);
    client.write_all(end).expect("sent");
    let answer = crowd.ask("wait other 1 10");
    assert_has(&answer, &["\"received\":3", "\"missing\":2", "\"out_of_order\":1", "\"other\":1"]);
    assert_has(&answer, &[&format!("\"bytes\":{}", frames.len())]);
}

#[test]
fn each_way_to_fail_has_its_reason() {
    let (listener, port) = listen();
    let mut crowd = Crowd::start(port, &["--in-flight", "1"]);
    crowd.ask("open 4");
    accept(&listener).write_all(b"HTTP/1.1 503 Full\r\n\r\n").expect("sent");
    accept(&listener).write_all(b"HTTP/1.1 101 Ok\r\nSec-WebSocket-Accept: none\r\n\r\n").expect("sent");
    upgrade(&listener).write_all(b"\x88\x02\x03\xf5").expect("sent");
    upgrade(&listener).write_all(b"\x01\x00").expect("sent");
    let mut answer = crowd.ask("wait open 4 10");
    while !(answer.contains("closed_1013") && answer.contains("frame_fragmented")) {
        answer = crowd.ask("stats");
    }
    assert_has(&answer, &["\"status_503\":1", "\"wrong_accept\":1", "\"closed_1013\":1", "\"frame_fragmented\":1"]);
    assert_has(&answer, &["\"open\":0", "\"opened\":2"]);
}

#[test]
fn a_handshake_that_nobody_answers_ends_by_its_deadline() {
    let (listener, port) = listen();
    let mut crowd = Crowd::start(port, &["--timeout-ms", "50"]);
    crowd.ask("open 1");
    let _silent = accept(&listener);
    assert_has(&crowd.ask("wait open 1 10"), &["\"reached\":false", "\"handshake_timeout\":1"]);
}

#[test]
fn pings_are_answered_and_texts_are_sent_masked() {
    let (listener, port) = listen();
    let mut crowd = Crowd::start(port, &[]);
    crowd.ask("open 1");
    let mut client = upgrade(&listener);
    crowd.ask("wait open 1 10");
    client.write_all(b"\x89\x02hi").expect("sent");
    let mut pong = [0; 8];
    client.read_exact(&mut pong).expect("a pong");
    assert_eq!((pong[0], pong[1]), (0x8a, 0x82));
    crowd.ask("send 1 {i}!");
    let mut text = [0; 8];
    client.read_exact(&mut text).expect("a text");
    assert_eq!((text[0], text[1], text[6] ^ text[2], text[7] ^ text[3]), (0x81, 0x82, b'0', b'!'));
}

#[test]
fn messages_are_acked_by_their_ids_where_that_is_asked_for() {
    let (listener, port) = listen();
    let mut crowd = Crowd::start(port, &["--ack", "yes"]);
    crowd.ask("open 1");
    let mut client = upgrade(&listener);
    crowd.ask("wait open 1 10");
    let message = br#"{"type":"message","msg_id":"m1"}"#;
    client.write_all(&[&[0x81, message.len() as u8], message.as_slice()].concat()).expect("sent");
    let expected = br#"{"type":"ack","msg_id":"m1"}"#;
    let mut ack = [0; 6 + 28];
    client.read_exact(&mut ack).expect("an ack");
    let text: Vec<u8> = ack[6..].iter().zip(ack[2..6].iter().cycle()).map(|(byte, mask)| byte ^ mask).collect();
    assert_eq!((ack[0], ack[1], text.as_slice()), (0x81, 0x80 | 28, expected.as_slice()));
    assert_has(&crowd.ask("wait other 1 10"), &["\"texts_sent\":1", "\"sends_blocked\":0"]);
}

#[test]
fn who_is_paused_reads_nothing_until_resumed() {
    let (listener, port) = listen();
    let mut crowd = Crowd::start(port, &["--in-flight", "1"]);
    crowd.ask("open 2");
    let mut clients = [upgrade(&listener), upgrade(&listener)];
    crowd.ask("wait open 2 10");
    crowd.ask("pause 1 2");
    for client in &mut clients {
        client.write_all(&numbered(1)).expect("sent");
    }
    assert_has(&crowd.ask("wait received 1 10"), &["\"reached\":true"]);
    clients[0].write_all(b"\x88\x02\x03\xf5").expect("sent");
    assert_has(&crowd.ask("stats"), &["\"received\":1", "\"open\":2", "\"failed\":{}"]);
    assert_has(&crowd.ask("resume"), &["\"received\":2", "\"open\":1", "\"closed_1013\":1"]);
}

#[test]
fn one_client_in_so_many_takes_compressed_messages_and_finds_the_number_inside() {
    let (listener, port) = listen();
    let mut crowd = Crowd::start(port, &["--in-flight", "1", "--deflate", "2"]);
    crowd.ask("open 2");
    let (mut first, request) = accept_request(&listener);
    assert!(request.contains("Sec-WebSocket-Extensions: permessage-deflate;"), "{request}");
    let agreed = "Sec-WebSocket-Extensions: permessage-deflate; server_no_context_takeover";
    first.write_all(format!("{SWITCHED}{agreed}\r\n\r\n").as_bytes()).expect("sent");
    let (mut second, request) = accept_request(&listener);
    assert!(!request.contains("Extensions"), "{request}");
    second.write_all(format!("{SWITCHED}\r\n").as_bytes()).expect("sent");
    crowd.ask("wait open 2 10");
    // a stored block (RFC 1951, 3.2.4) says the same as a compressed one; its end and a flush's are the same
    let plain = br#"{"n":1,"t":1,"x":""}"#;
    let size = plain.len() as u8;
    let stored = [&[0xc1, size + 6, 0, size, 0, !size, 0xff], plain.as_slice(), &[0]].concat();
    first.write_all(&stored).expect("sent");
    second.write_all(&numbered(1)).expect("sent");
    let answer = crowd.ask("wait received 2 10");
    assert_has(&answer, &["\"received\":2", "\"compressed\":1", "\"missing\":0", "\"failed\":{}"]);
}

#[test]
fn clients_that_lose_the_server_are_back_once_it_listens_again() {
    let (listener, port) = listen();
    let mut crowd = Crowd::start(port, &[]);
    crowd.ask("open 2");
    let clients = [upgrade(&listener), upgrade(&listener)];
    crowd.ask("wait open 2 10");
    crowd.ask("reconnect on");
    crowd.ask("reset");
    drop(listener);
    drop(clients);
    while !crowd.ask("stats").contains("connect_refused") {}
    let listener = TcpListener::bind(("127.0.0.1", port)).expect("the port is free again");
    let _clients = [upgrade(&listener), upgrade(&listener)];
    assert_has(&crowd.ask("wait opened 2 10"), &["\"reached\":true", "\"open\":2", "\"waiting\":0"]);
}

#[test]
fn each_sequence_of_a_client_is_checked_by_itself() {
    let (listener, port) = listen();
    let mut crowd = Crowd::start(port, &[]);
    crowd.ask("open 1");
    let mut client = upgrade(&listener);
    crowd.ask("wait open 1 10");
    let personal = br#"{"room":"user:u1","payload":{"n":1,"t":1}}"#;
    let personal = [&[0x81, personal.len() as u8], personal.as_slice()].concat();
    client.write_all(&[numbered(1), numbered(2), personal.clone(), personal].concat()).expect("sent");
    let answer = crowd.ask("wait received 4 10");
    assert_has(&answer, &["\"received\":4", "\"missing\":0", "\"out_of_order\":1"]);
}

#[test]
fn a_wrong_command_is_answered_with_the_right_ones() {
    let (_listener, port) = listen();
    assert_has(&Crowd::start(port, &[]).ask("opne 5"), &["\"error\":", "open N"]);
}
