//! A crowd of WebSocket clients in one process: holds a million connections under a 20,000-descriptor limit and checks every
//! frame that it receives.
//!
//! Rule: it measures and never flatters. What it counts, it saw on the wire; when it was itself the bottleneck, it says so.
//! A driver speaks to it over stdin and stdout (see `control.rs`). It ends with its driver, or after `--seconds-max`.

mod client;
mod control;
mod deflate;
mod frame;
mod histogram;
mod lost;
#[path = "../../options.rs"]
mod options;
mod orders;
mod stats;
#[path = "../../sys.rs"]
mod sys;
mod target;
mod worker;

use std::sync::Arc;
use std::sync::mpsc::channel;
use std::thread;

use options::Options;
use orders::{Order, Setup};
use stats::Stats;
use sys::Mailbox;
use target::{Target, Template};
use worker::Worker;

const OPTIONS: [&str; 12] = [
    "url",
    "tokens",
    "threads",
    "sources",
    "in-flight",
    "timeout-ms",
    "welcome",
    "hello",
    "deflate",
    "ack",
    "server-pid",
    "seconds-max",
];

/// Longer than any benchmark; a forgotten crowd must not live on.
const SECONDS_MAX: u32 = 1_800;

/// Spreads clients over so many loopback addresses: the kernel finds a free port at once while each address has few in use.
const SOURCES: u32 = 1_000;

/// Handshakes under way at once, all threads together: deep enough to keep two cores busy, small against the accept backlog.
const IN_FLIGHT: usize = 512;

const TIMEOUT_MS: u64 = 20_000;

/// Does what `arguments` (the options, without the program's name) ask for, until the driver is done with it; the error says the cure.
pub fn run(arguments: impl Iterator<Item = String>) -> Result<(), String> {
    let options = Options::parse(&OPTIONS, arguments)?;
    sys::stop_by_itself(options.number("seconds-max", SECONDS_MAX)?);
    let threads: usize = options.number("threads", 1)?;
    let setup = Arc::new(Setup {
        target: Target::parse(
            options.text("url").ok_or("--url ws://ADDRESS:PORT/PATH?QUERY is needed")?,
            options.text("tokens"),
        )?,
        sources: options.number("sources", SOURCES)?.max(1),
        in_flight: (options.number("in-flight", IN_FLIGHT)? / threads.max(1)).max(1),
        timeout_ns: options.number("timeout-ms", TIMEOUT_MS)? * 1_000_000,
        welcomes: welcomes(&options)?,
        hello: hello(&options)?,
        deflate_every: options.number("deflate", 0)?,
        acks: acks(&options)?,
    });
    let mut crowd = Vec::new();
    let (ready, started) = channel();
    for _ in 0..threads {
        let mailbox = Mailbox::new().map(Arc::new).map_err(|error| format!("no eventfd: {error}"))?;
        crowd.push((mailbox, Arc::new(Stats::default())));
    }
    for (mailbox, stats) in &crowd {
        let (setup, mailbox, stats, ready) =
            (Arc::clone(&setup), Arc::clone(mailbox), Arc::clone(stats), ready.clone());
        thread::spawn(move || run_worker(setup, mailbox, stats, &ready));
    }
    drop(ready);
    for _ in 0..threads {
        started.recv().map_err(|_| "a thread could not start".to_owned())?;
    }
    control::serve(&crowd, options.number("server-pid", 0)?).map_err(|error| format!("stdin or stdout: {error}"))
}

/// `--welcome no`, `yes` (one message) or how many messages.
fn welcomes(options: &Options) -> Result<u8, String> {
    match options.text("welcome") {
        None | Some("no") => Ok(0),
        Some("yes") => Ok(1),
        Some(_) => options.number("welcome", 0),
    }
}

/// `--ack yes`: each message of im-gateway is answered at once.
fn acks(options: &Options) -> Result<bool, String> {
    match options.text("ack") {
        None | Some("no") => Ok(false),
        Some("yes") => Ok(true),
        Some(other) => Err(format!("--ack {other}: yes or no")),
    }
}

/// `--hello`: one text message a line.
fn hello(options: &Options) -> Result<Vec<Template>, String> {
    let lines: Vec<_> = options.text("hello").unwrap_or("").lines().map(Template::loose).collect();
    if !lines.is_empty() && welcomes(options)? == 0 {
        return Err("--hello is said after the first message: it needs --welcome too".to_owned());
    }
    Ok(lines)
}

fn run_worker(setup: Arc<Setup>, mailbox: Arc<Mailbox<Order>>, stats: Arc<Stats>, ready: &std::sync::mpsc::Sender<()>) {
    let result = Worker::open(setup, mailbox, stats).and_then(|worker| {
        let _ = ready.send(());
        worker.run()
    });
    if let Err(error) = result {
        eprintln!("tidegate-loadgen: a thread ended: {error}");
        std::process::exit(1);
    }
}
