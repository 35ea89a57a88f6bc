//! What the engine asks of one shard: a vector that is swapped out whole, and an eventfd for a shard that sleeps.
//!
//! Rule: mail is taken in the order it came. The eventfd is signalled only as the first mail arrives, so that a busy shard costs its
//! senders no system call. What is queued is not bounded here: senders are told to hold back (`Pressure`) and Python obeys.

use std::{
    collections::VecDeque,
    io,
    os::fd::OwnedFd,
    sync::{
        Arc, Mutex, MutexGuard, PoisonError,
        atomic::{AtomicBool, AtomicUsize, Ordering},
    },
};

use tidegate_hub::{Command, Group};

use crate::fds::{Wake, eventfd};

#[derive(Debug)]
pub enum Mail {
    Command(Command),
    Publish(Arc<Group>),
}

pub struct Mailbox {
    mail: Mutex<Vec<Mail>>,
    owner: OwnedFd,
    /// Bytes of mail that the shard has not begun with.
    queued: AtomicUsize,
    /// Bytes of publishes that the shard's hub has not handed to all members; told by the shard.
    backlog: AtomicUsize,
}

impl Mailbox {
    pub fn new() -> io::Result<Self> {
        let (mail, queued, backlog) = Default::default();
        Ok(Self { mail, owner: eventfd()?, queued, backlog })
    }

    pub fn wake(&self) -> Wake {
        Wake::of(&self.owner)
    }

    /// Adds all of `mail` and leaves it empty.
    pub fn post(&self, mail: &mut Vec<Mail>) {
        if mail.is_empty() {
            return;
        }
        self.queued.fetch_add(mail.iter().map(Mail::bytes).sum(), Ordering::Relaxed);
        let mut waiting = self.lock();
        let first = waiting.is_empty();
        waiting.append(mail);
        drop(waiting);
        if first {
            self.wake().signal();
        }
    }

    /// Moves everything to the shard's own queue.
    pub fn take(&self, inbox: &mut VecDeque<Mail>) {
        // before looking: what comes after this signals again
        self.wake().reset();
        let taken = std::mem::take(&mut *self.lock());
        inbox.extend(taken);
    }

    /// The shard has begun with mail of so many bytes.
    pub fn begun(&self, bytes: usize) {
        self.queued.fetch_sub(bytes, Ordering::Relaxed);
    }

    pub fn set_backlog(&self, bytes: usize) {
        self.backlog.store(bytes, Ordering::Relaxed);
    }

    pub fn load_bytes(&self) -> usize {
        self.queued.load(Ordering::Relaxed) + self.backlog.load(Ordering::Relaxed)
    }

    fn lock(&self) -> MutexGuard<'_, Vec<Mail>> {
        self.mail.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl Mail {
    /// What it keeps in memory, roughly: what commands carry besides payloads is small.
    pub fn bytes(&self) -> usize {
        match self {
            Mail::Publish(group) => group.len_bytes() + MAIL_BYTES,
            Mail::Command(Command::Send { payload, .. }) => payload.bytes.len() + MAIL_BYTES,
            Mail::Command(Command::Admit { payloads, .. }) => {
                payloads.iter().map(|payload| payload.bytes.len()).sum::<usize>() + MAIL_BYTES
            }
            Mail::Command(_) => MAIL_BYTES,
        }
    }
}

/// Whether the bus must hold back: told by `is_on`, and taken back by whoever notices that it is over.
pub struct Pressure {
    bound_bytes: usize,
    told: AtomicBool,
}

impl Pressure {
    pub fn new(bound_bytes: usize) -> Self {
        Self { bound_bytes, told: AtomicBool::new(false) }
    }

    pub fn is_on(&self, mailboxes: &[Mailbox]) -> bool {
        if mailboxes.iter().all(|mailbox| mailbox.load_bytes() <= self.bound_bytes) {
            return false;
        }
        self.told.store(true, Ordering::SeqCst);
        // the shards may have finished since: then nobody would come by to take it back
        !self.is_over(mailboxes)
    }

    /// Whether pressure was told and now ends: every shard is under half of the bound. True for one caller only.
    pub fn is_over(&self, mailboxes: &[Mailbox]) -> bool {
        self.told.load(Ordering::SeqCst)
            && mailboxes.iter().all(|mailbox| mailbox.load_bytes() <= self.bound_bytes / 2)
            && self.told.swap(false, Ordering::SeqCst)
    }
}

/// An entry of the vector and what it points to.
const MAIL_BYTES: usize = 128;

#[cfg(test)]
mod tests {
    use tidegate_hub::{ConnId, Payload};

    use super::*;

    fn leave(number: u64) -> Mail {
        Mail::Command(Command::Leave { conn: ConnId(number), room: "room".into() })
    }

    fn send(len: usize) -> Mail {
        let payload = Payload { bytes: vec![0; len].into(), text: true };
        Mail::Command(Command::Send { conn: ConnId(0), payload, ticket: 0 })
    }

    fn is_signalled(mailbox: &Mailbox) -> bool {
        let mut poll = libc::pollfd { fd: mailbox.wake().fd(), events: libc::POLLIN, revents: 0 };
        // SAFETY: one pollfd, as the count says.
        unsafe { libc::poll(&mut poll, 1, 0) == 1 }
    }

    #[test]
    fn mail_comes_out_in_the_order_it_went_in() {
        let mailbox = Mailbox::new().unwrap();
        mailbox.post(&mut vec![leave(1), leave(2)]);
        mailbox.post(&mut vec![leave(3)]);
        let mut inbox = VecDeque::new();
        mailbox.take(&mut inbox);
        let conns = inbox.iter().map(|mail| match mail {
            Mail::Command(Command::Leave { conn, .. }) => conn.0,
            other => panic!("{other:?}"),
        });
        assert_eq!(conns.collect::<Vec<_>>(), [1, 2, 3]);
    }

    #[test]
    fn only_the_first_mail_signals_and_taking_it_resets() {
        let mailbox = Mailbox::new().unwrap();
        mailbox.post(&mut Vec::new());
        assert!(!is_signalled(&mailbox), "no mail, no signal");
        mailbox.post(&mut vec![leave(1)]);
        assert!(is_signalled(&mailbox));
        mailbox.wake().reset();
        mailbox.post(&mut vec![leave(2)]);
        assert!(!is_signalled(&mailbox), "the shard knows already");
        mailbox.take(&mut VecDeque::new());
        mailbox.post(&mut vec![leave(3)]);
        assert!(is_signalled(&mailbox));
    }

    #[test]
    fn pressure_is_told_over_the_bound_and_taken_back_once_under_half() {
        let mailboxes = [Mailbox::new().unwrap(), Mailbox::new().unwrap()];
        let pressure = Pressure::new(10_000);
        mailboxes[1].post(&mut vec![send(6_000)]);
        assert!(!pressure.is_on(&mailboxes));
        mailboxes[1].post(&mut vec![send(6_000)]);
        assert!(pressure.is_on(&mailboxes), "one shard is enough");
        mailboxes[1].begun(6_000 + MAIL_BYTES);
        assert!(!pressure.is_over(&mailboxes), "under the bound, not under its half");
        mailboxes[1].begun(6_000 + MAIL_BYTES);
        mailboxes[1].set_backlog(4_000);
        assert!(pressure.is_over(&mailboxes));
        assert!(!pressure.is_over(&mailboxes), "once");
    }

    #[test]
    fn what_the_hub_has_not_handed_on_counts_too() {
        let mailboxes = [Mailbox::new().unwrap()];
        mailboxes[0].set_backlog(20_000);
        assert!(Pressure::new(10_000).is_on(&mailboxes));
    }
}
