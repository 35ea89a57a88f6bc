//! The driver's side: one command a line on stdin, one line of JSON each on stdout. The end of stdin ends the program.
//!
//! `open N [PER_SECOND]`, `wait open|opened|received|other N SECONDS`, `stats`, `reset`, `send K TEXT`, `cut FRACTION`,
//! `reconnect on|off`, `pause FIRST OF` (clients whose number modulo OF is below FIRST read nothing), `resume`, `close`.
//! Rule: every answer says how busy the generator and the machine were; with `--server-pid`, also whether the generator was the
//! bottleneck.

use std::io::{self, Write};
use std::sync::Arc;
use std::sync::mpsc::channel;
use std::thread;
use std::time::{Duration, Instant};

use crate::orders::{Order, What};
use crate::stats::{self, Stats};
use crate::sys::{self, Mailbox};
use crate::target::Template;

type Crowd = [(Arc<Mailbox<Order>>, Arc<Stats>)];

/// A wait is looked at this often: fine against the seconds that are measured, and a thousandth of a core.
const WAIT_STEP: Duration = Duration::from_micros(500);

/// From this share of its cores on, a program counts as saturated.
const SATURATED: f64 = 0.9;

pub fn serve(crowd: &Crowd, server_pid: i32) -> io::Result<()> {
    let mut control = Control { crowd, server_pid, next_client: 0, since: Usage::default() };
    control.since = control.usage();
    let mut answers = io::stdout();
    for line in io::stdin().lines() {
        let line = line?;
        writeln!(answers, "{}", control.answer(&line))?;
        answers.flush()?;
    }
    Ok(())
}

struct Control<'a> {
    crowd: &'a Crowd,
    server_pid: i32,
    next_client: u32,
    since: Usage,
}

/// Clocks at one moment, in nanoseconds.
#[derive(Default)]
struct Usage {
    wall: u64,
    threads: Vec<u64>,
    process: u64,
    server: u64,
    /// Time that all cores together did nothing.
    idle: u64,
}

impl Control<'_> {
    fn answer(&mut self, line: &str) -> String {
        let mut words = line.splitn(3, ' ');
        let (command, first, rest) = (words.next().unwrap_or(""), words.next(), words.next());
        let done = match (command, first, rest) {
            ("open", Some(count), rate) => self.open(count, rate.unwrap_or("0")),
            ("wait", Some(what), Some(rest)) => return self.wait(what, rest),
            ("reset", None, None) => {
                self.order(|_| What::Reset);
                self.since = self.usage();
                Some(())
            }
            ("send", Some(times), Some(text)) => times.parse().ok().map(|times| {
                let text = Arc::new(Template::loose(text));
                self.order(|_| What::Send { text: Arc::clone(&text), times });
            }),
            ("cut", Some(share), None) => share.parse().ok().filter(|share| (0.0..=1.0).contains(share)).map(|share| {
                self.order(|_| What::Cut { share });
            }),
            ("close", None, None) => {
                self.order(|_| What::Close);
                Some(())
            }
            ("reconnect", Some(on @ ("on" | "off")), None) => {
                self.order(|_| What::Reconnect { on: on == "on" });
                Some(())
            }
            ("pause", Some(first), Some(of)) => {
                first.parse().ok().zip(of.parse().ok().filter(|of| *of > 0)).map(|(first, of)| {
                    self.order(|_| What::Pause { first, of });
                })
            }
            ("resume", None, None) => {
                self.order(|_| What::Resume);
                Some(())
            }
            ("stats", None, None) => Some(()),
            _ => None,
        };
        match done {
            Some(()) => self.stats(&[]),
            None => USAGE.to_owned(),
        }
    }

    fn open(&mut self, count: &str, rate: &str) -> Option<()> {
        let (count, rate): (u32, f64) = (count.parse().ok()?, rate.parse().ok()?);
        let threads = self.crowd.len() as u32;
        let first = self.next_client;
        self.next_client += count;
        self.order(|thread| What::Open {
            first: first + thread,
            stride: threads,
            count: count / threads + u32::from(thread < count % threads),
            per_second: rate / f64::from(threads),
        });
        Some(())
    }

    /// Gives each thread its order and waits until all have taken theirs.
    fn order(&self, what: impl Fn(u32) -> What) {
        let (done, taken) = channel();
        for (thread, (mailbox, _)) in (0..).zip(self.crowd) {
            mailbox.put(Order { what: what(thread), done: done.clone() });
        }
        drop(done);
        while taken.recv().is_ok() {}
    }

    /// Waits for a count, but not longer than `seconds`; opening also ends when nothing is under way any more.
    fn wait(&self, what: &str, rest: &str) -> String {
        let numbers: Vec<f64> = rest.split(' ').filter_map(|word| word.parse().ok()).collect();
        let (&[count, seconds], true) = (numbers.as_slice(), WAITS.contains(&what)) else {
            return USAGE.to_owned();
        };
        let deadline = Instant::now() + Duration::from_secs_f64(seconds.clamp(0.0, 3_600.0));
        let mut reached = false;
        while !reached && Instant::now() < deadline {
            thread::sleep(WAIT_STEP);
            let now = match what {
                "open" => self.sum(|stats| &stats.open),
                "opened" => self.sum(|stats| &stats.opened),
                "received" => self.sum(|stats| &stats.received),
                _ => self.sum(|stats| &stats.other),
            };
            reached = now as f64 >= count;
            let idle = self.sum(|stats| &stats.waiting) + self.sum(|stats| &stats.in_flight) == 0;
            if what == "open" && idle {
                reached = self.sum(|stats| &stats.open) as f64 >= count;
                break;
            }
        }
        self.stats(&[format!(r#""reached":{reached}"#)])
    }

    fn sum(&self, field: impl Fn(&Stats) -> &stats::Counter) -> u64 {
        self.crowd.iter().map(|(_, stats)| field(stats).get()).sum()
    }

    fn stats(&self, more: &[String]) -> String {
        let all: Vec<&Stats> = self.crowd.iter().map(|(_, stats)| &**stats).collect();
        let mut fields = stats::fields(&all);
        fields.extend(self.load());
        fields.extend_from_slice(more);
        format!("{{{}}}", fields.join(","))
    }

    /// How busy generator and server were since the last reset, as cores.
    fn load(&self) -> Vec<String> {
        let now = self.usage();
        let wall = (now.wall - self.since.wall).max(1) as f64;
        let cores = |now: u64, then: u64| now.saturating_sub(then) as f64 / wall;
        let busiest =
            now.threads.iter().zip(&self.since.threads).map(|(now, then)| cores(*now, *then)).fold(0.0, f64::max);
        let own = cores(now.process, self.since.process);
        let machine = machine_cores();
        let full = machine - cores(now.idle, self.since.idle) >= SATURATED * machine;
        let mut fields = vec![
            format!(r#""elapsed_ns":{wall}"#),
            format!(r#""cpu_ns":{}"#, now.process - self.since.process),
            format!(r#""cores":{own:.3},"busiest_thread":{busiest:.3},"machine_full":{full}"#),
        ];
        if self.server_pid > 0 {
            let server = cores(now.server, self.since.server);
            let bound = is_generator_bound(busiest, server, full);
            fields.push(format!(r#""server_cores":{server:.3},"generator_bound":{bound}"#));
        }
        fields
    }

    fn usage(&self) -> Usage {
        let clock = |stats: &Stats| sys::clock_ns(stats.cpu_clock.get() as u32 as libc::clockid_t);
        Usage {
            wall: sys::now_ns(),
            threads: self.crowd.iter().map(|(_, stats)| clock(stats)).collect(),
            process: sys::clock_ns(libc::CLOCK_PROCESS_CPUTIME_ID),
            server: if self.server_pid > 0 { sys::clock_ns(process_clock(self.server_pid)) } else { 0 },
            idle: idle_ns(),
        }
    }
}

/// What can be waited for. `opened` counts since the last reset, so a client that came back counts again.
const WAITS: [&str; 4] = ["open", "opened", "received", "other"];

const USAGE: &str = r#"{"error":"use open N [PER_SECOND], wait open|opened|received|other N SECONDS, stats, reset, send K TEXT, cut FRACTION, reconnect on|off, pause FIRST OF, resume or close"}"#;

/// The CPU clock of another process, as clock_getcpuclockid(3) makes it: user and system time, in nanoseconds.
fn process_clock(pid: i32) -> libc::clockid_t {
    (!pid << 3) | 2
}

fn machine_cores() -> f64 {
    thread::available_parallelism().map_or(1.0, |cores| cores.get() as f64)
}

/// The time all cores have been idle since the machine started, as /proc/stat has it (in ticks of 10 ms); 0 if it can't be read.
fn idle_ns() -> u64 {
    let text = std::fs::read_to_string("/proc/stat").unwrap_or_default();
    let ticks = |column: usize| text.split_ascii_whitespace().nth(column).and_then(|word| word.parse::<u64>().ok());
    (ticks(IDLE_COLUMN).unwrap_or(0) + ticks(IDLE_COLUMN + 1).unwrap_or(0)) * NANOSECONDS_PER_TICK
}

/// `cpu user nice system idle iowait ...`
const IDLE_COLUMN: usize = 4;
const NANOSECONDS_PER_TICK: u64 = 10_000_000;

/// A rate is the generator's, not the server's, when one of its threads was full while server and machine had CPU left. On a full
/// machine the two compete for the same cores; that is `machine_full`, for the reader to know.
fn is_generator_bound(busiest_thread: f64, server: f64, machine_full: bool) -> bool {
    busiest_thread >= SATURATED && server < SATURATED && !machine_full
}

#[cfg(test)]
mod tests {
    use super::is_generator_bound;

    #[test]
    fn a_full_thread_beside_a_server_with_time_left_is_the_bottleneck() {
        assert!(is_generator_bound(0.97, 0.4, false));
    }

    #[test]
    fn a_busy_server_or_a_full_machine_clears_the_generator() {
        assert!(!is_generator_bound(0.97, 0.95, false));
        assert!(!is_generator_bound(0.97, 0.4, true));
        assert!(!is_generator_bound(0.5, 0.4, false));
    }
}
