// A small gateway in the shape of the Go original that tidegate replaces: gorilla/websocket, nats.go, golang-jwt, two goroutines
// and a channel of 256 a connection, rooms in a map under a lock.
//
// Rule: it does what the contract asks of a gateway and nothing more (no metrics, no logs), so that its cost is the shape's.
package main

import (
	"encoding/json"
	"errors"
	"flag"
	"fmt"
	"log"
	"net/http"
	"os"
	"time"

	"github.com/golang-jwt/jwt/v5"
	"github.com/gorilla/websocket"
)

const (
	issuer       = "attchat" // whose tokens the drivers write
	bufferBytes  = 4096      // the contract's default for reading and for writing
	commandBytes = 4096
)

type gateway struct {
	rooms    *rooms
	secret   []byte
	parser   *jwt.Parser
	upgrader websocket.Upgrader
}

type claims struct {
	User  string `json:"user_id"`
	Brand string `json:"brand_id"`
	jwt.RegisteredClaims
}

func main() {
	port := flag.Int("port", 0, "where clients come")
	secret := flag.String("secret", "", "of HS256")
	url := flag.String("nats", "", "a server with JetStream; without it, only the driver publishes")
	subject := flag.String("subject", "chat.>", "of the events")
	flag.Parse()
	g := &gateway{
		rooms:    newRooms(),
		secret:   []byte(*secret),
		parser:   jwt.NewParser(jwt.WithValidMethods([]string{"HS256"}), jwt.WithIssuer(issuer)),
		upgrader: websocket.Upgrader{ReadBufferSize: bufferBytes, WriteBufferSize: bufferBytes},
	}
	http.HandleFunc("/ws", g.serveClient)
	http.HandleFunc("/control", g.serveDriver)
	if *url != "" {
		if err := forward(*url, *subject, g.rooms); err != nil {
			log.Fatal(err)
		}
		fmt.Println("forwarding")
	}
	log.Fatal(http.ListenAndServe(fmt.Sprintf("127.0.0.1:%d", *port), nil))
}

func (g *gateway) serveClient(w http.ResponseWriter, r *http.Request) {
	query := r.URL.Query()
	who, err := g.verify(query.Get("token"))
	if err != nil {
		http.Error(w, "a valid token is needed", http.StatusUnauthorized)
		return
	}
	socket, err := g.upgrader.Upgrade(w, r, nil)
	if err != nil {
		return // Upgrade has answered
	}
	c := &connection{socket: socket, outbox: make(chan []byte, outboxMessages)}
	c.rooms = []string{"user:" + who.User, "brand:" + who.Brand, query.Get("room_id")}
	g.rooms.join(c)
	go c.write()
	go c.read(g.rooms)
}

func (g *gateway) verify(token string) (*claims, error) {
	found := &claims{}
	_, err := g.parser.ParseWithClaims(token, found, func(*jwt.Token) (any, error) { return g.secret, nil })
	if err == nil && found.User == "" {
		err = errors.New("no user_id")
	}
	return found, err
}

// serveDriver obeys `publish ROOM COUNT SIZE BATCH` and `stats`; a batch means nothing here, each message is a write of its own.
func (g *gateway) serveDriver(w http.ResponseWriter, r *http.Request) {
	socket, err := g.upgrader.Upgrade(w, r, nil)
	if err != nil {
		return
	}
	defer socket.Close()
	socket.SetReadLimit(commandBytes)
	next := map[string]int{}
	for {
		_, command, err := socket.ReadMessage()
		if err != nil {
			return
		}
		var room string
		var count, size, batch int
		if found, _ := fmt.Sscanf(string(command), "publish %s %d %d %d", &room, &count, &size, &batch); found == 4 {
			for range count {
				next[room]++
				g.rooms.publish(room, event(room, next[room], size))
			}
		}
		if err := socket.WriteJSON(g.rooms.stats()); err != nil {
			return
		}
	}
}

func event(room string, number, size int) []byte {
	head := fmt.Sprintf(`{"type":"message","room":"%s","payload":{"n":%d,"t":%d,"x":"`, room, number, monotonicNs())
	text := append(make([]byte, 0, size), head...)
	for len(text) < size-len(tail) {
		text = append(text, 'x')
	}
	return append(text, tail...)
}

const tail = `"}}`

// roomOf is what the original decodes of each event before it routes it.
func roomOf(data []byte) (string, error) {
	var event struct {
		Room string `json:"room"`
	}
	err := json.Unmarshal(data, &event)
	return event.Room, err
}

func init() {
	log.SetOutput(os.Stderr)
	log.SetFlags(0)
}

const pingInterval = 30 * time.Second // the contract's
