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
}

func (a Allocation) key() string { return key(a.ContainerID, a.Ifname) }

func key(container, ifname string) string { return container + "_" + ifname }

// grace is how long a released address rests while others are free, so that nobody who still remembers the old pod
// meets a new one.
const grace = time.Minute

// ipam hands out the addresses of the node's range. What is given is what the files say.
type ipam struct {
	dir string

	mu       sync.Mutex
	byKey    map[string]Allocation
	taken    map[netip.Addr]string
	released map[netip.Addr]time.Time
	last     netip.Addr
}

// openIPAM reads the allocations of a former run. A file that can't be read is an error: its address may be in use.
func openIPAM(dir string) (*ipam, error) {
	if err := os.MkdirAll(dir, 0o700); err != nil {
		return nil, fmt.Errorf("cni: allocations: %w", err)
	}
	p := &ipam{dir: dir, byKey: map[string]Allocation{}, taken: map[netip.Addr]string{}, released: map[netip.Addr]time.Time{}}
	entries, err := os.ReadDir(dir)
	if err != nil {
		return nil, fmt.Errorf("cni: allocations: %w", err)
	}
	for _, e := range entries {
		if !strings.HasSuffix(e.Name(), ".json") {
			continue // what a crash left of an unfinished write
		}
		path := filepath.Join(dir, e.Name())
		data, err := os.ReadFile(path)
		if err != nil {
			return nil, fmt.Errorf("cni: allocations: %w", err)
		}
		var a Allocation
		if err := json.Unmarshal(data, &a); err != nil || !a.Addr.IsValid() {
			return nil, fmt.Errorf("cni: allocation %s is corrupt (%w); remove it if no container %s runs", path, err, strings.TrimSuffix(e.Name(), ".json"))
		}
		p.byKey[a.key()], p.taken[a.Addr] = a, a.key()
	}
	return p, nil
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
func (p *ipam) allocate(prefix netip.Prefix, container, ifname, host string) (Allocation, error) {
	p.mu.Lock()
	defer p.mu.Unlock()
	prefix = prefix.Masked()
	size := uint64(1) << (32 - prefix.Bits())
	if !prefix.Addr().Is4() || size < 4 {
		return Allocation{}, fmt.Errorf("cni: range %s is too small", prefix)
	}
	start := uint64(2)
	if p.last.IsValid() && prefix.Contains(p.last) {
		start = index(prefix, p.last) + 1
	}
	now := time.Now()
	var resting netip.Addr
	for i := range size - 3 {
		n := 2 + (start-2+i)%(size-3)
		addr := nth(prefix, n)
		if _, used := p.taken[addr]; used {
			continue
		}
		if t, ok := p.released[addr]; ok && now.Sub(t) < grace {
			if !resting.IsValid() || t.Before(p.released[resting]) {
				resting = addr
			}
			continue
		}
		return p.take(Allocation{ContainerID: container, Ifname: ifname, Addr: addr, Host: host})
	}
	if resting.IsValid() {
		return p.take(Allocation{ContainerID: container, Ifname: ifname, Addr: resting, Host: host})
	}
	return Allocation{}, fmt.Errorf("cni: all %d addresses of %s are in use", size-3, prefix)
}

func index(p netip.Prefix, a netip.Addr) uint64 {
	x, y := p.Addr().As4(), a.As4()
	return uint64(be(y)) - uint64(be(x))
}

func be(b [4]byte) uint32 {
	return uint32(b[0])<<24 | uint32(b[1])<<16 | uint32(b[2])<<8 | uint32(b[3])
}

func nth(p netip.Prefix, n uint64) netip.Addr {
	v := be(p.Addr().As4()) + uint32(n)
	return netip.AddrFrom4([4]byte{byte(v >> 24), byte(v >> 16), byte(v >> 8), byte(v)})
}

func (p *ipam) take(a Allocation) (Allocation, error) {
	data, err := json.Marshal(a)
	if err != nil {
		return a, err
	}
	if err := writeFile(filepath.Join(p.dir, a.key()+".json"), data); err != nil {
		return a, fmt.Errorf("cni: allocation of %s: %w", a.Addr, err)
	}
	p.byKey[a.key()], p.taken[a.Addr], p.last = a, a.key(), a.Addr
	delete(p.released, a.Addr)
	return a, nil
}

// release gives an address back; one that is not held is no error.
func (p *ipam) release(container, ifname string) error {
	p.mu.Lock()
	defer p.mu.Unlock()
	k := key(container, ifname)
	a, ok := p.byKey[k]
	if !ok {
		return nil
	}
	if err := os.Remove(filepath.Join(p.dir, k+".json")); err != nil && !errors.Is(err, fs.ErrNotExist) {
		return fmt.Errorf("cni: release of %s: %w", a.Addr, err)
	}
	delete(p.byKey, k)
	delete(p.taken, a.Addr)
	p.released[a.Addr] = time.Now()
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
	return err
}
