// Measures etcd through its own Go client, as bench/load.py measures a store through Python: workers in a closed loop.
//
// Prints one JSON object: operations that succeeded, seconds, errors by code, and how many operations took each number
// of microseconds. What each operation asks for is in calls.go.
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
	batch, watchers      int
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
	flag.StringVar(&one.op, "op", "get", "get, set, put_many, txn, scan or watch")
	flag.BoolVar(&one.serializable, "serializable", false, "let any node answer a get with what it has")
	flag.BoolVar(&one.fill, "fill", false, "write all keys first")
	flag.IntVar(&one.workers, "workers", 50, "operations under way at a time")
	flag.IntVar(&one.connections, "connections", 1, "connections that the workers share")
	keys := flag.Int("keys", 10000, "different keys")
	keySize := flag.Int("key-size", 16, "bytes")
	valueSize := flag.Int("value-size", 128, "bytes")
	flag.IntVar(&one.batch, "batch", 100, "records of a put_many")
	flag.IntVar(&one.watchers, "watchers", 1, "watchers of a watch")
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

	// Watches begin before the time counts, and end with the program.
	listening, silence := context.WithCancel(context.Background())
	defer silence()
	heard, err := listen(listening, one, clients)
	if err != nil {
		return nil, err
	}

	begin := time.Now().Add(one.warmup)
	end := begin.Add(one.seconds)
	ctx, cancel := context.WithDeadline(context.Background(), end.Add(longest(one)))
	defer cancel()
	parts := make([]found, one.workers)
	var running sync.WaitGroup
	for number := range parts {
		running.Add(1)
		go func() {
			defer running.Done()
			random := rand.New(rand.NewSource(one.seed*1_000_003 + int64(number)))
			ask, err := asker(one, clients[number%len(clients)], random, number, heard)
			if err != nil {
				parts[number] = found{Errors: map[string]int{err.Error(): 1}}
				return
			}
			parts[number] = work(ctx, ask, begin, end)
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

// Writes all keys, many in a transaction.
func fill(one plan, client *clientv3.Client) error {
	const together, inFlight = 100, 16
	ctx, cancel := context.WithCancelCause(context.Background())
	defer cancel(nil)
	var running sync.WaitGroup
	for first := range inFlight {
		running.Add(1)
		go func() {
			defer running.Done()
			for at := first * together; at < len(one.keys) && ctx.Err() == nil; at += inFlight * together {
				keys := one.keys[at:min(at+together, len(one.keys))]
				if _, err := client.Txn(ctx).Then(puts(keys, one.value)...).Commit(); err != nil {
					cancel(err)
				}
			}
		}()
	}
	running.Wait()
	return context.Cause(ctx)
}

func work(ctx context.Context, ask func(context.Context) error, begin, end time.Time) found {
	mine := found{Errors: map[string]int{}, Took: map[int64]int{}}
	for start := time.Now(); start.Before(end); {
		err := ask(ctx)
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
