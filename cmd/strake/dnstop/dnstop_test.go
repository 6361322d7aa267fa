package dnstop

import (
	"bytes"
	"context"
	"encoding/json"
	"fmt"
	"net"
	"net/netip"
	"os"
	"strings"
	"testing"
	"time"

	mdns "github.com/miekg/dns"

	"github.com/strake-io/strake/bpf"
	"github.com/strake-io/strake/dns"
)

func message(t *testing.T, name string, rcode int) []byte {
	t.Helper()
	m := new(mdns.Msg).SetQuestion(name, mdns.TypeA)
	m.Rcode = rcode
	m.Answer = []mdns.RR{&mdns.A{Hdr: mdns.RR_Header{Name: name, Rrtype: mdns.TypeA, Class: mdns.ClassINET}, A: net.IPv4(10, 0, 0, 1)}}
	b, err := m.Pack()
	if err != nil {
		t.Fatal(err)
	}
	return b[:len(b)-3] // as the kernel cuts it
}

// source gives what it has, and then waits.
type source struct {
	list []bpf.Question
	lost uint64
}

func (s *source) Read(deadline time.Time) (bpf.Question, error) {
	if len(s.list) == 0 {
		time.Sleep(time.Until(deadline))
		return bpf.Question{}, os.ErrDeadlineExceeded
	}
	q := s.list[0]
	s.list = s.list[1:]
	return q, nil
}

func (s *source) Lost() (uint64, error) { return s.lost, nil }

// run gives Run what the kernel and the resolver tell, and returns what it writes until it is what ok wants.
func run(t *testing.T, c Config, queries []dns.Query, ok func(string) bool) string {
	t.Helper()
	if queries != nil {
		ours, theirs := net.Pipe()
		c.Resolver = ours
		go func() {
			for e := json.NewEncoder(theirs); len(queries) > 0; queries = queries[1:] {
				if e.Encode(queries[0]) != nil {
					return
				}
			}
		}()
	}
	c.Client = func(q bpf.Question) string { return "demo/" + q.Client.String() }
	c.Resolved = func(q dns.Query) string { return "demo/" + q.Client.String() }
	c.Clock = func() (time.Time, time.Duration) { return time.Unix(1000, 0), 0 }
	if c.Order == "" {
		c.Order = "queries"
	}
	ctx, cancel := context.WithTimeout(context.Background(), 30*time.Second)
	defer cancel()
	var out seen
	out.until = func(text string) {
		if ok(text) {
			cancel()
		}
	}
	if err := Run(ctx, c, &out); err != nil {
		t.Fatal(err)
	}
	if text := out.String(); !ok(text) {
		t.Fatalf("got\n%s", text)
	}
	return out.String()
}

// seen is told what has been written so far.
type seen struct {
	text  bytes.Buffer
	until func(string)
}

func (s *seen) String() string { return s.text.String() }

func (s *seen) Write(b []byte) (int, error) {
	n, err := s.text.Write(b)
	s.until(s.String())
	return n, err
}

func TestReport(t *testing.T) {
	a, b := netip.MustParseAddr("10.244.0.1"), netip.MustParseAddr("fd00:244::2")
	kernel := &source{lost: 7}
	for range 30 {
		kernel.list = append(kernel.list, bpf.Question{Answered: true, Took: 2 * time.Microsecond, Client: a, Message: message(t, "Miss.cluster.local.", mdns.RcodeNameError)})
	}
	kernel.list = append(kernel.list,
		bpf.Question{Answered: true, Took: 3 * time.Microsecond, Client: b, Message: message(t, "web.default.svc.cluster.local.", 0)},
		bpf.Question{Client: b, Message: message(t, "example.com.", 0)}, // the resolver tells of it
		bpf.Question{Answered: true, Took: 1, Client: b, Message: []byte("rubbish")})
	queries := []dns.Query{
		{Client: b, Name: "Example.com.", Type: "A", Code: "NOERROR", By: "forward", Took: 40 * time.Millisecond, Lost: 2},
		{Client: b, Name: "gone.example.", Type: "A", Code: "SERVFAIL", By: "forward", Took: time.Second},
	}
	var r Report
	run(t, Config{Kernel: kernel, For: 2 * time.Second, Rows: 3, JSON: true}, queries, func(text string) bool { return json.Unmarshal([]byte(text), &r) == nil })
	if r.Queries != 33 || r.Lost != 9 || fmt.Sprintf("%.3f %.3f", r.Kernel, r.Denied) != "0.939 0.909" || len(r.Layers) != 2 || len(r.Names) != 3 || len(r.Clients) != 2 {
		t.Errorf("got %+v", r)
	}
	if l := r.Layers[0]; l.Layer != Kernel || l.Queries != 31 || l.Denied != 30 || l.MedianUs < 1.7 || l.MedianUs > 2 || l.P99Us < 2.5 || l.P99Us > 3 {
		t.Errorf("kernel %+v", l)
	}
	if l := r.Layers[1]; l.Layer != Resolver || l.Queries != 2 || l.Failed != 1 {
		t.Errorf("resolver %+v", l)
	}
	if n := r.Names[0]; n.Name != "miss.cluster.local. A" || n.Queries != 30 || n.Kernel != 30 || n.Denied != 30 || n.Clients != 1 || n.MeanUs != 2 {
		t.Errorf("name %+v", n)
	}
	if c := r.Clients[1]; c.Name != "demo/fd00:244::2" || c.Queries != 3 || c.Names != 3 || c.Kernel != 1 || c.Failed != 1 {
		t.Errorf("client %+v", c)
	}
}

func TestReportsForPeople(t *testing.T) {
	a := netip.MustParseAddr("10.244.0.1")
	passed := bpf.Question{Client: a, Message: message(t, "example.com.", 0)}
	text := run(t, Config{Kernel: &source{list: []bpf.Question{passed}}, Interval: time.Second, Rows: 1, Clear: true}, nil, func(text string) bool { return strings.Contains(text, "demo/10.244.0.1") })
	for _, want := range []string{"\x1b[2J", "1 questions", "passed", "example.com. A"} {
		if !strings.Contains(text, want) {
			t.Errorf("no %q in\n%s", want, text)
		}
	}
	lines := run(t, Config{Kernel: &source{list: []bpf.Question{passed}, lost: 3}, Interval: time.Second, Log: true}, []dns.Query{{Client: a, Name: "X.example.", Type: "A", Code: "NXDOMAIN", By: "forward", Took: time.Millisecond}},
		func(text string) bool {
			return strings.Contains(text, "x.example.") && strings.Contains(text, "3 questions")
		})
	if want := "demo/10.244.0.1 x.example. A: NXDOMAIN, resolver (forward), 1000.0 µs\n"; !strings.Contains(lines, want) || strings.Contains(lines, "example.com") {
		t.Errorf("got\n%s", lines)
	}
}

// Names that nobody thought of don't fill the memory.
func TestRowsAreBounded(t *testing.T) {
	c := newCounts()
	for i := range maxRows + 10 {
		c.add(Question{Name: fmt.Sprint(i), Type: "A", Client: fmt.Sprint(i), Layer: Kernel})
	}
	if len(c.names) != maxRows+1 || len(c.clients) != maxRows+1 || c.names[rest].Queries != 10 {
		t.Errorf("%d names, %d clients", len(c.names), len(c.clients))
	}
}

func TestHistogram(t *testing.T) {
	for _, d := range []time.Duration{0, 1, 7, 8, 9, 15, 16, 17, 1000, 123456789, 1<<62 + 5} {
		var h histogram
		h.add(d)
		if got := h.quantile(0.5); got > max(d, 1) || float64(got) < float64(d)*7/8 {
			t.Errorf("%d is %d", d, got)
		}
	}
	if new(histogram).quantile(0.5) != 0 {
		t.Error("of nothing")
	}
}

func FuzzQuestionOf(f *testing.F) {
	f.Add([]byte("\x00\x01\x81\x83\x00\x01\x00\x00\x00\x01\x00\x00\x01a\x00\x00\x01\x00\x01"))
	f.Fuzz(func(t *testing.T, b []byte) {
		if q, ok := questionOf(b); ok && q.Name == "" {
			t.Error("a question for nothing")
		}
	})
}
