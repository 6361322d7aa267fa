package main

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"io"
	"net/http"
	"os"
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

// apiWatch has many watchers look at objects that are written at a steady rate: by a connection each, and as the watches of one client are, by the
// connections of one. The rivals are a relay, which sends the same bytes to the same clients and does nothing else, and etcd.
func (b *bench) apiWatch(ctx context.Context) error {
	rc, err := b.plane.rest()
	if err != nil {
		return err
	}
	maps := b.plane.client.CoreV1().ConfigMaps(metav1.NamespaceDefault)
	server := rc.Host + "/api/v1/namespaces/default/configmaps?watch=1&resourceVersion=0&labelSelector=sent"
	write := func(ctx context.Context, i int) error {
		m := &corev1.ConfigMap{ObjectMeta: metav1.ObjectMeta{Name: fmt.Sprint("watched-", i), Labels: map[string]string{"sent": fmt.Sprint(marker, time.Now().UnixNano(), string(markEnd)) + "x"}}}
		_, err := maps.Create(ctx, m, metav1.CreateOptions{})
		return err
	}
	alone, shared := ways(rc, false), ways(rc, true)
	var read atomic.Int64
	pid, err := b.plane.pid()
	if err != nil {
		return err
	}
	ours, err := b.fanOut(ctx, pid, func(ctx context.Context, l *lags, opened func()) error {
		return watchRaw(ctx, alone, server, &read, l, opened)
	}, write)
	if err != nil {
		return err
	}
	size := int(read.Load()) / len(ours.lags)
	if err := maps.DeleteCollection(ctx, metav1.DeleteOptions{}, metav1.ListOptions{}); err != nil {
		return err
	}
	one, err := shared()
	if err != nil {
		return err
	}
	defer one.CloseIdleConnections()
	together, err := b.fanOut(ctx, pid, func(ctx context.Context, l *lags, opened func()) error {
		return watchRaw(ctx, func() (*http.Transport, error) { return one, nil }, server, &read, l, opened)
	}, write)
	if err != nil {
		return fmt.Errorf("by shared connections: %w", err)
	}
	if err := maps.DeleteCollection(ctx, metav1.DeleteOptions{}, metav1.ListOptions{}); err != nil {
		return err
	}
	relayed, err := b.relayed(ctx, one, alone, size)
	if err != nil {
		return err
	}
	etcd, err := b.etcdWatched(ctx)
	if err != nil {
		return fmt.Errorf("etcd alone: %w", err)
	}
	what := fmt.Sprintf("watch lag, %d watchers, %d writes/s", watchers, watchedWrites)
	b.report.figure("an event on the wire", float64(size), "B")
	for _, q := range []struct {
		name string
		of   float64
	}{{", median", 0.5}, {", p99", 0.99}} {
		b.report.against(what+q.name+"; relay of ready events", quantile(ours.lags, q.of), quantile(relayed.lags, q.of), "ms", "", 0)
		b.report.against(what+q.name+"; etcd alone, one connection", quantile(ours.lags, q.of), quantile(etcd.lags, q.of), "ms", "", 0)
		b.report.figure(what+", one client's connections"+q.name, quantile(together.lags, q.of), "ms")
	}
	const spent = "CPU time for 100 000 watched events"
	b.report.against(spent+"; relay", ours.server, relayed.server, "s", "", 0)
	b.report.against(spent+", their watchers'; relay's", ours.watchers, relayed.watchers, "s", "", 0)
	b.report.figure(spent+", one client's connections", together.server, "s")
	b.report.aim(what+", p99", quantile(ours.lags, 0.99), "ms", atMost, 100)
	return nil
}

// relayed has the watchers watch a relay, to which events of so many bytes are posted.
func (b *bench) relayed(ctx context.Context, client http.RoundTripper, way func() (*http.Transport, error), size int) (fanned, error) {
	host, pid, stop, err := b.plane.startRelay(ctx, client)
	if err != nil {
		return fanned{}, err
	}
	defer stop()
	return b.fanOut(ctx, pid, func(ctx context.Context, l *lags, opened func()) error {
		return watchRaw(ctx, way, host, new(atomic.Int64), l, opened)
	}, func(ctx context.Context, _ int) error {
		event := fmt.Append(nil, marker, time.Now().UnixNano(), string(markEnd))
		return post(ctx, client, host, append(event, bytes.Repeat([]byte("m"), max(0, size-len(event)))...))
	})
}

// etcdWatched has the watchers watch etcd, by its client's one connection.
func (b *bench) etcdWatched(ctx context.Context) (fanned, error) {
	etcd, err := b.plane.alone(ctx)
	if err != nil {
		return fanned{}, err
	}
	defer etcd.Close()
	return b.fanOut(ctx, b.plane.etcd.Process.Pid, func(ctx context.Context, l *lags, opened func()) error {
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
}

// ways makes ways to the lab's servers as the administrator; one that is shared has HTTP/2, as all requests of one client have.
func ways(rc *rest.Config, shared bool) func() (*http.Transport, error) {
	return func() (*http.Transport, error) {
		tls, err := rest.TLSConfigFor(rc)
		return &http.Transport{DialContext: rc.Dial, TLSClientConfig: tls, ForceAttemptHTTP2: shared, DisableCompression: true, ReadBufferSize: 4 << 10}, err
	}
}

// fanned is what sending events to the watchers took: the lags of all, in ms, and the CPU time of the server and of this process for 100 000 of them, in s.
type fanned struct {
	lags             []float64
	server, watchers float64
}

// fanOut starts the watchers of a server, and when all watch, writes for a while. None of the events may be missing.
func (b *bench) fanOut(ctx context.Context, server int, watch func(context.Context, *lags, func()) error, write func(context.Context, int) error) (fanned, error) {
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
	spent := func() (f fanned, err error) {
		if f.server, err = cpuSeconds(server); err == nil {
			f.watchers, err = cpuSeconds(os.Getpid())
		}
		return f, err
	}
	before, err := spent()
	if err != nil {
		return fanned{}, errors.Join(err, context.Cause(ctx))
	}
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
		return fanned{}, errors.Join(*err, context.Cause(ctx))
	}
	for late := time.Now().Add(30 * time.Second); ; {
		l.mu.Lock()
		have := len(l.all)
		l.mu.Unlock()
		if have >= n*watchers {
			break
		}
		if time.Now().After(late) || ctx.Err() != nil {
			return fanned{}, errors.Join(fmt.Errorf("%d of %d events arrived", have, n*watchers), context.Cause(ctx))
		}
		time.Sleep(10 * time.Millisecond)
	}
	f, err := spent()
	cancel(nil)
	all.Wait()
	scale := 1e5 / float64(n*watchers)
	return fanned{l.all, (f.server - before.server) * scale, (f.watchers - before.watchers) * scale}, err
}

// watchRaw watches, and reads no more of an event than when it was sent, so that the watchers leave the machine to the server as far as they can. It adds
// up how many bytes it has read.
func watchRaw(ctx context.Context, way func() (*http.Transport, error), url string, read *atomic.Int64, l *lags, opened func()) error {
	transport, err := way()
	if err != nil {
		return err
	}
	defer transport.CloseIdleConnections()
	req, err := http.NewRequestWithContext(ctx, http.MethodGet, url, nil)
	if err != nil {
		return err
	}
	req.Header.Set("Accept", "application/vnd.kubernetes.protobuf")
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
		read.Add(int64(n))
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
			return errors.New("the server ended a watch")
		}
		if err != nil {
			return err
		}
	}
}
