//! The least a WebSocket server can do on this machine: raw epoll and `send`, rooms as plain vectors, no authentication.
//!
//! It is the yardstick of every benchmark: what it costs is what the kernel costs, so a gateway's figure is told as a ratio to
//! it. Rule: it does the same work as what it is held against (threads, messages in a row, messages a send) and nothing else.
//! It ends by itself: after `--seconds-max`, or with its parent.

mod broadcast;
mod connection;
mod control;
mod nats;
#[path = "../../options.rs"]
mod options;
mod rooms;
mod setup;
#[path = "../../sys.rs"]
mod sys;
mod upgrade;
mod worker;

use std::net::{Ipv4Addr, SocketAddrV4};
use std::sync::Arc;
use std::thread;

use options::Options;
use setup::{Counters, Feed, Order, Setup};
use sys::Mailbox;
use worker::Worker;

const OPTIONS: [&str; 8] = ["port", "threads", "ping-ms", "answer", "nats", "subject", "room", "seconds-max"];

/// Long enough for a million connections held ten minutes; nothing here is meant to be left running.
const SECONDS_MAX: u32 = 1_800;

/// Does what `arguments` (the options, without the program's name) ask for, until the driver is done with it; the error says the cure.
pub fn run(arguments: impl Iterator<Item = String>) -> Result<(), String> {
    let options = Options::parse(&OPTIONS, arguments)?;
    sys::stop_by_itself(options.number("seconds-max", SECONDS_MAX)?);
    let threads: usize = options.number("threads", 1)?;
    let setup = Arc::new(Setup {
        address: SocketAddrV4::new(Ipv4Addr::LOCALHOST, free_port(options.number("port", 0)?)?),
        ping_ms: options.number("ping-ms", 0)?,
        answer: options.text("answer").map(|text| Arc::new(broadcast::text_frame(text.as_bytes()))),
        feed: feed(&options)?,
    });
    let mailboxes = (0..threads).map(|_| Mailbox::new().map(Arc::new)).collect::<Result<Vec<_>, _>>();
    let mailboxes = mailboxes.map_err(|error| format!("no eventfd: {error}"))?;
    let counters = start(&setup, &mailboxes)?;
    control::serve(setup.address.port(), mailboxes, counters).map_err(|error| format!("control port: {error}"))
}

/// A port that nobody listens on: SO_REUSEPORT would otherwise share another program's port without a word.
fn free_port(wanted: u16) -> Result<u16, String> {
    let probe = std::net::TcpListener::bind((Ipv4Addr::LOCALHOST, wanted));
    let address = probe.and_then(|listener| listener.local_addr());
    address.map(|address| address.port()).map_err(|error| format!("port {wanted} is not free ({error}); use --port 0"))
}

fn feed(options: &Options) -> Result<Option<Feed>, String> {
    let Some(server) = options.text("nats") else {
        return Ok(None);
    };
    let subject = options.text("subject").ok_or("--nats needs --subject")?;
    Ok(Some(Feed {
        server: server.to_owned(),
        subject: subject.to_owned(),
        room: options.text("room").map(str::to_owned),
    }))
}

/// Starts the workers and waits until each listens: a client that came earlier would meet only some of them.
fn start(setup: &Arc<Setup>, mailboxes: &[Arc<Mailbox<Order>>]) -> Result<Vec<Arc<Counters>>, String> {
    let (ready, started) = std::sync::mpsc::channel();
    for mailbox in mailboxes {
        let (setup, mailbox, ready) = (Arc::clone(setup), Arc::clone(mailbox), ready.clone());
        thread::spawn(move || match Worker::open(setup, mailbox) {
            Ok(worker) => {
                let _ = ready.send(Ok(worker.counters()));
                eprintln!("tidegate-limit: a worker ended: {}", worker.run());
                std::process::exit(1);
            }
            Err(error) => drop(ready.send(Err(format!("a worker could not start: {error}")))),
        });
    }
    drop(ready);
    mailboxes.iter().map(|_| started.recv().map_err(|_| "a worker died at its start".to_owned())?).collect()
}
