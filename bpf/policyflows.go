package bpf

import (
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"slices"

	"github.com/cilium/ebpf"
)

// The tables of lib/policytrack.h, by their pins.
const (
	policyFlowsOpen    = "policy_flows_open"
	policyFlowsPassing = "policy_flows_passing"
	policyNewest       = "policy_newest" // an array: each flow has one place
)

var policyFlowTables = []string{policyFlowsOpen, policyFlowsPassing}

// resizePolicyFlows gives the tables of flows that policies judged the size that they are to have, with their rows. The programs go on with the old ones
// until they are replaced: what they write meanwhile is lost, and what finds no room. Such flows are judged anew.
func (c Config) resizePolicyFlows() error {
	spec, err := loadNet()
	if err != nil {
		return fmt.Errorf("bpf: object: %w", err)
	}
	_, before := os.Stat(filepath.Join(c.PinDir, policyFlowsOpen))
	if _, err := os.Stat(filepath.Join(c.PinDir, policyNewest)); before == nil && errors.Is(err, os.ErrNotExist) {
		// Programs of before there was policy_newest don't see what is there, until they all are replaced.
		if err := c.adoptAgain(); err != nil {
			return err
		}
	}
	sizes := c.sizes()
	for _, name := range append([]string{"policy_fragments", policyNewest}, policyFlowTables...) {
		rows, ok := sizes[name]
		if !ok {
			rows = spec.Maps[name].MaxEntries
		}
		if err := c.resizePolicyFlow(filepath.Join(c.PinDir, name), flowSpec(spec, name, rows)); err != nil {
			return fmt.Errorf("bpf: make %s one of %d rows: %w", name, rows, err)
		}
	}
	return nil
}

func (c Config) resizePolicyFlow(pin string, spec *ebpf.MapSpec) error {
	old, err := ebpf.LoadPinnedMap(pin, nil)
	if errors.Is(err, os.ErrNotExist) {
		return nil
	}
	if err != nil {
		return err
	}
	defer old.Close()
	if old.MaxEntries() == spec.MaxEntries {
		return nil
	}
	if err := c.adoptAgain(); err != nil {
		return err
	}
	fresh, err := ebpf.NewMap(spec)
	if err != nil {
		return err
	}
	defer fresh.Close()
	if spec.MaxEntries > 1 && slices.Contains(policyFlowTables, spec.Name) {
		var failed error
		err := eachRow(old, spec.Name, func(k netPolicyKey, v netPolicyFlow) {
			if failed == nil {
				failed = fresh.Put(k, v)
			}
		})
		if err != nil || failed != nil && !isFull(failed) {
			return errors.Join(err, failed)
		}
	}
	return pinOver(fresh, pin)
}

// Flags of a row, as in lib/policytrack.h.
const (
	policyFlowDenied = 4
)

// isOverPolicy tells whether a row of policy_flows_open is of no use any more.
func isOverPolicy(k netPolicyKey, f netPolicyFlow, now uint32, full bool, pods map[netAddr]bool) bool {
	if f.Flags&policyFlowDenied != 0 && int32(now-f.Seen) > lifeOfDenied {
		return true
	}
	return idleTooLong(f.State, k.Proto, now-f.Seen, full) || !pods[k.Low] && !pods[k.High]
}
