package cni

import (
	"encoding/json"
	"errors"
	"fmt"
	"io/fs"
	"net/netip"
	"os"
	"path/filepath"
	"strings"
	"sync"
	"time"
)

// Allocation is an address that a pod's interface holds, as it lies on disk.
type Allocation struct {
	ContainerID string     `json:"containerID"`
	Ifname      string     `json:"ifname"`
	Addr        netip.Addr `json:"addr"`
	Host        string     `json:"host"` // name of the host's side of the veth
	Ports       []HostPort `json:"ports,omitempty"`
}

func (a Allocation) key() string { return key(a.ContainerID, a.Ifname) }

// key names an attachment. A container's id has no comma (CNI 1.1, section 2), so no two attachments share a key.
func key(container, ifname string) string { return container + "," + ifname }

// grace is how long a released address rests while others are free, so that nobody who still remembers the old pod
// meets a new one.
const grace = time.Minute

var errFull = errors.New("cni: no address is free")

// Files in the state folder. An allocation is <key>.json.
const (
	allocationSuffix = ".json"
	lastFile         = "last"
)

// ipam hands out the addresses of the node's range. What is given is what the files say.
type ipam struct {
	dir string
	now func() time.Time

	mu       sync.Mutex
	byKey    map[string]Allocation
	taken    map[netip.Addr]string
	released map[netip.Addr]time.Time
	last     netip.Addr // the latest given, also in lastFile: a restart goes on behind it
}

// openIPAM reads the allocations of a former run. A file that can't be read is an error: its address may be in use.
func openIPAM(dir string) (*ipam, error) {
	if err := os.MkdirAll(dir, 0o700); err != nil {
		return nil, fmt.Errorf("cni: allocations: %w", err)
	}
	p := &ipam{dir: dir, now: time.Now, byKey: map[string]Allocation{}, taken: map[netip.Addr]string{}, released: map[netip.Addr]time.Time{}}
	list, err := readAllocations(dir)
	if err != nil {
		return nil, err
	}
	for _, a := range list {
		if other, ok := p.taken[a.Addr]; ok {
			return nil, fmt.Errorf("cni: %s is allocated twice in %s, to %s and to %s; remove the file of the one that does not run", a.Addr, dir, other, a.key())
		}
		p.byKey[a.key()], p.taken[a.Addr] = a, a.key()
	}
	if text, err := os.ReadFile(filepath.Join(dir, lastFile)); err == nil {
		p.last, _ = netip.ParseAddr(string(text)) // only a hint: without it addresses begin anew
	}
	return p, nil
}

func readAllocations(dir string) ([]Allocation, error) {
	entries, err := os.ReadDir(dir)
	if err != nil {
		return nil, fmt.Errorf("cni: allocations: %w", err)
	}
	var out []Allocation
	for _, e := range entries {
		if !strings.HasSuffix(e.Name(), allocationSuffix) {
			continue // what a crash left of an unfinished write, and the folder's other files
		}
		path := filepath.Join(dir, e.Name())
		data, err := os.ReadFile(path)
		if err != nil {
			return nil, fmt.Errorf("cni: allocations: %w", err)
		}
		a, err := parseAllocation(data)
		if err != nil {
			return nil, fmt.Errorf("cni: allocation %s is corrupt (%w); remove it if that container does not run", path, err)
		}
		out = append(out, a)
	}
	return out, nil
}

func parseAllocation(data []byte) (Allocation, error) {
	var a Allocation
	if err := json.Unmarshal(data, &a); err != nil {
		return a, err
	}
	if !a.Addr.Is4() || a.ContainerID == "" || a.Ifname == "" || a.Host == "" {
		return a, errors.New("a field is missing")
	}
	return a, nil
}

// get returns an existing allocation.
func (p *ipam) get(container, ifname string) (Allocation, bool) {
	p.mu.Lock()
	defer p.mu.Unlock()
	a, ok := p.byKey[key(container, ifname)]
	return a, ok
}

func (p *ipam) list() []Allocation {
	p.mu.Lock()
	defer p.mu.Unlock()
	var out []Allocation
	for _, a := range p.byKey {
		out = append(out, a)
	}
	return out
}

// allocate gives the next free address after the last one given. The first and last address of the range stay
// unused (network and broadcast, RFC 919), and the first host address, by which others expect a gateway.
func (p *ipam) allocate(prefix netip.Prefix, container, ifname, host string, ports ...HostPort) (Allocation, error) {
	p.mu.Lock()
	defer p.mu.Unlock()
	prefix = prefix.Masked()
	if !prefix.Addr().Is4() || prefix.Bits() > 30 {
		return Allocation{}, fmt.Errorf("cni: range %s has no address for a pod", prefix)
	}
	const first = uint64(2)
	count := uint64(1)<<(32-prefix.Bits()) - 3
	start := first
	if p.last.IsValid() && prefix.Contains(p.last) {
		start = max(index(prefix, p.last)+1, first)
	}
	now := p.now()
	var resting netip.Addr
	for i := range count {
		addr := nth(prefix, first+(start-first+i)%count)
		if _, used := p.taken[addr]; used {
			continue
		}
		if t, ok := p.released[addr]; ok && now.Sub(t) < grace {
			if !resting.IsValid() || t.Before(p.released[resting]) {
				resting = addr
			}
			continue
		}
		return p.take(Allocation{ContainerID: container, Ifname: ifname, Addr: addr, Host: host, Ports: ports})
	}
	if resting.IsValid() {
		return p.take(Allocation{ContainerID: container, Ifname: ifname, Addr: resting, Host: host, Ports: ports})
	}
	return Allocation{}, fmt.Errorf("%w: all %d of the node's range %s are in use", errFull, count, prefix)
}

func index(p netip.Prefix, a netip.Addr) uint64 {
	return uint64(number(a)) - uint64(number(p.Addr()))
}

func number(a netip.Addr) uint32 {
	b := a.As4()
	return uint32(b[0])<<24 | uint32(b[1])<<16 | uint32(b[2])<<8 | uint32(b[3])
}

func nth(p netip.Prefix, n uint64) netip.Addr {
	v := number(p.Addr()) + uint32(n)
	return netip.AddrFrom4([4]byte{byte(v >> 24), byte(v >> 16), byte(v >> 8), byte(v)})
}

func (p *ipam) take(a Allocation) (Allocation, error) {
	data, err := json.Marshal(a)
	if err != nil {
		return a, err
	}
	if err := writeFile(filepath.Join(p.dir, a.key()+allocationSuffix), data); err != nil {
		return a, fmt.Errorf("cni: allocation of %s: %w", a.Addr, err)
	}
	p.byKey[a.key()], p.taken[a.Addr], p.last = a, a.key(), a.Addr
	delete(p.released, a.Addr)
	if err := os.WriteFile(filepath.Join(p.dir, lastFile), []byte(a.Addr.String()), 0o600); err != nil {
		return a, errors.Join(fmt.Errorf("cni: allocation of %s: %w", a.Addr, err), p.drop(a))
	}
	return a, nil
}

// release gives an address back; one that is not held is no error.
func (p *ipam) release(container, ifname string) error {
	p.mu.Lock()
	defer p.mu.Unlock()
	a, ok := p.byKey[key(container, ifname)]
	if !ok {
		return nil
	}
	return p.drop(a)
}

func (p *ipam) drop(a Allocation) error {
	if err := os.Remove(filepath.Join(p.dir, a.key()+allocationSuffix)); err != nil && !errors.Is(err, fs.ErrNotExist) {
		return fmt.Errorf("cni: release of %s: %w", a.Addr, err)
	}
	delete(p.byKey, a.key())
	delete(p.taken, a.Addr)
	p.released[a.Addr] = p.now()
	return nil
}

// writeFile is atomic and durable: after a power loss the file is whole or absent.
func writeFile(path string, data []byte) error {
	tmp, err := os.CreateTemp(filepath.Dir(path), ".tmp-*")
	if err != nil {
		return err
	}
	defer os.Remove(tmp.Name())
	_, err = tmp.Write(data)
	if err == nil {
		err = tmp.Sync()
	}
	if cerr := tmp.Close(); err == nil {
		err = cerr
	}
	if err == nil {
		err = os.Rename(tmp.Name(), path)
	}
	if err != nil {
		return err
	}
	dir, err := os.Open(filepath.Dir(path))
	if err != nil {
		return err
	}
	defer dir.Close()
	return dir.Sync() // the name, too
}
