package main

import (
	"context"
	"errors"
	"fmt"
	"math"
	"os"
	"strings"
	"sync"
	"sync/atomic"
	"time"

	clientv3 "go.etcd.io/etcd/client/v3"
	"golang.org/x/sys/unix"
	corev1 "k8s.io/api/core/v1"
	"k8s.io/apimachinery/pkg/api/resource"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/apimachinery/pkg/types"
	"k8s.io/client-go/kubernetes"
	corev1client "k8s.io/client-go/kubernetes/typed/core/v1"
)

// apiParts measure the API server alone, beside an etcd alone under the same load. They are taken in this order: it is idle before it is loaded.
var apiParts = []part{
	{"start", (*bench).apiStart},
	{"idle", (*bench).apiIdle},
	{"writes", (*bench).apiWrites},
	{"creates", (*bench).apiCreates},
	{"watch", (*bench).apiWatch},
	{"pods", (*bench).apiPods},
}

// apiStart starts servers from nothing, and leaves the last one running.
func (b *bench) apiStart(ctx context.Context) error {
	var took []float64
	for i := range b.times(5) {
		if i > 0 {
			b.plane.stop()
			if out, err := b.plane.lab.Strake("down", "--purge"); err != nil {
				return fmt.Errorf("down --purge: %w\n%s", err, out)
			}
		}
		s, err := b.plane.start(ctx)
		if err != nil {
			return err
		}
		took = append(took, s)
	}
	b.report.aim("strake server, exec to ready, without data, median", quantile(took, 0.5), "s", atMost, 4)
	b.report.figure("strake server, exec to ready, without data, slowest", quantile(took, 1), "s")
	return nil
}

// apiIdle looks at a server that nobody uses.
func (b *bench) apiIdle(ctx context.Context) error {
	pid, err := b.plane.pid()
	if err != nil {
		return err
	}
	if err := pause(ctx, settle); err != nil {
		return err
	}
	before, err := cpuSeconds(pid)
	if err != nil {
		return err
	}
	if err := pause(ctx, during); err != nil {
		return err
	}
	after, err := cpuSeconds(pid)
	if err != nil {
		return err
	}
	m, err := memoryOf(pid)
	if err != nil {
		return err
	}
	b.report.aim("idle memory with etcd, RSS", m.rss, "MiB", atMost, 250)
	b.report.figure("idle memory with etcd, anonymous", m.anon, "MiB")
	b.report.aim("idle CPU with etcd", 100*(after-before)/during.Seconds(), "% of a CPU", atMost, 2)
	return nil
}

const (
	callers    = 16 // how many clients call at a time, for the rate
	fewCallers = 4  // and where nobody has to wait for the others
)

// calls makes n calls, callers at a time, and returns how many a second there were and how long each took, in ms.
func calls(ctx context.Context, callers, n int, call func(context.Context, int) error) (rate float64, took []float64, err error) {
	ctx, cancel := context.WithCancelCause(ctx)
	defer cancel(nil)
	var next atomic.Int64
	var mu sync.Mutex
	var all sync.WaitGroup
	began := time.Now()
	for range callers {
		all.Go(func() {
			for {
				i := int(next.Add(1)) - 1
				if i >= n || ctx.Err() != nil {
					return
				}
				start := time.Now()
				err := call(ctx, i)
				ms := time.Since(start).Seconds() * 1000
				if err != nil {
					cancel(err)
					return
				}
				mu.Lock()
				took = append(took, ms)
				mu.Unlock()
			}
		})
	}
	all.Wait()
	return float64(n) / time.Since(began).Seconds(), took, context.Cause(ctx)
}

// kilobytes are objects of that size, here and at etcd alone.
type kilobytes struct {
	// maps are those of each caller: as many clients have as many connections. By one, whoever finds a hundred requests under way opens another one, for
	// which Go's client shakes hands once for each request that waits: a pause of a tenth of a second would become one of half a second.
	maps []corev1client.ConfigMapInterface
	etcd *clientv3.Client
}

// kilobytes prepares the clients. What other programs have written, a compiler perhaps, goes to the disk first: else etcd's writes would wait for it.
func (b *bench) kilobytes(ctx context.Context) (k kilobytes, err error) {
	unix.Sync()
	for range callers {
		rc, err := b.plane.rest()
		if err != nil {
			return k, err
		}
		client, err := kubernetes.NewForConfig(rc)
		if err != nil {
			return k, err
		}
		if _, err := client.Discovery().ServerVersion(); err != nil { // it is connected from now on
			return k, err
		}
		k.maps = append(k.maps, client.CoreV1().ConfigMaps(metav1.NamespaceDefault))
	}
	k.etcd, err = b.plane.alone(ctx)
	return k, err
}

// of is the way of who makes the i-th call.
func (k kilobytes) of(i int) corev1client.ConfigMapInterface { return k.maps[i%len(k.maps)] }

// remove removes all of them from the server.
func (k kilobytes) remove(ctx context.Context) error {
	return k.of(0).DeleteCollection(ctx, metav1.DeleteOptions{}, metav1.ListOptions{})
}

// data is what an object has; etcd gets the metadata as well.
var data, withMetadata = strings.Repeat("v", 1000), strings.Repeat("v", 1300)

func (kilobytes) name(i int) string  { return fmt.Sprint("bench-", i) }
func (k kilobytes) key(i int) string { return "/registry/configmaps/default/" + k.name(i) }

func (k kilobytes) create(ctx context.Context, i int) error {
	_, err := k.of(i).Create(ctx, &corev1.ConfigMap{ObjectMeta: metav1.ObjectMeta{Name: k.name(i)}, Data: map[string]string{"k": data}}, metav1.CreateOptions{})
	return err
}

func (k kilobytes) put(ctx context.Context, i int) error {
	r, err := k.etcd.Txn(ctx).If(clientv3.Compare(clientv3.ModRevision(k.key(i)), "=", 0)).Then(clientv3.OpPut(k.key(i), withMetadata)).Commit()
	if err == nil && !r.Succeeded {
		err = errors.New("it is there already")
	}
	return err
}

// apiWrites creates, reads and changes objects; the rival is etcd, which gets the same bytes.
func (b *bench) apiWrites(ctx context.Context) error {
	k, err := b.kilobytes(ctx)
	if err != nil {
		return err
	}
	defer k.etcd.Close()
	pid, err := b.plane.pid()
	if err != nil {
		return err
	}
	n := b.times(10_000)
	for _, what := range []struct {
		name         string
		ours, theirs func(context.Context, int) error
	}{
		{"creates", k.create, k.put},
		{"gets", func(ctx context.Context, i int) error {
			_, err := k.of(i).Get(ctx, k.name(i), metav1.GetOptions{})
			return err
		}, func(ctx context.Context, i int) error {
			_, err := k.etcd.Get(ctx, k.key(i))
			return err
		}},
		{"merge patches", func(ctx context.Context, i int) error {
			_, err := k.of(i).Patch(ctx, k.name(i), types.MergePatchType, []byte(`{"data":{"n":"1"}}`), metav1.PatchOptions{})
			return err
		}, func(ctx context.Context, i int) error {
			_, err := k.etcd.Txn(ctx).If(clientv3.Compare(clientv3.ModRevision(k.key(i)), ">", 0)).Then(clientv3.OpPut(k.key(i), withMetadata+"1")).Commit()
			return err
		}},
	} {
		before, err := cpuSeconds(pid)
		if err != nil {
			return err
		}
		rate, took, err := calls(ctx, callers, n, what.ours)
		if err != nil {
			return fmt.Errorf("%s: %w", what.name, err)
		}
		after, err := cpuSeconds(pid)
		if err != nil {
			return err
		}
		b.report.figure(what.name+", CPU time of the server for each", 1e6*(after-before)/float64(n), "µs")
		floor, floorTook, err := calls(ctx, callers, n, what.theirs)
		if err != nil {
			return fmt.Errorf("%s at etcd: %w", what.name, err)
		}
		b.report.against(what.name+"; etcd alone", rate, floor, "/s", "", 0)
		b.report.against(what.name+", p99; etcd alone", quantile(took, 0.99), quantile(floorTook, 0.99), "ms", "", 0)
		if what.name == "creates" {
			b.report.aim("creates, durable", rate, "/s", atLeast, 1000)
		}
	}
	return k.remove(ctx)
}

// apiCreates creates objects at a rate that leaves the server time, or should.
func (b *bench) apiCreates(ctx context.Context) error {
	k, err := b.kilobytes(ctx)
	if err != nil {
		return err
	}
	defer k.etcd.Close()
	first := b.times(10_000) // behind those that apiWrites has left at etcd
	from := func(call func(context.Context, int) error, first int) func(context.Context, int) error {
		return func(ctx context.Context, i int) error { return call(ctx, first+i) }
	}
	if err := b.createsOfFew(ctx, first, from(k.create, first), from(k.put, first)); err != nil {
		return err
	}
	if err := b.steadyCreates(ctx, from(k.create, 2*first), from(k.put, 2*first)); err != nil {
		return err
	}
	return k.remove(ctx)
}

// createsOfFew creates with so few clients that what an answer takes is the server's, here and then at etcd alone.
func (b *bench) createsOfFew(ctx context.Context, n int, ours, theirs func(context.Context, int) error) error {
	what := fmt.Sprintf("creates, durable, %d at a time", fewCallers)
	rate, took, err := calls(ctx, fewCallers, n, ours)
	if err != nil {
		return fmt.Errorf("%s: %w", what, err)
	}
	floor, floorTook, err := calls(ctx, fewCallers, n, theirs)
	if err != nil {
		return fmt.Errorf("%s at etcd: %w", what, err)
	}
	b.report.against(what+"; etcd alone", rate, floor, "/s", "", 0)
	b.report.against(what+", p99; etcd alone", quantile(took, 0.99), quantile(floorTook, 0.99), "ms", "", 0)
	b.report.aim(what, rate, "/s", atLeast, 1000)
	b.report.aim(what+", p99", quantile(took, 0.99), "ms", atMost, 20)
	return nil
}

// steadyRate is how many objects a second come, whoever waits for the answers of those before.
const steadyRate = 1000

// never is how long it takes until what failed is done. JSON has no infinity.
const never = math.MaxFloat64

// steadyCreates creates at a steady rate, here and then at etcd alone. One that the server had no time for is a figure, not the end of the run, and slower
// than all others.
func (b *bench) steadyCreates(ctx context.Context, ours, theirs func(context.Context, int) error) error {
	took, failed, err := b.steady(ctx, ours)
	if err != nil {
		return err
	}
	floor, _, err := b.steady(ctx, theirs)
	if err != nil {
		return err
	}
	what := fmt.Sprintf("creates, durable, at %d/s", steadyRate)
	b.report.figure(what+", failed", float64(failed), "")
	b.report.against(what+", median; etcd alone", quantile(took, 0.5), quantile(floor, 0.5), "ms", "", 0)
	b.report.against(what+", p99; etcd alone", quantile(took, 0.99), quantile(floor, 0.99), "ms", "", 0)
	b.report.aim(what+", p99", quantile(took, 0.99), "ms", atMost, 20)
	return nil
}

// steady calls at a steady rate. Each call is measured, in ms, from when it was due, so that what waits for a slow server counts.
func (b *bench) steady(ctx context.Context, call func(context.Context, int) error) (took []float64, failures int64, err error) {
	n := b.times(10) * steadyRate
	took = make([]float64, n)
	var all sync.WaitGroup
	var failed atomic.Int64
	var first sync.Once
	began := time.Now()
	for i := range n {
		due := began.Add(time.Duration(i) * time.Second / steadyRate)
		time.Sleep(time.Until(due))
		all.Go(func() {
			err := call(ctx, i)
			took[i] = time.Since(due).Seconds() * 1000
			if err != nil {
				failed.Add(1)
				took[i] = never
				first.Do(func() { fmt.Fprintln(os.Stderr, "bench: a create that failed:", err) })
			}
		})
	}
	all.Wait()
	return took, failed.Load(), ctx.Err()
}

// apiPods makes pods that no scheduler looks at, and lists them.
func (b *bench) apiPods(ctx context.Context) error {
	pid, err := b.plane.pid()
	if err != nil {
		return err
	}
	const n = 10_000
	before, err := b.plane.collected(ctx)
	if err != nil {
		return err
	}
	rss, err := memoryOf(pid)
	if err != nil {
		return err
	}
	pods := b.plane.client.CoreV1().Pods(metav1.NamespaceDefault)
	rate, took, err := calls(ctx, callers, n, func(ctx context.Context, i int) error {
		_, err := pods.Create(ctx, benchPod(i), metav1.CreateOptions{})
		return err
	})
	if err != nil {
		return err
	}
	b.report.figure("creates of pods", rate, "/s")
	b.report.figure("creates of pods, p99", quantile(took, 0.99), "ms")
	after, err := b.plane.collected(ctx)
	if err != nil {
		return err
	}
	full, err := memoryOf(pid)
	if err != nil {
		return err
	}
	b.report.figure("10 000 pods, live heap", (after-before)/(1<<20), "MiB")
	b.report.figure("10 000 pods, RSS of the server then", full.rss, "MiB")
	b.report.figure("10 000 pods, RSS more than before", full.rss-rss.rss, "MiB")
	etcd, err := b.plane.alone(ctx)
	if err != nil {
		return err
	}
	defer etcd.Close()
	for _, how := range []struct{ name, accept, version string }{
		{"protobuf", "application/vnd.kubernetes.protobuf", ""}, {"protobuf, of any version", "application/vnd.kubernetes.protobuf", "0"}, {"JSON", "application/json", ""},
	} {
		if err := b.list(ctx, how.name, how.accept, how.version); err != nil {
			return fmt.Errorf("list by %s: %w", how.name, err)
		}
	}
	return pods.DeleteCollection(ctx, metav1.DeleteOptions{GracePeriodSeconds: new(int64)}, metav1.ListOptions{})
}

// list lists all pods some times: how long it takes, and what the server allocates for it.
func (b *bench) list(ctx context.Context, name, accept, version string) error {
	const allocated = "go_memstats_alloc_bytes_total"
	rounds := b.times(10)
	var took []float64
	var wire int
	before, err := b.plane.counter(ctx, allocated)
	if err != nil {
		return err
	}
	scrape, err := b.plane.counter(ctx, allocated) // what this question costs itself
	if err != nil {
		return err
	}
	for range rounds {
		began := time.Now()
		body, err := b.plane.client.CoreV1().RESTClient().Get().Resource("pods").SetHeader("Accept", accept).Param("resourceVersion", version).DoRaw(ctx)
		if err != nil {
			return err
		}
		took, wire = append(took, time.Since(began).Seconds()*1000), len(body)
	}
	after, err := b.plane.counter(ctx, allocated)
	if err != nil {
		return err
	}
	each := (after - scrape - (scrape - before)) / float64(rounds)
	b.report.figure("list of 10 000 pods, "+name+", size on the wire", float64(wire)/(1<<20), "MiB")
	b.report.figure("list of 10 000 pods, "+name+", median", quantile(took, 0.5), "ms")
	b.report.aim("list of 10 000 pods, "+name+", allocated by the server per byte on the wire", each/float64(wire), "", atMost, 3)
	return nil
}

// benchPod is a pod as a Deployment's are, that nobody schedules.
func benchPod(i int) *corev1.Pod {
	probe := &corev1.Probe{ProbeHandler: corev1.ProbeHandler{TCPSocket: &corev1.TCPSocketAction{}}, PeriodSeconds: 10}
	probe.TCPSocket.Port.IntVal = 8080
	labels := map[string]string{"app.kubernetes.io/name": fmt.Sprint("app-", i/10), "app.kubernetes.io/part-of": "bench", "pod-template-hash": "7d4b9c6f5d"}
	return &corev1.Pod{
		ObjectMeta: metav1.ObjectMeta{Name: fmt.Sprintf("app-%d-7d4b9c6f5d-%05d", i/10, i), Labels: labels, Annotations: map[string]string{"prometheus.io/scrape": "true", "prometheus.io/port": "9090"}},
		Spec: corev1.PodSpec{SchedulerName: "nobody", Containers: []corev1.Container{{
			Name: "app", Image: "registry.example.org/team/app:v1.2.3", Args: []string{"serve", "--listen=:8080", "--log-level=info"},
			Ports: []corev1.ContainerPort{{Name: "http", ContainerPort: 8080}, {Name: "metrics", ContainerPort: 9090}},
			Env:   []corev1.EnvVar{{Name: "POD_NAME", ValueFrom: &corev1.EnvVarSource{FieldRef: &corev1.ObjectFieldSelector{FieldPath: "metadata.name"}}}, {Name: "MODE", Value: "production"}},
			Resources: corev1.ResourceRequirements{
				Requests: corev1.ResourceList{corev1.ResourceCPU: resource.MustParse("100m"), corev1.ResourceMemory: resource.MustParse("128Mi")},
				Limits:   corev1.ResourceList{corev1.ResourceMemory: resource.MustParse("256Mi")},
			},
			ReadinessProbe: probe, LivenessProbe: probe,
		}}},
	}
}

// pid is the server's process: nsenter becomes it.
func (p *plane) pid() (int, error) {
	if p.server == nil {
		return 0, errors.New("the server does not run")
	}
	return p.server.Process.Pid, nil
}
