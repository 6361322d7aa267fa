package proxy

import (
	"strings"
	"time"

	corev1 "k8s.io/api/core/v1"
	discoveryv1 "k8s.io/api/discovery/v1"
	"k8s.io/apimachinery/pkg/types"

	"github.com/strake-io/strake/bpf"
)

// atOnce bounds how many Services are written together.
const atOnce = 1024

// next waits for Services to look at, and takes all that are there: one at a time costs more where many change.
func (p *Proxy) next() []string {
	var keys []string
	for len(keys) == 0 || p.queue.Len() > 0 && len(keys) < atOnce {
		key, quit := p.queue.Get()
		if quit {
			break
		}
		keys = append(keys, key)
	}
	return keys
}

// job is a Service whose rows are being written.
type job struct {
	key     string
	change  *change
	service *corev1.Service // nil: it is gone
	gone    []string        // UIDs
	slices  []*discoveryv1.EndpointSlice
	rows    []bpf.LoadBalancer
}

// batch are Services whose rows are written together.
type batch struct {
	making time.Duration // how long the rows took to be made
	node   Node
	jobs   []*job
	want   map[string][]bpf.LoadBalancer // by owner
	last   bool                          // no other Service waited
}

// batches makes the rows of Services that wait, those of the next batch while one is written, until the queue is shut down.
func (p *Proxy) batches() <-chan *batch {
	made := make(chan *batch)
	go func() {
		defer close(made)
		for keys := p.next(); len(keys) > 0; keys = p.next() {
			made <- p.batch(keys)
		}
	}()
	return made
}

func (p *Proxy) batch(keys []string) *batch {
	began := time.Now()
	b := &batch{want: map[string][]bpf.LoadBalancer{}, last: p.queue.Len() == 0}
	p.mu.Lock()
	b.node = p.node
	p.mu.Unlock()
	for _, key := range keys {
		j := p.job(key, b.node)
		for _, uid := range j.gone {
			b.want[uid] = nil
		}
		if j.service != nil {
			b.want[string(j.service.UID)] = j.rows
		}
		b.jobs = append(b.jobs, j)
	}
	b.making = time.Since(began)
	return b
}

// write brings the rows of some Services up to date.
func (p *Proxy) write(b *batch) {
	began := time.Now()
	changes, errs := p.cfg.Table.ReplaceAll(b.want)
	p.count(changes)
	for _, j := range b.jobs {
		p.finish(j, errs, b.node)
		p.metrics.duration.Observe((b.making + time.Since(began)).Seconds())
	}
	p.tellHeld(b.jobs)
	// What went may be what another Service was refused.
	if changes.Deleted+changes.Updated > 0 {
		for _, key := range p.trouble.refused() {
			p.queue.Add(key)
		}
	}
}

// job collects what a Service's rows follow from.
func (p *Proxy) job(key string, node Node) *job {
	j := &job{key: key, change: p.changes.take(key)}
	p.mu.Lock()
	j.gone = p.gone[key]
	p.mu.Unlock()
	if j.service = p.services.Get(key); j.service == nil {
		return j
	}
	j.slices = p.slices.OfService(key)
	j.rows = Desired(j.service, j.slices, node)
	return j
}

// finish does what follows the rows of a Service, and has it tried again if something could not be written.
func (p *Proxy) finish(j *job, errs map[string]error, node Node) {
	defer p.queue.Done(j.key)
	var all []error
	left := j.gone[:0:0]
	for _, uid := range j.gone {
		if err := errs[uid]; err != nil {
			all, left = append(all, err), append(left, uid)
		}
	}
	p.forget(j.key, len(j.gone), left)
	name := types.NamespacedName{}
	name.Namespace, name.Name, _ = strings.Cut(j.key, "/")
	var port uint16
	var local int
	if j.service != nil {
		if err := errs[string(j.service.UID)]; err != nil {
			all = append(all, err)
		}
		if port = healthCheckPort(j.service); port != 0 {
			local = localEndpoints(j.slices, node)
		}
	}
	p.metrics.setNoLocal(j.key, noLocalOf(j.rows))
	check := p.checks.set(name, port, local)
	again := p.trouble.note(j, all, check)
	p.changes.settle(j.key, j.change, !again.broken)
	if !again.broken {
		p.health.done()
	}
	if again.retry {
		p.metrics.failures.Inc()
		p.queue.AddRateLimited(j.key)
	} else {
		p.queue.Forget(j.key)
	}
}

// forget leaves of the first n UIDs of a key those that are left; others may have come meanwhile.
func (p *Proxy) forget(key string, n int, left []string) {
	if n == 0 {
		return
	}
	p.mu.Lock()
	defer p.mu.Unlock()
	if p.gone[key] = append(left, p.gone[key][n:]...); len(p.gone[key]) == 0 {
		delete(p.gone, key)
	}
}
