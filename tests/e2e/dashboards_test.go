package e2e

import (
	"context"
	"encoding/json"
	"fmt"
	"maps"
	"net/http"
	"os"
	"path/filepath"
	"regexp"
	"slices"
	"strings"
	"testing"
	"time"

	mdns "github.com/miekg/dns"
)

// dashboard is what this reads of a dashboard of Grafana.
type dashboard struct {
	UID        string
	Title      string
	Templating struct {
		List []struct{ Name, Type, Query string }
	}
	Panels []struct {
		ID      int
		Title   string
		Targets []struct{ Expr, LegendFormat string }
	}
}

// measuredPods have what is measured only once it has happened: a policy that judges packets, and who sends them.
const measuredPods = `
apiVersion: v1
kind: Pod
metadata: {name: measured, labels: {app: measured}}
spec:
  terminationGracePeriodSeconds: 1
  containers: [{name: c, image: "strake.io/demo:1", args: [demo, echo, --listen, ":8080"], readinessProbe: {tcpSocket: {port: 8080}, periodSeconds: 1}}]
---
apiVersion: networking.k8s.io/v1
kind: NetworkPolicy
metadata: {name: measured}
spec: {podSelector: {matchLabels: {app: measured}}, ingress: [{}]}
---
apiVersion: v1
kind: Pod
metadata: {name: asks}
spec:
  terminationGracePeriodSeconds: 1
  containers: [{name: c, image: "strake.io/demo:1", args: [demo, echo]}]
`

// TestDashboards: each query of deploy/dashboards is of metrics that are served, by labels that they have.
func TestDashboards(t *testing.T) {
	c := use(t)
	c.apply(measuredPods)
	c.kubectl("wait", "--for=condition=Ready", "pod/measured", "pod/asks", "--timeout=240s")
	ip := c.kubectl("get", "pod", "measured", "-o", "jsonpath={.status.podIP}")
	outsideDNS(t, c)
	web, _ := c.listenOutside()
	go http.Serve(web, http.NotFoundHandler())
	served := func() map[string]map[string]bool {
		for _, at := range []string{ip + ":8080", web.Addr().String()} {
			c.try("exec", "asks", "--", "/strake", "demo", "client", "--count", "1", "--url", "http://"+at)
		}
		for range 2 { // the second time from memory
			if err := askDNS(t, c, "example.com."); err != nil {
				t.Log("the cluster's DNS: ", err)
			}
		}
		return labelsOf(c.must(c.Command(t.Context(), "busybox", "wget", "-qO-", "http://127.0.0.1:10249/metrics")) + c.kubectl("get", "--raw", "/metrics"))
	}
	files, err := filepath.Glob("../../deploy/dashboards/*.json")
	if err != nil || len(files) == 0 {
		t.Fatalf("%v, %v", files, err)
	}
	uids := map[string]string{}
	for _, file := range files {
		data, err := os.ReadFile(file)
		if err != nil {
			t.Fatal(err)
		}
		var d dashboard
		if err := json.Unmarshal(data, &d); err != nil {
			t.Fatalf("%s: %v", file, err)
		}
		if other, ok := uids[d.UID]; ok || d.UID == "" || d.Title == "" {
			t.Errorf("%s has the uid %q, as %q, and the title %q", file, d.UID, other, d.Title)
		}
		uids[d.UID] = file
		ids, exprs := map[int]bool{}, map[string]string{}
		for _, v := range d.Templating.List {
			if query, ok := strings.CutPrefix(v.Query, "label_values("); ok {
				name, _, _ := strings.Cut(query, ",")
				exprs[name] = "the variable " + v.Name
			}
		}
		for _, p := range d.Panels {
			if ids[p.ID] {
				t.Errorf("%s: two panels have the id %d", file, p.ID)
			}
			ids[p.ID] = true
			for _, target := range p.Targets {
				exprs[target.Expr] = p.Title
				_, labels := askedBy(target.Expr)
				for _, m := range regexp.MustCompile(`\{\{(\w+)\}\}`).FindAllStringSubmatch(target.LegendFormat, -1) {
					if m[1] != "instance" && !slices.Contains(labels, m[1]) {
						t.Errorf("%s, %s: the legend has %s, and the query has not", file, p.Title, m[1])
					}
				}
			}
		}
		eventually(t, time.Minute, func() string {
			var missing []string
			metrics := served()
			for _, expr := range slices.Sorted(maps.Keys(exprs)) {
				names, labels := askedBy(expr)
				if len(names) == 0 {
					missing = append(missing, fmt.Sprintf("%s: no metric in %s", exprs[expr], expr))
				}
				for _, name := range names {
					if metrics[name] == nil {
						missing = append(missing, fmt.Sprintf("%s: no metric %s", exprs[expr], name))
						continue
					}
					for _, label := range labels {
						if !metrics[name][label] {
							missing = append(missing, fmt.Sprintf("%s: %s has no label %s", exprs[expr], name, label))
						}
					}
				}
			}
			if len(missing) > 0 {
				return file + ":\n" + strings.Join(missing, "\n")
			}
			return ""
		})
	}
}

// askDNS asks the cluster's DNS from the node by TCP, which the kernel leaves to the agent.
func askDNS(t *testing.T, c *cluster, name string) error {
	ctx, cancel := context.WithTimeout(t.Context(), 5*time.Second)
	defer cancel()
	conn, err := c.Dial(ctx, "tcp", "10.96.0.10:53")
	if err != nil {
		return err
	}
	defer conn.Close()
	_, _, err = new(mdns.Client).ExchangeWithConnContext(ctx, new(mdns.Msg).SetQuestion(name, mdns.TypeA), &mdns.Conn{Conn: conn})
	return err
}

var (
	sampleLine = regexp.MustCompile(`(?m)^(\w+)(?:\{(.*)\})? \S+$`)
	labelName  = regexp.MustCompile(`(\w+)=~?"|(\w+)!~?"|(\w+)!="`)
	matchers   = regexp.MustCompile(`\{[^}]*\}`)
	ranges     = regexp.MustCompile(`\[[^]]*\]`)
	grouping   = regexp.MustCompile(`\b(?:by|without|on|ignoring|group_left|group_right) *\(([^)]*)\)`)
	identifier = regexp.MustCompile(`[a-zA-Z_]\w*( *\()?`)
)

// labelsOf reads the names of metrics and of their labels, as they are served.
func labelsOf(text string) map[string]map[string]bool {
	out := map[string]map[string]bool{}
	for _, m := range sampleLine.FindAllStringSubmatch(text, -1) {
		if out[m[1]] == nil {
			out[m[1]] = map[string]bool{}
		}
		for _, l := range labelName.FindAllStringSubmatch(m[2], -1) {
			out[m[1]][l[1]] = true
		}
	}
	return out
}

// askedBy reads the names of metrics and labels in a query. Labels that Prometheus makes, or that are every metric's of a kind, are left out.
func askedBy(expr string) (metrics, labels []string) {
	note := func(name string) {
		if name = strings.TrimSpace(name); name != "" && name != "instance" && name != "le" {
			labels = append(labels, name)
		}
	}
	for _, m := range matchers.FindAllString(expr, -1) {
		for _, l := range labelName.FindAllStringSubmatch(m, -1) {
			note(l[1] + l[2] + l[3])
		}
	}
	expr = ranges.ReplaceAllString(matchers.ReplaceAllString(expr, ""), "")
	for _, m := range grouping.FindAllStringSubmatch(expr, -1) {
		for _, l := range strings.Split(m[1], ",") {
			note(l)
		}
	}
	expr = grouping.ReplaceAllString(expr, "")
	for _, name := range identifier.FindAllString(expr, -1) {
		if !strings.HasSuffix(name, "(") && !slices.Contains([]string{"and", "or", "unless", "bool", "offset"}, name) {
			metrics = append(metrics, name)
		}
	}
	return metrics, labels
}
