// Measures etcd through its own Go client, as bench/load.py measures a store through Python: workers in a closed loop.
//
// Prints one JSON object: operations that succeeded, seconds, errors by code, and how many operations took each number
// of microseconds.
package main

import (
	"context"
	"encoding/json"
	"flag"
	"fmt"
	"math/rand"
	"os"
	"strings"
	"sync"
	"time"

	clientv3 "go.etcd.io/etcd/client/v3"
	"google.golang.org/grpc/status"
)

type plan struct {
	endpoints            []string
	op                   string
	serializable, fill   bool
	workers, connections int
	keys                 []string
	value                string
	seconds, warmup      time.Duration
	timeout              time.Duration
	seed                 int64
}

type found struct {
	Operations int            `json:"operations"`
	Seconds    float64        `json:"seconds"`
	Errors     map[string]int `json:"errors"`
	Took       map[int64]int  `json:"took_us"`
}

func main() {
	var one plan
	endpoints := flag.String("endpoints", "127.0.0.1:2379", "addresses, separated by commas; connections take them in turn")
	flag.StringVar(&one.op, "op", "get", "get or set")
	flag.BoolVar(&one.serializable, "serializable", false, "let any node answer a get with what it has")
	flag.BoolVar(&one.fill, "fill", false, "write all keys first")
	flag.IntVar(&one.workers, "workers", 50, "operations under way at a time")
	flag.IntVar(&one.connections, "connections", 1, "connections that the workers share")
	keys := flag.Int("keys", 10000, "different keys")
	keySize := flag.Int("key-size", 16, "bytes")
	valueSize := flag.Int("value-size", 128, "bytes")
	flag.DurationVar(&one.seconds, "seconds", 10*time.Second, "duration of the measurement")
	flag.DurationVar(&one.warmup, "warmup", time.Second, "duration of what is not counted before it")
	flag.DurationVar(&one.timeout, "timeout", 5*time.Second, "of connecting, and of what is under way at the end")
	flag.Int64Var(&one.seed, "seed", 1, "of keys and values")
	flag.Parse()

	one.endpoints = strings.Split(*endpoints, ",")
	for number := range *keys {
		one.keys = append(one.keys, fmt.Sprintf("%0*d", *keySize, number))
	}
	value := make([]byte, *valueSize)
	rand.New(rand.NewSource(one.seed)).Read(value)
	one.value = string(value)

	result, err := measure(one)
	if err == nil {
		err = json.NewEncoder(os.Stdout).Encode(result)
	}
	if err != nil {
		fmt.Fprintln(os.Stderr, err)
		os.Exit(1)
	}
}

func measure(one plan) (*found, error) {
	clients := make([]*clientv3.Client, one.connections)
	for number := range clients {
		client, err := connect(one, number)
		if err != nil {
			return nil, err
		}
		defer client.Close()
		clients[number] = client
	}
	if one.fill {
		if err := fill(one, clients[0]); err != nil {
			return nil, err
		}
	}

	begin := time.Now().Add(one.warmup)
	end := begin.Add(one.seconds)
	ctx, cancel := context.WithDeadline(context.Background(), end.Add(one.timeout))
	defer cancel()
	parts := make([]found, one.workers)
	var running sync.WaitGroup
	for number := range parts {
		running.Add(1)
		go func() {
			defer running.Done()
			parts[number] = work(ctx, one, clients[number%len(clients)], number, begin, end)
		}()
	}
	running.Wait()

	total := found{Seconds: time.Since(begin).Seconds(), Errors: map[string]int{}, Took: map[int64]int{}}
	for _, part := range parts {
		total.Operations += part.Operations
		for code, count := range part.Errors {
			total.Errors[code] += count
		}
		for took, count := range part.Took {
			total.Took[took] += count
		}
	}
	return &total, nil
}

// A client with a connection of its own that is known to work.
func connect(one plan, number int) (*clientv3.Client, error) {
	address := one.endpoints[number%len(one.endpoints)]
	client, err := clientv3.New(clientv3.Config{Endpoints: []string{address}, DialTimeout: one.timeout})
	if err != nil {
		return nil, err
	}
	ctx, cancel := context.WithTimeout(context.Background(), one.timeout)
	defer cancel()
	if _, err := client.Get(ctx, one.keys[0]); err != nil {
		client.Close()
		return nil, fmt.Errorf("%s: %w", address, err)
	}
	return client, nil
}

func fill(one plan, client *clientv3.Client) error {
	const inFlight = 200
	ctx, cancel := context.WithCancelCause(context.Background())
	defer cancel(nil)
	var running sync.WaitGroup
	for first := range inFlight {
		running.Add(1)
		go func() {
			defer running.Done()
			for number := first; number < len(one.keys) && ctx.Err() == nil; number += inFlight {
				if _, err := client.Put(ctx, one.keys[number], one.value); err != nil {
					cancel(err)
				}
			}
		}()
	}
	running.Wait()
	return context.Cause(ctx)
}

func work(ctx context.Context, one plan, client *clientv3.Client, number int, begin, end time.Time) found {
	mine := found{Errors: map[string]int{}, Took: map[int64]int{}}
	random := rand.New(rand.NewSource(one.seed*1_000_003 + int64(number)))
	var options []clientv3.OpOption
	if one.serializable {
		options = append(options, clientv3.WithSerializable())
	}
	for start := time.Now(); start.Before(end); {
		key := one.keys[random.Intn(len(one.keys))]
		var err error
		if one.op == "set" {
			_, err = client.Put(ctx, key, one.value)
		} else {
			_, err = client.Get(ctx, key, options...)
		}
		now := time.Now()
		if !start.Before(begin) {
			if err != nil {
				mine.Errors[status.Code(err).String()]++
			} else {
				mine.Operations++
				mine.Took[now.Sub(start).Microseconds()]++
			}
		}
		if err != nil {
			// A refused connection fails at once: do not spin on it.
			time.Sleep(10 * time.Millisecond)
			now = time.Now()
		}
		start = now
	}
	return mine
}
