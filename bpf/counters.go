package bpf

import (
	"fmt"
	"os"
	"path/filepath"
	"slices"

	"github.com/cilium/ebpf"
)

// reasons are the names of the counters, in the order of enum reason in lib/count.h. New ones go to the end.
var reasons = []string{
	"drop_malformed", "drop_spoofed", "drop_no_backend", "drop_rewrite", "drop_conntrack_full",
	"dns_answered", "dns_no_data", "dns_no_name", "dns_passed", "pod_to_pod", "uplink_to_pod", "uplink_remote", "pod_to_uplink",
	"drop_no_port", "drop_not_masqueraded", "masqueraded_out", "masqueraded_in", "masqueraded_error",
	"pod_to_remote", "host_to_remote", "tunnel_to_pod", "tunnel_to_node", "path_too_big", "drop_no_remote", "drop_tunnel_stranger", "drop_tunnel_spoofed",
	"drop_no_pod",
	"drop_not_ip", "drop_neighbour", "drop_link_local", "drop_link_local_source", "drop_source_route", "neighbour_answered", "link_ignored",
	"uplink_to_remote", "remote_to_uplink",
	"drop_bandwidth", "drop_no_local_backend",
	"drop_source_range", "drop_backend_gone", "pod_to_service", "service_to_pod", "uplink_to_node", "node_to_uplink",
	"drop_port_kept", "drop_hops",
	"drop_policy_egress", "drop_policy_ingress", "drop_no_verdict", "drop_policy_fragment", "policy_hits_full", "policy_flows_full",
	"tunnel_to_remote",
	"policy_records_lost", "policy_records_skipped", "policy_classes_full",
	"dsr_to_remote", "dsr_to_client", "drop_dsr",
	"dns_outside", "dns_passed_outside", "dns_passed_large", "dns_passed_odd",
	"xdp_forwarded",
}

// Reasons are the names of all counters.
func Reasons() []string { return slices.Clone(reasons) }

// countersPin is the pin of the map, by its name.
const countersPin = "counters"

// resizeCounters makes the pinned counters as many as this release has reasons, with what was counted. A reason more is no other
// layout, since no packet depends on it; the programs of the release before count in the old map until they are replaced.
func resizeCounters(pinDir string) error {
	pin, n := filepath.Join(pinDir, countersPin), uint32(len(reasons))
	old, err := ofAnotherSize(pin, n)
	if err != nil {
		return fmt.Errorf("bpf: %s: %w", pin, err)
	}
	if old == nil {
		return nil
	}
	defer old.Close()
	fresh, err := ebpf.NewMap(&ebpf.MapSpec{Name: countersPin, Type: ebpf.PerCPUArray, KeySize: 4, ValueSize: 8, MaxEntries: n})
	if err != nil {
		return fmt.Errorf("bpf: counters: %w", err)
	}
	defer fresh.Close()
	for i := range min(n, old.MaxEntries()) {
		var per []uint64
		if err = old.Lookup(i, &per); err == nil {
			err = fresh.Put(i, per)
		}
		if err != nil {
			return fmt.Errorf("bpf: counter %d: %w", i, err)
		}
	}
	if err := os.Remove(pin); err != nil {
		return fmt.Errorf("bpf: unpin %s: %w", pin, err)
	}
	if err := fresh.Pin(pin); err != nil {
		return fmt.Errorf("bpf: pin %s: %w", pin, err)
	}
	return nil
}
