package dns

import (
	"fmt"
	"strings"
	"time"

	"github.com/miekg/dns"

	"github.com/strake-io/strake/bpf"
)

// KernelNames are what the kernel of a node holds of names.
type KernelNames struct {
	Zone  string
	State bpf.NamesState
	rows  map[string]bpf.Name

	records map[bpf.Asked]int // bytes behind the question
	outside map[bpf.Asked]bpf.OutsideAnswer
}

// NewKernelNames are those of a node whose rows were read.
func NewKernelNames(zone string, rows bpf.NameRows) KernelNames {
	k := KernelNames{Zone: canonical(zone), State: rows.State, rows: map[string]bpf.Name{}, records: map[bpf.Asked]int{}, outside: map[bpf.Asked]bpf.OutsideAnswer{}}
	for _, r := range rows.Names {
		k.rows[r.Name] = r
	}
	for _, r := range rows.Records {
		if m := new(dns.Msg); m.Unpack(r.Message) == nil && len(m.Question) == 1 {
			q := m.Question[0]
			k.records[bpf.Asked{Name: q.Name, Type: q.Qtype}] = len(r.Message) - takenBy(q.Name, 0, false)
		}
	}
	for _, o := range rows.Outside {
		k.outside[o.Asked] = o
	}
	return k
}

// Limits of the programs (lib/dns.h).
const (
	kernelLabels = 64
	kernelSize   = 1232 // bytes of an answer, of whatever size the client takes
)

// Explain tells whether the kernel answers a plain question over UDP of a pod, and why, as bpf/lib/dnsnames.h decides. size is what the
// client's EDNS0 tells; 0: it has none.
func (k KernelNames) Explain(name string, qtype, size uint16) (kernel bool, why string) {
	name = canonical(name)
	labels := dns.SplitDomainName(name)
	zoneLabels := dns.CountLabel(k.Zone)
	before := len(labels) - zoneLabels
	switch {
	case k.State.Off:
		return false, "the resolver's configuration says something of names in the zone"
	case len(labels) >= kernelLabels+1:
		return false, fmt.Sprintf("the name has more than %d labels", kernelLabels)
	case qtype >= dns.TypeTKEY && qtype < dns.TypeANY: // those that are about messages and zones
		return false, "the type is none of records"
	case !dns.IsSubDomain(k.Zone, name):
		if _, ok := k.records[bpf.Asked{Name: name, Type: qtype}]; ok && qtype == dns.TypePTR {
			return k.explainRecord(name, qtype, size)
		}
		return k.explainOutside(name, qtype, size)
	}
	if row, ok := k.rows[name]; ok {
		return k.explainRow(row, name, qtype, size)
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
	case last == "pod" && before == 3 && k.State.Pods && qtype != dns.TypeANY:
		return k.explainPod(labels[0], labels[1])
	case last != "svc" || before < 2:
		return false, "names of the zone itself are left to user space"
	case !k.State.Whole:
		return false, "not all Services are in the kernel, so it denies none"
	case before == 2:
		return true, "there is no namespace " + labels[0]
	case before == 3:
		return true, fmt.Sprintf("there is no Service %s with an address in namespace %s", labels[0], labels[1])
	}
	if _, ok := k.rows[strings.Join(labels[before-3:], ".")+"."]; ok {
		if byKernel, why := k.explainRecord(name, qtype, size); byKernel {
			return byKernel, why
		}
		return false, fmt.Sprintf("Service %s/%s exists, and what else is below it is left to user space", labels[before-2], labels[before-3])
	}
	return true, fmt.Sprintf("there is no Service %s with an address in namespace %s", labels[before-3], labels[before-2])
}

func (k KernelNames) explainPod(label, namespace string) (bool, string) {
	if _, ok := k.rows[namespace+".svc."+k.Zone]; !ok {
		if k.State.Whole {
			return true, "there is no namespace " + namespace
		}
		return false, "not all namespaces are in the kernel, so it denies none"
	}
	if addr, ok := dashed(label); ok {
		return true, "it is the name of address " + addr.String()
	}
	return false, "it is the name of no address"
}

// explainOutside is for a question that asks for recursion, and for nothing else.
func (k KernelNames) explainOutside(name string, qtype, takes uint16) (bool, string) {
	o, ok := k.outside[bpf.Asked{Name: name, Type: qtype, Bits: bpf.AskedRecursion}]
	switch {
	case !ok || o.Left == 0:
		return false, "the name is outside of the cluster's zone " + k.Zone + ", and was not asked for of late"
	case !takesAll(name, o.Size, takes):
		return false, "the answer is too large"
	}
	return true, fmt.Sprintf("it was asked for of late: servers outside have said this, for another %s", o.Left.Round(time.Second))
}

// takesAll tells whether a client that tells such a size with EDNS0 takes so many bytes of records.
func takesAll(name string, records int, takes uint16) bool {
	return takenBy(name, records, takes > 0) <= min(max(int(takes), dns.MinMsgSize), kernelSize)
}

// takenBy is how many bytes a message has.
func takenBy(name string, records int, edns bool) int {
	size := 12 + len(name) + 1 + 4 + records
	if edns {
		size += 11
	}
	return size
}

// explainRecord is for a question that the kernel has an answer to, or has not.
func (k KernelNames) explainRecord(name string, qtype, takes uint16) (bool, string) {
	size, ok := k.records[bpf.Asked{Name: name, Type: qtype}]
	switch {
	case !ok:
		return false, "these records are left to user space"
	case !takesAll(name, size, takes):
		return false, "the answer is too large"
	}
	return true, "it has these records"
}

func (k KernelNames) explainRow(row bpf.Name, name string, qtype, takes uint16) (bool, string) {
	n, size := 0, 0
	for _, a := range row.Addrs {
		if a.Is4() && qtype == dns.TypeA || a.Is6() && qtype == dns.TypeAAAA {
			n++
			size += 12 + a.BitLen()/8
		}
	}
	switch {
	case row.Elsewhere || qtype == dns.TypeSRV || qtype == dns.TypeANY:
		if byKernel, why := k.explainOutside(name, qtype, takes); byKernel && row.Elsewhere {
			return true, why // an alias
		}
		return k.explainRecord(name, qtype, takes)
	case n == 0:
		return true, "the name exists, and has no records of this type"
	}
	if !takesAll(name, size, takes) {
		return false, "the answer is too large"
	}
	return true, fmt.Sprintf("%d of its addresses", n)
}
