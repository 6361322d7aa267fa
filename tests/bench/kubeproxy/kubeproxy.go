// Package kubeproxy writes rulesets of the shape that kube-proxy writes, as input of iptables-restore and of nft: the rivals of
// the Service benchmark. What it writes is what kube-proxy v1.33 and later write for Services with ready endpoints, policy
// Cluster and no affinity: the chains, their order, what each packet meets. Chains that would stay empty for such Services are left out,
// so the rulesets are rather cheaper than the originals.
package kubeproxy

import (
	"bufio"
	"crypto/sha256"
	"encoding/base32"
	"fmt"
	"io"
	"net/netip"
	"slices"
	"strings"
)

// Service is one TCP port of a Service, over IPv4.
type Service struct {
	Name      string // namespace/name:port
	ClusterIP netip.AddrPort
	NodePort  uint16 // 0: none
	Endpoints []netip.AddrPort
}

// Ruleset is what the rules depend on.
type Ruleset struct {
	PodCIDR   netip.Prefix // --cluster-cidr: who is masqueraded on the way to a ClusterIP, and who is not
	NodeAddrs []netip.Addr // --nodeport-addresses, of the nftables mode; the iptables mode has all local addresses
	Services  []Service
	// Others are Services of which only that is written which packets to any Service meet: their rules in KUBE-SERVICES and
	// KUBE-NODEPORTS, their elements in the maps. These lead to the chains of the first of Services. No packet that is for another
	// Service sees the difference, and the kernel takes 50,000 of them in seconds; with chains of their own, nft 1.0.6 needs
	// minutes for 10,000. Half of the rules are before those of Services, half after, so that a list is walked as far as it is on average.
	Others []Service
}

// all are the Services in their order, each with the one whose chains it leads to.
func (r Ruleset) all(each func(s, chains Service)) {
	for _, s := range r.Others[:len(r.Others)/2] {
		each(s, r.Services[0])
	}
	for _, s := range r.Services {
		each(s, s)
	}
	for _, s := range r.Others[len(r.Others)/2:] {
		each(s, r.Services[0])
	}
}

// hash names a chain as kube-proxy does: sixteen characters of a SHA-256 in base 32.
func hash(s ...string) string {
	sum := sha256.Sum256([]byte(strings.Join(s, "")))
	return base32.StdEncoding.EncodeToString(sum[:])[:16]
}

// IPTables writes the ruleset as input of iptables-restore.
func (r Ruleset) IPTables(to io.Writer) error {
	w := bufio.NewWriter(to)
	w.WriteString(`*filter
:INPUT ACCEPT [0:0]
:FORWARD ACCEPT [0:0]
:OUTPUT ACCEPT [0:0]
:KUBE-NODEPORTS - [0:0]
:KUBE-SERVICES - [0:0]
:KUBE-EXTERNAL-SERVICES - [0:0]
:KUBE-FORWARD - [0:0]
:KUBE-PROXY-FIREWALL - [0:0]
-A INPUT -m conntrack --ctstate NEW -m comment --comment "kubernetes load balancer firewall" -j KUBE-PROXY-FIREWALL
-A INPUT -m comment --comment "kubernetes health check service ports" -j KUBE-NODEPORTS
-A INPUT -m conntrack --ctstate NEW -m comment --comment "kubernetes externally-visible service portals" -j KUBE-EXTERNAL-SERVICES
-A FORWARD -m conntrack --ctstate NEW -m comment --comment "kubernetes load balancer firewall" -j KUBE-PROXY-FIREWALL
-A FORWARD -m comment --comment "kubernetes forwarding rules" -j KUBE-FORWARD
-A FORWARD -m conntrack --ctstate NEW -m comment --comment "kubernetes service portals" -j KUBE-SERVICES
-A FORWARD -m conntrack --ctstate NEW -m comment --comment "kubernetes externally-visible service portals" -j KUBE-EXTERNAL-SERVICES
-A OUTPUT -m conntrack --ctstate NEW -m comment --comment "kubernetes load balancer firewall" -j KUBE-PROXY-FIREWALL
-A OUTPUT -m conntrack --ctstate NEW -m comment --comment "kubernetes service portals" -j KUBE-SERVICES
-A KUBE-FORWARD -m conntrack --ctstate INVALID -j DROP
-A KUBE-FORWARD -m comment --comment "kubernetes forwarding rules" -m mark --mark 0x4000/0x4000 -j ACCEPT
-A KUBE-FORWARD -m comment --comment "kubernetes forwarding conntrack rule" -m conntrack --ctstate RELATED,ESTABLISHED -j ACCEPT
COMMIT
*nat
:PREROUTING ACCEPT [0:0]
:INPUT ACCEPT [0:0]
:OUTPUT ACCEPT [0:0]
:POSTROUTING ACCEPT [0:0]
:KUBE-SERVICES - [0:0]
:KUBE-NODEPORTS - [0:0]
:KUBE-POSTROUTING - [0:0]
:KUBE-MARK-MASQ - [0:0]
`)
	for _, s := range r.Services {
		fmt.Fprintf(w, ":KUBE-SVC-%s - [0:0]\n", hash(s.Name, "tcp"))
		if s.NodePort != 0 {
			fmt.Fprintf(w, ":KUBE-EXT-%s - [0:0]\n", hash(s.Name, "tcp"))
		}
		for _, e := range s.Endpoints {
			fmt.Fprintf(w, ":KUBE-SEP-%s - [0:0]\n", hash(s.Name, "tcp", e.String()))
		}
	}
	w.WriteString(`-A PREROUTING -m comment --comment "kubernetes service portals" -j KUBE-SERVICES
-A OUTPUT -m comment --comment "kubernetes service portals" -j KUBE-SERVICES
-A POSTROUTING -m comment --comment "kubernetes postrouting rules" -j KUBE-POSTROUTING
-A KUBE-POSTROUTING -m mark ! --mark 0x4000/0x4000 -j RETURN
-A KUBE-POSTROUTING -j MARK --xor-mark 0x4000
-A KUBE-POSTROUTING -m comment --comment "kubernetes service traffic requiring SNAT" -j MASQUERADE --random-fully
-A KUBE-MARK-MASQ -j MARK --or-mark 0x4000
`)
	r.all(func(s, chains Service) {
		fmt.Fprintf(w, "-A KUBE-SERVICES -m comment --comment \"%s cluster IP\" -m tcp -p tcp -d %s --dport %d -j KUBE-SVC-%s\n", s.Name, s.ClusterIP.Addr(), s.ClusterIP.Port(), hash(chains.Name, "tcp"))
		if s.NodePort != 0 {
			fmt.Fprintf(w, "-A KUBE-NODEPORTS -m comment --comment %s -m tcp -p tcp --dport %d -j KUBE-EXT-%s\n", s.Name, s.NodePort, hash(chains.Name, "tcp"))
		}
	})
	for _, s := range r.Services {
		r.iptables(w, s)
	}
	w.WriteString(`-A KUBE-SERVICES -m comment --comment "kubernetes service nodeports; NOTE: this must be the last rule in this chain" -m addrtype --dst-type LOCAL -j KUBE-NODEPORTS
COMMIT
`)
	return w.Flush()
}

func (r Ruleset) iptables(w *bufio.Writer, s Service) {
	svc := hash(s.Name, "tcp")
	fmt.Fprintf(w, "-A KUBE-SVC-%s -m comment --comment \"%s cluster IP\" -m tcp -p tcp -d %s --dport %d ! -s %s -j KUBE-MARK-MASQ\n", svc, s.Name, s.ClusterIP.Addr(), s.ClusterIP.Port(), r.PodCIDR)
	if s.NodePort != 0 {
		fmt.Fprintf(w, "-A KUBE-EXT-%s -m comment --comment \"masquerade traffic for %s external destinations\" -j KUBE-MARK-MASQ\n", svc, s.Name)
		fmt.Fprintf(w, "-A KUBE-EXT-%s -j KUBE-SVC-%s\n", svc, svc)
	}
	for i, e := range s.Endpoints {
		sep, random := hash(s.Name, "tcp", e.String()), ""
		if left := len(s.Endpoints) - i; left > 1 {
			random = fmt.Sprintf("-m statistic --mode random --probability %.10f ", 1/float64(left))
		}
		fmt.Fprintf(w, "-A KUBE-SVC-%s -m comment --comment \"%s -> %s\" %s-j KUBE-SEP-%s\n", svc, s.Name, e, random, sep)
		fmt.Fprintf(w, "-A KUBE-SEP-%s -m comment --comment %s -s %s -j KUBE-MARK-MASQ\n", sep, s.Name, e.Addr())
		fmt.Fprintf(w, "-A KUBE-SEP-%s -m comment --comment %s -m tcp -p tcp -j DNAT --to-destination %s\n", sep, s.Name, e)
	}
}

// NFTables writes the ruleset as input of nft.
func (r Ruleset) NFTables(to io.Writer) error {
	w := bufio.NewWriter(to)
	w.WriteString(`table ip kube-proxy {
	comment "rules for kube-proxy"
	set cluster-ips { type ipv4_addr; comment "Active ClusterIPs"; }
	set nodeport-ips { type ipv4_addr; comment "IPs that accept NodePort traffic"; }
	map no-endpoint-services { type ipv4_addr . inet_proto . inet_service : verdict; }
	map no-endpoint-nodeports { type inet_proto . inet_service : verdict; }
	map firewall-ips { type ipv4_addr . inet_proto . inet_service : verdict; }
	map service-ips { type ipv4_addr . inet_proto . inet_service : verdict; }
	map service-nodeports { type inet_proto . inet_service : verdict; }
	chain mark-for-masquerade { mark set mark or 0x4000; }
	chain masquerading {
		mark and 0x4000 == 0 return
		mark set mark xor 0x4000
		masquerade fully-random
	}
	chain reject-chain { reject; }
	chain cluster-ips-check {
		ip daddr @cluster-ips reject comment "Reject traffic to invalid ports of ClusterIPs"
		ip daddr 10.96.0.0/12 drop comment "Drop traffic to unallocated ClusterIPs"
	}
	chain firewall-check { ip daddr . meta l4proto . th dport vmap @firewall-ips; }
	chain service-endpoints-check { ip daddr . meta l4proto . th dport vmap @no-endpoint-services; }
	chain nodeport-endpoints-check { ip daddr @nodeport-ips meta l4proto . th dport vmap @no-endpoint-nodeports; }
	chain services {
		ip daddr . meta l4proto . th dport vmap @service-ips
		ip daddr @nodeport-ips meta l4proto . th dport vmap @service-nodeports
	}
	chain filter-prerouting { type filter hook prerouting priority -110; ct state new jump firewall-check; }
	chain filter-input { type filter hook input priority -110; ct state new jump nodeport-endpoints-check; ct state new jump service-endpoints-check; }
	chain filter-forward { type filter hook forward priority -110; ct state new jump service-endpoints-check; ct state new jump cluster-ips-check; }
	chain filter-output { type filter hook output priority -110; ct state new jump service-endpoints-check; ct state new jump firewall-check; }
	chain filter-output-post-dnat { type filter hook output priority -90; ct state new jump cluster-ips-check; }
	chain nat-prerouting { type nat hook prerouting priority -100; jump services; }
	chain nat-output { type nat hook output priority -100; jump services; }
	chain nat-postrouting { type nat hook postrouting priority 100; jump masquerading; }
`)
	for _, s := range r.Services {
		r.nftables(w, s)
	}
	w.WriteString("}\n")
	for _, a := range r.NodeAddrs {
		fmt.Fprintf(w, "add element ip kube-proxy nodeport-ips { %s }\n", a)
	}
	var ips, ports, nodePorts []string
	r.all(func(s, chains Service) {
		ips = append(ips, s.ClusterIP.Addr().String())
		ports = append(ports, fmt.Sprintf("%s . tcp . %d : goto %s", s.ClusterIP.Addr(), s.ClusterIP.Port(), chains.chain("service")))
		if s.NodePort != 0 {
			nodePorts = append(nodePorts, fmt.Sprintf("tcp . %d : goto %s", s.NodePort, chains.chain("external")))
		}
	})
	slices.Sort(ips)
	for name, list := range map[string][]string{"cluster-ips": slices.Compact(ips), "service-ips": ports, "service-nodeports": nodePorts} {
		for part := range slices.Chunk(list, 1000) {
			fmt.Fprintf(w, "add element ip kube-proxy %s { %s }\n", name, strings.Join(part, ", "))
		}
	}
	return w.Flush()
}

// chain names a chain of a Service's: a hash, and for humans the rest.
func (s Service) chain(kind string) string {
	ns, rest, _ := strings.Cut(s.Name, "/")
	name, port, _ := strings.Cut(rest, ":")
	return fmt.Sprintf("%s-%s-%s/%s/tcp/%s", kind, hash(s.Name)[:8], ns, name, port)
}

func (r Ruleset) nftables(w *bufio.Writer, s Service) {
	var choices []string
	for i, e := range s.Endpoints {
		endpoint := fmt.Sprintf("%s__%s/%d", s.chain("endpoint"), e.Addr(), e.Port())
		fmt.Fprintf(w, "\tchain %s {\n\t\tip saddr %s jump mark-for-masquerade\n\t\tmeta l4proto tcp dnat to %s\n\t}\n", endpoint, e.Addr(), e)
		choices = append(choices, fmt.Sprintf("%d : goto %s", i, endpoint))
	}
	fmt.Fprintf(w, "\tchain %s {\n\t\tip daddr %s tcp dport %d ip saddr != %s jump mark-for-masquerade\n\t\tnumgen random mod %d vmap { %s }\n\t}\n",
		s.chain("service"), s.ClusterIP.Addr(), s.ClusterIP.Port(), r.PodCIDR, len(s.Endpoints), strings.Join(choices, ", "))
	if s.NodePort != 0 {
		fmt.Fprintf(w, "\tchain %s {\n\t\tjump mark-for-masquerade\n\t\tgoto %s\n\t}\n", s.chain("external"), s.chain("service"))
	}
}
