//! Messages on their way to large rooms.
//!
//! A room that is too large to be served at once has a job. The job goes through the members in passes, slice by slice, in turn with other rooms'
//! jobs. What is published meanwhile waits and goes together in the next pass, in one write a member: so a busy shard gets more
//! done with each write, and an idle one delays nothing. Rule: passes follow the order of publishing, and each visits a slot once.

use std::{collections::VecDeque, num::NonZeroU64, sync::Arc};

use hashbrown::HashMap;

use crate::{
    Group, Hub, Millis, Sent, Wire,
    delivery::weight,
    group::Encoding,
    outbox::{PARTS_MAX, Parts},
    ws::deflate::Deflater,
};

/// Never used again, so a stale entry of the queue finds nothing.
pub(crate) type JobId = NonZeroU64;

/// One room's messages on their way.
#[derive(Debug)]
pub(crate) struct Job {
    room: u32,
    /// What this pass carries; the first of it is number `first` of the job.
    pass: Arc<[Arc<Group>]>,
    first: u64,
    /// The first slot this pass has not visited.
    cursor: u32,
    waiting: VecDeque<Arc<Group>>,
    /// Members that joined meanwhile, and the number of the first group they get.
    since: HashMap<u32, u64>,
}

impl Job {
    /// Bytes of its messages, each counted once.
    pub fn bytes(&self) -> usize {
        self.pass.iter().chain(&self.waiting).map(|group| group.len_bytes()).sum()
    }

    /// Takes what waits into a new pass: one write's worth, and not so much that a healthy reader's socket must overflow.
    fn begin_pass(&mut self, bytes_max: usize) {
        let first = self.first;
        self.since.retain(|_, since| *since > first);
        let (mut pass, mut bytes) = (Vec::new(), 0);
        while let Some(group) = self.waiting.front()
            && pass.len() < PARTS_MAX
            && (pass.is_empty() || bytes + group.len_bytes() <= bytes_max)
        {
            bytes += group.len_bytes();
            pass.extend(self.waiting.pop_front());
        }
        self.cursor = 0;
        self.pass = pass.into();
    }

    /// Returns its bytes.
    fn end_pass(&mut self) -> usize {
        let pass = std::mem::take(&mut self.pass);
        self.first += pass.len() as u64;
        self.cursor = 0;
        pass.iter().map(|group| group.len_bytes()).sum()
    }

    /// How many groups of this pass came before `slot` joined.
    fn missed(&self, slot: u32) -> usize {
        let since = self.since.get(&slot).map_or(0, |since| since.saturating_sub(self.first) as usize);
        since.min(self.pass.len())
    }
}

#[derive(Default)]
pub(crate) struct Fanout {
    jobs: HashMap<JobId, Box<Job>>,
    /// Whose turn is next.
    turns: VecDeque<JobId>,
    last: u64,
}

impl Fanout {
    pub fn is_idle(&self) -> bool {
        self.jobs.is_empty()
    }

    /// What a member that leaves now has a right to and has not been given.
    pub fn unseen(&self, job: JobId, slot: u32) -> Vec<Arc<Group>> {
        let Some(job) = self.jobs.get(&job) else {
            return Vec::new();
        };
        let begin = if slot >= job.cursor { 0 } else { job.pass.len() };
        let since = job.since.get(&slot).map_or(0, |since| since.saturating_sub(job.first) as usize);
        job.pass.iter().chain(&job.waiting).skip(begin.max(since)).cloned().collect()
    }

    /// A member that joins now gets nothing of what is under way.
    pub fn skip_pending(&mut self, job: JobId, slot: u32) {
        if let Some(job) = self.jobs.get_mut(&job) {
            let since = job.first + (job.pass.len() + job.waiting.len()) as u64;
            job.since.insert(slot, since);
        }
    }

    /// The room has ended.
    pub fn cancel(&mut self, job: JobId) -> Option<Box<Job>> {
        self.jobs.remove(&job)
    }

    pub fn bytes(&self) -> usize {
        self.jobs.values().map(|job| job.bytes()).sum()
    }

    pub fn room_of(&self, job: JobId) -> Option<u32> {
        self.jobs.get(&job).map(|job| job.room)
    }

    fn begin(&mut self, room: u32) -> JobId {
        self.last += 1;
        let id = JobId::MIN.saturating_add(self.last);
        let job =
            Job { room, pass: Arc::default(), first: 0, cursor: 0, waiting: VecDeque::new(), since: HashMap::new() };
        self.jobs.insert(id, Box::new(job));
        self.turns.push_back(id);
        id
    }

    /// The job whose turn it is; it goes to the end of the queue. It stays in its place while it runs: whatever happens to one member, the
    /// others' messages are not lost.
    fn next_turn(&mut self) -> Option<(JobId, &mut Job)> {
        while let Some(id) = self.turns.pop_front() {
            if self.jobs.contains_key(&id) {
                self.turns.push_back(id);
                return self.jobs.get_mut(&id).map(|job| (id, &mut **job));
            }
        }
        None
    }

    /// Marks `slot` as visited. Returns how many groups of the pass it is not to get; `None` when the job was cancelled.
    fn visit(&mut self, job: JobId, slot: u32) -> Option<usize> {
        let job = self.jobs.get_mut(&job)?;
        job.cursor = slot + 1;
        Some(job.missed(slot))
    }
}

/// What one pass writes, made once for all members of a slice.
struct Pass<'a> {
    groups: &'a [Arc<Group>],
    messages: usize,
    excludes: bool,
    parts: [Option<Parts<'a>>; 3],
}

impl<'a> Pass<'a> {
    fn new(groups: &'a [Arc<Group>]) -> Self {
        Self {
            groups,
            messages: groups.iter().map(|group| group.messages()).sum(),
            excludes: groups.iter().any(|group| group.excludes_any()),
            parts: [None, None, None],
        }
    }

    fn parts(&mut self, encoding: Encoding, deflater: &mut Deflater) -> &Parts<'a> {
        let groups = self.groups;
        self.parts[encoding as usize]
            .get_or_insert_with(|| groups.iter().map(|group| &*group.frames(encoding, deflater).bytes).collect())
    }
}

impl Hub {
    /// Messages for a room: small rooms are served at once, by way of the outboxes; large ones in passes.
    pub fn handle_publish(&mut self, group: &Arc<Group>, now: Millis) {
        let Some(number) = self.rooms.find(group.hash, &group.room) else {
            return;
        };
        let Some(room) = self.rooms.get_mut(number).filter(|_| group.messages() > 0) else {
            return;
        };
        if let Some(id) = room.members.job_or_begin(|| self.fanout.begin(number)) {
            if let Some(job) = self.fanout.jobs.get_mut(&id) {
                job.waiting.push_back(Arc::clone(group));
                self.stats.backlog_bytes_now += group.len_bytes() as u64;
            }
            return;
        }
        let mut slots = std::mem::take(&mut self.scratch);
        room.members.copy_from(0, usize::MAX, &mut slots);
        for slot in slots.drain(..) {
            self.deliver(slot, std::slice::from_ref(group), now);
        }
        self.scratch = slots;
    }

    /// One slice of the job whose turn it is. Returns the weight of its writes: `limit` at most, or one write's.
    pub(crate) fn fan_out(&mut self, limit: usize, wire: &mut impl Wire, now: Millis) -> usize {
        if limit == 0 {
            return 0;
        }
        let Some((id, job)) = self.fanout.next_turn() else {
            return 0;
        };
        if job.pass.is_empty() {
            job.begin_pass(self.settings.outbox_bytes_max / 4);
        }
        let (room, cursor, groups) = (job.room, job.cursor, Arc::clone(&job.pass));
        let each = weight(groups.iter().map(|group| group.len_bytes()).sum());
        let limit = (limit / each).max(1);
        let mut slots = std::mem::take(&mut self.scratch);
        if let Some(room) = self.rooms.get(room) {
            room.members.copy_from(cursor, limit, &mut slots);
        }
        let mut pass = Pass::new(&groups);
        for &slot in &slots {
            if let Some(missed) = self.fanout.visit(id, slot) {
                self.visit(slot, &mut pass, missed, wire, now);
            }
        }
        let visited = slots.len();
        slots.clear();
        self.scratch = slots;
        if visited < limit {
            self.end_pass(id);
        }
        // a slice without members costs a turn all the same, or a loop over such would never end
        visited.max(1) * each
    }

    fn end_pass(&mut self, id: JobId) {
        let Some(job) = self.fanout.jobs.get_mut(&id) else {
            return;
        };
        self.stats.backlog_bytes_now -= job.end_pass() as u64;
        if job.waiting.is_empty()
            && let Some(job) = self.fanout.jobs.remove(&id)
            && let Some(room) = self.rooms.get_mut(job.room)
        {
            room.members.end_job();
        }
    }

    fn visit(&mut self, slot: u32, pass: &mut Pass<'_>, missed: usize, wire: &mut impl Wire, now: Millis) {
        let (Some(conn), Some(client)) = (self.slab.id_at(slot), self.slab.at(slot)) else {
            return;
        };
        let excluded = || pass.groups.iter().any(|group| group.messages_for(conn) < group.messages());
        if client.outbox.is_some() || client.blocked || missed > 0 || (pass.excludes && excluded()) {
            return self.deliver(slot, &pass.groups[missed..], now);
        }
        let parts = pass.parts(client.encoding, &mut self.deflater);
        let offered: usize = parts.iter().map(|part| part.len()).sum();
        self.stats.writes += 1;
        match wire.write(conn, parts) {
            Sent::Dead => self.end(slot),
            Sent::Bytes(written) => {
                self.stats.bytes_out += written.min(offered) as u64;
                self.count_broadcasts(pass.messages);
                if written < offered {
                    self.overflow(slot, pass.groups, written, now);
                }
            }
        }
    }

    fn overflow(&mut self, slot: u32, groups: &[Arc<Group>], written: usize, now: Millis) {
        if let Some(client) = self.slab.at_mut(slot) {
            client.blocked = true;
        }
        self.owe_rest(slot, groups, written, now);
    }
}
