package dnsserve

import (
	"context"
	"fmt"
	"io"
	"net/http"
	"net/netip"
	"strings"
	"testing"
	"time"

	mdns "github.com/miekg/dns"
	corev1 "k8s.io/api/core/v1"
	discoveryv1 "k8s.io/api/discovery/v1"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/apimachinery/pkg/watch"
	"k8s.io/client-go/kubernetes/fake"
	clienttesting "k8s.io/client-go/testing"

	"github.com/strake-io/strake/dns"
	"github.com/strake-io/strake/tests/freeport"
)

func must(t testing.TB, err error) {
	t.Helper()
	if err != nil {
		t.Fatal(err)
	}
}

func await(t testing.TB, what string, ok func() bool) {
	t.Helper()
	for deadline := time.Now().Add(60 * time.Second); !ok(); time.Sleep(2 * time.Millisecond) {
		if time.Now().After(deadline) {
			t.Fatal("waited in vain for " + what)
		}
	}
}

func get(url string) string {
	resp, err := http.Get(url)
	if err != nil {
		return "nobody"
	}
	defer resp.Body.Close()
	body, _ := io.ReadAll(resp.Body) // what there is
	return fmt.Sprint(resp.StatusCode, " ", strings.TrimSpace(string(body)))
}

func TestServe(t *testing.T) {
	client := fake.NewClientset(
		&corev1.Namespace{ObjectMeta: metav1.ObjectMeta{Name: "default"}},
		&corev1.Service{ObjectMeta: metav1.ObjectMeta{Namespace: "default", Name: "web"}, Spec: corev1.ServiceSpec{ClusterIP: "10.96.0.5", ClusterIPs: []string{"10.96.0.5"}, Ports: []corev1.ServicePort{{Name: "http", Protocol: "TCP", Port: 80}}}})
	// The fake API, other than a real one, forgets what happens between a list and its watch.
	watched := make(chan struct{}, 100)
	client.PrependWatchReactor("*", func(action clienttesting.Action) (bool, watch.Interface, error) {
		w, err := client.Tracker().Watch(action.GetResource(), action.GetNamespace())
		watched <- struct{}{}
		return true, w, err
	})
	at, http := netip.AddrPortFrom(netip.MustParseAddr("127.0.0.1"), uint16(freeport.Find(t))), fmt.Sprint("127.0.0.1:", freeport.Find(t))
	listen := []netip.AddrPort{at, netip.AddrPortFrom(netip.MustParseAddr("0.0.0.0"), uint16(freeport.Find(t)))}
	c := Config{Listen: listen, DNS: dns.Config{Upstream: dns.Upstream{Servers: []string{"127.0.0.1:1"}}}, Health: http, Ready: http, Metrics: http, Lameduck: time.Second}
	ctx, cancel := context.WithCancel(context.Background())
	defer cancel()
	done := make(chan error, 1)
	go func() { done <- run(ctx, c, client, true) }()
	for range 3 { // Services, EndpointSlices and namespaces
		<-watched
	}
	await(t, "readiness", func() bool { return get("http://"+http+"/ready") == "200 OK" })
	ask := func(network string, to netip.AddrPort, name string) string {
		m, _, err := (&mdns.Client{Net: network, Timeout: 5 * time.Second}).Exchange(new(mdns.Msg).SetQuestion(name, mdns.TypeA), to.String())
		if err != nil {
			return err.Error()
		}
		if len(m.Answer) == 0 {
			return mdns.RcodeToString[m.Rcode]
		}
		return m.Answer[0].(*mdns.A).A.String()
	}
	for _, to := range []netip.AddrPort{at, netip.AddrPortFrom(at.Addr(), listen[1].Port())} {
		for _, network := range []string{"udp", "tcp"} {
			if got := ask(network, to, "web.default.svc.cluster.local."); got != "10.96.0.5" {
				t.Errorf("%s %s: %s", network, to, got)
			}
		}
	}
	// Records follow the API.
	hostname, ready := "db-0", true
	_, err := client.CoreV1().Services("default").Create(ctx, &corev1.Service{ObjectMeta: metav1.ObjectMeta{Name: "db"}, Spec: corev1.ServiceSpec{ClusterIP: "None"}}, metav1.CreateOptions{})
	must(t, err)
	_, err = client.DiscoveryV1().EndpointSlices("default").Create(ctx, &discoveryv1.EndpointSlice{
		ObjectMeta: metav1.ObjectMeta{Name: "db-a", Labels: map[string]string{discoveryv1.LabelServiceName: "db"}}, AddressType: discoveryv1.AddressTypeIPv4,
		Endpoints: []discoveryv1.Endpoint{{Addresses: []string{"10.244.0.9"}, Hostname: &hostname, Conditions: discoveryv1.EndpointConditions{Ready: &ready}}},
	}, metav1.CreateOptions{})
	must(t, err)
	await(t, "a new endpoint", func() bool { return ask("udp", at, "db-0.db.default.svc.cluster.local.") == "10.244.0.9" })

	for _, want := range []string{
		`coredns_dns_requests_total{family="1",proto="tcp",server="dns://` + at.String() + `",type="A",view="",zone="cluster.local."}`,
		`coredns_dns_responses_total{plugin="kubernetes",rcode="NOERROR"`, "coredns_dns_request_duration_seconds_bucket", "coredns_cache_entries", "go_goroutines",
	} { // a query is counted after its answer was sent
		await(t, want, func() bool { return strings.Contains(get("http://"+http+"/metrics"), want) })
	}
	if got := get("http://" + http + "/health"); got != "200 OK" {
		t.Errorf("health: %s", got)
	}
	// Another that wants the same port is told so, and this one goes on.
	if err := run(ctx, Config{Listen: listen[:1], DNS: c.DNS}, client, true); err == nil || !strings.Contains(err.Error(), at.String()) {
		t.Errorf("a second server: %v", err)
	}
	// Told to end, it goes on for a while, and is not ready.
	told := time.Now()
	cancel()
	ready2, answer := get("http://"+http+"/ready"), ask("udp", at, "web.default.svc.cluster.local.")
	if time.Since(told) < c.Lameduck && (ready2 != "503 ending" || answer != "10.96.0.5") {
		t.Errorf("told to end: ready says %s, a query gets %s", ready2, answer)
	}
	must(t, <-done)
	if got := get("http://" + http + "/health"); got != "nobody" {
		t.Errorf("after the end: %s", got)
	}
}
