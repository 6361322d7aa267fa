package dns

import (
	"errors"
	"slices"
	"time"

	"github.com/miekg/dns"
	"k8s.io/klog/v2"

	"github.com/strake-io/strake/bpf"
)

// Kernel gives answers of servers outside in our stead, to who asks the same.
type Kernel interface {
	// Keep takes a response in wire format, without an OPT record, and the bits of its query (bpf.AskedRecursion and the like).
	Keep(response []byte, bits uint8, until time.Time) error
	Drop(response []byte, bits uint8) error
	// Forget drops all that is of a lower-case name or below it, "." for all, and tells how many that were.
	Forget(name string) (int, error)
}

// ShareWith lets the kernel give what was forwarded, for as long as its records live. It forgets what it had. Call it before Run.
func (s *Server) ShareWith(k Kernel) error {
	s.mu.Lock()
	defer s.mu.Unlock()
	s.kernel = k
	_, err := k.Forget(".")
	return err
}

// share gives the kernel an answer that depends on nothing but the question, the configuration and the aliases of the cluster. Whoever changes one of the
// latter, or wants something forgotten, flushes behind that, and here it is looked at again when the answer is in the kernel: so one of the two sees the other.
func (s *Server) share(set *settings, epoch uint64, q *dns.Msg, a Answer) {
	if s.kernel == nil || a.As != "" || a.until.IsZero() {
		return
	}
	name := canonical(q.Question[0].Name)
	if _, _, ok := reverseAddr(name); ok {
		return // the cluster may have the address before that ends
	}
	bits := uint8(0)
	for bit, set := range map[uint8]bool{bpf.AskedRecursion: q.RecursionDesired, bpf.AskedUnchecked: q.CheckingDisabled, bpf.AskedAuthentic: q.AuthenticatedData,
		bpf.AskedDNSSEC: q.IsEdns0() != nil && q.IsEdns0().Do()} {
		if set {
			bits |= bit
		}
	}
	m := *a.Msg
	m.Compress = true
	data, err := m.Pack()
	if err != nil {
		return // the client's can't be written either, which is told there
	}
	if err = s.kernel.Keep(data, bits, a.until); err == nil && (s.settings.Load() != set || set.cache.epoch.Load() != epoch || a.By == ByCluster && !stillLeadsTo(set, q, name, a.Msg)) {
		err = s.kernel.Drop(data, bits)
	}
	if err != nil && !errors.Is(err, bpf.ErrTooLarge) {
		klog.V(2).ErrorS(err, "An answer is not in the kernel", "question", q.Question)
	}
}

// stillLeadsTo tells whether an answer begins as it would now.
func stillLeadsTo(set *settings, q *dns.Msg, name string, m *dns.Msg) bool {
	records := set.zone(name)
	if records == nil {
		return false
	}
	now, outside := inCluster(records, set.zone, q, name)
	return outside != "" && len(m.Answer) >= len(now.Answer) && slices.EqualFunc(now.Answer, m.Answer[:len(now.Answer)], dns.IsDuplicate)
}
