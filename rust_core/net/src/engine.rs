//! The engine: starts the shards, hands them work and collects what they tell.
//!
//! Rule: every method may be called from any thread and returns at once, except `start` and `stop`.

use std::{
    io,
    net::SocketAddr,
    os::fd::RawFd,
    sync::{
        Arc, Mutex, PoisonError,
        mpsc::{self, Sender},
    },
    thread::{self, JoinHandle},
};

use tidegate_hub::{Command, ConnId, Event, ws::close};

use crate::{
    EngineOptions, Order, Publish, StartError, capacity, capacity::Capacity, fds::descriptors_max, heap,
    listener::Port, networks::Networks, shard::Shard, shared::Shared, stats, submit, threads, tls,
};

pub struct Engine {
    shared: Arc<Shared>,
    port: u16,
    threads: Mutex<Vec<JoinHandle<()>>>,
}

impl Engine {
    /// Binds the port and starts the shards; clients are served from here on.
    pub fn start(options: EngineOptions) -> Result<Engine, StartError> {
        heap::prepare();
        check_silence_code(options.settings.silence_code)?;
        let trusted = Networks::parse(&options.proxy_trusted).map_err(StartError::Option)?;
        let tls = options.tls.as_ref().map(|pem| tls::config(&pem.certificate, &pem.key)).transpose();
        let tls = tls.map_err(StartError::Option)?;
        let descriptors = descriptors_max().map_err(|error| StartError::os("cannot read RLIMIT_NOFILE", error))?;
        let capacity = Capacity::of(descriptors)?;
        let shards = shards(&options, capacity)?;
        let port = Port::claim(&options.host, options.port)?;
        let shared = Shared::new(options, trusted, tls, capacity, shards);
        let shared = shared.map_err(|error| StartError::os("cannot make the engine's eventfds", error))?;
        let threads = Mutex::default();
        let engine = Engine { shared: Arc::new(shared), port: port.address.port(), threads };
        // on an error the engine is dropped, which ends the shards that did start
        engine.start_shards(port.address)?;
        Ok(engine)
    }

    /// The port bound, also when 0 was asked for.
    pub fn port(&self) -> u16 {
        self.port
    }

    /// An eventfd, readable when events wait or `pressed` may have turned false. It belongs to the engine: never close it.
    pub fn event_fd(&self) -> RawFd {
        self.shared.events.wake().fd()
    }

    /// Moves up to `limit` events to `events`, oldest first; when none are left the eventfd is reset.
    pub fn drain_events(&self, limit: usize, events: &mut Vec<Event>) {
        if self.shared.events.drain(limit, events) {
            self.shared.wake_shards();
        }
    }

    /// Hands orders to the shards, in order for each connection and each room. Returns `pressed()`.
    pub fn submit(&self, orders: Vec<Order>) -> bool {
        if self.shared.is_stopping() {
            return false;
        }
        submit::submit(&self.shared, orders);
        self.pressed()
    }

    /// Hands texts to rooms, in order for each room. Returns `pressed()`.
    pub fn publish(&self, publishes: &[Publish<'_>]) -> bool {
        if self.shared.is_stopping() {
            return false;
        }
        submit::publish(&self.shared, publishes);
        self.pressed()
    }

    /// Whether more waits for fan-out than `backlog_bytes_max` on some shard; the eventfd tells when that is over.
    pub fn pressed(&self) -> bool {
        self.shared.pressure.is_on(&self.shared.mailboxes)
    }

    pub fn uuid(&self, conn: ConnId) -> String {
        self.shared.keys.uuid(conn)
    }

    /// The keyed hash by which `Command::Admit` names a user.
    pub fn user_hash(&self, user: &str) -> u64 {
        self.shared.keys.room(user)
    }

    /// Whether `user` may be on one connection more. It is counted already then: `Command::User` must follow.
    pub fn claim_user(&self, user: u64) -> bool {
        self.shared.limits.claim_user(user)
    }

    /// Counters summed over the shards, by the names of the fields of `Stats`, and `refused.REASON`, `shards`, `shard_lag_us_max`,
    /// `http_relays_now`, `events_queued_now`.
    pub fn stats(&self) -> Vec<(String, u64)> {
        stats::sum(&self.shared.reports, self.shared.directory.rooms(), self.shared.events.len())
    }

    /// New TLS handshakes use this certificate; an error names what is wrong with it, and the old one stays.
    pub fn set_tls(&self, certificate_pem: &[u8], key_pem: &[u8]) -> Result<(), String> {
        let config = tls::config(certificate_pem, key_pem)?;
        if self.shared.tls().is_none() {
            return Err(
                "TLS is off: it cannot be switched on while clients are served; restart with certificate and key"
                    .into(),
            );
        }
        self.shared.set_tls(config);
        Ok(())
    }

    /// Refuses upgrades, delivers what is owed, closes everybody with 1001 spread over the time.
    pub fn begin_drain(&self, within_ms: u64) {
        self.submit(vec![Order::Command(Command::Drain { within_ms })]);
    }

    /// Draining, and every connection is gone with all that it was owed.
    pub fn is_drained(&self) -> bool {
        self.shared.reports.iter().all(|report| report.is_drained())
    }

    /// Ends all shards at once and joins their threads; later calls do nothing, and `submit` drops what it is given.
    pub fn stop(&self) {
        self.shared.stop();
        let threads = std::mem::take(&mut *self.threads.lock().unwrap_or_else(PoisonError::into_inner));
        for thread in threads {
            // a shard catches its own panics; if one escaped, its connections are gone and there is nobody to tell
            drop(thread.join());
        }
    }

    /// Returns when every shard listens; the first that cannot is the error.
    fn start_shards(&self, address: SocketAddr) -> Result<(), StartError> {
        let (told, tells) = mpsc::channel();
        let failed = |error| StartError::os("cannot start a shard", error);
        for number in 0..self.shared.mailboxes.len() {
            let thread = self.start_shard(number as u16, address, told.clone()).map_err(failed)?;
            self.threads.lock().unwrap_or_else(PoisonError::into_inner).push(thread);
        }
        drop(told);
        // one answer a shard, and the end of the channel if a shard dies without one
        let answers: Vec<io::Result<()>> = tells.iter().collect();
        let started = answers.len();
        answers.into_iter().collect::<io::Result<()>>().map_err(failed)?;
        let died = || failed(io::Error::other("its thread died"));
        if started == self.shared.mailboxes.len() { Ok(()) } else { Err(died()) }
    }

    fn start_shard(
        &self,
        number: u16,
        address: SocketAddr,
        told: Sender<io::Result<()>>,
    ) -> io::Result<JoinHandle<()>> {
        let shared = self.shared.clone();
        threads::spawn(format!("tidegate-shard-{number}"), move || match Shard::open(number, shared, address) {
            Ok(shard) => {
                // the engine waits for this, so somebody listens
                drop(told.send(Ok(())));
                drop(told);
                shard.run();
            }
            Err(error) => drop(told.send(Err(error))),
        })
    }
}

impl Drop for Engine {
    fn drop(&mut self) {
        self.stop();
    }
}

fn check_silence_code(code: u16) -> Result<(), StartError> {
    if code == 0 || close::is_valid(code) {
        return Ok(());
    }
    Err(StartError::Option(format!("silence_code {code} must not be sent in a close frame; 0 = no close frame")))
}

fn shards(options: &EngineOptions, capacity: Capacity) -> Result<usize, StartError> {
    if options.shards > capacity::SHARDS_MAX {
        let max = capacity::SHARDS_MAX;
        return Err(StartError::Option(format!(
            "shards {} is too many: at most {max}, or 0 to let the engine choose",
            options.shards
        )));
    }
    if options.shards > 0 {
        return Ok(options.shards);
    }
    let cores = thread::available_parallelism().map_or(1, |cores| cores.get());
    capacity.shards(cores, options.caps.connections_max)
}
