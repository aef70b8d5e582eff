package main

import (
	"context"
	"encoding/binary"
	"errors"
	"fmt"
	"math/rand"
	"sync/atomic"
	"time"

	clientv3 "go.etcd.io/etcd/client/v3"
)

const (
	// Records of a page of a scan.
	page = 1000
	// Bytes of a value that say whose write it is and the how manyth of it.
	mark = 16
	// How long a scan may take that began in time.
	longestScan = 10 * time.Minute
)

// How long after the end what is under way then may take.
func longest(one plan) time.Duration {
	if one.op == "scan" {
		return longestScan
	}
	return one.timeout
}

// What a worker does again and again.
func asker(one plan, client *clientv3.Client, random *rand.Rand, number int, heard []*telling) (func(context.Context) error, error) {
	key := func() string { return one.keys[random.Intn(len(one.keys))] }
	switch one.op {
	case "get":
		var options []clientv3.OpOption
		if one.serializable {
			options = append(options, clientv3.WithSerializable())
		}
		return func(ctx context.Context) error {
			_, err := client.Get(ctx, key(), options...)
			return err
		}, nil
	case "set":
		return func(ctx context.Context) error {
			_, err := client.Put(ctx, key(), one.value)
			return err
		}, nil
	case "put_many":
		return func(ctx context.Context) error {
			at := random.Intn(len(one.keys) - one.batch + 1)
			_, err := client.Txn(ctx).Then(puts(one.keys[at:at+one.batch], one.value)...).Commit()
			return err
		}, nil
	case "txn":
		return func(ctx context.Context) error { return transact(ctx, client, key(), one.value) }, nil
	case "scan":
		return func(ctx context.Context) error { return scan(ctx, client, one.keys) }, nil
	case "watch":
		return func(ctx context.Context) error { return heard[number].tell(ctx, client, key(), one) }, nil
	}
	return nil, fmt.Errorf("there is no operation %s", one.op)
}

func puts(keys []string, value string) []clientv3.Op {
	made := make([]clientv3.Op, len(keys))
	for at, key := range keys {
		made[at] = clientv3.OpPut(key, value)
	}
	return made
}

// Writes two records if a third one is absent, which it is.
func transact(ctx context.Context, client *clientv3.Client, key, value string) error {
	name := "{" + key + "}"
	absent := clientv3.Compare(clientv3.CreateRevision(name+"lock"), "=", 0)
	done, err := client.Txn(ctx).If(absent).Then(puts([]string{name + "a", name + "b"}, value)...).Commit()
	if err == nil && !done.Succeeded {
		err = errors.New("a check failed that cannot")
	}
	return err
}

// Reads all keys in their order, as they were at the moment of the first page.
func scan(ctx context.Context, client *clientv3.Client, keys []string) error {
	next, end := keys[0], keys[len(keys)-1]+"\x00"
	options := []clientv3.OpOption{clientv3.WithRange(end), clientv3.WithLimit(page)}
	for found := 0; ; {
		answer, err := client.Get(ctx, next, options...)
		if err != nil {
			return err
		}
		if found += len(answer.Kvs); !answer.More {
			if found != len(keys) {
				return fmt.Errorf("a scan found %d records", found)
			}
			return nil
		}
		if len(options) == 2 {
			options = append(options, clientv3.WithRev(answer.Header.Revision))
		}
		next = string(answer.Kvs[len(answer.Kvs)-1].Key) + "\x00"
	}
}

// A worker's write, which is under way until every watcher has its event.
type telling struct {
	worker, sequence uint64
	// The sequence that is waited for, and how many watchers have not heard of it.
	current atomic.Uint64
	left    atomic.Int64
	done    chan struct{}
}

func (one *telling) tell(ctx context.Context, client *clientv3.Client, key string, asked plan) error {
	ctx, cancel := context.WithTimeout(ctx, asked.timeout)
	defer cancel()
	one.sequence++
	one.done = make(chan struct{})
	one.left.Store(int64(asked.watchers))
	one.current.Store(one.sequence)
	value := binary.BigEndian.AppendUint64(binary.BigEndian.AppendUint64(nil, one.worker), one.sequence)
	if _, err := client.Put(ctx, key, string(value)+asked.value[mark:]); err != nil {
		return err
	}
	select {
	case <-one.done:
		return nil
	case <-ctx.Done():
		return ctx.Err()
	}
}

func (one *telling) heard(sequence uint64) {
	if one.current.Load() == sequence && one.left.Add(-1) == 0 {
		close(one.done)
	}
}

// Watchers that are live, and for each worker what they have heard of its writes.
func listen(ctx context.Context, one plan, clients []*clientv3.Client) ([]*telling, error) {
	if one.op != "watch" {
		return nil, nil
	}
	workers := make([]*telling, one.workers)
	for number := range workers {
		workers[number] = &telling{worker: uint64(number)}
	}
	late := time.After(one.timeout)
	for number := range one.watchers {
		events := clients[number%len(clients)].Watch(ctx, "", clientv3.WithPrefix(), clientv3.WithCreatedNotify())
		select {
		case first := <-events:
			if err := first.Err(); err != nil || !first.Created {
				return nil, fmt.Errorf("a watch did not begin: %w", err)
			}
		case <-late:
			return nil, errors.New("watches did not begin in time")
		}
		go hear(events, workers)
	}
	return workers, nil
}

func hear(events clientv3.WatchChan, workers []*telling) {
	for answer := range events {
		for _, event := range answer.Events {
			if value := event.Kv.Value; len(value) >= mark {
				worker, sequence := binary.BigEndian.Uint64(value), binary.BigEndian.Uint64(value[8:])
				if worker < uint64(len(workers)) {
					workers[worker].heard(sequence)
				}
			}
		}
	}
}
