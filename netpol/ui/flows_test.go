package ui_test

import (
	"bufio"
	"encoding/json"
	"net/http"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"github.com/strake-io/strake/netpol"
	"github.com/strake-io/strake/netpol/flows"
)

// recorded makes a record with a drop, and with a flow that a policy in shadow would drop.
func recorded(t *testing.T) (dir string, write func(port uint16)) {
	t.Helper()
	dir = t.TempDir()
	web := flows.End{Addr: "10.244.0.5", Namespace: "default", Pod: "web-1"}
	db := flows.End{Addr: "10.244.0.6", Namespace: "default", Pod: "db-1"}
	seq := uint64(0)
	put := func(sort string, l flows.Line) {
		seq++
		l.Seq, l.Time, l.Node = seq, time.Now(), "n1"
		f, err := os.OpenFile(filepath.Join(dir, sort+"-00000000000000000001.jsonl"), os.O_CREATE|os.O_APPEND|os.O_WRONLY, 0o600)
		if err == nil {
			err = json.NewEncoder(f).Encode(l)
		}
		if err != nil {
			t.Fatal(err)
		}
		f.Close()
	}
	closed := &flows.Decision{Policy: &netpol.PolicyRef{Kind: "NetworkPolicy", Namespace: "default", Name: "db"}, Rule: netpol.NoRule}
	write = func(port uint16) {
		put("flows", flows.Line{Kind: flows.KindFlow, Sample: &flows.Sample{Event: "drop"},
			Flow: &flows.Flow{Verdict: flows.Dropped, From: web, To: db, Protocol: "TCP", Port: port, Sides: []string{"destination"}, Ingress: closed}})
	}
	write(22)
	put("flows", flows.Line{Kind: flows.KindFlow, Sample: &flows.Sample{Event: "new"}, Flow: &flows.Flow{Verdict: flows.Allowed, From: db, To: web, Protocol: "TCP", Port: 80, Sides: []string{"destination"}}})
	put("counts", flows.Line{Kind: flows.KindCount, Count: &flows.Count{Class: "1", Flows: 41},
		Flow: &flows.Flow{Verdict: flows.Allowed, From: web, To: db, Protocol: "TCP", Port: 5432, Sides: []string{"destination"}, ShadowIngress: closed}})
	return dir, write
}

// Drops come as they are recorded, and nothing else; who has no token gets none.
func TestLiveDrops(t *testing.T) {
	dir, write := recorded(t)
	text := cluster
	p := serve(t, &text, dir)
	if code, _ := p.ask(http.MethodGet, "/api/flows?verdict=dropped", "", nil); code != http.StatusUnauthorized {
		t.Errorf("without the token: %d", code)
	}
	p.enter()
	answer, err := p.browser.Get(p.url + "/api/flows?verdict=dropped")
	if err != nil {
		t.Fatal(err)
	}
	defer answer.Body.Close()
	if kind := answer.Header.Get("Content-Type"); answer.StatusCode != http.StatusOK || kind != "text/event-stream" {
		t.Errorf("%s, %s", answer.Status, kind)
	}
	lines := bufio.NewScanner(answer.Body)
	next := func() string {
		for lines.Scan() {
			if said, ok := strings.CutPrefix(lines.Text(), "data: "); ok {
				return said
			}
		}
		return ""
	}
	if said := next(); !strings.Contains(said, `"port":22`) || !strings.Contains(said, "isolated by default/db") {
		t.Errorf("the first: %s", said)
	}
	write(23)
	if said := next(); !strings.Contains(said, `"port":23`) {
		t.Errorf("what comes: %s", said)
	}
	if code, said := p.ask(http.MethodGet, "/api/shadow", "", nil); code != http.StatusOK || !strings.Contains(said, `"would":"drop"`) || !strings.Contains(said, `"count":41`) || !strings.Contains(said, `"since":"2`) {
		t.Errorf("in shadow: %d %s", code, said)
	}
	if code, said := p.ask(http.MethodGet, "/api/flows?verdict=odd", "", nil); code != http.StatusNotFound || !strings.Contains(said, "would-drop") {
		t.Errorf("an odd verdict: %d %s", code, said)
	}
	none := serve(t, &text).enter()
	if code, said := none.ask(http.MethodGet, "/api/flows", "", nil); code != http.StatusNotFound || !strings.Contains(said, "--record-flows") {
		t.Errorf("nothing is recorded: %d %s", code, said)
	}
}

// Of many lines the newest are sent, a browser that comes again gets what it has not had, and there is an end to how many may listen.
func TestStreamsAreBounded(t *testing.T) {
	dir, write := recorded(t)
	for port := range uint16(1000) {
		write(1000 + port)
	}
	text := cluster
	p := serve(t, &text, dir).enter()
	listen := func(last string) (*http.Response, *bufio.Scanner) {
		t.Helper()
		r, err := http.NewRequestWithContext(t.Context(), http.MethodGet, p.url+"/api/flows?verdict=dropped", nil)
		if err != nil {
			t.Fatal(err)
		}
		if last != "" {
			r.Header.Set("Last-Event-ID", last)
		}
		answer, err := p.browser.Do(r)
		if err != nil {
			t.Fatal(err)
		}
		t.Cleanup(func() { answer.Body.Close() })
		return answer, bufio.NewScanner(answer.Body)
	}
	_, lines := listen("")
	seen, id := 0, ""
	for !strings.Contains(lines.Text(), `"port":1999`) && lines.Scan() {
		if strings.HasPrefix(lines.Text(), "data: ") {
			seen++
		} else if text, ok := strings.CutPrefix(lines.Text(), "id: "); ok {
			id = text
		}
	}
	if seen < 200 || seen >= 400 || id == "" {
		t.Errorf("%d lines came, the last was %q", seen, id)
	}
	write(23)
	_, lines = listen(id)
	for lines.Scan() && !strings.HasPrefix(lines.Text(), "data: ") {
	}
	if !strings.Contains(lines.Text(), `"port":23`) {
		t.Errorf("behind %s comes %s", id, lines.Text())
	}
	for range 6 {
		if answer, _ := listen(id); answer.StatusCode != http.StatusOK {
			t.Fatal(answer.Status)
		}
	}
	if answer, _ := listen(id); answer.StatusCode != http.StatusServiceUnavailable {
		t.Errorf("the ninth page: %s", answer.Status)
	}
}

// The view of flows in headless Chromium.
func TestFlowsInABrowser(t *testing.T) {
	browser, err := exec.LookPath("chromium")
	if err != nil {
		t.Skip("SKIPPED: no chromium here; `make test-ui` installs it")
	}
	dir, _ := recorded(t)
	text := cluster
	p := serve(t, &text, dir)
	out, err := exec.CommandContext(t.Context(), browser, "--headless", "--no-sandbox", "--disable-gpu", "--user-data-dir="+t.TempDir(),
		"--virtual-time-budget=10000", "--dump-dom", p.url+p.token+"#view=flows").Output()
	if err != nil {
		t.Fatalf("chromium: %v", err)
	}
	for _, want := range []string{"default/web-1 → default/db-1 22/TCP", "isolated by default/db", "drop 41"} {
		if !strings.Contains(string(out), want) {
			t.Errorf("the page has no %s", want)
		}
	}
	if t.Failed() {
		t.Logf("%s", out)
	}
}
