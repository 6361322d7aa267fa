package cni

import (
	"bytes"
	"encoding/json"
	"errors"
	"fmt"
	"net/netip"
	"os"
	"path/filepath"
	"slices"
	"strings"

	"github.com/vishvananda/netlink"
	"k8s.io/klog/v2"

	"github.com/strake-io/strake/atomicfile"
	"github.com/strake-io/strake/cni/plugin"
)

// Allocation is what a pod's interface holds, as it lies on disk.
type Allocation struct {
	ContainerID string       `json:"containerID"`
	Ifname      string       `json:"ifname"`
	Addrs       []netip.Addr `json:"addrs"`           // at most one of each family, in the order of the node's ranges
	Host        string       `json:"host"`            // name of the host's side of the veth
	Netns       string       `json:"netns,omitempty"` // path of the pod's network namespace
	Pod         string       `json:"pod,omitempty"`   // namespace/name
	UID         string       `json:"uid,omitempty"`   // the pod's, if the runtime told it
	Ports       []HostPort   `json:"ports,omitempty"`

	Bandwidth plugin.Bandwidth `json:"bandwidth,omitzero"`
}

func (a Allocation) key() string { return key(a.ContainerID, a.Ifname) }

// addr returns the address of one family.
func (a Allocation) addr(is4 bool) (netip.Addr, bool) {
	for _, x := range a.Addrs {
		if x.Is4() == is4 {
			return x, true
		}
	}
	return netip.Addr{}, false
}

// key names an attachment. A container's id has no comma (CNI 1.1, section 2), so no two attachments share a key.
func key(container, ifname string) string { return container + "," + ifname }

// allocationSuffix ends the names of allocations' files.
const allocationSuffix = ".json"

func allocationFile(dir string, a Allocation) string {
	return filepath.Join(dir, a.key()+allocationSuffix)
}

// readAllocations reads those of a state folder. A file that can't be read is an error: its addresses may be in use.
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

// NetnsOf finds the path of the network namespace of the pod with an address, by the allocations in a Server's state folder.
func NetnsOf(stateDir string, addr netip.Addr) (string, bool) {
	list, err := readAllocations(stateDir)
	if err != nil {
		return "", false
	}
	for _, a := range list {
		if slices.Contains(a.Addrs, addr) && a.Netns != "" {
			return a.Netns, true
		}
	}
	return "", false
}

func parseAllocation(data []byte) (Allocation, error) {
	var stored struct {
		Allocation
		Addr netip.Addr `json:"addr"` // as it was when a pod had one address
	}
	if err := json.Unmarshal(data, &stored); err != nil {
		return Allocation{}, err
	}
	a := stored.Allocation
	if len(a.Addrs) == 0 && stored.Addr.IsValid() {
		a.Addrs = []netip.Addr{stored.Addr}
	}
	if len(a.Addrs) == 0 || a.ContainerID == "" || a.Ifname == "" || a.Host == "" {
		return a, errors.New("a field is missing")
	}
	for i, addr := range a.Addrs {
		if !addr.IsValid() || addr != addr.Unmap().WithZone("") || i > 0 && addr.Is4() == a.Addrs[0].Is4() || i > 1 {
			return a, fmt.Errorf("%s are not one address, or two of different families", a.Addrs)
		}
	}
	return a, nil
}

// removeUnfinished clears away what a crash left of them.
func removeUnfinished(dir string) error {
	left, err := filepath.Glob(filepath.Join(dir, atomicfile.Unfinished+"*"))
	for _, path := range left {
		err = errors.Join(err, os.Remove(path))
	}
	return err
}

// placeFile is atomic for whoever looks, and durable when the function that it returns has: the disk works meanwhile. If the power fails before,
// there may be a file with nothing in it.
func placeFile(path string, data []byte) (durable func() error, err error) {
	tmp, err := os.CreateTemp(filepath.Dir(path), atomicfile.Unfinished+"*")
	if err != nil {
		return nil, err
	}
	if _, err = tmp.Write(data); err == nil {
		err = os.Rename(tmp.Name(), path)
	}
	if err != nil {
		return nil, errors.Join(err, tmp.Close(), os.Remove(tmp.Name()))
	}
	done := make(chan error, 1)
	go func() { done <- errors.Join(tmp.Sync(), tmp.Close(), atomicfile.SyncFolder(filepath.Dir(path))) }()
	return func() error { return <-done }, nil
}

// removeTorn clears away the allocations that were under way when the power failed: the files are there, what was written is not (a file system
// gives a block whole or not at all), and no interface of theirs is.
func removeTorn(dir string) error {
	files, err := filepath.Glob(filepath.Join(dir, "*"+allocationSuffix))
	for _, path := range files {
		data, rerr := os.ReadFile(path)
		if rerr != nil {
			err = errors.Join(err, rerr)
			continue
		}
		container, ifname, ok := strings.Cut(strings.TrimSuffix(filepath.Base(path), allocationSuffix), ",")
		if !ok || len(bytes.Trim(data, "\x00")) > 0 {
			continue
		}
		if _, lerr := netlink.LinkByName(hostName(container, ifname)); errors.As(lerr, new(netlink.LinkNotFoundError)) {
			klog.InfoS("Removing an allocation that was not finished when the power failed", "container", container)
			err = errors.Join(err, os.Remove(path))
		}
	}
	return err
}

// Attachments are what the pods of a node hold, by a Server's state folder; no Server need run.
func Attachments(stateDir string) ([]Allocation, error) { return readAllocations(stateDir) }
