package e2e

import (
	"fmt"
	"net"
	"os/exec"
	"strings"
	"syscall"
	"testing"
	"time"

	mdns "github.com/miekg/dns"
	corev1 "k8s.io/api/core/v1"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"

	"github.com/strake-io/strake/kubelet/cgroups"
)

// othersAnswer is the address that the cluster's own DNS of proxyNames has for every name.
const othersAnswer = "192.0.2.77"

// resolve makes a pod the cluster's DNS, at port 8080.
func (p *proxyPod) resolve() {
	t := p.node.lab.t
	t.Helper()
	var conn net.PacketConn
	if err := p.space.In(func() (err error) { conn, err = net.ListenPacket("udp", ":8080"); return err }); err != nil {
		t.Fatal(err)
	}
	s := &mdns.Server{PacketConn: conn, Handler: mdns.HandlerFunc(func(w mdns.ResponseWriter, q *mdns.Msg) {
		m := new(mdns.Msg).SetReply(q)
		if q.Question[0].Qtype == mdns.TypeA {
			m.Answer = []mdns.RR{&mdns.A{Hdr: mdns.RR_Header{Name: q.Question[0].Name, Rrtype: mdns.TypeA, Class: mdns.ClassINET, Ttl: 1}, A: net.ParseIP(othersAnswer)}}
		}
		w.WriteMsg(m)
	})}
	go s.ActivateAndServe()
	t.Cleanup(func() { s.Shutdown() })
}

// lookUp asks for the IPv4 address of a name, as a process of the pod does.
func (p *proxyPod) lookUp(name, server string) string {
	_, dir := cgroups.UnifiedPath(p.node.cgroup)
	out, err := p.node.lab.runIn(p.space, dir, "busybox", "nslookup", "-type=a", name+".", server)
	_, rest, ok := strings.Cut(out, "Name:")
	_, addr, ok2 := strings.Cut(rest, "Address: ")
	if !ok || !ok2 {
		return fmt.Sprint(err, " ", out)
	}
	addr, _, _ = strings.Cut(addr, "\n")
	return addr
}

// proxyNames runs an agent beside a DNS that the cluster has: the kernel answers what it knows, and only that.
func proxyNames(t *testing.T, l *proxyLab, a, b *proxyPod, known *corev1.Service) {
	one, two := l.nodes[0], l.nodes[1]
	server := two.bare("names")
	server.resolve()
	dns := l.service("names", 30106, func(s *corev1.Service) { s.Spec.Ports[1].Port = 53 }, server)
	flags := []string{"--dns", "--dns-service", "default/names"}
	for _, n := range l.nodes {
		n.stop(syscall.SIGTERM)
		n.start(flags...)
	}
	name := known.Name + ".default.svc.cluster.local"
	want := func(t *testing.T, name, want string) {
		t.Helper()
		for _, p := range []*proxyPod{a, b} {
			for _, vip := range dns.Spec.ClusterIPs {
				eventually(t, 4*time.Minute, func() string {
					if got := p.lookUp(name, vip); got != want {
						return fmt.Sprintf("pod %s asks %s for %s: %s, want %s", p.name, vip, name, got, want)
					}
					return ""
				})
			}
		}
	}
	want(t, name, known.Spec.ClusterIP)
	want(t, "example.com", othersAnswer)
	out, err := one.strake("dns", "lookup", name, "--type", "A")
	other, err2 := one.strake("dns", "lookup", "example.com", "--type", "A")
	if err != nil || err2 != nil || !strings.Contains(out, " kernel ") || !strings.Contains(other, " cluster DNS ") {
		t.Errorf("dns lookup: %v, %v\n%s%s", err, err2, out, other)
	}
	if out, err := one.strake("dns", "flush"); err == nil || !strings.Contains(out, "flush that DNS") {
		t.Errorf("dns flush: %v\n%s", err, out)
	}
	top := exec.Command("nsenter", "--net="+string(one.space), l.Binary, "--data-dir", one.data, "dns", "top", "--log")
	var told journal
	top.Stdout, top.Stderr = &told, &told
	if err := top.Start(); err != nil {
		t.Fatal(err)
	}
	eventually(t, 4*time.Minute, func() string {
		a.lookUp(name, dns.Spec.ClusterIP)
		a.lookUp("example.com", dns.Spec.ClusterIP)
		if said := told.String(); !strings.Contains(said, a.addrs[0]+" "+name+". A: NOERROR, kernel") || !strings.Contains(said, a.addrs[0]+" example.com. A: ?, passed") {
			return "dns top: " + said
		}
		return ""
	})
	top.Process.Kill()
	top.Wait()

	later := l.service("later", 30107, nil)
	want(t, "later.default.svc.cluster.local", later.Spec.ClusterIP)

	configs := l.client.CoreV1().ConfigMaps("kube-system")
	config := &corev1.ConfigMap{ObjectMeta: metav1.ObjectMeta{Name: "coredns"}, Data: map[string]string{"Corefile": ".:53 {\n kubernetes cluster.local\n rewrite name a.cluster.local b.cluster.local\n}\n"}}
	if _, err := configs.Create(t.Context(), config, metav1.CreateOptions{}); err != nil {
		t.Fatal(err)
	}
	want(t, name, othersAnswer)
	if err := configs.Delete(t.Context(), config.Name, metav1.DeleteOptions{}); err != nil {
		t.Fatal(err)
	}
	want(t, name, known.Spec.ClusterIP)

	one.stop(syscall.SIGKILL)
	for range 20 {
		for asked, want := range map[string]string{name: known.Spec.ClusterIP, "example.com": othersAnswer} {
			if got := a.lookUp(asked, dns.Spec.ClusterIP); got != want {
				t.Errorf("the agent is dead, %s is %s, want %s", asked, got, want)
			}
		}
	}
	one.start(flags...)
	want(t, name, known.Spec.ClusterIP)
	for _, n := range l.nodes { // without the flag names are the others' again
		n.stop(syscall.SIGTERM)
		n.start()
	}
	want(t, name, othersAnswer)
}
