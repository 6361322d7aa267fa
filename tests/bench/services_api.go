package main

import (
	"context"
	"errors"
	"fmt"
	"net/netip"
	"os"
	"path/filepath"
	"slices"
	"syscall"
	"time"

	discoveryv1 "k8s.io/api/discovery/v1"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/client-go/kubernetes"

	"github.com/strake-io/strake/tests/lab"
	"github.com/strake-io/strake/tests/podnet"
)

// apiSizes are those that the cost of following the API is taken at.
var apiSizes = []int{1_000, 10_000, 50_000}

// follow measures what it costs to keep the kernel's tables as the API says.
func (b *bench) follow(ctx context.Context) error { return b.followAll(ctx, apiSizes, b.followed) }

// sync measures the first look at all of the most Services alone, for whoever asks for that: it is a part of follow.
func (b *bench) sync(ctx context.Context) error {
	if b.only == "" {
		return nil
	}
	return b.followAll(ctx, apiSizes[len(apiSizes)-1:], func(ctx context.Context, p *followedPlane, size int) error {
		a, err := b.synced(ctx, p, size)
		if a != nil {
			err = errors.Join(err, a.stop())
		}
		return err
	})
}

// followedPlane is a control plane whose etcd is filled with Services.
type followedPlane struct {
	lab     *lab.Cluster
	dir     string
	server  int // its process
	own     int // Services of its own
	changes *changer
}

// followAll calls measure for each size, at a control plane alone that has so many Services.
func (b *bench) followAll(ctx context.Context, sizes []int, measure func(context.Context, *followedPlane, int) error) (err error) {
	dir, err := os.MkdirTemp("", "strake-bench-")
	if err != nil {
		return err
	}
	defer os.RemoveAll(dir)
	c, err := lab.New("strake-bench", filepath.Join(dir, "data"), b.strake)
	if err != nil {
		return err
	}
	defer func() { err = errors.Join(err, c.Close()) }()
	server := c.StrakeCommand(context.Background(), "server")
	if server.Stderr, err = os.Create(filepath.Join(dir, "server.log")); err != nil {
		return err
	}
	if err := server.Start(); err != nil {
		return err
	}
	defer func() {
		server.Process.Signal(syscall.SIGTERM)
		late := time.AfterFunc(20*time.Second, func() { server.Process.Kill() }) // of a run that was interrupted it may wait for its clients
		server.Wait()                                                            // it was asked to end
		late.Stop()
	}()
	if err := awaitAPI(ctx, c); err != nil {
		return err
	}
	rc, err := c.REST()
	if err != nil {
		return err
	}
	rc.ContentType = "application/vnd.kubernetes.protobuf"
	client, err := kubernetes.NewForConfig(rc)
	if err != nil {
		return err
	}
	first, err := client.CoreV1().Services("").List(ctx, metav1.ListOptions{})
	if err != nil {
		return err
	}
	p := &followedPlane{c, dir, server.Process.Pid, len(first.Items), &changer{client, map[int]int{}}}
	filled := 0
	for _, size := range sizes {
		if err := put(ctx, c, stored(filled, size)); err != nil {
			return err
		}
		filled = size
		if err := measure(ctx, p, size); err != nil {
			return fmt.Errorf("%d Services: %w", size, err)
		}
	}
	return nil
}

func awaitAPI(ctx context.Context, c *lab.Cluster) error {
	for late := time.Now().Add(90 * time.Second); ; {
		out, err := c.Strake("kubectl", "get", "--raw", "/readyz")
		if err == nil {
			return nil
		}
		if time.Now().After(late) {
			return fmt.Errorf("the API server: %w\n%s", err, out)
		}
		if err := pause(ctx, 100*time.Millisecond); err != nil {
			return err
		}
	}
}

// followed measures one size.
func (b *bench) followed(ctx context.Context, p *followedPlane, size int) (err error) {
	a, err := b.synced(ctx, p, size)
	defer func() {
		if a != nil {
			err = errors.Join(err, a.stop())
		}
	}()
	if err != nil {
		return err
	}
	what := count(size) + ", "
	if err := b.changes(ctx, a, p.changes, what, size); err != nil {
		return err
	}
	if err := b.firstConnection(ctx, p.lab, a, p.changes.client, what); err != nil {
		return err
	}
	return b.agentCost(ctx, a, p.changes, what, size)
}

// synced takes the time until all is in the kernel of an agent that starts with nothing, and returns the last of some agents.
func (b *bench) synced(ctx context.Context, p *followedPlane, size int) (a *agent, err error) {
	var synced, started, agentCPU, serverCPU []float64
	for i := range b.times(4) {
		if a != nil {
			if err := a.stop(); err != nil {
				return nil, err
			}
		}
		if a, err = startAgent(p.lab, filepath.Join(p.dir, "agent"), agentSpec{Services: size + p.own}); err != nil {
			return nil, err
		}
		opened, err := a.next(ctx)
		if err != nil {
			return a, err
		}
		server, err := cpuSeconds(p.server)
		if err != nil {
			return a, err
		}
		agent, err := cpuSeconds(a.cmd.Process.Pid)
		if err != nil {
			return a, err
		}
		all, err := a.next(ctx)
		if err != nil {
			return a, err
		}
		if i == 0 {
			continue // by the first one the API server learns of what was put into etcd
		}
		synced, started = append(synced, (all.At-opened.At).Seconds()), append(started, (all.At-a.began).Seconds())
		for pid, cpu := range map[int]*[]float64{p.server: &serverCPU, a.cmd.Process.Pid: &agentCPU} {
			used, err := cpuSeconds(pid)
			if err != nil {
				return a, err
			}
			*cpu = append(*cpu, used)
		}
		serverCPU[i-1], agentCPU[i-1] = serverCPU[i-1]-server, agentCPU[i-1]-agent
	}
	what := count(size) + ", full sync from empty"
	if size == 50_000 {
		b.report.aim(what+", median", quantile(synced, 0.5), "s", atMost, 3)
	} else {
		b.report.figure(what+", median", quantile(synced, 0.5), "s")
	}
	b.report.figure(what+", from the agent's exec", quantile(started, 0.5), "s")
	b.report.figure(what+", processor time of the agent", quantile(agentCPU, 0.5), "s")
	b.report.figure(what+", processor time of the API server", quantile(serverCPU, 0.5), "s")
	b.draw("Full sync from empty", "s", kindStrake, size, quantile(synced, 0.5))
	return a, nil
}

// next waits for what the agent tells.
func (a *agent) next(ctx context.Context) (written, error) {
	select {
	case w, ok := <-a.tells:
		if !ok {
			return w, errors.New("the agent ended")
		}
		return w, nil
	case <-time.After(2 * time.Minute):
		return written{}, errors.New("the agent is silent")
	case <-ctx.Done():
		return written{}, ctx.Err()
	}
}

// of waits until the agent has written a Service.
func (a *agent) of(ctx context.Context, i int) (time.Duration, error) {
	for {
		w, err := a.next(ctx)
		if err != nil {
			return 0, err
		}
		if slices.Contains(w.Owners, string(apiUID(i))) {
			return w.At, nil
		}
	}
}

// changer takes endpoints of Services out of service.
type changer struct {
	client kubernetes.Interface
	out    map[int]int // by Service: how many of its endpoints it took out, one at a time
}

// change takes the next endpoint of a Service out of service, and the one back that it took before: an update that changed nothing would be
// none, and wait for ever for the agent to tell of it.
func (c *changer) change(ctx context.Context, i int) error {
	_, slice := apiObjects(i)
	e := c.out[i] % len(slice.Endpoints)
	c.out[i]++
	ready := false
	slice.Endpoints[e].Conditions.Ready = &ready
	_, err := c.client.DiscoveryV1().EndpointSlices(apiNamespace).Update(ctx, slice, metav1.UpdateOptions{})
	return err
}

// changes takes the time from an API call to the map write, and from its answer: from then on the change is an event, for whoever watches. One
// change after the other.
func (b *bench) changes(ctx context.Context, a *agent, c *changer, what string, size int) error {
	var whole, rest []float64
	for n := range b.times(300) {
		i := 1 + n*(size-2)/b.times(300)
		asked := monotonic()
		if err := c.change(ctx, i); err != nil {
			return err
		}
		answered := monotonic()
		at, err := a.of(ctx, i)
		if err != nil {
			return err
		}
		whole, rest = append(whole, 1000*(at-asked).Seconds()), append(rest, 1000*max(0, at-answered).Seconds())
		if err := pause(ctx, 5*time.Millisecond); err != nil {
			return err
		}
	}
	b.report.figure(what+"API call → map write, median", quantile(whole, 0.5), "ms")
	b.report.figure(what+"API call → map write, p99", quantile(whole, 0.99), "ms")
	name := what + "API answer → map write, p99"
	if size == 50_000 {
		b.report.aim(name, quantile(rest, 0.99), "ms", atMost, 5)
	} else {
		b.report.figure(name, quantile(rest, 0.99), "ms")
	}
	b.draw("API call → map write, p99", "ms", kindStrake, size, quantile(whole, 0.99))
	return nil
}

// firstConnection takes the time from an API call that moves a Service's only endpoint to the first connection that arrives at the new one,
// of a client that connects all the time.
func (b *bench) firstConnection(ctx context.Context, c *lab.Cluster, a *agent, client kubernetes.Interface, what string) error {
	space := podnet.Space("/run/netns/" + c.Net)
	arrived := [2]chan time.Duration{make(chan time.Duration, 1), make(chan time.Duration, 1)}
	for i := range arrived {
		stop, err := echo(space, firstBackend+i, func() {
			select {
			case arrived[i] <- monotonic():
			default:
			}
		})
		if err != nil {
			return err
		}
		defer stop()
	}
	w, err := startWorker(space, a.spec.Cgroup)
	if err != nil {
		return err
	}
	defer w.stop()
	s := benchService(0, netip.MustParseAddr(lab.NodeIP))
	ask := w.way("the moved Service", order{Mode: modeConnect, To: s.ClusterIP, Ports: 1, AtOnce: 1})
	var took []float64
	for n := range b.times(40) {
		// It goes to port n%2 of the two; whoever came there before has gone.
		to := (n + 1) % 2
		for len(arrived[to]) > 0 {
			<-arrived[to]
		}
		asking := make(chan error, 1)
		asks := make(chan struct{})
		go func() {
			for {
				if _, _, err := ask.Turn(5 * time.Millisecond); err != nil {
					asking <- err
					return
				}
				select {
				case <-asks:
					asking <- nil
					return
				default:
				}
			}
		}()
		_, slice := apiObjects(0)
		slice.Ports = []discoveryv1.EndpointPort{endpointPort(firstBackend + uint16(to))}
		asked := monotonic()
		_, err := client.DiscoveryV1().EndpointSlices(apiNamespace).Update(ctx, slice, metav1.UpdateOptions{})
		if err != nil {
			return err
		}
		select {
		case at := <-arrived[to]:
			took = append(took, 1000*(at-asked).Seconds())
		case err := <-asking:
			return err
		case <-time.After(10 * time.Second):
			return errors.New("no connection came to the new endpoint")
		}
		close(asks)
		if err := <-asking; err != nil {
			return err
		}
	}
	b.report.figure(what+"API call → first correct connection, median", quantile(took, 0.5), "ms")
	b.report.figure(what+"API call → first correct connection, p99", quantile(took, 0.99), "ms")
	return nil
}

const (
	churn     = 100 // endpoints that change in a second
	agentMost = 143 // MiB that the agent may have: 150 MB
)

// agentCost looks at the agent at rest, and while endpoints change.
func (b *bench) agentCost(ctx context.Context, a *agent, c *changer, what string, size int) error {
	pid := a.cmd.Process.Pid
	if err := pause(ctx, time.Duration(b.effort*float64(settle))); err != nil {
		return err
	}
	period := time.Duration(b.effort * float64(20*time.Second))
	used, err := cpuDuring(pid, func() error { return pause(ctx, period) })
	if err != nil {
		return err
	}
	rest, err := memoryOf(pid)
	if err != nil {
		return err
	}
	for len(a.tells) > 0 {
		<-a.tells
	}
	asked := map[string]time.Duration{}
	total := int(period.Seconds() * churn)
	step := max(1, (size-2)/total)
	busy, err := cpuDuring(pid, func() error {
		began := time.Now()
		for n := range total {
			if err := pause(ctx, time.Until(began.Add(time.Duration(n)*time.Second/churn))); err != nil {
				return err
			}
			i := 1 + n*step%(size-1)
			asked[string(apiUID(i))] = monotonic()
			if err := c.change(ctx, i); err != nil {
				return err
			}
		}
		return nil
	})
	if err != nil {
		return err
	}
	var delays []float64
	for len(delays) < len(asked) && len(delays) < total*9/10 {
		w, err := a.next(ctx)
		if err != nil {
			return err
		}
		for _, o := range w.Owners {
			if at, ok := asked[o]; ok && w.At > at {
				delays = append(delays, 1000*(w.At-at).Seconds())
			}
		}
	}
	after, err := memoryOf(pid)
	if err != nil {
		return err
	}
	b.report.figure(what+"agent at rest, CPU", used, "% of a CPU")
	if size == 50_000 {
		b.report.aim(what+"agent at rest, RSS", rest.rss, "MiB", atMost, agentMost)
	} else {
		b.report.figure(what+"agent at rest, RSS", rest.rss, "MiB")
	}
	b.draw("Agent at rest, RSS", "MiB", kindStrake, size, rest.rss)
	b.report.figure(what+"agent at rest, anonymous", rest.anon, "MiB")
	b.report.figure(fmt.Sprintf("%sagent while %d endpoints change in a second, CPU", what, churn), busy, "% of a CPU")
	changing := fmt.Sprintf("%sagent while %d endpoints change in a second, RSS", what, churn)
	if size == 50_000 {
		b.report.aim(changing, after.rss, "MiB", atMost, agentMost)
	} else {
		b.report.figure(changing, after.rss, "MiB")
	}
	b.report.figure(fmt.Sprintf("%sAPI call → map write while %d endpoints change in a second, p99", what, churn), quantile(delays, 0.99), "ms")
	return nil
}

// cpuDuring is the share of a CPU that a process used while f ran, in percent.
func cpuDuring(pid int, f func() error) (float64, error) {
	before, err := cpuSeconds(pid)
	if err != nil {
		return 0, err
	}
	began := time.Now()
	if err := f(); err != nil {
		return 0, err
	}
	elapsed := time.Since(began).Seconds()
	after, err := cpuSeconds(pid)
	return 100 * (after - before) / elapsed, err
}
