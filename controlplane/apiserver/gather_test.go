package apiserver

import (
	"fmt"
	"runtime"
	"sync/atomic"
	"testing"
	"time"

	corev1 "k8s.io/api/core/v1"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/apimachinery/pkg/runtime/schema"
	"k8s.io/apimachinery/pkg/watch"
)

func gathered(t *testing.T, hold time.Duration) (from *watch.FakeWatcher, g *gatherer) {
	from = watch.NewFake()
	g = gather(from, func(string) time.Duration { return hold })
	t.Cleanup(g.Stop)
	return from, g
}

func added(name string) *corev1.ConfigMap {
	m := &corev1.ConfigMap{}
	m.Name = name
	return m
}

// come reads the next events and checks that they are the named ones, in order.
func come(t *testing.T, g *gatherer, names ...string) {
	t.Helper()
	for _, want := range names {
		e, ok := <-g.ResultChan()
		if !ok {
			t.Fatalf("the watch ended before %s", want)
		}
		if got := e.Object.(*corev1.ConfigMap).Name; got != want {
			t.Fatalf("%s came, want %s", got, want)
		}
	}
}

func TestEventsOfFewWatchersAreNotHeld(t *testing.T) {
	from, g := gathered(t, 0)
	for i := range 3 * heldAtMost {
		from.Add(added(fmt.Sprint(i)))
		come(t, g, fmt.Sprint(i))
	}
}

func TestEventsComeTogether(t *testing.T) {
	const rest = 50 * time.Millisecond
	var hold atomic.Int64
	hold.Store(int64(100 * time.Hour))
	from := watch.NewFake()
	g := gather(from, func(string) time.Duration { return time.Duration(hold.Load()) })
	t.Cleanup(g.Stop)
	began := time.Now()
	from.Add(added("first"))
	come(t, g, "first")
	var names []string
	for i := range heldAtMost {
		if i == heldAtMost-1 {
			hold.Store(int64(restPart * rest))
		}
		select {
		case e := <-g.ResultChan():
			t.Fatalf("%v was not held", e.Object)
		default:
		}
		names = append(names, fmt.Sprint(i))
		from.Add(added(names[i]))
	}
	come(t, g, names...) // as many as may be held
	if took := time.Since(began); took < rest {
		t.Errorf("no more were held after %s, but the watchers had not been woken", took)
	}
	hold.Store(int64(100 * time.Hour))
	from.Modify(added("before the bookmark"))
	from.Action(watch.Bookmark, added("bookmark"))
	come(t, g, "before the bookmark", "bookmark")
	from.Delete(added("last"))
	from.Stop()
	come(t, g, "last")
	if e, ok := <-g.ResultChan(); ok {
		t.Errorf("%v came behind the end", e)
	}
}

func TestHeldEventsComeByThemselves(t *testing.T) {
	from, g := gathered(t, 50*time.Millisecond)
	for i := range 4 {
		from.Add(added(fmt.Sprint(i)))
	}
	come(t, g, "0", "1", "2", "3")
	from.Add(added("later"))
	come(t, g, "later")
}

func TestGathererStopsWhenNobodyReads(t *testing.T) {
	from := watch.NewFakeWithChanSize(10*heldAtMost, false)
	g := gather(from, func(string) time.Duration { return 0 })
	for i := range 10 * heldAtMost {
		from.Add(added(fmt.Sprint(i)))
	}
	g.Stop()
	g.Stop()
	for range g.ResultChan() { // what was released before
	}
}

// A watch that is ended halfway through what it had held sends nothing in its place.
func TestGathererStopsAmongHeldEvents(t *testing.T) {
	for range 50 {
		var hold atomic.Int64
		from := watch.NewFakeWithChanSize(3*heldAtMost, false)
		g := gather(from, func(string) time.Duration { return time.Duration(hold.Load()) })
		for range heldAtMost - 1 {
			from.Add(added("read by nobody yet"))
		}
		for len(g.out) < heldAtMost-1 {
			runtime.Gosched()
		}
		hold.Store(int64(time.Hour))
		from.Add(added("held"))
		from.Action(watch.Bookmark, added("releases both")) // for the first of which there is room
		for len(g.out) < heldAtMost {
			runtime.Gosched()
		}
		g.Stop()
		for e := range g.ResultChan() {
			if e.Object == nil {
				t.Fatalf("%v came behind the end", e)
			}
		}
	}
}

func TestCrowds(t *testing.T) {
	c := crowds{cpus: 2}
	pods := schema.GroupResource{Resource: "pods"}
	hold := c.hold(pods)
	crowd := c.crowd(pods)
	for _, step := range []struct {
		all, busy, want int // watchers of all, of one namespace, and its hold in ms
		quiet           int // another one's
	}{{0, 0, 0, 0}, {50, 0, 0, 0}, {500, 0, 30, 30}, {500, 500, 60, 30}, {0, 1000, 60, 0}, {0, 50, 0, 0}, {1_000_000, 0, int(heldLongest / time.Millisecond), int(heldLongest / time.Millisecond)}} {
		crowd.all, crowd.in["busy"] = step.all, step.busy
		for namespace, want := range map[string]int{"busy": step.want, "quiet": step.quiet} {
			if got := hold(namespace); got != time.Duration(want)*time.Millisecond {
				t.Errorf("%d watchers of all, %d of busy: %v in %s, want %d ms", step.all, step.busy, got, namespace, want)
			}
		}
	}
	crowd.all, crowd.in["busy"] = 1000, 0
	if c.cpus = 8; hold("busy") != 15*time.Millisecond {
		t.Errorf("eight CPUs: %v, want 15 ms", hold("busy"))
	}
	deployments := schema.GroupResource{Group: "apps", Resource: "deployments"}
	if c.hold(deployments); c.crowd(deployments).of("busy") != 0 {
		t.Errorf("another resource has %d watchers", c.crowd(deployments).of("busy"))
	}
}

// An event waits by how many watch its namespace.
func TestEventsAreHeldByTheirNamespace(t *testing.T) {
	asked := make(chan string, 10)
	from := watch.NewFake()
	g := gather(from, func(namespace string) time.Duration {
		asked <- namespace
		return 0
	})
	t.Cleanup(g.Stop)
	for _, namespace := range []string{"crowded", ""} {
		m := added("some")
		m.Namespace = namespace
		from.Add(m)
		come(t, g, "some")
		if got := <-asked; got != namespace {
			t.Errorf("asked for %q, want %q", got, namespace)
		}
	}
	from.Error(&metav1.Status{})
	if e := <-g.ResultChan(); e.Type != watch.Error {
		t.Errorf("%v came, want the error", e)
	}
}
