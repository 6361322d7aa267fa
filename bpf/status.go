package bpf

import (
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"slices"
	"sort"
	"strings"

	"github.com/cilium/ebpf"
	"github.com/cilium/ebpf/link"
)

// Status is what the kernel holds of ours.
type Status struct {
	Links    []LinkStatus      `json:"links"`
	Maps     []MapStatus       `json:"maps"`
	Counters map[string]uint64 `json:"counters"` // by reason, packets
}

// LinkStatus is one attachment.
type LinkStatus struct {
	Name    string `json:"name"`
	Program uint32 `json:"program"` // id
	Ifindex uint32 `json:"ifindex,omitempty"`
}

// MapStatus is the fill of one map, in rows.
type MapStatus struct {
	Name string `json:"name"`
	Rows int    `json:"rows"`
	Max  uint32 `json:"max"`
	// Grows: it has room for as many rows as there are, while there is memory. Max is the room that it has.
	Grows bool `json:"grows,omitempty"`
}

// Status is ReadStatus of this datapath.
func (d *Datapath) Status() (Status, error) { return ReadStatus(d.pinDir) }

// Counters are the packets counted so far, by reason.
func (d *Datapath) Counters() (map[string]uint64, error) {
	out := map[string]uint64{}
	return out, readCounters(filepath.Join(d.pinDir, countersPin), out)
}

// ReadStatus reads what is pinned below pinDir and changes nothing; no agent need run. A folder with nothing in it gives an empty status.
func ReadStatus(pinDir string) (Status, error) {
	s := Status{Counters: map[string]uint64{}}
	entries, err := os.ReadDir(pinDir)
	if errors.Is(err, os.ErrNotExist) {
		return s, nil
	}
	if err != nil {
		return s, fmt.Errorf("bpf: status: %w", err)
	}
	for _, e := range entries {
		path := filepath.Join(pinDir, e.Name())
		switch name := e.Name(); {
		case strings.HasPrefix(name, linkPrefix):
			l, err := link.LoadPinnedLink(path, nil)
			if errors.Is(err, os.ErrNotExist) {
				continue // a pod has gone meanwhile
			}
			if err != nil {
				return s, fmt.Errorf("bpf: status: %s: %w", path, err)
			}
			info, err := l.Info()
			l.Close()
			if err != nil {
				return s, fmt.Errorf("bpf: status: %s: %w", path, err)
			}
			ls := LinkStatus{Name: strings.TrimPrefix(name, linkPrefix), Program: uint32(info.Program)}
			if tcx := info.TCX(); tcx != nil {
				ls.Ifindex = tcx.Ifindex
			}
			if xdp := info.XDP(); xdp != nil {
				ls.Ifindex = xdp.Ifindex
			}
			s.Links = append(s.Links, ls)
		case strings.HasPrefix(name, filterPrefix):
			p, err := ebpf.LoadPinnedProgram(path, &ebpf.LoadPinOptions{ReadOnly: true})
			if errors.Is(err, os.ErrNotExist) {
				continue // or has a link now
			}
			if err != nil {
				return s, fmt.Errorf("bpf: status: %s: %w", path, err)
			}
			info, err := p.Info()
			p.Close()
			if err != nil {
				return s, fmt.Errorf("bpf: status: %s: %w", path, err)
			}
			id, _ := info.ID()
			_, ifindex, _ := filterOf(name)
			s.Links = append(s.Links, LinkStatus{Name: strings.TrimPrefix(name, filterPrefix), Program: uint32(id), Ifindex: uint32(ifindex)})
		case name == countersPin:
			if err := readCounters(path, s.Counters); err != nil {
				return s, err
			}
		case name == "endpoints" || name == "remotes" || name == policyClasses || name != "lb_changes" && slices.Contains(lbPins, name) || name != "policy_revision" && slices.Contains(policyTables, name):
			m, err := ebpf.LoadPinnedMap(path, &ebpf.LoadPinOptions{ReadOnly: true})
			if err != nil {
				return s, fmt.Errorf("bpf: status: %s: %w", path, err)
			}
			s.Maps = append(s.Maps, MapStatus{Name: name, Rows: rows(m), Max: m.MaxEntries()})
			m.Close()
		case name == namesPin || name == recordsPin || name == listsPin:
			m, err := overflowingStatus(pinDir, name)
			if err != nil {
				return s, err
			}
			s.Maps = append(s.Maps, m)
		}
	}
	sort.Slice(s.Links, func(i, j int) bool { return s.Links[i].Name < s.Links[j].Name })
	return s, nil
}

// overflowingStatus is that of a table and its overflow.
func overflowingStatus(pinDir, name string) (s MapStatus, err error) {
	maps, done, err := openPins(pinDir, []string{name, name + moreSuffix})
	if err != nil {
		return s, err
	}
	defer done()
	s = MapStatus{Name: name, Rows: rows(maps[name]), Max: maps[name].MaxEntries(), Grows: maps[name+moreSuffix] != nil}
	if !s.Grows {
		return s, nil
	}
	more, err := openOverflow(maps, pinDir, name)
	if err != nil || more.m == nil {
		return s, err
	}
	s.Rows, s.Max = s.Rows+rows(more.m), s.Max+more.m.MaxEntries()
	return s, more.close()
}

// rows counts by walking the keys.
func rows(m *ebpf.Map) int {
	n := 0
	var key, next []byte
	for m.NextKey(nilable(key), &next) == nil {
		n++
		key = next
		next = nil
	}
	return n
}

func nilable(key []byte) any {
	if key == nil {
		return nil
	}
	return key
}

func readCounters(path string, out map[string]uint64) error {
	m, err := ebpf.LoadPinnedMap(path, &ebpf.LoadPinOptions{ReadOnly: true})
	if err != nil {
		return fmt.Errorf("bpf: status: %s: %w", path, err)
	}
	defer m.Close()
	for i, name := range reasons {
		var per []uint64
		if err := m.Lookup(uint32(i), &per); err != nil {
			return fmt.Errorf("bpf: status: counter %s: %w", name, err)
		}
		for _, v := range per {
			out[name] += v
		}
	}
	return nil
}
