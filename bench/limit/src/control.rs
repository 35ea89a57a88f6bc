//! The driver's side: one line in, one line of JSON out, over TCP on loopback.
//!
//! `publish ROOM COUNT SIZE BATCH [member]` sends COUNT numbered messages of SIZE bytes to each member, BATCH of them to a send,
//! and answers when the kernel has taken them all. `stats` answers at once. `exit` ends the program.

use std::collections::HashMap;
use std::io::{self, BufRead, BufReader, Write};
use std::net::{Ipv4Addr, TcpListener, TcpStream};
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering::Relaxed};
use std::sync::mpsc::channel;
use std::thread;
use std::time::{Duration, Instant};

use crate::broadcast::Broadcast;
use crate::setup::{Counters, Order};
use crate::sys::{self, Mailbox};

/// How long `publish` waits for members that are behind; what is still owed then is in the answer.
const DRAIN_WAIT: Duration = Duration::from_secs(30);

/// A broadcast's frames are held in memory at once; ten times what any benchmark asks for.
const BROADCAST_BYTES_MAX: usize = 256 << 20;

pub fn serve(port: u16, mailboxes: Vec<Arc<Mailbox<Order>>>, counters: Vec<Arc<Counters>>) -> io::Result<()> {
    let listener = TcpListener::bind((Ipv4Addr::LOCALHOST, 0))?;
    let control_port = listener.local_addr()?.port();
    println!(r#"{{"port":{port},"control":{control_port},"threads":{}}}"#, mailboxes.len());
    let mut control = Control { mailboxes, counters, next_number: HashMap::new() };
    for driver in listener.incoming() {
        if control.serve(driver?)? {
            return Ok(());
        }
    }
    Ok(())
}

struct Control {
    mailboxes: Vec<Arc<Mailbox<Order>>>,
    counters: Vec<Arc<Counters>>,
    /// The number that the next message to a room carries: members see one rising sequence whatever the driver does.
    next_number: HashMap<String, u64>,
}

impl Control {
    /// Serves one driver until it hangs up; true when it asked for the end.
    fn serve(&mut self, driver: TcpStream) -> io::Result<bool> {
        driver.set_nodelay(true)?;
        let mut answers = driver.try_clone()?;
        for line in BufReader::new(driver).lines() {
            let line = line?;
            let words: Vec<&str> = line.split_whitespace().collect();
            let answer = match words.as_slice() {
                ["publish", room, count, size, batch, order @ ..] => self.publish(room, [*count, *size, *batch], order),
                ["stats"] => self.stats(&[]),
                ["exit"] => return Ok(true),
                _ => problem("use publish ROOM COUNT SIZE BATCH [member], stats or exit"),
            };
            answers.write_all(answer.as_bytes())?;
        }
        Ok(false)
    }

    fn publish(&mut self, room: &str, numbers: [&str; 3], order: &[&str]) -> String {
        let [Ok(count), Ok(size), Ok(batch)] = numbers.map(str::parse::<usize>) else {
            return problem("COUNT, SIZE and BATCH are whole numbers");
        };
        if count.saturating_mul(size) > BROADCAST_BYTES_MAX {
            return problem("more than 256 MiB at once; publish in parts");
        }
        let next = self.next_number.entry(room.to_owned()).or_insert(1);
        let first = *next;
        *next += count as u64;
        let started = sys::now_ns();
        let mut broadcast = Broadcast::numbered(room, first, count, size, batch);
        broadcast.member_by_member = order == ["member"];
        self.send(Arc::new(broadcast));
        self.stats(&[("started_ns", started), ("finished_ns", sys::now_ns())])
    }

    fn send(&self, broadcast: Arc<Broadcast>) {
        let (done, finished) = channel();
        for mailbox in &self.mailboxes {
            mailbox.put(Order { broadcast: Arc::clone(&broadcast), done: done.clone() });
        }
        drop(done);
        while finished.recv().is_ok() {}
        let deadline = Instant::now() + DRAIN_WAIT;
        while self.sum(|counters| &counters.behind) > 0 && Instant::now() < deadline {
            thread::sleep(Duration::from_millis(1));
        }
    }

    fn sum(&self, field: impl Fn(&Counters) -> &AtomicU64) -> u64 {
        self.counters.iter().map(|counters| field(counters).load(Relaxed)).sum()
    }

    fn stats(&self, more: &[(&str, u64)]) -> String {
        let mut fields = vec![
            ("open", self.sum(|counters| &counters.open)),
            ("handshakes", self.sum(|counters| &counters.handshakes)),
            ("refused", self.sum(|counters| &counters.refused)),
            ("sends", self.sum(|counters| &counters.sends)),
            ("bytes", self.sum(|counters| &counters.bytes)),
            ("would_block", self.sum(|counters| &counters.would_block)),
            ("behind", self.sum(|counters| &counters.behind)),
            ("texts", self.sum(|counters| &counters.texts)),
            ("pings", self.sum(|counters| &counters.pings)),
        ];
        fields.extend_from_slice(more);
        let fields: Vec<String> = fields.iter().map(|(name, value)| format!(r#""{name}":{value}"#)).collect();
        format!("{{{}}}\n", fields.join(","))
    }
}

fn problem(message: &str) -> String {
    format!("{{\"error\":\"{message}\"}}\n")
}
