package main

import (
	"sync"
	"sync/atomic"
	"time"

	"github.com/gorilla/websocket"
	"golang.org/x/sys/unix"
)

const (
	outboxMessages = 256 // the original's: the 257th message that waits is dropped
	writeTimeout   = 10 * time.Second
)

// A connection has two goroutines: one reads, one writes what is put into its outbox.
type connection struct {
	socket *websocket.Conn
	outbox chan []byte
	rooms  []string
}

func (c *connection) read(all *rooms) {
	for {
		if _, _, err := c.socket.ReadMessage(); err != nil {
			break
		}
	}
	all.leave(c)
	c.socket.Close()
}

func (c *connection) write() {
	pings := time.NewTicker(pingInterval)
	defer pings.Stop()
	for {
		kind, message, open := websocket.PingMessage, []byte(nil), true
		select {
		case message, open = <-c.outbox:
			kind = websocket.TextMessage
		case <-pings.C:
		}
		if !open {
			return
		}
		c.socket.SetWriteDeadline(time.Now().Add(writeTimeout))
		if c.socket.WriteMessage(kind, message) != nil {
			c.socket.Close() // the reader then ends, and closes the outbox
		}
	}
}

// rooms keeps who is where.
type rooms struct {
	lock    sync.RWMutex
	members map[string]map[*connection]struct{}
	present int
	dropped atomic.Int64
}

func newRooms() *rooms {
	return &rooms{members: map[string]map[*connection]struct{}{}}
}

func (r *rooms) join(c *connection) {
	r.lock.Lock()
	defer r.lock.Unlock()
	r.present++
	for _, room := range c.rooms {
		if r.members[room] == nil {
			r.members[room] = map[*connection]struct{}{}
		}
		r.members[room][c] = struct{}{}
	}
}

// leave closes the outbox under the lock, so that no publisher can meet a closed one.
func (r *rooms) leave(c *connection) {
	r.lock.Lock()
	defer r.lock.Unlock()
	r.present--
	for _, room := range c.rooms {
		delete(r.members[room], c)
		if len(r.members[room]) == 0 {
			delete(r.members, room)
		}
	}
	close(c.outbox)
}

func (r *rooms) publish(room string, message []byte) {
	r.lock.RLock()
	defer r.lock.RUnlock()
	for c := range r.members[room] {
		select {
		case c.outbox <- message:
		default:
			r.dropped.Add(1)
		}
	}
}

func (r *rooms) stats() map[string]int {
	r.lock.RLock()
	defer r.lock.RUnlock()
	return map[string]int{"open": r.present, "dropped": int(r.dropped.Load())}
}

// monotonicNs is the clock that the generator reads too.
func monotonicNs() int64 {
	var now unix.Timespec
	if unix.ClockGettime(unix.CLOCK_MONOTONIC, &now) != nil {
		panic("this system has no monotonic clock")
	}
	return now.Nano()
}
