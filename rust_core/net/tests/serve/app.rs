//! The application of these tests: admits everybody to the rooms that the query names, and does what messages say.
//!
//! `join R`, `leave R`, `publish R TEXT`, `others R TEXT` (all but the sender), `close CODE`; anything else comes back as it was.

use std::{
    sync::{
        Arc,
        atomic::{AtomicBool, Ordering},
    },
    thread::{self, JoinHandle},
    time::{Duration, Instant},
};

use tidegate_hub::{Command, ConnId, Event, Payload, Settings, limits::Caps};
use tidegate_net::{Engine, EngineOptions, Exclude, Order};

pub struct App {
    pub engine: Arc<Engine>,
    stopping: Arc<AtomicBool>,
    thread: Option<JoinHandle<()>>,
}

/// Small, on loopback, two shards; a test changes what it is about.
pub fn options() -> EngineOptions {
    EngineOptions {
        host: "127.0.0.1".into(),
        port: 0,
        shards: 2,
        http_socket: String::new(),
        caps: Caps { connections_max: 10_000, per_address_max: 0, per_user_max: 0, handshakes_per_s: 0 },
        proxy_trusted: Vec::new(),
        backlog_bytes_max: 64 << 20,
        tls: None,
        settings: Settings { message_rate: 0, close_timeout_ms: 100, ..Settings::default() },
    }
}

impl App {
    pub fn start(options: EngineOptions) -> Self {
        let engine = Arc::new(Engine::start(options).unwrap());
        let stopping = Arc::new(AtomicBool::new(false));
        let thread = {
            let (engine, stopping) = (engine.clone(), stopping.clone());
            thread::spawn(move || serve(&engine, &stopping))
        };
        Self { engine, stopping, thread: Some(thread) }
    }

    /// Without the application: the test is the application.
    pub fn silent(options: EngineOptions) -> Self {
        Self { engine: Arc::new(Engine::start(options).unwrap()), stopping: Arc::default(), thread: None }
    }

    pub fn stat(&self, name: &str) -> u64 {
        let stats = self.engine.stats();
        stats.iter().find(|(of, _)| of == name).unwrap_or_else(|| panic!("no counter {name}")).1
    }

    /// Waits until a counter has this value.
    pub fn await_stat(&self, name: &str, value: u64) {
        until(name, || self.stat(name) == value);
    }
}

impl Drop for App {
    fn drop(&mut self) {
        self.stopping.store(true, Ordering::SeqCst);
        self.engine.stop();
        self.thread.take().map(JoinHandle::join);
    }
}

/// Waits for a condition that another thread brings about.
pub fn until(what: &str, condition: impl Fn() -> bool) {
    let deadline = Instant::now() + Duration::from_secs(20);
    while !condition() {
        assert!(Instant::now() < deadline, "never came true: {what}");
        thread::yield_now();
    }
}

pub fn text(bytes: impl Into<Vec<u8>>) -> Payload {
    Payload { bytes: bytes.into().into(), text: true }
}

pub fn publish(room: &str, bytes: impl Into<Vec<u8>>) -> Order {
    Order::Publish { room: room.into(), payload: text(bytes), exclude: Exclude::None }
}

/// The events there are, or after a moment none.
pub fn events(engine: &Engine) -> Vec<Event> {
    let mut poll = libc::pollfd { fd: engine.event_fd(), events: libc::POLLIN, revents: 0 };
    // SAFETY: one pollfd, as the count says.
    unsafe { libc::poll(&mut poll, 1, 20) };
    let mut events = Vec::new();
    engine.drain_events(1000, &mut events);
    events
}

fn serve(engine: &Engine, stopping: &AtomicBool) {
    while !stopping.load(Ordering::SeqCst) {
        let orders: Vec<Order> = events(engine).into_iter().filter_map(|event| decide(engine, event)).collect();
        engine.submit(orders);
    }
}

fn decide(engine: &Engine, event: Event) -> Option<Order> {
    match event {
        Event::Upgrade { conn, target, .. } => Some(admit(engine, conn, &target)),
        Event::Message { conn, payload, text, .. } => Some(obey(conn, payload, text)),
        Event::Failed { conn, code, reason } => {
            Some(Order::Command(Command::Close { conn, code, reason: reason.into() }))
        }
        Event::Closed { .. } | Event::Overdue { .. } | Event::Told { .. } => None,
    }
}

pub fn admit(engine: &Engine, conn: ConnId, target: &[u8]) -> Order {
    let target = String::from_utf8_lossy(target).into_owned();
    let value = |name: &str| {
        let query = target.split_once('?').map_or("", |(_, query)| query);
        query.split('&').find_map(|pair| pair.strip_prefix(name)?.strip_prefix('=')).unwrap_or("").to_owned()
    };
    let rooms = value("rooms").split(',').filter(|room| !room.is_empty()).map(Into::into).collect();
    let user = Some(value("user")).filter(|user| !user.is_empty());
    Order::Command(Command::Admit {
        conn,
        session: target.as_bytes().into(),
        user: user.map(|user| engine.user_hash(&user)),
        rooms,
        payloads: vec![text(engine.uuid(conn))],
        protocol: None,
        close: None,
        dialect: 0,
    })
}

fn obey(conn: ConnId, payload: Box<[u8]>, is_text: bool) -> Order {
    let said = String::from_utf8_lossy(&payload).into_owned();
    let words: Vec<&str> = said.splitn(3, ' ').collect();
    let room = || Box::from(words[1]);
    match words[0] {
        "join" => Order::Command(Command::Join { conn, room: room() }),
        "leave" => Order::Command(Command::Leave { conn, room: room() }),
        "publish" => publish(words[1], words[2]),
        "others" => Order::Publish { room: room(), payload: text(words[2]), exclude: Exclude::Conn(conn) },
        "close" => {
            let code = words[1].parse().unwrap();
            Order::Command(Command::Close { conn, code, reason: "asked".into() })
        }
        _ => Order::Command(Command::Send { conn, payload: Payload { bytes: payload, text: is_text }, ticket: 0 }),
    }
}
