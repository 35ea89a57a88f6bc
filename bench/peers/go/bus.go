package main

import (
	"context"
	"fmt"
	"os"
	"time"

	"github.com/nats-io/nats.go"
	"github.com/nats-io/nats.go/jetstream"
)

// forward brings events from JetStream to the rooms they name, by a durable pull consumer that begins with what is new. Consume
// is the client's own way to keep pulls overlapping.
func forward(url, subject string, all *rooms) error {
	client, err := nats.Connect(url, nats.MaxReconnects(-1))
	if err != nil {
		return err
	}
	stream, err := jetstream.New(client)
	if err != nil {
		return err
	}
	ctx := context.Background()
	name, err := stream.StreamNameBySubject(ctx, subject)
	if err != nil {
		return err
	}
	consumer, err := stream.CreateOrUpdateConsumer(ctx, name, jetstream.ConsumerConfig{
		Durable:           fmt.Sprintf("peer-%d", os.Getpid()), // what an earlier process left of its own would come first
		DeliverPolicy:     jetstream.DeliverNewPolicy,
		AckPolicy:         jetstream.AckExplicitPolicy,
		InactiveThreshold: time.Minute,
	})
	if err != nil {
		return err
	}
	_, err = consumer.Consume(func(message jetstream.Msg) {
		if room, err := roomOf(message.Data()); err == nil {
			all.publish(room, message.Data())
		}
		_ = message.Ack() // lost with its connection, it comes again
	})
	return err
}
