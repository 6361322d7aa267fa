package connectivity

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"sync"
	"time"

	"k8s.io/client-go/kubernetes"
	"k8s.io/client-go/rest"
)

// Config of a test.
type Config struct {
	REST     *rest.Config
	Image    string
	Families []string // empty: those that the pods have
	Outside  string   // host:port that is to be reached as well
	Perf     bool
	Keep     bool // the pods, for a look at them
	Progress io.Writer
}

// settle is how long a path may fail before it counts: what was just deployed has to come to every node.
const settle = 15 * time.Second

// cleanTime bounds the removal of the pods.
const cleanTime = 60 * time.Second

// Run deploys the pods, tests every path and removes the pods, whatever happens. An error means that the test could not be made; failed
// paths are in the report.
func Run(ctx context.Context, c Config) (r Report, err error) {
	client, err := kubernetes.NewForConfig(c.REST)
	if err != nil {
		return r, err
	}
	d := &deployment{client: client, image: c.Image, say: func(format string, args ...any) { fmt.Fprintf(c.Progress, format+"\n", args...) }}
	defer func() {
		if d.namespace == "" {
			return
		}
		if c.Keep {
			d.say("kept: namespace %s; remove it with `strake kubectl delete namespace %[1]s`", d.namespace)
			return
		}
		cctx, cancel := context.WithTimeout(context.WithoutCancel(ctx), cleanTime)
		defer cancel()
		err = errors.Join(err, d.remove(cctx))
	}()
	scene, err := d.deploy(ctx, c.Families)
	if err != nil {
		return r, err
	}
	scene.Outside = c.Outside
	r = Report{OK: true, Namespace: scene.Namespace, Families: scene.Families, Nodes: scene.Nodes, NotReady: d.notReady, Checks: []Outcome{}}
	sessions, closeAll, err := d.sessions(ctx, c.REST, scene)
	if err != nil {
		return r, err
	}
	defer closeAll()
	plan := Plan(scene)
	d.say("testing %d paths between %d pods on %d nodes (%v)", len(plan), len(scene.Pods), len(scene.Nodes), scene.Families)
	outcomes := make([]Outcome, len(plan))
	var wg sync.WaitGroup
	began := time.Now()
	for i, check := range plan {
		wg.Go(func() { outcomes[i] = check.run(ctx, sessions[check.From.Name], began.Add(settle)) })
	}
	wg.Wait()
	if err := ctx.Err(); err != nil {
		return r, fmt.Errorf("the test was ended: %w", err)
	}
	for _, o := range outcomes {
		r.add(o)
	}
	if c.Perf {
		figures(ctx, &r, scene, sessions)
	}
	r.OK = r.Failures == 0 && len(r.NotReady) == 0
	return r, ctx.Err()
}

// asker carries out probes in a pod.
type asker interface {
	ask(ctx context.Context, p Probe) (Result, error)
}

// run repeats a check until it succeeds, or the time to settle is over.
func (c Check) run(ctx context.Context, s asker, until time.Time) Outcome {
	o := Outcome{From: c.From.Node, Pod: c.From.Name, Column: c.Column, Family: c.Family, Target: c.What}
	if !c.From.Host {
		o.From += "'s pod"
	}
	for {
		o.Attempts++
		res, err := s.ask(ctx, c.Probe)
		if err != nil {
			o.Reason = err.Error()
		} else if o.Reason = c.judge(res); o.Reason == "" {
			o.OK, o.Took = true, res.Took
			return o
		}
		if ctx.Err() != nil || time.Now().After(until) {
			return o
		}
		select {
		case <-ctx.Done():
		case <-time.After(300 * time.Millisecond):
		}
	}
}

// session is a running Answer in a pod.
type session struct {
	pod   string
	in    io.Writer
	write sync.Mutex // of in; never held together with mu
	mu    sync.Mutex
	next  int
	waits map[int]chan Result
	ended error
	done  chan struct{}
}

// newSession speaks with an Answer that reads in and writes out. It ends with out.
func newSession(pod string, in io.Writer, out io.Reader) *session {
	s := &session{pod: pod, in: in, waits: map[int]chan Result{}, done: make(chan struct{})}
	go func() {
		dec := json.NewDecoder(out)
		var err error
		for err == nil {
			var r response
			if err = dec.Decode(&r); err != nil {
				break
			}
			s.mu.Lock()
			if w, ok := s.waits[r.ID]; ok {
				delete(s.waits, r.ID)
				w <- r.Result
			}
			s.mu.Unlock()
		}
		s.mu.Lock()
		s.ended = err
		s.mu.Unlock()
		close(s.done)
	}()
	return s
}

func (s *session) ask(ctx context.Context, p Probe) (Result, error) {
	w := make(chan Result, 1)
	s.mu.Lock()
	s.next++
	id := s.next
	s.waits[id] = w
	s.mu.Unlock()
	s.write.Lock()
	err := json.NewEncoder(s.in).Encode(request{id, p})
	s.write.Unlock()
	if err != nil {
		return Result{}, fmt.Errorf("exec in pod %s: %w", s.pod, err)
	}
	select {
	case r := <-w:
		return r, nil
	case <-s.done:
		s.mu.Lock()
		defer s.mu.Unlock()
		return Result{}, fmt.Errorf("exec in pod %s ended: %w", s.pod, s.ended)
	case <-ctx.Done():
		return Result{}, ctx.Err()
	}
}
