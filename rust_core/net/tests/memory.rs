//! What one idle connection costs the hub, part by part, counted at the allocator.
//!
//! A shard of a process with a million connections is filled several times, each time with one thing more, and the differences are the parts.
//! Counted as the engine's allocator hands it out: in steps of 16 bytes. `cargo test -p tidegate-net --test memory -- --nocapture` shows them.
//! It is here and not in the hub's tests because counting needs `unsafe`.

use std::{
    alloc::{GlobalAlloc, Layout, System},
    hash::RandomState,
    net::{IpAddr, Ipv4Addr},
    sync::{
        Arc,
        atomic::{AtomicUsize, Ordering},
    },
};

use tidegate_hub::{Command, ConnId, Hub, Keys, Sent, Settings, Wire};

/// A million over 63 shards.
const CLIENTS: usize = 16_000;
const REQUEST: &[u8] = b"GET /ws?token=secret HTTP/1.1\r\nHost: a\r\nUpgrade: websocket\r\nConnection: Upgrade\r\n\
    Sec-WebSocket-Key: dGhlIHNhbXBsZSBub25jZQ==\r\nSec-WebSocket-Version: 13\r\n\r\n";
/// Slot, timer, session of 15 bytes, a room of its own with a name of 12, two rooms of others. With a little for bitmaps and last chunks.
const BYTES_MAX: usize = 192;

struct Counting;

static LIVE: AtomicUsize = AtomicUsize::new(0);

fn counted(layout: Layout) -> usize {
    layout.size().next_multiple_of(16)
}

// SAFETY: the system's allocator does the work; what is added is a count.
unsafe impl GlobalAlloc for Counting {
    unsafe fn alloc(&self, layout: Layout) -> *mut u8 {
        LIVE.fetch_add(counted(layout), Ordering::Relaxed);
        // SAFETY: the caller keeps the same promises to us.
        unsafe { System.alloc(layout) }
    }

    unsafe fn dealloc(&self, place: *mut u8, layout: Layout) {
        LIVE.fetch_sub(counted(layout), Ordering::Relaxed);
        // SAFETY: as above, and every block is the system's.
        unsafe { System.dealloc(place, layout) }
    }
}

#[global_allocator]
static ALLOCATOR: Counting = Counting;

/// Takes everything.
struct Sockets;

impl Wire for Sockets {
    fn write(&mut self, _conn: ConnId, parts: &[&[u8]]) -> Sent {
        Sent::Bytes(parts.iter().map(|part| part.len()).sum())
    }
}

/// What each client of a shard has besides its connection.
#[derive(Clone, Copy, Default)]
struct Shape {
    session: bool,
    own_room: bool,
    shared_rooms: bool,
}

impl Shape {
    fn admit(self, conn: ConnId, client: usize) -> Command {
        let number = 100_000 + client;
        let session =
            if self.session { format!("u{number}\u{1f}b{:02}\u{1f}\u{1f}", client % 100) } else { String::new() };
        let mut rooms: Vec<Box<str>> = Vec::new();
        if self.own_room {
            rooms.push(format!("user:u{number}").into());
        }
        if self.shared_rooms {
            rooms.push(format!("brand:b{}", client % 100).into());
            rooms.push("chat:all".into());
        }
        let session = session.into_bytes().into();
        Command::Admit {
            conn,
            session,
            user: None,
            rooms,
            payloads: Vec::new(),
            protocol: None,
            close: None,
            dialect: 0,
        }
    }
}

/// A full shard, and the bytes it took.
fn shard(shape: Shape) -> (Hub, usize) {
    let before = LIVE.load(Ordering::Relaxed);
    let settings = Settings { slots_max: CLIENTS, ..Settings::default() };
    let mut hub = Hub::new(0, Arc::new(settings), Keys::new(RandomState::new()));
    for client in 0..CLIENTS {
        let conn = hub.handle_accept(IpAddr::V4(Ipv4Addr::LOCALHOST), 1_000).expect("a free slot");
        hub.handle_bytes(conn, &mut REQUEST.to_vec(), 1_000);
        hub.handle_command(shape.admit(conn, client), 1_000);
        while hub.poll_effect().is_some() {}
        while hub.poll_event().is_some() {}
        while hub.drive_writes(32, &mut Sockets, 1_000) {}
    }
    (hub, LIVE.load(Ordering::Relaxed) - before)
}

#[test]
fn an_idle_connection_in_three_rooms_costs_at_most_192_bytes_of_the_hub() {
    let bare = Shape::default();
    let parts = [
        ("connection and timer", bare),
        ("session", Shape { session: true, ..bare }),
        ("own room", Shape { session: true, own_room: true, ..bare }),
        ("two rooms of others", Shape { session: true, own_room: true, shared_rooms: true }),
    ];
    let mut before = 0.0;
    for (part, shape) in parts {
        let (hub, bytes) = shard(shape);
        let each = bytes as f64 / CLIENTS as f64;
        println!("{part:24}{:8.1}", each - before);
        before = each;
        assert_eq!(hub.stats().connections_now, CLIENTS as u64);
    }
    println!("{:24}{before:8.1}", "all");
    assert!(before <= BYTES_MAX as f64, "{before} bytes");
}
