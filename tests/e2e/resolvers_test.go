package e2e

import (
	"encoding/json"
	"fmt"
	"net"
	"os/exec"
	"slices"
	"strings"
	"testing"
	"time"

	mdns "github.com/miekg/dns"

	"github.com/strake-io/strake/cmd/strake/dnstop"
	"github.com/strake-io/strake/tests/lab"
	"github.com/strake-io/strake/tests/podnet"
)

// outsideDNS is a name server outside of a cluster, which knows example.com alone; the cluster's DNS asks it.
func outsideDNS(t *testing.T, c *cluster) {
	t.Helper()
	var conn net.PacketConn
	space := podnet.Space("/run/netns/" + c.Outside)
	if err := space.In(func() (err error) {
		conn, err = net.ListenPacket("udp", net.JoinHostPort(lab.OutsideIP, "5353"))
		return err
	}); err != nil {
		t.Fatal(err)
	}
	s := &mdns.Server{PacketConn: conn, Handler: mdns.HandlerFunc(func(w mdns.ResponseWriter, q *mdns.Msg) {
		m := new(mdns.Msg).SetReply(q)
		h := mdns.RR_Header{Name: q.Question[0].Name, Rrtype: q.Question[0].Qtype, Class: mdns.ClassINET, Ttl: 30}
		switch {
		case !strings.EqualFold(h.Name, "example.com."):
			m.Rcode = mdns.RcodeNameError
			m.Ns = []mdns.RR{&mdns.SOA{Hdr: mdns.RR_Header{Name: ".", Rrtype: mdns.TypeSOA, Class: mdns.ClassINET, Ttl: 30}, Ns: "a.", Mbox: "b.", Minttl: 30}}
		case h.Rrtype == mdns.TypeA:
			m.Answer = []mdns.RR{&mdns.A{Hdr: h, A: net.ParseIP("192.0.2.1")}}
		case h.Rrtype == mdns.TypeAAAA:
			m.Answer = []mdns.RR{&mdns.AAAA{Hdr: h, AAAA: net.ParseIP("2001:db8::1")}}
		}
		w.WriteMsg(m)
	})}
	go s.ActivateAndServe()
	t.Cleanup(func() { s.Shutdown() })
	c.kubectl("-n", "kube-system", "create", "configmap", "strake-dns", "--from-literal=config.yaml=upstream: {servers: ['"+lab.OutsideIP+":5353']}")
	t.Cleanup(func() { c.kubectl("-n", "kube-system", "delete", "configmap", "strake-dns") })
}

// TestResolvers asks for names as programs do that have glibc's, musl's and Go's resolver, with the search list and ndots of a pod, in a pod and in one
// with the host's network. `strake dns top` sees it.
func TestResolvers(t *testing.T) {
	c := use(t)
	outsideDNS(t, c)
	programs := map[string][]string{"glibc": {"/glibc/getent", "ahosts"}, "Go": {"/go-resolve"}}
	script := `mkdir -p root/glibc root/lib64 root/lib/x86_64-linux-gnu
cp /usr/bin/getent root/glibc/
for l in $(ldd /usr/bin/getent | grep -o '/[^ ]*'); do mkdir -p root$(dirname $l); cp -L $l root$l; done
(cd $here && go build -trimpath -o $OLDPWD/root/go-resolve ./resolve)
`
	if _, err := exec.LookPath("musl-gcc"); err != nil {
		t.Log("SKIPPED: MUSL'S RESOLVER: musl-gcc is not here; `make test` installs it (Debian's musl-tools)")
	} else {
		programs["musl"] = []string{"/musl-resolve"}
		script += "musl-gcc -O1 -static -o root/musl-resolve $here/testdata/resolve.c\n"
	}
	c.image("strake.io/resolvers:1", script)
	c.apply(`
apiVersion: v1
kind: Service
metadata: {name: web}
spec: {ports: [{port: 80}]}
---
apiVersion: v1
kind: Pod
metadata: {name: client}
spec:
  terminationGracePeriodSeconds: 0
  containers: [{name: c, image: "strake.io/resolvers:1", command: [sleep, "3600"]}]
---
apiVersion: v1
kind: Pod
metadata: {name: host}
spec:
  hostNetwork: true
  dnsPolicy: ClusterFirstWithHostNet
  terminationGracePeriodSeconds: 0
  containers: [{name: c, image: "strake.io/resolvers:1", command: [sleep, "3600"]}]
`)
	c.kubectl("wait", "--for=condition=Ready", "pod/client", "pod/host", "--timeout=60s")
	ip := c.kubectl("get", "service", "web", "-o", "jsonpath={.spec.clusterIP}")
	eventually(t, 2*time.Minute, func() string { // the resolver follows its ConfigMap
		out, _ := c.try("exec", "client", "--", "/go-resolve", "example.com.")
		if !strings.Contains(out, "192.0.2.1") {
			return out
		}
		return ""
	})

	top := c.StrakeCommand(t.Context(), "dns", "top", "--log", "-o", "json")
	var told journal
	top.Stdout, top.Stderr = &told, &told
	if err := top.Start(); err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { top.Process.Kill(); top.Wait() })
	eventually(t, 2*time.Minute, func() string { // it looks from now on
		c.try("exec", "client", "--", "/go-resolve", "begin.cluster.local.")
		if !strings.Contains(told.String(), "begin.cluster.local.") {
			return "dns top: " + told.String()
		}
		return ""
	})

	for _, pod := range []string{"client", "host"} {
		for program, argv := range programs {
			for name, want := range map[string][]string{
				"web": {ip}, "web." + c.namespace: {ip}, "web." + c.namespace + ".svc": {ip}, "web." + c.namespace + ".svc.cluster.local": {ip}, "web." + c.namespace + ".svc.cluster.local.": {ip},
				"example.com": {"192.0.2.1", "2001:db8::1"}, "none": nil, "none.example.com": nil, "web.nowhere": nil,
			} {
				t.Run(pod+" "+program+" "+name, func(t *testing.T) {
					out, err := c.try(slices.Concat([]string{"exec", pod, "--"}, argv, []string{name})...)
					if (err == nil) != (want != nil) {
						t.Fatalf("%v\n%s", err, out)
					}
					for _, addr := range want {
						if program == "glibc" && strings.Contains(addr, ":") {
							continue // getent names no family that the pod has no address of
						}
						if !slices.Contains(strings.Fields(out), addr) {
							t.Errorf("no %s in\n%s", addr, out)
						}
					}
				})
			}
		}
	}

	t.Run("a process of the node", func(t *testing.T) {
		c := c.in(t)
		_, conf, _ := strings.Cut(c.kubectl("exec", "client", "--", "cat", "/etc/resolv.conf"), "nameserver ")
		dns, _, _ := strings.Cut(conf, "\n")
		out, err := c.Command(t.Context(), "busybox", "nslookup", "-type=a", "web."+c.namespace+".svc.cluster.local.", dns).CombinedOutput()
		if err != nil || !strings.Contains(string(out), ip) {
			t.Errorf("%v\n%s", err, out)
		}
	})
	t.Run("seen by dns top", func(t *testing.T) {
		has := func(client, name, layer, code string) func() string {
			return func() string {
				for line := range strings.Lines(told.String()) {
					var q dnstop.Question
					if json.Unmarshal([]byte(line), &q) == nil && q.Name == name && q.Layer == layer && q.Code == code && (q.Client == client || client == "") {
						return ""
					}
				}
				return fmt.Sprintf("no %s of %s by the %s with %s in\n%s", name, client, layer, code, told.String())
			}
		}
		pod, domain := c.namespace+"/client", "."+c.namespace+".svc.cluster.local."
		eventually(t, 80*time.Second, has(pod, "web"+domain, dnstop.Kernel, "NOERROR"))
		eventually(t, 80*time.Second, has(pod, "example.com"+domain, dnstop.Kernel, "NXDOMAIN"))
		eventually(t, 80*time.Second, has("", "example.com"+domain, dnstop.Resolver, "NXDOMAIN")) // of the pod with the host's network
	})
	t.Run("told by dns lookup", func(t *testing.T) {
		out, err := c.Strake("dns", "lookup", "example.com", "--from", c.namespace+"/client")
		if err != nil || !strings.Contains(out, "192.0.2.1") || strings.Count(out, "NXDOMAIN") != 6 {
			t.Errorf("%v\n%s", err, out)
		}
	})
	t.Run("forgotten by dns flush", func(t *testing.T) {
		flush := func() (kernel, resolver int) {
			t.Helper()
			out, err := c.Strake("dns", "flush", "Example.com", "-o", "json")
			var f struct {
				Name             string
				Kernel, Resolver int
				Agent            bool
			}
			if err == nil {
				err = json.Unmarshal([]byte(out), &f)
			}
			if err != nil || f.Name != "example.com." || !f.Agent {
				t.Fatalf("%v\n%s", err, out)
			}
			return f.Kernel, f.Resolver
		}
		c.kubectl("exec", "client", "--", "/go-resolve", "example.com.")
		if kernel, resolver := flush(); kernel == 0 || resolver == 0 {
			t.Errorf("%d in the kernel and %d in the resolver were forgotten", kernel, resolver)
		}
		if kernel, resolver := flush(); kernel+resolver != 0 {
			t.Errorf("%d in the kernel and %d in the resolver were left", kernel, resolver)
		}
	})
}
