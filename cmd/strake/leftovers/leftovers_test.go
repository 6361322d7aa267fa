package leftovers

import (
	"bufio"
	"errors"
	"fmt"
	"net"
	"net/netip"
	"os"
	"os/exec"
	"slices"
	"strings"
	"testing"
	"time"

	"golang.org/x/sys/unix"

	"github.com/strake-io/strake/tests/netns"
)

// inNetns moves the test into a network namespace of its own, whose loopback is up.
func inNetns(t *testing.T) {
	t.Helper()
	netns.Enter(t)
	shell(t, "ip link set lo up")
}

// shell runs a script in the test's namespace.
func shell(t *testing.T, script string) string {
	t.Helper()
	c := exec.Command("sh", "-euc", script)
	out, err := c.CombinedOutput()
	if err != nil {
		t.Fatalf("%s: %v\n%s", script, err, out)
	}
	return string(out)
}

func TestNFTNames(t *testing.T) {
	inNetns(t)
	tables, chains, err := NFTNames()
	if err != nil || len(tables)+len(chains) > 0 {
		t.Fatalf("an empty namespace has %v %v, %v", tables, chains, err)
	}
	shell(t, "nft add table ip kube-proxy; nft add chain ip kube-proxy services; nft add table ip6 filter; nft add chain ip6 filter KUBE-FORWARD")
	tables, chains, err = NFTNames()
	slices.Sort(tables)
	slices.Sort(chains)
	if err != nil || !slices.Equal(tables, []string{"filter", "kube-proxy"}) || !slices.Equal(chains, []string{"KUBE-FORWARD", "services"}) {
		t.Errorf("tables %v, chains %v, %v", tables, chains, err)
	}
}

func needLegacy(t *testing.T) {
	t.Helper()
	if _, err := os.Stat(Legacy4); errors.Is(err, os.ErrNotExist) {
		t.Skip("NOT TESTED: this kernel has no tables of iptables' older half")
	}
}

func TestLegacyChains(t *testing.T) {
	inNetns(t)
	needLegacy(t)
	shell(t, "iptables-legacy -t nat -N KUBE-SERVICES; iptables-legacy -t nat -A OUTPUT -j KUBE-SERVICES; iptables-legacy -N cali-FORWARD")
	got, err := LegacyChains(Legacy4, unix.AF_INET)
	slices.Sort(got)
	if err != nil || !slices.Equal(got, []string{"KUBE-SERVICES", "cali-FORWARD"}) {
		t.Errorf("%v, %v", got, err)
	}
}

// rules are what kube-proxy's mode iptables writes for a Service, with IPT for the program, and what others have beside it: a kubelet, an
// administrator, a plugin that marks with kube-proxy's mark.
const kubeRules = `
IPT -t nat -N KUBE-SERVICES; IPT -t nat -N KUBE-NODEPORTS; IPT -t nat -N KUBE-SVC-ABC; IPT -t nat -N KUBE-SEP-ABC; IPT -t nat -N KUBE-EXT-ABC
IPT -t nat -N KUBE-MARK-MASQ; IPT -t nat -N KUBE-POSTROUTING
IPT -t nat -A PREROUTING -m comment --comment "kubernetes service portals" -j KUBE-SERVICES
IPT -t nat -A OUTPUT -m comment --comment "kubernetes service portals" -j KUBE-SERVICES
IPT -t nat -A POSTROUTING -m comment --comment "kubernetes postrouting rules" -j KUBE-POSTROUTING
IPT -t nat -A KUBE-SERVICES -d VIP -p tcp -m comment --comment "default/a:http \"cluster IP\" -j X" -m tcp --dport 80 -j KUBE-SVC-ABC
IPT -t nat -A KUBE-SERVICES -m addrtype --dst-type LOCAL -j KUBE-NODEPORTS
IPT -t nat -A KUBE-NODEPORTS -p tcp -m tcp --dport 30080 -j KUBE-EXT-ABC
IPT -t nat -A KUBE-EXT-ABC -j KUBE-MARK-MASQ
IPT -t nat -A KUBE-EXT-ABC -j KUBE-SVC-ABC
IPT -t nat -A KUBE-SVC-ABC -j KUBE-SEP-ABC
IPT -t nat -A KUBE-SEP-ABC -p tcp -m tcp -j DNAT --to-destination TARGET
IPT -t nat -A KUBE-MARK-MASQ -j MARK --set-xmark 0x4000/0x4000
IPT -t nat -A KUBE-POSTROUTING -m mark ! --mark 0x4000/0x4000 -j RETURN
IPT -t nat -A KUBE-POSTROUTING -j MASQUERADE
IPT -N KUBE-FORWARD; IPT -N KUBE-PROXY-FIREWALL; IPT -N KUBE-EXTERNAL-SERVICES
IPT -A FORWARD -m comment --comment "kubernetes forwarding rules" -j KUBE-FORWARD
IPT -A INPUT -m conntrack --ctstate NEW -m comment --comment "kubernetes load balancer firewall" -j KUBE-PROXY-FIREWALL
IPT -A KUBE-FORWARD -m conntrack --ctstate INVALID -j DROP
IPT -t mangle -N KUBE-PROXY-CANARY
`

const otherRules = `
IPT -t mangle -N KUBE-KUBELET-CANARY; IPT -t mangle -N KUBE-IPTABLES-HINT
IPT -N KUBE-FIREWALL; IPT -A INPUT -j KUBE-FIREWALL; IPT -A KUBE-FIREWALL -s FAR -j DROP
IPT -t nat -N MINE; IPT -t nat -A OUTPUT -d FAR -m comment --comment "jumps -j KUBE-SERVICES in words alone" -j MINE; IPT -t nat -A MINE -j RETURN
IPT -A INPUT -p tcp -m tcp --dport 22 -j ACCEPT
`

func withProgram(script, program string) string {
	v := map[bool][3]string{false: {"10.96.0.77/32", "127.0.0.1:7777", "192.0.2.0/24"}, true: {"fd00:96::77/128", "[::1]:7777", "2001:db8:ffff::/64"}}[strings.HasPrefix(program, "ip6")]
	return strings.NewReplacer("IPT ", program+" ", "VIP", v[0], "TARGET", v[1], "FAR", v[2]).Replace(script)
}

func TestCleanKubeProxy(t *testing.T) {
	for _, backend := range []string{"nft", "legacy"} {
		for _, family := range []string{"iptables", "ip6tables"} {
			program := family + "-" + backend
			t.Run(program, func(t *testing.T) {
				inNetns(t)
				if backend == "legacy" {
					needLegacy(t)
				}
				shell(t, "nft 'add table ip mine; add chain ip mine KUBE-SERVICES; add rule ip mine KUBE-SERVICES counter'")
				shell(t, withProgram(otherRules, program))
				saved := func() string { return shell(t, program+"-save | grep -v '^#' | sed 's/\\[.*\\]//'") }
				want := saved()
				shell(t, withProgram(kubeRules, program))
				if saved() == want {
					t.Fatal("kube-proxy's rules are not there")
				}
				k, err := FindKubeProxy()
				if err != nil || !k.Found() {
					t.Fatalf("found %s, %v", k, err)
				}
				r, err := CleanKubeProxy(t.Context())
				if err != nil || r.Rules == 0 || len(r.Kept) > 0 {
					t.Errorf("%+v, %v", r, err)
				}
				if got := saved(); got != want {
					t.Errorf("left is\n%s\nwant\n%s", got, want)
				}
				if out := shell(t, "nft list table ip mine"); !strings.Contains(out, "chain KUBE-SERVICES") {
					t.Errorf("another's table has changed:\n%s", out)
				}
				if k, err = FindKubeProxy(); err != nil || k.Found() {
					t.Errorf("still found %s, %v", k, err)
				}
				if r, err = CleanKubeProxy(t.Context()); err != nil || r.Rules > 0 {
					t.Errorf("again: %+v, %v", r, err)
				}
			})
		}
	}
}

// A chain of somebody else's that jumps to kube-proxy's mark keeps that, and what heeds it.
func TestKeptForOthers(t *testing.T) {
	for _, program := range []string{"iptables-nft", "iptables-legacy"} {
		t.Run(program, func(t *testing.T) {
			inNetns(t)
			if strings.HasSuffix(program, "legacy") {
				needLegacy(t)
			}
			shell(t, withProgram(kubeRules+"IPT -t nat -N CNI-HOSTPORT-SETMARK; IPT -t nat -A OUTPUT -j CNI-HOSTPORT-SETMARK; IPT -t nat -A CNI-HOSTPORT-SETMARK -j KUBE-MARK-MASQ", program))
			r, err := CleanKubeProxy(t.Context())
			if err != nil || len(r.Kept) != 2 || !strings.HasPrefix(r.Kept[0], "KUBE-MARK-MASQ") || !strings.HasPrefix(r.Kept[1], "KUBE-POSTROUTING") {
				t.Errorf("kept %q, %v", r.Kept, err)
			}
			left := shell(t, program+"-save -t nat")
			for _, want := range []string{"-A CNI-HOSTPORT-SETMARK -j KUBE-MARK-MASQ", "-A KUBE-MARK-MASQ -j MARK", "-j KUBE-POSTROUTING", "-A KUBE-POSTROUTING -j MASQUERADE"} {
				if !strings.Contains(left, want) {
					t.Errorf("%q is gone", want)
				}
			}
			for _, gone := range []string{"KUBE-SERVICES", "KUBE-SEP-ABC", "KUBE-NODEPORTS"} {
				if strings.Contains(left, gone) {
					t.Errorf("%s is left:\n%s", gone, left)
				}
			}
		})
	}
}

// Connections that kube-proxy's rules have translated go on when these are gone.
func TestConnectionsOutliveTheRules(t *testing.T) {
	for _, script := range []string{
		withProgram(kubeRules, "iptables-nft"), withProgram(kubeRules, "iptables-legacy"),
		"nft 'add table ip kube-proxy; add chain ip kube-proxy out { type nat hook output priority -100 ; }; add rule ip kube-proxy out ip daddr 10.96.0.77 tcp dport 80 dnat to 127.0.0.1:7777'",
	} {
		inNetns(t)
		if strings.Contains(script, "legacy") {
			needLegacy(t)
		}
		shell(t, "ip route add 10.96.0.0/16 dev lo src 127.0.0.1; sysctl -qw net.ipv4.conf.all.route_localnet=1")
		shell(t, script)
		l, err := net.Listen("tcp4", "127.0.0.1:7777")
		if err != nil {
			t.Fatal(err)
		}
		go func() {
			for {
				c, err := l.Accept()
				if err != nil {
					return
				}
				go func() {
					defer c.Close()
					for in := bufio.NewScanner(c); in.Scan(); {
						fmt.Fprintln(c, in.Text())
					}
				}()
			}
		}()
		t.Cleanup(func() { l.Close() })
		// A connection of this thread's namespace.
		c, err := (&net.Dialer{FallbackDelay: -1, Timeout: 20 * time.Second}).Dial("tcp4", "10.96.0.77:80")
		if err != nil {
			t.Fatalf("%s\n%v", script, err)
		}
		t.Cleanup(func() { c.Close() })
		answers := bufio.NewReader(c)
		echo := func(text string) {
			t.Helper()
			if err := c.SetDeadline(time.Now().Add(20 * time.Second)); err != nil {
				t.Fatal(err)
			}
			fmt.Fprintln(c, text)
			if got, err := answers.ReadString('\n'); err != nil || got != text+"\n" {
				t.Errorf("%q, %v", got, err)
			}
		}
		echo("before")
		if r, err := CleanKubeProxy(t.Context()); err != nil || r.Rules == 0 {
			t.Errorf("%+v, %v", r, err)
		}
		echo("after")
		if released, err := ReleaseFlows(t.Context()); err != nil || released {
			t.Errorf("while it is open: %v, %v", released, err)
		}
		echo("still")
		shell(t, "for f in fin_wait time_wait close last_ack close_wait; do sysctl -qw net.netfilter.nf_conntrack_tcp_timeout_$f=1; done")
		c.Close()
		for end := time.Now().Add(60 * time.Second); ; time.Sleep(100 * time.Millisecond) {
			released, err := ReleaseFlows(t.Context())
			if err != nil {
				t.Fatal(err)
			}
			if released {
				break
			}
			if time.Now().After(end) {
				t.Fatal("what keeps connections stays")
			}
		}
		if out := shell(t, "nft list tables"); strings.Contains(out, "strake") {
			t.Errorf("left:\n%s", out)
		}
	}
}

func TestOfKubeProxy(t *testing.T) {
	for _, c := range []struct {
		table, chain string
		want         bool
	}{
		{"nat", "KUBE-SERVICES", true}, {"nat", "KUBE-SEP-X", true}, {"nat", "KUBE-FIREWALL", true}, {"filter", "KUBE-FIREWALL", false}, {"", "KUBE-FIREWALL", false},
		{"mangle", "KUBE-KUBELET-CANARY", false}, {"mangle", "KUBE-PROXY-CANARY", true}, {"nat", "KUBE-MARK-DROP", false}, {"filter", "KUBE-NWPLCY-X", false},
		{"filter", "KUBE-ROUTER-INPUT", false}, {"filter", "KUBE-POD-FW-X", false}, {"nat", "cali-nat", false},
	} {
		if got := OfKubeProxy(c.table, c.chain); got != c.want {
			t.Errorf("%s in %q: %v", c.chain, c.table, got)
		}
	}
}

func TestVirtualServers(t *testing.T) {
	const text = `IP Virtual Server version 1.2.1 (size=4096)
Prot LocalAddress:Port Scheduler Flags
  -> RemoteAddress:Port Forward Weight ActiveConn InActConn
TCP  0A600001:01BB rr
  -> 0A000002:192B      Masq    1      0          0
UDP  [fd00:0010:0096:0000:0000:0000:0000:000a]:0035 rr
TCP  C6120002:7594 rr
TCP  C6120002:0050 wlc
TCP  C6120003:7594 rr
FWM  00000007 rr
TCP  nonsense
`
	device := addrs("10.96.0.1", "fd00:10:96::a")
	var got []string
	for _, s := range serversOfKubeProxy(serversOf([]byte(text)), device, append(addrs("198.18.0.2"), device...)) {
		got = append(got, s.protocol+" "+s.at.String())
	}
	if want := []string{"TCP 10.96.0.1:443", "UDP [fd00:10:96::a]:53", "TCP 198.18.0.2:30100"}; !slices.Equal(got, want) {
		t.Errorf("%q", got)
	}
}

func FuzzParsers(f *testing.F) {
	f.Add([]byte("\x02\x00\x00\x00\x08\x00\x01\x00nat\x00"))
	f.Add(append([]byte("ERROR"), make([]byte, 60)...))
	f.Add([]byte("*nat\n:OUTPUT ACCEPT [0:0]\n:KUBE-SVC-A - [0:0]\n-A OUTPUT -m comment --comment \"a \\\" b\" -j KUBE-SVC-A\nCOMMIT\n"))
	f.Add([]byte(`{"nftables": [{"rule": {"family": "ip", "table": "nat", "chain": "OUTPUT", "handle": 5, "expr": [{"jump": {"target": "KUBE-SERVICES"}}]}}]}`))
	f.Fuzz(func(_ *testing.T, b []byte) {
		_, _ = nftName(b, unix.NFTA_TABLE_NAME)
		chainNames(b)
		_, _, _ = legacyPlan(string(b))
		_, _, _ = nftPlan(b)
		serversOf(b)
	})
}

func addrs(texts ...string) []netip.Addr {
	var out []netip.Addr
	for _, t := range texts {
		out = append(out, netip.MustParseAddr(t))
	}
	return out
}
