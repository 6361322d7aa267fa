package leftovers

import (
	"bytes"
	"context"
	"encoding/binary"
	"encoding/hex"
	"errors"
	"fmt"
	"net/netip"
	"os"
	"os/exec"
	"slices"
	"strings"

	"github.com/vishvananda/netlink"
)

// Removed is what CleanKubeProxy did.
type Removed struct {
	Rules   int      // commands of the scripts that removed rules and chains
	Kept    []string // kube-proxy's chains that somebody else's jump to
	Servers int      // of IPVS
	Sets    []string
	Device  bool
	Unkept  error // why connections that were open may have ended: nil, they go on
}

// CleanKubeProxy removes kube-proxy's rules in the calling thread's network namespace, and nobody else's: with the programs nft, iptables-legacy,
// ip6tables-legacy and ipvsadm, those of them that there is something for. Each table is changed at once. What rules have translated the kernel
// translates until it ends, with nft there to see to that; connections of virtual servers end with these.
func CleanKubeProxy(ctx context.Context) (Removed, error) {
	var r Removed
	k, err := FindKubeProxy()
	if err != nil {
		return r, err
	}
	var errs []error
	if k.Found() {
		if err := keepFlows(ctx); err != nil {
			r.Unkept = err
		}
	}
	if len(k.Tables)+len(k.NFT) > 0 {
		errs = append(errs, r.nft(ctx))
	}
	for _, v := range []struct {
		chains     []string
		names, cmd string
	}{{k.Legacy, Legacy4, "iptables-legacy"}, {k.Legacy6, Legacy6, "ip6tables-legacy"}} {
		if len(v.chains) > 0 {
			errs = append(errs, r.legacy(ctx, v.names, v.cmd))
		}
	}
	if k.Device { // before the sets: rules named those
		errs = append(errs, r.ipvs(ctx))
		if r.Servers > 0 {
			r.Unkept = errors.Join(r.Unkept, errIPVS)
		}
	}
	for _, name := range k.Sets {
		if err := netlink.IpsetDestroy(name); err != nil {
			errs = append(errs, fmt.Errorf("ipset %s: %w", name, err))
			continue
		}
		r.Sets = append(r.Sets, name)
	}
	return r, errors.Join(errs...)
}

var errIPVS = errors.New("connections of virtual servers of IPVS end with these")

// run gives a program its input and returns its output.
func run(ctx context.Context, input string, argv ...string) ([]byte, error) {
	c := exec.CommandContext(ctx, argv[0], argv[1:]...)
	c.Stdin = strings.NewReader(input)
	var out, failed bytes.Buffer
	c.Stdout, c.Stderr = &out, &failed
	if err := c.Run(); errors.Is(err, exec.ErrNotFound) {
		return nil, fmt.Errorf("%s is not installed, and kube-proxy's rules can't be removed without it: install it, or run `kube-proxy --cleanup`", argv[0])
	} else if err != nil {
		return nil, fmt.Errorf("%s: %w: %s", strings.Join(argv, " "), err, strings.TrimSpace(failed.String()))
	}
	return out.Bytes(), nil
}

// attempts is how often a table is read and changed anew if somebody else changes it in between.
const attempts = 3

func (r *Removed) nft(ctx context.Context) error {
	var failed error
	for range attempts {
		listed, err := run(ctx, "", "nft", "-j", "list", "ruleset")
		if err != nil {
			return err
		}
		script, kept, err := nftPlan(listed)
		if err != nil || script == "" {
			return err
		}
		if _, failed = run(ctx, script, "nft", "-f", "-"); failed == nil {
			r.Rules += strings.Count(script, "\n")
			r.Kept = append(r.Kept, kept...)
			return nil
		}
	}
	return failed
}

func (r *Removed) legacy(ctx context.Context, names, cmd string) error {
	tables, err := os.ReadFile(names)
	if err != nil {
		return err
	}
	var errs []error
	for _, table := range strings.Fields(string(tables)) {
		var failed error
		for range attempts {
			var saved []byte
			if saved, failed = run(ctx, "", cmd+"-save", "-t", table); failed != nil {
				break
			}
			script, kept, err := legacyPlan(string(saved))
			if failed = err; err != nil || script == "" {
				break
			}
			if _, failed = run(ctx, script, cmd+"-restore", "-w", "5", "--noflush"); failed == nil {
				r.Rules += strings.Count(script, "\n")
				for _, c := range kept {
					r.Kept = append(r.Kept, c+" of table "+table+" ("+cmd+")")
				}
				break
			}
		}
		errs = append(errs, failed)
	}
	return errors.Join(errs...)
}

// nodePorts are where kube-proxy's virtual servers of a node's own addresses are, by default.
const firstNodePort, lastNodePort = 30000, 32767

// server is a virtual server of IPVS.
type server struct {
	protocol string // TCP, UDP or SCTP
	at       netip.AddrPort
}

// serversOf reads /proc/net/ip_vs. Those told by a mark are somebody else's.
func serversOf(text []byte) []server {
	var out []server
	for line := range strings.Lines(string(text)) {
		f := strings.Fields(line)
		if len(f) < 3 || !slices.Contains([]string{"TCP", "UDP", "SCTP"}, f[0]) {
			continue
		}
		host, port, ok := cutLast(f[1], ':')
		p, err := hex.DecodeString(port)
		if !ok || err != nil || len(p) != 2 {
			continue
		}
		var a netip.Addr
		if strings.HasPrefix(host, "[") {
			a, err = netip.ParseAddr(strings.Trim(host, "[]"))
		} else {
			var b []byte
			if b, err = hex.DecodeString(host); err == nil {
				a, ok = netip.AddrFromSlice(b)
			}
		}
		if err == nil && ok {
			out = append(out, server{f[0], netip.AddrPortFrom(a, binary.BigEndian.Uint16(p))})
		}
	}
	return out
}

func cutLast(s string, sep byte) (before, after string, ok bool) {
	i := strings.LastIndexByte(s, sep)
	if i < 0 {
		return s, "", false
	}
	return s[:i], s[i+1:], true
}

// serversOfKubeProxy are those at an address of its device, and those at another of the node's at a NodePort.
func serversOfKubeProxy(all []server, device, node []netip.Addr) []server {
	return slices.DeleteFunc(slices.Clone(all), func(s server) bool {
		if slices.Contains(device, s.at.Addr()) {
			return false
		}
		return s.at.Port() < firstNodePort || s.at.Port() > lastNodePort || !slices.Contains(node, s.at.Addr())
	})
}

func (r *Removed) ipvs(ctx context.Context) error {
	addrs, device, err := onIPVSDevice()
	if err != nil {
		return fmt.Errorf("interface %s: %w", IPVSDevice, err)
	}
	everywhere, err := netlink.AddrList(nil, netlink.FAMILY_ALL)
	if err != nil {
		return fmt.Errorf("addresses: %w", err)
	}
	text, err := os.ReadFile("/proc/thread-self/net/ip_vs")
	if err != nil && !errors.Is(err, os.ErrNotExist) {
		return err
	}
	flags := map[string]string{"TCP": "--tcp-service", "UDP": "--udp-service", "SCTP": "--sctp-service"}
	for _, s := range serversOfKubeProxy(serversOf(text), plainAddrs(addrs), plainAddrs(everywhere)) {
		if _, err := run(ctx, "", "ipvsadm", "--delete-service", flags[s.protocol], s.at.String()); err != nil {
			return err // the device stays, by which they are told
		}
		r.Servers++
	}
	if err := netlink.LinkDel(device); err != nil {
		return fmt.Errorf("interface %s: %w", IPVSDevice, err)
	}
	r.Device = true
	return nil
}

func plainAddrs(l []netlink.Addr) []netip.Addr {
	var out []netip.Addr
	for _, a := range l {
		if ip, ok := netip.AddrFromSlice(a.IP); ok {
			out = append(out, ip.Unmap())
		}
	}
	return out
}
