package dns

import (
	"bytes"
	"context"
	"encoding/binary"
	"fmt"
	"io"
	"math/rand/v2"
	"net"
	"net/netip"
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/miekg/dns"
	"golang.org/x/sys/unix"
)

var at, at6 = netip.AddrPortFrom(self, 53), netip.AddrPortFrom(self6, 53)

// run serves until the test ends, and returns when the server listens.
func run(t testing.TB, s *Server) {
	t.Helper()
	ctx, cancel := context.WithCancel(context.Background())
	done := make(chan error, 1)
	go func() { done <- s.Run(ctx) }()
	t.Cleanup(func() { cancel(); must(t, <-done) })
	for {
		// UDP listens before TCP does.
		c, err := net.Dial("tcp", s.listen[0].String())
		if err == nil {
			c.Close()
			return
		}
		select {
		case err := <-done:
			done <- nil
			t.Fatalf("the server ended: %v", err)
		case <-time.After(time.Millisecond):
		}
	}
}

func dial(t testing.TB, network string) net.Conn {
	t.Helper()
	c, err := net.Dial(network, at.String())
	must(t, err)
	t.Cleanup(func() { c.Close() })
	c.SetDeadline(time.Now().Add(20 * time.Second))
	return c
}

func startServer(t testing.TB) {
	newUpstream(t, public, internet)
	run(t, newServer(t, newRecords(t, objects()...), resolvConf(t, public), at))
}

func TestSizes(t *testing.T) {
	startServer(t)
	for _, c := range []struct {
		network string
		name    string
		edns    uint16 // 0: none
		answers int    // -1: cut
		most    int    // bytes
	}{
		{"udp", "many", 0, -1, 512}, {"udp", "many", 100, -1, 512}, {"udp", "many", 512, -1, 512}, {"udp", "many", 700, -1, 700}, {"udp", "many", 1232, 60, 1232},
		{"udp", "many", 65535, 60, 65507}, {"tcp", "many", 0, 60, 65535}, {"tcp", "many", 512, 60, 65535},
		{"udp", "huge", 4096, -1, 4096}, {"udp", "huge", 65535, 2000, 65507}, {"tcp", "huge", 0, 2000, 65535},
		{"udp", "web", 0, 1, 512},
	} {
		q := new(dns.Msg).SetQuestion(c.name+".default.svc.cluster.local.", dns.TypeA)
		if c.edns > 0 {
			q.SetEdns0(c.edns, false)
		}
		conn := &dns.Conn{Conn: dial(t, c.network), UDPSize: 65535}
		must(t, conn.WriteMsg(q))
		data, err := conn.ReadMsgHeader(nil)
		if err != nil {
			t.Errorf("%+v: %v", c, err)
			continue
		}
		m := new(dns.Msg)
		if err := m.Unpack(data); err != nil || len(data) > c.most || m.Truncated != (c.answers < 0) || c.answers >= 0 && len(m.Answer) != c.answers || len(m.Answer) == 0 || (m.IsEdns0() != nil) != (c.edns > 0) {
			t.Errorf("%+v: %d bytes, truncated %v, %d answers, %v, %v", c, len(data), m.Truncated, len(m.Answer), m.IsEdns0(), err)
		}
	}
}

// What is no query gets its code, or nothing; in each case the next query on the socket is answered.
func TestMalformed(t *testing.T) {
	startServer(t)
	good := new(dns.Msg).SetQuestion("web.default.svc.cluster.local.", dns.TypeA)
	good.Id = 4242
	pack := func(change func(*dns.Msg)) []byte {
		m := good.Copy()
		m.Id = 1
		change(m)
		data, err := m.Pack()
		must(t, err)
		return data
	}
	header := func(bits, qd, an, ns, ar uint16) []byte {
		var b bytes.Buffer
		binary.Write(&b, binary.BigEndian, []uint16{1, bits, qd, an, ns, ar})
		return b.Bytes()
	}
	question := pack(func(*dns.Msg) {})[12:]
	const silence, anything = -1, -2 // nothing comes back; a code or nothing
	for name, c := range map[string]struct {
		data  []byte
		rcode int
	}{
		"one byte":                     {[]byte{1}, silence},
		"eleven bytes":                 {make([]byte, 11), silence},
		"no question":                  {header(0x100, 0, 0, 0, 0), dns.RcodeFormatError},
		"a question that is missing":   {header(0x100, 1, 0, 0, 0), dns.RcodeFormatError},
		"a question that is cut":       {append(header(0x100, 1, 0, 0, 0), question[:10]...), dns.RcodeFormatError},
		"two questions":                {append(append(header(0x100, 2, 0, 0, 0), question...), question...), dns.RcodeFormatError},
		"65535 questions":              {append(header(0x100, 65535, 0, 0, 0), question...), dns.RcodeFormatError},
		"a name that points to itself": {append(header(0x100, 1, 0, 0, 0), 0xc0, 12, 0, 1, 0, 1), dns.RcodeFormatError},
		"a label of 64":                {append(header(0x100, 1, 0, 0, 0), append([]byte{64}, make([]byte, 70)...)...), dns.RcodeFormatError},
		"a name of 300":                {append(header(0x100, 1, 0, 0, 0), append(bytes.Repeat([]byte{2, 'a', 'a'}, 100), 0, 0, 1, 0, 1)...), dns.RcodeFormatError},
		"records that are missing":     {append(header(0x100, 1, 0, 0, 1), question...), anything},
		"many records":                 {append(header(0x100, 1, 9, 9, 9), question...), dns.RcodeFormatError},
		"an answer":                    {pack(func(m *dns.Msg) { m.Response = true }), silence},
		"a status query":               {pack(func(m *dns.Msg) { m.Opcode = dns.OpcodeStatus }), dns.RcodeNotImplemented},
		"a notification":               {pack(func(m *dns.Msg) { m.Opcode = dns.OpcodeNotify }), dns.RcodeNotImplemented},
		"an update":                    {pack(func(m *dns.Msg) { m.Opcode = dns.OpcodeUpdate }), dns.RcodeNotImplemented},
		"another class":                {pack(func(m *dns.Msg) { m.Question[0].Qclass = dns.ClassCHAOS }), dns.RcodeRefused},
		"a zone transfer": {pack(func(m *dns.Msg) {
			m.Question[0] = dns.Question{Name: "cluster.local.", Qtype: dns.TypeAXFR, Qclass: dns.ClassINET}
		}), dns.RcodeRefused},
		"an unknown type": {pack(func(m *dns.Msg) { m.Question[0].Qtype = 65000 }), dns.RcodeSuccess},
		"two OPT records": {pack(func(m *dns.Msg) { m.SetEdns0(1232, false); m.SetEdns0(1232, false) }), dns.RcodeFormatError},
		"EDNS version 1":  {pack(func(m *dns.Msg) { m.SetEdns0(1232, false); m.IsEdns0().SetVersion(1) }), dns.RcodeBadVers},
		"EDNS with a strange option": {pack(func(m *dns.Msg) {
			m.SetEdns0(1232, false).IsEdns0().Option = []dns.EDNS0{&dns.EDNS0_LOCAL{Code: 65001, Data: make([]byte, 300)}}
		}), dns.RcodeSuccess},
	} {
		for _, network := range []string{"udp", "tcp"} {
			t.Run(network+" "+name, func(t *testing.T) {
				conn := &dns.Conn{Conn: dial(t, network), UDPSize: 4096}
				_, err := conn.Write(c.data)
				must(t, err)
				must(t, conn.WriteMsg(good))
				var got []*dns.Msg
				for {
					m, err := conn.ReadMsg()
					if err != nil {
						t.Fatalf("after %v: %v", got, err)
					}
					if got = append(got, m); m.Id == good.Id {
						break
					}
				}
				if c.rcode >= 0 && len(got) == 1 { // answered in another order
					m, err := conn.ReadMsg()
					must(t, err)
					got = append([]*dns.Msg{m}, got...)
				}
				switch c.rcode {
				case anything:
				case silence:
					if len(got) != 1 {
						t.Errorf("it was answered: %s", got[0])
					}
				default:
					if len(got) != 2 || got[0].Rcode != c.rcode || got[0].Id != 1 || !got[0].Response {
						t.Errorf("want %s: %v", dns.RcodeToString[c.rcode], got)
					}
				}
			})
		}
	}
}

// Rubbish of chance, over both: the server lives.
func TestRubbish(t *testing.T) {
	startServer(t)
	random := rand.New(rand.NewPCG(1, 2))
	q := new(dns.Msg).SetQuestion("_http._tcp.web.default.svc.cluster.local.", dns.TypeSRV)
	q.SetEdns0(1232, true)
	seed, err := q.Pack()
	must(t, err)
	u := dial(t, "udp")
	for i := range 5000 {
		data := bytes.Clone(seed)
		for range 1 + random.IntN(6) {
			data[random.IntN(len(data))] = byte(random.IntN(256))
		}
		data = data[:random.IntN(len(data)+1)]
		u.Write(data)
		if i%100 == 0 {
			c := dial(t, "tcp")
			binary.Write(c, binary.BigEndian, uint16(random.IntN(200)))
			c.Write(data)
			c.Close()
		}
	}
	must(t, (&dns.Conn{Conn: dial(t, "tcp")}).WriteMsg(q))
	var m *dns.Msg
	for range 5 { // a query may find the socket's buffer full of rubbish: then it is lost, and a client asks again
		if m, _, err = new(dns.Client).Exchange(q, at.String()); err == nil {
			break
		}
	}
	if err != nil || m.Rcode != dns.RcodeSuccess || len(m.Answer) != 1 {
		t.Errorf("%v, %v", m, err)
	}
}

// Many clients at once, each with answers of its own, as processes of the node on lo.
func TestManyClients(t *testing.T) {
	startServer(t)
	names := map[string]string{
		"web.default.svc.cluster.local.": "10.96.0.5", "plain.default.svc.cluster.local.": "10.96.0.7", "old.default.svc.cluster.local.": "10.96.0.8",
		"web-1.web.default.svc.cluster.local.": "10.244.0.8", "example.com.": "192.0.2.80", "10-1-2-3.default.pod.cluster.local.": "10.1.2.3",
	}
	var wg sync.WaitGroup
	for i := range 40 {
		wg.Go(func() {
			network := []string{"udp", "tcp"}[i%2]
			raw, err := net.Dial(network, at.String())
			if err != nil {
				t.Error(err)
				return
			}
			defer raw.Close()
			raw.SetDeadline(time.Now().Add(20 * time.Second))
			c := &dns.Conn{Conn: raw}
			for round := range 10 {
				for name, want := range names {
					q := new(dns.Msg).SetQuestion(name, dns.TypeA)
					if err := c.WriteMsg(q); err != nil {
						t.Error(err)
						return
					}
					m, err := c.ReadMsg()
					if err != nil || m.Id != q.Id || address(m) != want {
						t.Errorf("client %d, round %d, %s: %v, %v", i, round, name, m, err)
						return
					}
				}
			}
		})
	}
	wg.Wait()
}

// Queries that come all at once wait; none is lost.
func TestBurst(t *testing.T) {
	startServer(t)
	const queries = 3000
	c := dial(t, "udp")
	raw, err := c.(*net.UDPConn).SyscallConn()
	must(t, err)
	must(t, raw.Control(func(fd uintptr) { err = unix.SetsockoptInt(int(fd), unix.SOL_SOCKET, unix.SO_RCVBUFFORCE, 2*burst) }))
	must(t, err)
	// Headless with 60 addresses: to answer takes longer than to ask.
	q := new(dns.Msg).SetQuestion("many.default.svc.cluster.local.", dns.TypeA)
	for i := range queries {
		q.Id = uint16(i)
		data, err := q.Pack()
		must(t, err)
		_, err = c.Write(data)
		must(t, err)
	}
	answered := map[uint16]bool{}
	b := make([]byte, 2000)
	for len(answered) < queries {
		if _, err := c.Read(b); err != nil {
			t.Fatalf("%d of %d are answered: %v", len(answered), queries, err)
		}
		answered[binary.BigEndian.Uint16(b)] = true
	}
}

// A client that says half a message, or nothing, holds up nobody.
func TestSlowClients(t *testing.T) {
	startServer(t)
	for i := range 50 {
		c := dial(t, "tcp")
		if i%2 == 0 {
			c.Write([]byte{0, 60, 1})
		}
	}
	m, _, err := (&dns.Client{Net: "tcp"}).Exchange(new(dns.Msg).SetQuestion("web.default.svc.cluster.local.", dns.TypeA), at.String())
	if err != nil || address(m) != "10.96.0.5" {
		t.Errorf("%v, %v", m, err)
	}
}

// Several queries may be on their way over one connection, and its end ends it (RFC 7766 6.2.1.1).
func TestPipelining(t *testing.T) {
	startServer(t)
	c := &dns.Conn{Conn: dial(t, "tcp")}
	ids := map[uint16]bool{}
	for i := range 20 {
		q := new(dns.Msg).SetQuestion(fmt.Sprint(i, ".www.example.com."), dns.TypeA)
		q.Id = uint16(i) // chance gives one twice
		ids[q.Id] = true
		must(t, c.WriteMsg(q))
	}
	for len(ids) > 0 {
		m, err := c.ReadMsg()
		if err != nil {
			t.Fatalf("%d are missing: %v", len(ids), err)
		}
		if !ids[m.Id] || address(m) != "192.0.2.80" {
			t.Errorf("%s", m)
		}
		delete(ids, m.Id)
	}
	must(t, c.Conn.(*net.TCPConn).CloseWrite())
	if _, err := c.Conn.Read(make([]byte, 1)); err != io.EOF {
		t.Errorf("after the end: %v", err)
	}
}

func TestRunEnds(t *testing.T) {
	s := newServer(t, newRecords(t), "/nowhere", at)
	for range 20 {
		ctx, cancel := context.WithCancel(context.Background())
		done := make(chan error, 1)
		go func() { done <- s.Run(ctx) }()
		cancel() // before it listens, or after
		if err := <-done; err != nil && !strings.Contains(err.Error(), "cancel") {
			t.Fatal(err)
		}
	}
	// A port that another has is told.
	l, err := net.Listen("tcp", at.String())
	must(t, err)
	defer l.Close()
	if err := s.Run(context.Background()); err == nil || !strings.Contains(err.Error(), at.String()) {
		t.Errorf("the port is taken: %v", err)
	}
}

// A client that opens connections without end keeps others from none, and has its own again once it ends some.
func TestManyConnections(t *testing.T) {
	startServer(t)
	from := func(client string) net.Conn {
		t.Helper()
		c, err := (&net.Dialer{LocalAddr: &net.TCPAddr{IP: net.ParseIP(client)}}).Dial("tcp", at.String())
		must(t, err)
		t.Cleanup(func() { c.Close() })
		c.SetDeadline(time.Now().Add(60 * time.Second))
		return c
	}
	answered := func(c net.Conn) bool {
		conn := &dns.Conn{Conn: c}
		if err := conn.WriteMsg(new(dns.Msg).SetQuestion("web.default.svc.cluster.local.", dns.TypeA)); err != nil {
			return false
		}
		m, err := conn.ReadMsg()
		return err == nil && address(m) == "10.96.0.5"
	}
	var greedy []net.Conn
	for range maxOfClient {
		greedy = append(greedy, from("127.0.30.1"))
	}
	if !answered(greedy[maxOfClient-1]) {
		t.Error("a connection that may be has no answer")
	}
	if answered(from("127.0.30.1")) {
		t.Error("one connection too many has an answer")
	}
	if !answered(from("127.0.30.2")) {
		t.Error("another client has no answer")
	}
	for _, c := range greedy {
		c.Close()
	}
	await(t, "the client to be let in again", func() bool { return answered(from("127.0.30.1")) })
}
