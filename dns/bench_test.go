package dns

import (
	"encoding/binary"
	"fmt"
	"math/rand/v2"
	"net"
	"net/netip"
	"os"
	"os/exec"
	"path/filepath"
	"slices"
	"strconv"
	"strings"
	"sync"
	"syscall"
	"testing"
	"time"

	"github.com/cilium/ebpf"
	"github.com/miekg/dns"
	"golang.org/x/sys/unix"
	corev1 "k8s.io/api/core/v1"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	apiruntime "k8s.io/apimachinery/pkg/runtime"

	"github.com/strake-io/strake/bpf"
	rotation "github.com/strake-io/strake/tests/bench/turns"
	"github.com/strake-io/strake/tests/coredns"
)

// benchWith names CoreDNS, which `make bench-dns` builds; benchServices says how many Services there are (10000).
const (
	benchWith     = "STRAKE_BENCH_DNS"
	benchServices = "STRAKE_BENCH_SERVICES"
)

// TestBench asks the kernel, our resolver and CoreDNS with the usual Corefile in turns, from a pod, by the same interface: names that there are,
// and what search lists make.
func TestBench(t *testing.T) {
	binary := os.Getenv(benchWith)
	if binary == "" {
		t.Skipf("SKIPPED: %s is not set: `make bench-dns` builds CoreDNS and runs this", benchWith)
	}
	services := 10_000
	if text := os.Getenv(benchServices); text != "" {
		n, err := strconv.Atoi(text)
		must(t, err)
		services = n
	}
	objs := []apiruntime.Object{&corev1.Namespace{ObjectMeta: metav1.ObjectMeta{Name: "default"}}}
	for i := range services {
		objs = append(objs, service(fmt.Sprint("web-", i), []string{fmt.Sprintf("10.97.%d.%d", i/250, i%250)}, port("http", corev1.ProtocolTCP, 80)))
	}
	api, err := coredns.StartAPI(objs...)
	must(t, err)
	t.Cleanup(func() { must(t, api.Close()) })
	newUpstream(t, public, internet)
	core := startCoreDNS(t, binary, api.URL, 5353)

	records := newRecords(t, objs...)
	alone := netip.AddrPortFrom(self, 1053)
	run(t, newServer(t, records, resolvConf(t, public), at, alone))
	d := openDatapath(t)
	for _, obj := range objs {
		switch o := obj.(type) {
		case *corev1.Service:
			_, err = d.Names().Replace(string(o.UID), Desired(o, nil, "cluster.local"))
		case *corev1.Namespace:
			_, err = d.Names().Replace("ns", DesiredNamespace(o, "cluster.local"))
		}
		must(t, err)
	}
	must(t, d.SetNamesState(bpf.NamesState{Whole: true}))
	dial := podDial(t, d)

	hit := func(r *rand.Rand) string {
		return fmt.Sprintf("web-%d.default.svc.cluster.local.", r.IntN(services))
	}
	miss := func(r *rand.Rand) string {
		return fmt.Sprintf("host-%d.example.com.%s", r.IntN(1000), []string{"default.svc.cluster.local.", "svc.cluster.local.", "cluster.local."}[r.IntN(3)])
	}
	mixes := []struct {
		name string
		ask  func(*rand.Rand) string
		want float64 // times the questions a core of CoreDNS
	}{{"names that there are", hit, 8}, {"NXDOMAIN", miss, 12}}
	const workers = 4
	for _, mix := range mixes {
		cpu, server := make([]time.Duration, 3), make([]time.Duration, 3)
		asked := make([]int, 3)
		var ways []rotation.Way
		for i, to := range []netip.AddrPort{at, alone, netip.AddrPortFrom(self, 5353)} {
			var conns []net.Conn
			for range workers {
				conns = append(conns, dial("udp", to))
			}
			ways = append(ways, rotation.Way{Name: []string{"kernel", "resolver", "CoreDNS"}[i], Turn: func(d time.Duration) ([]time.Duration, time.Duration, error) {
				before, serverBefore := ownTime()+cpuTime(core), cpuTime(core)
				samples, took, err := load(conns, mix.ask, d)
				cpu[i] += ownTime() + cpuTime(core) - before
				server[i] += cpuTime(core) - serverBefore
				asked[i] += len(samples)
				return samples, took, err
			}})
		}
		all, err := rotation.Rotate(ways, 400*time.Millisecond, 8)
		must(t, err)
		for i, s := range all {
			against := s.Against(all[2])
			t.Logf("%-22s %-8s %8.0f/s  p50 %5.0f µs  p99 %6.0f µs  CPU of client and server %5.1f µs a question;  against CoreDNS: %.2fx questions (%.2f to %.2f), p50 %.2f, p99 %.2f, CPU %.2f",
				mix.name, ways[i].Name, s.Rate, s.Median, s.P99, float64(cpu[i].Microseconds())/float64(asked[i]), against.Ratio, against.Low, against.High,
				s.Median/all[2].Median, s.P99/all[2].P99, float64(cpu[i])/float64(asked[i])/(float64(cpu[2])/float64(asked[2])))
		}
		// What the client takes is the same for both servers, and what the kernel's stack does for CoreDNS' sockets is not counted.
		program, _ := programTime(t, d, dial, mix.ask)
		coreDNS := server[2] / time.Duration(asked[2])
		t.Logf("%-22s the programs take %v a question, CoreDNS' process %v", mix.name, program, coreDNS)
		judge(t, "questions a core, "+mix.name, float64(coreDNS)/float64(program), mix.want, true)
		judge(t, "median latency against CoreDNS, "+mix.name, all[0].Median/all[2].Median, 1.0/3, false)
		judge(t, "p99 latency against CoreDNS, "+mix.name, all[0].P99/all[2].P99, 1.0/3, false)
	}
}

// cpuTime is what another process has used.
func cpuTime(pid int) time.Duration {
	data, err := os.ReadFile(fmt.Sprintf("/proc/%d/stat", pid))
	if err != nil {
		panic(err)
	}
	fields := strings.Fields(string(data[strings.LastIndexByte(string(data), ')')+2:]))
	user, _ := strconv.Atoi(fields[11]) // 14th and 15th of the file (proc(5)), in 1/100 s
	system, _ := strconv.Atoi(fields[12])
	return time.Duration(user+system) * 10 * time.Millisecond
}

// ownTime is what this process has used.
func ownTime() time.Duration {
	var r syscall.Rusage
	if err := syscall.Getrusage(syscall.RUSAGE_SELF, &r); err != nil {
		panic(err)
	}
	return time.Duration(r.Utime.Nano() + r.Stime.Nano())
}

// programTime is what the programs at the pod's interface take for a question and its answer, as the kernel counts it, and the median latency.
func programTime(t *testing.T, d *bpf.Datapath, dial func(string, netip.AddrPort) net.Conn, ask func(*rand.Rand) string) (program, median time.Duration) {
	t.Helper()
	stats, err := ebpf.EnableStats(unix.BPF_STATS_RUN_TIME)
	must(t, err)
	defer stats.Close()
	status, err := d.Status()
	must(t, err)
	var programs []*ebpf.Program
	for _, l := range status.Links {
		if strings.HasPrefix(l.Name, bpf.HookPod) || strings.HasPrefix(l.Name, bpf.HookToPod) {
			p, err := ebpf.NewProgramFromID(ebpf.ProgramID(l.Program))
			must(t, err)
			defer p.Close()
			programs = append(programs, p)
		}
	}
	spent := func() (took time.Duration) {
		for _, p := range programs {
			s, err := p.Stats()
			must(t, err)
			took += s.Runtime
		}
		return took
	}
	conns := []net.Conn{dial("udp", at)}
	before := spent()
	samples, _, err := load(conns, ask, 2*time.Second)
	must(t, err)
	took := spent() - before
	slices.Sort(samples)
	return took / time.Duration(max(len(samples), 1)), samples[len(samples)/2]
}

// weight is the memory that a process has, in kB: of its own; with the files that it maps, divided among all who map them; and with all of these (proc_pid_smaps(5)).
type weight struct{ anonymous, pss, rss int }

// least is the smallest amount of each that a process has in a quarter of a minute.
func least(t *testing.T, pid int) weight {
	t.Helper()
	out := weight{1 << 40, 1 << 40, 1 << 40}
	for range 30 {
		data, err := os.ReadFile(fmt.Sprintf("/proc/%d/smaps_rollup", pid))
		must(t, err)
		for field, n := range map[string]*int{"\nAnonymous:": &out.anonymous, "\nPss:": &out.pss, "\nRss:": &out.rss} {
			_, text, _ := strings.Cut(string(data), field)
			now, err := strconv.Atoi(strings.Fields(text)[0])
			must(t, err)
			*n = min(*n, now)
		}
		time.Sleep(500 * time.Millisecond)
	}
	return out
}

// judge tells whether a figure is what it should be at least, or at most.
func judge(t *testing.T, what string, have, want float64, atLeast bool) {
	t.Helper()
	word, met := "at most", have <= want
	if atLeast {
		word, met = "at least", have >= want
	}
	verdict := "met"
	if !met {
		verdict = "NOT MET"
	}
	t.Logf("target %-52s %8.3f, want %s %.3f: %s", what, have, word, want, verdict)
}

// load asks over each connection, one question at a time.
func load(conns []net.Conn, ask func(*rand.Rand) string, d time.Duration) ([]time.Duration, time.Duration, error) {
	var mu sync.Mutex
	var all []time.Duration
	var failed error
	var wg sync.WaitGroup
	begin := time.Now()
	for i, conn := range conns {
		wg.Go(func() {
			random := rand.New(rand.NewPCG(uint64(i), uint64(begin.UnixNano())))
			var samples []time.Duration
			b := make([]byte, 1500)
			var err error
			for n := uint16(0); time.Since(begin) < d && err == nil; n++ {
				var data []byte
				if data, err = new(dns.Msg).SetQuestion(ask(random), dns.TypeA).Pack(); err != nil {
					break
				}
				binary.BigEndian.PutUint16(data, n)
				sent := time.Now()
				conn.SetDeadline(sent.Add(2 * time.Second))
				if _, err = conn.Write(data); err != nil {
					break
				}
				var size int
				for size < 12 || binary.BigEndian.Uint16(b) != n {
					if size, err = conn.Read(b); err != nil {
						break
					}
				}
				if os.IsTimeout(err) { // lost on a busy machine: asked again, and not counted
					err = nil
					continue
				}
				samples = append(samples, time.Since(sent))
			}
			mu.Lock()
			defer mu.Unlock()
			all = append(all, samples...)
			if err != nil {
				failed = err
			}
		})
	}
	wg.Wait()
	return all, time.Since(begin), failed
}

// startCoreDNS runs it with the Corefile that clusters usually have.
func startCoreDNS(t *testing.T, path, api string, port int) (pid int) {
	t.Helper()
	file := filepath.Join(t.TempDir(), "Corefile")
	text := strings.NewReplacer(".:53 {", fmt.Sprintf(".:%d {\n    bind %s", port, self), "pods insecure", "pods insecure\n       endpoint "+api, "/etc/resolv.conf", public,
		"health {\n       lameduck 5s\n    }", "", "    ready\n", "", "prometheus :9153", "").Replace(usual)
	must(t, os.WriteFile(file, []byte(text), 0o600))
	cmd := exec.Command(path, "-conf", file)
	must(t, cmd.Start())
	t.Cleanup(func() { cmd.Process.Kill(); cmd.Wait() })
	await(t, "CoreDNS to answer", func() bool {
		m, err := dns.Exchange(new(dns.Msg).SetQuestion("web-0.default.svc.cluster.local.", dns.TypeA), netip.AddrPortFrom(self, uint16(port)).String())
		return err == nil && len(m.Answer) == 1
	})
	return cmd.Process.Pid
}
