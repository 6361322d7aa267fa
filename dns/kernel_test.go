package dns

import (
	"context"
	"errors"
	"fmt"
	"math/rand/v2"
	"net"
	"net/netip"
	"os"
	"path/filepath"
	"runtime"
	"slices"
	"strings"
	"testing"
	"time"

	"github.com/miekg/dns"
	"github.com/vishvananda/netlink"
	"golang.org/x/sys/unix"
	corev1 "k8s.io/api/core/v1"
	"k8s.io/client-go/kubernetes/fake"

	"github.com/strake-io/strake/bpf"
	"github.com/strake-io/strake/mirror"
)

// podDial makes a pod of this node, and sockets of it to the DNS addresses: what they say meets the kernel's answerer first.
func podDial(t *testing.T, d *bpf.Datapath) (dial func(network string, to netip.AddrPort) net.Conn) {
	t.Helper()
	const host = "testpod"
	addrs := []netip.Addr{netip.MustParseAddr("10.244.0.200"), netip.MustParseAddr("fd00:244::200")}
	var ns *os.File
	within := func(f func() error) {
		t.Helper()
		done := make(chan error, 1)
		go func() {
			runtime.LockOSThread() // and never unlocked: the thread ends with the goroutine
			err := error(nil)
			if ns == nil {
				if err = unix.Unshare(unix.CLONE_NEWNET); err == nil {
					ns, err = os.Open("/proc/thread-self/ns/net")
				}
			} else {
				err = unix.Setns(int(ns.Fd()), unix.CLONE_NEWNET)
			}
			if err == nil {
				err = f()
			}
			done <- err
		}()
		must(t, <-done)
	}
	within(func() error { return nil })
	t.Cleanup(func() { ns.Close() })
	must(t, netlink.LinkAdd(&netlink.Veth{LinkAttrs: netlink.LinkAttrs{Name: host}, PeerName: "eth0", PeerNamespace: netlink.NsFd(int(ns.Fd()))}))
	l, err := netlink.LinkByName(host)
	must(t, err)
	t.Cleanup(func() { must(t, netlink.LinkDel(l)) })
	must(t, netlink.LinkSetUp(l))
	hostMAC := l.Attrs().HardwareAddr
	var podMAC net.HardwareAddr
	within(func() error {
		eth, err := netlink.LinkByName("eth0")
		if err != nil {
			return err
		}
		podMAC = eth.Attrs().HardwareAddr
		err = netlink.LinkSetUp(eth)
		for i, to := range []netip.Addr{self, self6} { // in which each side knows the other, as CNI leaves them
			err = errors.Join(err, netlink.AddrAdd(eth, &netlink.Addr{IPNet: whole(addrs[i]), Flags: unix.IFA_F_NODAD}),
				netlink.RouteAdd(&netlink.Route{LinkIndex: eth.Attrs().Index, Dst: whole(to), Scope: netlink.SCOPE_LINK}), neighbor(eth, to, hostMAC))
		}
		return err
	})
	index := l.Attrs().Index
	var rows []bpf.Endpoint
	for _, a := range addrs {
		must(t, netlink.RouteAdd(&netlink.Route{LinkIndex: index, Dst: whole(a), Scope: netlink.SCOPE_LINK}))
		must(t, neighbor(l, a, podMAC))
		rows = append(rows, bpf.Endpoint{Owner: "pod", Addr: a, Ifindex: index, PodMAC: podMAC, HostMAC: hostMAC})
	}
	// The kernel notices in its own time that a link has two ends up, and loses what is sent before.
	must(t, awaitUp(host))
	within(func() error { return awaitUp("eth0") })
	_, err = d.Endpoints().Replace("pod", rows)
	must(t, err)
	must(t, d.AttachPod(index))
	return func(network string, to netip.AddrPort) (c net.Conn) {
		t.Helper()
		within(func() (err error) { c, err = net.DialTimeout(network, to.String(), 10*time.Second); return err })
		t.Cleanup(func() { c.Close() })
		c.SetDeadline(time.Now().Add(3 * time.Minute))
		return c
	}
}

func awaitUp(name string) error {
	for deadline := time.Now().Add(30 * time.Second); ; time.Sleep(time.Millisecond) {
		l, err := netlink.LinkByName(name)
		if err != nil || l.Attrs().OperState == netlink.OperUp {
			return err
		}
		if time.Now().After(deadline) {
			return fmt.Errorf("link %s is %s", name, l.Attrs().OperState)
		}
	}
}

func neighbor(l netlink.Link, a netip.Addr, mac net.HardwareAddr) error {
	family := netlink.FAMILY_V4
	if a.Is6() {
		family = netlink.FAMILY_V6
	}
	return netlink.NeighSet(&netlink.Neigh{LinkIndex: l.Attrs().Index, Family: family, State: netlink.NUD_PERMANENT, IP: a.AsSlice(), HardwareAddr: mac})
}

func openDatapath(t *testing.T) *bpf.Datapath {
	t.Helper()
	d, err := bpf.Open(datapathConfig(t))
	must(t, err)
	t.Cleanup(func() { must(t, d.Close()) })
	return d
}

// datapathConfig has a bpffs and a cgroup that go with the test.
func datapathConfig(t *testing.T) bpf.Config {
	t.Helper()
	pins := filepath.Join(t.TempDir(), "bpf")
	must(t, bpf.MountBPFFS(pins))
	t.Cleanup(func() { must(t, bpf.Remove(pins)); must(t, bpf.UnmountBPFFS(pins)) })
	root := "/sys/fs/cgroup/unified" // hybrid
	if _, err := os.Stat(root); err != nil {
		root = "/sys/fs/cgroup"
	}
	group, err := os.MkdirTemp(root, "strake-test-dns-")
	must(t, err)
	t.Cleanup(func() { must(t, os.Remove(group)) })
	return bpf.Config{PinDir: pins, CgroupRoot: root, NodeCgroup: group, DNSAddrs: []netip.Addr{self, self6}, Zone: "cluster.local", DNSTTL: 30}
}

// podAndServer is a pod on a node whose kernel holds the names of the tests' cluster, and the server behind it.
func podAndServer(t *testing.T) (dial func(network string, to netip.AddrPort) net.Conn, s *Server, d *bpf.Datapath) {
	t.Helper()
	newUpstream(t, public, func(network string, q *dns.Msg) *dns.Msg {
		m := internet(network, q)
		for _, rr := range append(m.Answer, m.Ns...) {
			rr.Header().Ttl = 0 // not to be remembered: between two questions it would count down
		}
		return m
	})
	longest := strings.Repeat("a", 63)
	records := newRecords(t, append(objects(), service(longest, []string{"10.96.0.9"}, func(s *corev1.Service) { s.Namespace, s.UID = longest, "longest" }))...)
	s = newServer(t, records, resolvConf(t, public), at, at6)
	run(t, s)
	d = openDatapath(t)
	fillKernel(t, d, records)
	must(t, d.SetNamesState(bpf.NamesState{Whole: true, Pods: true}))
	return podDial(t, d), s, d
}

// fillKernel writes all that there is to be told of a cluster.
func fillKernel(t *testing.T, d *bpf.Datapath, records *Records) {
	t.Helper()
	owners := 0
	for svc := range records.services.All() {
		rows := Desired(svc, endpointSlices(svc, records.slices), "cluster.local")
		_, err := d.Names().Replace(string(svc.UID), rows)
		must(t, err)
		owners += len(rows)
	}
	if owners < 6 {
		t.Fatalf("only %d names are the kernel's", owners)
	}
	k := newKernelRecords(records, d.Records(), "cluster.local")
	must(t, k.prune())
	for svc := range records.services.All() {
		k.queueService(svc)
	}
	for k.queue.Len() > 0 {
		o, _ := k.queue.Get()
		must(t, k.sync(o))
		k.queue.Done(o)
	}
	for ns := range records.namespaces.All() {
		_, err := d.Names().Replace("ns-"+ns.Name, DesiredNamespace(ns, "cluster.local"))
		must(t, err)
	}
}

// A pod sees no difference between what the kernel answers and what the server does: the same message, for every name of
// the tests, every type, with and without EDNS0, however it is spelled. And the kernel does answer.
func TestKernelAnswersAsTheServerDoes(t *testing.T) {
	dial, s, d := podAndServer(t)
	conns := []*dns.Conn{{Conn: dial("udp", at), UDPSize: 4096}, {Conn: dial("udp", at6), UDPSize: 4096}}
	asked := 0
	for question := range recordCases {
		name, own, _ := strings.Cut(question, " ")
		types := []string{"A", "AAAA", "SRV", "TXT", "ANY", "NS", "SOA", "CNAME", "PTR", "HTTPS", "AXFR", "IXFR"}
		if strings.HasPrefix(name, "circle") {
			types = []string{own}
		}
		for i, qtype := range types {
			q := new(dns.Msg).SetQuestion(name, dns.StringToType[qtype])
			if asked++; (asked+i)%2 == 0 {
				q.SetEdns0(1232, asked%3 == 0)
			}
			q.RecursionDesired = asked%5 != 0
			if asked%7 == 0 {
				q.Question[0].Name = strings.ToUpper(name)
			}
			want := s.Answer(context.Background(), q)
			want.Truncate(4096)
			for _, conn := range conns {
				got := askOver(t, conn, q)
				if !sameMessage(got, want) {
					t.Errorf("%s\n%s got\n%s\nthe server says\n%s", &q.Question[0], conn.LocalAddr(), got, want)
				}
			}
		}
	}
	status, err := d.Status()
	must(t, err)
	for _, counter := range []string{"dns_answered", "dns_no_data", "dns_no_name", "dns_passed"} {
		if status.Counters[counter] == 0 {
			t.Errorf("%s is 0 after %d queries", counter, asked)
		}
	}
}

// The kernel answers questions of both families over both.
func TestKernelAnswersBothFamilies(t *testing.T) {
	dial, _, d := podAndServer(t)
	answered := func() uint64 { return kernelCount(t, d, "dns_answered") }
	for _, to := range []netip.AddrPort{at, at6} {
		conn := &dns.Conn{Conn: dial("udp", to), UDPSize: 4096}
		for _, question := range []string{"web A", "dual A", "dual AAAA", "six AAAA", "two A", "two AAAA", "bare AAAA"} {
			before := answered()
			name, qtype, _ := strings.Cut(question, " ")
			m := askOver(t, conn, new(dns.Msg).SetQuestion(name+".default.svc.cluster.local.", dns.StringToType[qtype]))
			if len(m.Answer) == 0 || answered() == before {
				t.Errorf("%s over %s: %v, answered by the server", question, to, m)
			}
		}
	}
}

// What search lists make never leaves the kernel, whichever of its three zones it is of; without all names there it does, and without any
// answers at all.
func TestKernelDeniesWhatIsNowhere(t *testing.T) {
	dial, s, d := podAndServer(t)
	conn := &dns.Conn{Conn: dial("udp", at), UDPSize: 4096}
	counted := func() [2]uint64 {
		c, err := d.Counters()
		must(t, err)
		return [2]uint64{c["dns_no_name"] + c["dns_no_data"], c["dns_passed"]}
	}
	ask := func(name string, qtype uint16) (kernel bool) {
		t.Helper()
		before := counted()
		q := new(dns.Msg).SetQuestion(name, qtype)
		got := askOver(t, conn, q)
		if want := s.Answer(context.Background(), q); !sameMessage(got, want) {
			t.Errorf("%s\n%s\nthe server says\n%s", &q.Question[0], got, want)
		}
		after := counted()
		return after[0] > before[0] && after[1] == before[1]
	}
	missing := []string{"example.com.default.svc.cluster.local.", "example.com.svc.cluster.local.", "example.com.cluster.local.", "www.example.com.default.svc.cluster.local.", "a.www.example.com.default.svc.cluster.local.",
		"www.example.com.svc.cluster.local.", "web.other.default.svc.cluster.local.", "nothing.default.svc.cluster.local.", "web.nowhere.svc.cluster.local.", "nowhere.svc.cluster.local.", "default.svc.cluster.local.",
		"_http._tcp.nothing.default.svc.cluster.local.", "empty.default.svc.cluster.local.", "x.empty.default.svc.cluster.local.", "WWW.Example.com.DEFAULT.svc.cluster.local."}
	for _, name := range missing {
		for _, qtype := range []uint16{dns.TypeA, dns.TypeAAAA, dns.TypeHTTPS, dns.TypeSRV} {
			if !ask(name, qtype) && !(name == "default.svc.cluster.local." && qtype == dns.TypeSRV) {
				t.Errorf("%s %s came to user space", name, dns.TypeToString[qtype])
			}
		}
	}
	for _, name := range []string{"nobody.web.default.svc.cluster.local.", "_none._tcp.web.default.svc.cluster.local.", "x.default.pod.cluster.local."} {
		if ask(name, dns.TypeA) {
			t.Errorf("%s was answered by the kernel, which can't know", name)
		}
	}
	for _, name := range []string{"web.default.svc.cluster.local.", "web-1.web.default.svc.cluster.local.", "db-0.db.default.svc.cluster.local."} {
		if !ask(name, dns.TypeHTTPS) {
			t.Errorf("a type that %s has not came to user space", name)
		}
	}
	must(t, d.SetNamesState(bpf.NamesState{}))
	for _, name := range missing[:2] {
		if ask(name, dns.TypeA) {
			t.Errorf("%s was denied without all names", name)
		}
	}
	must(t, d.SetNamesState(bpf.NamesState{Whole: true, Off: true}))
	for _, name := range append(missing[:3], "web.default.svc.cluster.local.") {
		if ask(name, dns.TypeAAAA) {
			t.Errorf("%s was answered, and the kernel is not to answer", name)
		}
	}
	must(t, d.SetNamesState(bpf.NamesState{Whole: true, TTL: 7}))
	for qname, section := range map[string]func(*dns.Msg) []dns.RR{"web": func(m *dns.Msg) []dns.RR { return m.Answer }, "nothing": func(m *dns.Msg) []dns.RR { return m.Ns }} {
		if rrs := section(askOver(t, conn, new(dns.Msg).SetQuestion(qname+".default.svc.cluster.local.", dns.TypeA))); len(rrs) != 1 || rrs[0].Header().Ttl != 7 {
			t.Errorf("%s lives %v", qname, rrs)
		}
	}
}

// The same for names of chance, made of the words that mean something, as deep and as long as names get.
func TestKernelAnswersNamesOfChanceAsTheServerDoes(t *testing.T) {
	dial, s, d := podAndServer(t)
	conns := []*dns.Conn{{Conn: dial("udp", at), UDPSize: 4096}, {Conn: dial("udp", at6), UDPSize: 4096}}
	words := []string{"web", "dual", "six", "db", "db-0", "10-244-0-3", "10-244-0-2", "two", "FD00-244--13", "many", "10-244-1-7", "all", "default", "svc", "pod", "dns", "ns", "dns-version", "cluster", "local", "_http", "_tcp", "_", "10-1-0-1", "Xdnsversion",
		"abcdefghijk", "a", `\000`, `\255\.`, "*", strings.Repeat("x", 63), "SVC", "Cluster"}
	types := []uint16{dns.TypeA, dns.TypeAAAA, dns.TypeSRV, dns.TypePTR, dns.TypeCNAME, dns.TypeSOA, dns.TypeTXT, dns.TypeANY, 65280}
	rows := bpf.NameRows{State: bpf.NamesState{Whole: true, Pods: true}}
	var err error
	rows.Names, err = d.Names().Dump()
	must(t, err)
	rows.Records, err = d.Records().Dump()
	must(t, err)
	kernel := NewKernelNames("cluster.local", rows)
	passed := func() uint64 { return kernelCount(t, d, "dns_passed") }
	random := rand.New(rand.NewPCG(1, 2))
	for i := range 3000 {
		conn := conns[i%2]
		var labels []string
		for range random.IntN(8) * (1 + random.IntN(3)) {
			labels = append(labels, words[random.IntN(len(words))])
		}
		labels = append(labels, [][]string{{"cluster", "local"}, {"svc", "cluster", "local"}, {"default", "svc", "cluster", "LOCAL"}, {"web", "default", "svc", "Cluster", "local"}, {"db", "default", "svc", "Cluster", "local"}, nil}[random.IntN(6)]...)
		if len(rows.Records) > 0 && i%4 == 3 { // or what the kernel has an answer to, or almost
			m := new(dns.Msg)
			must(t, m.Unpack(rows.Records[random.IntN(len(rows.Records))].Message))
			labels = dns.SplitDomainName(m.Question[0].Name)[min(1, random.IntN(5)/4):]
		} else if i%4 == 1 {
			labels = dns.SplitDomainName(rows.Names[random.IntN(len(rows.Names))].Name)
		}
		name := dns.Fqdn(strings.Join(labels, "."))
		q := new(dns.Msg).SetQuestion(name, types[random.IntN(len(types))])
		if random.IntN(2) == 0 {
			q.SetEdns0(uint16(random.IntN(5000)), random.IntN(2) == 0)
		}
		if data, err := q.Pack(); err != nil || new(dns.Msg).Unpack(data) != nil {
			continue // too long
		}
		look := i%8 < 2 // to read the counters takes its time
		before := uint64(0)
		if look {
			before = passed()
		}
		got := askOver(t, conn, q)
		if look {
			size := uint16(0)
			if o := q.IsEdns0(); o != nil {
				size = o.UDPSize()
			}
			byKernel, why := kernel.Explain(name, q.Question[0].Qtype, size)
			if after := passed(); byKernel != (after == before) {
				t.Errorf("%s: %q, but %d came to user space", &q.Question[0], why, after-before)
			}
		}
		want := s.Answer(context.Background(), q)
		want.Truncate(4096)
		if !got.Truncated && !sameMessage(got, want) {
			t.Errorf("%s\nthe pod got\n%s\nthe server says\n%s", &q.Question[0], got, want)
		}
	}
	status, err := d.Status()
	must(t, err)
	if c := status.Counters; c["dns_answered"] < 10 || c["dns_no_name"] < 100 || c["dns_passed"] < 100 {
		t.Errorf("counters %v", c)
	}
}

// askOver asks again when a datagram is lost, as clients do: on a machine where others flood a CPU's backlog some are.
func askOver(t *testing.T, conn *dns.Conn, q *dns.Msg) *dns.Msg {
	t.Helper()
	for range 6 {
		must(t, conn.SetDeadline(time.Now().Add(10*time.Second)))
		must(t, conn.WriteMsg(q))
		for {
			m, err := conn.ReadMsg()
			if err != nil {
				t.Logf("%s: %v", &q.Question[0], err)
				break
			}
			if m.Id == q.Id && len(m.Question) == 1 && m.Question[0] == q.Question[0] {
				return m
			}
		}
	}
	t.Fatalf("%s has no answer", &q.Question[0])
	return nil
}

// sameMessage compares all but the order of records, what EDNS0 leaves to each side, and the spelling of names outside of the
// question: the kernel writes the zone as the question does.
func sameMessage(a, b *dns.Msg) bool {
	header := func(m *dns.Msg) string {
		h, edns := m.MsgHdr, "none"
		h.Id = 0
		if o := m.IsEdns0(); o != nil {
			edns = fmt.Sprint(o.UDPSize(), o.Version())
		}
		return fmt.Sprint(h, m.Question, edns)
	}
	return a.Id == b.Id && header(a) == header(b) && strings.EqualFold(show(a), show(b))
}

// What a resolver does for a long answer: UDP says that it is cut, TCP has all of it. The kernel leaves both to the server.
func TestPodTakesTCPForWhatIsCut(t *testing.T) {
	dial, _, _ := podAndServer(t)
	for name, want := range map[string]int{"many": 60, "huge": 2000} {
		q := new(dns.Msg).SetQuestion(name+".default.svc.cluster.local.", dns.TypeA)
		for network, cut := range map[string]bool{"udp": true, "tcp": false} {
			conn := &dns.Conn{Conn: dial(network, []netip.AddrPort{at, at6}[len(name)%2])}
			must(t, conn.WriteMsg(q))
			m, err := conn.ReadMsg()
			if err != nil || m.Truncated != cut || !cut && len(m.Answer) != want {
				t.Errorf("%s over %s: %v, %v", name, network, m, err)
			}
		}
	}
}

// Before the feeder has seen the cluster the kernel holds no name, and denies only what no cluster can have.
func TestKernelBeforeTheClusterWasSeen(t *testing.T) {
	d := openDatapath(t)
	conn := &dns.Conn{Conn: podDial(t, d)("udp", at), UDPSize: 4096}
	unseen := NewRecords(mirror.New(fake.NewClientset(), ""), self, self6) // a server that knows nothing either, but its name
	run(t, newServer(t, unseen, "/nowhere", at))
	for question := range recordCases {
		name, _, _ := strings.Cut(question, " ")
		m := askOver(t, conn, new(dns.Msg).SetQuestion(name, dns.TypeA))
		if m.Rcode == dns.RcodeServerFailure {
			continue
		}
		labels := dns.SplitDomainName(strings.ToLower(name))
		if n := len(labels); m.Rcode != dns.RcodeNameError || n < 3 || n < 8 && slices.Contains([]string{"svc", "pod", "dns", "dns-version"}, labels[n-3]) {
			t.Errorf("%s: %s", name, show(m))
		}
	}
}
