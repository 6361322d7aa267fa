package bpf

// reasons are the names of the counters, in the order of enum reason in lib/count.h.
var reasons = []string{
	"drop_malformed", "drop_spoofed", "drop_no_backend", "drop_rewrite", "drop_conntrack_full",
	"dns_answered", "dns_no_data", "dns_no_name", "dns_passed", "pod_to_pod", "uplink_to_pod", "uplink_remote", "pod_to_uplink",
}
