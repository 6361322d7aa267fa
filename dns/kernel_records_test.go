package dns

import (
	"context"
	"fmt"
	"math/rand/v2"
	"slices"
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/miekg/dns"
	corev1 "k8s.io/api/core/v1"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/apimachinery/pkg/types"
	"k8s.io/client-go/kubernetes/fake"

	"github.com/strake-io/strake/bpf"
	"github.com/strake-io/strake/mirror"
)

// What is more than a few addresses the kernel answers, too, as the server does: if the client takes it.
func TestKernelAnswersRecords(t *testing.T) {
	dial, s, d := podAndServer(t)
	for _, to := range []*dns.Conn{{Conn: dial("udp", at), UDPSize: 4096}, {Conn: dial("udp", at6), UDPSize: 4096}} {
		for question, byKernel := range map[string][3]bool{ // without EDNS0; with 512; with 4096
			"_http._tcp.web.default.svc.cluster.local. SRV":     {true, true, true},
			"_DNS._udp.Web.default.svc.cluster.local. SRV":      {true, true, true},
			"_https._tcp.dual.default.svc.cluster.local. SRV":   {true, true, true},
			"_none._tcp.web.default.svc.cluster.local. SRV":     {},
			"web.default.svc.cluster.local. SRV":                {true, true, true},
			"plain.default.svc.cluster.local. SRV":              {true, true, true}, // of a port without a name
			"six.default.svc.cluster.local. SRV":                {true, true, true},
			"all.default.svc.cluster.local. SRV":                {true, true, true}, // there are no ports
			"empty.default.svc.cluster.local. SRV":              {true, true, true}, // it says that it does not exist
			"many.default.svc.cluster.local. SRV":               {true, true, true},
			"extaddr.default.svc.cluster.local. SRV":            {},
			"db.default.svc.cluster.local. SRV":                 {true, true, true},
			"_pg._tcp.db.default.svc.cluster.local. SRV":        {true, true, true},
			"_pg._tcp.two.default.svc.cluster.local. SRV":       {true, true, true},
			"5.0.96.10.in-addr.arpa. PTR":                       {true, true, true},
			"2.0.244.10.in-addr.arpa. PTR":                      {true, true, true},
			"7.0.244.10.in-addr.arpa. PTR":                      {}, // of a Service with an address of its own
			"5.0.96.10.in-addr.arpa. A":                         {},
			dns6(t, "fd00:96::6") + " PTR":                      {true, true, true},
			strings.ToUpper(dns6(t, "fd00:244::13")) + " PTR":   {true, true, true},
			"extin.default.svc.cluster.local. A":                {true, true, true},
			"exttwice.default.svc.cluster.local. A":             {true, true, true},
			"exttwice.default.svc.cluster.local. CNAME":         {true, true, true},
			"extgone.default.svc.cluster.local. CNAME":          {true, true, true},
			"circle.default.svc.cluster.local. A":               {},
			"many.default.svc.cluster.local. A":                 {false, false, true},
			"huge.default.svc.cluster.local. A":                 {},
			"db-0.db.default.svc.cluster.local. A":              {true, true, true},
			"10-244-0-3.db.default.svc.cluster.local. A":        {true, true, true},
			"10-244-0-3.DB.default.svc.cluster.local. AAAA":     {true, true, true},
			"10-244-0-3.db.default.svc.cluster.local. TXT":      {true, true, true},
			"10-244-0-2.db.default.svc.cluster.local. A":        {}, // it has a hostname
			"10-244-0-4.db.default.svc.cluster.local. A":        {}, // is not ready
			"10-244-1-59.many.default.svc.cluster.local. A":     {true, true, true},
			"10-244-0-7.web.default.svc.cluster.local. A":       {}, // of a Service with an address of its own
			"FD00-244--13.two.default.svc.cluster.local. AAAA":  {true, true, true},
			"fd00-244-0--13.two.default.svc.cluster.local. A":   {}, // the same address in another spelling is no name
			"fd00-244--.ends.default.svc.cluster.local. AAAA":   {true, true, true},
			"_http._tcp.nothing.default.svc.cluster.local. SRV": {true, true, true}, // it says that it does not exist
		} {
			name, qtype, _ := strings.Cut(question, " ")
			for i, size := range []uint16{0, 512, 4096} {
				q := new(dns.Msg).SetQuestion(name, dns.StringToType[qtype])
				if size > 0 {
					q.SetEdns0(size, true)
				}
				before := kernelCount(t, d, "dns_passed")
				got := askOver(t, to, q)
				if passed := kernelCount(t, d, "dns_passed") > before; passed == byKernel[i] {
					t.Errorf("%s with %d over %s: by user space: %v", question, size, to.LocalAddr(), passed)
				}
				want := s.Answer(context.Background(), q)
				want.Truncate(int(max(512, size)))
				if !got.Truncated && !sameMessage(got, want) || got.Truncated != want.Truncated {
					t.Errorf("%s with %d over %s:\n%s\nthe server says\n%s", question, size, to.LocalAddr(), got, want)
				}
			}
		}
	}
}

// Names of pods are addresses, as the server reads them, of a namespace that there is.
func TestKernelAnswersNamesOfPods(t *testing.T) {
	dial, s, d := podAndServer(t)
	conns := []*dns.Conn{{Conn: dial("udp", at), UDPSize: 4096}, {Conn: dial("udp", at6), UDPSize: 4096}}
	labels := []string{"10-1-0-1", "255-255-255-255", "256-1-1-1", "01-1-1-1", "1-2-3", "1-2-3-4-5", "0-0-0-0", "00-0-0-0", "1--2", "--1", "--", "1--", "-1", "1-", "---", "1---2", "fd00-10-244--7", "FD00--A",
		"1-2-3-4-5-6-7-8", "1-2-3-4-5-6-7--", "1-2-3-4-5-6-7-8--", "1--3-4-5-6-7-8", "1--2--3", "12345--", "g--", "--ffff-102-304", "0001-0002-0003-0004-0005-0006-0007-0008", "a", "-", "1-1-1-a", "1000-1-1-1"}
	random := rand.New(rand.NewPCG(7, 8))
	for range 400 {
		label := ""
		for range 1 + random.IntN(12) {
			label += []string{"-", "-", "0", "1", "25", "a", "F", "10", "ffff"}[random.IntN(9)]
		}
		labels = append(labels, label[:min(len(label), 45)])
	}
	kernel := NewKernelNames("cluster.local", bpf.NameRows{Names: []bpf.Name{{Name: "default.svc.cluster.local."}}, State: bpf.NamesState{Whole: true, Pods: true}})
	told := 0
	for i, label := range labels {
		for _, namespace := range []string{"default", "nowhere"} {
			q := new(dns.Msg).SetQuestion(label+"."+namespace+".pod.Cluster.local.", []uint16{dns.TypeA, dns.TypeAAAA, dns.TypeTXT}[i%3])
			if i < 50 {
				q.Question[0].Qtype = []uint16{dns.TypeA, dns.TypeAAAA}[i%2]
			}
			before := kernelCount(t, d, "dns_passed")
			got := askOver(t, conns[i%2], q)
			byKernel := kernelCount(t, d, "dns_passed") == before
			if explained, why := kernel.Explain(q.Question[0].Name, q.Question[0].Qtype, 0); explained != byKernel {
				t.Errorf("%s: by the kernel: %v, and not %q", &q.Question[0], byKernel, why)
			}
			if _, ok := dashed(strings.ToLower(label)); byKernel != (ok || namespace == "nowhere") {
				t.Errorf("%s: by the kernel: %v", &q.Question[0], byKernel)
			} else if byKernel && ok {
				told++
			}
			if want := s.Answer(context.Background(), q); !sameMessage(got, want) {
				t.Errorf("%s\n%s\nthe server says\n%s", &q.Question[0], got, want)
			}
		}
	}
	if told < 30 {
		t.Errorf("the kernel told %d addresses", told)
	}
}

// dns6 is the name of an address.
func dns6(t *testing.T, addr string) string {
	t.Helper()
	name, err := dns.ReverseAddr(addr)
	must(t, err)
	return name
}

// Each of many addresses comes first at times, and none is lost.
func TestKernelTurnsLongLists(t *testing.T) {
	dial, _, d := podAndServer(t)
	first := map[string]bool{}
	for _, to := range []*dns.Conn{{Conn: dial("udp", at), UDPSize: 4096}, {Conn: dial("udp", at6), UDPSize: 4096}} {
		before := kernelCount(t, d, "dns_passed")
		for range 300 {
			m := askOver(t, to, new(dns.Msg).SetQuestion("many.default.svc.cluster.local.", dns.TypeA).SetEdns0(1232, false))
			seen := map[string]bool{}
			for _, rr := range m.Answer {
				seen[rr.(*dns.A).A.String()] = true
			}
			if len(m.Answer) != 60 || len(seen) != 60 {
				t.Fatal(m)
			}
			first[m.Answer[0].(*dns.A).A.String()] = true
		}
		if kernelCount(t, d, "dns_passed") != before {
			t.Error("the resolver was asked")
		}
	}
	if len(first) < 50 {
		t.Errorf("of 60 addresses %d came first in 600 answers", len(first))
	}
}

// fakeRecords are rows by owner.
type fakeRecords struct {
	mu      sync.Mutex
	rows    map[string][]bpf.Record
	changed chan struct{}
}

func (f *fakeRecords) Replace(owner string, want []bpf.Record) (bpf.Changes, error) {
	f.mu.Lock()
	defer f.mu.Unlock()
	if slices.EqualFunc(f.rows[owner], want, func(a, b bpf.Record) bool { return string(a.Message) == string(b.Message) }) {
		return bpf.Changes{}, nil
	}
	if f.rows[owner] = want; len(want) == 0 {
		delete(f.rows, owner)
	}
	select {
	case f.changed <- struct{}{}:
	default:
	}
	return bpf.Changes{Updated: 1}, nil
}

func (f *fakeRecords) Prune(keep func(string) bool) (bpf.Changes, error) {
	f.mu.Lock()
	defer f.mu.Unlock()
	for owner := range f.rows {
		if !keep(owner) {
			delete(f.rows, owner)
		}
	}
	return bpf.Changes{}, nil
}

func (f *fakeRecords) Dump() ([]bpf.Record, error) { return nil, nil }

// show is all that the rows say.
func (f *fakeRecords) show(t *testing.T) string {
	t.Helper()
	f.mu.Lock()
	defer f.mu.Unlock()
	var out []string
	for owner, rows := range f.rows {
		for _, r := range rows {
			m := new(dns.Msg)
			must(t, m.Unpack(r.Message))
			out = append(out, fmt.Sprint(owner, " ", m.Question[0].String(), show(m)))
		}
	}
	slices.Sort(out)
	return strings.Join(out, "\n")
}

// Whatever changes in whatever order, the rows are in the end those of what there is: of Services, of addresses that several share, and
// of aliases of what has changed.
func TestKernelRecordsFollow(t *testing.T) {
	const zone = "cluster.local"
	client, watched := newClient()
	m := mirror.New(client, "")
	stale := appendRecord(nil, "", new(dns.Msg).SetQuestion("gone.", dns.TypeA))
	table := &fakeRecords{rows: map[string][]bpf.Record{"gone": stale, "@192.0.2.1": stale}, changed: make(chan struct{}, 1)}
	k := NewKernelRecords(m, table, zone)
	stop := follow(m)
	for range 3 { // Services, EndpointSlices and namespaces
		<-watched
	}
	ctx, cancel := context.WithCancel(context.Background())
	done := make(chan error, 1)
	go func() { done <- k.Run(ctx) }()
	t.Cleanup(func() { cancel(); must(t, <-done); stop() })
	services, slicesOf := client.CoreV1().Services("default"), client.DiscoveryV1().EndpointSlices("default")
	random := rand.New(rand.NewPCG(5, 6))
	names := []string{"a", "b", "c", "d"}
	exists, uid := map[string]bool{}, 0
	sliceExists := map[string]bool{}
	for step := range 400 {
		name := names[random.IntN(len(names))]
		if random.IntN(2) == 0 {
			svc := service(name, nil, port("http", corev1.ProtocolTCP, int32(1+random.IntN(9))))
			switch random.IntN(4) {
			case 0:
				svc.Spec.ClusterIP, svc.Spec.ClusterIPs = "None", headless
			case 1:
				external(names[random.IntN(len(names))] + ".default.svc." + zone)(svc)
			default:
				svc.Spec.ClusterIP = fmt.Sprint("10.96.0.", slices.Index(names, name)+1)
				svc.Spec.ClusterIPs = []string{svc.Spec.ClusterIP}
			}
			if exists[name] {
				must(t, services.Delete(ctx, name, metav1.DeleteOptions{}))
			}
			if exists[name] = random.IntN(4) > 0; exists[name] {
				uid++
				svc.UID = types.UID(fmt.Sprint("uid", uid))
				_, err := services.Create(ctx, svc, metav1.CreateOptions{})
				must(t, err)
			}
		} else {
			var list []string
			for i := range random.IntN(12) {
				list = append(list, fmt.Sprintf("h%d=10.244.0.%d", i, random.IntN(20)))
			}
			s := endpoints(name, "a", endpointPort("http", corev1.ProtocolTCP, 80), list...)
			var err error
			switch {
			case !sliceExists[name]:
				_, err = slicesOf.Create(ctx, s, metav1.CreateOptions{})
				sliceExists[name] = true
			case random.IntN(4) == 0:
				err = slicesOf.Delete(ctx, s.Name, metav1.DeleteOptions{})
				sliceExists[name] = false
			default:
				_, err = slicesOf.Update(ctx, s, metav1.UpdateOptions{})
			}
			must(t, err)
		}
		if step%40 == 39 {
			awaitRecords(t, ctx, client, table, zone)
		}
	}
	// Another TTL is another answer; the same configuration again is none.
	must(t, k.Configure(Config{Zones: []string{zone}, TTL: 7}))
	deadline := time.Now().Add(30 * time.Second)
	for strings.Contains(table.show(t), " 30 ") || !strings.Contains(table.show(t), " 7 ") {
		if time.Now().After(deadline) {
			t.Fatalf("after another TTL: %s", table.show(t))
		}
		<-table.changed
	}
}

// awaitRecords waits until the rows are what somebody makes of the cluster who sees it for the first time.
func awaitRecords(t *testing.T, ctx context.Context, client *fake.Clientset, table *fakeRecords, zone string) {
	t.Helper()
	deadline := time.Now().Add(30 * time.Second)
	for {
		m := mirror.New(client, "")
		records := NewRecords(m)
		fresh := &fakeRecords{rows: map[string][]bpf.Record{}, changed: make(chan struct{}, 1)}
		k := newKernelRecords(records, fresh, zone)
		stop := follow(m)
		m.Wait(ctx)
		for svc := range records.services.All() {
			k.queueService(svc)
		}
		for s := range records.slices.All() {
			k.queueSlice(s)
		}
		for k.queue.Len() > 0 {
			o, _ := k.queue.Get()
			must(t, k.sync(o))
			k.queue.Done(o)
		}
		stop()
		want, got := fresh.show(t), table.show(t)
		if got == want {
			return
		}
		if time.Now().After(deadline) {
			t.Fatalf("the rows are\n%s\nwant\n%s", got, want)
		}
		select {
		case <-table.changed:
		case <-time.After(100 * time.Millisecond):
		}
	}
}
