package dns

import (
	"fmt"
	"strings"

	"github.com/miekg/dns"

	"github.com/strake-io/strake/bpf"
)

// KernelNames are what the kernel of a node holds of names.
type KernelNames struct {
	Zone  string
	State bpf.NamesState
	rows  map[string]bpf.Name
}

// NewKernelNames are those of a node whose rows were read.
func NewKernelNames(zone string, rows []bpf.Name, state bpf.NamesState) KernelNames {
	k := KernelNames{Zone: canonical(zone), State: state, rows: map[string]bpf.Name{}}
	for _, r := range rows {
		k.rows[r.Name] = r
	}
	return k
}

// Limits of the programs (lib/dns.h).
const (
	kernelLabels = 16
	kernelSize   = 512 // bytes of an answer with its UDP header
)

// Explain tells whether the kernel answers a plain question over UDP of a pod, and why, as bpf/lib/dns.h decides.
func (k KernelNames) Explain(name string, qtype uint16, edns bool) (kernel bool, why string) {
	name = canonical(name)
	labels := dns.SplitDomainName(name)
	zoneLabels := dns.CountLabel(k.Zone)
	before := len(labels) - zoneLabels
	switch {
	case k.State.Off:
		return false, "the resolver's configuration says something of names in the zone"
	case !dns.IsSubDomain(k.Zone, name):
		return false, "the name is outside of the cluster's zone " + k.Zone
	case len(labels) >= kernelLabels+1:
		return false, fmt.Sprintf("the name has more than %d labels", kernelLabels)
	case qtype >= dns.TypeTKEY && qtype < dns.TypeANY: // those that are about messages and zones
		return false, "the type is none of records"
	}
	if row, ok := k.rows[name]; ok {
		return k.explainRow(row, name, qtype, edns)
	}
	if before == 0 {
		return false, "the zone itself is left to user space"
	}
	last := labels[before-1]
	switch {
	case last == "svc" && before > 5:
		return true, "no name of the cluster is so deep: it does not exist"
	case last != "svc" && last != "pod" && last != "dns" && len(last) != len("dns-version"):
		return true, fmt.Sprintf("no name of the cluster ends in .%s.%s: it does not exist", last, k.Zone)
	case last != "svc" || before < 2:
		return false, "names of pods and of the zone itself are left to user space"
	case !k.State.Whole:
		return false, "not all Services are in the kernel, so it denies none"
	case before == 2:
		return true, "there is no namespace " + labels[0]
	case before == 3:
		return true, fmt.Sprintf("there is no Service %s with an address in namespace %s", labels[0], labels[1])
	}
	if _, ok := k.rows[strings.Join(labels[before-3:], ".")+"."]; ok {
		return false, fmt.Sprintf("Service %s/%s exists, and what is below it is left to user space", labels[before-2], labels[before-3])
	}
	return true, fmt.Sprintf("there is no Service %s with an address in namespace %s", labels[before-3], labels[before-2])
}

func (k KernelNames) explainRow(row bpf.Name, name string, qtype uint16, edns bool) (bool, string) {
	n, size := 0, 0
	for _, a := range row.Addrs {
		if a.Is4() && qtype == dns.TypeA || a.Is6() && qtype == dns.TypeAAAA {
			n++
			size += 12 + a.BitLen()/8
		}
	}
	switch {
	case row.Elsewhere:
		return false, "the name is an alias, or has more addresses than the kernel answers with"
	case qtype == dns.TypeSRV || qtype == dns.TypeANY:
		return false, "records of this type are left to user space"
	case n == 0:
		return true, "the name exists, and has no records of this type"
	}
	if size += 20 + len(name) + 1 + 4; edns {
		size += 11
	}
	if size > kernelSize {
		return false, "the answer is too large"
	}
	return true, fmt.Sprintf("%d of its addresses", n)
}
