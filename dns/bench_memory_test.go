package dns

import (
	"fmt"
	"net/netip"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"testing"

	"github.com/miekg/dns"
	corev1 "k8s.io/api/core/v1"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	apiruntime "k8s.io/apimachinery/pkg/runtime"
	"k8s.io/apimachinery/pkg/types"

	"github.com/strake-io/strake/tests/coredns"
)

// benchStrake names the program whose `dns serve` is weighed.
const benchStrake = "STRAKE_BENCH_BINARY"

// TestBenchMemory weighs our resolver alone and CoreDNS, of an empty cluster and of one with 10 000 Services and 20 000 endpoints.
func TestBenchMemory(t *testing.T) {
	binary, ours := os.Getenv(benchWith), os.Getenv(benchStrake)
	if binary == "" || ours == "" {
		t.Skipf("SKIPPED: %s and %s are not set: `make bench-dns` runs this", benchWith, benchStrake)
	}
	newUpstream(t, public, internet)
	var have [2][2]weight
	for i, services := range []int{1, 10_000} {
		objs := []apiruntime.Object{&corev1.Namespace{ObjectMeta: metav1.ObjectMeta{Name: "default", UID: "ns"}}}
		for n := range services {
			name := fmt.Sprint("web-", n)
			objs = append(objs, service(name, []string{fmt.Sprintf("10.97.%d.%d", n/250, n%250)}, port("http", corev1.ProtocolTCP, 80), labelled),
				endpoints(name, "a", endpointPort("http", corev1.ProtocolTCP, 8080), fmt.Sprintf("10.%d.%d.1", 128+n/250, n%250), fmt.Sprintf("10.%d.%d.2", 128+n/250, n%250)))
		}
		api, err := coredns.StartAPI(objs...)
		must(t, err)
		core := startCoreDNS(t, binary, api.URL, 5354+i)
		config := filepath.Join(t.TempDir(), "kubeconfig")
		must(t, os.WriteFile(config, []byte("apiVersion: v1\nkind: Config\nclusters: [{name: a, cluster: {server: '"+api.URL+"'}}]\ncontexts: [{name: a, context: {cluster: a}}]\ncurrent-context: a\n"), 0o600))
		at := netip.AddrPortFrom(self, uint16(1054+i))
		cmd := exec.Command(ours, "dns", "serve", "--kubeconfig", config, "--listen", at.String(), "--upstream", public)
		must(t, cmd.Start())
		t.Cleanup(func() { cmd.Process.Kill(); cmd.Wait() })
		for _, to := range []netip.AddrPort{at, netip.AddrPortFrom(self, uint16(5354+i))} {
			await(t, "the last Service at "+to.String(), func() bool {
				m, err := dns.Exchange(new(dns.Msg).SetQuestion(fmt.Sprintf("web-%d.default.svc.cluster.local.", services-1), dns.TypeA), to.String())
				return err == nil && len(m.Answer) == 1
			})
		}
		// What the first lists have left is given back in time, or it is not: the least of a quarter of a minute counts.
		have[0][i], have[1][i] = least(t, cmd.Process.Pid), least(t, core)
		for k, name := range []string{"strake dns serve", "CoreDNS"} {
			m := have[k][i]
			t.Logf("%6d Services: %-16s %6.1f MB of its own, PSS %.1f, RSS %.1f", services, name, float64(m.anonymous)/1000, float64(m.pss)/1000, float64(m.rss)/1000)
		}
		must(t, api.Close())
	}
	weighed, rival := have[0], have[1]
	grown := [2]int{weighed[1].anonymous - weighed[0].anonymous, rival[1].anonymous - rival[0].anonymous}
	t.Logf("10 000 Services and 20 000 endpoints take %.1f MB of ours, %.1f MB of CoreDNS': %.2f", float64(grown[0])/1000, float64(grown[1])/1000, float64(grown[0])/float64(grown[1]))
	judge(t, "memory of its own against CoreDNS", float64(weighed[1].anonymous)/float64(rival[1].anonymous), 1.0/3, false)
	judge(t, "RSS against CoreDNS", float64(weighed[1].rss)/float64(rival[1].rss), 1.0/3, false)
}

// labelled gives a Service what those of a cluster have besides.
func labelled(s *corev1.Service) {
	s.UID = types.UID("3f5a7f64-1f0e-4b3c-9f57-" + s.Name)
	s.Labels = map[string]string{"app.kubernetes.io/name": s.Name, "app.kubernetes.io/part-of": "shop"}
	s.Annotations = map[string]string{"kubectl.kubernetes.io/last-applied-configuration": strings.Repeat("x", 400)}
	s.Spec.Selector = map[string]string{"app.kubernetes.io/name": s.Name}
}
