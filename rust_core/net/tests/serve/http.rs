//! Plain HTTP on the same port: relayed to an app on a UNIX socket.

use std::{
    io::{Read, Write},
    os::{
        linux::net::SocketAddrExt,
        unix::net::{SocketAddr, UnixListener, UnixStream},
    },
    sync::atomic::{AtomicU32, Ordering},
    thread,
};

use tidegate_net::EngineOptions;

use crate::{
    app::{App, options},
    client::{Client, connect, read_head},
};

/// An app that answers each request with `answer(head)`, on a socket of its own name.
pub fn app_socket(answer: impl Fn(&str, &mut UnixStream) + Send + Sync + 'static) -> String {
    static NUMBER: AtomicU32 = AtomicU32::new(0);
    let name = format!("tidegate-http-test-{}-{}", std::process::id(), NUMBER.fetch_add(1, Ordering::Relaxed));
    let listener = UnixListener::bind_addr(&SocketAddr::from_abstract_name(&name).unwrap()).unwrap();
    // the thread ends with the test's process
    thread::spawn(move || {
        for stream in listener.incoming() {
            let mut stream = stream.unwrap();
            loop {
                let head = read_head(&mut stream);
                if head.is_empty() {
                    break;
                }
                answer(&head, &mut stream);
            }
        }
    });
    name
}

pub fn respond(stream: &mut UnixStream, body: &str) {
    write!(stream, "HTTP/1.1 200 OK\r\nContent-Length: {}\r\n\r\n{body}", body.len()).unwrap();
}

fn start(http_socket: String) -> App {
    App::start(EngineOptions { http_socket, ..options() })
}

fn body_of(stream: &mut impl Read, len: usize) -> String {
    let mut body = vec![0; len];
    stream.read_exact(&mut body).unwrap();
    String::from_utf8(body).unwrap()
}

#[test]
fn requests_of_one_connection_reach_the_app_one_after_the_other() {
    let app = start(app_socket(|head, stream| respond(stream, head.lines().next().unwrap())));
    let mut stream = connect(app.engine.port());
    for path in ["/health", "/ready"] {
        let request = format!("GET {path} HTTP/1.1");
        write!(stream, "{request}\r\nHost: x\r\n\r\n").unwrap();
        assert!(read_head(&mut stream).starts_with("HTTP/1.1 200 OK"));
        assert_eq!(body_of(&mut stream, request.len()), request);
    }
    app.await_stat("http_relays_now", 1);
    drop(stream);
    app.await_stat("http_relays_now", 0);
    assert_eq!(app.stat("connections_now"), 0, "a relay is no WebSocket connection");
}

#[test]
fn websockets_and_large_downloads_share_the_port() {
    let large = "z".repeat(8 << 20);
    let body = large.clone();
    let app = start(app_socket(move |_, stream| respond(stream, &body)));
    let mut download = connect(app.engine.port());
    write!(download, "GET /large HTTP/1.1\r\nHost: x\r\n\r\n").unwrap();
    // while the download waits for its reader, others are served
    let mut client = Client::open(app.engine.port(), "");
    client.say("hello");
    assert_eq!(client.text(), "hello");
    read_head(&mut download);
    assert!(body_of(&mut download, large.len()) == large);
}

#[test]
fn a_large_upload_reaches_the_app_whole() {
    let app = start(app_socket(|_, stream| {
        let upload = body_of(stream, 4 << 20);
        respond(stream, &upload.len().to_string());
    }));
    let mut stream = connect(app.engine.port());
    write!(stream, "POST /upload HTTP/1.1\r\nHost: x\r\nContent-Length: {}\r\n\r\n", 4 << 20).unwrap();
    stream.write_all(&vec![b'u'; 4 << 20]).unwrap();
    assert!(read_head(&mut stream).starts_with("HTTP/1.1 200 OK"));
    assert_eq!(body_of(&mut stream, 7), "4194304");
}

#[test]
fn without_an_app_the_answer_is_404_and_with_a_dead_one_503() {
    for (http_socket, status) in [(String::new(), "404"), ("nobody listens here".to_owned(), "503")] {
        let app = start(http_socket);
        let mut stream = connect(app.engine.port());
        write!(stream, "GET / HTTP/1.1\r\nHost: x\r\n\r\n").unwrap();
        let mut answer = String::new();
        stream.read_to_string(&mut answer).unwrap();
        assert!(answer.starts_with(&format!("HTTP/1.1 {status} ")), "{answer}");
    }
}
