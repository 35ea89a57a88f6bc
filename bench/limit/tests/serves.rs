//! The limit program as its clients and its driver see it, over real sockets.

use std::io::{BufRead, BufReader, Read, Write};
use std::net::TcpStream;
use std::process::{Child, Command, Stdio};
use std::time::Duration;

struct Limit {
    child: Child,
    port: u16,
    control: u16,
}

impl Limit {
    fn start(options: &[&str]) -> Self {
        let mut child = Command::new(env!("CARGO_BIN_EXE_tidegate-limit"))
            .args(["--seconds-max", "30"])
            .args(options)
            .stdout(Stdio::piped())
            .spawn()
            .expect("the program starts");
        let mut ready = String::new();
        BufReader::new(child.stdout.take().expect("a pipe")).read_line(&mut ready).expect("a line");
        let number = |key: &str| {
            let (_, rest) = ready.split_once(&format!("\"{key}\":")).expect("the ready line has both ports");
            rest.split([',', '}']).next().expect("a value").parse().expect("a port")
        };
        Self { port: number("port"), control: number("control"), child }
    }

    /// A client that has been upgraded and has joined `rooms`.
    fn join(&self, rooms: &str) -> TcpStream {
        let mut stream = connect(self.port);
        write!(stream, "GET /ws?rooms={rooms} HTTP/1.1\r\nSec-WebSocket-Key: dGhlIHNhbXBsZSBub25jZQ==\r\n\r\n")
            .expect("sent");
        let mut answer = Vec::new();
        while !answer.ends_with(b"\r\n\r\n") {
            answer.push(read_exactly(&mut stream, 1)[0]);
        }
        assert!(answer.starts_with(b"HTTP/1.1 101 "));
        stream
    }

    fn ask(&self, command: &str) -> String {
        let mut stream = connect(self.control);
        writeln!(stream, "{command}").expect("sent");
        let mut answer = String::new();
        BufReader::new(stream).read_line(&mut answer).expect("an answer");
        answer
    }
}

impl Drop for Limit {
    fn drop(&mut self) {
        let _ = self.child.kill();
        let _ = self.child.wait();
    }
}

fn connect(port: u16) -> TcpStream {
    let stream = TcpStream::connect(("127.0.0.1", port)).expect("it listens");
    stream.set_read_timeout(Some(Duration::from_secs(10))).expect("a timeout");
    stream
}

fn read_exactly(stream: &mut TcpStream, count: usize) -> Vec<u8> {
    let mut bytes = vec![0; count];
    stream.read_exact(&mut bytes).expect("bytes in time");
    bytes
}

/// The payload of an unmasked frame of 126 bytes or more.
fn read_message(stream: &mut TcpStream) -> String {
    let header = read_exactly(stream, 4);
    assert_eq!(header[..2], [0x81, 126]);
    let length = u16::from_be_bytes([header[2], header[3]]).into();
    String::from_utf8(read_exactly(stream, length)).expect("text")
}

#[test]
fn a_broadcast_reaches_its_room_on_every_thread_in_order_and_nobody_else() {
    let limit = Limit::start(&["--threads", "2"]);
    let mut members: Vec<TcpStream> = (0..8).map(|_| limit.join("other,chat:1")).collect();
    let mut stranger = limit.join("chat:2");
    for (batch, first) in [(1, 1), (3, 4)] {
        let answer = limit.ask(&format!("publish chat:1 3 128 {batch}"));
        assert!(answer.contains("\"behind\":0"), "{answer}");
        for member in &mut members {
            for number in first..first + 3 {
                let message = read_message(member);
                assert!(message.contains(&format!("\"n\":{number},\"t\":")) && message.len() == 128, "{message}");
            }
        }
    }
    limit.ask("publish chat:2 1 200 1");
    assert_eq!(read_message(&mut stranger).len(), 200);
}

#[test]
fn a_member_that_reads_late_still_gets_everything() {
    let limit = Limit::start(&[]);
    let mut member = limit.join("r");
    let publish = std::thread::scope(|scope| {
        let publisher = scope.spawn(|| limit.ask("publish r 200 65000 1"));
        // 13 MB: more than the kernel's buffers of a connection hold, so the rest is owed until it reads
        let numbers: Vec<String> = (0..200).map(|_| read_message(&mut member)).collect();
        assert!(numbers[199].contains("\"n\":200,"));
        publisher.join().expect("published")
    });
    assert!(publish.contains("\"sends\":200") && publish.contains("\"behind\":0"), "{publish}");
}

#[test]
fn clients_are_answered_pinged_and_counted_out() {
    let limit = Limit::start(&["--answer", "pong", "--ping-ms", "20"]);
    let mut member = limit.join("r");
    assert_eq!(read_exactly(&mut member, 2), [0x89, 0]);
    member.write_all(&[0x81, 0x82, 0, 0, 0, 0, b'h', b'i']).expect("sent");
    let mut heard = Vec::new();
    while !heard.ends_with(b"\x81\x04pong") {
        heard.push(read_exactly(&mut member, 1)[0]);
    }
    drop(member);
    while !limit.ask("stats").contains("\"open\":0") {
        std::thread::yield_now();
    }
}
