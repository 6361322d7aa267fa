package dns

import (
	"context"
	"encoding/json"
	"fmt"
	"math/rand/v2"
	"net/netip"
	"os"
	"os/exec"
	"slices"
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/miekg/dns"
	"golang.org/x/sys/unix"
	corev1 "k8s.io/api/core/v1"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	apiruntime "k8s.io/apimachinery/pkg/runtime"
	"k8s.io/client-go/kubernetes"
	"k8s.io/client-go/rest"

	"github.com/strake-io/strake/bpf"
	"github.com/strake-io/strake/mirror"
	"github.com/strake-io/strake/tests/coredns"
)

func skipBench(t *testing.T) {
	t.Helper()
	if os.Getenv(benchWith) == "" {
		t.Skipf("SKIPPED: %s is not set: `make bench-dns` runs this", benchWith)
	}
}

// TestBenchScale: what a question costs at growing numbers of Services.
func TestBenchScale(t *testing.T) {
	skipBench(t)
	d := openDatapath(t)
	must(t, d.SetNamesState(bpf.NamesState{Whole: true}))
	_, err := d.Names().Replace("ns", DesiredNamespace(&corev1.Namespace{ObjectMeta: metav1.ObjectMeta{Name: "default"}}, "cluster.local"))
	must(t, err)
	dial := podDial(t, d)
	have, first := 0, time.Duration(0)
	for _, services := range []int{10, 1000, 10_000, 50_000, 100_000} { // of the last, many are beyond the table
		for ; have < services; have++ {
			svc := service(fmt.Sprint("web-", have), []string{fmt.Sprintf("10.%d.%d.%d", 97+have/62500, have/250%250, have%250)})
			_, err := d.Names().Replace(string(svc.UID), Desired(svc, nil, "cluster.local"))
			must(t, err)
		}
		took, median := programTime(t, d, dial, func(r *rand.Rand) string { return fmt.Sprintf("web-%d.default.svc.cluster.local.", r.IntN(services)) })
		t.Logf("%6d Services: the programs take %v a question, of a median latency of %v", services, took, median)
		if first == 0 {
			first = median
		} else if services == 50_000 {
			judge(t, "median latency at 50 000 Services against 10", float64(median)/float64(first), 1.25, false)
		}
	}
}

// benchAgent makes this program what of an agent answers names: its value is a benchSpec.
const benchAgent = "STRAKE_BENCH_DNS_AGENT"

type benchSpec struct {
	API string
	BPF bpf.Config
}

// runBenchAgent follows an API until it is killed.
func runBenchAgent(text string) error {
	var spec benchSpec
	if err := json.Unmarshal([]byte(text), &spec); err != nil {
		return err
	}
	d, err := bpf.Open(spec.BPF)
	if err != nil {
		return err
	}
	client, err := kubernetes.NewForConfig(&rest.Config{Host: spec.API, QPS: -1})
	if err != nil {
		return err
	}
	m := mirror.New(client, "")
	n, err := NewNames(m, d.Names(), d, "cluster.local")
	if err != nil {
		return err
	}
	go m.Run(context.Background())
	return n.Run(context.Background())
}

// startBenchAgent starts one with the maps of a test's datapath.
func startBenchAgent(t *testing.T, c bpf.Config, api string) *exec.Cmd {
	t.Helper()
	spec, err := json.Marshal(benchSpec{api, c})
	must(t, err)
	cmd := exec.Command("/proc/self/exe")
	cmd.Env = append(os.Environ(), benchAgent+"="+string(spec))
	cmd.Stderr = os.Stderr
	must(t, cmd.Start())
	t.Cleanup(func() { cmd.Process.Kill(); cmd.Wait() })
	return cmd
}

// TestBenchChanges: from a change at the API server to the first answer with it, in a cluster of 10 000 Services.
func TestBenchChanges(t *testing.T) {
	skipBench(t)
	api, d, c := benchCluster(t, 10_000)
	startBenchAgent(t, c, api.URL)
	conn := &dns.Conn{Conn: podDial(t, d)("udp", at)}
	awaitLast(t, conn, 10_000)
	var took []time.Duration
	for i := range 500 {
		ip := fmt.Sprintf("10.98.%d.%d", i/250, i%250)
		svc := service(fmt.Sprint("web-", i), []string{ip})
		begin := time.Now()
		api.Set(svc)
		for want := netip.MustParseAddr(ip); ; {
			m := askOver(t, conn, new(dns.Msg).SetQuestion(svc.Name+".default.svc.cluster.local.", dns.TypeA))
			if len(m.Answer) == 1 && m.Answer[0].(*dns.A).A.String() == want.String() {
				break
			}
		}
		took = append(took, time.Since(begin))
	}
	slices.Sort(took)
	t.Logf("from a change at the API to its answer: median %v, p99 %v, longest %v", took[len(took)/2], took[len(took)*99/100], took[len(took)-1])
	judge(t, "p99 of a change, ms", float64(took[len(took)*99/100].Microseconds())/1000, 5, false)
}

// TestBenchKilled: at 10 000 questions a second, half of them for names that there are, an agent that is killed and started again loses none.
func TestBenchKilled(t *testing.T) {
	skipBench(t)
	const rate, workers = 10_000, 4
	api, d, c := benchCluster(t, 1000)
	agent := startBenchAgent(t, c, api.URL)
	dial := podDial(t, d)
	awaitLast(t, &dns.Conn{Conn: dial("udp", at)}, 1000)
	stop := make(chan struct{})
	var mu sync.Mutex
	asked, lost, wrong := 0, 0, 0
	var wg sync.WaitGroup
	begin := time.Now()
	for w := range workers {
		conn := dial("udp", at)
		wg.Go(func() {
			random := rand.New(rand.NewPCG(uint64(w), 7))
			mine, gone, bad := 0, 0, 0
			b := make([]byte, 1500)
			for next := begin; ; next = next.Add(time.Second * workers / rate) {
				select {
				case <-stop:
					mu.Lock()
					asked, lost, wrong = asked+mine, lost+gone, wrong+bad
					mu.Unlock()
					return
				case <-time.After(time.Until(next)):
				}
				name, answers := fmt.Sprintf("web-%d.default.svc.cluster.local.", random.IntN(1000)), byte(1)
				if mine%2 == 1 {
					name, answers = "example.com.default.svc.cluster.local.", 0
				}
				q, err := new(dns.Msg).SetQuestion(name, dns.TypeA).Pack()
				if err != nil {
					panic(err)
				}
				mine++
				conn.SetDeadline(time.Now().Add(2 * time.Second))
				if _, err := conn.Write(q); err != nil {
					gone++
				} else if n, err := conn.Read(b); err != nil || n < 12 {
					gone++
				} else if b[0] != q[0] || b[1] != q[1] || b[7] != answers {
					bad++
				}
			}
		})
	}
	for range 5 {
		time.Sleep(time.Second)
		must(t, agent.Process.Signal(unix.SIGKILL))
		agent.Wait()
		time.Sleep(500 * time.Millisecond)
		agent = startBenchAgent(t, c, api.URL)
	}
	time.Sleep(2 * time.Second)
	close(stop)
	wg.Wait()
	t.Logf("%d questions, %.0f a second, while an agent was killed and started five times: %d without an answer, %d wrong", asked, float64(asked)/time.Since(begin).Seconds(), lost, wrong)
	judge(t, "questions a second through kills", float64(asked)/time.Since(begin).Seconds(), 0.9*rate, true)
	judge(t, "questions without a right answer through kills", float64(lost+wrong), 0, false)
}

// benchCluster is an API with Services, and a datapath that knows nothing of them.
func benchCluster(t *testing.T, services int) (*coredns.API, *bpf.Datapath, bpf.Config) {
	t.Helper()
	objs := []apiruntime.Object{&corev1.Namespace{ObjectMeta: metav1.ObjectMeta{Name: "default"}}}
	for i := range services {
		objs = append(objs, service(fmt.Sprint("web-", i), []string{fmt.Sprintf("10.97.%d.%d", i/250, i%250)}, port("http", corev1.ProtocolTCP, 80)))
	}
	api, err := coredns.StartAPI(objs...)
	must(t, err)
	t.Cleanup(func() { must(t, api.Close()) })
	c := datapathConfig(t)
	d, err := bpf.Open(c)
	must(t, err)
	t.Cleanup(func() { must(t, d.Close()) })
	return api, d, c
}

// awaitLast waits until the kernel answers for all Services.
func awaitLast(t *testing.T, conn *dns.Conn, services int) {
	t.Helper()
	await(t, "all names", func() bool {
		for _, n := range []int{0, services / 2, services - 1} {
			must(t, conn.SetDeadline(time.Now().Add(time.Second)))
			must(t, conn.WriteMsg(new(dns.Msg).SetQuestion(fmt.Sprintf("web-%d.default.svc.cluster.local.", n), dns.TypeA)))
			m, err := conn.ReadMsg()
			if err != nil || len(m.Answer) != 1 {
				return false
			}
		}
		return true
	})
	must(t, conn.SetDeadline(time.Now().Add(10*time.Minute)))
}

// TestBenchMix asks, one lookup after the other, what programs in pods make of names by their resolvers (A and AAAA of each name of the search list, until
// there are records): the share of questions that the kernel answers.
func TestBenchMix(t *testing.T) {
	skipBench(t)
	newUpstream(t, public, func(_ string, q *dns.Msg) *dns.Msg {
		m := new(dns.Msg).SetReply(q)
		name := q.Question[0].Name
		switch {
		case !strings.HasSuffix(name, ".example.com.") || strings.Count(name, ".") > 3:
			m.Rcode = dns.RcodeNameError
			m.Ns = rrs("example.com. 300 IN SOA a. b. 1 1 1 1 300")
		case q.Question[0].Qtype == dns.TypeA:
			m.Answer = rrs(name + " 300 IN A 192.0.2.1")
		default:
			m.Ns = rrs("example.com. 300 IN SOA a. b. 1 1 1 1 300")
		}
		return m
	})
	objs := objects()
	for i := range 500 {
		objs = append(objs, service(fmt.Sprint("svc-", i), []string{fmt.Sprintf("10.97.%d.%d", i/250, i%250)}))
	}
	records := newRecords(t, objs...)
	s := newServer(t, records, resolvConf(t, public), at, at6)
	d := openDatapath(t)
	must(t, s.ShareWith(d.Outside()))
	run(t, s)
	for svc := range records.services.All() {
		_, err := d.Names().Replace(string(svc.UID), Desired(svc, endpointSlices(svc, records.slices), "cluster.local"))
		must(t, err)
	}
	for ns := range records.namespaces.All() {
		_, err := d.Names().Replace("ns-"+ns.Name, DesiredNamespace(ns, "cluster.local"))
		must(t, err)
	}
	must(t, d.SetNamesState(bpf.NamesState{Whole: true}))
	conn := &dns.Conn{Conn: podDial(t, d)("udp", at)}
	counters := func() (passed, all uint64) {
		status, err := d.Status()
		must(t, err)
		for name, n := range status.Counters {
			if strings.HasPrefix(name, "dns_") {
				all += n
			}
		}
		return status.Counters["dns_passed"], all
	}
	random := rand.New(rand.NewPCG(1, 2))
	outside := rand.NewZipf(random, 1.2, 1, 199) // a few names outside are what most ask for
	search := []string{"default.svc.cluster.local", "svc.cluster.local", "cluster.local", "corp.example"}
	passed, all := counters()
	denied, asked := 0, 0
	for range 20_000 {
		name := fmt.Sprint("svc-", random.IntN(500))
		switch p := random.IntN(100); {
		case p < 15:
		case p < 25:
			name += ".default"
		case p < 35:
			name += ".default.svc.cluster.local"
		default:
			name = fmt.Sprintf("api-%d.example.com", outside.Uint64())
		}
		for _, suffix := range append(search, "") {
			found := false
			for _, qtype := range []uint16{dns.TypeA, dns.TypeAAAA} {
				m := askOver(t, conn, new(dns.Msg).SetQuestion(dns.Fqdn(strings.Trim(name+"."+suffix, ".")), qtype))
				found = found || len(m.Answer) > 0
				asked++
				if m.Rcode == dns.RcodeNameError {
					denied++
				}
			}
			if found {
				break
			}
		}
	}
	passed2, all2 := counters()
	t.Logf("%d questions, %.1f %% NXDOMAIN; the kernel counted %d, and passed %d on", asked, 100*float64(denied)/float64(asked), all2-all, passed2-passed)
	judge(t, "share answered in the kernel of a mix of resolvers", 1-float64(passed2-passed)/float64(asked), 0.97, true)
}
