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
	policyNewest       = "policy_places" // an array: each flow has one place
	policyNewestBefore = "policy_newest" // the same of releases before, of another form
)

var policyFlowTables = []string{policyFlowsOpen, policyFlowsPassing}

// resizePolicyFlows gives the tables of flows that policies judged the size that they are to have, with their rows. The programs go on with the old ones
// until they are replaced: what they write meanwhile is lost, and what finds no room. Such flows are judged anew.
func (c Config) resizePolicyFlows() error {
	spec, err := loadNet()
	if err != nil {
		return fmt.Errorf("bpf: object: %w", err)
	}
	if err := c.replacePolicyNewest(); err != nil {
		return err
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

// replacePolicyNewest sees to it that a node whose programs don't know policy_places gets it. Until they all are replaced they don't see what is there, nor others
// what is in theirs: so connections are adopted. The places of before go, so that a release that has them finds none after a way back, and does the same; and so do those of
// this one, which are from before there was another.
func (c Config) replacePolicyNewest() error {
	flows, places, before := c.pinned(policyFlowsOpen), c.pinned(policyNewest), c.pinned(policyNewestBefore)
	if flows && (!places || before) {
		if err := c.adoptAgain(); err != nil {
			return err
		}
	}
	if !before {
		return nil
	}
	for _, name := range []string{policyNewest, policyNewestBefore} { // the latter tells a start behind a kill that there is more to be done
		if err := os.Remove(filepath.Join(c.PinDir, name)); err != nil && !errors.Is(err, os.ErrNotExist) {
			return fmt.Errorf("bpf: %w", err)
		}
	}
	return nil
}

func (c Config) pinned(name string) bool {
	_, err := os.Stat(filepath.Join(c.PinDir, name))
	return err == nil
}

func (c Config) resizePolicyFlow(pin string, spec *ebpf.MapSpec) error {
	old, err := ofAnotherSize(pin, spec.MaxEntries)
	if old == nil || err != nil {
		return err
	}
	defer old.Close()
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
