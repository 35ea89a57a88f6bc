//! All that threads share, in one place: nothing else of the engine is reached by two of them.
//!
//! Rule: each part has its own lock, held for a few instructions and never together with another.

use std::{
    hash::RandomState,
    io,
    sync::{
        Arc, PoisonError, RwLock,
        atomic::{AtomicBool, AtomicU64, Ordering},
    },
    time::{Instant, SystemTime, UNIX_EPOCH},
};

use rustls::ServerConfig;
use tidegate_hub::{Keys, Millis, Settings};

use crate::{
    EngineOptions,
    capacity::Capacity,
    directory::Directory,
    events::Events,
    limit::SharedLimits,
    mailbox::{Mailbox, Pressure},
    networks::Networks,
    stats::Report,
};

pub struct Shared {
    started: Instant,
    stopping: AtomicBool,
    tls: RwLock<Option<Arc<ServerConfig>>>,
    pub keys: Keys,
    pub settings: Arc<Settings>,
    pub limits: SharedLimits,
    pub trusted: Networks,
    pub http_socket: String,
    pub capacity: Capacity,
    pub backlog_bytes_max: usize,
    pub directory: Directory,
    pub events: Events,
    pub pressure: Pressure,
    /// Bytes that clients of all shards are owed; each shard adds what changed in a pass.
    pub owed: AtomicU64,
    /// One a shard, by its number; so are `reports`.
    pub mailboxes: Box<[Mailbox]>,
    pub reports: Box<[Report]>,
}

impl Shared {
    pub fn new(
        options: EngineOptions,
        trusted: Networks,
        tls: Option<Arc<ServerConfig>>,
        capacity: Capacity,
        shards: usize,
    ) -> io::Result<Self> {
        // before 1970 nobody runs this, and then only the times in notices are wrong
        let began = SystemTime::now().duration_since(UNIX_EPOCH).unwrap_or_default();
        let began_unix_ms = began.as_millis() as Millis;
        let settings = Settings { slots_max: capacity.slots, began_unix_ms, ..options.settings };
        Ok(Self {
            started: Instant::now(),
            stopping: AtomicBool::new(false),
            tls: RwLock::new(tls),
            keys: Keys::new(RandomState::new()),
            settings: Arc::new(settings),
            limits: SharedLimits::new(options.caps),
            trusted,
            http_socket: options.http_socket,
            capacity,
            backlog_bytes_max: options.backlog_bytes_max,
            // most rooms are a user's own
            directory: Directory::new(options.caps.connections_max),
            events: Events::new()?,
            pressure: Pressure::new(options.backlog_bytes_max),
            owed: AtomicU64::new(0),
            mailboxes: (0..shards).map(|_| Mailbox::new()).collect::<io::Result<_>>()?,
            reports: (0..shards).map(|_| Report::default()).collect(),
        })
    }

    /// The engine's clock.
    pub fn now(&self) -> Millis {
        self.started.elapsed().as_millis() as Millis
    }

    /// What new TLS sessions show; `None`: the port speaks plain text.
    pub fn tls(&self) -> Option<Arc<ServerConfig>> {
        self.tls.read().unwrap_or_else(PoisonError::into_inner).clone()
    }

    pub fn set_tls(&self, config: Arc<ServerConfig>) {
        *self.tls.write().unwrap_or_else(PoisonError::into_inner) = Some(config);
    }

    pub fn is_stopping(&self) -> bool {
        self.stopping.load(Ordering::Acquire)
    }

    /// Asks the shards to end.
    pub fn stop(&self) {
        self.stopping.store(true, Ordering::Release);
        self.wake_shards();
    }

    pub fn wake_shards(&self) {
        self.mailboxes.iter().for_each(|mailbox| mailbox.wake().signal());
    }

    /// Wakes Python when it was told to hold back and need not any more.
    pub fn tell_relief(&self) {
        if self.pressure.is_over(&self.mailboxes) {
            self.events.wake().signal();
        }
    }
}
