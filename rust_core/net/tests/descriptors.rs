//! More connections than one table of descriptors holds.
//!
//! The limit is a process's, and clients need descriptors too: so the gateway is this program started again under a low limit
//! (`harness = false` in Cargo.toml), and it serves until its standard input ends.

use std::{
    env,
    io::{BufRead, BufReader, Read, Write},
    net::TcpStream,
    process::{self, Child, Stdio},
    sync::atomic::{AtomicBool, Ordering},
    thread,
    time::Duration,
};

use tidegate_hub::{Command, Event, Payload, Settings, limits::Caps};
use tidegate_net::{Engine, EngineOptions, Exclude, Order};

/// Of these a shard keeps 56 for itself, so that three shards are the least that can hold the connections.
const DESCRIPTORS: &str = "256";
const CONNECTIONS: usize = 500;
const MESSAGE: &[u8] = b"to all";

fn main() {
    if env::args().any(|argument| argument == GATEWAY) {
        gateway();
    } else {
        shards_together_hold_more_connections_than_the_limit_of_open_files();
    }
}

fn shards_together_hold_more_connections_than_the_limit_of_open_files() {
    let mut gateway = start_gateway();
    let mut port = String::new();
    BufReader::new(gateway.stdout.take().unwrap()).read_line(&mut port).unwrap();
    let port: u16 = port.trim().parse().unwrap();
    let mut clients: Vec<TcpStream> = (0..CONNECTIONS).map(|_| open(port)).collect();
    // the gateway publishes when it has admitted all: each of them is there at the same time
    for client in &mut clients {
        let mut frame = [0; 2 + MESSAGE.len()];
        client.read_exact(&mut frame).unwrap();
        assert_eq!(&frame[2..], MESSAGE);
    }
    drop(gateway.stdin.take());
    assert!(gateway.wait().unwrap().success());
    println!("{CONNECTIONS} connections under a limit of {DESCRIPTORS} open files: ok");
}

fn start_gateway() -> Child {
    let under_limit = format!("ulimit -n {DESCRIPTORS} && exec \"$0\" {GATEWAY}");
    let program = env::current_exe().unwrap();
    let mut shell = process::Command::new("sh");
    shell.arg("-c").arg(under_limit).arg(program);
    shell.stdin(Stdio::piped()).stdout(Stdio::piped()).spawn().unwrap()
}

fn open(port: u16) -> TcpStream {
    let mut stream = TcpStream::connect(("127.0.0.1", port)).unwrap();
    stream.set_read_timeout(Some(Duration::from_secs(20))).unwrap();
    stream.write_all(UPGRADE).unwrap();
    let mut head = Vec::new();
    while !head.ends_with(b"\r\n\r\n") {
        let mut byte = [0];
        stream.read_exact(&mut byte).unwrap();
        head.push(byte[0]);
    }
    assert!(head.starts_with(b"HTTP/1.1 101 "), "{}", String::from_utf8_lossy(&head));
    stream
}

fn gateway() {
    static ENDED: AtomicBool = AtomicBool::new(false);
    thread::spawn(|| {
        std::io::stdin().read_to_end(&mut Vec::new()).unwrap();
        ENDED.store(true, Ordering::SeqCst);
    });
    let engine = Engine::start(options()).unwrap();
    println!("{}", engine.port());
    let mut admitted = 0;
    while !ENDED.load(Ordering::SeqCst) {
        let mut events = Vec::new();
        engine.drain_events(100, &mut events);
        let mut orders: Vec<Order> = events.iter().filter_map(admit).collect();
        admitted += orders.len();
        if admitted == CONNECTIONS && !orders.is_empty() {
            let payload = Payload { bytes: MESSAGE.into(), text: true };
            orders.push(Order::Publish { room: "all".into(), payload, exclude: Exclude::None });
        }
        engine.submit(orders);
        thread::yield_now();
    }
    engine.stop();
}

fn admit(event: &Event) -> Option<Order> {
    let Event::Upgrade { conn, .. } = event else {
        return None;
    };
    Some(Order::Command(Command::Admit {
        conn: *conn,
        session: Box::default(),
        user: None,
        rooms: vec!["all".into()],
        payloads: Vec::new(),
        protocol: None,
        close: None,
        dialect: 0,
    }))
}

fn options() -> EngineOptions {
    EngineOptions {
        host: "127.0.0.1".into(),
        port: 0,
        shards: 0,
        http_socket: String::new(),
        caps: Caps { connections_max: CONNECTIONS as u64, per_address_max: 0, per_user_max: 0, handshakes_per_s: 0 },
        proxy_trusted: Vec::new(),
        backlog_bytes_max: 1 << 20,
        tls: None,
        settings: Settings::default(),
    }
}

const GATEWAY: &str = "gateway";
const UPGRADE: &[u8] = b"GET /ws HTTP/1.1\r\nHost: localhost\r\nUpgrade: websocket\r\nConnection: Upgrade\r\n\
    Sec-WebSocket-Version: 13\r\nSec-WebSocket-Key: dGhlIHNhbXBsZSBub25jZQ==\r\n\r\n";
