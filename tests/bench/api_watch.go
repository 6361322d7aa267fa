package main

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"io"
	"net/http"
	"strconv"
	"sync"
	"sync/atomic"
	"time"

	clientv3 "go.etcd.io/etcd/client/v3"
	corev1 "k8s.io/api/core/v1"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/client-go/rest"
)

const (
	watchers      = 1000
	watchedWrites = 100 // a second
)

// lags are how long events took, in ms, from before the write was sent until a watcher had read them.
type lags struct {
	mu  sync.Mutex
	all []float64
}

func (l *lags) add(sent string) {
	at, err := strconv.ParseInt(sent, 10, 64)
	if err != nil {
		return // of an object that was there before
	}
	ms := float64(time.Now().UnixNano()-at) / 1e6
	l.mu.Lock()
	l.all = append(l.all, ms)
	l.mu.Unlock()
}

// marker comes in front of the time that an object was written at, in nanoseconds of the clock; markEnd behind it.
const marker, markEnd = "sent-at-", '.'

// apiWatch has many watchers, each of a connection of its own, look at objects that are written at a steady rate.
func (b *bench) apiWatch(ctx context.Context) error {
	rc, err := b.plane.rest()
	if err != nil {
		return err
	}
	maps := b.plane.client.CoreV1().ConfigMaps(metav1.NamespaceDefault)
	ours, err := b.fanOut(ctx, func(ctx context.Context, l *lags, opened func()) error {
		return watchRaw(ctx, rc, l, opened)
	}, func(ctx context.Context, i int) error {
		m := &corev1.ConfigMap{ObjectMeta: metav1.ObjectMeta{Name: fmt.Sprint("watched-", i), Labels: map[string]string{"sent": fmt.Sprint(marker, time.Now().UnixNano(), string(markEnd)) + "x"}}}
		_, err := maps.Create(ctx, m, metav1.CreateOptions{})
		return err
	})
	if err != nil {
		return err
	}
	if err := maps.DeleteCollection(ctx, metav1.DeleteOptions{}, metav1.ListOptions{}); err != nil {
		return err
	}
	etcd, err := b.plane.alone(ctx)
	if err != nil {
		return err
	}
	defer etcd.Close()
	floor, err := b.fanOut(ctx, func(ctx context.Context, l *lags, opened func()) error {
		events := etcd.Watch(clientv3.WithRequireLeader(ctx), "/watched/", clientv3.WithPrefix(), clientv3.WithCreatedNotify())
		for e := range events {
			if e.Created {
				opened()
			}
			for _, one := range e.Events {
				l.add(string(one.Kv.Value[:bytes.IndexByte(one.Kv.Value, markEnd)]))
			}
		}
		return nil
	}, func(ctx context.Context, i int) error {
		_, err := etcd.Put(ctx, fmt.Sprint("/watched/", i), fmt.Sprint(time.Now().UnixNano(), string(markEnd), string(bytes.Repeat([]byte("m"), 300))))
		return err
	})
	if err != nil {
		return fmt.Errorf("etcd alone: %w", err)
	}
	what := fmt.Sprintf("watch lag, %d watchers, %d writes/s", watchers, watchedWrites)
	b.report.against(what+", median; etcd alone, one connection", quantile(ours, 0.5), quantile(floor, 0.5), "ms", "", 0)
	b.report.against(what+", p99; etcd alone, one connection", quantile(ours, 0.99), quantile(floor, 0.99), "ms", "", 0)
	b.report.aim(what+", p99", quantile(ours, 0.99), "ms", atMost, 100)
	return nil
}

// fanOut starts the watchers, and when all watch, writes for a while. It returns the lags of all events, of which none may be missing.
func (b *bench) fanOut(ctx context.Context, watch func(context.Context, *lags, func()) error, write func(context.Context, int) error) ([]float64, error) {
	ctx, cancel := context.WithCancelCause(ctx)
	defer cancel(nil)
	var l lags
	var all, opened sync.WaitGroup
	opened.Add(watchers)
	for range watchers {
		all.Go(func() {
			once := sync.OnceFunc(opened.Done)
			defer once()
			if err := watch(ctx, &l, once); err != nil && ctx.Err() == nil {
				cancel(err)
			}
		})
	}
	opened.Wait()
	n := b.times(10) * watchedWrites
	var failed atomic.Pointer[error]
	var writes sync.WaitGroup
	tick := time.NewTicker(time.Second / watchedWrites)
	defer tick.Stop()
	for i := range n {
		<-tick.C
		writes.Go(func() {
			if err := write(ctx, i); err != nil {
				failed.Store(&err)
			}
		})
	}
	writes.Wait()
	if err := failed.Load(); err != nil {
		return nil, *err
	}
	for late := time.Now().Add(30 * time.Second); ; {
		l.mu.Lock()
		have := len(l.all)
		l.mu.Unlock()
		if have >= n*watchers {
			break
		}
		if time.Now().After(late) || ctx.Err() != nil {
			return nil, errors.Join(fmt.Errorf("%d of %d events arrived", have, n*watchers), context.Cause(ctx))
		}
		time.Sleep(10 * time.Millisecond)
	}
	cancel(nil)
	all.Wait()
	return l.all, nil
}

// watchRaw watches by a connection of its own, and reads no more of an event than when it was sent, so that the watchers leave the machine to the
// server as far as they can.
func watchRaw(ctx context.Context, rc *rest.Config, l *lags, opened func()) error {
	tls, err := rest.TLSConfigFor(rc)
	if err != nil {
		return err
	}
	transport := &http.Transport{DialContext: rc.Dial, TLSClientConfig: tls, DisableCompression: true, ReadBufferSize: 4 << 10}
	defer transport.CloseIdleConnections()
	req, err := http.NewRequestWithContext(ctx, http.MethodGet, rc.Host+"/api/v1/namespaces/default/configmaps?watch=1&resourceVersion=0&labelSelector=sent", nil)
	if err != nil {
		return err
	}
	req.Header.Set("Accept", rc.ContentType)
	res, err := transport.RoundTrip(req)
	if err != nil {
		return err
	}
	defer res.Body.Close()
	if res.StatusCode != http.StatusOK {
		return errors.New(res.Status)
	}
	opened()
	buf := make([]byte, 0, 8<<10)
	for {
		n, err := res.Body.Read(buf[len(buf):cap(buf)])
		buf = buf[:len(buf)+n]
		for {
			_, behind, ok := bytes.Cut(buf, []byte(marker))
			end := bytes.IndexByte(behind, markEnd)
			if !ok || end < 0 {
				break
			}
			l.add(string(behind[:end]))
			buf = append(buf[:0], behind[end+1:]...)
		}
		if len(buf) > cap(buf)/2 { // no event is this large: what is left holds at most the beginning of a mark
			buf = append(buf[:0], buf[len(buf)-2*len(marker)-20:]...)
		}
		if err == io.EOF {
			return nil
		}
		if err != nil {
			return err
		}
	}
}
