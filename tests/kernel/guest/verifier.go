package main

import (
	"errors"
	"fmt"
	"net/netip"
	"os"
	"regexp"
	"strconv"
	"strings"

	"github.com/cilium/ebpf"

	"github.com/strake-io/strake/bpf"
)

// processed is what the verifier says at the end, in its log.
var processed = regexp.MustCompile(`(?m)^processed (\d+) insns`)

// countInstructions tells how many instructions the verifier walks through for each program that a node loads on this kernel. Since Linux
// 5.16 the kernel remembers the number. Before, the datapath is opened for its constants, on which the verifier's way depends; then the same
// programs are loaded once more, with the verifier's statistics.
func countInstructions(objects []string) (counts map[string]int, err error) {
	const pins, group = "/run/bpf", cgroupRoot + "/node"
	if err := bpf.MountBPFFS(pins); err != nil {
		return nil, err
	}
	if err := os.Mkdir(group, 0o755); err != nil {
		return nil, err
	}
	d, err := bpf.Open(bpf.Config{
		PinDir: pins, CgroupRoot: cgroupRoot, NodeCgroup: group, DNSAddrs: []netip.Addr{netip.MustParseAddr("10.96.0.10"), netip.MustParseAddr("fd00:10:96::a")}, Zone: "cluster.local", DNSTTL: 30,
		NodeAddrs: []netip.Addr{netip.MustParseAddr("192.0.2.10"), netip.MustParseAddr("2001:db8::10")}, // without one the verifier leaves out all that masquerades
		Policy:    true,                                                                                 // and without these what judges, records, and so on
		DSR:       true, RecordFlows: bpf.DefaultRecordFlows, XDP: bpf.XDPNative, Beside: true,
	})
	if err != nil {
		return nil, err
	}
	defer func() { err = errors.Join(err, d.Close(), bpf.Remove(pins), bpf.UnmountBPFFS(pins), os.Remove(group)) }()
	programs, err := loadedPrograms()
	if err != nil {
		return nil, err
	}
	counts = map[string]int{}
	for name, p := range programs {
		if p.verified == 0 {
			clear(counts)
			break
		}
		counts[name] = int(p.verified)
	}
	if len(counts) > 0 {
		return counts, nil
	}
	for _, path := range objects {
		if err := countObject(path, programs, counts); err != nil {
			return counts, fmt.Errorf("%s: %w", path, err)
		}
	}
	for name := range programs {
		if _, ok := counts[name]; !ok {
			return counts, fmt.Errorf("program %s is in no object", name)
		}
	}
	return counts, nil
}

// program is one that the datapath has loaded.
type program struct {
	constants []byte // nil if it uses none
	verified  uint32 // instructions, as the kernel remembers; 0 before Linux 5.16
}

// loadedPrograms are the programs in the kernel by name.
func loadedPrograms() (map[string]program, error) {
	all := map[string]program{}
	for id := ebpf.ProgramID(0); ; {
		next, err := ebpf.ProgramGetNextID(id)
		if errors.Is(err, os.ErrNotExist) {
			return all, nil
		}
		if err != nil {
			return nil, err
		}
		id = next
		p, err := ebpf.NewProgramFromID(id)
		if err != nil {
			return nil, err
		}
		info, err := p.Info()
		p.Close()
		if err != nil {
			return nil, err
		}
		maps, _ := info.MapIDs()
		constants, err := constantsOf(maps)
		if err != nil {
			return nil, fmt.Errorf("%s: %w", info.Name, err)
		}
		verified, _ := info.VerifiedInstructions()
		all[info.Name] = program{constants, verified}
	}
}

func constantsOf(maps []ebpf.MapID) ([]byte, error) {
	for _, id := range maps {
		m, err := ebpf.NewMapFromID(id)
		if err != nil {
			return nil, err
		}
		defer m.Close()
		info, err := m.Info()
		if err != nil {
			return nil, err
		}
		if strings.HasSuffix(info.Name, rodata) {
			return m.LookupBytes(uint32(0))
		}
	}
	return nil, nil
}

// rodata is the section, and the map, of a program's constants.
const rodata = ".rodata"

func countObject(path string, programs map[string]program, counts map[string]int) error {
	spec, err := ebpf.LoadCollectionSpec(path)
	if err != nil {
		return err
	}
	for _, m := range spec.Maps {
		m.Pinning = ebpf.PinNone
	}
	for name := range spec.Programs {
		p, loaded := programs[name]
		if !loaded {
			delete(spec.Programs, name) // not for this kernel
		} else if p.constants != nil {
			for _, v := range spec.Variables { // the map's contents are made of these
				if v.SectionName == rodata {
					copy(v.Value, p.constants[v.Offset:])
				}
			}
		}
	}
	c, err := ebpf.NewCollectionWithOptions(spec, ebpf.CollectionOptions{Programs: ebpf.ProgramOptions{LogLevel: ebpf.LogLevelStats}})
	if err != nil {
		return err
	}
	defer c.Close()
	for name, p := range c.Programs {
		found := processed.FindStringSubmatch(p.VerifierLog)
		if found == nil {
			return fmt.Errorf("the verifier's log of %s has no count: %q", name, p.VerifierLog)
		}
		if counts[name], err = strconv.Atoi(found[1]); err != nil {
			return err
		}
	}
	return nil
}
