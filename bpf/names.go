package bpf

import (
	"fmt"
	"net/netip"
	"slices"

	"github.com/cilium/ebpf"
)

// maxAddrs is how many addresses of a family the kernel answers for one name (NAME_ADDRS in lib/dns.h).
const maxAddrs = 8

// NamesState is what the programs are told of all names together (NAMES_WHOLE and its like in lib/dns.h).
type NamesState struct {
	Whole bool   // every Service and namespace has its row: names below svc.<zone> that are below none of them are denied
	Off   bool   // user space answers for all names
	Pods  bool   // pods' names are those of any addresses, if there is the namespace
	TTL   uint16 // seconds that records live; 0: Config.DNSTTL
}

const (
	namesWhole uint32 = 1
	namesOff   uint32 = 2
	namesPods  uint32 = 4
	namesTTL          = 16 // the bit from which on it is the TTL
)

// SetNamesState tells the programs; it stays when the process ends.
func (d *Datapath) SetNamesState(s NamesState) error {
	v := uint32(s.TTL) << namesTTL
	if s.Whole {
		v |= namesWhole
	}
	if s.Off {
		v |= namesOff
	}
	if s.Pods {
		v |= namesPods
	}
	if err := d.net.Maps["names_state"].Put(uint32(0), v); err != nil {
		return fmt.Errorf("bpf: state of names: %w", err)
	}
	return nil
}

// NamesState is what the programs have been told.
func (d *Datapath) NamesState() (NamesState, error) { return namesStateOf(d.net.Maps["names_state"]) }

func namesStateOf(m *ebpf.Map) (NamesState, error) {
	var v uint32
	if err := m.Lookup(uint32(0), &v); err != nil {
		return NamesState{}, fmt.Errorf("bpf: state of names: %w", err)
	}
	return NamesState{Whole: v&namesWhole != 0, Off: v&namesOff != 0, Pods: v&namesPods != 0, TTL: uint16(v >> namesTTL)}, nil
}

// NameRows are what a node's kernel knows of names.
type NameRows struct {
	Names   []Name
	Records []Record
	State   NamesState
	Outside []OutsideAnswer
}

// ReadNames reads what is pinned below pinDir; no agent need run.
func ReadNames(pinDir string) (r NameRows, err error) {
	maps, done, err := openPins(pinDir, slices.Concat(namePins, recordPins, []string{"names_state", outsidePin, outsideLongPin}))
	if err != nil {
		return r, err
	}
	defer done()
	t, err := openNames(maps, pinDir)
	if err != nil {
		return r, err
	}
	defer t.more.close()
	if r.Names, err = t.Dump(); err != nil {
		return r, fmt.Errorf("bpf: names: %w", err)
	}
	records, err := openRecords(maps, pinDir)
	if err != nil {
		return r, err
	}
	defer records.short.more.close()
	defer records.long.more.close()
	if r.Records, err = records.Dump(); err != nil {
		return r, fmt.Errorf("bpf: records: %w", err)
	}
	if r.Outside, err = openOutside(maps).Dump(); err != nil {
		return r, err
	}
	r.State, err = namesStateOf(maps["names_state"])
	return r, err
}

// Pins of maps, by their names, and of the tables of names, each with where its overflow is.
const namesPin = "names"

var namePins = []string{namesPin, namesPin + moreSuffix}

// nameTable implements Table[Name].
type nameTable struct{ *ownedMap[netNameKey, netName] }

func openNames(maps map[string]*ebpf.Map, pinDir string) (*nameTable, error) {
	t, err := openOverflowing[netNameKey](maps, pinDir, namesPin, "name", func(v netName) string { return textOf(v.Owner[:]) })
	if err != nil {
		return nil, err
	}
	return &nameTable{t}, nil
}

func showName(k netNameKey) string { return nameOf(k.Name[:]) }

// Replace implements Table. A name has at most eight addresses of a family.
func (t *nameTable) Replace(owner string, want []Name) (Changes, error) {
	rows := map[netNameKey]netName{}
	for _, n := range want {
		wire, _, err := wireName(n.Name)
		if err != nil {
			return Changes{}, fmt.Errorf("bpf: name %q: %w", n.Name, err)
		}
		var k netNameKey
		copy(k.Name[:], wire)
		v, err := addrsOf(n)
		if err != nil {
			return Changes{}, err
		}
		if err := text(v.Owner[:], owner, "owner"); err != nil {
			return Changes{}, err
		}
		rows[k] = v
	}
	return t.replace(owner, rows, showName)
}

// addrsOf fills the addresses of a row.
func addrsOf(n Name) (v netName, err error) {
	if n.Elsewhere {
		if len(n.Addrs) > 0 {
			return v, fmt.Errorf("bpf: name %s has addresses, and is answered elsewhere", n.Name)
		}
		v.N4, v.N6 = maxAddrs+1, maxAddrs+1
		return v, nil
	}
	for _, a := range slices.SortedFunc(slices.Values(n.Addrs), netip.Addr.Compare) {
		switch {
		case !plain(a):
			return v, fmt.Errorf("bpf: name %s: %s is not an address", n.Name, a)
		case a.Is4() && v.N4 < maxAddrs:
			v.Addrs4[v.N4].B = a.As4()
			v.N4++
		case a.Is6() && v.N6 < maxAddrs:
			v.Addrs6[v.N6] = addr16(a)
			v.N6++
		default:
			return v, fmt.Errorf("bpf: name %s has %d addresses, want at most %d of a family", n.Name, len(n.Addrs), maxAddrs)
		}
	}
	return v, nil
}

// Prune implements Table.
func (t *nameTable) Prune(keep func(string) bool) (Changes, error) { return t.prune(keep, showName) }

// Dump implements Table.
func (t *nameTable) Dump() ([]Name, error) {
	var out []Name
	err := t.each(func(k netNameKey, v netName) {
		n := Name{Owner: textOf(v.Owner[:]), Name: showName(k), Elsewhere: v.N4 > maxAddrs}
		if !n.Elsewhere {
			for i := range min(v.N4, maxAddrs) {
				n.Addrs = append(n.Addrs, netip.AddrFrom4(v.Addrs4[i].B))
			}
			for i := range min(v.N6, maxAddrs) {
				n.Addrs = append(n.Addrs, addrOf(v.Addrs6[i]))
			}
		}
		out = append(out, n)
	})
	return out, err
}
