package proxy

import (
	"encoding/json"
	"fmt"
	"io"
	"net"
	"net/http"
	"net/http/httptest"
	"slices"
	"strings"
	"syscall"
	"testing"
	"time"

	corev1 "k8s.io/api/core/v1"
	discoveryv1 "k8s.io/api/discovery/v1"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/apimachinery/pkg/types"
	"k8s.io/client-go/kubernetes/fake"

	"github.com/strake-io/strake/bpf"
)

// ask gets what a load balancer would get; code 0 says that nobody answers.
func ask(t *testing.T, url string) (code int, header http.Header, body string) {
	t.Helper()
	c := http.Client{Transport: &http.Transport{DisableKeepAlives: true}, Timeout: 30 * time.Second}
	resp, err := c.Get(url)
	if err != nil {
		return 0, nil, err.Error()
	}
	defer resp.Body.Close()
	text, err := io.ReadAll(resp.Body)
	must(t, err)
	return resp.StatusCode, resp.Header, string(text)
}

// balanced is a Service whose load balancer asks each node.
func balanced(change func(*corev1.Service)) *corev1.Service {
	return service(func(s *corev1.Service) {
		s.Spec.Type, s.Spec.ExternalTrafficPolicy, s.Spec.HealthCheckNodePort = corev1.ServiceTypeLoadBalancer, corev1.ServiceExternalTrafficPolicyLocal, 31000
		change(s)
	})
}

// A Service's health check follows its endpoints on this node, its port, and the node's addresses.
func TestHealthCheckNodePort(t *testing.T) {
	const four, six = "http://192.0.2.1:%d/", "http://[2001:db8::1]:%d/healthz"
	client := fake.NewClientset(balanced(nop), slice(nop))
	node := testNode
	node.Addrs = addrs("192.0.2.1", "2001:db8::1")
	r := start(t, client, newTable(0), node)
	is := func(format string, port, code, local int) {
		t.Helper()
		var got int
		var header http.Header
		var body string
		r.until(t, func() bool {
			got, header, body = ask(t, fmt.Sprintf(format, port))
			return got == code && (code == 0 || header.Get("X-Load-Balancing-Endpoint-Weight") == fmt.Sprint(local))
		})
		if code == 0 {
			return
		}
		want := fmt.Sprintf("{\n\t\"service\": {\n\t\t\"namespace\": \"ns\",\n\t\t\"name\": \"web\"\n\t},\n\t\"localEndpoints\": %d,\n\t\"serviceProxyHealthy\": true\n}\n", local)
		if body != want || header.Get("Content-Type") != "application/json" || header.Get("X-Content-Type-Options") != "nosniff" {
			t.Errorf("%v %q, want %q", header, body, want)
		}
	}
	update := func(change func(*corev1.Service)) {
		t.Helper()
		_, err := client.CoreV1().Services("ns").Update(t.Context(), balanced(change), metav1.UpdateOptions{})
		must(t, err)
	}
	is(four, 31000, 200, 1)
	is(six, 31000, 200, 1)
	// One that gets no new connections is none for load balancers either.
	weigh := func(weight string) {
		t.Helper()
		_, err := client.DiscoveryV1().EndpointSlices("ns").Update(t.Context(), slice(func(s *discoveryv1.EndpointSlice) {
			s.Annotations = map[string]string{AnnotationWeight: weight}
		}), metav1.UpdateOptions{})
		must(t, err)
	}
	weigh("0")
	is(four, 31000, 503, 0)
	weigh("2")
	is(four, 31000, 200, 1)
	// Two ports in two slices, and IPv6 beside IPv4: one endpoint each.
	for i, family := range []discoveryv1.AddressType{discoveryv1.AddressTypeIPv4, discoveryv1.AddressTypeIPv6} {
		_, err := client.DiscoveryV1().EndpointSlices("ns").Create(t.Context(), slice(func(s *discoveryv1.EndpointSlice) {
			s.Name, s.AddressType, s.Ports[0].Name = fmt.Sprint("more-", i), family, ptr("admin")
			s.Endpoints[0].Addresses = []string{[]string{"10.244.0.3", "fd00:244::3"}[i]}
		}), metav1.CreateOptions{})
		must(t, err)
	}
	is(four, 31000, 200, 2)
	must(t, client.DiscoveryV1().EndpointSlices("ns").Delete(t.Context(), "more-0", metav1.DeleteOptions{}))
	must(t, client.DiscoveryV1().EndpointSlices("ns").Delete(t.Context(), "more-1", metav1.DeleteOptions{}))
	// None is ready here: go elsewhere, although one still serves.
	_, err := client.DiscoveryV1().EndpointSlices("ns").Update(t.Context(), slice(func(s *discoveryv1.EndpointSlice) {
		s.Endpoints[0].Conditions = condition(false, true, true)
	}), metav1.UpdateOptions{})
	must(t, err)
	is(four, 31000, 503, 0)
	update(func(s *corev1.Service) { s.Spec.HealthCheckNodePort = 31001 })
	is(four, 31001, 503, 0)
	is(four, 31000, 0, 0)
	// A port that somebody else has is served as soon as it is free.
	other, err := net.Listen("tcp", "192.0.2.1:31002")
	must(t, err)
	update(func(s *corev1.Service) { s.Spec.HealthCheckNodePort = 31002 })
	is(six, 31002, 503, 0)
	if event := <-r.events.Events; !strings.Contains(event, "FailedToStartServiceHealthcheck") || !strings.Contains(event, "31002") {
		t.Error(event)
	}
	must(t, other.Close())
	is(four, 31002, 503, 0)
	r.SetAddrs(addrs("192.0.2.2"))
	is("http://192.0.2.2:%d/", 31002, 503, 0)
	is(four, 31002, 0, 0)
	update(func(s *corev1.Service) { s.Spec.ExternalTrafficPolicy = corev1.ServiceExternalTrafficPolicyCluster })
	is("http://192.0.2.2:%d/", 31002, 0, 0)
	update(nop)
	is("http://192.0.2.2:%d/", 31000, 503, 0)
	must(t, client.CoreV1().Services("ns").Delete(t.Context(), "web", metav1.DeleteOptions{}))
	is("http://192.0.2.2:%d/", 31000, 0, 0)
}

// An address that comes or goes, or is not free, does not end connections to others.
func TestHealthChecksStay(t *testing.T) {
	h := newHealthChecks(addrs("192.0.2.1", "192.0.2.2"), func() bool { return true })
	defer h.close()
	name := types.NamespacedName{Namespace: "ns", Name: "web"}
	must(t, h.set(name, 31000, 1))
	first := h.ports[name].servers[addrs("192.0.2.1")[0]]
	for _, now := range []string{"192.0.2.1", "192.0.2.1,203.0.113.99", "192.0.2.1,192.0.2.2"} {
		list := addrs(strings.Split(now, ",")...)
		h.move(list)
		err := h.set(name, 31000, 1)
		if missing := slices.Contains(list, addrs("203.0.113.99")[0]); (err != nil) != missing {
			t.Errorf("%s: %v", now, err)
		}
		if h.ports[name].servers[list[0]] != first {
			t.Errorf("%s: the server of the first address is another", now)
		}
	}
	if n := len(h.ports[name].servers); n != 2 {
		t.Errorf("%d servers, want 2", n)
	}
}

// statusOf reads an answer of /healthz or /livez.
func statusOf(t *testing.T, h http.Handler, path string) (int, map[string]any) {
	t.Helper()
	w := httptest.NewRecorder()
	h.ServeHTTP(w, httptest.NewRequest("GET", path, nil))
	var body map[string]any
	must(t, json.Unmarshal(w.Body.Bytes(), &body))
	return w.Code, body
}

// A node that is being removed takes no new traffic, but its proxy lives; a change that waits for a minute is an illness.
func TestHealthz(t *testing.T) {
	c := newChanges(newInstruments())
	h := newHealth(c, newInstruments())
	now := time.Now()
	h.now = func() time.Time { return now }
	expect := func(what string, healthz, livez int, eligible bool) {
		t.Helper()
		code, body := statusOf(t, h.handler(), "/healthz")
		if code != healthz || body["nodeEligible"] != eligible || body["healthy"] != (healthz == 200) || body["currentTime"] != now.Format(time.RFC3339Nano) {
			t.Errorf("%s: /healthz is %d %v", what, code, body)
		}
		if updated := body["lastUpdated"] == body["currentTime"]; updated != (healthz == 200) {
			t.Errorf("%s: /healthz says it was updated at %v", what, body["lastUpdated"])
		}
		code, body = statusOf(t, h.handler(), "/livez")
		if _, told := body["nodeEligible"]; code != livez || told {
			t.Errorf("%s: /livez is %d %v", what, code, body)
		}
	}
	expect("at the start", 200, 200, true)
	h.follow(&corev1.Node{Spec: corev1.NodeSpec{Taints: []corev1.Taint{{Key: "ToBeDeletedByClusterAutoscaler"}}}})
	expect("with the autoscaler's taint", 503, 200, false)
	h.follow(&corev1.Node{ObjectMeta: metav1.ObjectMeta{DeletionTimestamp: &metav1.Time{Time: now}}})
	expect("being deleted", 503, 200, false)
	h.follow(&corev1.Node{Spec: corev1.NodeSpec{Taints: []corev1.Taint{{Key: "other"}}}})
	expect("back", 200, 200, true)
	c.note("ns/web", 1, 0, time.Time{})
	expect("with a change", 200, 200, true)
	now = now.Add(lateAfter + time.Second)
	expect("with a change that waits", 503, 503, true)
	w := c.take("ns/web")
	expect("with one that is being written", 503, 503, true)
	c.settle("ns/web", w, false)
	expect("that can't be written", 503, 503, true)
	c.settle("ns/web", c.take("ns/web"), true)
	expect("and is", 200, 200, true)
}

// The Node object is followed from its first day to its last.
func TestTheNodeIsFollowed(t *testing.T) {
	client := fake.NewClientset(nodeObject(testNode))
	r := start(t, client, newTable(0), testNode)
	nodes := client.CoreV1().Nodes()
	await := func(want int) {
		t.Helper()
		for {
			if code, _ := statusOf(t, r.HealthHandler(), "/healthz"); code == want {
				return
			}
			time.Sleep(time.Millisecond) // no row is written, which would tell
		}
	}
	await(200)
	leaving := nodeObject(testNode)
	leaving.Spec.Taints = []corev1.Taint{{Key: toBeDeleted}}
	_, err := nodes.Update(t.Context(), leaving, metav1.UpdateOptions{})
	must(t, err)
	await(503)
	_, err = nodes.Update(t.Context(), nodeObject(testNode), metav1.UpdateOptions{})
	must(t, err)
	await(200)
	_, err = nodes.Create(t.Context(), nodeObject(Node{Name: "other"}), metav1.CreateOptions{})
	must(t, err)
	must(t, nodes.Delete(t.Context(), "other", metav1.DeleteOptions{}))
	must(t, nodes.Delete(t.Context(), testNode.Name, metav1.DeleteOptions{}))
	await(503)
}

// failingTable refuses what fail says.
type failingTable struct {
	*fakeTable
	fail func(owner string) error
}

func (f *failingTable) ReplaceAll(want map[string][]bpf.LoadBalancer) (bpf.Changes, map[string]error) {
	var c bpf.Changes
	errs := map[string]error{}
	for owner, rows := range want {
		err := f.fail(owner)
		if err == nil {
			_, err = f.Replace(owner, rows)
		}
		if err != nil {
			errs[owner] = err
		}
	}
	return c, errs
}

// A Service that asks for another's address is told of, waits for it, and does no harm to the node's health.
func TestAnAddressOfTwoServices(t *testing.T) {
	client := fake.NewClientset(service(func(s *corev1.Service) { s.Spec.ExternalIPs = []string{"198.51.100.1"} }))
	table := newTable(0)
	r := start(t, client, table, testNode)
	owner := func() string {
		rows, err := table.Dump()
		must(t, err)
		for _, lb := range rows {
			for _, f := range lb.Frontends {
				if f.Kind == bpf.ExternalIP {
					return lb.Owner
				}
			}
		}
		return ""
	}
	r.until(t, func() bool { return owner() == "u" })
	_, err := client.CoreV1().Services("ns").Create(t.Context(), service(func(s *corev1.Service) {
		s.Name, s.UID, s.Spec.ClusterIPs, s.Spec.ExternalIPs = "thief", "t", []string{"10.96.0.6"}, []string{"198.51.100.1"}
	}), metav1.CreateOptions{})
	must(t, err)
	event := <-r.events.Events
	if !strings.Contains(event, "Warning FailedToServe Node n1: 198.51.100.1:80 belongs to u") {
		t.Error(event)
	}
	// A Service that is refused does not count as one that waits.
	r.until(t, func() bool { return r.changes.oldest().IsZero() })
	must(t, client.CoreV1().Services("ns").Delete(t.Context(), "web", metav1.DeleteOptions{}))
	r.until(t, func() bool { return owner() == "t" })
	select {
	case event := <-r.events.Events:
		t.Error("one more event:", event)
	default:
	}
}

// A kernel that takes no rows is an illness; a full table is none, but is told of at the Node, once.
func TestWhatTheKernelRefuses(t *testing.T) {
	for name, c := range map[string]struct {
		err    error
		ill    bool
		events []string
	}{
		"not allowed": {syscall.EPERM, true, []string{"FailedToServe"}},
		"full":        {fmt.Errorf("the table is full: %w", syscall.E2BIG), false, []string{"FailedToServe", "ServiceTableFull", "FailedToServe"}},
	} {
		t.Run(name, func(t *testing.T) {
			client := fake.NewClientset(service(nop))
			calls := 0
			heal := make(chan struct{})
			r := start(t, client, &failingTable{newTable(0), func(string) error {
				select {
				case <-heal:
					return nil
				default:
					calls++
					return c.err
				}
			}}, testNode)
			for range 3 {
				<-r.table.changed
			}
			if name == "full" {
				_, err := client.CoreV1().Services("ns").Create(t.Context(), service(func(s *corev1.Service) {
					s.Name, s.UID, s.Spec.ClusterIPs = "other", "u2", []string{"10.96.0.6"}
				}), metav1.CreateOptions{})
				must(t, err)
			}
			for _, want := range c.events {
				if got := <-r.events.Events; !strings.Contains(got, want) {
					t.Errorf("event %q, want %s", got, want)
				}
			}
			for range 2 {
				<-r.table.changed
			}
			if c.ill && r.changes.oldest().IsZero() {
				t.Error("no change waits")
			} else if !c.ill {
				r.until(t, func() bool { return r.changes.oldest().IsZero() })
			}
			if r.Settled() {
				t.Error("not all is in the kernel, and it says so")
			}
			close(heal)
			r.until(t, func() bool { rows, _ := r.table.Dump(); return len(rows) > 0 })
			r.until(t, r.Settled)
			if len(r.events.Events) > 0 {
				t.Error("one more event:", <-r.events.Events)
			}
		})
	}
}

func TestABadWeightIsTold(t *testing.T) {
	client := fake.NewClientset(service(nop), slice(func(s *discoveryv1.EndpointSlice) { s.Annotations = map[string]string{AnnotationWeight: "much"} }))
	r := start(t, client, newTable(0), testNode)
	if event := <-r.events.Events; !strings.Contains(event, "Warning BadWeight") || !strings.Contains(event, `"much"`) {
		t.Error(event)
	}
}

// Metrics have kube-proxy's names, and say what happened.
func TestMetrics(t *testing.T) {
	client := fake.NewClientset(service(nop), slice(nop))
	table := newTable(0)
	r := start(t, client, table, testNode)
	changed := time.Now().Add(time.Second) // the annotation may say more than the clock, if the EndpointSlice controller is elsewhere
	_, err := client.DiscoveryV1().EndpointSlices("ns").Update(t.Context(), slice(func(s *discoveryv1.EndpointSlice) {
		s.Annotations = map[string]string{corev1.EndpointsLastChangeTriggerTime: changed.Format(time.RFC3339Nano)}
		s.Endpoints = s.Endpoints[1:]
	}), metav1.UpdateOptions{})
	must(t, err)
	_, err = client.CoreV1().Services("ns").Update(t.Context(), service(func(s *corev1.Service) {
		s.Spec.InternalTrafficPolicy = ptr(corev1.ServiceInternalTrafficPolicyLocal)
		s.Spec.ExternalTrafficPolicy, s.Spec.ExternalIPs = corev1.ServiceExternalTrafficPolicyLocal, []string{"198.51.100.1"}
	}), metav1.UpdateOptions{})
	must(t, err)
	scrape := func() map[string]string {
		w := httptest.NewRecorder()
		MetricsHandler(r.registry).ServeHTTP(w, httptest.NewRequest("GET", "/metrics", nil))
		out := map[string]string{}
		for line := range strings.Lines(w.Body.String()) {
			if name, value, ok := strings.Cut(strings.TrimSpace(line), " "); ok && name != "#" {
				out[name] = value
			}
		}
		return out
	}
	want := map[string]string{
		"kubeproxy_sync_proxy_rules_service_changes_total": "2", "kubeproxy_sync_proxy_rules_endpoint_changes_total": "2",
		"kubeproxy_sync_proxy_rules_service_changes_pending": "0", "kubeproxy_sync_proxy_rules_endpoint_changes_pending": "0",
		`kubeproxy_sync_proxy_rules_no_local_endpoints_total{traffic_policy="internal"}`: "1", `kubeproxy_sync_proxy_rules_no_local_endpoints_total{traffic_policy="external"}`: "1",
		"kubeproxy_network_programming_duration_seconds_count": "1", "strake_service_sync_failures_total": "0",
	}
	r.until(t, func() bool {
		now := scrape()
		for name, value := range want {
			if now[name] != value {
				return false
			}
		}
		return true
	})
	now := scrape()
	for _, name := range []string{"kubeproxy_sync_proxy_rules_duration_seconds_count", "kubeproxy_sync_proxy_rules_last_timestamp_seconds", "kubeproxy_sync_proxy_rules_last_queued_timestamp_seconds"} {
		if now[name] == "" || now[name] == "0" {
			t.Errorf("%s is %q", name, now[name])
		}
	}
	must(t, client.CoreV1().Services("ns").Delete(t.Context(), "web", metav1.DeleteOptions{}))
	r.until(t, func() bool {
		now := scrape()
		return now[`kubeproxy_sync_proxy_rules_no_local_endpoints_total{traffic_policy="internal"}`] == "0" && now["kubeproxy_sync_proxy_rules_service_changes_pending"] == "0"
	})
}
