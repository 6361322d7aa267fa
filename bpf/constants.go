package bpf

import (
	"errors"
	"fmt"
	"net/netip"
	"os"
	"path/filepath"
	"reflect"
	"slices"
	"strings"

	"github.com/cilium/ebpf"
	"github.com/cilium/ebpf/asm"
	"github.com/cilium/ebpf/features"
	"golang.org/x/sys/unix"
)

// sockConstants are what the programs at sockets are told at load, by name.
func (c Config) sockConstants() (map[string]any, error) {
	cookie, err := netnsCookie(c.CgroupRoot)
	if err != nil {
		return nil, err
	}
	var st unix.Stat_t
	if err := unix.Stat(c.NodeCgroup, &st); err != nil {
		return nil, fmt.Errorf("bpf: node cgroup %s: %w", c.NodeCgroup, err)
	}
	rel, err := filepath.Rel(c.CgroupRoot, c.NodeCgroup)
	if err != nil {
		return nil, fmt.Errorf("bpf: node cgroup %s: %w", c.NodeCgroup, err)
	}
	at, bit, _ := v6OnlyAt() // nothing, where it can't be found out: `strake doctor` tells why
	if c.noV6Only {
		at, bit = 0, 0
	}
	return map[string]any{
		"node_netns": cookie, "node_cgroup": st.Ino, "node_level": levelOf(rel),
		"has_set_retval": !c.noSetRetval && features.HaveProgramHelper(ebpf.CGroupSockAddr, asm.FnSetRetval) == nil,
		"v6only_byte":    at, "v6only_bit": bit,
	}, nil
}

// netConstants are what those at interfaces are told.
func (c Config) netConstants() (map[string]any, error) {
	var zone []byte
	var labels int
	var err error
	if c.Zone != "" {
		if zone, labels, err = wireName(strings.TrimSuffix(c.Zone, ".") + "."); err != nil {
			return nil, fmt.Errorf("bpf: zone %q: %w", c.Zone, err)
		}
	}
	var wire [64]byte
	if copy(wire[:], zone) < len(zone) {
		return nil, fmt.Errorf("bpf: zone %q is longer than %d bytes", c.Zone, len(wire))
	}
	dns4, dns6 := constantsOf(c.DNSAddrs)
	constants := map[string]any{
		"dns_addr4": dns4, "dns_addr6": dns6, "dns_ttl": c.DNSTTL, "dns_zone": wire, "dns_zone_len": uint32(len(zone)), "dns_zone_labels": uint32(labels),
		"policy_on": c.Policy, "policy_newest_last": c.policyNewest() - 1, "policy_records": uint32(c.RecordFlows), "dsr_on": c.DSR,
	}
	if err := c.masquerade(constants); err != nil {
		return nil, err
	}
	constants["tunnel_has_local"], err = tunnelHasLocal()
	return constants, err
}

// ranges are the tables that go with the programs, as constants do.
func (c Config) ranges() []rangeTable {
	return []rangeTable{
		{"masq_exempt", "not to be masqueraded", slices.Concat(c.NoMasquerade, c.MasqueradeSources)},
		{"masq_sources", "to be masqueraded", c.MasqueradeSources},
		{"link_local_allowed", "link-local for pods", c.AllowLinkLocal},
	}
}

type rangeTable struct {
	name, what string
	ranges     []netip.Prefix
}

// CompareConstants holds what the loaded programs were told at load against what they would be told now: addresses, ranges, ports, zone, modes.
// It tells how many it has looked at, and a line for each that differs. It changes nothing, and no agent need run.
func CompareConstants(c Config) (checked int, drift []string, err error) {
	status, err := ReadStatus(c.PinDir)
	if err != nil {
		return 0, nil, err
	}
	atSockets, err := c.sockConstants()
	if err != nil {
		return 0, nil, err
	}
	atInterfaces, err := c.netConstants()
	if err != nil {
		return 0, nil, err
	}
	sock, err := loadSock()
	if err != nil {
		return 0, nil, fmt.Errorf("bpf: object: %w", err)
	}
	net, err := loadNet()
	if err != nil {
		return 0, nil, fmt.Errorf("bpf: object: %w", err)
	}
	seen := map[ebpf.MapID]bool{} // programs that were loaded together share them
	for _, l := range status.Links {
		spec, want := net, atInterfaces
		if sock.Programs[l.Name] != nil {
			spec, want = sock, atSockets
		} else if i := strings.LastIndexByte(l.Name, '_'); i < 0 || net.Programs[l.Name[:i]] == nil {
			continue // of another object
		}
		n, lines, err := compareProgram(ebpf.ProgramID(l.Program), spec, want, c.ranges(), seen)
		if err != nil {
			return 0, nil, fmt.Errorf("bpf: program of %s: %w", l.Name, err)
		}
		checked += n
		for _, line := range lines {
			drift = append(drift, l.Name+": "+line)
		}
	}
	return checked, drift, nil
}

// compareProgram looks at the maps of one program that are not in seen yet.
func compareProgram(id ebpf.ProgramID, spec *ebpf.CollectionSpec, want map[string]any, ranges []rangeTable, seen map[ebpf.MapID]bool) (checked int, drift []string, err error) {
	p, err := ebpf.NewProgramFromID(id)
	if errors.Is(err, os.ErrNotExist) {
		return 0, nil, nil // replaced meanwhile, or of a pod that has gone
	}
	if err != nil {
		return 0, nil, err
	}
	defer p.Close()
	info, err := p.Info()
	if err != nil {
		return 0, nil, err
	}
	ids, _ := info.MapIDs()
	for _, id := range ids {
		if seen[id] {
			continue
		}
		seen[id] = true
		m, err := ebpf.NewMapFromID(id)
		if err != nil {
			return 0, nil, err
		}
		n, lines, err := compareMap(m, spec, want, ranges)
		if err := errors.Join(err, m.Close()); err != nil {
			return 0, nil, err
		}
		checked, drift = checked+n, append(drift, lines...)
	}
	return checked, drift, nil
}

// kernelName is how much of a map's name the kernel keeps (BPF_OBJ_NAME_LEN, less the zero).
const kernelName = 15

func compareMap(m *ebpf.Map, spec *ebpf.CollectionSpec, want map[string]any, ranges []rangeTable) (checked int, drift []string, err error) {
	info, err := m.Info()
	if err != nil {
		return 0, nil, err
	}
	const constants = ".rodata"
	if info.Name == constants {
		var have []byte
		if err := m.Lookup(uint32(0), &have); err != nil {
			return 0, nil, err
		}
		if section := spec.Maps[constants]; section == nil || int(section.ValueSize) != len(have) {
			return 1, []string{"it is of another release than this program"}, nil
		}
		for name, value := range want {
			v := spec.Variables[name]
			is := *v
			is.Value = have[v.Offset : v.Offset+v.Size()]
			loaded := reflect.New(reflect.TypeOf(value))
			if err := is.Get(loaded.Interface()); err != nil {
				return 0, nil, fmt.Errorf("constant %s: %w", name, err)
			}
			checked++
			if loaded := loaded.Elem().Interface(); loaded != value {
				drift = append(drift, fmt.Sprintf("%s is %s, should be %s", name, showConstant(loaded), showConstant(value)))
			}
		}
		slices.Sort(drift)
		return checked, drift, nil
	}
	for _, t := range ranges {
		if t.name[:min(len(t.name), kernelName)] != info.Name {
			continue
		}
		missing := map[netPrefix]bool{}
		for _, r := range t.ranges {
			missing[prefixOf(r)] = true
		}
		checked += len(missing)
		var k netPrefix
		var v uint32
		it := m.Iterate()
		for it.Next(&k, &v) {
			if !missing[k] {
				drift = append(drift, fmt.Sprintf("%s has %s, which should not be there (ranges %s)", t.name, rangeOf(k), t.what))
			}
			delete(missing, k)
		}
		for k := range missing {
			drift = append(drift, fmt.Sprintf("%s lacks %s (ranges %s)", t.name, rangeOf(k), t.what))
		}
		slices.Sort(drift)
		return checked, drift, it.Err()
	}
	return 0, nil, nil
}

func showConstant(v any) string {
	switch v := v.(type) {
	case netAddr:
		if v == (netAddr{}) {
			return "none"
		}
		return addrOf(v).String()
	case [64]byte:
		return fmt.Sprintf("%q", nameOf(v[:]))
	}
	return fmt.Sprint(v)
}

// ReadPath is what AttachTunnel told last: the index of the tunnel's device, 0 without one, and the MTU of packets to other nodes.
func ReadPath(pinDir string) (ifindex, mtu int, err error) {
	maps, done, err := openPins(pinDir, []string{"path"})
	if err != nil {
		return 0, 0, err
	}
	defer done()
	var v netPath
	if err := maps["path"].Lookup(uint32(0), &v); err != nil {
		return 0, 0, fmt.Errorf("bpf: path to other nodes: %w", err)
	}
	return int(v.Tunnel), int(v.Mtu), nil
}
